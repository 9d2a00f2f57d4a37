"""How fast and how much may be asked, over all callers: calls and tokens a minute, and dollars.

One `BudgetMeter`, usually a Ray actor, grants calls; the `Limiter` of each caller asks it for many at a time.
A call that the server failed and that is sent again is not counted anew; the server's own 429 pauses stand for that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import Any

BURST_S = 1.0
"""So many seconds' worth may be granted at once: any minute stays within 2 % of the limit."""

HELD_S = 900.0
"""After so long a granted call that nobody reported counts as lost, with its caller."""

SETTLE_S = 0.1  # until granted calls that hold the rest of the budget may have become cheaper than reserved
GATHER_S = 0.01  # in which calls gather before the meter is asked for all of them
CALLS_PER_LEASE = 256
TELL_S = 0.5  # after which usage is reported even if no call waits


class BudgetExceededError(Exception):
    """The next call could cost more than is left of `max_cost`."""


@dataclass(frozen=True)
class BudgetLease:
    """What a meter answers: how many of the wished calls may be sent now, and when to ask for the others."""

    granted: int
    wait_s: float
    stop: bool = False  # the budget is spent
    free: bool = False  # there is no limit at all, so there is no need to ask again


class BudgetMeter:
    """Counts calls, tokens and dollars, and says when the next call may be sent."""

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
        self._reserved: deque[tuple[float, float]] = deque()  # when granted, and what it may cost
        self._calls = self._prompt_tokens = self._completion_tokens = 0

    def lease(self, requests: int, tokens: int) -> BudgetLease:
        """Grant as many calls as the limits and the budget allow.

        Args:
            requests: calls that are wished.
            tokens: what they may take together, questions and answers.
        """
        if self._max_cost is None and self._requests.free and self._tokens.free:
            return BudgetLease(requests, 0.0, free=True)
        each = tokens / requests
        cost = each * max(self._price_in, self._price_out) / 1e6
        now = monotonic()
        while self._reserved and self._reserved[0][0] < now - HELD_S:
            self._reserved.popleft()
        committed = self._cost() + sum(held for _, held in self._reserved)
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
        """Count the tokens of granted calls that are over, whether answered or not."""
        self._calls += calls
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens
        for _ in range(min(calls, len(self._reserved))):
            self._reserved.popleft()

    def spent(self) -> dict[str, float]:
        """What was reported so far: calls, prompt_tokens, completion_tokens, and cost in US dollars."""
        return {
            "calls": self._calls,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "cost": self._cost(),
        }

    def _cost(self) -> float:
        return (self._prompt_tokens * self._price_in + self._completion_tokens * self._price_out) / 1e6


class _Bucket:
    """Fills at a rate, up to one burst; a call larger than that takes a full bucket and leaves a debt."""

    def __init__(self, per_minute: int | None) -> None:
        self.free = per_minute is None
        self._rate = (per_minute or 0) / 60
        self._most = max(1.0, self._rate * BURST_S)
        self._level, self._filled_at = self._most, monotonic()

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken."""
        if self.free:
            return 0.0
        self._level = min(self._most, self._level + self._rate * (now - self._filled_at))
        self._filled_at = now
        return max(0.0, (min(amount, self._most) - self._level) / self._rate)

    def take(self, amount: float) -> None:
        self._level -= amount


class Limiter:
    """A caller's way to the meter."""

    def __init__(self, meter: Any) -> None:
        """Connect to a `BudgetMeter`, here or as a Ray actor."""
        self._meter = meter
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._used = [0, 0, 0]  # prompt tokens, completion tokens and calls that the meter does not know of yet
        self._free = False

    async def admit(self, tokens: int) -> None:
        """Wait until a call of about so many tokens may be sent; `report` must follow when it is over.

        Raises:
            BudgetExceededError: it may not.
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
        """Count the tokens of an admitted call that is over; 0 if it was not answered."""
        self._used = [self._used[0] + prompt_tokens, self._used[1] + completion_tokens, self._used[2] + 1]
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_later())

    async def close(self) -> None:
        """Report what is not yet reported."""
        await self._tell()

    async def _serve(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            await self._tell()
            asked = [tokens for tokens, _ in self._waiting][:CALLS_PER_LEASE]
            lease: BudgetLease = await _result(self._meter.lease, len(asked), sum(asked))
            self._free = lease.free
            for _ in range(lease.granted):
                _, admitted = self._waiting.popleft()
                if not admitted.done():
                    admitted.set_result(None)
            if lease.stop:
                raise BudgetExceededError("max_cost is reached; raise it to go on")
            if lease.granted < len(asked):
                await asyncio.sleep(lease.wait_s)

    def _served(self, serving: asyncio.Task[None]) -> None:
        problem = None if serving.cancelled() else serving.exception()
        while problem is not None and self._waiting:
            _, admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_exception(problem)

    async def _tell(self) -> None:
        if self._used[2]:
            used, self._used = self._used, [0, 0, 0]
            await _result(self._meter.report, *used)

    async def _tell_later(self) -> None:
        await asyncio.sleep(TELL_S)
        await self._tell()


async def _result(method: Any, *given: Any) -> Any:
    """What a method of a Ray actor, or of an object in this process, returns."""
    return await method.remote(*given) if hasattr(method, "remote") else method(*given)
