"""Polling of calls for results, at a cost that does not grow with the number of actors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

POLL_S = 0.02
_QUICK_S = 0.0001  # a poll of a few actors, after which there is no rest
_REST = 40.0  # seconds per second of polling
_LONGEST_REST_S = 0.2


class Polling:
    """Paces a loop that looks at all pending calls.

    A look takes time in proportion to the number of calls, so the loop of a large pool rests after it. Looking takes a
    fortieth of a core at most then, and the results that came meanwhile are handled together. A small pool never
    rests.

    Example:
        >>> polling = Polling(time.sleep)
        >>> while not closed:
        ...     polling.start()
        ...     for ref in polling.ready(refs, timeout_s=0.2):
        ...         print(ray.get(ref))
        ...     polling.rest()
    """

    def __init__(self, sleep: Callable[[float], Any]) -> None:
        """Set how to rest, such as `Event.wait` of an event that ends the loop."""
        self._sleep = sleep
        self._began = self._looked_s = 0.0  # CPU time of the thread

    def start(self) -> None:
        """A look begins."""
        self._began = time.thread_time()

    def ready(self, refs: list[Any], timeout_s: float) -> list[Any]:
        """The references that are ready, or the next one to be ready if none is; the look ends."""
        found = ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else []
        self._looked_s = time.thread_time() - self._began
        if not refs:
            self._sleep(POLL_S)
        elif not found:
            found = ray.wait(refs, timeout=timeout_s)[0]
        return found

    def rest(self) -> None:
        """Rest in proportion to the time of the look."""
        if self._looked_s > _QUICK_S:
            self._sleep(min(_REST * self._looked_s, _LONGEST_REST_S))
