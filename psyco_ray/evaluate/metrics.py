"""Accuracy and calibration of scores on preference pairs (paper §4.1, tables 1, 2, 7).

A pair counts in both orders, as the probability that its first response is the better one, and as whether it is. Both
classes therefore have the same size, and the order in which a file stores the responses does not matter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import brier_score_loss, roc_auc_score

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.evaluate.stats import wilson

TEMPERATURES = (0.01, 100.0)
"""Bounds of a fitted temperature."""

HISTOGRAM_BINS = 20

_Floats = NDArray[np.float64]

_GAP_BOUNDS = (0, 1, 1.5, 2, 3)
_GAP_NAMES = ("below 0", "0 to 1", "1 to 1.5", "1.5 to 2", "2 to 3", "3 or more")
_PRINCIPLE_BOUNDS = (0, 1, 2)
_PRINCIPLE_NAMES = ("rejected rated higher", "rated equal", "chosen 1 higher", "chosen 2 or more higher")
_LENGTH_NAMES = ("much shorter", "shorter", "about equal", "longer", "much longer")
_EQUAL_LENGTH, _MUCH = 0.1, 0.4  # difference in characters, as a share of the longer response
_NOT_GIVEN = "not given"


class ReliabilityBin(TypedDict):
    """A bin of `ece`; the means are None in an empty bin."""

    low: float
    high: float
    count: int
    probability: float | None  # mean
    right: float | None  # share of positive cases


class Calibration(TypedDict):
    """The metrics that depend on the temperature."""

    ece10: float  # 10 bins
    ece15: float
    brier: float
    nll: float  # nats per pair
    reliability: list[ReliabilityBin]  # 10 bins


class RewardMetrics(Calibration):
    """All metrics of a reward model on preference pairs."""

    pairs: int
    accuracy: float  # chosen strictly above rejected
    accuracy_ci95: list[float]
    ties: int
    auc: float
    histogram: dict[str, list[float]]  # `edges` of equal bins, counts of `chosen` and `rejected` scores


class RankerMetrics(TypedDict):
    """Metrics of a generative model that chose the better response of every pair, in both orders."""

    pairs: int
    accuracy: float  # over both orders; unreadable is wrong
    accuracy_ci95: list[float]  # by pair
    unreadable: int  # answers
    first_accuracy: float  # where the chosen response came first
    second_accuracy: float
    consistent: float  # share of pairs with the same choice in both orders


class Slice(TypedDict):
    """Accuracy on a part of the pairs."""

    slice: str
    pairs: int
    accuracy: float
    ci95: list[float]


def both_orders(chosen: ArrayLike, rejected: ArrayLike, temperature: float = 1.0) -> tuple[_Floats, NDArray[np.int64]]:
    """Every pair as two cases of a binary classifier: chosen first, then rejected first.

    Args:
        chosen: scores of the chosen responses, shape (pairs,).
        rejected: scores of the rejected responses, shape (pairs,).
        temperature: T in σ((r₁ − r₂) / T).

    Returns:
        The probability that the first response is the better one, and its label 1 or 0, each of shape (2 · pairs,).

    Raises:
        InputError: there are no pairs, or a score is not finite.
    """
    assert temperature > 0, temperature
    margins = _margins(chosen, rejected) / temperature
    return expit(np.concatenate([margins, -margins])), np.repeat([1, 0], len(margins))


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int) -> float:
    """Expected calibration error of the probability of the positive class: Σ_b n_b/n · |mean label − mean probability|.

    Source: Naeini et al. 2015, equation 3.

    Bins are equally wide on [0, 1]; each includes its lower bound, and the last one includes 1.0. Libraries differ
    there: scikit-learn's calibration_curve includes the upper bound (0.5 of a tie falls into the bin below) and returns
    no counts; torchmetrics puts 1.0 into a bin of its own.

    Args:
        probabilities: of the positive class, shape (cases,).
        labels: 1 or 0, shape (cases,).
        bins: number of bins.
    """
    counts, probability, positive = _binned(probabilities, labels, bins)
    return float(np.abs(probability - positive).sum() / counts.sum())


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """The bins of `ece`."""
    sums = _binned(probabilities, labels, bins).T
    return [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "count": int(count),
            "probability": float(probability / count) if count else None,
            "right": float(positive / count) if count else None,
        }
        for index, (count, probability, positive) in enumerate(sums)
    ]


def measure(chosen: ArrayLike, rejected: ArrayLike) -> RewardMetrics:
    """All metrics of a reward model on preference pairs, calibration at temperature 1 included.

    Args:
        chosen: scores of the chosen responses, shape (pairs,).
        rejected: scores of the rejected responses, shape (pairs,).

    Raises:
        InputError: there are no pairs, or a score is not finite.
    """
    margins = _margins(chosen, rejected)
    right = int((margins > 0).sum())
    labels = np.repeat([1, 0], len(margins))
    return {
        "pairs": len(margins),
        "accuracy": right / len(margins),
        "accuracy_ci95": list(wilson(right, len(margins))),
        "ties": int((margins == 0).sum()),
        # of margins: they order the cases as probabilities do, and large ones do not round to 1
        "auc": float(roc_auc_score(labels, np.concatenate([margins, -margins]))),
        **calibrated(chosen, rejected, 1.0),
        "histogram": _histogram(np.asarray(chosen, float), np.asarray(rejected, float)),
    }


def calibrated(chosen: ArrayLike, rejected: ArrayLike, temperature: float) -> Calibration:
    """The metrics that depend on the temperature, unlike accuracy and AUC.

    Args:
        chosen: scores of the chosen responses, shape (pairs,).
        rejected: scores of the rejected responses, shape (pairs,).
        temperature: T in σ((r₁ − r₂) / T), fitted on other pairs.

    Raises:
        InputError: there are no pairs, or a score is not finite.
    """
    probabilities, labels = both_orders(chosen, rejected, temperature)
    return {
        "ece10": ece(probabilities, labels, 10),
        "ece15": ece(probabilities, labels, 15),
        "brier": float(brier_score_loss(labels, probabilities)),
        "nll": _nll(_margins(chosen, rejected), temperature),
        "reliability": reliability(probabilities, labels),
    }


def fit_temperature(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """The temperature of least NLL (Guo et al. 2017, section 4.2).

    If the scores are always right, the NLL falls as the temperature falls to 0; if they are mostly wrong, it falls as
    the temperature rises. The result is then a bound, 0.01 or 100. If all scores are tied, the result is 1.

    Raises:
        InputError: there are no pairs, or a score is not finite.
    """
    margins = _margins(chosen, rejected)
    if not margins.any():
        return 1.0
    best = minimize_scalar(
        lambda log: _nll(margins, float(np.exp(log))), bounds=tuple(np.log(TEMPERATURES)), method="bounded"
    )
    return float(np.exp(best.x))


def slices(table: pa.Table, right: Sequence[float]) -> dict[str, list[Slice]]:
    """Accuracy on slices of the pairs.

    Args:
        table: COMPARISONS rows.
        right: for each row 1, 0, or 0.5 (a tie, or right in one order only).

    Returns:
        By `topic`, `gap` (of the mean ratings), `length` (of the chosen response against the rejected one, in
        characters; about equal: they differ by at most a tenth of the longer) and `{principle}_gap`. A label without
        values is absent.
    """
    assert table.num_rows == len(right), (table.num_rows, len(right))
    topics = table["topic"].to_pylist()
    by_label = {
        "topic": _accuracies(topics, sorted({topic for topic in topics if topic is not None}), right),
        "gap": _accuracies(_named(table["gap"], _GAP_BOUNDS, _GAP_NAMES), _GAP_NAMES, right),
        "length": _accuracies(_lengths(table), _LENGTH_NAMES, right),
    }
    for principle in PRINCIPLES:
        key = f"{principle}_gap"
        labels = _named(table[key], _PRINCIPLE_BOUNDS, _PRINCIPLE_NAMES)
        by_label[key] = _accuracies(labels, _PRINCIPLE_NAMES, right)
    return {key: rows for key, rows in by_label.items() if rows}


def ranked(first_right: Sequence[bool | None], second_right: Sequence[bool | None]) -> RankerMetrics:
    """Metrics of a generative model that chose the better response of every pair, in both orders.

    Args:
        first_right: whether it chose the chosen response where that came first; None: its answer was unreadable.
        second_right: the same where the chosen response came second.

    Raises:
        InputError: there are no pairs.
    """
    shares = shares_right(first_right, second_right)
    if not shares:
        raise InputError("there are no pairs to measure a ranker on; take a split or a file that has some")
    both = list(zip(first_right, second_right, strict=True))
    return {
        "pairs": len(shares),
        "accuracy": sum(shares) / len(shares),
        "accuracy_ci95": list(wilson(sum(shares), len(shares))),
        "unreadable": sum(answer is None for pair in both for answer in pair),
        "first_accuracy": sum(first is True for first, _ in both) / len(both),
        "second_accuracy": sum(second is True for _, second in both) / len(both),
        "consistent": sum(first is not None and first == second for first, second in both) / len(both),
    }


def shares_right(first_right: Sequence[bool | None], second_right: Sequence[bool | None]) -> list[float]:
    """For every pair, the share of both orders in which a ranker was right: 1, 0.5 or 0; unreadable is wrong."""
    both = zip(first_right, second_right, strict=True)
    return [((first is True) + (second is True)) / 2 for first, second in both]


def _margins(chosen: ArrayLike, rejected: ArrayLike) -> _Floats:
    """Chosen minus rejected scores, checked."""
    above, below = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    assert above.shape == below.shape, (above.shape, below.shape)
    if not above.size:
        raise InputError("there are no pairs to measure scores on; take a split or a file that has some")
    finite = np.isfinite(above) & np.isfinite(below)
    if not finite.all():
        first = int(np.argmin(finite))
        raise InputError(
            f"pair {first + 1} of {len(finite)} has the scores {above[first]} and {below[first]}; "
            "they must be finite: look at the reward model's weights and dtype"
        )
    return above - below


def _nll(margins: _Floats, temperature: float) -> float:
    # log_loss of scikit-learn clips probabilities, so the surprise at a large wrong margin would end at 36 nats
    return float(np.logaddexp(0, -margins / temperature).mean())


def _binned(probabilities: ArrayLike, labels: ArrayLike, bins: int) -> _Floats:
    """Per bin: number of cases, sum of their probabilities, number of positive cases; shape (3, bins)."""
    values, positive = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    assert len(values) == len(positive) > 0, (len(values), len(positive))
    assert ((values >= 0) & (values <= 1)).all()
    edges = np.arange(1, bins) / bins  # division: linspace misses 0.3 by a rounding error
    indices = np.searchsorted(edges, values, side="right")
    return np.array([np.bincount(indices, weights, bins) for weights in (np.ones(len(values)), values, positive)])


def _histogram(chosen: _Floats, rejected: _Floats) -> dict[str, list[float]]:
    scores = np.concatenate([chosen, rejected])
    low, high = scores.min(), scores.max()
    margin = 0.5 if low == high else 0.0
    edges = np.linspace(low - margin, high + margin, HISTOGRAM_BINS + 1)
    return {
        "edges": edges.tolist(),
        "chosen": np.histogram(chosen, edges)[0].tolist(),
        "rejected": np.histogram(rejected, edges)[0].tolist(),
    }


def _named(column: pa.ChunkedArray, bounds: Sequence[float], names: Sequence[str]) -> list[str | None]:
    """The bin of each value; a bin includes its lower bound."""
    return [None if value is None else names[bisect_right(bounds, value)] for value in column.to_pylist()]


def _lengths(table: pa.Table) -> list[str | None]:
    chosen, rejected = (pc.utf8_length(table[side]).to_pylist() for side in ("chosen", "rejected"))
    return [_length(*pair) for pair in zip(chosen, rejected, strict=True)]


def _length(chosen: int, rejected: int) -> str:
    share = (chosen - rejected) / max(chosen, rejected)
    if abs(share) <= _EQUAL_LENGTH:
        return "about equal"
    word = "longer" if share > 0 else "shorter"
    return f"much {word}" if abs(share) > _MUCH else word


def _accuracies(labels: Sequence[str | None], names: Sequence[str], right: Sequence[float]) -> list[Slice] | None:
    """Accuracy by label, in the order of `names`; None where no row has one."""
    groups: dict[str | None, list[float]] = {}
    for label, share in zip(labels, right, strict=True):
        groups.setdefault(label, []).append(share)
    if set(groups) <= {None}:
        return None
    return [
        {
            "slice": _NOT_GIVEN if label is None else label,
            "pairs": len(groups[label]),
            "accuracy": float(sum(groups[label]) / len(groups[label])),
            "ci95": list(wilson(float(sum(groups[label])), len(groups[label]))),
        }
        for label in (*names, None)
        if label in groups
    ]
