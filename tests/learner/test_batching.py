"""Batches, their shards by rank, and the learning-rate schedule."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.config.training import Optimizer
from psyco_ray.learner.batching import batches, computed_tokens, learning_rate, plan_step
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
    batch = [PreferencePair(f"{i:02d}", (2,) * START + (i,), (1,) * n, (3,)) for i, n in enumerate(lengths)]
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
    batch = [PreferencePair(f"{i}", (2,) * 60 + (i,) * 80, (1,) * 45, (1,) * (68 + 3 * i)) for i in range(4)]
    passes = {computed: len(plan_step(batch, 1, 1000, computed)[0]) for computed in TOKENS}
    assert passes == {"packed": 2, "plain": 2, "shared": 1}


def dialogues(count: int, turns: int, pairs: int) -> list[PreferencePair]:
    """So many pairs of each turn of some dialogues, mixed; each has two of four responses of 40 tokens."""
    rng = random.Random(count)
    made = []
    for dialogue in range(count):
        said = [rng.randrange(3, 40000) for _ in range(100 * turns)]
        for turn in range(1, turns + 1):
            answers = [tuple(rng.randrange(3, 40000) for _ in range(40)) for _ in range(4)]
            for number, sides in enumerate([(0, 3), (1, 2), (0, 1), (2, 3), (0, 2), (1, 3)][:pairs]):
                key = f"{dialogue}-{turn}-{number}"
                sampled = (answers[side] for side in sides)
                made.append(PreferencePair(key, tuple(said[: 100 * turn]), *sampled, conversation=True))
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("computed", ["packed", "shared", "plain"])
def test_pairs_of_one_prompt_are_one_pass_of_one_rank(computed: str) -> None:
    batch = dialogues(4, turns=1, pairs=6)
    limit = 2 * 4 * 140 if computed == "plain" else 2 * 260
    for world_size in (1, 2):
        shards = plan_step(batch, world_size, limit, computed)
        assert sorted(pair.key for shard in shards for passed in shard for pair in passed) == sorted(
            pair.key for pair in batch
        )
        assert {len(shard) for shard in shards} == {2 // world_size}
        for passed in (passed for shard in shards for passed in shard):
            assert len(passed) == 12, "two prompts with six pairs each"
            assert computed_tokens([[passed]], computed) == 2 * ((4 if computed == "plain" else 1) * 100 + 4 * 40)


@pytest.mark.parametrize("computed", ["packed", "shared"])
def test_turns_of_a_dialogue_are_one_pass(computed: str) -> None:
    [shard] = plan_step(dialogues(3, turns=6, pairs=2), 1, 1600, computed)
    assert [len(passed) for passed in shard] == [12, 12, 12]
    assert [computed_tokens([[passed]], computed) for passed in shard] == [600 + 6 * 4 * 40] * 3


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(100, 2000),
    st.sampled_from(["packed", "shared", "plain"]),
)
def test_families_are_sharded_completely_and_within_bounds(
    count: int, turns: int, pairs: int, world_size: int, max_tokens: int, computed: str
) -> None:
    batch = dialogues(count, turns, pairs)
    if len(batch) < world_size:
        return
    shards = plan_step(batch, world_size, max_tokens, computed)
    passes = [passed for shard in shards for passed in shard]
    assert len({len(shard) for shard in shards}) == 1
    assert sorted(pair.key for passed in passes for pair in passed) == sorted(pair.key for pair in batch)
    assert all(passes)
    if world_size == 1:
        for passed in passes:
            tokens = plain_tokens_of(passed) if computed == "plain" else computed_tokens([[passed]], computed)
            assert tokens <= max_tokens or len(passed) == 1


def plain_tokens_of(passed: list[PreferencePair]) -> int:
    texts = {(*p.prompt_ids, *ids) for p in passed for ids in (p.chosen_ids, p.rejected_ids)}
    return len(texts) * max(map(len, texts))


def test_few_pairs_of_one_prompt_are_shared_by_all_ranks() -> None:
    shards = plan_step(dialogues(1, turns=1, pairs=6), 4, 4096, "shared")
    assert sorted(len(passed) for shard in shards for passed in shard) == [1, 1, 2, 2]


def test_batches_shuffle_every_epoch_and_contain_every_pair() -> None:
    rng = random.Random(0)
    pairs = [PreferencePair(f"pair-{i}", (rng.randrange(9),), (1,), (2,)) for i in range(9)]
    planned = batches(pairs, Optimizer(batch_size=4, epochs=2), 2, seed=3)
    assert [len(batch) for batch in planned] == [4, 5, 4, 5], "a last batch of one pair joins the batch before"
    for epoch in (planned[:2], planned[2:]):
        assert sorted(e.key for batch in epoch for e in batch) == sorted(e.key for e in pairs)
    assert [e.key for batch in planned[:2] for e in batch] != [e.key for batch in planned[2:] for e in batch]
    assert batches(pairs, Optimizer(batch_size=4, epochs=2), 2, seed=3) == planned


def test_pairs_of_a_conversations_turn_follow_each_other_and_others_keep_their_order() -> None:
    batch = dialogues(12, turns=1, pairs=2)
    settings = Optimizer(batch_size=8, epochs=2)
    planned = batches(batch, settings, 2, seed=3)
    assert [len(one) for one in planned] == [8] * 6
    for one in planned:
        assert len({pair.prompt_ids for pair in one}) == 4
    assert len({tuple(pair.key for pair in one) for one in planned}) == 6
    alone = [replace(pair, conversation=False) for pair in batch]  # several pairs of a speech
    rng, expected = np.random.default_rng(3), []
    for _ in range(2):
        order = rng.permutation(24).tolist()
        expected += [[alone[i] for i in order[start : start + 8]] for start in (0, 8, 16)]
    assert batches(alone, settings, 2, seed=3) == expected


def test_the_learning_rate_warms_up_and_decays() -> None:
    settings = Optimizer(learning_rate=1.0, warmup_ratio=0.1, schedule="linear", min_lr_ratio=0.0)
    rates = [learning_rate(settings, step, 20) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 18)
    cosine = settings.model_copy(update={"schedule": "cosine", "min_lr_ratio": 0.1})
    assert learning_rate(cosine, 11, 20) == pytest.approx(0.1 + 0.9 * 0.5)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert {learning_rate(constant, step, 20) for step in range(2, 20)} == {1.0}


def test_a_prompt_that_a_pass_shares_counts_once_in_the_tokens_of_a_step() -> None:
    history = tuple(range(200))
    pairs = [PreferencePair(str(i), history, (300 + i,) * 10, (400 + i,) * 5, conversation=True) for i in range(4)]
    alone = [[pair] for pair in pairs]
    assert computed_tokens([alone], "packed") == 4 * (200 + 15)
    assert computed_tokens([[pairs]], "packed") == 200 + 4 * 15
    assert computed_tokens([[pairs[:2]], [pairs[2:]]], "packed") == 2 * 200 + 4 * 15, "each rank computes it"
    assert computed_tokens([[pairs]], "shared") == 200 + 4 * 15
    assert computed_tokens([[pairs]], "plain") == 8 * 200 + 4 * 15
    same = [pairs[0], replace(pairs[1], chosen_ids=pairs[0].chosen_ids)]
    assert computed_tokens([[same]], "packed") == 200 + 10 + 5 + 5, "a response of two pairs is computed once"
    assert computed_tokens([[same]], "plain") == 3 * 200 + 10 + 5 + 5
