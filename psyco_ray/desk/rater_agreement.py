"""Agreement of annotators with each other and with a judge, their drift, and their preference for a side.

All choices are about an item's responses, whatever side they were shown on: 1 for the first, -1 for the second, 0 for a
tie. Items of one conversation are not independent: intervals take whole conversations where `conversations` names them.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.desk.judgements import Judgement
from psyco_ray.evaluate.agreement import cohen_kappa, krippendorff_alpha, percent
from psyco_ray.evaluate.stats import clustered_mean, clustered_wilson, wilson

ASPECTS = ("overall", *PRINCIPLES)
"""What a pair is judged by."""

BLOCK = 20
"""Judgements of an annotator in a block of `drift`."""

Labels = Mapping[str, Mapping[str, Any]]
"""The judge's choice by item and aspect: 1, -1, or 0 for none."""

Conversations = Mapping[str, str] | None
"""The conversation of each item; None: each is of its own."""

Ratings = dict[str, dict[int, float]]
"""Ratings by item and person."""


def between(
    judgements: Sequence[Judgement], kind: Literal["pair", "scores"], seed: int, conversations: Conversations = None
) -> dict[str, Any]:
    """Agreement of the annotators, by aspect.

    Args:
        judgements: complete ones of this kind, one for each item and person.
        kind: choices between two responses, or scores from 1 to 5, of which each response is an item.
        seed: of the bootstrap.
        conversations: of the items.

    Returns:
        By aspect (scores have no overall): the number of `items` that two or more have judged, of `raters`, and with
        their bootstrap intervals `percent` (equal among all pairs of judgements of an item), `kappa` (Cohen's;
        quadratic weights for scores; None unless there are exactly two raters) and `alpha` (Krippendorff's; nominal for
        choices, ordinal for scores), as `evaluate.agreement` computes them.
    """
    by_aspect = choices(judgements) if kind == "pair" else _scores(judgements)
    return {aspect: _measures(ratings, kind, seed, conversations) for aspect, ratings in by_aspect.items()}


def with_labels(
    judgements: Sequence[Judgement], labels: Labels, seed: int, conversations: Conversations = None
) -> dict[str, Any]:
    """Agreement of the annotators with a judge's labels, on pairs whose label names a response.

    Returns:
        `people`: by person and aspect the number of `items` compared, of `equal` choices, their `share` and its
        `wilson` interval. `majority`: the same of the choice of most annotators, by aspect, with `kappa` and `alpha`.
        An aspect without items is None. A tie of an annotator is not equal to a label; items without a majority are
        left out of it.
    """
    people: dict[int, dict[str, Any]] = {person: {} for person in sorted({j.person_id for j in judgements})}
    majority: dict[str, Any] = {}
    for aspect, by_item in choices(judgements).items():
        named = {item: label for item in by_item if (label := labels.get(item, {}).get(aspect))}
        for person, compared in people.items():
            own = {item: (by_item[item][person], label) for item, label in named.items() if person in by_item[item]}
            compared[aspect] = _equal(own, conversations)
        most = {item: choice for item in named if (choice := _most(by_item[item].values())) is not None}
        both = {item: (choice, named[item]) for item, choice in most.items()}
        majority[aspect] = _equal(both, conversations)
        if both:
            pairs, clusters = [*both.values()], _clusters(both, conversations)
            majority[aspect] |= {
                "kappa": asdict(cohen_kappa(pairs, seed=seed, clusters=clusters)),
                "alpha": asdict(krippendorff_alpha(pairs, "nominal", seed=seed, clusters=clusters)),
            }
    return {"people": people, "majority": majority}


def with_ratings(
    judgements: Sequence[Judgement],
    facts: Mapping[str, Mapping[str, Any]],
    seed: int,
    conversations: Conversations = None,
) -> dict[str, Any]:
    """The annotators' scores beside those of a judge.

    Args:
        judgements: of scores, complete.
        facts: by item; its `ratings` hold the judge's scores by response and principle.
        seed: of the bootstrap.
        conversations: of the items.

    Returns:
        By principle with rated responses: their number as `items`, the mean `difference` of the annotators' mean score
        minus the judge's with its bootstrap `interval`, and the `share` of differences of at most one point with its
        `wilson` interval.
    """
    found = {}
    for principle, by_response in _scores(judgements).items():
        differences: dict[str, float] = {}
        for response, by_person in sorted(by_response.items()):
            item, number = response.rsplit("/", 1)
            ratings = facts[item].get("ratings") or []
            rating = ratings[int(number)].get(principle) if int(number) < len(ratings) else None
            if rating is not None:
                differences[response] = statistics.fmean(by_person.values()) - rating
        if differences:
            values, clusters = [*differences.values()], _clusters(differences, conversations) or [*differences]
            near = [float(abs(difference) <= 1) for difference in values]
            found[principle] = {
                "items": len(values),
                "difference": statistics.fmean(values),
                "interval": clustered_mean(values, clusters, seed),
                "share": sum(near) / len(near),
                "wilson": clustered_wilson(near, clusters),
            }
    return found


