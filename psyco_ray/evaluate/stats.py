"""Intervals and comparisons over held-out speeches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import bootstrap
from statsmodels.stats.proportion import proportion_confint

Interval = tuple[float, float]

MIN_FINISHED_SHARE = 0.8
"""Below this share of finished responses a result has a warning."""


def wilson(wins: float, total: float) -> Interval:
    """95 % Wilson score interval of a win rate; a tie counts as half a win.

    Args:
        wins: may be fractional, at most `total`.
        total: independent comparisons, one per speech, or an effective number of them; without any the interval is
            [0, 1].
    """
    if not total:
        return (0.0, 1.0)
    low, high = proportion_confint(wins, total, method="wilson")
    return (float(low), float(high))


def clustered_wilson(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """95 % Wilson score interval of the mean of values between 0 and 1, of which those of a cluster are dependent.

    The number of values is divided by the design effect, the mean's variance by clusters relative to that of as many
    independent values (Korn and Graubard 1998); at least 1, so that the interval is never narrower than `wilson`.

    Args:
        values: such as outcomes.
        clusters: of each value, such as its conversation.
    """
    points = np.asarray(values, dtype=float)
    sums = np.array(list(_sums(points - points.mean(), clusters).values()))
    groups, independent = len(sums), float(((points - points.mean()) ** 2).sum())
    if groups == len(points):
        return wilson(float(points.sum()), groups)
    if not independent:  # without variation all that is known is the number of clusters
        return wilson(float(points.mean()) * groups, groups)
    effect = max(1.0, float((sums**2).sum()) / independent)
    size = len(points) / effect
    return wilson(float(points.mean()) * size, size)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable], seed: int, draws: int = 2000) -> Interval:
    """95 % percentile bootstrap interval of the mean of values; whole clusters are drawn."""
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    if len(groups) == len(values):
        return bootstrap_mean(values, seed, draws)
    return bootstrap_clusters([*groups.values()], seed, draws)


def _sums(values: np.ndarray, clusters: Sequence[Hashable]) -> dict[Hashable, float]:
    """Sums of the values by cluster."""
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(value)
    return sums


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = 2000) -> Interval:
    """95 % percentile bootstrap interval of the mean of independent values, one per speech."""
    if len(values) == 1:  # which scipy refuses
        return (float(values[0]), float(values[0]))
    resampled = bootstrap(
        (values,), np.mean, n_resamples=draws, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return (float(resampled.low), float(resampled.high))


def bootstrap_clusters(clusters: Sequence[Sequence[float]], seed: int, draws: int = 2000) -> Interval:
    """95 % percentile bootstrap interval of the mean of values that are independent between clusters alone.

    Whole clusters are drawn, such as all contexts of a conversation; clusters of one value each are plain values. The
    quantiles are taken as they are: unlike `clustered_wilson`, it can be narrower than that of independent values, and
    of one cluster, or of clusters of equal means and sizes, it has no width.
    """
    sums, sizes = np.array([sum(values) for values in clusters]), np.array([len(values) for values in clusters])
    drawn = np.random.default_rng(seed).integers(len(clusters), size=(draws, len(clusters)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return (float(low), float(high))


def win_share(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of pairs in which our response to a speech scores above theirs; a tie counts as half."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    return sum(wins) / len(wins)
