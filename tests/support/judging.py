"""The judge's client against the server of `fault_server.py`."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.judge.ask import Asker, AskResult, UnreadableAnswerError, parse_json
from psyco_ray.judge.client import Call
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import Limiter
from support.paths import SUPPORT

KEY = "sk-very-secret"
SCHEMA = {
    "type": "object",
    "properties": {f"response_{i}_rating": {"type": "integer", "minimum": 1, "maximum": 5} for i in (1, 2, 3, 4)},
}


@contextlib.contextmanager
def server(**options: object) -> Iterator[str]:
    given = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options.items()]
    process = subprocess.Popen([sys.executable, SUPPORT / "fault_server.py", *given], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


def told(url: str, what: str = "counts"):
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/{what}") as response:
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
