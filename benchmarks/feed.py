"""Engines that get new speeches as slots free up, against engines that get all of them at once.

.venv/bin/python benchmarks/feed.py [--simulated] [--speeches 160] [--rounds 2]

Response lengths are log-normal. `simulated`: eight engines with the rates of the profile `h100`, sped up, behind the
pool and the actors' threads of a run: 256 slots, 16 speeches an item, 8 responses of 256 tokens with a coefficient of
variation of 0.45. The peer's time is calculated. Real: one vLLM engine on the CPU, which stops each response at a drawn
length, with coefficients of 0.45 and 1.0; the peer is the same engine with one item of all speeches. The ratio is that
of the tokens/s, the worst of the three; those of engines that drain after each item are printed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# a token of this run, set before the import: Ray would write one into the home directory
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray
import ray.cloudpickle

from psyco_ray.cli.plan import devices
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_options, items_in_flight
from psyco_ray.rollout.engine_thread import EngineThread
from psyco_ray.run.types import Group, Prompt, PromptBatch, Response

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

BAR = 0.95
ENGINES, SLOTS, RESPONSES, MEAN, SPREAD = 8, 256, 8, 256, 0.45
SPEECHES = 320  # of each simulated engine
FASTER = 6.0  # than the profile
PROFILE = devices.profile_of("h100")
REAL_MEAN, REAL_SPREADS = 24, (0.45, 1.0)


def lengths_of(seed: int, count: int, mean: int, spread: float) -> list[int]:
    """Response lengths that belong to a seed: log-normal with this mean and coefficient of variation."""
    rng, sigma = random.Random(seed), math.sqrt(math.log(1 + spread * spread))
    return [max(1, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))) for _ in range(count)]


@dataclass
class Slots:
    """Continuous batching: running responses, and those that wait for a slot."""

    waiting: list[tuple[int, str]] = field(default_factory=list)  # length and owner, in order
    running: list[tuple[int, str]] = field(default_factory=list)  # last step and owner, a heap
    steps: int = 0

    def advance(self) -> tuple[float, list[str]]:
        """Decodes until a response ends; returns the seconds and the owners of those that end."""
        while self.waiting and len(self.running) < SLOTS:
            length, owner = self.waiting.pop(0)
            heapq.heappush(self.running, (self.steps + length, owner))
        steps = self.running[0][0] - self.steps
        seconds = steps * (PROFILE.decode_step_s + len(self.running) * PROFILE.decode_token_s)
        self.steps += steps
        ended = []
        while self.running and self.running[0][0] == self.steps:
            ended.append(heapq.heappop(self.running)[1])
        return seconds, ended


class SimulatedEngine:
    """Sleeps while a real engine would decode."""

    version = 0

    def __init__(self) -> None:
        self._slots, self._left = Slots(), dict[str, list[Any]]()
        self._response = Response("word " * 190, tuple(range(256)), True)
        self._added, self._ahead_s = 0, 0.0

    def add(self, prompts: Sequence[Prompt], responses: int, **_: Any) -> int:
        """Takes prompts."""
        self._added += 1
        for prompt in prompts:
            self._left[prompt.speech_id] = [self._added, prompt, responses]
            self._slots.waiting += [(n, prompt.speech_id) for n in lengths_of(prompt.seed, responses, MEAN, SPREAD)]
        return self._added

    def step(self) -> list[tuple[int, Group]]:
        """Sleeps until a response ends."""
        seconds, ended = self._slots.advance()
        began = time.perf_counter()
        self._ahead_s += seconds / FASTER
        if self._ahead_s > 0.001:
            time.sleep(self._ahead_s)
        self._ahead_s -= time.perf_counter() - began if self._ahead_s > 0.001 else 0.0
        complete = []
        for owner in ended:
            number, prompt, left = self._left[owner]
            self._left[owner][2] = left - 1
            if left == 1:
                del self._left[owner]
                complete.append((number, Group(prompt, (self._response,) * RESPONSES, 0)))
        return complete

    def abort(self, number: int) -> None:
        """Nothing is left of prompts that are sampled."""


class SimulatedActor(RolloutActor):
    """A rollout actor with a simulated engine."""

    def ready(self) -> str:
        """Starts the engine's thread."""
        self._thread = EngineThread(SimulatedEngine)  # type: ignore[arg-type]
        self._engine = self._thread.engine
        return self.name


class DrawnLengths(RolloutActor):
    """A rollout actor whose responses end at drawn lengths; the temperature of a request is their variation."""

    def ready(self) -> str:
        """Loads the engine."""
        name = super().ready()
        engine = self._thread.engine._llm.llm_engine
        add_request = engine.add_request

        def add(key: str, tokens: Any, params: Any) -> Any:
            [params.max_tokens] = lengths_of(params.seed, 1, REAL_MEAN, params.temperature)
            params.max_tokens = min(params.max_tokens, 8 * REAL_MEAN)
            params.stop_token_ids, params.ignore_eos, params.temperature = [], True, 1.0
            return add_request(key, tokens, params)

        engine.add_request = add
        return name


