"""What a restarted group replays, and when it is not restarted any more."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from psyco_ray.learner.recovery import MAX_RESTARTS, ReplayLog, ReplaySegment, RestartPolicy
from psyco_ray.learner.worker_group import WorkerGroupFailedError
from psyco_ray.pool.placement import PlacementTimeoutError

BATCHES = [f"batch-{step}" for step in range(10)]


def segment(first_step: int, next_step: int, reset_optimizer: bool = False) -> ReplaySegment:
    return ReplaySegment(lambda step: BATCHES[step:], 10, first_step, next_step, reset_optimizer)


def replayed(log: ReplayLog) -> list[str]:
    calls: list[str] = []
    log.replay(lambda batch, step, _: calls.append(f"{step}:{batch}"), lambda: calls.append("reset"))
    return calls


def test_steps_since_the_last_checkpoint_are_replayed() -> None:
    log = ReplayLog("base")
    log.open(segment(0, 2))
    training = log.open(segment(0, 0, reset_optimizer=True))
    assert replayed(log) == ["0:batch-0", "1:batch-1", "reset"]
    training.next_step = 1
    assert replayed(log) == ["0:batch-0", "1:batch-1", "reset", "0:batch-0"]
    log.saved("middle")
    assert (log.checkpoint, replayed(log)) == ("middle", [])
    training.next_step = 3
    assert replayed(log) == ["1:batch-1", "2:batch-2"], "the open training continues after the checkpoint"
    log.loaded("other")
    assert (log.checkpoint, replayed(log)) == ("other", [])


def test_a_completed_step_resets_the_number_of_restarts() -> None:
    policy, failure = RestartPolicy(), WorkerGroupFailedError("rank 1 died")
    for _ in range(2):
        for _ in range(MAX_RESTARTS):
            policy.check_restart(failure)
        policy.step_completed()
    for _ in range(MAX_RESTARTS):
        policy.check_restart(failure)
    with pytest.raises(RuntimeError, match=rf"rank 1 died; .* after {MAX_RESTARTS} restarts"):
        policy.check_restart(failure)


def starter(room: int) -> Callable[[int, float], SimpleNamespace]:
    """Starts groups on a cluster that has room for a number of workers."""

    def start(world_size: int, placement_s: float) -> SimpleNamespace:
        if world_size > room:
            raise PlacementTimeoutError(f"no room for {world_size} learner ranks")
        return SimpleNamespace(workers=[None] * world_size)

    return start


def test_the_largest_group_that_fits_is_started() -> None:
    assert [len(RestartPolicy.start_largest(starter(room), 4).workers) for room in (5, 4, 2)] == [4, 4, 2]
    with pytest.raises(RuntimeError, match="no room for 4 learner ranks, nor for fewer"):
        RestartPolicy.start_largest(starter(0), 4)
