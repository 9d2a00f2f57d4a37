"""The score of RewardBench 2's subset Ties (Malik et al. 2025), as the leaderboard has it.

A question has several right answers (its item `tied:ID`), and the same question is asked so that one answer is right
(`ref:ID`). A good reward model scores every right answer above every wrong one, and differs less between right answers
than between right and wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

Scores = tuple[Sequence[float], Sequence[float]]
"""Of the right and of the wrong answers."""

SUBSET = "Ties"
_KINDS = ("tied", "ref")


def has_ids(items: Sequence[str | None]) -> bool:
    """Whether all items are named as in the benchmark, so that both forms of a question are known."""
    return bool(items) and all(item is not None and item.partition(":")[0] in _KINDS for item in items)


def score(items: Mapping[str, Scores]) -> float:
    """The score of the subset: accuracies of both kinds (0.3 each), margins (0.2 each of two), and a tie break (0.01).

    Args:
        items: by name, such as `tied:3` and `ref:3`.
    """
    margins: dict[str, dict[str, float]] = {kind: {} for kind in _KINDS}  # worst right answer above the best wrong one
    spreads: dict[str, float] = {}  # between the right answers
    for item, (right, wrong) in items.items():
        kind, _, question = item.partition(":")
        margins[kind][question] = min(right) - max(wrong)
        if kind == "tied":
            spreads[question] = max(right) - min(right)
    accuracies = [fmean(margin > 0 for margin in of.values()) if of else 0.0 for of in margins.values()]
    total = 0.3 * sum(accuracies)
    both = [question for question in spreads if question in margins["ref"]]
    if not both:
        return total
    hard = {question: min(margins[kind][question] for kind in _KINDS) for question in both}
    total += 0.2 * fmean(margins["tied"][question] > spreads[question] for question in both)
    total += 0.2 * fmean(hard[question] > spreads[question] for question in both)
    return total + 0.01 * fmean(_tie_break(hard[question], spreads[question]) for question in both)


def _tie_break(margin: float, spread: float) -> float:
    """The hyperbolic tangent of how many times the margin is above the spread; 0 where both are 0."""
    if spread == 0:
        return math.copysign(1.0, margin) if margin else 0.0
    return math.tanh(margin / spread - 1)
