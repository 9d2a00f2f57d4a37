"""Learner workers that die or hang at bad moments: the result is bitwise the same."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file
from support.processes import all_ended

from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Checkpoints, Deadlines, Optimizer
from psyco_ray.learner import recovery
from psyco_ray.learner.batching import batches
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import BradleyTerryObjective
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
        WorkerSpec(
            str(model),
            BradleyTerryObjective(),
            settings,
            OPTIMIZER,
            seed=5,
            deadlines=Deadlines(start_s=180, step_s=step_s),
        )
    )
    learner.wait_ready()
    return learner


def process(learner: LearnerGroup, rank: int) -> int:
    return learner._group.locations()[rank][2]


def send_signal(learner: LearnerGroup, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(process(learner, rank), number)


def placement_groups() -> int:
    return sum(entry["state"] == "CREATED" for entry in ray.util.placement_group_table().values())


def timed(label: str, action: Callable):
    started = time.monotonic()
    result = action()
    print(f"\nrecovery: {label}: {time.monotonic() - started:.1f} s")
    return result


def trained(learner: LearnerGroup, directory: Path, disturb: Callable[[str], None]) -> dict:
    """Runs a training with a checkpoint in the middle; calls `disturb` with the name of each moment."""
    losses = []
    disturb("start")
    for step in learner.train(PLAN, len(PLAN)):
        losses.append(step.loss)
        if step.step == 2:
            learner.save_state(directory / "middle", moments=True)
        disturb(f"step {step.step}")
    values = learner.evaluate_pairs(PAIRS)
    disturb("values")
    weights = learner.export(1, 64)
    disturb("export")
    learner.save_model(directory / "model")
    disturb("model")
    learner.save_state(directory / "end", moments=True)
    return {
        "losses": losses,
        "values": values,
        "digest": weights.digest,
        "state": load_file(directory / "end" / "state-00000.safetensors"),
        "model": load_file(directory / "model" / "model.safetensors"),
    }


@pytest.fixture(scope="module")
def undisturbed(local_ray, tiny_model, tmp_path_factory) -> dict:
    learner = group(tiny_model)
    try:
        return trained(learner, tmp_path_factory.mktemp("undisturbed"), lambda moment: None)
    finally:
        learner.close()


def assert_same(actual: dict, expected: dict) -> None:
    for key in ("losses", "values", "digest"):
        assert actual[key] == expected[key], key
    for key in ("state", "model"):
        assert actual[key].keys() == expected[key].keys()
        assert all(torch.equal(actual[key][name], value) for name, value in expected[key].items()), key


@pytest.mark.parametrize(
    ("between", "within"),
    [
        ({"export": 0}, {"step 5": 1}),
        pytest.param({"start": 0, "step 2": 1, "values": 0, "model": 1}, {"step 4": 1}, marks=pytest.mark.long),
        pytest.param({"step 1": 1, "step 4": 0}, {"values": 0, "export": 1, "model": 1}, marks=pytest.mark.long),
    ],
)
def test_workers_that_die_or_hang_do_not_change_the_result(
    undisturbed, tiny_model, tmp_path, caplog, between, within
) -> None:
    """Between two calls, and during a call: a worker is stopped for a second first, so that the call is in progress."""
    learner = group(tiny_model, step_s=10)
    seen: set[int] = set()
    hung: list[int] = []

    def disturb(moment: str) -> None:
        seen.update(place[2] for place in learner._group.locations())
        if moment in between:
            send_signal(learner, between[moment])
            time.sleep(0.1)
        if moment in within:
            send_signal(learner, within[moment], signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (process(learner, within[moment]), signal.SIGKILL)).start()
        if moment == "step 3":
            hung.append(process(learner, 1))
            send_signal(learner, 1, signal.SIGSTOP)

    faults = len(between) + len(within) + 1
    try:
        result = timed(f"training with {faults} faults", lambda: trained(learner, tmp_path, disturb))
        seen.update(place[2] for place in learner._group.locations())
        assert len(seen) >= 2 * (faults + 1), "a worker was not replaced"
    finally:
        learner.close()
    assert_same(result, undisturbed)
    assert all_ended(list(seen))
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "a worker left an incomplete directory"
    assert placement_groups() == 0
    message = next(record.getMessage() for record in caplog.records if "no answer within 10 s" in record.getMessage())
    assert f"process {hung[0]} on node " in message
    assert "of optimizer step 5" in message
    assert "restarting the learner from" in message


@pytest.mark.long
def test_a_smaller_group_continues_without_room_for_the_full_one(
    local_ray, tiny_model, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(placement, "PLACEMENT_DEADLINE_S", 3.0)
    learner = group(tiny_model, cpus=3, dtype="float32")
    blockers = []
    shutdown = WorkerGroup.shutdown

    def shutdown_and_occupy(group: WorkerGroup) -> None:
        shutdown(group)
        assert all(blocker.wait(60) for blocker in blockers), "the blocker is placed before the new group"

    monkeypatch.setattr(WorkerGroup, "shutdown", shutdown_and_occupy)

    def occupy(moment: str) -> None:
        if moment == "step 3":
            # the workers hold 6 of 8 CPUs; this takes 4 as soon as they are free
            blockers.append(ray.util.placement_group([{"CPU": 4}]))
            send_signal(learner, 0)

    try:
        expected = trained(learner, tmp_path / "undisturbed", lambda moment: None)
        learner.close()
        learner = group(tiny_model, cpus=3, dtype="float32")
        result = timed("training, from the fifth step on with one rank", lambda: trained(learner, tmp_path, occupy))
        assert len(learner.workers) == 1
    finally:
        learner.close()
        for blocker in blockers:
            ray.util.remove_placement_group(blocker)
    assert result["losses"][:4] == expected["losses"][:4]
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert any("no room for 2 learner ranks" in record.getMessage() for record in caplog.records)


@pytest.mark.long
def test_a_resized_group_continues_with_the_same_weights(local_ray, tiny_model, caplog) -> None:
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
        assert not [record for record in caplog.records if "restarting" in record.getMessage()], (
            "an invalid loss is no reason to restart"
        )
    finally:
        learner.close()


def test_a_group_that_keeps_dying_fails_after_the_last_restart(local_ray, tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(recovery, "MAX_RESTARTS", 1)
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
        with pytest.raises(RuntimeError, match=r"learner rank 1 .*on node .*failed after 1 restarts"):
            timed("failing after a restart", lambda: list(learner.train(PLAN, len(PLAN))))
    finally:
        stop.set()
        killer.join()
        learner.close()
    assert len(killed) == 2
    assert placement_groups() == 0


def test_settings_of_checkpoints_are_checked() -> None:
    with pytest.raises(ValueError, match="keep_last"):
        Checkpoints(keep_last=0)
