"""Whole runs with simulated clients on engines of their own; killed, they go on to the same dialogues and pairs."""

import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.commands import ended, here
from support.pages import self_contained
from support.runs import JOB, finish, start

from psyco_ray.run.ledger import stage

SIMULATE = """
simulate:
  turns: 2
  rank: dialogue
  client:
    model: {model}
    prompt: client-few-shot
    max_tokens: 16
    rollouts: {{cpus: 0.1, max_model_len: 640, max_num_seqs: 32, kv_cache_gb: 0.1, speeches_per_item: 8}}
"""
SHORT = ("iterations=1", "speeches_per_iteration=6", "rollouts.max_model_len=512", "evaluation.speeches=4")


@pytest.fixture
def make_job(tmp_path: Path, tiny_model: Path, tiny_reward_model: Path, local_ray):
    def make(name: str) -> tuple[Path, Path, Path]:
        where = tmp_path / name
        where.mkdir()
        job = where / "job.yaml"
        text = JOB.format(run_dir=where / "run", model=tiny_model, reward_model=tiny_reward_model)
        job.write_text(text + SIMULATE.format(model=tiny_model))
        return job, where / "run", where / "log"

    return make


@pytest.mark.slow
def test_a_run_with_simulated_clients_leaves_dialogues_and_measures_by_turn(make_job) -> None:
    job, run, _ = make_job("run")
    done = here("iterate", job, *SHORT)
    assert done.returncode == 0, done.stderr[-3000:]
    dialogues = pq.read_table(run / stage(1, "dialogues.parquet")).to_pylist()
    assert len(dialogues) == 6 * 4
    pairs = pq.read_table(run / stage(1, "pairs.parquet")).to_pylist()
    values = {(row["speech_id"], row["responses"][0]): sum(row["reward"]) / len(row["reward"]) for row in dialogues}
    left = {row["speech_id"] for row in dialogues if len(row["responses"]) < 2}  # ranked by what is expected
    assert {pair["speech_id"] for pair in pairs} - left
    for pair in pairs:
        if pair["speech_id"] not in left:
            assert pair["chosen_score"] == pytest.approx(values[pair["speech_id"], pair["chosen"]])
        assert pair["chosen_score"] > pair["rejected_score"]
    assert {row["client_digest"] for row in dialogues} == {
        json.loads((run / "inputs.json").read_text())["inputs"]["simulate.client.model"]
    }
    for iteration in (0, 1):
        record = json.loads((run / f"{stage(iteration, 'evaluate')}.json").read_text())
        assert [turn["turn"] for turn in record["turns"]] == [1, 2]
        assert record["turns"][0]["heldout"]["reward"] == pytest.approx(record["heldout"]["reward"])
        assert ("gain_ci95" in record["turns"][1]["heldout"]) == (iteration == 1)
    status = json.loads((run / "status.json").read_text())
    assert [len(actors) for actors in status["pools"].values()] == [1, 1, 1]
    [line] = json.loads((run / stage(1, "timeline.json")).read_text())["parts"]
    assert sum(line["busy"]["clients"]) > 0
    page = self_contained((run / "report.html").read_text()).text
    assert "Dialogues side by side" in page


@pytest.mark.long
def test_a_driver_killed_between_turns_goes_on_to_the_same_bytes(make_job) -> None:
    job, whole, log = make_job("whole")
    finish(job, log)
    job, run, log = make_job("killed")
    kills = (
        lambda: any(run.glob("iteration-000/dev-client-1/*.samples.parquet")),
        lambda: any(run.glob("iteration-001/client-1/*.samples.parquet")),
        lambda: any(run.glob("iteration-001/turn-2/*.scores.parquet")),
        lambda: any(run.glob("iteration-002/client-1/*.samples.parquet")),
    )
    for there in kills:
        process = start(job, log)
        deadline = time.monotonic() + 300
        while not there():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        ended(process, 200, log.read_text)
    finish(job, log)
    for name in ("dialogues.parquet", "dev-dialogues.parquet", "pairs.parquet"):
        for iteration in (1, 2):
            ours, theirs = (run_dir / stage(iteration, name) for run_dir in (run, whole))
            assert ours.read_bytes() == theirs.read_bytes(), ours
    for iteration in (0, 1, 2):
        ours, theirs = (
            json.loads((run_dir / f"{stage(iteration, 'evaluate')}.json").read_text())["turns"]
            for run_dir in (run, whole)
        )
        assert ours == theirs
