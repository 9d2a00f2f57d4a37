"""Limits over all callers: calls and tokens per minute, and dollars.

One `BudgetMeter`, usually a Ray actor, grants calls; the `Limiter` of each caller requests many at a time. `aiolimiter`
limits one event loop and knows no budget. A retried call is not counted again: the server's 429 pauses cover it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import Any

BURST_S = 1.0
"""Calls of this many seconds may be granted at once: every minute stays within 2 % of the limit."""

HELD_S = 900.0
"""Seconds after which a granted call without a report counts as lost together with its caller."""

SETTLE_S = 0.1  # until granted calls that hold the rest of the budget may have become cheaper than reserved
GATHER_S = 0.01  # calls gather for this long before the meter is asked for all of them
CALLS_PER_LEASE = 256
REPORT_S = 0.5  # usage is reported after this time even if no call waits


class BudgetExceededError(Exception):
    """The next call could cost more than is left of `max_cost`."""


@dataclass(frozen=True)
class BudgetLease:
    """A meter's answer: how many of the requested calls may be sent now, and when to ask for the others."""

    granted: int
    wait_s: float
    stop: bool = False  # the budget is spent
    free: bool = False  # there is no limit: no need to ask again


class BudgetMeter:
    """Counts calls, tokens and dollars, and decides when the next call may be sent.

    Example:
        >>> meter = BudgetMeter(600, None, price_in=2.5, price_out=10.0, max_cost=5.0)
        >>> meter.lease(requests=4, tokens=8000).granted
        4
        >>> meter.report(prompt_tokens=900, completion_tokens=100, calls=1)
        >>> meter.spent()["cost"]
        0.00325
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        price_in: float | None,
        price_out: float | None,
        max_cost: float | None,
    ) -> None:
        """Set the limits; None: no limit.

        Args:
            requests_per_minute: calls, over all callers.
            tokens_per_minute: tokens of questions and answers, as estimated when a call is granted.
            price_in: US dollars per million prompt tokens.
            price_out: US dollars per million completion tokens.
            max_cost: US dollars; needs both prices.
        """
        assert max_cost is None or (price_in is not None and price_out is not None), "a budget needs prices"
        self._requests, self._tokens = _Bucket(requests_per_minute), _Bucket(tokens_per_minute)
        self._price_in, self._price_out, self._max_cost = price_in or 0.0, price_out or 0.0, max_cost
        self._reserved: deque[tuple[float, float]] = deque()  # time of the grant, and the call's greatest cost
        self._calls = self._prompt_tokens = self._completion_tokens = 0

    def lease(self, requests: int, tokens: int) -> BudgetLease:
        """Grant as many calls as limits and budget allow.

        Args:
            requests: number of calls.
            tokens: tokens of all of them, questions and answers.
        """
        if self._max_cost is None and self._requests.free and self._tokens.free:
            return BudgetLease(requests, 0.0, free=True)
        each = tokens / requests
        cost = each * max(self._price_in, self._price_out) / 1e6
        now = monotonic()
        while self._reserved and self._reserved[0][0] < now - HELD_S:
            self._reserved.popleft()
        committed = self._cost() + sum(reserved for _, reserved in self._reserved)
        for granted in range(requests):
            if self._max_cost is not None and committed + cost > self._max_cost:
                return BudgetLease(granted, SETTLE_S, stop=not self._reserved)
            wait_s = max(self._requests.wait_s(1, now), self._tokens.wait_s(each, now))
            if wait_s > 0:
                return BudgetLease(granted, wait_s)
            self._requests.take(1)
            self._tokens.take(each)
            self._reserved.append((now, cost))
            committed += cost
        return BudgetLease(requests, 0.0)

    def report(self, prompt_tokens: int, completion_tokens: int, calls: int) -> None:
        """Count the tokens of granted calls that ended, whether answered or not."""
        self._calls += calls
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens
        for _ in range(min(calls, len(self._reserved))):
            self._reserved.popleft()

    def spent(self) -> dict[str, float]:
        """Reported usage: calls, prompt_tokens, completion_tokens, and cost in US dollars."""
        return {
            "calls": self._calls,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "cost": self._cost(),
        }

    def _cost(self) -> float:
        return (self._prompt_tokens * self._price_in + self._completion_tokens * self._price_out) / 1e6


class _Bucket:
    """A token bucket of one burst. An amount above that takes a full bucket and leaves a debt."""

    def __init__(self, per_minute: int | None) -> None:
        self.free = per_minute is None
        self._rate = (per_minute or 0) / 60
        self._capacity = max(1.0, self._rate * BURST_S)
        self._level, self._filled_at = self._capacity, monotonic()

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until the amount may be taken."""
        if self.free:
            return 0.0
        self._level = min(self._capacity, self._level + self._rate * (now - self._filled_at))
        self._filled_at = now
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        self._level -= amount


class Limiter:
    """A caller's access to the meter.

    Example:
        >>> limiter = Limiter(BudgetMeter(600, None, 2.5, 10.0, max_cost=5.0))
        >>> await limiter.admit(tokens=2000)
        >>> limiter.report(prompt_tokens=900, completion_tokens=100)
        >>> await limiter.close()
    """

    def __init__(self, meter: Any) -> None:
        """Connect to a `BudgetMeter` in this process or as a Ray actor."""
        self._meter = meter
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._unreported = (0, 0, 0)  # prompt tokens, completion tokens and calls
        self._free = False

    async def admit(self, tokens: int) -> None:
        """Wait until a call of about this many tokens may be sent; `report` must follow when it ends.

        Raises:
            BudgetExceededError: the budget is spent.
        """
        if self._free:
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, admitted))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
            self._serving.add_done_callback(self._served)
        await admitted

    def report(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the tokens of an admitted call that ended; 0 if it was not answered."""
        prompts, completions, calls = self._unreported
        self._unreported = (prompts + prompt_tokens, completions + completion_tokens, calls + 1)
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.create_task(self._report_later())

    async def close(self) -> None:
        """Report the remaining usage."""
        await self._report()

    async def _serve(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            await self._report()
            requested = [tokens for tokens, _ in self._waiting][:CALLS_PER_LEASE]
            lease: BudgetLease = await _result(self._meter.lease, len(requested), sum(requested))
            self._free = lease.free
            for _ in range(lease.granted):
                _, admitted = self._waiting.popleft()
                if not admitted.done():
                    admitted.set_result(None)
            if lease.stop:
                raise BudgetExceededError("max_cost is reached; raise it to go on")
            if lease.granted < len(requested):
                await asyncio.sleep(lease.wait_s)

    def _served(self, serving: asyncio.Task[None]) -> None:
        error = None if serving.cancelled() else serving.exception()
        while error is not None and self._waiting:
            _, admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_exception(error)

    async def _report(self) -> None:
        if self._unreported[2]:
            usage, self._unreported = self._unreported, (0, 0, 0)
            await _result(self._meter.report, *usage)

    async def _report_later(self) -> None:
        await asyncio.sleep(REPORT_S)
        await self._report()


async def _result(method: Any, *args: Any) -> Any:
    """The result of a method of a Ray actor, or of an object in this process."""
    return await method.remote(*args) if hasattr(method, "remote") else method(*args)
