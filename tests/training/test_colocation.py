"""The order in which a learner and engines on the same GPUs leave and enter them for a weight update."""

from collections.abc import Callable
from typing import Any

import pytest

from psyco_ray.config.resources import Sync
from psyco_ray.learner.recovery import WeightSendError
from psyco_ray.run.types import PreferencePair, SentWeights, Weights, WeightUpdateAck
from psyco_ray.training import weight_sync
from psyco_ray.training.colocation import ColocationManager

PROBE = PreferencePair("pair-0", (1, 2), (3, 4, 5), (6,))


class Gpus:
    """A learner and a pool that write down in which order they were called."""

    def __init__(self, fails: int = 0) -> None:
        self.calls: list[str] = []
        self.fails = fails  # transfers
        self.idle = ["actor"]

    def evaluate_pairs(self, pairs: Any) -> list[tuple[float, float]]:
        self.calls.append("evaluate")
        return [(-30.0, -1.0)]

    def keep_on_gpu(self, kept: str) -> None:
        self.calls.append(f"keep {kept}")

    def send(self, transport: str, actors: Any, version: int, *_: Any) -> SentWeights:
        self.calls.append(f"send {transport}")  # wakes the weights of the engines
        if self.fails:
            raise WeightSendError("sending failed")
        return SentWeights(version, "digest", 100, None)

    def export(self, version: int, *_: Any) -> Weights:
        self.calls.append("export")
        return Weights(version, "digest", (), 100)

    def suspend(self, method: Callable, *_: Any, deadline_s: float) -> None:
        self.calls.append("engines sleep")

    def resume(self) -> None:
        self.calls.append("engines resume")

    def broadcast(self, *_: Any, version: int, **__: Any) -> list[WeightUpdateAck]:
        self.calls.append("load")  # wakes the cache of the engines
        return [WeightUpdateAck(version, "digest", 100, 0.1)]

    def verify(self, check: Callable) -> list[tuple[float, float]]:
        self.calls.append("verify")
        assert check((-30.0, -1.0)) is None
        return [(-30.0, -1.0)]


def update(gpus: Any, transport: Any, shared: bool = True) -> list[str]:
    colocation = ColocationManager(shared, gpus, gpus, 60)
    for version in (1, 2):
        colocation.to_learner()
        shared_by = colocation if shared else None
        weight_sync.push_weights(gpus, gpus, version, PROBE, Sync(), transport=transport, colocation=shared_by).verify()
    return gpus.calls


def test_a_rank_leaves_all_but_its_weights_before_an_engine_wakes_and_those_before_its_cache_does() -> None:
    calls = update(Gpus(), "ipc")
    first = ["evaluate", "keep weights", "send ipc", "keep nothing", "engines resume", "load", "verify"]
    assert calls == [*first, "engines sleep", "keep all", *first]


def test_engines_leave_again_before_ranks_that_failed_to_send_return_with_all_their_states() -> None:
    calls = update(Gpus(fails=1), "ipc")
    after_failure = ["engines sleep", "keep all", "export", "keep nothing", "engines resume", "load", "verify"]
    assert calls[:10] == ["evaluate", "keep weights", "send ipc", *after_failure]


@pytest.mark.parametrize("transport", ["nccl", "object_store"])
def test_nothing_moves_where_no_gpu_is_shared(transport: str) -> None:
    calls = update(Gpus(), transport, shared=False)
    assert calls == [f"send {transport}", "load", "evaluate", "verify"] * 2, (
        "the engines have their items before the learner computes"
    )
