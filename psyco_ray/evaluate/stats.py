"""Intervals and comparisons over held-out speeches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap
from statsmodels.stats.proportion import proportion_confint

Interval = tuple[float, float]

MIN_FINISHED_SHARE = 0.8
"""Below this share of finished responses a result has a warning."""


def wilson(wins: float, total: int) -> Interval:
    """95 % Wilson score interval of a win rate; a tie counts as half a win.

    Args:
        wins: may be fractional, at most `total`.
        total: independent comparisons, one per speech; without any the interval is [0, 1].
    """
    if not total:
        return (0.0, 1.0)
    low, high = proportion_confint(wins, total, method="wilson")
    return (float(low), float(high))


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = 2000) -> Interval:
    """95 % percentile bootstrap interval of the mean of independent values, one per speech."""
    if len(values) == 1:  # which scipy refuses
        return (float(values[0]), float(values[0]))
    resampled = bootstrap(
        (values,), np.mean, n_resamples=draws, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return (float(resampled.low), float(resampled.high))


def win_share(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of pairs in which our response to a speech scores above theirs; a tie counts as half."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    return sum(wins) / len(wins)
