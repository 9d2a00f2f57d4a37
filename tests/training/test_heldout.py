"""The held-out judge of a policy: its training pairs, and the speeches whose answers it compares."""

import logging

import pyarrow as pa
import pytest
from support import commands, judging

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.resources import Scorers
from psyco_ray.config.training import Data, Evaluation, Job, Part
from psyco_ray.data import trained_pairs
from psyco_ray.data.mixture import mix
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Group, Prompt, Response
from psyco_ray.training import heldout
from psyco_ray.training.run_state import RunState


@pytest.fixture
def model(tmp_path):
    """Makes a reward model's directory with its record of training pairs; returns the number of its pairs."""

    def make(name: str, half: str | None = None, recorded: bool = True) -> int:
        (tmp_path / name).mkdir()
        train = mix([Part(pairs="sample")], Data(), seed=0, half=half).train
        if recorded:
            (tmp_path / name / trained_pairs.FILE).write_text(trained_pairs.dump(train))
        return train.num_rows

    return make


def compared(tmp_path, reward: str, judge: str, **settings) -> dict | None:
    scorers = Scorers(reward_model=str(tmp_path / reward), heldout_model=str(tmp_path / judge))
    return heldout.compare_training_pairs(Job(scorers=scorers, **settings))


def warnings(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_judge_of_the_other_half_passes_without_a_warning(model, tmp_path, caplog) -> None:
    model("a", "a")
    pairs = model("b", "b")
    assert compared(tmp_path, "a", "b") == {"same": False, "pairs": pairs, "shared": 0}
    assert not warnings(caplog)


def test_a_judge_that_shares_pairs_is_told_in_one_line(model, tmp_path, caplog) -> None:
    model("all")
    pairs = model("b", "b")
    assert compared(tmp_path, "all", "b") == {"same": False, "pairs": pairs, "shared": pairs}
    [warning] = warnings(caplog)
    assert warning.levelno == logging.WARNING
    assert f"was trained on {pairs} pairs, {pairs} of which also trained scorers.reward_model" in warning.getMessage()
    caplog.clear()
    assert compared(tmp_path, "b", "b")["same"]
    assert "scorers.heldout_model is scorers.reward_model" in caplog.text


def test_nothing_is_claimed_about_a_model_without_a_record(model, tmp_path, caplog) -> None:
    model("a", "a")
    model("downloaded", recorded=False)
    assert compared(tmp_path, "a", "downloaded") == {"same": False, "pairs": None, "shared": None}
    assert compared(tmp_path, "a", "downloaded", pairs_from="file") is None, "no model ranks responses"
    assert heldout.compare_training_pairs(Job()) is None
    assert not warnings(caplog)


def test_a_run_that_ended_with_invalid_data_can_be_started_again(local_ray, tmp_path) -> None:
    overrides = [f"run_dir={tmp_path}/run", "data.pairs=nowhere.jsonl", "scorers.heldout_model=x/y"]
    (tmp_path / "job.yaml").write_text("rollouts: {cpus: 0.1}\nscorers: {cpus: 0.1}\nlearners: {cpus: 0.1}\n")
    for _ in range(2):
        done = commands.here("train-dpo", tmp_path / "job.yaml", *overrides)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (
            2,
            "psyco-ray: pairs file nowhere.jsonl does not exist",
        )


def test_the_judge_compares_the_answers_to_its_number_of_speeches(local_ray, tmp_path) -> None:
    keys = [f"{number:016x}" for number in range(12)]
    with judging.server() as url:
        judge = Endpoint(model="judge", base_url=url, key_env=None)
        job = Job(run_dir=str(tmp_path / "run"), evaluation=Evaluation(judge=judge, judged=5))
        ledger = Ledger(job, resume=False)
        rows = [{"speech_id": key, "index": 0, "response": f"base {key}"} for key in keys[1:]]  # one is quarantined
        ledger.write_table(f"{stage(0, 'dev')}/0.samples.parquet", pa.Table.from_pylist(rows))
        groups = {key: Group(Prompt(key, (5,), 0), (Response(f"new {key}", (5,), True),), 1) for key in keys}
        evaluation = heldout.HeldoutEvaluation(job, ledger, RunState(job, ledger), Progress())
        record = evaluation.judge(groups, {key: f"I am {key}." for key in keys})
        ledger.close()
        assert sorted(record["outcomes"]) == keys[1:6]
        asked = judging.get_json(url)["served"]
    assert asked % 5 == 0
    assert 0 < asked <= 10
