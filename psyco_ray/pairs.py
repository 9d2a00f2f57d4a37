"""From scored or rated responses to preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from psyco_ray.records import PRINCIPLES, Example, Group

Ratings = Mapping[str, int]
"""Principle -> rating of 1 to 5, all seven of them."""


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """Positions of the highest and the lowest score, the first of equals; None where all are equal (paper §4.2)."""
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return None if scores[best] == scores[worst] else (best, worst)


def pair_of(group: Group, model: str) -> Example | None:
    """The preference pair of a group by a reward model; None where no response is better than another.

    Two responses of the same text teach nothing and make no pair either.
    """
    ends = best_and_worst(group.scores[model])
    if ends is None:
        return None
    best, worst = (group.responses[i] for i in ends)
    if best.token_ids == worst.token_ids:
        return None
    return Example(group.prompt.speech_id, group.prompt.token_ids, best.token_ids, worst.token_ids)


def overall(ratings: Ratings, weights: Mapping[str, float]) -> Fraction:
    """The mean rating of a response, exactly: as floats, a gap of exactly 1 is often a little less.

    Args:
        ratings: one rating for every principle.
        weights: of principles that shall count other than 1.
    """
    shares = {name: Fraction(str(weights.get(name, 1))) for name in PRINCIPLES}
    return sum((shares[name] * ratings[name] for name in PRINCIPLES), Fraction()) / sum(shares.values())


def gap_pairs(rated: Mapping[str, Ratings], weights: Mapping[str, float], min_gap: float) -> list[tuple[str, str]]:
    """All pairs of responses whose mean ratings differ by the gap or more (paper §3.3, training).

    Args:
        rated: name of a response -> its ratings.
        weights: of principles that shall count other than 1.
        min_gap: smallest difference of the means, in rating points.

    Returns:
        The names of chosen and rejected; the widest gaps first, then by name.
    """
    means = {name: overall(ratings, weights) for name, ratings in rated.items()}
    least = Fraction(str(min_gap))
    found = [(a, b) for a in means for b in means if means[a] - means[b] >= least]
    return sorted(found, key=lambda pair: (means[pair[1]] - means[pair[0]], pair))


def extreme_pair(rated: Mapping[str, Ratings], weights: Mapping[str, float], min_gap: float) -> list[tuple[str, str]]:
    """The pair of the highest and the lowest mean, if their gap does; the first by name of equals (paper, testing)."""
    return gap_pairs(rated, weights, min_gap)[:1]
