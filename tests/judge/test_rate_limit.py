"""Rate limits and budget."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judging import call, get_json, run, server

from psyco_ray.judge import rate_limit
from psyco_ray.judge.rate_limit import BudgetExceededError, BudgetMeter, Limiter


def test_the_budget_is_not_exceeded(tmp_path) -> None:
    meter = BudgetMeter(None, None, 100.0, 1000.0, 2.0)  # an answer's 40 tokens cost 4 cents
    with server(latency=0.02) as url:
        with pytest.raises(BudgetExceededError, match="max_cost is reached; raise it to go on"):
            run(url, tmp_path, 200, Limiter(meter), concurrency=16)
        paid = get_json(url)["paid"]
    spent = meter.spent()
    assert spent["calls"] == paid
    assert 2.0 - call().tokens() * 1e-3 < spent["cost"] <= 2.0


def test_calls_per_minute_are_limited_over_two_seconds_too(tmp_path) -> None:
    with server() as url:
        run(url, tmp_path, 90, Limiter(BudgetMeter(1200, None, None, None, None)))
        times = get_json(url, "times")
    assert all(sum(start <= t < start + 2 for t in times) <= 66 for start in times)  # 20 a second, one burst of 20
    assert 3.3 < times[-1] - times[0] < 7


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(60, 6000), st.integers(1, 3), st.lists(st.tuples(st.floats(0, 20), st.integers(1, 3000)), max_size=40)
)
def test_no_minute_exceeds_the_limit(limit, callers, wishes) -> None:
    clock, granted = Clock(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_limit, "monotonic", clock)
        meter = BudgetMeter(limit, limit * 100, 1.0, 1.0, None)
        for pause, wished in wishes:
            for _ in range(callers):
                lease = meter.lease(wished, wished * 100)
                granted.append((clock.now, lease.granted))
                assert lease.granted == wished or lease.wait_s > 0
            clock.now += pause
    for start, _ in granted:
        assert sum(n for t, n in granted if start <= t < start + 60) <= limit * 1.05


def test_many_calls_share_a_request_to_the_meter(tmp_path) -> None:
    class Counted(BudgetMeter):
        leases = 0

        def lease(self, requests: int, tokens: int) -> rate_limit.BudgetLease:
            self.leases += 1
            return super().lease(requests, tokens)

    limited, free = Counted(None, None, 1.0, 1.0, 100.0), Counted(None, None, 1.0, 1.0, None)
    with server(latency=0.02) as url:
        for meter in (limited, free):
            run(url, tmp_path / f"{meter is free}", 400, Limiter(meter), concurrency=64)
            assert meter.spent()["calls"] == 400
    assert limited.leases < 100
    assert free.leases == 1


def test_callers_share_a_meter_actor(local_ray) -> None:
    import ray

    meter = ray.remote(BudgetMeter).options(num_cpus=0).remote(600, None, 1.0, 1.0, 1.0)

    async def one(limiter: Limiter) -> None:
        await limiter.admit(100)
        limiter.report(10, 20)

    async def go() -> float:
        limiters = [Limiter(meter), Limiter(meter)]
        await one(limiters[0])
        began = time.monotonic()
        await asyncio.gather(*(one(limiters[n % 2]) for n in range(30)))
        for limiter in limiters:
            await limiter.close()
        return time.monotonic() - began

    assert asyncio.run(go()) > 1.9  # a burst of 10, then 10 a second
    assert ray.get(meter.spent.remote()) == pytest.approx(
        {"calls": 31, "prompt_tokens": 310, "completion_tokens": 620, "cost": 930e-6}
    )


def test_a_failing_meter_fails_its_calls() -> None:
    class Gone(BudgetMeter):
        def lease(self, requests: int, tokens: int) -> rate_limit.BudgetLease:
            raise RuntimeError("the meter is gone")

    async def go() -> None:
        limiter = Limiter(Gone(None, None, None, None, None))
        errors = await asyncio.gather(*(limiter.admit(1) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in errors] == ["the meter is gone"] * 3

    asyncio.run(go())
