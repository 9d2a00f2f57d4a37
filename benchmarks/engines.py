"""Alternates rollout actors and a bare vLLM engine: the same prompts, engine settings and number of processes."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.cloudpickle

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines, Prompts
from psyco_ray.files import records
from psyco_ray.models import loading, templates
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import (
    RolloutActor,
    SamplingRequest,
    actor_environment,
    actor_options,
    items_in_flight,
)
from psyco_ray.run.types import Prompt, PromptBatch

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

LIMIT_S = 1800.0  # deadline of every call of an actor


class Bare:
    """vLLM without psyco_ray: one engine, one call of `generate` for all prompts."""

    def __init__(self, model: str, settings: Rollouts, defaults: bool = False) -> None:
        """Loads the model with the actors' settings, or with vLLM's defaults except for the size of the cache.

        By default vLLM allocates nearly all memory for the cache, and fails if that much is not free.
        """
        from vllm import LLM

        from psyco_ray.rollout.engine_options import engine_options

        self.seeded = not defaults  # seeds crash vLLM on a CPU with chunked prefill, its default
        options = engine_options(settings)
        if defaults:
            options = {"kv_cache_memory_bytes": options["kv_cache_memory_bytes"] * settings.actors}
        self.llm = LLM(str(loading.resolve(model)), **options)

    def ready(self) -> None:
        """Returns once the engine is loaded."""

    def generate(self, prompts: list[Prompt], responses: int, max_tokens: int) -> tuple[int, float]:
        """Returns the number of sampled tokens and the seconds."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        inputs = [{"prompt_token_ids": list(p.token_ids)} for p in prompts]
        seeds = [p.seed if self.seeded else None for p in prompts]
        params = [SamplingParams(n=responses, temperature=1.0, max_tokens=max_tokens, seed=seed) for seed in seeds]
        start = time.perf_counter()
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        return sum(len(c.token_ids) for o in outputs for c in o.outputs), seconds


def through_actor(
    pool: ActorPool, items: list[PromptBatch], responses: int, max_tokens: int, in_flight: int
) -> tuple[int, float]:
    """Samples through the pool; returns the number of tokens and the seconds."""
    requests = [SamplingRequest(item, 0, responses, 1.0, 1.0, max_tokens) for item in items]
    start = time.perf_counter()
    groups = [
        group
        for group, _ in pool.stream(
            RolloutActor.sample, requests, identity=lambda result: result[0].prompt.speech_id, in_flight=in_flight
        )
    ]
    seconds = time.perf_counter() - start
    assert len(groups) == sum(len(item.prompts) for item in items), "a group was lost"
    return sum(len(r.token_ids) for group in groups for r in group.responses), seconds


def prompts_of(model: str, count: int) -> Iterator[Prompt]:
    """Yields the first packaged speeches, rendered."""
    tokenizer = loading.load_tokenizer(loading.resolve(model))
    prompt = load_prompt(Prompts(respond="respond-small"))
    for index, row in enumerate(records.read_rows("sample", "pairs")[:count]):
        ids = templates.conversation_ids(tokenizer, prompt_messages(prompt, row["question"]))
        yield Prompt(f"speech-{index}", tuple(ids), seed=1000 * index)


def pool_of(model: str, settings: Rollouts, rooms: Any = None) -> ActorPool:
    """Builds a pool of rollout actors, colocated with learner workers if there is a placement group."""
    actor, shared = ray.remote(RolloutActor), rooms is not None

    def create(index: int) -> Any:
        options = actor_options(settings, rooms, index)
        return actor.options(**options).remote(f"rollout-{index}", model, settings, 0, shared)

    return ActorPool("rollout", create, settings.actors, Deadlines(start_s=LIMIT_S, item_s=LIMIT_S), suspended=shared)


@dataclass(frozen=True)
class Workload:
    """What both sides sample in each round."""

    speeches: int
    responses: int
    max_tokens: int
    rounds: int


def alternate(name: str, model: str, settings: Rollouts, work: Workload, *, defaults: bool = False) -> dict[str, Any]:
    """Medians over rounds of the tokens/s of actors and bare engine and of the ratio; one more round warms up.

    The engine has the actors' settings and resources, or with `defaults` vLLM's own.
    """
    pool = pool_of(model, settings)
    pool.wait_ready()  # engines start one after the other: each measures how much memory is free
    resources = (
        {"num_gpus": settings.gpus} if defaults else placement.pool_options(settings, actor_environment(settings))
    )
    bare = ray.remote(Bare).options(**resources).remote(model, settings, defaults)
    ray.get(bare.ready.remote(), timeout=LIMIT_S)
    prompts, size = list(prompts_of(model, work.speeches)), settings.speeches_per_item
    items = [PromptBatch(str(i), tuple(prompts[i : i + size])) for i in range(0, len(prompts), size)]
    rates = []
    for number in range(work.rounds + 1):
        tokens, seconds = through_actor(
            pool, items, work.responses, work.max_tokens, items_in_flight(settings, work.responses)
        )
        bare_tokens, bare_seconds = ray.get(
            bare.generate.remote(prompts, work.responses, work.max_tokens), timeout=LIMIT_S
        )
        rates.append((tokens / seconds, bare_tokens / bare_seconds))
        print(f"round {number}: actors {rates[-1][0]:.0f} tokens/s, bare {rates[-1][1]:.0f} tokens/s", flush=True)
    pool.close()
    ours, peer = (round(statistics.median(side), 1) for side in zip(*rates[1:], strict=True))
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": round(statistics.median(a / b for a, b in rates[1:]), 3),
    }
