"""Batches of a training, their shards by rank, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from psyco_ray.config.errors import InputError
from psyco_ray.config.optimizer import Optimizer
from psyco_ray.models.layout import common_start
from psyco_ray.models.sharing import Computed, Tree, families, join
from psyco_ray.run.types import PreferencePair

T = TypeVar("T")

MicroBatch = list[PreferencePair]
"""Pairs of one forward and backward pass."""


@dataclass(frozen=True)
class _Unit:
    """Pairs whose prompts are computed together; they stay in one pass of one rank."""

    pairs: MicroBatch
    size: int  # tokens that the unit adds to a pass
    texts: int  # different conversations
    longest: int  # tokens of the longest one


def plan_step(
    batch: Sequence[PreferencePair], world_size: int, max_tokens: int, computed: Computed = "packed"
) -> list[list[MicroBatch]]:
    """Shard a batch over ranks, each with the same number of passes, longest pairs first.

    Pairs of one prompt, and those whose prompts begin alike, share a pass; see `sharing.families`. The others of a pass
    have similar lengths, because rows are as long as the longest; what computes a shared start needs no rows.

    Args:
        batch: pairs of the step.
        world_size: number of ranks.
        max_tokens: limit of a pass, padding included. A pass exceeds it only if a single pair does, or if there are too
            few pairs for one more pass on every rank.
        computed: how a model computes a pass.

    Returns:
        For every rank its passes, each with at least one pair.

    Raises:
        InputError: there are fewer pairs than ranks.
    """
    if len(batch) < world_size:
        raise InputError(f"a batch of {len(batch)} pairs cannot be shared by {world_size} ranks")

    start = common_start([pair.prompt_ids for pair in batch]) if computed == "shared" else 0

    def tokens_of(units: Sequence[_Unit]) -> int:
        """Of the rank with the most."""
        if computed == "packed":
            return units[0].size * math.ceil(len(units) / world_size)
        ranks = [_deal(units, world_size, rank) for rank in range(world_size)]
        if computed == "shared":
            return start + max(sum(unit.size for unit in dealt) for dealt in ranks)
        return max(unit.longest for unit in units) * max(sum(unit.texts for unit in dealt) for dealt in ranks)

    remaining = sorted(
        _units(batch, world_size, max_tokens, computed, start),
        key=lambda unit: (-unit.size, min(pair.key for pair in unit.pairs)),
    )
    passes: list[list[_Unit]] = []
    while remaining:
        size = world_size
        while size < len(remaining) and tokens_of(remaining[: size + world_size]) <= max_tokens:
            size += world_size
        passes.append(remaining[:size])
        remaining = remaining[size:]
    lacking = world_size - len(passes[-1])
    if lacking > 0:
        last, before = passes.pop(), passes.pop()
        passes += [before[:-lacking], before[-lacking:] + last] if len(before) > world_size else [before + last]
    return [
        [[pair for unit in _deal(units, world_size, rank) for pair in unit.pairs] for units in passes]
        for rank in range(world_size)
    ]


def _units(
    batch: Sequence[PreferencePair], world_size: int, max_tokens: int, computed: Computed, start: int
) -> list[_Unit]:
    """Return what is dealt to ranks: families of pairs, none with more than half of a rank's tokens, or single pairs.

    Args:
        batch: pairs of the step.
        world_size: number of ranks.
        max_tokens: limit of a family with several pairs.
        computed: how a model computes a pass.
        start: tokens with which all prompts begin and which a pass computes once.
    """
    trees = _trees(batch)
    found = families(trees, computed, max_tokens)
    if world_size > 1 and len(found) < len(batch):
        most = sum(family.size(computed) for family in found) // (2 * world_size)
        found = families(trees, computed, min(max_tokens, most))
        if len(found) < world_size:
            found = families(trees, computed, 0)
    return [
        _Unit(
            [batch[number] for number in family.members],
            family.size(computed) - start,
            family.texts,
            family.longest,
        )
        for family in found
    ]


def _trees(pairs: Sequence[PreferencePair]) -> list[Tree]:
    return [(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)) for pair in pairs]


def computed_tokens(shards: Sequence[Sequence[MicroBatch]], computed: Computed) -> int:
    """Return the tokens that all ranks compute in a step, without padding; what a pass computes once counts once."""
    trees = [_trees(pairs) for passes in shards for pairs in passes]
    if computed != "plain":
        return sum(len(join(of_pass, computed).ids) for of_pass in trees)
    return sum(
        len(prompt) + len(response)
        for of_pass in trees
        for prompt, response in {(tuple(prompt), tuple(ids)) for prompt, responses in of_pass for ids in responses}
    )


def _deal(units: Sequence[T], world_size: int, rank: int) -> list[T]:
    """Return a rank's share of a pass, dealt back and forth so that every rank gets long and short ones."""
    rounds = [units[i : i + world_size] for i in range(0, len(units), world_size)]
    positions = [rank if number % 2 == 0 else world_size - 1 - rank for number in range(len(rounds))]
    return [dealt[position] for dealt, position in zip(rounds, positions, strict=True) if position < len(dealt)]