def pool_of(kind: type[RolloutActor], model: str, settings: Rollouts) -> ActorPool[RolloutActor]:
    """Starts actors as a run does."""
    actor = ray.remote(kind)

    def create(index: int) -> Any:
        return actor.options(**actor_options(settings)).remote(f"rollout-{index}", model, settings, 0)

    pool = ActorPool("rollout", create, settings.actors, Deadlines(start_s=1800, item_s=1800))
    pool.wait_ready()
    return pool


def seconds_of(
    pool: ActorPool, settings: Rollouts, prompts: list[Prompt], size: int, at_a_time: int, each: int, spread: float
) -> tuple[float, int]:
    """Seconds to sample all prompts in items of `size`, and the number of tokens."""
    items = [PromptBatch(str(n), tuple(prompts[n : n + size])) for n in range(0, len(prompts), size)]
    requests = [SamplingRequest(item, 0, each, spread, 1.0, settings.max_model_len // 2) for item in items]
    start = time.perf_counter()
    groups = list(
        pool.stream(
            RolloutActor.sample, requests, identity=lambda result: result[0].prompt.speech_id, in_flight=at_a_time
        )
    )
    seconds = time.perf_counter() - start
    assert len(groups) == len(prompts), "a group was lost"
    return seconds, sum(len(response.token_ids) for group, _ in groups for response in group.responses)


def simulated() -> float:
    """Throughput of simulated engines over that of engines with everything at once."""
    settings = Rollouts(
        actors=ENGINES, cpus=0, max_num_seqs=SLOTS, speeches_per_item=16, feed="continuous", max_model_len=2048
    )
    prompts = [Prompt(f"s{n}", (1, 2, 3), n) for n in range(ENGINES * SPEECHES)]
    slowest = 0.0
    for engine in range(ENGINES):
        slots, seconds = Slots(), 0.0
        for prompt in prompts[engine::ENGINES]:
            slots.waiting += [(n, "") for n in lengths_of(prompt.seed, RESPONSES, MEAN, SPREAD)]
        while slots.waiting or slots.running:
            seconds += slots.advance()[0]
        slowest = max(slowest, seconds / FASTER)
    pool = pool_of(SimulatedActor, "none", settings)
    fed, _ = seconds_of(pool, settings, prompts, 16, items_in_flight(settings, RESPONSES), RESPONSES, SPREAD)
    drained, _ = seconds_of(pool, settings, prompts, 16, 1, RESPONSES, SPREAD)
    pool.close()
    print(
        f"simulated: {fed:.1f} s, all at once {slowest:.1f} s, ratio {slowest / fed:.3f}; drained after each item "
        f"{drained:.1f} s, ratio {slowest / drained:.3f}",
        flush=True,
    )
    return slowest / fed


def real(model: str, speeches: int, rounds: int) -> Iterator[tuple[float, float, float]]:
    """Yields tokens/s of the engine that is fed, of the same with all at once, and their ratio, for each mix."""
    settings = Rollouts(cpus=1, max_num_seqs=32, speeches_per_item=16, feed="continuous", max_model_len=512)
    pool = pool_of(DrawnLengths, model, settings)
    prompts = [Prompt(f"s{n}", (1, 9690, 198, 100 + n), 1000 * n) for n in range(speeches)]
    for spread in REAL_SPREADS:
        rates = []
        for number in range(rounds + 1):  # the first round warms up
            sides = [(16, items_in_flight(settings, 1)), (len(prompts), 1)] + [(16, 1)] * (number == rounds)
            times = [seconds_of(pool, settings, prompts, size, many, 1, spread) for size, many in sides]
            rates.append([tokens / seconds for seconds, tokens in times])
            print(f"variation {spread}: " + ", ".join(f"{rate:.0f} tokens/s" for rate in rates[-1]), flush=True)
        fed, at_once = (statistics.median(side) for side in zip(*(rate[:2] for rate in rates[1:]), strict=True))
        ratio = statistics.median(rate[0] / rate[1] for rate in rates[1:])
        print(f"variation {spread}: ratio {ratio:.3f}, drained after each item {rates[-1][2] / rates[-1][1]:.3f}")
        yield fed, at_once, ratio
    pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--speeches", type=int, default=160, help="that the real engine answers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--simulated", action="store_true", help="only the simulation")
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ratios = [simulated()]
    sides = [] if options.simulated else list(real(options.model, options.speeches, options.rounds))
    ray.shutdown()
    worst = min([*ratios, *(ratio for _, _, ratio in sides)])
    fed, at_once = (
        (round(sum(side) / len(sides), 1) for side in zip(*(s[:2] for s in sides), strict=True))
        if sides
        else (round(ratios[0], 3), 1.0)
    )
    print(
        json.dumps(
            {
                "name": "feed",
                "ours": fed,
                "peer": at_once,
                "ratio": round(worst, 3),
                "bar": BAR,
                "pass": worst >= BAR,
            }
        )
    )


if __name__ == "__main__":
    main()
