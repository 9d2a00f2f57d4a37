"""Which pairs a learner takes at a step, who of its ranks takes which, and at what learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Optimizer
from psyco_ray.run.types import PreferencePair

MicroBatch = list[PreferencePair]
"""Pairs that one forward and backward pass holds."""


def plan_step(batch: Sequence[PreferencePair], ranks: int, tokens: int) -> list[list[MicroBatch]]:
    """Share a batch among ranks: equally many passes on each, of pairs that are about as long, the longest first.

    The rows of a pass are as long as its longest pair, so pairs of one length leave little to fill up. No pass is above
    `tokens` with that, unless a single pair is, or pairs are too few to give each rank one more pass.

    Returns:
        For every rank its passes, each with at least one pair.

    Raises:
        InputError: there are fewer pairs than ranks.
    """
    if len(batch) < ranks:
        raise InputError(f"a batch of {len(batch)} pairs cannot be shared by {ranks} ranks")
    left = sorted(batch, key=lambda e: (-e.tokens, e.key))
    passes: list[list[PreferencePair]] = []
    while left:
        room = max(1, tokens // left[0].tokens) * ranks
        passes.append(left[:room])
        left = left[room:]
    lacking = ranks - len(passes[-1])
    if lacking > 0:
        rest, before = passes.pop(), passes.pop()
        passes += [before[:-lacking], before[-lacking:] + rest] if len(before) > ranks else [before + rest]
    return [[_dealt(of, ranks, rank) for of in passes] for rank in range(ranks)]


def _dealt(pairs: Sequence[PreferencePair], ranks: int, rank: int) -> MicroBatch:
    """A rank's share of a pass: forth and back over the ranks, so that nobody gets the longer ones all the time."""
    rounds = [pairs[i : i + ranks] for i in range(0, len(pairs), ranks)]
    places = [rank if number % 2 == 0 else ranks - 1 - rank for number in range(len(rounds))]
    return [of[place] for of, place in zip(rounds, places, strict=True) if place < len(of)]


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step 0 .. steps-1: linear warm-up, then the schedule down to `min_lr_ratio`."""
    warmup = math.ceil(optimizer.warmup_ratio * steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    left = 1 - done if optimizer.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return optimizer.learning_rate * (optimizer.min_lr_ratio + (1 - optimizer.min_lr_ratio) * left)


def plan(count: int, optimizer: Optimizer, ranks: int, seed: int) -> list[list[int]]:
    """The batches of all epochs as positions of pairs, each epoch shuffled anew; a small rest joins the batch before.

    Raises:
        InputError: there are fewer pairs than ranks.
    """
    if count < ranks:
        raise InputError(f"{count} pairs cannot be shared by {ranks} ranks; give more pairs or fewer ranks")
    order = np.random.default_rng(seed)
    size = optimizer.batch_size
    found: list[list[int]] = []
    for _ in range(optimizer.epochs):
        shuffled = order.permutation(count).tolist()
        epoch = [shuffled[i : i + size] for i in range(0, count, size)]
        if len(epoch) > 1 and len(epoch[-1]) < ranks:
            rest = epoch.pop()
            epoch[-1] = epoch[-1] + rest
        found += epoch
    return found


def batches(
    examples: Sequence[PreferencePair], optimizer: Optimizer, ranks: int, seed: int
) -> list[list[PreferencePair]]:
    """The batches of all epochs of pairs that are at hand; see `plan`."""
    return [[examples[i] for i in batch] for batch in plan(len(examples), optimizer, ranks, seed)]
