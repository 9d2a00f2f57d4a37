"""The pace of polling, with a stand-in for Ray whose looks take known CPU time per call."""

import time

import pytest

from psyco_ray.config.training import Deadlines
from psyco_ray.pool import polling, supervisor
from psyco_ray.pool.polling import Polling
from psyco_ray.pool.slot import PendingUpdate, Slot, Task
from psyco_ray.pool.states import State
from psyco_ray.pool.supervisor import Supervisor
from psyco_ray.pool.work import WorkItem, WorkStream


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


@pytest.mark.parametrize(("calls", "share"), [(512, 0.04), (1024, 0.07), (8192, 0.4)])
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


class Results:
    """The references of an item, of which some have come."""

    def __init__(self, come: list[int | list[int]], ended: bool) -> None:
        self.come, self.ended = come, ended

    def __next__(self) -> int | list[int]:
        if self.come:
            return self.come.pop(0)
        assert self.ended, "it would block"
        raise StopIteration

    def next_ready(self) -> bool:
        return bool(self.come)

    def is_finished(self) -> bool:
        return not self.come and self.ended


def one_by_one(item: object):
    yield item


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("come", [[1, 2, 3], [[1, 2], 3], [[1, 2], [2, 3]]], ids=str)
def test_all_results_that_have_come_are_delivered_once_in_one_look(monkeypatch, come, ended) -> None:
    monkeypatch.setattr(supervisor.ray, "get", lambda ref, timeout: ref)
    stream = WorkStream(one_by_one, [], "work", lambda result: result, lambda item: [item], read_ahead=1)
    watched = Supervisor("role", lambda _: None, 0, Deadlines(), lambda *_: None, suspended=False)
    try:
        work = WorkItem("item")
        slot = Slot(0)
        slot.tasks.append(Task(stream, work, Results([*come], ended), 0.0))
        slot.enter(State.BUSY)
        stream.running.add(work)
        work.actors, work.began = 1, 1.0
        watched._poll(None, slot, slot.tasks[0])
        assert [stream.out.get_nowait() for _ in range(stream.out.qsize())] == [1, 2, 3]
        assert (slot.state, work.finished) == ((State.IDLE, True) if ended else (State.BUSY, False))
    finally:
        watched.close()


class UpdatedActor:
    """Stands in for an actor's handle."""

    def __init__(self) -> None:
        self.load = self
        self.calls: list[tuple] = []

    def remote(self, *args: object) -> str:
        self.calls.append(args)
        return "reply"


def test_idle_actors_get_an_update_without_waiting_for_the_thread() -> None:
    def load(actor: object, version: int) -> None: ...

    watched = Supervisor("role", lambda _: None, 0, Deadlines(), lambda *_: None, suspended=False)
    try:
        with watched.locked():  # keeps the thread out
            slot = watched._slots[0] = Slot(0)
            slot.actor = UpdatedActor()
            slot.enter(State.IDLE)
            watched.set_update(PendingUpdate(load, (1,), 1, lambda _: None, 60))
            assert (slot.state, slot.actor.calls) == (State.UPDATING, [(1,)])
            del watched._slots[0]
    finally:
        watched.close()
