"""Agreement between raters, with bootstrap intervals over the items they rated.

Ratings are an array with one row an item and one column a rater. They are numbers, for classes say 0, 1, 2; a missing
one is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Level = Literal["nominal", "ordinal", "interval"]

_Floats = NDArray[np.float64]
_Statistic = Callable[[_Floats], float]  # of how often each pattern of ratings occurs


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % percentile bootstrap interval; None where the data does not determine it.

    Draws in which the figure is not determined, as when all their ratings are equal, count in no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int  # with at least two ratings


def percent(ratings: ArrayLike, seed: int = 0, draws: int = 2000) -> Estimate:
    """How often two ratings of the same item are equal, as a share of all such pairs.

    Args:
        ratings: items x raters; NaN where one is missing.
        seed: of the bootstrap.
        draws: resamples of the items.
    """
    rows, counts = _patterns(_rated_twice(ratings))
    equal = rows[:, :, None] == rows[:, None, :]  # a missing rating equals nothing, not even itself
    rated = (~np.isnan(rows)).sum(axis=1)
    agreeing, pairs = equal.sum(axis=(1, 2)) - rated, rated * (rated - 1)
    return _bootstrap(counts, lambda weights: _ratio(weights @ agreeing, weights @ pairs), seed, draws)


def cohen_kappa(
    ratings: ArrayLike, weights: Literal["quadratic"] | None = None, seed: int = 0, draws: int = 2000
) -> Estimate:
    """Cohen's kappa of two raters; items that one of them left out do not count.

    Args:
        ratings: items x 2; NaN where one is missing.
        weights: None: any disagreement counts the same; quadratic: by the square of the difference of the ratings.
        seed: of the bootstrap.
        draws: resamples of the items.
    """
    rows, counts = _patterns(_rated_twice(ratings))
    assert rows.shape[1] == 2, f"kappa is of two raters, not {rows.shape[1]}"
    values, codes = np.unique(rows, return_inverse=True)
    first, second = codes.reshape(rows.shape).T
    distance = _distance(values, "interval" if weights else "nominal")

    def kappa(weight: _Floats) -> float:
        seen = np.zeros_like(distance)
        seen[first, second] = weight
        expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / weight.sum()
        return 1 - _ratio((seen * distance).sum(), (expected * distance).sum())

    return _bootstrap(counts, kappa, seed, draws)


def krippendorff_alpha(ratings: ArrayLike, level: Level, seed: int = 0, draws: int = 2000) -> Estimate:
    """Krippendorff's alpha of any number of raters; items with fewer than two ratings do not count.

    Args:
        ratings: items x raters; NaN where one is missing.
        level: what the numbers mean: classes, ranks, or points of a scale with equal steps.
        seed: of the bootstrap.
        draws: resamples of the items.
    """
    found = _rated_twice(ratings)
    values = np.unique(found[~np.isnan(found)])
    patterns, counts = _patterns((found[:, :, None] == values).sum(axis=1).astype(float))
    rated = patterns.sum(axis=1)

    def alpha(weights: _Floats) -> float:
        pairs = patterns.T @ (patterns * (weights / (rated - 1))[:, None])
        pairs -= np.diag(patterns.T @ (weights / (rated - 1)))  # a rating is not paired with itself
        totals = weights @ patterns
        distance = _distance(values, level, totals)
        expected = totals @ distance @ totals / (totals.sum() - 1)
        return 1 - _ratio((pairs * distance).sum(), expected)

    return _bootstrap(counts, alpha, seed, draws)


def _rated_twice(ratings: ArrayLike) -> _Floats:
    found = np.asarray(ratings, dtype=float)
    assert found.ndim == 2, f"ratings are items x raters, not {found.shape}"
    return found[(~np.isnan(found)).sum(axis=1) >= 2]


def _patterns(rows: _Floats) -> tuple[_Floats, NDArray[Any]]:
    """The distinct rows and how often each occurs: all that resampling has to know, and far fewer than the items."""
    return np.unique(rows, axis=0, return_counts=True)


def _distance(values: _Floats, level: Level, totals: _Floats | None = None) -> _Floats:
    """Squared difference between any two values; of ranks it depends on how many ratings lie between them."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "ordinal":
        assert totals is not None
        values = np.cumsum(totals) - totals / 2
    return (values[:, None] - values[None, :]) ** 2


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else np.nan


def _bootstrap(counts: NDArray[Any], statistic: _Statistic, seed: int, draws: int) -> Estimate:
    items = int(counts.sum())
    value = statistic(counts.astype(float)) if items else np.nan
    if np.isnan(value):
        return Estimate(None, None, None, items)
    generator = np.random.default_rng(seed)
    resampled = [statistic(generator.multinomial(items, counts / items).astype(float)) for _ in range(draws)]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), items)
