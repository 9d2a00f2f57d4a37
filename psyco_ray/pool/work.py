"""Work items on their way through a pool."""

from __future__ import annotations

import inspect
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

_STRAGGLER = 2.0  # median durations after which an idle actor does a running item as well


@dataclass(eq=False)
class WorkItem:
    """An item and its progress."""

    item: Any
    attempts: int = 0  # that failed
    delivered: set[Hashable] = field(default_factory=set)  # identities of the delivered results
    actors: int = 0  # that work on it now
    began: float = 0.0  # time.monotonic() of its first dispatch
    has_come: Callable[[], bool] = lambda: False  # whether the last actor's results have come and are not taken
    finished: bool = False
    alone: bool = False  # an actor died of it or of an item beside it: it gets an actor without other items


@dataclass(frozen=True)
class FailedItem:
    """An item that the pool gave up."""

    item: Any
    reason: str


@dataclass(frozen=True)
class EndOfStream:
    """The end of a queue, and the error that ended it."""

    error: BaseException | None


class WorkStream:
    """The items and results of one `ActorPool.stream` call.

    A thread reads the items ahead, because reading may block on another stream. All other methods are called by the
    supervisor, under its lock.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        items: Iterable[Any],
        name: str,
        identity: Callable[[Any], Hashable],
        split: Callable[[Any], list[Any]],
        read_ahead: int,
        in_flight: int = 1,
    ) -> None:
        """Start to read the items.

        Args:
            method: of the actor class: a generator method, or one that returns a list of results.
            items: the work.
            name: of the work, in messages.
            identity: key of a result, unique within its item.
            split: parts of an item.
            read_ahead: number of items to read before they are needed.
            in_flight: number of items that an actor has at a time, those of other streams included.
        """
        self.in_flight = in_flight
        # results of a generator come one after the other, those of another method together
        self.one_by_one = inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method)
        self.method, self.name, self.identity, self.split = method, name, identity, split
        self.out: queue.SimpleQueue[Any] = queue.SimpleQueue()  # results, FailedItem, at last EndOfStream
        self.closed = threading.Event()
        self.requeued: deque[WorkItem] = deque()
        self.running: set[WorkItem] = set()
        self.exhausted = False
        self._durations: deque[float] = deque(maxlen=256)  # of the last items, s
        self._unread: queue.Queue[Any] = queue.Queue(maxsize=read_ahead)
        threading.Thread(target=self._read, args=(items,), daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether every result is delivered."""
        return self.exhausted and not self.requeued and not self.running

    @property
    def waiting(self) -> int:
        """Number of items that wait for an actor."""
        return len(self.requeued) + self._unread.qsize()

    def next(self, items: int = 0) -> WorkItem | None:
        """The next item for an actor that has `items` now; None if none is ready.

        Raises:
            BaseException: the error that reading the items raised.
        """
        if self.requeued and not items:
            return self.requeued.popleft()
        if self.exhausted:
            return None
        try:
            item = self._unread.get_nowait()
        except queue.Empty:
            return None
        if not isinstance(item, EndOfStream):
            return WorkItem(item)
        self.exhausted = True
        if item.error is not None:
            raise item.error
        return None

    def straggler(self) -> WorkItem | None:
        """A running item that takes much longer than usual, once no other item is left.

        One whose results have come, but are not taken yet, is not late: the caller is.
        """
        if not self.exhausted or not self._durations:
            return None
        limit_s, now = max(1.0, _STRAGGLER * statistics.median(self._durations)), time.monotonic()
        late = [work for work in self.running if work.actors == 1 and now - work.began > limit_s]
        late.sort(key=lambda work: work.began)
        return next((work for work in late if not work.has_come()), None)

    def deliver(self, work: WorkItem, result: Any) -> None:
        """Hand a result over unless it was delivered before."""
        key = self.identity(result)
        if not work.finished and key not in work.delivered:
            work.delivered.add(key)
            self.out.put(result)

    def finish(self, work: WorkItem) -> None:
        """Mark an item as done: all its results are delivered."""
        if not work.finished:
            work.finished = True
            self.running.discard(work)
            self._durations.append(time.monotonic() - work.began)

    def put_back(self, work: WorkItem) -> None:
        """Requeue an item whose actor is gone for another reason."""
        if not work.finished and not work.actors:
            self.running.discard(work)
            work.began = 0.0
            self.requeued.append(work)

    def fail(self, work: WorkItem, reason: str, max_attempts: int) -> None:
        """Requeue an item whose actor is gone; after `max_attempts` split it, or give it up if it has one part."""
        if work.finished or work.actors:
            return
        self.running.discard(work)
        work.attempts += 1
        work.began, work.alone = 0.0, True
        if work.attempts < max_attempts:
            self.requeued.append(work)
            return
        parts = self.split(work.item)
        if len(parts) > 1:
            self.requeued.extend(WorkItem(part, delivered=work.delivered, alone=True) for part in parts)
        else:
            work.finished = True
            self.out.put(FailedItem(work.item, reason))

    def _read(self, items: Iterable[Any]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(EndOfStream(None))
        except BaseException as error:  # noqa: BLE001 - raised again by `next`
            self._put(EndOfStream(error))

    def _put(self, item: Any) -> bool:
        """Queue an item; false if the stream was closed."""
        while not self.closed.is_set():
            try:
                self._unread.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
