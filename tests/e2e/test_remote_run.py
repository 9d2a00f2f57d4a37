"""Runs whose directory is on a (real, local) S3 server."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.files import fill
from support.groups import SCHEMA, groups_of, parts_of, stream
from support.logs import messages
from support.runs import JOB, finish, start

from psyco_ray.cli import status
from psyco_ray.cli.main import main
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.pool import placement
from psyco_ray.run import lease, mirror, remote, storage
from psyco_ray.run import status as run_status
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.remote import RemoteDirectory
from psyco_ray.run.types import StepResult
from psyco_ray.training import control
from psyco_ray.training.run_state import RunState
from psyco_ray.training.step_log import StepLog


def test_a_run_goes_on_on_another_machine(place, monkeypatch, tmp_path) -> None:
    job = Job(run_dir=place)
    ledger = Ledger(job, False)
    ledger.table("x", SCHEMA, lambda: (parts_of([1]), {}))

    def dies(items):
        first, second = items
        yield from groups_of(first)
        yield groups_of(second)[0]
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        list(stream(ledger, dies))
    fill(ledger.place("it/state"))
    ledger.write_text("it/state/README.md", "a card")
    # made here, but the machine died before they were sent
    (ledger.root / "late.json").write_text("{}")
    (ledger.root / "x.json").write_text("{}")
    (ledger.root / "judge" / "journal").mkdir(parents=True)
    (ledger.root / "judge" / "journal" / "w.jsonl").write_text("paid\n")
    ledger.close()

    here = Ledger(job, True)
    assert here.record("late") is None
    assert here.record("x")["stage"] == "x"
    assert (here.root / "judge" / "journal" / "w.jsonl").read_text() == "paid\n", "what was paid for is kept"
    with here.mirrored("judge"):
        (here.root / "judge" / "verdict.txt").write_text("A")
    here.close()

    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "other"))
    there = Ledger(job, True)
    kept = there.table("x", SCHEMA, lambda: pytest.fail("made again"))
    assert pq.read_table(kept)["a"].to_pylist() == [1]
    asked: list[str] = []

    def rest(items):
        for item in items:
            asked.append(item.key)
            yield from groups_of(item)

    assert len(list(stream(there, rest))) == 6
    assert asked == ["item1"]
    assert not (there.root / "it" / "state").exists(), "states are fetched when they are needed"
    assert (storage.fetch(there.place("it/state")) / "a.txt").read_text() == "one"
    assert (there.root / "judge" / "journal" / "w.jsonl").read_text() == "paid\n"
    assert (there.root / "judge" / "verdict.txt").read_text() == "A"
    there.remove("it")
    assert set(RemoteDirectory(place).subdirs()) == {"judge"}
    there.close()


def test_a_file_is_not_there_before_those_that_it_may_promise(place, monkeypatch) -> None:
    ledger = Ledger(Job(run_dir=place), False)
    for name in ("journal/w.jsonl", "set-aside/01.parquet", "01.parquet", "soon.parquet"):  # the order of writing
        ledger.path(f"judge/{name}").write_text(name)
        time.sleep(0.02)
    later = time.time() + 100
    for name in ("journal/w.jsonl", "soon.parquet"):
        os.utime(ledger.root / "judge" / name, (later, later))
    sent: list[str] = []
    push = mirror.RemoteMirror.push
    monkeypatch.setattr(mirror.RemoteMirror, "push", lambda *given: (sent.append(given[1]), push(*given)))
    for module in (mirror, lease):
        monkeypatch.setattr(module, "REFRESH_S", 0.2)
    first = [f"judge/{name}" for name in ("journal/w.jsonl", "set-aside/01.parquet", "01.parquet")]
    with ledger.mirrored("judge"):
        eventually(lambda: sent == first)
        time.sleep(0.5)
    assert sent == [*first, "judge/soon.parquet"]
    ledger.close()


def test_only_what_differs_is_brought_here(place, monkeypatch) -> None:
    ledger = Ledger(Job(run_dir=place), False)
    ledger.finish("a", 0.0)
    ledger.finish("b", 0.0)
    ledger.close()
    RemoteDirectory(place).write("b.json", b"{}")
    brought: list[str] = []
    download = RemoteDirectory.download
    monkeypatch.setattr(RemoteDirectory, "download", lambda *given: (brought.append(given[1]), download(*given)))
    Ledger(Job(run_dir=place), True).close()
    assert brought == ["b.json"]


@pytest.fixture
def quick(monkeypatch) -> None:
    """Leases that expire after two seconds."""
    for module in (mirror, lease):
        monkeypatch.setattr(module, "REFRESH_S", 0.2)
    monkeypatch.setattr(lease, "EXPIRES_S", 2.0)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.3)


def lock_of(place: str, **changes) -> dict:
    """What a lease holds; first it is changed, as by another process."""
    if changes:
        RemoteDirectory(place).write("LOCK", json.dumps({"host": "there", "pid": 1, **changes}).encode())
    return json.loads(RemoteDirectory(place).read("LOCK"))


def test_one_driver_at_a_time(place, quick, monkeypatch, tmp_path) -> None:
    first = Ledger(Job(run_dir=place), False)
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"in use by process \d+ on .*; wait for it or choose another run_dir"):
        Ledger(Job(run_dir=place), True)
    began = lock_of(place)["refreshed"]
    time.sleep(1)
    assert lock_of(place)["refreshed"] > began, "it says that it lives"
    while lock_of(place)["owner"] != "other":  # until no refresh falls between
        lock_of(place, owner="other")
        time.sleep(1)
    with pytest.raises(InputError, match=r"is no longer held by this process"):
        first.finish("stage", 0.0)
    assert RemoteDirectory(place).read("stage.json") is None
    first.close()
    assert lock_of(place)["owner"] == "other", "it gives back only what it has"
    second = Ledger(Job(run_dir=place), True)  # for the other one says nothing
    second.close()
    assert RemoteDirectory(place).read("LOCK") is None


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_clocks_may_differ(place, quick, monkeypatch, tmp_path, ahead) -> None:
    first = Ledger(Job(run_dir=place), False)
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "other"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    with pytest.raises(InputError, match="is in use by"):  # neither taken from a live one
        Ledger(Job(run_dir=place), True)
    first.close()
    lock_of(place, owner="dead", time=now())
    began = time.monotonic()
    Ledger(Job(run_dir=place), True).close()  # nor kept by a dead one
    assert 2 < time.monotonic() - began < 10


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"\xff"])
def test_an_unreadable_lease_is_taken_over(place, quick, left) -> None:
    RemoteDirectory(place).write("LOCK", left)
    Ledger(Job(run_dir=place), False).close()
    assert RemoteDirectory(place).read("LOCK") is None


def test_of_two_that_race_one_is_refused(place, quick, monkeypatch) -> None:
    settle = time.sleep

    def overtaken(seconds: float) -> None:
        lock_of(place, owner="rival")
        settle(seconds)

    monkeypatch.setattr(lease.time, "sleep", overtaken)
    with pytest.raises(InputError, match="in use by process 1 on there"):
        Ledger(Job(run_dir=place), False)
    assert lock_of(place)["owner"] == "rival"


def test_a_holder_that_was_suspended_does_not_write(place, quick, monkeypatch) -> None:
    first = Ledger(Job(run_dir=place), False)
    now = lease._now
    monkeypatch.setattr(lease, "_now", lambda: now() + 3)  # the machine slept
    with pytest.raises(InputError, match=r"is no longer held by this process"):
        first.finish("stage", 0.0)
    time.sleep(0.5)
    with pytest.raises(InputError, match=r"is no longer held by this process"):  # nor after a refresh
        first.finish("stage", 0.0)
    first.close()


def test_status_and_scale_of_a_remote_run_need_no_copy(place, monkeypatch, tmp_path, capsys) -> None:
    ledger = Ledger(Job(run_dir=place), False)
    RemoteDirectory(place).write("scale.json", b'{"learners": 9}')  # of an earlier driver
    pushed: list[str] = []
    push = mirror.RemoteMirror.push
    monkeypatch.setattr(mirror.RemoteMirror, "push", lambda *given: (pushed.append(given[1]), push(*given)))
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "other"))
    seen = {"stage": "train", "done": 1, "total": 2, "version": 3}
    said = messages()

    def begin() -> control.Control:
        return control.Control(ledger, {}, {}, lambda _: seen)

    began = begin()
    time.sleep(2.5)  # a local status would be written twice
    assert pushed == ["status.json"]
    began.close()
    assert pushed == ["status.json"] * 2
    with pytest.raises(ValueError, match="no run is in progress in s3://"):
        run_status.request_scale(place, {"learners": 2})

    monkeypatch.setattr(control, "_EVERY_REMOTE_S", 0.1)
    began = begin()
    eventually(lambda: json.loads(RemoteDirectory(place).read("status.json"))["state"] == "going on")
    assert main(["scale", place, "learners=2"]) == 0
    eventually(lambda: json.loads(RemoteDirectory(place).read("status.json"))["wanted"] == {"learners": 2})
    assert began.requested == {"learners": 2}
    assert said == ["requested: 2 learners"]
    assert main(["status", place]) == 0
    assert "going on\nstage: train, 1 of 2; policy version 3" in capsys.readouterr().out
    began.close()
    monkeypatch.setattr(run_status, "_STALE_REMOTE_S", -1.0)
    assert "ended" in status.describe(place)
    assert not (tmp_path / "other").exists()
    ledger.close()


def eventually(there) -> None:
    deadline = time.monotonic() + 20
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_steps_of_a_remote_training_are_found_elsewhere(place, monkeypatch, tmp_path) -> None:
    class Learner:
        """Stands for a group of ranks: writes a state where it is told to."""

        def save_state(self, target: str, moments: bool) -> None:
            fill(target, target.partition("?")[0][-1])

    step = StepResult(0, 3, 0.5, 1e-3, None, {"accuracy": 1.0}, 10, 0.1)
    ledger = Ledger(Job(run_dir=place), False)
    log = StepLog(ledger, "it/training", best=None)
    fill(ledger.place("it/training/best-000001"))
    fill(ledger.place("it/training/worse-000001"))
    for _ in range(2):
        log.add(step)
        log.write(Learner(), "it/training/best-000001")
    ledger.close()

    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "other"))
    ledger = Ledger(Job(run_dir=place), True)
    found = StepLog(ledger, "it/training")
    assert (found.done, len(found.facts["steps"])) == (2, 2)
    assert (storage.fetch(found.state, digests=True) / "a.txt").read_text() == "2"
    assert storage.subdirs(ledger.place("it/training")) == ["best-000001", "state-000002"]
    found.clear()
    assert not [name for name in RemoteDirectory(place).files() if name.startswith("it/")]
    assert StepLog(ledger, "it/training").state is None
    ledger.close()


def test_checkpoints_are_looked_for_where_the_run_is(place) -> None:
    job = Job(run_dir=place, checkpoints={"keep_last": 1})
    ledger = Ledger(job, False)
    for k, reward in enumerate((0.0, 3.0, 2.0, 1.0)):
        ledger.finish(stage(k, "evaluate"), 0.0, reward={"reward": reward})
    for k in (1, 2):
        fill(ledger.place(stage(k, "checkpoint")))
    run_state = RunState(job, ledger)
    assert run_state.best(3, kept=True) == 1
    ledger.remove(stage(1, "checkpoint"))
    ledger.write_text(f"{stage(3, 'checkpoint')}/README.md", "a card is no checkpoint")
    assert run_state.best(3, kept=True) == 2
    assert run_state.best(3) == 1
    ledger.close()


def test_speeches_in_quarantine_are_known_on_another_machine(place, monkeypatch, tmp_path) -> None:
    ledger = Ledger(Job(run_dir=place), False)
    lost: dict[str, str] = {}

    def gives_up(items):
        first, *rest = groups_of(next(items))
        lost[first.prompt.speech_id] = "the engine died of it"
        yield from rest
        for item in items:
            yield from groups_of(item)

    made = len(list(stream(ledger, gives_up, lost)))
    ledger.close()
    names = list(RemoteDirectory(place).at("it/samples").files())
    assert sum(name.endswith(".quarantine.json") for name in names) == 1

    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "other"))
    ledger = Ledger(Job(run_dir=place), True)
    assert ledger.quarantined("it/samples") == lost
    again = list(stream(ledger, lambda items: pytest.fail("asked again")))
    assert len(again) == made
    ledger.close()


def test_who_writes_into_a_working_copy_runs_beside_it(local_ray, place, tmp_path) -> None:
    import ray

    here = {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
    assert placement.writer_options(storage.working_copy(place) / "judge" / "verdicts") == here
    assert placement.writer_options(tmp_path / "run" / "judge") == {}


SMALL = (
    "iterations=1",
    "speeches_per_iteration=4",
    "sampling.responses=2",
    "sampling.max_tokens=8",
    "evaluation.speeches=2",
    "scorers.heldout_model=null",
    "dpo.optimizer.batch_size=4",
    "rollouts.actors=1",
    "rollouts.speeches_per_item=1",
    "learners.actors=1",
)


@pytest.fixture
def ray_with_own_cache(server, tmp_path, monkeypatch) -> Iterator[Path]:
    """A Ray whose actors keep what they fetch in a directory of the test, as the commands that it starts do."""
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    process = subprocess.Popen([sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    monkeypatch.setenv("RAY_ADDRESS", process.stdout.readline().strip())
    yield tmp_path / "cache"
    process.communicate(timeout=60)


RAY = """
import ray
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.mark.long
def test_a_remote_run_killed_and_resumed_from_nothing_gives_the_pairs_of_a_local_one(
    server, ray_with_own_cache, tmp_path, tiny_model, tiny_reward_model
) -> None:
    job, log, cache = tmp_path / "job.yaml", tmp_path / "log", ray_with_own_cache
    reward, run = f"s3://bucket/reward?{server}", f"s3://bucket/run?{server}"
    with storage.atomic_dir(reward) as staging:
        shutil.copytree(tiny_reward_model, staging, dirs_exist_ok=True)
        (staging / remote.MANIFEST).unlink()
    job.write_text(JOB.format(run_dir=tmp_path / "run", model=tiny_model, reward_model=tiny_reward_model))
    finish(job, log, *SMALL)

    given = (*SMALL, f"run_dir={run}", f"scorers.reward_model={reward}")
    process = start(job, log, *given)
    deadline = time.monotonic() + 300
    while not any(
        name.endswith(".scores.parquet") for name in RemoteDirectory(run).at("iteration-001/samples").files()
    ):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not RemoteDirectory(run).has("iteration-001/pairs.json"), "the kill came too late to show anything"
    assert "going on\nstage: " in status.describe(run)
    shutil.rmtree(cache)
    finish(job, log, *given)  # after a minute, which shows that nobody holds the run

    there = {name: RemoteDirectory(run).read(name) for name in RemoteDirectory(run).files()}
    ours = pq.read_table(pa.BufferReader(there["iteration-001/pairs.parquet"]))
    assert ours.equals(pq.read_table(tmp_path / "run" / "iteration-001" / "pairs.parquet"))
    assert {"summary.json", "report.html", "iteration-001/state/manifest.json"} <= set(there)
    assert "LOCK" not in there
    assert "ended" in status.describe(run)
    local = tmp_path / "run" / "iteration-001"
    for kind in ("state", "checkpoint"):
        theirs = json.loads((local / kind / "manifest.json").read_text())
        assert json.loads(there[f"iteration-001/{kind}/manifest.json"]) == theirs, kind
    assert not list(cache.glob("runs/**/*.safetensors")), "the driver needs no weights"
