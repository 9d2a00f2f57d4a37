"""Intervals and comparisons over held-out speeches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]


def wilson(wins: float, total: int, z: float = 1.959964) -> Interval:
    """Wilson score interval of a win rate; a tie counts as half a win.

    Args:
        wins: of `total`, perhaps fractional.
        total: independent comparisons, one a speech.
        z: standard normal quantile; the default gives 95 %.
    """
    if not total:
        return (0.0, 1.0)
    rate = wins / total
    centre = (rate + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * (rate * (1 - rate) / total + z**2 / (4 * total**2)) ** 0.5 / (1 + z**2 / total)
    return (max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = 2000) -> Interval:
    """95 % percentile bootstrap interval of a mean over independent values, one a speech."""
    array = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(array), (draws, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return (float(low), float(high))


def win_share(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How often one of our responses to a speech scores above one of theirs, over all pairs; a tie counts as half."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    return sum(wins) / len(wins)