def drift(
    judgements: Sequence[Judgement], block: int = BLOCK, conversations: Conversations = None
) -> dict[int, dict[str, Any]]:
    """How each annotator's agreement with the others and pace change, in blocks of judgements by time.

    Returns:
        By person: `blocks`, each with the numbers of its `first` and `last` judgement, of `items` compared with the
        choice of most others, of `equal` ones, their `share` with its `wilson` interval (None without items), and the
        median `seconds` an item; and `drifts`, whether the interval of the last block is wholly outside that of all
        before it.
    """
    by_item = choices(judgements)["overall"]
    found = {}
    for person in sorted({judgement.person_id for judgement in judgements}):
        own = sorted((j for j in judgements if j.person_id == person), key=lambda j: (j.saved_at, j.item_id))
        items = [judgement.item_id for judgement in own]
        compared = {item: both for item in items if (both := _with_others(by_item.get(item, {}), person)) is not None}
        starts = range(0, len(own), block)
        blocks = [
            {"first": start + 1, "last": min(start + block, len(own))}
            | (
                _equal(_of(compared, items[start : start + block]), conversations)
                or {"items": 0, "equal": 0, "share": None, "wilson": None}
            )
            | {"seconds": statistics.median(judgement.seconds for judgement in own[start : start + block])}
            for start in starts
        ]
        earlier = _equal(_of(compared, items[: starts[-1]]), conversations) if len(blocks) > 1 else None
        found[person] = {"blocks": blocks, "drifts": _apart(earlier, blocks[-1])}
    return found


def positions(judgements: Sequence[Judgement], swapped: Mapping[tuple[str, int], bool]) -> dict[int, dict[str, Any]]:
    """How often each annotator prefers the response on the left.

    Args:
        judgements: of pairs, complete.
        swapped: by item and person, whether the first response was shown on the right.

    Returns:
        By person: the number of overall `choices` without ties, of those for the `left`, their `share` with its
        `wilson` interval, and `one_sided`, whether the interval leaves out one half. Sides are drawn at random, so one
        half is expected.
    """
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for judgement in judgements:
        if choice := judgement.answer.get("overall"):
            left = (choice > 0) != swapped[judgement.item_id, judgement.person_id]
            counts[judgement.person_id]["left" if left else "right"] += 1
    found = {}
    for person, count in sorted(counts.items()):
        low, high = wilson(count["left"], count.total())
        found[person] = {
            "choices": count.total(),
            "left": count["left"],
            "share": count["left"] / count.total(),
            "wilson": (low, high),
            "one_sided": not low <= 0.5 <= high,
        }
    return found


def choices(judgements: Iterable[Judgement]) -> dict[str, Ratings]:
    """Choices between two responses by aspect, item and person."""
    found: dict[str, Ratings] = {aspect: defaultdict(dict) for aspect in ASPECTS}
    for judgement in judgements:
        answer = {"overall": judgement.answer.get("overall"), **(judgement.answer.get("principles") or {})}
        for aspect in ASPECTS:
            if answer.get(aspect) is not None:
                found[aspect][judgement.item_id][judgement.person_id] = float(answer[aspect])
    return found


def _scores(judgements: Iterable[Judgement]) -> dict[str, Ratings]:
    """Scores by principle, response and person."""
    found: dict[str, Ratings] = {principle: defaultdict(dict) for principle in PRINCIPLES}
    for judgement in judgements:
        for number, scores in enumerate(judgement.answer["scores"]):
            for principle in PRINCIPLES:
                if scores.get(principle) is not None:
                    found[principle][f"{judgement.item_id}/{number}"][judgement.person_id] = float(scores[principle])
    return found


def matrix(ratings: Ratings) -> NDArray[np.float64]:
    """Ratings as `evaluate.agreement` takes them: shape (items, raters) by their ids, NaN where missing."""
    people = sorted({person for by_person in ratings.values() for person in by_person})
    rows = [[ratings[item].get(person, np.nan) for person in people] for item in sorted(ratings)]
    return np.array(rows, dtype=float).reshape(len(rows), len(people))


def _measures(
    ratings: Ratings, kind: Literal["pair", "scores"], seed: int, conversations: Conversations
) -> dict[str, Any]:
    rows, clusters = matrix(ratings), _clusters(sorted(ratings), conversations)
    share = percent(rows, seed=seed, clusters=clusters)
    weights: Literal["quadratic"] | None = None if kind == "pair" else "quadratic"
    level: Literal["nominal", "ordinal"] = "nominal" if kind == "pair" else "ordinal"
    return {
        "items": share.items,
        "raters": rows.shape[1],
        "percent": asdict(share),
        "kappa": asdict(cohen_kappa(rows, weights, seed, clusters=clusters)) if rows.shape[1] == 2 else None,
        "alpha": asdict(krippendorff_alpha(rows, level, seed, clusters=clusters)),
    }


def _clusters(keys: Iterable[str], conversations: Conversations) -> list[str] | None:
    """The conversations of items, or of responses as `_scores` names them."""
    return None if conversations is None else [conversations[key.split("/")[0]] for key in keys]


def _equal(pairs: Mapping[str, tuple[float, float]], conversations: Conversations) -> dict[str, Any] | None:
    """How many pairs are of equal values, by item."""
    if not pairs:
        return None
    equal = [float(own == other) for own, other in pairs.values()]
    interval = clustered_wilson(equal, _clusters(pairs, conversations) or [*pairs])
    return {"items": len(pairs), "equal": int(sum(equal)), "share": sum(equal) / len(equal), "wilson": interval}


def _most(votes: Iterable[float]) -> float | None:
    """The choice of most; None where two choices are equally frequent, or nobody chose."""
    ranked = Counter(votes).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _with_others(by_person: Mapping[int, float], person: int) -> tuple[float, float] | None:
    others = _most(choice for other, choice in by_person.items() if other != person)
    return None if others is None or person not in by_person else (by_person[person], others)


def _of(compared: Mapping[str, tuple[float, float]], items: Iterable[str]) -> dict[str, tuple[float, float]]:
    return {item: compared[item] for item in items if item in compared}


def _apart(earlier: Mapping[str, Any] | None, last: Mapping[str, Any]) -> bool:
    if earlier is None or last["wilson"] is None:
        return False
    (low, high), (last_low, last_high) = earlier["wilson"], last["wilson"]
    return bool(last_high < low or last_low > high)
