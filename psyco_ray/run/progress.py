"""Progress on a terminal or in a log, and Ray's gauges."""

from __future__ import annotations

import logging
import sys
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

    def track(self, stream: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass a stream of `total` items on and show its progress under the name `what`."""
        self.stage, self.done, self.total = what, 0, total
        if self._terminal:
            from rich.progress import track

            stream = track(stream, description=what, total=total, transient=True)
        logged = time.monotonic()
        for self.done, item in enumerate(stream, start=1):
            yield item
            if not self._terminal and time.monotonic() - logged > _LOG_EVERY_S:
                logged = time.monotonic()
                _log.info(f"{what}: {self.done} of {total}")
        _log.info(f"{what}: {self.done} done")

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
