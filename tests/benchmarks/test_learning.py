"""`benchmarks/learning.py`: its jobs, its offline pairs, and its arithmetic on made-up records."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning
from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.data import preferences, splits
from psyco_ray.data.mixture import mix
from psyco_ray.learner.batching import learning_rate
from psyco_ray.run.types import Group, Prompt, Response
from psyco_ray.training.heldout import REFERENCE, measure
from psyco_ray.training.policy_trainer import schedule_position

SPEECHES = ("x", "y")


def records(*rewards: float, kl: float | None = None) -> list[dict]:
    """A run whose checkpoints have these rewards on the first speech, and 1 more on the second."""
    return [
        {
            "heldout": {"scores": {key: [reward + i] for i, key in enumerate(SPEECHES)}},
            "mean_tokens": 40 + reward,
            "finished_share": 0.9,
            "distinct_2": 0.8 - 0.1 * k,
            "steps": 4 * k,
            "pairs": 32 * k,
            **({"kl": kl} if k and kl is not None else {}),
        }
        for k, reward in enumerate(rewards)
    ]


def test_the_methods_differ_in_the_origin_of_their_pairs_alone(tmp_path) -> None:
    rewards, policies = learning.jobs_of(tmp_path, 2, ["iterations=2"])
    assert [(job.reward.half, job.seed) for job in rewards] == [("a", 0), ("b", 1)]
    assert rewards[0].reward.optimizer == job_file.load_as(Job, learning.ROOT / "jobs" / "demo.yaml").reward.optimizer
    assert rewards[0].data == rewards[1].data
    assert len(policies) == 2
    for seed, jobs in enumerate(policies):
        settings = [job_file.flatten(job.model_dump(mode="json")) for job in jobs.values()]
        different = {key for key in settings[0] if len({json.dumps(each[key]) for each in settings}) > 1}
        assert different == {"run_dir", "pairs_from", "data.pairs"}
        assert {job.seed for job in jobs.values()} == {seed}
        data = jobs["DPO-Iter"].data.model_copy(update={"leakage": rewards[0].data.leakage})
        assert data == rewards[0].data, "what no reward model was trained on is held out"
        positions = {method: [schedule_position(job, k, 4) for k in (1, 2)] for method, job in jobs.items()}
        rates = [
            [
                learning_rate(jobs[method].dpo.optimizer, first + step, total)
                for first, total in own
                for step in range(4)
            ]
            for method, own in positions.items()
        ]
        assert rates[0] == rates[1] == rates[2]
        assert len({job.applied_dpo.keep_optimizer for job in jobs.values()}) == 1
        for job in jobs.values():
            assert job_file.parse(Job, job.model_dump(mode="json"), "job") == job


def test_offline_dpo_trains_on_the_pairs_of_reward_model_a_alone(tmp_path) -> None:
    rewards, _ = learning.jobs_of(tmp_path, 1, [])
    of_a, of_b = (set(mix((), job.data, 0, job.reward.half).train["asked"].to_pylist()) for job in rewards)
    count = learning.write_offline_pairs(rewards[0], tmp_path / "pairs.parquet")
    written = preferences.read(str(tmp_path / "pairs.parquet"), rewards[0].data.dev_share).table
    assert set(written["split"].to_pylist()) == {"train"}
    assert set(written["asked"].to_pylist()) == of_a
    assert count == mix((), rewards[0].data, 0, "a").train.num_rows > 50
    assert not of_a & of_b
    assert not any(splits.is_dev(asked, rewards[0].data.dev_share) for asked in of_a)


def test_a_finished_run_is_not_repeated_unless_its_job_is_another(tmp_path) -> None:
    [_, reward], _ = learning.jobs_of(tmp_path, 1, [])
    root = Path(reward.run_dir)
    assert not learning.is_finished(reward)
    root.mkdir()
    (root / "job.yaml").write_text(job_file.dump(reward))
    assert not learning.is_finished(reward), "it began"
    (root / "reward.json").write_text("{}")
    assert learning.is_finished(reward)
    learning.run("train-reward", [reward])
    assert not root.with_suffix(".log").exists(), "no command was started"
    assert not learning.is_finished(reward.model_copy(update={"iterations": 99}))


def test_curves_by_hand() -> None:
    runs = {
        "offline": [records(1.0, 1.5), records(2.0, 1.0)],
        "one round": [records(1.0, 2.0), records(2.0, 2.0)],
        "DPO-Iter": [records(1.0, 3.0, kl=0.5), records(2.0, 4.0, kl=1.5)],
    }
    by_method, differences = learning.curves(runs)
    base, last = by_method["offline"]
    assert (base["reward"], base["gain"], base["win_rate"], base["win_rate_ci95"]) == (2.0, 0.0, 0.5, (0.5, 0.5))
    assert (last["reward"], last["gain"], last["win_rate"]) == (1.75, -0.25, 0.5)
    assert by_method["one round"][-1]["win_rate"] == 0.75, "a tie is half a win"
    last = by_method["DPO-Iter"][-1]
    assert (last["gain"], last["gain_ci95"], last["win_rate"], last["kl"]) == (2.0, (2.0, 2.0), 1.0, 1.0)
    assert (last["steps"], last["pairs"], last["tokens"], last["finished_share"]) == (4, 32, 43.5, 0.9)
    assert last["distinct_ratio"] == pytest.approx(0.7 / 0.8)
    assert [(row["a"], row["b"], row["difference"]) for row in differences] == [
        ("offline", "base", -0.25),
        ("one round", "offline", 0.75),
        ("DPO-Iter", "one round", 1.5),
    ]
    text = learning.table(by_method, differences)
    assert "DPO-Iter - one round: 1.50 [1.00, 2.00]" in text
    assert len(text.splitlines()) == 1 + 3 * 2 + 3
    line = learning.result(by_method, differences)
    assert line == {"name": "learning", "ours": 1.0, "peer": 0.5, "ratio": 2.0, "bar": 1.0, "pass": False}
    runs["offline"] = [records(1.0, 1.5), records(2.0, 2.0)]
    assert learning.result(*learning.curves(runs))["pass"], "DPO-Iter, one round, offline, base"


def test_curves_read_the_records_of_evaluations() -> None:
    def groups(reward: float) -> dict[str, Group]:
        response = Response("I hear you.", (1, 2, 3), finished=True, logprob=-3.0)
        scores = {"reward": (reward,), "heldout": (reward,), REFERENCE: (-3.0 - reward,)}
        return {key: Group(Prompt(key, (1,), 0), (response,), 1, scores) for key in SPEECHES}

    alone = {key: key for key in groups(0.0)}
    base = measure(groups(0.0), None, alone, 0)
    evaluated = [base, measure(groups(1.0), base, alone, 0)]
    run = [{**record, "steps": 4 * k, "pairs": 32 * k} for k, record in enumerate(evaluated)]
    by_method, _ = learning.curves({method: [run] for method in learning.METHODS})
    last = by_method["DPO-Iter"][-1]
    assert (last["gain"], last["win_rate"], last["tokens"], last["finished_share"]) == (1.0, 1.0, 3.0, 1.0)
    assert (last["distinct_ratio"], last["kl"]) == (1.0, 1.0)


def test_the_interval_covers_speeches_and_seeds() -> None:
    rng = np.random.default_rng(1)
    speeches, seeds = rng.normal(size=(1, 200)), rng.normal(size=(3, 1))
    assert learning.interval(np.full((3, 5), 2.0)) == (2.0, 2.0)
    low, high = learning.interval(np.repeat(speeches, 3, axis=0))
    assert high - low == pytest.approx(2 * 1.96 * speeches.std() / 200**0.5, rel=0.1)
    low, high = learning.interval(np.repeat(seeds, 200, axis=1))
    assert (low, high) == (pytest.approx(seeds.min()), pytest.approx(seeds.max())), "three equal draws in 27 resamples"


def test_an_invalid_override_is_one_sentence(tmp_path, capsys) -> None:
    assert learning.main(["--out", str(tmp_path), "sampling.answers=2"]) == 2
    assert "unknown key sampling.answers" in capsys.readouterr().err
    with pytest.raises(InputError, match="invalid value 0"):
        learning.jobs_of(tmp_path, 1, ["iterations=0"])
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 9)
    job = Job.model_validate({"data": {"pairs": str(pairs)}})
    with pytest.raises(InputError, match="has prompts that are no speeches"):
        learning.write_offline_pairs(job, tmp_path / "out.parquet")
