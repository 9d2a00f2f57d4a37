"""What a run does now, for ``psyco-ray status`` and for Ray's metrics: speeds, queues, idle shares, last figures."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW_S = 60.0  # that speeds, means and idle shares are of


Row = Mapping[str, Any]


class RollingMetrics:
    """Counts what happens, from any thread, and tells how fast it went in the last minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._last: dict[str, float] = {}
        self._past: deque[tuple[float, Counter[str]]] = deque([(time.monotonic(), Counter())])

    def count(self, **amounts: float) -> None:
        """More of what is counted: `groups`, `rollout_tokens`, `learner_tokens`, `learner_s` and so on."""
        with self._lock:
            self._totals.update(amounts)

    def last(self, **figures: float) -> None:
        """Figures that stay until there are newer ones."""
        with self._lock:
            self._last |= figures

    def look(self, pools: Mapping[str, Sequence[Row]], waiting: Mapping[str, int]) -> dict[str, Any]:
        """The figures by name; those by role as a mapping. Each call is the end of a window.

        Args:
            pools: the status of every member, by role.
            waiting: items that nobody began, by role.

        Returns:
            `rollout_tokens_per_s`, `groups_per_s`, `learner_tokens_per_s`, `queue_depth` and `idle_share` by role; of
            what came in the window, the means `reward` and `response_tokens`; and what `last` was told.
        """
        with self._lock:
            totals, found = Counter(self._totals), dict[str, Any](self._last)
        for role, members in pools.items():
            for member in members:
                totals[f"{role} busy"] += member["busy_s"]
                totals[f"{role} there"] += member["there_s"]
        now = time.monotonic()
        while len(self._past) > 1 and now - self._past[1][0] >= WINDOW_S:
            self._past.popleft()
        then, before = self._past[0]
        self._past.append((now, totals))
        seconds = max(now - then, 1e-3)
        more = {name: total - before[name] for name, total in totals.items()}
        for name in ("rollout_tokens", "groups", "learner_tokens"):
            found[f"{name}_per_s"] = more.get(name, 0.0) / seconds
        for name, of in (("reward", "sampled"), ("response_tokens", "responses")):
            if more.get(of):
                found[name] = more[f"{name}_sum"] / more[of]
        found["queue_depth"] = dict(waiting)
        found["idle_share"] = {
            role: _share(1 - more[f"{role} busy"] / more[f"{role} there"])
            for role in pools
            if more.get(f"{role} there", 0.0) > 0  # members that left took their time along
        }
        found["idle_share"]["learners"] = _share(1 - more.get("learner_s", 0.0) / seconds)
        return found


def described(figures: Row) -> str:
    """The figures in a line for a terminal."""
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