# Not a scheduler of transformers: their functions of the step are private, start the warm-up at a rate of 0, and have
# no linear schedule with a minimum. The rate must follow from the step alone, because replayed steps repeat it.
def learning_rate(optimizer: Optimizer, step: int, total_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule down to `min_lr_ratio`.

    Args:
        optimizer: peak rate, warm-up, schedule and minimum.
        step: 0 to `total_steps` - 1.
        total_steps: of the training.
    """
    warmup = math.ceil(optimizer.warmup_ratio * total_steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    progress = (step - warmup) / max(1, total_steps - warmup)
    factor = 1 - progress if optimizer.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return optimizer.learning_rate * (optimizer.min_lr_ratio + (1 - optimizer.min_lr_ratio) * factor)


def plan(
    count: int, optimizer: Optimizer, world_size: int, seed: int, prompts: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the batches of all epochs as indices of pairs, each epoch in a new order.

    A last batch with fewer pairs than ranks joins the batch before.

    Args:
        count: pairs.
        optimizer: batch size and epochs.
        world_size: number of ranks.
        seed: of the orders.
        prompts: a number of each pair's prompt, 0, 1, ... as they first appear. The pairs of a number follow each
            other, so that a pass computes their prompt once (as Ouyang et al. 2022 train them). None: all differ.

    Raises:
        InputError: there are fewer pairs than ranks.
    """
    if count < world_size:
        raise InputError(f"{count} pairs cannot be shared by {world_size} ranks; give more pairs or fewer ranks")
    rng = np.random.default_rng(seed)
    size = optimizer.batch_size
    numbers = np.arange(count) if prompts is None else np.array(prompts)
    planned: list[list[int]] = []
    for _ in range(optimizer.epochs):
        places = np.argsort(rng.permutation(numbers.max() + 1))  # of each prompt
        order = np.argsort(places[numbers], kind="stable").tolist()
        epoch = [order[i : i + size] for i in range(0, count, size)]
        if len(epoch) > 1 and len(epoch[-1]) < world_size:
            last = epoch.pop()
            epoch[-1] = epoch[-1] + last
        planned += epoch
    return planned


def numbered(conversations: Iterable[Hashable | None]) -> list[int]:
    """Number prompts for `plan`: equal conversations are equal; a single speech (None) has a number of its own.

    The order of pairs of single speeches thus does not depend on which of them share a speech.
    """
    numbers: dict[Hashable, int] = {}
    return [
        numbers.setdefault(("single", place) if conversation is None else conversation, len(numbers))
        for place, conversation in enumerate(conversations)
    ]


def batches(
    examples: Sequence[PreferencePair], optimizer: Optimizer, world_size: int, seed: int
) -> list[list[PreferencePair]]:
    """Return the batches of all epochs; see `plan`. Pairs of one conversation's turn follow each other."""
    prompts = numbered(tuple(example.prompt_ids) if example.conversation else None for example in examples)
    return [[examples[i] for i in batch] for batch in plan(len(examples), optimizer, world_size, seed, prompts)]
