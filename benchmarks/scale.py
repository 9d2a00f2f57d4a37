"""Does the driver keep many rollout actors busy? Simulated engines: actors that sleep as long as real ones compute.

.venv/bin/python benchmarks/scale.py [--actors 16 64 256] [--items 6]

The time of an item is drawn log-normally with a long tail (sigma 0.5: one item in a hundred takes more than three
medians), its groups come spread over it and weigh as much as real ones. Each number of actors runs in a process of its
own with an own Ray, over the pool that a run uses. Four lines:

- `scale-busy`: share of the actors' time that engines worked, from the start of the stage to the moment the last item
  was handed out, at the largest number of actors, against 1 (all of it).
- `scale-cost`: growth of the driver's memory and CPU from the smallest to the largest number, against the actors'.
- `scale-tail`: share of two actors' time without an item, up to the moment the last item was handed out, where 5 % of
  the responses are eight times longer than the others, and an item lasts as long as its longest.
- `scale-slow`: time of an iteration with 16 actors of which one is ten times slower, against the least possible time.
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

GROUPS = 8  # speeches of an item
MEDIAN_S, SIGMA = 10.0, 0.5
LONG_SHARE, LONGER, SHORT_S = 0.05, 8.0, 1.0


class Engine:
    """Takes the time that an item says, or a multiple of it."""

    def __init__(self, slowness: float) -> None:
        self._slowness = slowness
        tokens = tuple(range(1000, 1200))
        self._responses = tuple(Response("word " * 200, tokens, True) for _ in range(8))

    def ready(self) -> None:
        """Nothing to load."""

    def sample(self, item: tuple[int, list[float]]) -> Iterator[tuple[Group, float]]:
        """The groups of an item, each at its time; beside each, the moment the item was begun."""
        number, ends = item
        began = time.monotonic()
        for index, end in enumerate(ends):
            time.sleep(max(0.0, began + self._slowness * end - time.monotonic()))
            yield Group(Prompt(f"{number}-{index}", (1, 2, 3), index), self._responses, 0), began


def ends(rng: random.Random, tail: bool) -> list[float]:
    """When the groups of an item are done, in seconds from its beginning."""
    if tail:
        return sorted(SHORT_S * (LONGER if rng.random() < LONG_SHARE else 1.0) for _ in range(GROUPS))
    seconds = rng.lognormvariate(0, SIGMA) * MEDIAN_S
    return [seconds * (index + 1) / GROUPS for index in range(GROUPS)]


def measure(actors: int, items: int, slow: bool, tail: bool) -> dict[str, Any]:
    """One run: busy share, the driver's CPU seconds a second and its peak memory (MiB), the time and the least time."""
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
    begun: dict[str, float] = {}

    me = psutil.Process()
    peak = [me.memory_full_info().uss]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak.append(me.memory_full_info().uss)

    threading.Thread(target=watch, daemon=True).start()
    began, cpu = time.monotonic(), sum(me.cpu_times()[:2])
    for group, moment in pool.stream(
        Engine.sample, work, name="scale", identity=lambda found: found[0].prompt.speech_id
    ):
        begun[group.prompt.speech_id] = moment
    seconds = time.monotonic() - began
    stop.set()
    assert len(begun) == GROUPS * len(work), "a group was lost"
    last = max(begun.values())
    worked = sum(min(of[-1], last - begun[f"{number}-0"]) for number, of in work)
    found = {
        "busy": worked / (actors * (last - began)),
        "cpu": (sum(me.cpu_times()[:2]) - cpu) / seconds,
        "mib": (max(peak) - peak[0]) / 2**20,
        "seconds": seconds,
        "least": sum(of[-1] for _, of in work) / (actors - 0.9 if slow else actors),
    }
    pool.close()
    ray.shutdown()
    return found


def line(name: str, ours: float, peer: float, ratio: float, bar: float, good: bool) -> None:
    """The result of a part."""
    print(json.dumps({"name": name, "ours": ours, "peer": peer, "ratio": round(ratio, 3), "bar": bar, "pass": good}))


def main() -> None:
    """Measure each number in a process of its own, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--items", type=int, default=6, help="of each actor")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tail", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.items, given.slow, given.tail)))
        return

    def apart(actors: int, items: int, *more: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--one", str(actors), "--items", str(items), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{actors} actors {' '.join(more)}: " + ", ".join(f"{k} {v:.3g}" for k, v in found.items()), flush=True)
        return found

    by_actors = {actors: apart(actors, given.items) for actors in sorted(given.actors)}
    least, most = min(by_actors), max(by_actors)
    idle = 1 - apart(2, 20, "--tail")["busy"]
    line("scale-tail", round(idle, 4), 1.0, idle, 0.05, idle <= 0.05)
    slow = apart(16, 20, "--slow")
    ratio = slow["seconds"] / slow["least"]
    line("scale-slow", round(slow["seconds"], 1), round(slow["least"], 1), ratio, 1.1, ratio <= 1.1)
    few, many = by_actors[least], by_actors[most]
    growth = max(many["cpu"] / few["cpu"], many["mib"] / max(few["mib"], 1.0))
    line("scale-cost", round(growth, 2), most / least, growth / (most / least), 1.0, growth <= most / least)
    line("scale-busy", round(many["busy"], 3), 1.0, many["busy"], 0.95, many["busy"] >= 0.95)


if __name__ == "__main__":
    main()
