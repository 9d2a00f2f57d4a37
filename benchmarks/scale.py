"""How one driver serves many rollout actors, with simulated engines that sleep as long as real ones compute.

.venv/bin/python benchmarks/scale.py [--actors 16 64 256 1024] [--items 6] [--iterations 16]

A process holds 256 engines, so that two cores simulate 1,024. Item times are log-normal with a long tail (sigma 0.5:
one item in a hundred takes more than three medians). An item's groups end evenly over its time, have the size of real
ones, and travel together as those of engines on GPUs do. Each number of actors runs in a process with its own Ray, over
the pool of a run. Six lines:

- `scale-busy`: share of the time from the start of the stage to the dispatch of the last item that engines work, at the
  largest number of actors, against 1.
- `scale-cost`: growth of the driver's memory and CPU from the smallest to the largest number, against the growth
  of the number of actors.
- `scale-tail`: share of two actors' time without an item until the dispatch of the last item, with 5 % of the responses
  eight times longer than the others; an item takes as long as its longest response.
- `scale-slow`: seconds of an iteration with 16 actors, one of them ten times slower, against the least possible time.
- `scale-groups`: groups per second of the driver's CPU time, from prompts to stored pairs: the stages of a run over the
  largest number of actors whose engines take no time, 6,400 speeches an iteration, 8 responses of 1,024 tokens, with
  the sizes of calls and results of a job on GPUs. The peer is 1,000 groups/s, about what 1,000 GPUs make with an 8B
  model. Not counted is what a run does not do in its iterations: a warm-up of 64 speeches, after which all modules are
  loaded, removing an iteration's files, and reading the driver's memory, which another process does.
- `scale-memory`: the driver's largest memory (GB) in these iterations, against 4.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import math
import os
import pickle
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import psutil
import ray

from psyco_ray.config.resources import Rollouts, Scorers
from psyco_ray.config.training import Deadlines, Job
from psyco_ray.pool import processes
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import SamplingRequest
from psyco_ray.rollout.engine_thread import HELD_S
from psyco_ray.rollout.scorer import GroupBatch, GroupScores, PairReference
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.telemetry import Telemetry
from psyco_ray.run.token_ids import TokenIds
from psyco_ray.run.types import Group, PreferencePair, Prompt, Response
from psyco_ray.training.pair_stage import PairStage
from psyco_ray.training.pipeline import SamplingPipeline

IN_PROCESS = 256  # engines
GROUPS = 8  # speeches per item
MEDIAN_S, SIGMA = 10.0, 0.5
LONG_SHARE, LONGER, SHORT_S = 0.05, 8.0, 1.0
DEADLINES = Deadlines(start_s=600, item_s=600)
RESPONSES, TOKENS, PROMPT_TOKENS = 8, 1024, 200  # of a speech for `scale-groups`
TOGETHER = Rollouts(gpus=1).groups_together
GROUPS_PER_S, LARGEST_GB = 1000.0, 4.0
WARM_UP = 64  # speeches
WATCH = """
import sys, time, psutil
process = psutil.Process(int(sys.argv[1]))
while True:
    print(process.memory_full_info().uss / 2**20, flush=True)
    time.sleep(1.0)
"""


class Engines:
    """Engines in one process, each of which sleeps for the time of an item, or a multiple of it."""

    def __init__(self, slowness: float) -> None:
        processes.get_ready = functools.cache(processes.get_ready)  # once for all engines of the process
        self._slowness = slowness
        tokens = tuple(range(1000, 1200))
        self._responses = tuple(Response("word " * 200, tokens, True) for _ in range(8))

    def ready(self) -> None:
        """Nothing to load."""

    async def sample(self, item: tuple[int, list[float]]) -> AsyncIterator[list[tuple[Group, float]]]:
        """Yields the groups of an item, each with the start time of the item, together as an engine on GPUs does."""
        number, ends = item
        start = time.monotonic()
        held: list[tuple[Group, float]] = []
        until = math.inf
        for index, end in enumerate(ends):
            moment = start + self._slowness * end
            if moment > until:
                await asyncio.sleep(max(0.0, until - time.monotonic()))
                yield held
                held, until = [], math.inf
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            held.append((Group(Prompt(f"{number}-{index}", (1, 2, 3), index), self._responses, 0), start))
            until = min(until, moment + HELD_S)
        yield held


class Pickled:
    """Responses that are pickled once, so that the simulated actors leave the cores to the driver."""

    def __init__(self, responses: tuple[Response, ...]) -> None:
        self._bytes = pickle.dumps(responses)

    def __reduce__(self) -> Any:
        return pickle.loads, (self._bytes,)


class Instant:
    """Rollout actors or scorers that take no time; every response has its own token ids."""

    def __init__(self) -> None:
        processes.get_ready = functools.cache(processes.get_ready)
        rng = random.Random(0)
        lengths = [TOKENS - 8 * i for i in range(RESPONSES)]
        self._responses: Any = Pickled(
            tuple(
                Response(
                    "words " * (length * 3 // 4) + str(length), TokenIds(rng.choices(range(100_000), k=length)), True
                )
                for length in lengths
            )
        )

    def ready(self) -> None:
        """Nothing to load."""

    async def sample(self, request: SamplingRequest) -> AsyncIterator[list[tuple[Group, float]]]:
        """Yields a group for each prompt, those of a result together."""
        prompts = request.item.prompts
        for start in range(0, len(prompts), TOGETHER):
            found = [Group(prompt, self._responses, request.version) for prompt in prompts[start : start + TOGETHER]]
            yield [(group, 0.001) for group in found]

    async def score(self, batch: GroupBatch) -> list[GroupScores]:
        """Returns the scores of the groups."""
        found = []
        for group, _ in batch.groups:
            scores = random.Random(group.prompt.speech_id).sample(range(100), RESPONSES)
            values = dict.fromkeys(batch.names, tuple(map(float, scores)))
            found.append(GroupScores(group.prompt.speech_id, values, 0.001))
        return found

    async def reference_logprobs(self, pairs: Sequence[PreferencePair]) -> list[PairReference]:
        """Returns the pairs' log-probabilities."""
        return [PairReference(pair.key, (-100.0, -101.0), 0.001) for pair in pairs]


