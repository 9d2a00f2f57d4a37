"""Helpers for tests of the judge's client against the server of `fault_server.py`."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge import batch_api
from psyco_ray.judge.ask import Asker, AskResult, UnreadableAnswerError, parse_json
from psyco_ray.judge.calls import Call
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import BudgetMeter, Limiter
from support.paths import SUPPORT, TESTS

KEY = "sk-very-secret"
SCHEMA = {
    "type": "object",
    "properties": {f"response_{i}_rating": {"type": "integer", "minimum": 1, "maximum": 5} for i in (1, 2, 3, 4)},
}


@contextlib.contextmanager
def server(**options: object) -> Iterator[str]:
    arguments = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options.items()
    ]
    process = subprocess.Popen(
        [sys.executable, SUPPORT / "fault_server.py", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


def meter_of(
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    kind: type[BudgetMeter] = BudgetMeter,
) -> BudgetMeter:
    """A meter of one stage."""
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    return kind([Endpoint(model="judge", price_in=price_in, price_out=price_out, **limits)], max_cost)


def get_json(url: str, path: str = "counts"):
    """JSON that the fault server reports about itself."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/{path}") as response:
        return json.load(response)


def speech(number: int) -> str:
    return f"{number * 2654435761 % 2**32:08x}00000000"


def call(number: int = 0, **changes) -> Call:
    settings = {"schema": SCHEMA, "max_tokens": 50, "temperature": 0.0, **changes}
    return Call(({"role": "user", "content": f"Rate the responses to speech {number}, please."},), **settings)


def check(text: str) -> list[int]:
    ratings = list(parse_json(text).values())
    if len(ratings) != 4 or any(rating not in (1, 2, 3, 4, 5) for rating in ratings):
        raise UnreadableAnswerError("a rating is not an integer from 1 to 5")
    return ratings


async def ask_all(asker: Asker, count: int, attempts: int = 3) -> list[AskResult]:
    askers: dict = {}
    for number in range(count):
        part = speech(number)[:2]
        askers[part] = askers.get(part) or asker.shard(part)
    try:
        return await asyncio.gather(
            *(askers[speech(n)[:2]].ask(speech(n), call(n), check, attempts) for n in range(count))
        )
    finally:
        await asker.close()


def run(url: str, root: Path, count: int = 1, limiter: Limiter | None = None, **settings) -> list[AskResult]:
    async def go() -> list[AskResult]:
        endpoint = Endpoint(model=settings.pop("model", "judge"), base_url=url, **settings)
        return await ask_all(Asker(endpoint, Journal(root, f"writer-{time.monotonic_ns()}"), limiter), count)

    return asyncio.run(go())


def spawn(function: str, *args: object) -> subprocess.Popen:
    """Run a function of this module in another process."""
    line = f"import sys; from support import judging; judging.{function}(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OPENAI_API_KEY": KEY}
    return subprocess.Popen([sys.executable, "-c", line, *map(str, args)], env=environment)


def asks(url: str, root: str) -> None:
    run(url, Path(root), 400, concurrency=16)


def kill_when(process: subprocess.Popen, condition) -> None:
    while not condition():
        assert process.poll() is None, "the process ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def batched(url: str, root: str, count: int = 30, model: str = "judge") -> batch_api.BatchOutcome:
    endpoint, journal = Endpoint(model=model, base_url=url), Journal(Path(root) / "journal", str(time.monotonic_ns()))
    calls = [(speech(n), call(n)) for n in range(count)]
    outcome = asyncio.run(batch_api.run_batch(endpoint, [*calls, calls[0]], journal, Path(root) / "batch.json", 0.05))
    journal.close()
    return outcome
