"""Streams and their items without Ray: order, exactly-once delivery, requeue, split, give up."""

import time
from collections.abc import Iterable
from typing import Any

import pytest

from psyco_ray.pool.dispatcher import Dispatcher
from psyco_ray.pool.work import EndOfStream, FailedItem, WorkItem, WorkStream


class IdleSlot:
    """Takes an item as a `Slot` does, without an actor."""

    def __init__(self) -> None:
        self.stream: WorkStream | None = None
        self.work: WorkItem | None = None

    def assign(self, stream: WorkStream, work: WorkItem) -> None:
        work.actors += 1
        work.began = work.began or time.monotonic()
        stream.running.add(work)
        self.stream, self.work = stream, work

    def release(self) -> tuple[WorkStream, WorkItem]:
        self.work.actors -= 1
        return self.stream, self.work


def stream(items: Iterable[Any], split=lambda item: [item]) -> WorkStream:
    return WorkStream(print, items, "work", lambda result: result, split, read_ahead=8)


def dispatch(dispatcher: Dispatcher, slots: int = 1) -> list[IdleSlot]:
    """The slots that got an item; waits for the stream's reader."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        idle = [IdleSlot() for _ in range(slots)]
        dispatcher.dispatch(idle)
        if busy := [slot for slot in idle if slot.work is not None]:
            return busy
        time.sleep(0.01)
    raise AssertionError("no item was dispatched")


def read(of: WorkStream) -> list[Any]:
    return [of.out.get_nowait() for _ in range(of.out.qsize())]


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher()


def test_a_stream_ends_after_the_last_result(dispatcher) -> None:
    numbers = stream([1])
    dispatcher.add(numbers)
    [slot] = dispatch(dispatcher)
    dispatcher.deliver(*slot.release(), "result")
    numbers.finish(slot.work)
    deadline = time.monotonic() + 5
    while dispatcher.active and time.monotonic() < deadline:
        dispatcher.dispatch([IdleSlot()])
    assert read(numbers) == ["result", EndOfStream(None)]


def test_an_item_goes_to_the_stream_with_fewest_running(dispatcher) -> None:
    first, second = stream(range(4)), stream(range(4))
    dispatcher.add(first)
    dispatcher.add(second)
    assigned = [dispatch(dispatcher)[0].stream for _ in range(4)]
    assert (assigned.count(first), assigned.count(second)) == (2, 2)


def test_a_requeued_item_delivers_each_result_once(dispatcher) -> None:
    numbers = stream([1])
    dispatcher.add(numbers)
    [slot] = dispatch(dispatcher)
    dispatcher.deliver(slot.stream, slot.work, "a")
    dispatcher.fail(*slot.release(), "died", actors=1)
    [slot] = dispatch(dispatcher)
    for result in ("a", "b"):
        dispatcher.deliver(slot.stream, slot.work, result)
    assert read(numbers) == ["a", "b"]


def test_an_item_that_fails_twice_is_split_and_only_its_bad_part_given_up(dispatcher) -> None:
    pairs = stream([("good", "bad")], split=lambda item: [(part,) for part in item])
    dispatcher.add(pairs)
    for _ in range(2):
        dispatcher.fail(*dispatch(dispatcher)[0].release(), "died", actors=1)
    [good] = dispatch(dispatcher)
    assert good.work.item == ("good",)
    for _ in range(2):
        [bad] = dispatch(dispatcher)
        dispatcher.fail(*bad.release(), "died", actors=1)
    assert read(pairs) == [FailedItem(("bad",), "died")]


def test_all_streams_end_when_item_after_item_fails(dispatcher) -> None:
    numbers, idle = stream(range(20)), stream([])
    dispatcher.add(numbers)
    dispatcher.add(idle)
    failures = 0
    while dispatcher.active and failures < 20:
        failures += 1
        dispatcher.fail(*dispatch(dispatcher)[0].release(), "out of memory", actors=2)
    assert failures == 11
    end = read(numbers)[-1]
    assert "11 items failed one after another; out of memory" in str(end.error)


def test_an_error_in_the_items_ends_their_stream_alone(dispatcher) -> None:
    def broken():
        raise KeyError("source")
        yield

    bad, good = stream(broken()), stream([1])
    dispatcher.add(bad)
    dispatcher.add(good)
    [slot] = dispatch(dispatcher)
    assert slot.stream is good
    deadline = time.monotonic() + 5
    while not bad.closed.is_set() and time.monotonic() < deadline:
        dispatcher.dispatch([IdleSlot()])
    assert isinstance(read(bad)[-1].error, KeyError)
    assert dispatcher.active


def test_an_idle_actor_repeats_a_straggler_once_no_item_is_left(dispatcher) -> None:
    numbers = stream([1, 2])
    dispatcher.add(numbers)
    [quick] = dispatch(dispatcher)
    numbers.finish(quick.release()[1])
    [slow] = dispatch(dispatcher)
    slow.work.began = time.monotonic() - 10
    [repeated] = dispatch(dispatcher)
    assert repeated.work is slow.work
    dispatcher.fail(*slow.release(), "died", actors=2)
    assert slow.work.attempts == 0, "the other actor still works on it"
