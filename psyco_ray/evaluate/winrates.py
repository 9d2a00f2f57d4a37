"""Win rates over the test speeches, with length control and significance (paper §4.2, table 3).

An outcome belongs to one context: 1 our response won, 0 the opponent's won, 0.5 a tie, None an unreadable verdict. A
forced choice has no ties unless it is made in both orders (`strict`). Contexts of one conversation are no independent
observations: intervals and tests take whole conversations where they are given as `clusters`.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from statsmodels.discrete.discrete_model import Logit
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

from psyco_ray.config.errors import InputError
from psyco_ray.evaluate import stats

Outcome = float | None

TOPICS = {
    "Core Mental Health Issues": "Mental Issues",
    "Emotional Well-being and Coping Strategies": "Emotional Well-being",
    "Relationships and Interpersonal Dynamics": "Relationships",
    "Life Transitions and Challenges": "Life Changes",
    "Social Issues": "Social Issues",
    "Youth and Development": "Youth",
    "Crisis and Safety Concerns": "Safety",
    "Special Topics": "Special Topics",
}
"""The coarse topics in the order of table 3, with their titles there."""

OVERALL = "Overall"
NO_TOPIC = "No topic"

LAST_TURN = 4
"""From this turn on, the turns of conversations are counted together."""

_Floats = NDArray[np.float64]


class WinRate(TypedDict):
    """The result of `win_rate`."""

    rate: float
    wilson95: list[float]
    bootstrap95: list[float]  # over speeches
    speeches: int
    wins: int
    ties: int
    unreadable: int
    decided: float | None  # rate among speeches that are neither tied nor unreadable; None without any


class LengthControlled(TypedDict):
    """The result of `length_controlled`."""

    rate: float  # at equal length
    ci95: list[float] | list[None]  # None where all speeches are of one conversation
    slope: float | None  # logits from equal length to far longer; None if the lengths do not vary
    separable: bool  # whether the prior was needed


class McNemar(TypedDict):
    """The result of `mcnemar`."""

    a_only: int  # speeches on which the first model did better
    b_only: int
    p: float  # probability of counts at least this uneven if both models are equally good


class LengthFacts(TypedDict):
    """The result of `length_facts`."""

    mean_words: float
    opponent_mean_words: float
    length_ratio: float


def win_rate(outcomes: Sequence[Outcome], seed: int, clusters: Sequence[Hashable] | None = None) -> WinRate:
    """The win rate over all speeches: a tie is half a win, an unreadable verdict a loss.

    Args:
        outcomes: one per speech.
        seed: of the bootstrap.
        clusters: the conversation of each; None: all are independent.

    Raises:
        InputError: there are no outcomes.
    """
    if not outcomes:
        raise InputError("there is no outcome to take a win rate of")
    points = _points(outcomes)
    clusters = range(len(points)) if clusters is None else clusters
    wins, ties = int((points == 1).sum()), int((points == 0.5).sum())
    unreadable = sum(outcome is None for outcome in outcomes)
    decided = len(points) - ties - unreadable
    return {
        "rate": float(points.mean()),
        "wilson95": list(stats.clustered_wilson(points.tolist(), clusters)),
        "bootstrap95": list(stats.clustered_mean(points.tolist(), clusters, seed)),
        "speeches": len(points),
        "wins": wins,
        "ties": ties,
        "unreadable": unreadable,
        "decided": wins / decided if decided else None,
    }


def by_topic(
    outcomes: Sequence[Outcome],
    topics: Sequence[str | None],
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, WinRate]:
    """The win rate of every coarse topic that occurs, in the order and with the titles of table 3, and overall.

    Args:
        outcomes: one per speech.
        topics: the coarse topic of each speech, as its full name or title; None: no topic.
        seed: of the bootstrap.
        clusters: as in `win_rate`.

    Returns:
        `win_rate` by title: the eight topics, other topics by name, NO_TOPIC, and last OVERALL.
    """
    titles = [NO_TOPIC if topic is None else TOPICS.get(topic, topic) for topic in topics]
    others = sorted({*titles} - {*TOPICS.values(), NO_TOPIC})
    order = [title for title in (*TOPICS.values(), *others, NO_TOPIC) if title in titles]
    rates = {
        title: win_rate(
            selected(outcomes, [of == title for of in titles]),
            seed,
            None if clusters is None else selected(clusters, [of == title for of in titles]),
        )
        for title in order
    }
    return rates | {OVERALL: win_rate(outcomes, seed, clusters)}


def selected(values: Sequence[Any], kept: Sequence[bool]) -> list[Any]:
    """The values that are kept."""
    return [value for value, keep in zip(values, kept, strict=True) if keep]


def turn_title(turn: int) -> str:
    """The group of a turn in tables: 1, 2, 3, and 4+ for all later ones."""
    return f"{LAST_TURN}+" if turn >= LAST_TURN else str(turn)


def length_controlled(
    outcomes: Sequence[Outcome], differences: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> LengthControlled:
    """The win rate expected for responses of equal length.

    A logistic regression explains the outcome by a constant and by tanh(d / s), where d is our number of words minus
    theirs and s the root mean square of all d. This follows AlpacaEval 2 (Dubois et al. 2024), whose tanh keeps a few
    very long responses from determining the slope. The mean of d is not subtracted: 0 still means equal length, and a
    constant difference does not end on the flat part of the curve. The interval is Wald's on the logit.

    If length separates wins from losses, or all outcomes are the same, no finite fit exists. Each coefficient then gets
    the weak log-F(1, 1) prior (Greenland and Mansournia 2015): half a win and half a loss.

    Args:
        outcomes: one per speech; None is a loss.
        differences: words of our response minus words of theirs, one per speech.
        clusters: as in `win_rate`; the interval's variance is then that of clusters, but never less than that of
            independent speeches, as in `stats.clustered_wilson`. Of one cluster it is unknown, and so the interval.

    Raises:
        InputError: there are no outcomes.
    """
    if not outcomes:
        raise InputError("there is no outcome to control for length")
    won = _points(outcomes)
    scaled = length_covariate(differences)
    design = np.column_stack([np.ones(len(won)), *([] if np.ptp(scaled) < 1e-9 else [scaled])])
    separable = _separable(won, design)
    groups = _numbered(clusters or ())
    if separable:
        prior = np.eye(design.shape[1])  # one row per coefficient, each with the outcome of a tie
        design, won = np.vstack([design, prior]), np.append(won, np.full(len(prior), 0.5))
        groups += [*range(len(groups), len(won))]
    count = len(outcomes) if clusters is None else len({*clusters})
    dependent, unknown = count < len(outcomes), count == 1 < len(outcomes)
    model = Logit(won, design)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerfectSeparationWarning)  # the prior leaves a finite fit
        fit = widest = model.fit(disp=False, tol=1e-10)
        if dependent and not unknown:
            by_cluster = {"cov_type": "cluster", "cov_kwds": {"groups": np.array(groups)}}
            widest = max(fit, model.fit(disp=False, tol=1e-10, **by_cluster), key=lambda found: float(found.bse[0]))
    assert fit.mle_retvals["converged"], "the regression did not converge"
    return {
        "rate": float(expit(fit.params[0])),
        "ci95": [None, None] if unknown else expit(widest.conf_int()[0]).tolist(),
        "slope": float(fit.params[1]) if len(fit.params) > 1 else None,
        "separable": separable,
    }


def length_covariate(differences: Sequence[float]) -> _Floats:
    """The regression's covariate tanh(d / s), between -1 and 1; 0 for equal lengths."""
    words = np.asarray(differences, dtype=float)
    scale = np.sqrt((words**2).mean())
    return np.tanh(words / scale) if scale > 0 else words