class Speeches:
    """Rows of an iteration, made as they are read."""

    def __init__(self, iteration: int, count: int) -> None:
        self._iteration, self._count = iteration, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self._count):
            ids = [1000 + (number + i) % 40_000 for i in range(PROMPT_TOKENS)]
            yield {"speech_id": f"{self._iteration}-{number}", "speech": "word " * 60, "prompt_ids": ids}


@contextlib.contextmanager
def memory_watched() -> Iterator[Callable[[], list[float]]]:
    """A function that returns this process's own memory (MiB) in every second so far, the first at the beginning.

    Another process looks, so that its time is not counted as this one's.
    """
    with tempfile.NamedTemporaryFile() as file:
        watcher = subprocess.Popen([sys.executable, "-c", WATCH, str(os.getpid())], stdout=file)

        def seen() -> list[float]:
            return list(map(float, Path(file.name).read_text().split()))

        try:
            while not seen():
                time.sleep(0.1)
            yield seen
        finally:
            watcher.kill()
            watcher.wait()


def pool_of(role: str, actors: int, actor: Any, slow: Any = None) -> ActorPool[Any]:
    """A ready pool whose actors share processes; the first one is `slow`, if that is given."""
    hosts: dict[int, Any] = {}

    def create(index: int) -> Any:
        place = -1 if slow is not None and not index else index // IN_PROCESS
        if place not in hosts:
            hosts[place] = (slow if place < 0 else actor)()
        return hosts[place]

    pool: ActorPool[Any] = ActorPool(role, create, actors, DEADLINES)
    pool.wait_ready()
    return pool


def ends(rng: random.Random, tail: bool) -> list[float]:
    """End of each group of an item, in seconds from the item's start."""
    if tail:
        return sorted(SHORT_S * (LONGER if rng.random() < LONG_SHARE else 1.0) for _ in range(GROUPS))
    seconds = rng.lognormvariate(0, SIGMA) * MEDIAN_S
    return [seconds * (index + 1) / GROUPS for index in range(GROUPS)]


def measure(actors: int, items: int, slow: bool, tail: bool) -> dict[str, Any]:
    """One run: busy share, the driver's CPU-seconds per second and memory growth (MiB), seconds and least seconds."""
    engines = ray.remote(Engines).options(num_cpus=0, max_concurrency=IN_PROCESS)
    pool = pool_of("rollout", actors, lambda: engines.remote(1.0), (lambda: engines.remote(10.0)) if slow else None)
    rng = random.Random(0)
    work = [(number, ends(rng, tail)) for number in range(actors * items)]
    started: dict[str, float] = {}
    me = psutil.Process()
    with memory_watched() as memory:
        start, cpu = time.monotonic(), sum(me.cpu_times()[:2])
        for group, moment in pool.stream(
            Engines.sample, work, name="scale", identity=lambda result: result[0].prompt.speech_id
        ):
            started[group.prompt.speech_id] = moment
        seconds = time.monotonic() - start
        cpu_s = sum(me.cpu_times()[:2]) - cpu
        seen = memory()
    assert len(started) == GROUPS * len(work), "a group was lost"
    last = max(started.values())
    busy_s = sum(min(times[-1], last - started[f"{number}-0"]) for number, times in work)
    pool.close()
    return {
        "busy": busy_s / (actors * (last - start)),
        "cpu": cpu_s / seconds,
        "mib": max(seen) - seen[0],
        "seconds": seconds,
        "least": sum(times[-1] for _, times in work) / (actors - 0.9 if slow else actors),
    }


