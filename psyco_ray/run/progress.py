"""Progress lines and gauges."""

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
    """How far a run is, on a terminal or in a log."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self.stage, self.done, self.total = "", 0, 0  # of what goes on now
        self.live = RollingMetrics()
        self._spent, self._gauges = 0.0, dict[str, Any]()

    def track(self, stream: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass a stream on and show how far it is."""
        self.stage, self.done, self.total = what, 0, total
        if self._terminal:
            from rich.progress import track

            stream = track(stream, description=what, total=total, transient=True)
        shown = time.monotonic()
        for self.done, found in enumerate(stream, start=1):
            yield found
            if not self._terminal and time.monotonic() - shown > _LOG_EVERY_S:
                shown = time.monotonic()
                _log.info(f"{what}: {self.done} of {total}")
        _log.info(f"{what}: {self.done} done")

    def spend(self, dollars: float) -> None:
        """More dollars were spent on API calls."""
        self._spent += dollars
        self.live.last(spend_usd=self._spent)
        self.export({"spend_usd": self._spent})

    def export(self, figures: Mapping[str, Any]) -> None:
        """Set Ray's gauges, exported as ``ray_psyco_ray_<name>``; figures by role carry the tag `role`."""
        for name, value in figures.items():
            if isinstance(value, Mapping):
                for role, one in value.items():
                    self._gauge(f"psyco_ray_{name}", ("role",)).set(one, tags={"role": role})
            else:
                self._gauge(f"psyco_ray_{name}").set(value)

    def _gauge(self, name: str, tags: tuple[str, ...] = ()) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=f"psyco_ray: {name.replace('_', ' ')}", tag_keys=tags)
        return self._gauges[name]
