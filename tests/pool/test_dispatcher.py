"""Streams and their items without Ray: order, exactly-once delivery, requeue, split, give up."""

import time
from collections.abc import Iterable
from typing import Any

import pytest

from psyco_ray.pool import slot
from psyco_ray.pool.dispatcher import Dispatcher
from psyco_ray.pool.slot import Slot
from psyco_ray.pool.states import State
from psyco_ray.pool.work import EndOfStream, FailedItem, WorkItem, WorkStream


def work(item: Any) -> Any:
    """The method of the actors that a stream calls; its name is what counts."""
    raise NotImplementedError


class Actor:
    """Takes calls without doing them."""

    class work:
        @staticmethod
        def options(**_: Any) -> Any:
            return Actor.work

        @staticmethod
        def remote(item: Any) -> object:
            return object()


class FreeSlot(Slot):
    """A slot with an actor that is ready."""

    def __init__(self) -> None:
        super().__init__(0)
        self.actor = Actor
        self.enter(State.IDLE)

    @property
    def stream(self) -> WorkStream:
        return self.tasks[-1].stream

    @property
    def work(self) -> WorkItem:
        return self.tasks[-1].work


def stream(items: Iterable[Any], split=lambda item: [item], in_flight: int = 1) -> WorkStream:
    return WorkStream(work, items, "work", lambda result: result, split, read_ahead=8, in_flight=in_flight)


def dispatch(dispatcher: Dispatcher, slots: int = 1) -> list[FreeSlot]:
    """The idle slots that got an item; waits for the stream's reader."""
    return give(dispatcher, [FreeSlot() for _ in range(slots)])


def give(dispatcher: Dispatcher, slots: list[FreeSlot]) -> list[FreeSlot]:
    """The slots that got an item; waits for the stream's reader."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        before = [len(slot.tasks) for slot in slots]
        dispatcher.dispatch(slots)
        if busy := [slot for slot, count in zip(slots, before, strict=True) if len(slot.tasks) > count]:
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
    work = slot.work
    dispatcher.deliver(numbers, work, "result")
    slot.release(slot.tasks[0])
    numbers.finish(work)
    deadline = time.monotonic() + 5
    while dispatcher.active and time.monotonic() < deadline:
        dispatcher.dispatch([FreeSlot()])
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
    dispatcher.fail(slot.release_all(), "died", actors=1)
    [slot] = dispatch(dispatcher)
    for result in ("a", "b"):
        dispatcher.deliver(slot.stream, slot.work, result)
    assert read(numbers) == ["a", "b"]


def test_an_item_that_fails_twice_is_split_and_only_its_bad_part_given_up(dispatcher) -> None:
    pairs = stream([("good", "bad")], split=lambda item: [(part,) for part in item])
    dispatcher.add(pairs)
    for _ in range(2):
        dispatcher.fail(dispatch(dispatcher)[0].release_all(), "died", actors=1)
    [good] = dispatch(dispatcher)
    assert good.work.item == ("good",)
    for _ in range(2):
        [bad] = dispatch(dispatcher)
        dispatcher.fail(bad.release_all(), "died", actors=1)
    assert read(pairs) == [FailedItem(("bad",), "died")]


def test_all_streams_end_when_item_after_item_fails(dispatcher) -> None:
    numbers, idle = stream(range(20)), stream([])
    dispatcher.add(numbers)
    dispatcher.add(idle)
    failures = 0
    while dispatcher.active and failures < 20:
        failures += 1
        dispatcher.fail(dispatch(dispatcher)[0].release_all(), "out of memory", actors=2)
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
        dispatcher.dispatch([FreeSlot()])
    assert isinstance(read(bad)[-1].error, KeyError)
    assert dispatcher.active


def test_an_idle_actor_repeats_a_straggler_once_no_item_is_left(dispatcher, monkeypatch) -> None:
    come: list[object] = []
    monkeypatch.setattr(slot.ray, "wait", lambda refs, timeout: ([ref for ref in refs if ref in come], []))
    numbers = stream([1, 2, 3])
    dispatcher.add(numbers)
    [quick] = dispatch(dispatcher)
    numbers.finish(quick.release_all()[0][1])
    [slow] = dispatch(dispatcher)
    [unread] = dispatch(dispatcher)
    slow.work.began, unread.work.began = time.monotonic() - 10, time.monotonic() - 20
    come.append(unread.tasks[0].ref)
    [repeated] = dispatch(dispatcher)
    assert repeated.work is slow.work, "what has come and was not read is not repeated"
    dispatcher.fail(slow.release_all(), "died", actors=2)
    assert repeated.work.attempts == 0, "the other actor still works on it"


def test_few_items_are_spread_over_the_actors_before_one_gets_several(dispatcher) -> None:
    numbers = stream(range(5), in_flight=4)
    dispatcher.add(numbers)
    slots = [FreeSlot() for _ in range(3)]
    while sum(len(slot.tasks) for slot in slots) < 5:
        give(dispatcher, slots)
    assert sorted(len(slot.tasks) for slot in slots) == [1, 2, 2]


def test_an_actor_has_at_most_the_items_of_the_stream(dispatcher) -> None:
    numbers = stream(range(8), in_flight=3)
    dispatcher.add(numbers)
    slot = FreeSlot()
    while len(slot.tasks) < 3:
        give(dispatcher, [slot])
    time.sleep(0.05)
    dispatcher.dispatch([slot])
    assert [task.work.item for task in slot.tasks] == [0, 1, 2]


def test_items_of_a_lost_actor_are_done_again_alone_so_that_only_the_bad_one_is_given_up(dispatcher) -> None:
    pairs = stream([("good", "bad"), ("fine",), ("well",)], split=lambda item: [(part,) for part in item], in_flight=3)
    dispatcher.add(pairs)
    slot = FreeSlot()
    while len(slot.tasks) < 3:
        give(dispatcher, [slot])
    dispatcher.fail(slot.release_all(), "died", actors=1)
    failed = 0
    while pairs.out.qsize() < 4:
        [slot] = dispatch(dispatcher)
        dispatcher.dispatch([slot])
        [task] = slot.tasks  # a second item would be given up with a bad one
        if "bad" in task.work.item:
            failed += 1
            dispatcher.fail(slot.release_all(), "died", actors=1)
        else:
            dispatcher.deliver(pairs, task.work, task.work.item)
            slot.release(task)
            pairs.finish(task.work)
    assert failed == 3, "once with its item, twice by itself"
    assert sorted(map(str, read(pairs))) == sorted(
        map(str, [("fine",), ("well",), ("good",), FailedItem(("bad",), "died")])
    )


def test_the_oldest_item_of_an_actor_has_the_deadline(dispatcher) -> None:
    numbers = stream(range(2), in_flight=2)
    dispatcher.add(numbers)
    slot = FreeSlot()
    while len(slot.tasks) < 2:
        give(dispatcher, [slot])
    first, second = slot.tasks
    first.last_result = second.last_result = time.monotonic() - 100
    slot.release(first)
    assert time.monotonic() - second.last_result < 10, "its time starts when the items before it are done"