def mcnemar(
    ours_a: Sequence[Outcome], ours_b: Sequence[Outcome], clusters: Sequence[Hashable] | None = None
) -> McNemar:
    """McNemar's exact two-sided test of two models against the same opponent; with ties, the sign test.

    Args:
        ours_a: outcomes of one model; None is a loss.
        ours_b: outcomes of the other model on the same speeches.
        clusters: as in `win_rate`; then conversations are counted, by the sum over their contexts.
    """
    gaps = _points(ours_a) - _points(ours_b)
    if clusters is not None:
        gaps = np.bincount(_numbered(clusters), weights=gaps).astype(np.float64)
    a_only, b_only = int((gaps > 0).sum()), int((gaps < 0).sum())
    p = float(mcnemar_test([[0, a_only], [b_only, 0]], exact=True).pvalue)
    return {"a_only": a_only, "b_only": b_only, "p": p}


def strict(first: bool | None, second: bool | None) -> Outcome:
    """The outcome of a pair that was shown in both orders.

    Args:
        first: whether our response was chosen where it was shown first; None: unreadable.
        second: the same where it was shown second.

    Returns:
        1 if ours was chosen in both orders, 0 if in neither, 0.5 if the orders disagree, None if one is unreadable.
    """
    if first is None or second is None:
        return None
    return (int(first) + int(second)) / 2  # a bool of numpy would not add up


def length_facts(ours: Sequence[int], theirs: Sequence[int]) -> LengthFacts:
    """Mean number of words on both sides and their ratio, as a check of the length constraint.

    Args:
        ours: words of our response, one per speech.
        theirs: words of the opponent's response, none of them 0.
    """
    our_mean, their_mean = float(np.mean(ours)), float(np.mean(theirs))
    return {"mean_words": our_mean, "opponent_mean_words": their_mean, "length_ratio": our_mean / their_mean}


def _numbered(clusters: Sequence[Hashable]) -> list[int]:
    """The clusters as numbers from 0, in the order in which they occur."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    return [numbers[cluster] for cluster in clusters]


def _points(outcomes: Sequence[Outcome]) -> _Floats:
    return np.array([0.0 if outcome is None else outcome for outcome in outcomes], dtype=float)


def _separable(won: _Floats, design: _Floats) -> bool:
    """Whether a threshold on the length separates wins from losses, so that no finite fit exists; a tie is both."""
    lengths = design[:, -1]
    wins, losses = lengths[won > 0], lengths[won < 1]
    if not len(wins) or not len(losses):
        return True
    if design.shape[1] == 1:
        return False
    return bool(wins.min() >= losses.max() or losses.min() >= wins.max())
