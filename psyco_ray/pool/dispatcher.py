"""The open streams of a pool and the way of their items to idle actors."""

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

    def waiting(self) -> int:
        """Number of items that wait for an actor."""
        return sum(stream.waiting for stream in self._streams)

    def dispatch(self, idle: Sequence[Slot]) -> None:
        """Give each idle actor an item of the stream that has fewest running, or a straggler at a stream's end."""
        for stream in [s for s in self._streams if s.closed.is_set() or s.done]:
            stream.out.put(EndOfStream(None))
            self._streams.remove(stream)
        for slot in idle:
            for stream in sorted(self._streams, key=lambda s: len(s.running)):
                try:
                    work = stream.next() if stream.out.qsize() < _MAX_BACKLOG else None
                except BaseException as error:  # noqa: BLE001 - raised where the stream is read
                    self.end(stream, error)
                    continue
                if work is not None or (work := stream.straggler()) is not None:
                    slot.assign(stream, work)
                    break
            else:
                return  # no work for this actor, none for the others

    def deliver(self, stream: WorkStream, work: WorkItem, result: Any) -> None:
        """Hand a result over."""
        stream.deliver(work, result)
        self._failures_in_a_row = 0

    def fail(self, stream: WorkStream, work: WorkItem, reason: str, actors: int) -> None:
        """Requeue, split or give up an item; end all streams if item after item fails on a pool of `actors`."""
        self._failures_in_a_row += 1
        stream.fail(work, reason, _MAX_ATTEMPTS)
        if self._failures_in_a_row > actors + 4 * _MAX_ATTEMPTS:
            self.end_all(RuntimeError(f"{self._failures_in_a_row} items failed one after another; {reason}"))

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
