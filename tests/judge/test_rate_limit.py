"""Rate limits and budget."""

import asyncio
import selectors
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judging import call, get_json, meter_of, run, server

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge import rate_limit
from psyco_ray.judge.journal import spent
from psyco_ray.judge.rate_limit import MARGIN, BudgetExceededError, BudgetMeter, Limiter, Tokens


def test_the_budget_is_not_exceeded(tmp_path) -> None:
    meter = meter_of(price_in=100.0, price_out=1000.0, max_cost=2.0)  # an answer's 40 tokens cost 4 cents
    with server(latency=0.02) as url:
        with pytest.raises(BudgetExceededError, match="max_cost is reached; raise it to go on"):
            run(url, tmp_path, 200, Limiter(meter), concurrency=16)
        paid = get_json(url)["paid"]
    spent = meter.spent()
    assert spent["calls"] == paid
    assert 2.0 - MARGIN * (call().prompt_tokens() * 1e-4 + call().max_tokens * 1e-3) < spent["cost"] <= 2.0


@pytest.mark.parametrize("kinds", ["html", "hang", "cut", "html,hang,cut"])
def test_answers_that_get_lost_count_too(tmp_path, kinds) -> None:
    price_in, price_out, limit = 100.0, 1000.0, 2.0
    settings = {"price_in": price_in, "price_out": price_out, "concurrency": 16, "timeout_s": 0.5, "retries": 9}
    meter = meter_of(price_in=price_in, price_out=price_out, max_cost=limit)
    with server(share=0.4, kinds=kinds, tries=2) as url:
        with pytest.raises(BudgetExceededError, match="max_cost is reached"):
            run(url, tmp_path, 200, Limiter(meter), **settings)
        prompt_tokens, completion_tokens = get_json(url)["billed"]
    billed = (prompt_tokens * price_in + completion_tokens * price_out) / 1e6
    counted = spent(tmp_path)
    assert 0.5 * limit < billed <= counted <= limit
    assert counted == pytest.approx(meter.spent()["cost"]), "the next command starts with the same sum"


def test_a_journal_with_lost_calls_is_read_as_before(tmp_path) -> None:
    with server(share=0.4, kinds="html", tries=1) as url:
        first = run(url, tmp_path, 30, price_in=1.0, price_out=1.0)
        second = run(url, tmp_path, 30, price_in=1.0, price_out=1.0)
        assert get_json(url)["served"] > 30
    assert [result.value for result in second] == [result.value for result in first]
    assert not any(result.paid for result in second)
    assert '"lost":true' in "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))


def test_calls_per_minute_are_limited_over_two_seconds_too(monkeypatch) -> None:
    async def go() -> list[float]:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(rate_limit, "monotonic", loop.time)
        limiter, admitted = Limiter(meter_of(1200)), list[float]()

        async def one() -> None:
            await limiter.admit(Tokens(60, 40))
            admitted.append(loop.time())

        await asyncio.gather(*(one() for _ in range(90)))
        return admitted

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        times = runner.run(go())
    assert len(times) == 90
    assert all(sum(start <= t < start + 2 for t in times) <= 60 for start in times)  # 20 a second, one burst of 20
    assert 3.5 <= times[-1] - times[0] < 4.5


def test_no_call_is_sent_before_it_is_granted(tmp_path) -> None:
    granted: list[float] = []

    class Noted(BudgetMeter):
        def lease(self, stage: int, calls: Sequence[Tokens]) -> rate_limit.BudgetLease:
            lease = super().lease(stage, calls)
            granted.extend([time.monotonic()] * lease.granted)
            return lease

    with server() as url:
        run(url, tmp_path, 40, Limiter(meter_of(1200, kind=Noted)))
        arrived = get_json(url, "times")  # by the same clock
    assert len(granted) == len(arrived) == 40
    assert all(grant <= arrival for grant, arrival in zip(granted, arrived, strict=True))


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop in which sleeping takes no time: when all tasks wait, its clock jumps to the first to wake up."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = selectors.DefaultSelector()
        poll = selector.select
        selector.select = lambda timeout=None: self.jump(timeout or 0.0) or poll(0)
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def jump(self, seconds: float) -> None:
        self.now += seconds


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
        meter = meter_of(limit, limit * 100, 1.0, 1.0)
        for pause, wished in wishes:
            for _ in range(callers):
                lease = meter.lease(0, [Tokens(60, 40)] * wished)
                granted.append((clock.now, lease.granted))
                assert lease.granted == wished or lease.wait_s > 0
            clock.now += pause
    for start, _ in granted:
        assert sum(n for t, n in granted if start <= t < start + 60) <= limit * 1.05


