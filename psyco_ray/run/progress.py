"""Progress on a terminal or in a log, and Ray's gauges."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from psyco_ray.run.throughput import RollingMetrics

T = TypeVar("T")

_LOG_EVERY_S = 15.0

_log = logging.getLogger(__name__)


class Progress:
    """Progress of a command: a bar on a terminal, else lines in the log.

    Example:
        >>> progress = Progress()
        >>> for row in progress.track(rows, "rate", len(rows)):
        ...     rate(row)
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self.stage, self.done, self.total = "", 0, 0  # of the current stage
        self.rolling = RollingMetrics()
        self._spent_usd, self._gauges = 0.0, dict[str, Any]()
        self._lock, self._open = threading.Lock(), 0
        self._bars: Any = None

    def track(self, stream: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass a stream of `total` items on and show its progress under the name `what`."""
        counter = self.counter(what, total)
        try:
            for item in stream:
                yield item
                counter.advance()
        finally:
            counter.close()

    def counter(self, what: str, total: int) -> Counter:
        """Show the progress of work of `total` items under the name `what`; several may overlap, in any thread."""
        return Counter(self, what, total)

    @contextlib.contextmanager
    def bars(self, changed: int = 0) -> Iterator[Any]:
        """The bars of the terminal, or None without one; `changed` counters are opened (1) or closed (-1)."""
        with self._lock:
            self._open += changed
            if self._terminal and self._bars is None:
                from rich.progress import Progress as Bars

                self._bars = Bars(transient=True)  # one for all counters: a terminal has one live display
                self._bars.start()
            yield self._bars
            if self._bars is not None and not self._open:
                self._bars.stop()
                self._bars = None

    def spend(self, dollars: float) -> None:
        """Add the cost of API calls."""
        self._spent_usd += dollars
        self.rolling.set(spend_usd=self._spent_usd)
        self.export({"spend_usd": self._spent_usd})

    def export(self, figures: Mapping[str, Any]) -> None:
        """Set Ray's gauges, exported as ``ray_psyco_ray_<name>``; figures by role carry the tag `role`."""
        for name, value in figures.items():
            if isinstance(value, Mapping):
                for role, figure in value.items():
                    self._gauge(f"psyco_ray_{name}", ("role",)).set(figure, tags={"role": role})
            else:
                self._gauge(f"psyco_ray_{name}").set(value)

    def _gauge(self, name: str, tags: tuple[str, ...] = ()) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=f"psyco_ray: {name.replace('_', ' ')}", tag_keys=tags)
        return self._gauges[name]


class Counter:
    """Finished items of one work; `Progress.counter` makes it."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0
        self._logged = time.monotonic()
        progress.stage, progress.done, progress.total = what, 0, total
        with progress.bars(+1) as bars:
            self._task = None if bars is None else bars.add_task(what, total=total)

    def advance(self, items: int = 1) -> None:
        """Items are finished."""
        self._done += items
        progress = self._progress
        progress.stage, progress.done, progress.total = self._what, self._done, self._total
        if self._task is not None:
            with progress.bars() as bars:
                bars.advance(self._task, items)
        elif time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            _log.info(f"{self._what}: {self._done} of {self._total}")

    def close(self) -> None:
        """The work has ended, complete or not."""
        with self._progress.bars(-1) as bars:
            if self._task is not None:
                bars.remove_task(self._task)
        _log.info(f"{self._what}: {self._done} done")
