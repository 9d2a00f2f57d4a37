"""Work items on their way through a pool."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class WorkItem:
    """An item, what became of it so far, and who does it."""

    item: Any
    attempts: int = 0
    delivered: set[Hashable] = field(default_factory=set)  # identities of the results that were handed over
    doers: int = 0
    began: float = 0.0
    finished: bool = False


@dataclass(frozen=True)
class FailedItem:
    """An item that was given up."""

    item: Any
    reason: str


@dataclass(frozen=True)
class EndOfStream:
    """The end of a queue, and the error that ended it."""

    error: BaseException | None


class WorkStream:
    """Items that one caller wants done, and the results for it."""

    def __init__(
        self,
        method: str,
        items: Iterable[Any],
        what: str,
        identity: Callable[[Any], Hashable],
        split: Callable[[Any], list[Any]],
        ahead: int,
    ) -> None:
        """Start to read the items, in a thread of its own, for reading may wait for another stream.

        Args:
            method: of the members.
            items: the work.
            what: its name, in messages.
            identity: tells the results of one item apart.
            split: the parts of an item.
            ahead: how many items are read before they are needed.
        """
        self.method, self.what, self.identity, self.split = method, what, identity, split
        self.out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closed = threading.Event()
        self.again: deque[WorkItem] = deque()
        self.running: set[WorkItem] = set()
        self.durations: deque[float] = deque(maxlen=256)  # of the last items, s
        self.exhausted = False
        self._feed: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        threading.Thread(target=self._read, args=(items,), daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether all results are handed over."""
        return self.exhausted and not self.again and not self.running

    @property
    def waiting(self) -> int:
        """Items that were read and that nobody does."""
        return len(self.again) + self._feed.qsize()

    def next(self) -> WorkItem | None:
        """The next item; None if there is none now.

        Raises:
            BaseException: what reading the items raised.
        """
        if self.again:
            return self.again.popleft()
        if self.exhausted:
            return None
        try:
            found = self._feed.get_nowait()
        except queue.Empty:
            return None
        if not isinstance(found, EndOfStream):
            return WorkItem(found)
        self.exhausted = True
        if found.error is not None:
            raise found.error
        return None

    def deliver(self, work: WorkItem, result: Any) -> None:
        """Hand a result over, unless it came before."""
        key = self.identity(result)
        if not work.finished and key not in work.delivered:
            work.delivered.add(key)
            self.out.put(result)

    def finish(self, work: WorkItem) -> None:
        """All results of an item are there."""
        if not work.finished:
            work.finished = True
            self.running.discard(work)
            self.durations.append(time.monotonic() - work.began)

    def failed(self, work: WorkItem, reason: str, most: int) -> None:
        """Who did an item is gone: do it again, in the end part by part, or give it up after `most` attempts."""
        if work.finished or work.doers:
            return
        self.running.discard(work)
        work.attempts += 1
        work.began = 0.0
        if work.attempts < most:
            self.again.append(work)
            return
        parts = self.split(work.item)
        if len(parts) > 1:
            self.again.extend(WorkItem(part, delivered=work.delivered) for part in parts)
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
        """Put an item unless nobody wants it any more; false if so."""
        while not self.closed.is_set():
            try:
                self._feed.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
