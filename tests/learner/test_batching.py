"""Batches, their shards by rank, and the learning-rate schedule."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.config.training import Optimizer
from psyco_ray.learner.batching import batches, learning_rate, plan_step
from psyco_ray.run.types import PreferencePair


def packed_tokens(passed: list[PreferencePair]) -> int:
    return len(passed) * max(e.tokens for e in passed)


def plain_tokens(passed: list[PreferencePair]) -> int:
    """Two rows for each pair, as long as the longest conversation of the pass."""
    return 2 * len(passed) * max(len(e.prompt_ids + ids) for e in passed for ids in (e.chosen_ids, e.rejected_ids))


def shared_tokens(passed: list[PreferencePair]) -> int:
    """The start of all prompts is there once, and no row."""
    return START + sum(e.tokens - START for e in passed)


START = 20
TOKENS = {"packed": packed_tokens, "plain": plain_tokens, "shared": shared_tokens}


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(50, 1000),
    st.sampled_from(list(TOKENS)),
)
def test_a_batch_is_sharded_completely_evenly_and_within_bounds(
    lengths: list[int], world_size: int, max_tokens: int, computed: str
) -> None:
    tokens = TOKENS[computed]
    batch = [PreferencePair(f"{i:02d}", (2,) * START + (i,), (1,) * n, (1,)) for i, n in enumerate(lengths)]
    if len(batch) < world_size:
        with pytest.raises(ValueError, match="cannot be shared"):
            plan_step(batch, world_size, max_tokens, computed)
        return
    shards = plan_step(batch, world_size, max_tokens, computed)
    micro_batches = [micro_batch for shard in shards for micro_batch in shard]
    assert len({len(shard) for shard in shards}) == 1
    assert sorted(e.key for micro_batch in micro_batches for e in micro_batch) == [e.key for e in batch]
    assert all(micro_batches)
    could_split_further = (len(shards[0]) + 1) * world_size <= len(batch)
    if could_split_further:
        assert all(tokens(m) <= max_tokens or len(m) == 1 for m in micro_batches)
    for passes in zip(*shards, strict=True):
        assert max(map(len, passes)) - min(map(len, passes)) <= 1, "a rank would wait for another"
    longest = [max(tokens([e]) for shard in shards for e in shard[i]) for i in range(len(shards[0]))]
    assert longest == sorted(longest, reverse=True), "pairs of similar length share a pass"


def test_a_shared_start_leaves_room_for_more_pairs() -> None:
    batch = [PreferencePair(f"{i}", (2,) * 198 + (i,) * 80, (1,) * 45, (1,) * (68 + 3 * i)) for i in range(4)]
    passes = {computed: len(plan_step(batch, 1, 1000, computed)[0]) for computed in TOKENS}
    assert passes == {"packed": 2, "plain": 4, "shared": 1}


def test_batches_shuffle_every_epoch_and_contain_every_pair() -> None:
    rng = random.Random(0)
    pairs = [PreferencePair(f"pair-{i}", (rng.randrange(9),), (1,), (2,)) for i in range(9)]
    planned = batches(pairs, Optimizer(batch_size=4, epochs=2), 2, seed=3)
    assert [len(batch) for batch in planned] == [4, 5, 4, 5], "a last batch of one pair joins the batch before"
    for epoch in (planned[:2], planned[2:]):
        assert sorted(e.key for batch in epoch for e in batch) == sorted(e.key for e in pairs)
    assert [e.key for batch in planned[:2] for e in batch] != [e.key for batch in planned[2:] for e in batch]
    assert batches(pairs, Optimizer(batch_size=4, epochs=2), 2, seed=3) == planned


def test_the_learning_rate_warms_up_and_decays() -> None:
    settings = Optimizer(learning_rate=1.0, warmup_ratio=0.1, schedule="linear", min_lr_ratio=0.0)
    rates = [learning_rate(settings, step, 20) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 18)
    cosine = settings.model_copy(update={"schedule": "cosine", "min_lr_ratio": 0.1})
    assert learning_rate(cosine, 11, 20) == pytest.approx(0.1 + 0.9 * 0.5)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert {learning_rate(constant, step, 20) for step in range(2, 20)} == {1.0}
