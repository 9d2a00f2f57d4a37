"""A real engine on the CPU whose KV cache holds fewer sequences than it is asked for."""

import itertools
from collections.abc import Iterator

import pytest
import ray

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.pool import placement
from psyco_ray.rollout.actor import RolloutActor, SamplingRequest, actor_environment
from psyco_ray.run.types import Prompt, PromptBatch

RESPONSES, TOKENS = 4, 90
ROOM = 0.0005  # GiB: 32 blocks of 32 tokens, for 10 sequences of 94 tokens


def actor_with(model, kv_cache_gb: float):
    settings = Rollouts(cpus=0.5, dtype="float32", max_model_len=256, max_num_seqs=64, kv_cache_gb=kv_cache_gb)
    options = placement.pool_options(settings, actor_environment(settings))
    actor = ray.remote(RolloutActor).options(**options).remote("rollout-0", str(model), settings, 0)
    ray.get(actor.ready.remote(), timeout=300)
    return actor


@pytest.fixture(scope="module")
def small(local_ray, tiny_model) -> Iterator:
    actor = actor_with(tiny_model, ROOM)
    yield actor
    ray.kill(actor)


def request(prompts: int, responses: int = RESPONSES, length: int = 4) -> SamplingRequest:
    batch = tuple(Prompt(f"s{i}", (5, 6, 7, *range(8 + i, 5 + i + length)), 1000 * i) for i in range(prompts))
    return SamplingRequest(PromptBatch("item", batch), 0, responses, 1.0, 1.0, TOKENS)


def sampled(actor, asked: SamplingRequest) -> dict[str, list[tuple[int, ...]]]:
    lists = actor.sample.options(num_returns="streaming").remote(asked)
    groups = [group for ref in lists for group, _ in ray.get(ref, timeout=120)]
    return {group.prompt.speech_id: [response.token_ids for response in group.responses] for group in groups}


def most_open(actor, asked: SamplingRequest) -> tuple[int, int]:
    """Responses that vLLM has at a time, at most, and what the engine still has of an item that is left."""

    def measure(own: RolloutActor) -> tuple[int, int]:
        engine, most = own._engine, 0
        add = engine._llm.llm_engine.add_request

        def counted(*arguments) -> object:
            nonlocal most
            added = add(*arguments)
            most = max(most, RESPONSES * (1 + len(engine._open)))
            return added

        engine._llm.llm_engine.add_request = counted
        try:
            keywords = {"responses": RESPONSES, "temperature": 1.0, "top_p": 1.0, "max_tokens": TOKENS}
            groups = own._thread.sample(asked.item.prompts, **keywords)
            list(itertools.islice(groups, 3))
            groups.close()
        finally:
            engine._llm.llm_engine.add_request = add
        return most, len(engine._open) + len(engine._held)

    return ray.get(actor.__ray_call__.remote(measure), timeout=120)


def test_prompts_wait_where_the_cache_has_no_room_and_get_the_same_responses(small, tiny_model) -> None:
    found = sampled(small, request(7))
    large = actor_with(tiny_model, 0.1)
    try:
        with_room = sampled(large, request(7))
    finally:
        ray.kill(large)
    assert {key: len(responses) for key, responses in found.items()} == {f"s{i}": RESPONSES for i in range(7)}
    same = [a == b for key, responses in found.items() for a, b in zip(responses, with_room[key], strict=True)]
    assert sum(same) >= 0.9 * len(same), "the sampled tokens depend on the seed alone, but for rounding"
    most, left = most_open(small, request(7))
    assert most == 8, "two prompts with four responses"
    assert not left, "waiting prompts of an item that is left are forgotten"


def test_a_prompt_whose_responses_have_no_room_is_an_error_that_names_the_sizes(small) -> None:
    sizes = "kv_cache_gb 0.0005 holds 10 sequences of 94 tokens, and a prompt has 12 responses; raise it or lower"
    with pytest.raises(InputError, match=sizes):
        sampled(small, request(2, responses=12))
    assert len(sampled(small, request(2))) == 2, "it samples others afterwards"
