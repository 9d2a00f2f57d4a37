"""Intervals and comparisons over held-out speeches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from statsmodels.stats.proportion import proportion_confint

Interval = tuple[float, float]


def wilson(wins: float, total: int) -> Interval:
    """95 % Wilson score interval of a win rate; a tie counts as half a win.

    Args:
        wins: may be fractional, at most `total`.
        total: independent comparisons, one per speech; without any the interval is [0, 1].
    """
    return proportion_confint(wins, total, method="wilson") if total else (0.0, 1.0)


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = 2000) -> Interval:
    """95 % percentile bootstrap interval of the mean of independent values, one per speech."""
    array = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(array), (draws, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return (float(low), float(high))


def win_share(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of pairs in which our response to a speech scores above theirs; a tie counts as half."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    return sum(wins) / len(wins)
