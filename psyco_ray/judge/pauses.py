"""Pauses of a client of one API: how long its requests wait for the server, and when that is too long."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from psyco_ray.config.endpoint import Endpoint

FIRST_PAUSE_S = 1.0
"""Before a failed call is sent again; doubles with every further failure."""

LONGEST_PAUSE_S = 60.0

_log = logging.getLogger(__name__)


class Pauses:
    """The pauses of all requests to one endpoint together.

    Example:
        >>> pauses = Pauses(Endpoint(model="gpt-4o"))
        >>> pauses.add(2.0)
        >>> await pauses.over()
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.stopped = False
        self._endpoint = endpoint
        self._until = self._answered_at = self._warned_at = 0.0  # in monotonic time

    async def over(self) -> None:
        """Wait for the end of the pause, or for a stop."""
        while not self.stopped and (left := self._until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, min(1.0, left / 10)))  # not all at the same moment

    def add(self, seconds: float) -> None:
        """Pause all requests for at least these seconds from now on."""
        until = time.monotonic() + max(seconds, 0.05)
        if until > self._until + 1 and seconds > LONGEST_PAUSE_S:
            _log.warning("%s asks for a pause of %.0f s", self._endpoint.base_url, seconds)
        self._until = max(self._until, until)

    def answered(self) -> None:
        """A request succeeded."""
        self._answered_at = time.monotonic()

    def stop(self) -> None:
        """End all pauses."""
        self.stopped, self._until = True, 0.0

    def overdue(self, limited_at: float | None, pause: float, reason: str) -> str | None:
        """A sentence if requests wait longer than `longest_wait_s`; else None.

        Args:
            limited_at: when the server first limited the rate of a request, in monotonic time; None: it did not. The
                request may wait as long as others are answered.
            pause: seconds until the next attempt.
            reason: what it says.
        """
        endpoint, now = self._endpoint, time.monotonic()
        waited_s = 0.0 if limited_at is None else now - max(limited_at, self._answered_at)
        if waited_s + pause > endpoint.longest_wait_s:
            return (
                f"{endpoint.base_url} accepts no calls to {endpoint.model} for {waited_s + pause:.0f} s, more than "
                f"longest_wait_s {endpoint.longest_wait_s:g}, and says: {reason}; start again once it does"
            )
        if waited_s > LONGEST_PAUSE_S and now - self._warned_at > LONGEST_PAUSE_S:
            self._warned_at = now
            _log.warning("%s accepts no calls since %.0f s and says: %s", endpoint.base_url, waited_s, reason)
        return None


def pause_s(failures: int) -> float:
    """Seconds before the next attempt, after so many failures; random, so that not all calls come at once."""
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (min(failures, 32) - 1))
    return longest * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms`, else from `Retry-After` as seconds or date; None without them."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if re.fullmatch(r"\d{1,9}(\.\d*)?", value := headers.get(name, "").strip()):
            return float(value) * unit
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
