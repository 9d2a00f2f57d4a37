"""Limits over all callers: calls and tokens per minute of each API, and the dollars of a command.

One `BudgetMeter`, usually a Ray actor, grants the calls of all stages that run at the same time; the `Limiter` of a
stage in each caller requests many at a time. `aiolimiter` limits one event loop and knows no budget. A retried call is
not counted again: the server's 429 pauses cover it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from psyco_ray.config.endpoint import Endpoint

BURST_S = 1.0
"""Calls of this many seconds may be granted at once: every minute stays within 2 % of the limit."""

HELD_S = 900.0
"""Seconds after which a granted call without a report counts as lost together with its caller."""

MARGIN = 1.1
"""Reserved dollars of a call per estimated dollar: an API may count a few more tokens than we do."""

SETTLE_S = 0.1  # until granted calls that hold the rest of the budget may have become cheaper than reserved
GATHER_S = 0.01  # calls gather for this long before the meter is asked for all of them
CALLS_PER_LEASE = 256
REPORT_S = 0.5  # usage is reported after this time even if no call waits


class BudgetExceededError(Exception):
    """The next call could cost more than is left of `max_cost`."""


class Usage(Protocol):
    """Anything that counts tokens."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the questions."""

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answers."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of calls: used ones, or estimated ones with the longest possible answers."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Tokens:
        return Tokens(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)

    def scaled(self, factor: float) -> Tokens:
        """So many times these tokens."""
        return Tokens(round(self.prompt_tokens * factor), round(self.completion_tokens * factor))


@dataclass(frozen=True)
class BudgetLease:
    """A meter's answer: how many of the requested calls may be sent now, and when to ask for the others."""

    granted: int
    wait_s: float
    stop: bool = False  # the budget is spent
    free: bool = False  # there is no limit: no need to ask again


class BudgetMeter:
    """Counts calls, tokens and dollars, and decides when the next call may be sent.

    All stages of a command share one budget. Stages that call the same model at the same address share its limits.

    Example:
        >>> meter = BudgetMeter([Endpoint(model="gpt-4o", price_in=2.5, price_out=10.0)], max_cost=5.0)
        >>> meter.lease(0, [Tokens(1000, 200)] * 4).granted
        4
        >>> meter.report(0, Tokens(900, 100), Tokens(1000, 200), calls=1)
        >>> meter.spent()["cost"]
        0.00325
    """

    def __init__(self, endpoints: Sequence[Endpoint], max_cost: float | None) -> None:
        """Set the limits.

        Args:
            endpoints: the API of each stage, with its limits per minute and its prices.
            max_cost: US dollars that all calls may cost together; needs all prices; None: no limit.
        """
        priced = all(None not in (endpoint.price_in, endpoint.price_out) for endpoint in endpoints)
        assert max_cost is None or priced, "a budget needs prices"
        self._endpoints, self._max_cost = endpoints, max_cost
        apis = [(endpoint.base_url, endpoint.model, endpoint.key_env) for endpoint in endpoints]
        limits = {api: _Limits([e for e, its in zip(endpoints, apis, strict=True) if its == api]) for api in apis}
        self._limits = [limits[api] for api in apis]
        self._grants: deque[tuple[float, float]] = deque()  # time and dollars of calls that are not reported yet
        self._reserved = 0.0  # sum of these dollars
        self._batches: dict[int, float] = {}  # dollars that a stage's batch may cost
        self._calls = self._prompt_tokens = self._completion_tokens = 0
        self._cost = 0.0

    def lease(self, stage: int, calls: Sequence[Tokens]) -> BudgetLease:
        """Grant as many calls as limits and budget allow, in their order.

        Args:
            stage: the calls' stage, by its place in `endpoints`.
            calls: tokens of each call.
        """
        limits, now = self._limits[stage], monotonic()
        if self._max_cost is None and limits.free:
            return BudgetLease(len(calls), 0.0, free=True)
        while self._grants and self._grants[0][0] < now - HELD_S:
            self._reserved -= self._grants.popleft()[1]
        for granted, call in enumerate(calls):
            bound = self._bound(stage, call)
            if self._left() < bound:
                return BudgetLease(granted, SETTLE_S, stop=not self._grants and not self._batches)
            tokens = call.prompt_tokens + call.completion_tokens
            if (wait_s := limits.wait_s(tokens, now)) > 0:
                return BudgetLease(granted, wait_s)
            limits.take(tokens)
            self._grants.append((now, bound))
            self._reserved += bound
        return BudgetLease(len(calls), 0.0)

    def report(self, stage: int, used: Tokens, estimated: Tokens, calls: int) -> None:
        """Count granted calls that ended.

        Args:
            stage: the calls' stage.
            used: their tokens; 0 of those that were not answered.
            estimated: the sum of their estimates.
            calls: their number.
        """
        self._count(stage, used, calls)
        ended = self._bound(stage, estimated)
        while self._grants and ended > 0:
            granted_at, bound = self._grants.popleft()
            self._reserved -= min(bound, ended)
            if bound > ended * (1 + 1e-9):
                self._grants.appendleft((granted_at, bound - ended))
            ended -= bound
        if not self._grants:
            self._reserved = 0.0  # without the rounding errors of many sums

    def reserve_batch(self, stage: int, dollars: float) -> float | None:
        """Reserve what a stage's batch may cost; returns what is left of the budget if that is too little."""
        if (left := self._left()) < dollars:
            return left
        self._batches[stage] = dollars
        return None

    def report_batch(self, stage: int, used: Tokens, calls: int) -> None:
        """Count the calls of a batch that ended."""
        self._batches.pop(stage, None)
        self._count(stage, used, calls)

    def spent(self) -> dict[str, float]:
        """Reported usage: calls, prompt_tokens, completion_tokens, and cost in US dollars."""
        return {
            "calls": self._calls,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "cost": self._cost,
        }

    def _count(self, stage: int, used: Tokens, calls: int) -> None:
        self._calls += calls
        self._prompt_tokens += used.prompt_tokens
        self._completion_tokens += used.completion_tokens
        self._cost += cost_of(used, self._endpoints[stage]) or 0.0

    def _left(self) -> float:
        committed = self._cost + self._reserved + sum(self._batches.values())
        return math.inf if self._max_cost is None else self._max_cost - committed

    def _bound(self, stage: int, tokens: Tokens) -> float:
        return MARGIN * (cost_of(tokens, self._endpoints[stage]) or 0.0)


