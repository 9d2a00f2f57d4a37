"""Rolling figures of a run for ``psyco-ray status`` and Ray's metrics: rates, queues, idle shares, latest values."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW_S = 60.0  # of rates, means and idle shares


Figures = Mapping[str, Any]


class RollingMetrics:
    """Counters with rates over the last minute; thread-safe.

    Example:
        >>> metrics = RollingMetrics()
        >>> metrics.add(groups=1, rollout_tokens=256)
        >>> metrics.snapshot({}, {})["rollout_tokens_per_s"]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._latest: dict[str, float] = {}
        self._past: deque[tuple[float, Counter[str]]] = deque([(time.monotonic(), Counter())])

    def add(self, **amounts: float) -> None:
        """Increase counters, such as `groups`, `rollout_tokens`, `learner_tokens` and `learner_s`."""
        with self._lock:
            self._totals.update(amounts)

    def set(self, **figures: float) -> None:
        """Set figures that keep their value until the next call."""
        with self._lock:
            self._latest |= figures

    def snapshot(self, pools: Mapping[str, Sequence[Figures]], waiting: Mapping[str, int]) -> dict[str, Any]:
        """The current figures by name; figures by role are mappings. Each call ends a window.

        Args:
            pools: status of every actor, by role.
            waiting: queued items, by role.

        Returns:
            `rollout_tokens_per_s`, `groups_per_s`, `learner_tokens_per_s`; `queue_depth` and `idle_share` by role; the
            window's means `reward` and `response_tokens`; and the latest values given to `set`.
        """
        with self._lock:
            totals, figures = Counter(self._totals), dict[str, Any](self._latest)
        for role, actors in pools.items():
            for actor in actors:
                totals[f"{role} busy"] += actor["busy_s"]
                totals[f"{role} there"] += actor["there_s"]
        now = time.monotonic()
        while len(self._past) > 1 and now - self._past[1][0] >= WINDOW_S:
            self._past.popleft()
        then, before = self._past[0]
        self._past.append((now, totals))
        seconds = max(now - then, 1e-3)
        change = {name: total - before[name] for name, total in totals.items()}
        for name in ("rollout_tokens", "groups", "learner_tokens"):
            figures[f"{name}_per_s"] = change.get(name, 0.0) / seconds
        for name, counter in (("reward", "sampled"), ("response_tokens", "responses")):
            if change.get(counter):
                figures[name] = change[f"{name}_sum"] / change[counter]
        figures["queue_depth"] = dict(waiting)
        figures["idle_share"] = {
            role: _share(1 - change[f"{role} busy"] / change[f"{role} there"])
            for role in pools
            if change.get(f"{role} there", 0.0) > 0  # the totals fall when an actor leaves
        }
        figures["idle_share"]["learners"] = _share(1 - change.get("learner_s", 0.0) / seconds)
        return figures


def describe(figures: Figures) -> str:
    """A snapshot as one line for a terminal."""
    shown = [
        f"{figures['rollout_tokens_per_s']:.0f} rollout tokens/s",
        f"{figures['groups_per_s']:.2f} groups/s",
        f"{figures['learner_tokens_per_s']:.0f} learner tokens/s",
    ]
    if "mfu" in figures:
        shown.append(f"MFU {figures['mfu']:.2f}")
    shown += [f"{count} items wait for {role}" for role, count in figures["queue_depth"].items() if count]
    shown += [f"{role} idle {100 * share:.0f} %" for role, share in figures["idle_share"].items()]
    if "spend_usd" in figures:
        shown.append(f"${figures['spend_usd']:.2f} spent")
    return "in the last minute: " + ", ".join(shown)


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 3)