def iterate(actors: int, iterations: int, speeches: int) -> dict[str, Any]:
    """Iterations from prompts to stored pairs; groups per second and per second of the driver's CPU, memory (GB)."""
    instant = ray.remote(Instant).options(num_cpus=0, max_concurrency=2 * IN_PROCESS)
    rollouts = pool_of("rollout", actors, instant.remote)
    scorers = pool_of("scorer", max(1, actors // 8), instant.remote)
    me = psutil.Process()
    seconds = cpu_s = 0.0
    with tempfile.TemporaryDirectory() as directory, memory_watched() as memory:
        job = Job(
            run_dir=f"{directory}/run",
            scorers=Scorers(reward_model="simulated", gpus=1),
            rollouts=Rollouts(gpus=1, speeches_per_item=GROUPS),
        )
        ledger = Ledger(job, resume=False)
        telemetry = Telemetry(job, ledger)
        pipeline = SamplingPipeline(job, ledger, telemetry, rollouts, scorers, ("reward",))
        pair_stage = PairStage(job, ledger, telemetry, pipeline.reference)

        def make(iteration: int, count: int) -> None:
            rows = Speeches(iteration, count)
            facts = pair_stage.make_sampled(iteration, rows, pipeline.samples(iteration, rows, version=0))
            assert facts["rows"] == count, "a pair was lost"
            # pairs are trained on, and forgotten before the next ones are read
            assert len(pair_stage.read(iteration)) == count

        with gc_paused():  # as a run loads
            make(0, WARM_UP)
        for iteration in range(1, iterations + 1):
            start, cpu = time.monotonic(), sum(me.cpu_times()[:2])
            make(iteration, speeches)
            seconds += time.monotonic() - start
            cpu_s += sum(me.cpu_times()[:2]) - cpu
            shutil.rmtree(ledger.root / f"iteration-{iteration:03d}")
            print(f"iteration {iteration}: {max(memory()) / 1024:.2f} GiB, {seconds:.0f} s", flush=True)
        ledger.close()
        most = max(memory())
    rollouts.close()
    scorers.close()
    groups = iterations * speeches
    return {"groups": groups / cpu_s, "per_second": groups / seconds, "gb": most * 2**20 / 1e9}


def line(name: str, ours: float, peer: float, ratio: float, bar: float, passed: bool) -> None:
    """Prints a result line."""
    print(json.dumps({"name": name, "ours": ours, "peer": peer, "ratio": round(ratio, 3), "bar": bar, "pass": passed}))


def run_apart(*arguments: object) -> dict[str, Any]:
    """One measure in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(process.stderr[-3000:])
    result = json.loads(process.stdout.splitlines()[-1])
    print(f"{' '.join(command[2:])}: " + ", ".join(f"{k} {v:.3g}" for k, v in result.items()), flush=True)
    return result


def main() -> None:
    """Measures each number of actors in a process of its own and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--items", type=int, default=6, help="items per actor")
    parser.add_argument("--iterations", type=int, default=16, help="of `scale-groups` and `scale-memory`")
    parser.add_argument("--speeches", type=int, default=6400, help="of an iteration")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tail", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--stages", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
        one, more = options.one, (options.slow, options.tail)
        result = (
            iterate(one, options.iterations, options.speeches) if options.stages else measure(one, options.items, *more)
        )
        ray.shutdown()
        print(json.dumps(result))
        return
    by_actors = {actors: run_apart("--one", actors, "--items", options.items) for actors in sorted(options.actors)}
    smallest, largest = min(by_actors), max(by_actors)
    idle = 1 - run_apart("--one", 2, "--items", 20, "--tail")["busy"]
    line("scale-tail", round(idle, 4), 1.0, idle, 0.05, idle <= 0.05)
    slow = run_apart("--one", 16, "--items", 20, "--slow")
    ratio = slow["seconds"] / slow["least"]
    line("scale-slow", round(slow["seconds"], 1), round(slow["least"], 1), ratio, 1.1, ratio <= 1.1)
    size = ("--iterations", options.iterations, "--speeches", options.speeches)
    stages = run_apart("--one", largest, *size, "--stages")
    ratio = stages["groups"] / GROUPS_PER_S
    line("scale-groups", round(stages["groups"], 1), GROUPS_PER_S, ratio, 1.0, ratio >= 1.0)
    line("scale-memory", round(stages["gb"], 2), LARGEST_GB, stages["gb"] / LARGEST_GB, 1.0, stages["gb"] <= LARGEST_GB)
    few, many = by_actors[smallest], by_actors[largest]
    growth, most = max(many["cpu"] / few["cpu"], many["mib"] / max(few["mib"], 1.0)), largest / smallest
    line("scale-cost", round(growth, 2), most, growth / most, 1.0, growth <= most)
    line("scale-busy", round(many["busy"], 3), 1.0, many["busy"], 0.95, many["busy"] >= 0.95)


if __name__ == "__main__":
    main()
