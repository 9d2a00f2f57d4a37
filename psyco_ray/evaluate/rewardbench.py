"""RewardBench (Lambert et al. 2024): accuracy by subset, by section, and in all (paper tables 2 and 7).

Sections and weights are those of the benchmark's own code. The weight of a subset is its number of pairs, except that
math-prm, with 447 pairs, weighs 984: as much as the six code subsets together.

RewardBench 2 has several chosen or rejected responses in a row. The pairs of such a row are one item, and a model is
right on it if it is right on all of them. Its subset Ties has a score of its own (`ties`) for reward models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from psyco_ray.config.errors import InputError
from psyco_ray.evaluate import metrics, ties

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""The official sections: subsets and their weights."""

Sections = Mapping[str, Sequence[str]]
"""Subsets by section."""


class SectionMetrics(TypedDict):
    """A section of the benchmark."""

    accuracy: float
    pairs: int  # or items, where a row has several chosen or rejected responses


class SubsetMetrics(SectionMetrics):
    """A subset of the benchmark."""

    section: str
    weight: int


class BenchMetrics(TypedDict):
    """Metrics of a model on the benchmark; the last three are absent for rankers."""

    official: bool
    missing: list[str]  # official subsets without a pair
    pairs: int
    sections: dict[str, SectionMetrics]
    subsets: dict[str, SubsetMetrics]
    mean: float  # over the sections: the leaderboard's score
    micro: float  # over all pairs, dominated by the largest subsets
    auc: NotRequired[float]  # over all pairs in both orders, as the next two
    ece10: NotRequired[float]
    brier: NotRequired[float]


def bench(
    subsets: Sequence[str | None],
    chosen: Sequence[float],
    rejected: Sequence[float],
    sections: Sections | None = None,
    items: Sequence[str | None] | None = None,
) -> BenchMetrics:
    """Metrics of a reward model; it is right on a pair only if the chosen response scores strictly higher.

    It is right on an item if every chosen response scores higher than every rejected one.

    Args:
        subsets: each pair's subset.
        chosen: scores of the chosen responses.
        rejected: scores of the rejected responses.
        sections: None: the official sections if all subsets are official ones, else every subset is a section of its
            own. Sections other than the official ones weigh a subset by its number of pairs.
        items: each pair's item, as in COMPARISONS; None: every pair is its own.

    Raises:
        InputError: no pairs, a score is not finite, a pair has no subset, or `sections` does not match the subsets.
    """
    pooled = metrics.measure(chosen, rejected)
    by_item = rows_by_item(subsets, items)
    right = [float(min(chosen[row] for row in rows) > max(rejected[row] for row in rows)) for rows in by_item]
    result = _bench([subsets[rows[0]] for rows in by_item], right, sections, _ties(subsets, chosen, rejected, items))
    return {**result, "auc": pooled["auc"], "ece10": pooled["ece10"], "brier": pooled["brier"]}


def _ties(
    subsets: Sequence[str | None],
    chosen: Sequence[float],
    rejected: Sequence[float],
    items: Sequence[str | None] | None,
) -> dict[str, float]:
    """The score of RewardBench 2's subset Ties, if there is one."""
    rows = [row for row, subset in enumerate(subsets) if subset == ties.SUBSET]
    if items is None or not ties.has_ids([items[row] for row in rows]):
        return {}
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        right, wrong = scores.setdefault(str(items[row]), ([], []))
        right.append(chosen[row])
        wrong.append(rejected[row])
    return {ties.SUBSET: ties.score(scores)}


