"""The open streams of a pool and the way of their items to actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psyco_ray.pool.slot import Slot
from psyco_ray.pool.work import EndOfStream, WorkItem, WorkStream

_MAX_ATTEMPTS = 2  # of an item, each on another actor, before it is split; the same for each part
_MAX_BACKLOG = 1024  # unread results, above which a stream gets no more work


class Dispatcher:
    """Dispatches the items of all open streams; a supervisor owns it and calls it under its lock."""

    def __init__(self) -> None:
        self._streams: list[WorkStream] = []
        self._failures_in_a_row = 0

    @property
    def active(self) -> bool:
        """Whether a stream is open."""
        return bool(self._streams)

    def add(self, stream: WorkStream) -> None:
        """Open a stream."""
        self._streams.append(stream)

    @property
    def in_flight(self) -> int:
        """The largest number of items that an actor may have."""
        return max((stream.in_flight for stream in self._streams), default=0)

    def waiting(self) -> int:
        """Number of items that wait for an actor."""
        return sum(stream.waiting for stream in self._streams)

    def dispatch(self, slots: Sequence[Slot]) -> None:
        """Give items to actors that may take more: each of the stream that has fewest running.

        Actors with fewest items come first, so that few items are spread. One without any repeats a straggler at
        a stream's end.
        """
        for stream in [s for s in self._streams if s.closed.is_set() or s.done]:
            stream.out.put(EndOfStream(None))
            self._streams.remove(stream)
        most = self.in_flight
        by_items: list[list[Slot]] = [[] for _ in range(most + 1)]
        for slot in slots:
            if len(slot.tasks) < most and not slot.alone:
                by_items[len(slot.tasks)].append(slot)
        for items in range(most):
            for slot in by_items[items]:
                if not self._give(slot, items):
                    return  # no work for this actor, none for the others
                if not slot.alone:
                    by_items[items + 1].append(slot)

    def _give(self, slot: Slot, items: int) -> bool:
        """Give an actor that has `items` one more; false if there is none."""
        for stream in sorted(self._streams, key=lambda s: len(s.running)):
            if items >= stream.in_flight:
                continue
            try:
                work = stream.next(items) if stream.out.qsize() < _MAX_BACKLOG else None
            except BaseException as error:  # noqa: BLE001 - raised where the stream is read
                self.end(stream, error)
                continue
            if work is None and not items:
                work = stream.straggler()
            if work is not None:
                slot.assign(stream, work)
                return True
        return False

    def deliver(self, stream: WorkStream, work: WorkItem, result: Any) -> None:
        """Hand a result over."""
        stream.deliver(work, result)
        self._failures_in_a_row = 0

    def fail(self, items: Sequence[tuple[WorkStream, WorkItem]], reason: str, actors: int) -> None:
        """Requeue, split or give up an actor's items; end all streams if actor after actor fails of `actors`."""
        self._failures_in_a_row += 1
        for stream, work in items:
            stream.fail(work, reason, _MAX_ATTEMPTS)
        if self._failures_in_a_row > actors + 4 * _MAX_ATTEMPTS:
            self.end_all(RuntimeError(f"{self._failures_in_a_row} items failed one after another; {reason}"))

    def put_back(self, items: Sequence[tuple[WorkStream, WorkItem]]) -> None:
        """Requeue the items of an actor that failed for another reason."""
        for stream, work in items:
            stream.put_back(work)

    def end(self, stream: WorkStream, error: BaseException) -> None:
        """Raise an error where a stream is read."""
        stream.closed.set()
        stream.out.put(EndOfStream(error))
        if stream in self._streams:
            self._streams.remove(stream)

    def end_all(self, error: BaseException) -> None:
        """Raise an error where any stream is read."""
        for stream in list(self._streams):
            self.end(stream, error)
