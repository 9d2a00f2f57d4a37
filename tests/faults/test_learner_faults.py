"""Learner ranks that die or hang at bad moments: the result is the same."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Checkpoints, Optimizer
from psyco_ray.learner.batching import batches
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective
from psyco_ray.learner.recovery import MAX_RESTARTS
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.learner.worker_group import WorkerGroup
from psyco_ray.pool import placement
from psyco_ray.run.types import PreferencePair

pytestmark = pytest.mark.slow
OPTIMIZER = Optimizer(learning_rate=1e-3, batch_size=6, epochs=3)


def examples(count: int) -> list[PreferencePair]:
    return [PreferencePair(f"{i}", (5 + i, 7), tuple(range(9, 14 + i)), (3 + i, 4, 40)) for i in range(count)]


PAIRS = examples(12)
PLAN = batches(PAIRS, OPTIMIZER, 2, seed=4)  # 6 steps


def group(model: Path, *, ranks: int = 2, cpus: float = 0.5, step_s: float = 120, dtype: str = "bfloat16"):
    settings = Learners(actors=ranks, cpus=cpus, zero_stage=2, dtype=dtype, micro_batch_tokens=80, logit_rows=16)
    learner = LearnerGroup(
        WorkerSpec(str(model), BradleyTerryObjective(), settings, OPTIMIZER, seed=5, start_s=180, step_s=step_s)
    )
    learner.wait_ready()
    return learner


def process(learner: LearnerGroup, rank: int) -> int:
    return learner._group.locations()[rank][2]


def hurt(learner: LearnerGroup, rank: int, how: signal.Signals = signal.SIGKILL) -> None:
    os.kill(process(learner, rank), how)


def gone(pids: list[int], within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.1)
    return False


def placed() -> int:
    return sum(found["state"] == "CREATED" for found in ray.util.placement_group_table().values())


def timed(what: str, action: Callable):
    began = time.monotonic()
    found = action()
    print(f"\nrecovery: {what}: {time.monotonic() - began:.1f} s")
    return found


def course(learner: LearnerGroup, where: Path, disturb: Callable[[str], None]) -> dict:
    """A training with a checkpoint in the middle; `disturb` is told where it is."""
    losses = []
    disturb("start")
    for step in learner.train(PLAN, len(PLAN)):
        losses.append(step.loss)
        if step.step == 2:
            learner.save_state(where / "middle", moments=True)
        disturb(f"step {step.step}")
    values = learner.evaluate_pairs(PAIRS)
    disturb("values")
    weights = learner.export(1, 64)
    disturb("export")
    learner.save_model(where / "model")
    disturb("model")
    learner.save_state(where / "end", moments=True)
    return {
        "losses": losses,
        "values": values,
        "digest": weights.digest,
        "state": load_file(where / "end" / "state-00000.safetensors"),
        "model": load_file(where / "model" / "model.safetensors"),
    }


@pytest.fixture(scope="module")
def calm(local_ray, tiny_model, tmp_path_factory) -> dict:
    learner = group(tiny_model)
    try:
        return course(learner, tmp_path_factory.mktemp("calm"), lambda moment: None)
    finally:
        learner.close()


def same(found: dict, expected: dict) -> None:
    for key in ("losses", "values", "digest"):
        assert found[key] == expected[key], key
    for key in ("state", "model"):
        assert found[key].keys() == expected[key].keys()
        assert all(torch.equal(found[key][name], value) for name, value in expected[key].items()), key


@pytest.mark.parametrize(
    ("between", "within"),
    [
        ({"export": 0}, {"step 5": 1}),
        pytest.param({"start": 0, "step 2": 1, "values": 0, "model": 1}, {"step 4": 1}, marks=pytest.mark.long),
        pytest.param({"step 1": 1, "step 4": 0}, {"values": 0, "export": 1, "model": 1}, marks=pytest.mark.long),
    ],
)
def test_ranks_that_are_killed_or_hang_change_nothing(calm, tiny_model, tmp_path, caplog, between, within) -> None:
    """Between two calls, and within one: a rank stands still for a second, so that the call is surely under way."""
    learner = group(tiny_model, step_s=10)
    seen: set[int] = set()
    hung: list[int] = []

    def disturb(moment: str) -> None:
        seen.update(place[2] for place in learner._group.locations())
        if moment in between:
            hurt(learner, between[moment])
            time.sleep(0.1)
        if moment in within:
            hurt(learner, within[moment], signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (process(learner, within[moment]), signal.SIGKILL)).start()
        if moment == "step 3":
            hung.append(process(learner, 1))
            hurt(learner, 1, signal.SIGSTOP)

    blows = len(between) + len(within) + 1
    try:
        found = timed(f"whole course with {blows} blows", lambda: course(learner, tmp_path, disturb))
        seen.update(place[2] for place in learner._group.locations())
        assert len(seen) >= 2 * (blows + 1), "some were not replaced"
    finally:
        learner.close()
    same(found, calm)
    assert gone(list(seen))
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "a rank left half a directory"
    assert placed() == 0
    told = next(record.getMessage() for record in caplog.records if "no answer within 10 s" in record.getMessage())
    assert f"process {hung[0]} on node " in told
    assert "of optimizer step 5" in told
    assert "restarting the learner from" in told


@pytest.mark.long
def test_fewer_ranks_go_on_where_there_is_no_room_for_as_many(
    local_ray, tiny_model, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(placement, "PLACEMENT_DEADLINE_S", 3.0)
    learner = group(tiny_model, cpus=3, dtype="float32")
    blockers = []
    end = WorkerGroup.shutdown

    def end_and_crowd(ranks: WorkerGroup) -> None:
        end(ranks)
        assert all(blocker.wait(60) for blocker in blockers), "it takes the room before others ask for it"

    monkeypatch.setattr(WorkerGroup, "shutdown", end_and_crowd)

    def crowd(moment: str) -> None:
        if moment == "step 3":
            # of 8 CPUs the ranks hold 6; this takes 4 as soon as they are free
            blockers.append(ray.util.placement_group([{"CPU": 4}]))
            hurt(learner, 0)

    try:
        expected = course(learner, tmp_path / "calm", lambda moment: None)
        learner.close()
        learner = group(tiny_model, cpus=3, dtype="float32")
        found = timed("whole course, from the fifth step on with one rank", lambda: course(learner, tmp_path, crowd))
        assert len(learner.workers) == 1
    finally:
        learner.close()
        for blocker in blockers:
            ray.util.remove_placement_group(blocker)
    assert found["losses"][:4] == expected["losses"][:4]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert any("no room for 2 learner ranks" in record.getMessage() for record in caplog.records)


@pytest.mark.long
def test_another_number_of_ranks_goes_on_from_where_it_was(local_ray, tiny_model, caplog) -> None:
    broken = PreferencePair("pair-broken", (5,), (6,), (7,), margin=float("nan"))
    learner = group(tiny_model, ranks=1, dtype="float32")
    try:
        list(learner.train(PLAN[:2], len(PLAN)))
        before = learner.evaluate_pairs(PAIRS)
        timed("resize from 1 rank to 2", lambda: learner.resize(2))
        assert len(learner.workers) == 2
        assert [v for pair in learner.evaluate_pairs(PAIRS) for v in pair] == pytest.approx(
            [v for pair in before for v in pair], abs=1e-4
        )
        with pytest.raises(ValueError, match="a batch of 6 pairs cannot be shared"):
            learner.resize(7)
        caplog.clear()
        with pytest.raises(ValueError, match="loss of pair pair-broken is nan"):
            list(learner.train([[*PAIRS[:5], broken]], 1))
        assert not [record for record in caplog.records if "restarting" in record.getMessage()], "it is not tried again"
    finally:
        learner.close()


def test_a_group_that_dies_again_and_again_is_given_up(local_ray, tiny_model) -> None:
    learner = group(tiny_model)
    stop = threading.Event()
    killed: set[int] = set()

    def keep_killing() -> None:
        while not stop.wait(0.05):
            try:
                victim = process(learner, 1)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
            except (ray.exceptions.RayError, ProcessLookupError):
                continue

    killer = threading.Thread(target=keep_killing)
    killer.start()
    try:
        with pytest.raises(RuntimeError, match=rf"learner rank 1 .*on node .*failed after {MAX_RESTARTS} restarts"):
            timed(f"giving up after {MAX_RESTARTS} rebuilds", lambda: list(learner.train(PLAN, len(PLAN))))
    finally:
        stop.set()
        killer.join()
        learner.close()
    assert len(killed) == MAX_RESTARTS + 1
    assert placed() == 0


def test_settings_of_checkpoints_are_checked() -> None:
    with pytest.raises(ValueError, match="keep_last"):
        Checkpoints(keep_last=0)
