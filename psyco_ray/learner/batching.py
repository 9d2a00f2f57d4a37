"""Batches of a training, their shards by rank, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from psyco_ray.config.errors import InputError
from psyco_ray.config.optimizer import Optimizer
from psyco_ray.models.layout import common_start
from psyco_ray.run.types import PreferencePair

MicroBatch = list[PreferencePair]
"""Pairs of one forward and backward pass."""


Computed = Literal["packed", "shared", "plain"]
"""How a model computes the pairs of a pass: a prompt once for its responses; also the start that all prompts share
once; each conversation in a row of its own, as long as the longest."""


def plan_step(
    batch: Sequence[PreferencePair], world_size: int, max_tokens: int, computed: Computed = "packed"
) -> list[list[MicroBatch]]:
    """Shard a batch over ranks, each with the same number of passes, longest pairs first.

    Pairs of a pass have similar lengths, because rows are as long as the longest pair; what computes a shared start
    needs no rows.

    Args:
        batch: pairs of the step.
        world_size: number of ranks.
        max_tokens: limit of a pass, padding included. A pass exceeds it only if a single pair does, or if there are too
            few pairs for one more pass on every rank.
        computed: how the model computes a pass.

    Returns:
        For every rank its passes, each with at least one pair.

    Raises:
        InputError: there are fewer pairs than ranks.
    """
    if len(batch) < world_size:
        raise InputError(f"a batch of {len(batch)} pairs cannot be shared by {world_size} ranks")

    shared = common_start([pair.prompt_ids for pair in batch]) if computed == "shared" else 0

    def size_of(pair: PreferencePair) -> int:
        return pair.padded_tokens if computed == "plain" else pair.tokens - shared

    def tokens_of(pairs: Sequence[PreferencePair]) -> int:
        """Of the rank with the most."""
        if computed == "shared":
            return shared + max(sum(map(size_of, _deal(pairs, world_size, rank))) for rank in range(world_size))
        return size_of(pairs[0]) * math.ceil(len(pairs) / world_size)

    remaining = sorted(batch, key=lambda e: (-size_of(e), e.key))
    passes: list[list[PreferencePair]] = []
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
    return [[_deal(pairs, world_size, rank) for pairs in passes] for rank in range(world_size)]


def _deal(pairs: Sequence[PreferencePair], world_size: int, rank: int) -> MicroBatch:
    """Return a rank's share of a pass, dealt back and forth so that every rank gets long and short pairs."""
    rounds = [pairs[i : i + world_size] for i in range(0, len(pairs), world_size)]
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


def plan(count: int, optimizer: Optimizer, world_size: int, seed: int) -> list[list[int]]:
    """Return the batches of all epochs as indices of pairs, each epoch in a new order.

    A last batch with fewer pairs than ranks joins the batch before.

    Raises:
        InputError: there are fewer pairs than ranks.
    """
    if count < world_size:
        raise InputError(f"{count} pairs cannot be shared by {world_size} ranks; give more pairs or fewer ranks")
    rng = np.random.default_rng(seed)
    size = optimizer.batch_size
    planned: list[list[int]] = []
    for _ in range(optimizer.epochs):
        order = rng.permutation(count).tolist()
        epoch = [order[i : i + size] for i in range(0, count, size)]
        if len(epoch) > 1 and len(epoch[-1]) < world_size:
            last = epoch.pop()
            epoch[-1] = epoch[-1] + last
        planned += epoch
    return planned


def batches(
    examples: Sequence[PreferencePair], optimizer: Optimizer, world_size: int, seed: int
) -> list[list[PreferencePair]]:
    """Return the batches of all epochs; see `plan`."""
    return [[examples[i] for i in batch] for batch in plan(len(examples), optimizer, world_size, seed)]
