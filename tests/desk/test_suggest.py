"""The pairs to ask about next: what a margin is worth, the spread over speeches, and what a desk gets."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.dialogue_files import contexts_of, dialogue

from psyco_ray.cli.main import main
from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.desk import sources, suggest
from psyco_ray.desk.store import Store
from psyco_ray.models import loading, reward_model, saving

SPEECH = "I have not slept since my brother left, and I cannot tell my mother why. It is week {}."


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model) -> list[str]:
    """Two reward models over the tiny model, with different random heads."""
    paths = [tmp_path_factory.mktemp("models") / f"reward-{seed}" for seed in (1, 2)]
    tokenizer = loading.load_tokenizer(tiny_model)
    for seed, path in enumerate(paths, start=1):
        saving.save_loaded(path, reward_model.new_model(tiny_model, tokenizer, "float32", seed), tokenizer, tiny_model)
    return list(map(str, paths))


@pytest.fixture
def pairs(tmp_path) -> str:
    """Two pairs on each of six training speeches, and one on a dev and a test speech each."""
    splits = [*["train"] * 12, "dev", "test"]
    rows = [
        {
            "question": SPEECH.format(n // 2 if split == "train" else n),
            "chosen": f"That sounds lonely, after {n} weeks. What would you want her to know?",
            "rejected": f"Just sleep more, {n} hours.",
            "split": split,
        }
        for n, split in enumerate(splits)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_answer_is_worth_most_where_models_disagree_or_are_unsure() -> None:
    sure, unsure, split = [3.0, 3.0], [0.1, -0.1], [3.0, -3.0]
    value = suggest.information(np.array([sure, unsure, split]).T)
    assert value[0] < value[1] == pytest.approx(value[2], rel=0.01)
    assert value.max() <= np.log(2)
    one = suggest.information([[-4.0, 0.5, 2.0, -1.0, 1e9]])
    assert np.argsort(-one).tolist()[-1] == 4
    assert np.isfinite(one).all()
    assert suggest.information([[0.0, 0.0]]).tolist() == pytest.approx([np.log(2)] * 2), "a head of zeros knows nothing"


def test_the_scale_of_a_model_does_not_outvote_another() -> None:
    margins = np.array([[1.0, -2.0, 3.0, 0.5], [0.2, 2.0, -0.1, 1.0]])
    assert suggest.information(margins) == pytest.approx(suggest.information(margins * [[1000.0], [0.01]]))


def test_every_speech_has_a_pair_before_one_has_another() -> None:
    margins = [[0.0, 0.1, 0.2, 5.0, 6.0]]
    speeches = ["a", "a", "a", "b", "c"]
    assert suggest.select(margins, speeches, 5) == [0, 3, 4, 1, 2]
    assert suggest.select(margins, speeches, 2) == [0, 3]
    assert suggest.select(margins, speeches, 5, asked=["b", "a"]) == [4, 0, 3, 1, 2]


def test_the_seed_alone_decides_between_pairs_that_tell_as_much() -> None:
    speeches = [f"{n}" for n in range(30)]
    drawn = [suggest.select(np.ones((2, 30)), speeches, 5, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def asked(directory: Path) -> list[str]:
    return [item.responses[0] for item in Store.open(directory).items()]


def suggested(directory: Path, pairs: str, models: Sequence[str], count: int, *more: str) -> int:
    command = ["desk", "suggest", str(directory), "--from", pairs, "--reward", *models, "--count", str(count)]
    return main([*command, *more])


def test_a_desk_gets_the_pairs_that_tell_most_and_none_twice(tmp_path, pairs, models, capsys) -> None:
    desk = tmp_path / "desk"
    Store.open(desk, create=True)
    assert suggested(desk, pairs, models, 4) == 0
    assert "4 pairs are added, of 12 that could be asked about" in capsys.readouterr().out
    first = Store.open(desk).items()
    assert len({item.speech_id for item in first}) == 4
    candidates = [item for item in sources.read(pairs, sources.Request("pairs")) if item.facts["split"] == "train"]
    margins = np.array([suggest.margins_of(candidates, model) for model in models])
    order = suggest.select(margins, [item.speech_id for item in candidates], 12)
    assert asked(desk) == [candidates[i].responses[0] for i in order[:4]]
    assert first[0].facts["margins"] == pytest.approx(dict(zip(models, margins[:, order[0]], strict=True)))

    assert suggested(desk, pairs, models, 20) == 0
    everything = asked(desk)
    assert (len(everything), len(set(everything))) == (12, 12), "held-out pairs are not asked about"
    assert suggested(desk, pairs, models, 1) == 2
    assert "has every training pair of" in capsys.readouterr().err


def test_pairs_that_no_model_can_read_whole_are_left_out(tmp_path, pairs, models, caplog) -> None:
    rows = Path(pairs).read_text().splitlines()
    long = {**json.loads(rows[0]), "chosen": "word " * 3000}
    Path(pairs).write_text("\n".join([json.dumps(long), *rows[1:4]]))
    store = Store.open(tmp_path / "desk", create=True)
    found = suggest.suggest(store, pairs, models, 9)
    assert found == suggest.Suggested(added=3, of=3, too_long=1)
    assert "1 pairs are left out: a response alone fills the context" in caplog.text


def test_invalid_arguments_are_refused_and_add_nothing(tmp_path, pairs, models, tiny_model) -> None:
    store = Store.open(tmp_path / "desk", create=True)
    for count, named, message in (
        (0, models, "--count 0"),
        (2, [str(tiny_model)], "is no reward model: its config.json names LlamaForCausalLM"),
    ):
        with pytest.raises(InputError, match=message):
            suggest.suggest(store, pairs, named, count)
    assert store.items() == []


def test_every_conversation_has_a_pair_before_one_has_another_at_a_later_turn(tmp_path, models) -> None:
    contexts = [context for seed in (1, 2, 3) for context in contexts_of(dialogue(seed, 3))]
    rows = [
        {"question": context.text, "chosen": f"Say more of that, {n}.", "rejected": f"Hm {n}.", "split": "train"}
        for n, context in enumerate(contexts)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    desk = tmp_path / "desk"
    Store.open(desk, create=True)
    for _ in range(2):
        assert suggested(desk, str(tmp_path / "pairs.jsonl"), models[:1], 3) == 0
    asked_about = [Context.of(item.speech).opening for item in Store.open(desk).items()]
    assert len(set(asked_about[:3])) == len(set(asked_about[3:])) == 3