def cost_of(used: Usage, endpoint: Endpoint) -> float | None:
    """Cost of tokens in US dollars; None without prices."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (used.prompt_tokens * endpoint.price_in + used.completion_tokens * endpoint.price_out) / 1e6


class _Limits:
    """Calls and tokens per minute of one API: the lowest limits that its stages name."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._requests = _Bucket(min((e.requests_per_minute for e in endpoints if e.requests_per_minute), default=None))
        self._tokens = _Bucket(min((e.tokens_per_minute for e in endpoints if e.tokens_per_minute), default=None))
        self.free = self._requests.free and self._tokens.free

    def wait_s(self, tokens: int, now: float) -> float:
        """Seconds until a call may be sent."""
        return max(self._requests.wait_s(1, now), self._tokens.wait_s(tokens, now))

    def take(self, tokens: int) -> None:
        self._requests.take(1)
        self._tokens.take(tokens)


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
    """A caller's access to the meter, for the calls of one stage.

    Example:
        >>> limiter = Limiter(BudgetMeter([endpoint], max_cost=5.0))
        >>> estimated = Tokens(1600, 400)
        >>> await limiter.admit(estimated)
        >>> limiter.report(Tokens(900, 100), estimated)
        >>> await limiter.close()
    """

    def __init__(self, meter: Any, stage: int = 0) -> None:
        """Connect to a `BudgetMeter` in this process or as a Ray actor.

        Args:
            meter: the meter.
            stage: place of the stage in the meter's `endpoints`.
        """
        self._meter, self._stage = meter, stage
        self._waiting: deque[tuple[Tokens, asyncio.Future[None]]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._unreported = (Tokens(), Tokens(), 0)  # used, estimated, calls
        self._free = False

    async def admit(self, estimated: Tokens) -> None:
        """Wait until a call of at most so many tokens may be sent; `report` must follow when it ends.

        Raises:
            BudgetExceededError: the budget is spent.
        """
        if self._free:
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((estimated, admitted))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
            self._serving.add_done_callback(self._served)
        await admitted

    def report(self, used: Tokens, estimated: Tokens) -> None:
        """Count an admitted call that ended; it used 0 tokens if it was not answered."""
        all_used, all_estimated, calls = self._unreported
        self._unreported = (all_used + used, all_estimated + estimated, calls + 1)
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.create_task(self._report_later())

    async def close(self) -> None:
        """Report the remaining usage."""
        await self._report()

    async def _serve(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            await self._report()
            requested = [estimated for estimated, _ in self._waiting][:CALLS_PER_LEASE]
            lease: BudgetLease = await _result(self._meter.lease, self._stage, requested)
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
            usage, self._unreported = self._unreported, (Tokens(), Tokens(), 0)
            await _result(self._meter.report, self._stage, *usage)

    async def _report_later(self) -> None:
        await asyncio.sleep(REPORT_S)
        await self._report()


async def _result(method: Any, *args: Any) -> Any:
    """The result of a method of a Ray actor, or of an object in this process."""
    return await method.remote(*args) if hasattr(method, "remote") else method(*args)