def bench_ranked(
    subsets: Sequence[str | None],
    first_right: Sequence[bool | None],
    second_right: Sequence[bool | None],
    sections: Sections | None = None,
    items: Sequence[str | None] | None = None,
) -> BenchMetrics:
    """Metrics of a generative model that chose the better response of every pair, in both orders.

    Args:
        subsets: each pair's subset.
        first_right: whether it chose the chosen response where that came first; None (unreadable) is wrong.
        second_right: the same where the chosen response came second.
        sections: as in `bench`.
        items: as in `bench`; the share of an item is that of its worst pair.

    Raises:
        InputError: no pairs, a pair has no subset, or `sections` does not match the subsets.
    """
    shares = metrics.shares_right(first_right, second_right)
    by_item = rows_by_item(subsets, items)
    right = [min(shares[row] for row in rows) for rows in by_item]
    return _bench([subsets[rows[0]] for rows in by_item], right, sections)


def rows_by_item(subsets: Sequence[str | None], items: Sequence[str | None] | None) -> list[list[int]]:
    """The rows of each item of a subset, in the order of their first rows; a row without an item is its own."""
    rows: dict[object, list[int]] = {}
    for row, (subset, item) in enumerate(zip(subsets, items or [None] * len(subsets), strict=True)):
        rows.setdefault(row if item is None else (subset, item), []).append(row)
    return list(rows.values())


def _bench(
    subsets: Sequence[str | None],
    right: Sequence[float],
    sections: Sections | None,
    scores: Mapping[str, float] | None = None,
) -> BenchMetrics:
    """Metrics by subset; `scores` stand for the accuracies of some."""
    scores = scores or {}
    right_by_subset: dict[str, list[float]] = {}
    for row, (subset, share) in enumerate(zip(subsets, right, strict=True), start=1):
        if subset is None:
            raise InputError(
                f"pair {row} of the benchmark has no subset, or a text in its place; give the column `subset` names of "
                "four words at most"
            )
        right_by_subset.setdefault(subset, []).append(share)
    if not right_by_subset:
        raise InputError("there are no pairs to measure a benchmark on; take a file that has some")
    counts = {subset: len(shares) for subset, shares in right_by_subset.items()}
    known = {subset for weights in SECTIONS.values() for subset in weights}
    official = sections is None and set(counts) <= known
    weights = SECTIONS if official else _weights_by_pairs(counts, sections)
    by_subset: dict[str, SubsetMetrics] = {
        subset: {
            "accuracy": scores.get(subset, sum(right_by_subset[subset]) / counts[subset]),
            "pairs": counts[subset],
            "section": section,
            "weight": weight,
        }
        for section, section_weights in weights.items()
        for subset, weight in section_weights.items()
        if subset in counts
    }
    by_section: dict[str, SectionMetrics] = {}
    for section in weights:
        rows = [row for row in by_subset.values() if row["section"] == section]
        if rows:
            total = sum(row["weight"] for row in rows)
            accuracy = sum(row["accuracy"] * row["weight"] for row in rows) / total
            by_section[section] = {"accuracy": accuracy, "pairs": sum(row["pairs"] for row in rows)}
    return {
        "official": official,
        "missing": sorted(known - set(counts)) if official else [],
        "pairs": len(right),
        "sections": by_section,
        "subsets": by_subset,
        "mean": sum(row["accuracy"] for row in by_section.values()) / len(by_section),
        "micro": sum(right) / len(right),
    }


def _weights_by_pairs(counts: Mapping[str, int], sections: Sections | None) -> dict[str, dict[str, int]]:
    """Sections with each subset's number of pairs as its weight."""
    if sections is None:
        return {subset: {subset: count} for subset, count in counts.items()}
    names = [subset for section in sections.values() for subset in section]
    for subset in names:
        if names.count(subset) > 1:
            raise InputError(f"subset {subset} is named twice in the benchmark's sections; name it in one")
    for subset in names:
        if subset not in counts:
            raise InputError(f"the benchmark's sections name the subset {subset}; it has {', '.join(sorted(counts))}")
    for subset in counts:
        if subset not in names:
            raise InputError(f"subset {subset} is in none of the benchmark's sections {', '.join(sections)}; add it")
    return {name: {subset: counts[subset] for subset in section} for name, section in sections.items()}
