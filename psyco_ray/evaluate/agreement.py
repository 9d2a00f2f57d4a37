"""Agreement between raters, with bootstrap intervals over the rated items.

Ratings form an array of shape (items, raters). They are numbers, for classes such as 0, 1, 2; NaN marks a missing one.
Items of one conversation are not independent: with `clusters`, the bootstrap draws whole clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.inter_rater import cohens_kappa

Level = Literal["nominal", "ordinal", "interval"]
Clusters = Sequence[Hashable] | None

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]
_Statistic = Callable[[_Counts], float]  # of the number of items with each rating pattern


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % percentile bootstrap interval; None where the data does not determine it.

    Resamples that do not determine the statistic, for example because all their ratings are equal, are left out of the
    interval. Where all items are of one cluster, the interval is not known.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int  # with at least two ratings


def percent(ratings: ArrayLike, seed: int = 0, draws: int = 2000, clusters: Clusters = None) -> Estimate:
    """Share of equal ratings among all pairs of ratings of the same item.

    Args:
        ratings: shape (items, raters); NaN where missing.
        seed: of the bootstrap.
        draws: number of resamples.
        clusters: of each item, such as its conversation; None: all are independent.
    """
    rows, drawn = _patterns(*_rated_twice(ratings, clusters))
    equal = rows[:, :, None] == rows[:, None, :]  # NaN equals nothing, not even itself
    rated = (~np.isnan(rows)).sum(axis=1)
    agreeing, pairs = equal.sum(axis=(1, 2)) - rated, rated * (rated - 1)
    return _bootstrap(drawn, lambda weights: float(weights @ agreeing / (weights @ pairs)), seed, draws)


def cohen_kappa(
    ratings: ArrayLike,
    weights: Literal["quadratic"] | None = None,
    seed: int = 0,
    draws: int = 2000,
    clusters: Clusters = None,
) -> Estimate:
    """Cohen's kappa of two raters (Cohen 1960, 1968), on the items that both rated.

    Args:
        ratings: shape (items, 2); NaN where missing.
        weights: None: all disagreements weigh the same; quadratic: the squared difference of the ratings.
        seed: of the bootstrap.
        draws: number of resamples.
        clusters: of each item, such as its conversation; None: all are independent.
    """
    rows, drawn = _patterns(*_rated_twice(ratings, clusters))
    assert rows.shape[1] == 2, f"kappa takes two raters, not {rows.shape[1]}"
    values, codes = np.unique(rows, return_inverse=True)
    first, second = codes.reshape(rows.shape).T
    table = np.zeros((len(values), len(values)))

    def kappa(occurrences: _Counts) -> float:
        table[first, second] = occurrences
        return float(cohens_kappa(table, weights and values, return_results=False, wt=weights))

    return _bootstrap(drawn, kappa, seed, draws)


def krippendorff_alpha(
    ratings: ArrayLike, level: Level, seed: int = 0, draws: int = 2000, clusters: Clusters = None
) -> Estimate:
    """Krippendorff's alpha of any number of raters, on the items with at least two ratings.

    The computation is that of Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": the disagreement within
    items over the disagreement between all ratings, each by a coincidence matrix of values.

    Args:
        ratings: shape (items, raters); NaN where missing.
        level: measurement level: classes, ranks, or points on a scale with equal steps.
        seed: of the bootstrap.
        draws: number of resamples.
        clusters: of each item, such as its conversation; None: all are independent.
    """
    rated, of = _rated_twice(ratings, clusters)
    values = np.unique(rated[~np.isnan(rated)])
    rows, drawn = _patterns((rated[:, :, None] == values).sum(axis=1), of)  # number of ratings by item and value
    patterns = rows.astype(float)
    others = patterns.sum(axis=1) - 1  # ratings that each rating of the item is compared with

    def alpha(occurrences: _Counts) -> float:
        weights = occurrences / others
        within = (patterns.T * weights) @ patterns - np.diag(weights @ patterns)
        totals = occurrences @ patterns  # ratings by value
        between = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
        disagreement = _disagreement(values, totals, level)
        return float(1 - (within * disagreement).sum() / (between * disagreement).sum())

    return _bootstrap(drawn, alpha, seed, draws)


def _disagreement(values: _Floats, totals: _Floats, level: Level) -> _Floats:
    """The squared difference between any two values, shape (values, values).

    Args:
        values: sorted.
        totals: number of ratings of each value; they decide the distance between ranks.
        level: of measurement.
    """
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # ranks that tie share their middle, and its distances are those of the ratings between two values
    scale = values if level == "interval" else np.cumsum(totals) - totals / 2
    return (scale[:, None] - scale[None, :]) ** 2


def _rated_twice(ratings: ArrayLike, clusters: Clusters) -> tuple[_Floats, Clusters]:
    """The items with two ratings or more, and their clusters."""
    rows = np.asarray(ratings, dtype=float)
    assert rows.ndim == 2, f"ratings have the shape (items, raters), not {rows.shape}"
    kept = (~np.isnan(rows)).sum(axis=1) >= 2
    return rows[kept], None if clusters is None else [of for of, keep in zip(clusters, kept, strict=True) if keep]


def _patterns(rows: NDArray[Any], clusters: Clusters) -> tuple[NDArray[Any], _Counts]:
    """The distinct rows, far fewer than items, and the number of times each occurs: all that resampling needs.

    Returns:
        Patterns of shape (patterns, columns). Counts of shape (patterns,) where every item is drawn by itself, else of
        shape (clusters, patterns).
    """
    found, places, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    numbers = {of: number for number, of in enumerate(dict.fromkeys(clusters or ()))}
    if clusters is None or len(numbers) == len(rows):
        return found, counts
    by_cluster = np.zeros((len(numbers), len(found)), dtype=counts.dtype)
    np.add.at(by_cluster, (np.array([numbers[of] for of in clusters]), places.ravel()), 1)
    return found, by_cluster


def _bootstrap(drawn: _Counts, statistic: _Statistic, seed: int, draws: int) -> Estimate:
    """The estimate of a statistic of the counts by pattern.

    Args:
        drawn: as `_patterns` returns them.
        statistic: of counts of shape (patterns,).
        seed: of the bootstrap.
        draws: number of resamples.
    """
    counts = drawn if drawn.ndim == 1 else drawn.sum(axis=0)
    items = int(counts.sum())
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 where all ratings are equal
        value = statistic(counts) if items else np.nan
        if np.isnan(value):
            return Estimate(None, None, None, items)
        if drawn.ndim > 1 and len(drawn) == 1:
            return Estimate(float(value), None, None, items)
        # scipy.stats.bootstrap resamples items one by one; patterns are drawn with their counts at once
        generator = np.random.default_rng(seed)
        resampled = [statistic(_resample(drawn, items, generator)) for _ in range(draws)]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), items)


def _resample(drawn: _Counts, items: int, generator: np.random.Generator) -> _Counts:
    if drawn.ndim == 1:
        return generator.multinomial(items, drawn / items)
    clusters = len(drawn)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters)) @ drawn
