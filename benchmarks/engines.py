"""A rollout actor and a bare vLLM engine by turns: the same prompts, engine settings and process count."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import ray.cloudpickle
import sides  # noqa: F401 - takes this directory off the module path

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines, Prompts
from psyco_ray.data import tables
from psyco_ray.models import loading
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment
from psyco_ray.run.types import Prompt, PromptBatch

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

LIMIT_S = 1800.0  # of whatever an actor does


class Bare:
    """Nothing but vLLM: one engine, one call of `generate` for all prompts."""

    def __init__(self, model: str, settings: Rollouts, defaults: bool = False) -> None:
        """Load the model by our settings, or as vLLM does by itself but for the size of its cache.

        By itself it would take nearly all memory for that, and not start where that much is not free.
        """
        from vllm import LLM

        from psyco_ray.rollout.engine import engine_options

        self.seeded = not defaults  # on a CPU vLLM dies of seeds where it takes prompts in parts, its default
        given = engine_options(settings)
        if defaults:
            given = {"kv_cache_memory_bytes": given["kv_cache_memory_bytes"] * settings.actors}
        self.llm = LLM(str(loading.resolve(model)), **given)

    def ready(self) -> None:
        """Answer once the engine is loaded."""

    def generate(self, prompts: list[Prompt], responses: int, max_tokens: int) -> tuple[int, float]:
        """Tokens sampled, and seconds that took."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        asked = [{"prompt_token_ids": list(p.token_ids)} for p in prompts]
        seeds = [p.seed if self.seeded else None for p in prompts]
        params = [SamplingParams(n=responses, temperature=1.0, max_tokens=max_tokens, seed=seed) for seed in seeds]
        began = time.perf_counter()
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return sum(len(c.token_ids) for o in outputs for c in o.outputs), seconds


def through_actor(pool: ActorPool, items: list[PromptBatch], responses: int, max_tokens: int) -> tuple[int, float]:
    """Tokens sampled through the pool, and seconds that took."""
    requests = [SamplingRequest(item, 0, responses, 1.0, 1.0, max_tokens) for item in items]
    began = time.perf_counter()
    groups = [
        found for found, _ in pool.stream(RolloutActor.sample, requests, identity=lambda f: f[0].prompt.speech_id)
    ]
    seconds = time.perf_counter() - began
    assert len(groups) == sum(len(item.prompts) for item in items), "a group was lost"
    return sum(len(r.token_ids) for group in groups for r in group.responses), seconds


def prompts_of(model: str, count: int) -> Iterator[Prompt]:
    """The first packaged speeches, rendered."""
    tokenizer = loading.load_tokenizer(loading.resolve(model))
    prompt = load_prompt(Prompts(respond="respond-small"))
    for index, row in enumerate(tables.read_table("sample", "pairs").slice(0, count).to_pylist()):
        ids = loading.conversation_ids(tokenizer, prompt_messages(prompt, row["question"]))
        yield Prompt(f"speech-{index}", tuple(ids), seed=1000 * index)


def pool_of(model: str, settings: Rollouts, rooms: Any = None) -> ActorPool:
    """A pool of rollout actors, each in a room that it shares with a learner rank where there are rooms."""
    actor, shared = ray.remote(RolloutActor), rooms is not None

    def made(index: int) -> Any:
        options = placement.pool_options(settings, actor_environment(settings), rooms, index)
        return actor.options(**options).remote(f"rollout-{index}", model, settings, 0, shared)

    return ActorPool("rollout", made, settings.actors, Deadlines(start_s=LIMIT_S, item_s=LIMIT_S), suspended=shared)


def by_turns(
    name: str,
    model: str,
    settings: Rollouts,
    speeches: int,
    responses: int,
    max_tokens: int,
    rounds: int,
    *,
    defaults: bool = False,
) -> dict[str, Any]:
    """Tokens/s of the actors and of a bare engine, and the ratio, medians over rounds; one more goes before.

    The engine has the actors' settings and place, or with `defaults` vLLM's own.
    """
    pool = pool_of(model, settings)
    pool.wait_ready()  # one engine after the other: each looks at how much memory is free
    where = {"num_gpus": settings.gpus} if defaults else placement.pool_options(settings, actor_environment(settings))
    bare = ray.remote(Bare).options(**where).remote(model, settings, defaults)
    ray.get(bare.ready.remote(), timeout=LIMIT_S)
    prompts, size = list(prompts_of(model, speeches)), settings.speeches_per_item
    items = [PromptBatch(str(i), tuple(prompts[i : i + size])) for i in range(0, len(prompts), size)]
    rates = []
    for number in range(rounds + 1):
        tokens, seconds = through_actor(pool, items, responses, max_tokens)
        bare_tokens, bare_seconds = ray.get(bare.generate.remote(prompts, responses, max_tokens), timeout=LIMIT_S)
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
