"""Calls through a Ray Data stage, with journal and checks, against a bare ``AsyncOpenAI`` loop with a semaphore.

.venv/bin/python benchmarks/judge.py [--calls 2000] [--latency 0.3] [--concurrency 64] [--rounds 3]

Both call the same local server from one process each and alternate. A round's time is the server's, from the first
call's arrival to the last answer, which excludes the start of actors. The ratio is the median over rounds of the
stage's calls/s to the bare loop's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import pyarrow as pa
import ray

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.judge import pipeline
from psyco_ray.judge.ask import UnreadableAnswerError, parse_json
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.calls import Call
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run.progress import Progress

BAR = 0.9
PARTS = "0123456789abcdef"
KEYS = [f"response_{i}_rating" for i in (1, 2, 3, 4)] + [f"rationale_{i}" for i in (1, 2, 3, 4)]
SCHEMA = {
    "type": "object",
    "properties": {
        key: {"type": "integer", "minimum": 1, "maximum": 5} if "rating" in key else {"type": "string"} for key in KEYS
    },
    "required": KEYS,
    "additionalProperties": False,
}
PROMPT = "Rate the four responses by the principle, and say why. " * 60  # about as long as a real prompt


def call_of(part: str, number: int) -> Call:
    """A call like those of the rating stage: four responses, four ratings."""
    text = f"{PROMPT} Speech {part}{number}."
    return Call(({"role": "user", "content": text},), SCHEMA, 512, temperature=0.0)


@dataclass(frozen=True)
class Ratings:
    """The stage, with the same number of calls in each part."""

    endpoint: Endpoint
    out: Path
    calls_per_part: int
    attempts = 3
    schema = pa.schema([("speech_id", pa.string()), ("rating", pa.int64())])

    def questions(self, part: str) -> Iterator[pipeline.Question]:
        """The part's calls."""
        for number in range(self.calls_per_part):
            name = f"{part}{number:015x}"
            yield pipeline.Question(name, "rating", call_of(part, number))

    def check(self, question: pipeline.Question, text: str) -> list[int]:
        """The ratings in an answer."""
        return read_four(text)

    def rows(self, question: pipeline.Question, value: list[int], finished: bool) -> list[pipeline.Row]:
        """A row per rating."""
        return [{"speech_id": question.speech_id, "rating": rating} for rating in value]


def read_four(text: str) -> list[int]:
    answer = parse_json(text)
    if list(answer) != KEYS:
        raise UnreadableAnswerError("a key is missing")
    return [answer[key] for key in KEYS[:4]]


class Bare:
    """The client library without psyco_ray."""

    async def ask(self, endpoint: Endpoint, calls_per_part: int) -> int:
        """Sends every call once and returns the number of answers."""
        import openai

        semaphore = asyncio.Semaphore(endpoint.concurrency)

        async def answered(call: Call) -> bool:
            async with semaphore:
                completion = await api.chat.completions.create(
                    model=endpoint.model,
                    messages=call.messages,
                    max_tokens=call.max_tokens,
                    temperature=call.temperature,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "answer", "schema": call.schema, "strict": True},
                    },
                )
                return len(read_four(completion.choices[0].message.content)) == 4

        async with openai.AsyncOpenAI(api_key="none", base_url=endpoint.base_url, max_retries=5) as api:
            return sum(await asyncio.gather(*(answered(call_of(p, n)) for p in PARTS for n in range(calls_per_part))))


def through_stage(endpoint: Endpoint, calls_per_part: int) -> int:
    """Sends every call once through the stage, with a new journal, and returns the number of answers."""
    with tempfile.TemporaryDirectory() as directory:
        stage = Ratings(endpoint, Path(directory) / "rate", calls_per_part)
        calls = CallRun("rate", stage, list(PARTS), Path(directory) / "journal", Outgoing(ScrubSent(), Privacy()))
        calls.execute(None, Progress())
        stats = calls.stats()
    return stats.paid - stats.set_aside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.3, help="seconds that the server takes per call")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    calls_per_part = options.calls // len(PARTS)
    total = calls_per_part * len(PARTS)
    command = [
        sys.executable,
        Path(__file__).parents[1] / "tests" / "support" / "fault_server.py",
        f"--latency={options.latency}",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    endpoint = Endpoint(model="judge", base_url=f"{address}/v1", key_env=None, concurrency=options.concurrency)

    def seconds() -> float:
        with urllib.request.urlopen(f"{address}/times") as response:
            times = json.load(response)[-total:]
        return times[-1] - times[0] + options.latency

    rates: dict[str, list[float]] = {"stage": [], "bare": []}
    try:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        bare = ray.remote(Bare).remote()
        for number in range(options.rounds + 1):
            assert through_stage(endpoint, calls_per_part) == total
            stage_rate = total / seconds()
            assert ray.get(bare.ask.remote(endpoint, calls_per_part)) == total
            bare_rate = total / seconds()
            if number:  # the first round warms both up
                rates["stage"].append(stage_rate)
                rates["bare"].append(bare_rate)
                print(f"round {number}: stage {stage_rate:.0f} calls/s, bare {bare_rate:.0f} calls/s")
    finally:
        ray.shutdown()
        server.kill()
    ratio = statistics.median(a / b for a, b in zip(rates["stage"], rates["bare"], strict=True))
    ours, peer = (round(statistics.median(rates[side]), 1) for side in ("stage", "bare"))
    print(
        json.dumps(
            {"name": "judge", "ours": ours, "peer": peer, "ratio": round(ratio, 3), "bar": BAR, "pass": ratio >= BAR}
        )
    )


if __name__ == "__main__":
    main()
