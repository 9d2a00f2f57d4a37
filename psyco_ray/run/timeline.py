"""Actor activity and driver spans of an iteration: its ``timeline.json``."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from psyco_ray.run.directory import RunDirectory
from psyco_ray.run.ledger import stage

BINS = 120  # at most, of a part: about as many as a phone can show
_WIDTH_S = 0.25  # initial width of a bin


class Timeline:
    """Records how busy each role's actors are, in bins of time, one iteration at a time.

    Bins double in width as an iteration takes longer, so the file's size is bounded. A file is a list of parts: a
    resumed driver appends its own part to those of earlier drivers.

    Example:
        >>> timeline = Timeline(ledger, lambda: {"rollouts": 2})
        >>> with timeline.span(1, "sample"):
        ...     timeline.add_busy("rollouts", began, ended)
    """

    def __init__(self, directory: RunDirectory, actor_counts: Callable[[], Mapping[str, int]]) -> None:
        """Start without a current iteration.

        Args:
            directory: of the run.
            actor_counts: returns the current number of actors by role.
        """
        self._directory, self._actor_counts = directory, actor_counts
        self._lock = threading.Lock()
        self._iteration: int | None = None
        self._start_part([])

    def add_busy(self, role: str, began: float, ended: float) -> None:
        """Record that an actor of a role was busy between two `time.monotonic` values; callable from any thread."""
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
    def span(self, iteration: int, name: str) -> Iterator[None]:
        """A context that records a named driver span of an iteration; the file is written at its end."""
        if iteration != self._iteration:
            self._iteration = iteration
            written = self._directory.record(stage(iteration, "timeline"))
            with self._lock:
                self._start_part(written["parts"] if written else [])
        began = time.monotonic() - self._origin
        yield
        ended = time.monotonic() - self._origin
        with self._lock:
            self._spans.append((name, round(began, 3), round(ended, 3)))
            part = self._part(ended)
        self._directory.write_json(f"{stage(iteration, 'timeline')}.json", {"parts": [*self._earlier_parts, part]})

    def add_span(self, name: str, began: float, ended: float) -> None:
        """Record what ran beside the driver between two `time.monotonic` values; callable from any thread.

        The file is written at the end of the driver's next span.
        """
        with self._lock:
            self._spans.append((name, round(max(0.0, began - self._origin), 3), round(ended - self._origin, 3)))

    def _start_part(self, earlier_parts: list[dict[str, Any]]) -> None:
        self._earlier_parts, self._origin, self._width = earlier_parts, time.monotonic(), _WIDTH_S
        self._busy: dict[str, list[float]] = {}  # role -> busy seconds of all its actors in each bin
        self._max_actors: dict[str, int] = {}
        self._spans: list[tuple[str, float, float]] = []

    def _widen(self, until: float) -> None:
        """Merge neighbouring bins until they cover this many seconds."""
        while until > BINS * self._width:
            self._width *= 2
            for role, seconds in self._busy.items():
                merged = [a + b for a, b in zip(seconds[::2], seconds[1::2], strict=True)]
                self._busy[role] = merged + [0.0] * (BINS // 2)

    def _part(self, ended: float) -> dict[str, Any]:
        """The part as JSON: seconds are relative to its start, `busy` is the mean number of busy actors per bin."""
        self._widen(ended)
        used = min(int(ended / self._width) + 1, BINS)
        counts = self._actor_counts().items()
        self._max_actors = {role: max(count, self._max_actors.get(role, 0)) for role, count in counts}
        return {
            "seconds": round(ended, 3),
            "bin_s": self._width,
            "actors": self._max_actors,
            "busy": {
                role: [round(busy_s / self._width, 3) for busy_s in seconds[:used]]
                for role, seconds in self._busy.items()
            },
            "driver": self._spans,
        }
