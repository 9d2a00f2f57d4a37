"""The pace of polling, with a stand-in for Ray whose looks take known CPU time per call."""

import time

import pytest

from psyco_ray.pool import polling
from psyco_ray.pool.polling import Polling


class Looks:
    """`ray.wait` that burns CPU time for each reference."""

    def __init__(self, each_s: float, ready: int) -> None:
        self.each_s, self.count, self.timeouts = each_s, ready, []

    def wait(self, refs: list[int], num_returns: int = 1, timeout: float | None = None) -> tuple[list, list]:
        self.timeouts.append(timeout)
        end = time.thread_time() + self.each_s * len(refs)
        while time.thread_time() < end:
            pass
        found = refs[: self.count] if timeout == 0 else refs[:1]
        return found, refs[len(found) :]


@pytest.mark.parametrize(("calls", "share"), [(1024, 0.4), (8192, 0.4)])
def test_polling_many_calls_leaves_most_of_a_core(monkeypatch, calls, share) -> None:
    monkeypatch.setattr(polling, "ray", Looks(10e-6, ready=3))
    slept: list[float] = []
    loop = Polling(slept.append)
    began = time.thread_time()
    for _ in range(5):
        loop.start()
        assert loop.ready(list(range(calls)), 0.2) == [0, 1, 2]
        loop.rest()
    used = time.thread_time() - began
    assert used / (used + sum(slept)) < share
    assert max(slept) <= 0.2


def test_a_small_pool_does_not_rest(monkeypatch) -> None:
    monkeypatch.setattr(polling, "ray", Looks(1e-6, ready=1))
    slept: list[float] = []
    loop = Polling(slept.append)
    for _ in range(5):
        loop.start()
        loop.ready(list(range(16)), 0.2)
        loop.rest()
    assert slept == []


def test_it_blocks_only_if_nothing_is_ready(monkeypatch) -> None:
    looks = Looks(0, ready=0)
    monkeypatch.setattr(polling, "ray", looks)
    loop = Polling(time.sleep)
    assert loop.ready([5, 6], 0.7) == [5], "the next one"
    assert looks.timeouts == [0, 0.7]
    looks.count = 2
    assert loop.ready([5, 6], 0.7) == [5, 6]
    assert looks.timeouts == [0, 0.7, 0]
