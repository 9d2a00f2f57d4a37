"""Who was at work when in an iteration, and what the driver did meanwhile: its ``timeline.json``."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.ledger import stage

BINS = 120  # at most, of a part: about as many as a phone can show
_WIDTH_S = 0.25  # of a bin at first


class Timeline:
    """Adds up in bins of time how long a role's actors work, for one iteration after the other.

    Bins get wider the longer it takes, so that a file is as small after hours as after seconds. Each file is a list of
    parts: a driver that goes on with an iteration after a resume adds its own to what the one before it wrote.
    """

    def __init__(self, ledger: RunDirectory, actors: Callable[[], Mapping[str, int]]) -> None:
        """Take the run's directory and what tells how many actors there are of each role."""
        self._ledger, self._actors = ledger, actors
        self._lock = threading.Lock()
        self._iteration: int | None = None
        self._clear([])

    def worked(self, role: str, began: float, ended: float) -> None:
        """An actor of a role was at work between two moments of `time.monotonic`; from any thread."""
        with self._lock:
            first, last = max(0.0, began - self._origin), ended - self._origin
            if last <= first:  # before the iteration began
                return
            self._widen(last)
            seconds = self._busy.setdefault(role, [0.0] * BINS)
            for number in range(int(first / self._width), min(int(last / self._width) + 1, BINS)):
                left = number * self._width
                seconds[number] += max(0.0, min(last, left + self._width) - max(first, left))

    @contextlib.contextmanager
    def doing(self, iteration: int, what: str) -> Iterator[None]:
        """What the driver does in this context it does for an iteration; the file is written at its end."""
        if iteration != self._iteration:
            self._iteration = iteration
            written = self._ledger.record(stage(iteration, "timeline"))
            with self._lock:
                self._clear(written["parts"] if written else [])
        began = time.monotonic() - self._origin
        yield
        ended = time.monotonic() - self._origin
        with self._lock:
            self._driver.append((what, round(began, 3), round(ended, 3)))
            part = self._part(ended)
        self._ledger.write_json(f"{stage(iteration, 'timeline')}.json", {"parts": [*self._earlier, part]})

    def _clear(self, earlier: list[dict[str, Any]]) -> None:
        """Begin a part, behind earlier ones."""
        self._earlier, self._origin, self._width = earlier, time.monotonic(), _WIDTH_S
        self._busy: dict[str, list[float]] = {}  # role -> seconds of all its actors in each bin
        self._most: dict[str, int] = {}
        self._driver: list[tuple[str, float, float]] = []

    def _widen(self, until: float) -> None:
        """Make two bins one until they reach so far."""
        while until > BINS * self._width:
            self._width *= 2
            for role, seconds in self._busy.items():
                self._busy[role] = [a + b for a, b in zip(seconds[::2], seconds[1::2], strict=True)] + [0.0] * (
                    BINS // 2
                )

    def _part(self, ended: float) -> dict[str, Any]:
        """What is written: seconds are from the part's beginning, `busy` is how many actors worked, on average."""
        self._widen(ended)
        used = min(int(ended / self._width) + 1, BINS)
        self._most = {role: max(count, self._most.get(role, 0)) for role, count in self._actors().items()}
        return {
            "seconds": round(ended, 3),
            "bin_s": self._width,
            "actors": self._most,
            "busy": {
                role: [round(worked / self._width, 3) for worked in seconds[:used]]
                for role, seconds in self._busy.items()
            },
            "driver": self._driver,
        }
