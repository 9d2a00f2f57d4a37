"""How busy the driver keeps many rollout actors, with simulated engines that sleep as long as real ones compute.

.venv/bin/python benchmarks/scale.py [--actors 16 64 256] [--items 6]

Item times are log-normal with a long tail (sigma 0.5: one item in a hundred takes more than three medians). An item's
groups arrive evenly over its time and have the size of real ones. Each number of actors runs in a process with its own
Ray, over the pool of a run. Four lines:

- `scale-busy`: share of the time from the start of the stage to the dispatch of the last item that engines work, at the
  largest number of actors, against 1.
- `scale-cost`: growth of the driver's memory and CPU from the smallest to the largest number, against the growth
  of the number of actors.
- `scale-tail`: share of two actors' time without an item until the dispatch of the last item, with 5 % of the responses
  eight times longer than the others; an item takes as long as its longest response.
- `scale-slow`: seconds of an iteration with 16 actors, one of them ten times slower, against the least possible time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import psutil
import ray

from psyco_ray.config.training import Deadlines
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.run.types import Group, Prompt, Response

GROUPS = 8  # speeches per item
MEDIAN_S, SIGMA = 10.0, 0.5
LONG_SHARE, LONGER, SHORT_S = 0.05, 8.0, 1.0


class Engine:
    """Sleeps for the time of an item, or a multiple of it."""

    def __init__(self, slowness: float) -> None:
        self._slowness = slowness
        tokens = tuple(range(1000, 1200))
        self._responses = tuple(Response("word " * 200, tokens, True) for _ in range(8))

    def ready(self) -> None:
        """Nothing to load."""

    def sample(self, item: tuple[int, list[float]]) -> Iterator[tuple[Group, float]]:
        """Yields the groups of an item at their times, each with the start time of the item."""
        number, ends = item
        start = time.monotonic()
        for index, end in enumerate(ends):
            time.sleep(max(0.0, start + self._slowness * end - time.monotonic()))
            yield Group(Prompt(f"{number}-{index}", (1, 2, 3), index), self._responses, 0), start


def ends(rng: random.Random, tail: bool) -> list[float]:
    """End of each group of an item, in seconds from the item's start."""
    if tail:
        return sorted(SHORT_S * (LONGER if rng.random() < LONG_SHARE else 1.0) for _ in range(GROUPS))
    seconds = rng.lognormvariate(0, SIGMA) * MEDIAN_S
    return [seconds * (index + 1) / GROUPS for index in range(GROUPS)]


def measure(actors: int, items: int, slow: bool, tail: bool) -> dict[str, Any]:
    """One run: busy share, the driver's CPU-seconds per second and memory growth (MiB), seconds and least seconds."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    engine = ray.remote(Engine).options(num_cpus=0)
    pool = ActorPool(
        "rollout",
        lambda index: engine.remote(10.0 if slow and not index else 1.0),
        actors,
        Deadlines(start_s=600, item_s=600),
    )
    pool.wait_ready()
    rng = random.Random(0)
    work = [(number, ends(rng, tail)) for number in range(actors * items)]
    started: dict[str, float] = {}

    me = psutil.Process()
    peak = [me.memory_full_info().uss]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak.append(me.memory_full_info().uss)

    threading.Thread(target=watch, daemon=True).start()
    start, cpu = time.monotonic(), sum(me.cpu_times()[:2])
    for group, moment in pool.stream(
        Engine.sample, work, name="scale", identity=lambda result: result[0].prompt.speech_id
    ):
        started[group.prompt.speech_id] = moment
    seconds = time.monotonic() - start
    stop.set()
    assert len(started) == GROUPS * len(work), "a group was lost"
    last = max(started.values())
    busy_s = sum(min(times[-1], last - started[f"{number}-0"]) for number, times in work)
    result = {
        "busy": busy_s / (actors * (last - start)),
        "cpu": (sum(me.cpu_times()[:2]) - cpu) / seconds,
        "mib": (max(peak) - peak[0]) / 2**20,
        "seconds": seconds,
        "least": sum(times[-1] for _, times in work) / (actors - 0.9 if slow else actors),
    }
    pool.close()
    ray.shutdown()
    return result


def line(name: str, ours: float, peer: float, ratio: float, bar: float, passed: bool) -> None:
    """Prints a result line."""
    print(json.dumps({"name": name, "ours": ours, "peer": peer, "ratio": round(ratio, 3), "bar": bar, "pass": passed}))


def main() -> None:
    """Measures each number of actors in a process of its own and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--items", type=int, default=6, help="items per actor")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tail", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.items, options.slow, options.tail)))
        return

    def run_apart(actors: int, items: int, *more: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--one", str(actors), "--items", str(items), *more]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            sys.exit(process.stderr[-3000:])
        result = json.loads(process.stdout.splitlines()[-1])
        print(f"{actors} actors {' '.join(more)}: " + ", ".join(f"{k} {v:.3g}" for k, v in result.items()), flush=True)
        return result

    by_actors = {actors: run_apart(actors, options.items) for actors in sorted(options.actors)}
    smallest, largest = min(by_actors), max(by_actors)
    idle = 1 - run_apart(2, 20, "--tail")["busy"]
    line("scale-tail", round(idle, 4), 1.0, idle, 0.05, idle <= 0.05)
    slow = run_apart(16, 20, "--slow")
    ratio = slow["seconds"] / slow["least"]
    line("scale-slow", round(slow["seconds"], 1), round(slow["least"], 1), ratio, 1.1, ratio <= 1.1)
    few, many = by_actors[smallest], by_actors[largest]
    growth = max(many["cpu"] / few["cpu"], many["mib"] / max(few["mib"], 1.0))
    line(
        "scale-cost",
        round(growth, 2),
        largest / smallest,
        growth / (largest / smallest),
        1.0,
        growth <= largest / smallest,
    )
    line("scale-busy", round(many["busy"], 3), 1.0, many["busy"], 0.95, many["busy"] >= 0.95)


if __name__ == "__main__":
    main()
