"""Threads that write to a disk, and wait for it, beside a stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

_THREADS = 2
_TOGETHER = 16  # values that are written at once, at most
_MOST = 32  # values that wait or are being written; the stream waits when there are more
_LINGER_S = 0.05  # for others that come shortly after


class Writers(Generic[T]):
    """Writes the values of a stream as they come, those of the same moment together: they can share what a write costs.

    Example:
        >>> with Writers(print, "example") as writers:
        ...     writers.write(1)
        [1]
    """

    def __init__(self, write: Callable[[list[T]], Any], name: str) -> None:
        """Start without values.

        Args:
            write: writes values; called by several threads at the same time.
            name: of the threads.
        """
        self._write = write
        self._waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._room = threading.Semaphore(_MOST)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=name)
        self._writes: list[Future[None]] = []  # that may be running
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until all is written; raises what a write raised, unless the stream itself did."""
        self._ended.set()
        self._threads.shutdown()
        if kind is None:
            self._check()

    def write(self, value: T) -> None:
        """Write a value soon; what an earlier write raised is raised here."""
        self._room.acquire()
        self._waiting.put(value)
        self._writes.append(self._threads.submit(self._write_waiting))
        self._check()

    def _write_waiting(self) -> None:
        values = self._take()
        if not values:
            return  # written with others
        try:
            self._write(values)
        finally:
            self._room.release(len(values))

    def _take(self) -> list[T]:
        """Values that wait."""
        values: list[T] = []
        if not self._waiting.empty():
            self._ended.wait(_LINGER_S)
        try:
            while len(values) < _TOGETHER:
                values.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        return values

    def _check(self) -> None:
        """Raise the error of a write that has ended."""
        writes, self._writes = self._writes, []
        for write in writes:
            if write.done():
                write.result()
            else:
                self._writes.append(write)
