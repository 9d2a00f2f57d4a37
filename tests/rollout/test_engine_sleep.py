"""When an engine that sleeps gets its weights and its KV cache back, with a stub for vLLM.

vLLM ignores sleep on a CPU. On a shared GPU the learner has its weights there until the engine has received them, and
the cache has room only after that.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from psyco_ray.rollout import engine_weights
from psyco_ray.rollout.engine_weights import EngineWeights
from psyco_ray.rollout.errors import WeightTransferError
from psyco_ray.run.types import SentWeights, Weights

ASLEEP, WEIGHTS, CACHE = "sleep 2", "wake ['weights']", "wake ['kv_cache']"


class Vllm:
    """Writes down in which order it is called."""

    def __init__(self, fails: int = 0) -> None:
        self.calls: list[str] = []
        self.fails = fails  # updates
        self.llm_engine = self

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {tags}")

    def init_weight_transfer_engine(self, request: Any) -> None:
        self.calls.append("init")

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: Any) -> None:
        self.calls.append("update")
        self.fails -= 1
        if self.fails >= 0:
            raise RuntimeError("no memory today")

    def finish_weight_update(self) -> None:
        self.calls.append("finish")

    def collective_rpc(self, method: str) -> list[str]:
        self.calls.append(method.removeprefix("psyco_ray_"))
        return ["digest"]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch) -> None:
    """Stands for Ray: weights of no tensors, and a stored copy of them."""
    stored = SimpleNamespace(get=lambda refs: ((), "digest", 0, None) if refs == "stored" else [])
    monkeypatch.setattr(engine_weights, "ray", stored)


def asleep(vllm: Vllm) -> EngineWeights:
    weights = EngineWeights(vllm)
    weights.sleep(keep=False)
    assert weights.asleep
    return weights


def receive(weights: EngineWeights, version: int) -> None:
    """Receive weights of one chunk; `load` has to confirm them."""
    weights.init_transfer("ipc", ())
    weights.start_update()
    weights.receive_chunk("chunk")
    weights.finish_update(version)


RECEIVED = ["init", WEIGHTS, "start", "update", "finish", "received_digest"]


def test_weights_that_are_sent_wake_an_engines_weights_and_their_confirmation_its_cache() -> None:
    vllm = Vllm()
    weights = asleep(vllm)
    receive(weights, 3)
    assert vllm.calls == [ASLEEP, *RECEIVED], "the cache waits until the learner has left the GPU"
    assert weights.asleep
    assert weights.load(SentWeights(3, "digest", 8, "stored")) == 8
    assert vllm.calls == [ASLEEP, *RECEIVED, CACHE]
    assert (weights.asleep, weights.version) == (False, 3)


def test_stored_weights_wake_the_cache_after_they_are_loaded() -> None:
    vllm = Vllm()
    weights = asleep(vllm)
    weights.load(Weights(1, "digest", (), 8))
    assert vllm.calls == [ASLEEP, WEIGHTS, "start", "update", "finish", CACHE]
    weights.load(Weights(2, "digest", (), 8))
    assert vllm.calls[6:] == ["start", "update", "finish"], "an engine that is awake wakes no more"


def test_an_update_that_broke_off_leaves_the_cache_asleep_for_the_next_one() -> None:
    vllm = Vllm()
    weights = asleep(vllm)
    weights.init_transfer("ipc", ())
    weights.start_update()
    receive(weights, 3)
    before = [ASLEEP, "init", WEIGHTS, "start", "abandon_update"]
    again = [call for call in RECEIVED if call != WEIGHTS]
    assert vllm.calls == [*before, *again], "the weights are awake, and the learner is still on the GPU"
    weights.load(SentWeights(3, "digest", 8, "stored"))
    assert vllm.calls == [*before, *again, CACHE]


def test_weights_that_are_not_confirmed_leave_the_cache_asleep_until_the_stored_ones_are_loaded() -> None:
    vllm = Vllm(fails=2)
    weights = asleep(vllm)
    sent = SentWeights(3, "digest", 8, "stored")
    weights.start_update()
    with pytest.raises(RuntimeError, match="no memory today"):
        weights.receive_chunk("chunk")
    with pytest.raises(WeightTransferError, match="of a part arrived"):
        weights.load(sent)
    with pytest.raises(RuntimeError, match="no memory today"):
        weights.load(sent)
    assert vllm.calls.count(WEIGHTS) == 1
    assert CACHE not in vllm.calls
    weights.load(sent)
    assert vllm.calls[-4:] == ["start", "update", "finish", CACHE]


def test_an_engine_sleeps_as_a_whole_after_an_update_that_broke_off() -> None:
    vllm = Vllm()
    weights = asleep(vllm)
    weights.start_update()
    weights.sleep(keep=True)
    assert vllm.calls == [ASLEEP, WEIGHTS, "start", CACHE, "sleep 1"]
    receive(weights, 3)
    assert vllm.calls[5:] == ["abandon_update", *RECEIVED], "its weights left the GPU with its cache"