def test_many_calls_share_a_request_to_the_meter(tmp_path) -> None:
    class Counted(BudgetMeter):
        leases = 0

        def lease(self, stage: int, calls: Sequence[Tokens]) -> rate_limit.BudgetLease:
            self.leases += 1
            return super().lease(stage, calls)

    limited = meter_of(price_in=1.0, price_out=1.0, max_cost=100.0, kind=Counted)
    free = meter_of(price_in=1.0, price_out=1.0, kind=Counted)
    with server(latency=0.02) as url:
        for meter in (limited, free):
            run(url, tmp_path / f"{meter is free}", 400, Limiter(meter), concurrency=64)
            assert meter.spent()["calls"] == 400
    assert limited.leases < 100
    assert free.leases == 1


def test_callers_share_a_meter_actor(local_ray) -> None:
    import ray

    endpoint = Endpoint(model="judge", requests_per_minute=600, price_in=1.0, price_out=1.0)
    meter = ray.remote(BudgetMeter).options(num_cpus=0).remote([endpoint], 1.0)

    async def one(limiter: Limiter) -> None:
        await limiter.admit(Tokens(60, 40))
        limiter.report(Tokens(10, 20), Tokens(60, 40))

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
        def lease(self, stage: int, calls: Sequence[Tokens]) -> rate_limit.BudgetLease:
            raise RuntimeError("the meter is gone")

    async def go() -> None:
        limiter = Limiter(meter_of(kind=Gone))
        errors = await asyncio.gather(*(limiter.admit(Tokens(1)) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in errors] == ["the meter is gone"] * 3

    asyncio.run(go())


priced = st.builds(Endpoint, model=st.sampled_from("ab"), price_in=st.floats(0.1, 20), price_out=st.floats(0.1, 60))
longest = st.builds(Tokens, st.integers(0, 4000), st.integers(1, 2000))


@given(st.lists(priced, min_size=2, max_size=4), st.floats(0.001, 0.2), st.data())
def test_stages_with_other_prices_never_exceed_their_common_budget(endpoints, max_cost, data) -> None:
    """Each granted call costs its longest answer; calls of all stages end in any order."""
    meter = BudgetMeter(endpoints, max_cost)
    in_flight: list[tuple[int, Tokens]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        if in_flight and data.draw(st.booleans()):
            stage, tokens = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
            meter.report(stage, tokens, tokens, 1)
        else:
            stage = data.draw(st.integers(0, len(endpoints) - 1))
            asked = data.draw(st.lists(longest, min_size=1, max_size=6))
            in_flight += [(stage, tokens) for tokens in asked[: meter.lease(stage, asked).granted]]
    for stage, tokens in in_flight:
        meter.report(stage, tokens, tokens, 1)
    assert meter.spent()["cost"] <= max_cost * (1 + 1e-9)


def test_a_batch_and_single_calls_share_a_budget() -> None:
    endpoint = Endpoint(model="judge", price_in=1.0, price_out=1.0)
    meter = BudgetMeter([endpoint, endpoint], 1.0)
    assert meter.reserve_batch(0, 0.7) is None
    assert meter.reserve_batch(1, 0.4) == pytest.approx(0.3)
    lease = meter.lease(1, [Tokens(100_000, 100_000)] * 3)
    assert (lease.granted, lease.stop) == (1, False)
    meter.report_batch(0, Tokens(100_000, 0), 10)
    assert meter.lease(1, [Tokens(100_000, 100_000)] * 3).granted == 3


def test_stages_that_call_one_model_share_its_limits(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(rate_limit, "monotonic", clock)
    limited, same, other = (Endpoint(model=model, requests_per_minute=limit) for model, limit in MODELS)
    meter = BudgetMeter([limited, same, other], None)
    assert meter.lease(0, [Tokens(1)] * 8).granted == 8  # of a burst of 10
    assert meter.lease(1, [Tokens(1)] * 8).granted == 2
    assert meter.lease(2, [Tokens(1)] * 8).granted == 8


MODELS = [("gpt-4o", 600), ("gpt-4o", None), ("gpt-4o-mini", 600)]
