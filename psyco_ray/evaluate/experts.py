"""Blind comparisons of a policy and its opponent by two experts (paper §4.2, figures 2 and 3).

For each pair of responses the experts give a preference by each of the seven principles and overall, and for each of
the two responses scores from 1 to 5. They fill in a spreadsheet; `export` writes it, `score` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate import agreement, speech_sets, stats
from psyco_ray.evaluate.expert_csv import (
    ASPECTS,
    EXPERTS,
    PREFERENCES,
    conversations,
    ordering_hash,
    read_items,
    read_key,
    read_verdicts,
    write_table,
)
from psyco_ray.files.cells import described
from psyco_ray.run import storage

PAPER_JUDGE = 0.825
"""Share of cases in which the paper's judge and its experts chose alike (§4.2)."""

SIDES = ("policy", "opponent")

Responses = dict[str, tuple[str, str]]
"""Speech and response, by the speech's id."""

Answers = dict[tuple[str, str], float]
"""An expert's cells by item and column; a preference is a value of _CHOICES."""

_CHOICES = {"a": 1.0, "b": -1.0, "response a": 1.0, "response b": -1.0, "tie": 0.0, "equal": 0.0}
_POINTS = {form.format(points): float(points) for points in range(1, 6) for form in ("{}", "{}.0", "{},0")}
_OUTCOMES = (("wins", 1.0), ("ties", 0.0), ("losses", -1.0))

_SCORES = {(principle, side): f"{principle} {side}" for principle in PRINCIPLES for side in "AB"}
_COLUMNS = [
    *[name for p in PRINCIPLES for name in (PREFERENCES[p], _SCORES[p, "A"], _SCORES[p, "B"])],
    PREFERENCES["overall"],
]


class Item(TypedDict):
    """A pair of responses in ``key.json``; the values of `A` and `B` are one of SIDES."""

    comparison: str
    speech_id: str
    A: str
    B: str
    conversation: NotRequired[str]  # its id, where an item of the export is about one


_Items = Mapping[str, Item]
_Values = NDArray[np.float64]  # shape (cells, experts); NaN where a cell is empty


def read_responses(path: str) -> Responses:
    """The responses of a model by speech.

    Args:
        path: a file as `speech_sets.read_responses` takes it.

    Raises:
        InputError: the file is unreadable, lacks a column or a text, or answers a speech twice.
    """
    responses: Responses = {}
    for number, speech, response in speech_sets.read_responses(path):
        key = speech_id(speech)
        if key in responses:
            raise InputError(
                f"responses file {path}: row {number} answers a speech that an earlier row answers; keep one of them"
            )
        responses[key] = (speech, response)
    return responses


def export(policies: Mapping[str, str], opponent: str, out: Path, count: int = 100, seed: int = 0) -> None:
    """Write ``expert-1.csv`` and ``expert-2.csv`` to fill in, and ``key.json``, which the experts must not see.

    Both experts get the same items with the same sides, each in an order of their own, with all comparisons mixed. The
    sample, the sides and the orders depend only on the seed, the comparisons' names and the speeches.

    Args:
        policies: responses (as `read_responses` takes them) by the comparison's name.
        opponent: the opponent's responses.
        out: directory for the files.
        count: number of pairs of each comparison.
        seed: of sample, sides and orders.

    Raises:
        InputError: invalid responses, too few pairs of a comparison, or the directory already holds an export.
    """
    if count < 1:
        raise InputError(f"a comparison needs pairs, but the count is {count}; ask for 1 or more")
    if (out / "key.json").exists():
        raise InputError(f"{out} already holds an export, perhaps filled in; choose another directory")
    theirs = read_responses(opponent)
    items: dict[str, Item] = {}
    contexts: dict[str, str] = {}
    texts: dict[str, tuple[str, str, str]] = {}  # speech or transcript, responses A and B
    for name, path in policies.items():
        ours = read_responses(path)
        both = [key for key in ours.keys() & theirs.keys() if ours[key][1] != theirs[key][1]]
        if len(both) < count:
            raise InputError(
                f"the experts are to compare {count} pairs of {name}, but {path} and {opponent} have only {len(both)} "
                "speeches that both answer, and not in the same words; ask for fewer with --count"
            )
        # speeches of other comparisons come last: the experts would read the opponent's response again
        taken = {item["speech_id"] for item in items.values()}
        order = sorted((key in taken, ordering_hash(seed, f"draw {name}", key), key) for key in both)
        for _, _, key in order[:count]:
            item = f"e{ordering_hash(seed, f'item {name}', key)[:8]}"
            assert item not in items, "two pairs got the same item"
            a, b = SIDES if int(ordering_hash(seed, f"sides {name}", key)[0], 16) % 2 else SIDES[::-1]
            responses = {"policy": ours[key][1], "opponent": theirs[key][1]}
            items[item] = Item(comparison=name, speech_id=key, A=a, B=b)
            contexts[item] = ours[key][0]
            texts[item] = (Context.of(ours[key][0]).transcript, responses[a], responses[b])
    header = ["item", "client speech", "response A", "response B", *_COLUMNS, "comment"]
    for expert in EXPERTS:
        rows = [
            [item, *texts[item], *[""] * (len(_COLUMNS) + 1)]
            for item in sorted(items, key=lambda item: ordering_hash(seed, expert, item))
        ]
        write_table(out / f"{expert}.csv", header, rows)
    for item, conversation in conversations(contexts).items():
        items[item]["conversation"] = conversation
    key_file = {"seed": seed, "comparisons": list(policies), "items": dict(sorted(items.items()))}
    storage.write_text(out / "key.json", json.dumps(key_file, indent=1) + "\n")


def score(directory: Path, verdicts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The experts' preferences and scores, and their agreement with each other and with a judge.

    A pair counts once: if both experts filled it in, each counts half. The items of a conversation are one
    cluster of every interval.

    Args:
        directory: of the export, with the filled files.
        verdicts: files of a judge's choices by the comparison's name, as `expert_csv.read_verdicts` takes them.

    Returns:
        `experts`: numbers of cells `filled` and `unfilled` of each. `comparisons`: by name the `items`; `preferences`:
        by aspect the `items` and the share with `wilson95` of `wins`, `ties` and `losses` of the policy; `scores`: by
        principle and side of SIDES the `items`, `mean` and bootstrap `ci95`; and `judge`, as below. `agreement` between
        the experts: by aspect the `percent`, `kappa` and `alpha` (nominal) of `preferences`, and by principle those of
        `scores` (quadratic weights, ordinal). `judge`: over all pairs with verdicts the `items`, the `share` of choices
        equal to the judge's with bootstrap `ci95`, and by expert under `experts` the percent, kappa and alpha. `paper`:
        its share. Values without a filled cell are None.

    Raises:
        InputError: a file is missing or unreadable, a cell is invalid, or a name is of no comparison.
    """
    key = read_key(directory, "seed", "comparisons", "items")
    items, names, seed = key["items"], key["comparisons"], key["seed"]
    answers = {expert: _read_answers(directory / f"{expert}.csv", items) for expert in EXPERTS}
    by_name = {name: [item for item in items if items[item]["comparison"] == name] for name in names}
    judged: dict[str, float] = {}
    for name, path in (verdicts or {}).items():
        if name not in names:
            raise InputError(f"there is no comparison {name} in {directory}; it has {', '.join(names)}")
        judged |= _choices_by_item(read_verdicts(path), by_name[name], items)
    cells = len(items) * len(_COLUMNS)
    return {
        "seed": seed,
        "experts": {expert: {"filled": len(own), "unfilled": cells - len(own)} for expert, own in answers.items()},
        "comparisons": {
            name: {
                "items": len(own),
                "preferences": {aspect: _preferences(answers, items, own, aspect) for aspect in ASPECTS},
                "scores": {
                    principle: {side: _scores(answers, items, own, principle, side, seed) for side in SIDES}
                    for principle in PRINCIPLES
                },
                "judge": _with_judge(answers, items, judged, own, seed),
            }
            for name, own in by_name.items()
        },
        "agreement": _between_experts(answers, items, seed),
        "judge": _with_judge(answers, items, judged, list(items), seed),
        "paper": PAPER_JUDGE,
    }


def _choices_by_item(verdicts: Mapping[str, float], own: Sequence[str], items: _Items) -> dict[str, float]:
    """A judge's choices between A and B."""
    by_speech = {items[item]["speech_id"]: item for item in own}
    choices = {item: verdicts[key] * _sign(items[item]) for key, item in by_speech.items() if key in verdicts}
    if not choices:
        first = items[own[0]]
        raise InputError(
            f"no verdict is about a speech of the comparison {first['comparison']}; their keys must be speech ids, "
            f"such as {first['speech_id']}"
        )
    return choices


def _sign(item: Item) -> float:
    """1 if A is the policy's response, else -1: turns a choice between A and B into policy and opponent, and back."""
    return 1.0 if item["A"] == "policy" else -1.0


def _values(answers: Mapping[str, Answers], cells: Sequence[tuple[str, str]]) -> _Values:
    rows = [[answers[expert].get(cell, np.nan) for expert in EXPERTS] for cell in cells]
    return np.array(rows, dtype=float).reshape(-1, len(EXPERTS))


def _preferences(
    answers: Mapping[str, Answers], items: _Items, own: Sequence[str], aspect: str
) -> dict[str, Any] | None:
    """Shares of pairs that the policy wins, ties and loses; a pair on which the experts differ is divided."""
    signs = np.array([_sign(items[item]) for item in own])
    chosen, of = _filled(_values(answers, [(item, PREFERENCES[aspect]) for item in own]) * signs[:, None], items, own)
    if not len(chosen):
        return None
    shares = {
        name: np.nanmean(np.where(np.isnan(chosen), np.nan, chosen == value), axis=1) for name, value in _OUTCOMES
    }
    return {"items": len(chosen)} | {
        name: {"share": float(won.sum()) / len(chosen), "wilson95": stats.clustered_wilson(won.tolist(), of)}
        for name, won in shares.items()
    }


def _scores(
    answers: Mapping[str, Answers], items: _Items, own: Sequence[str], principle: str, side: str, seed: int
) -> dict[str, Any] | None:
    """Mean score of the responses of one side; the scores of two experts are averaged first."""
    cells = [(item, _SCORES[principle, "A" if items[item]["A"] == side else "B"]) for item in own]
    filled, of = _filled(_values(answers, cells), items, own)
    if not len(filled):
        return None
    means = np.nanmean(filled, axis=1).tolist()
    return {"items": len(means), "mean": fmean(means), "ci95": stats.clustered_mean(means, of, seed)}


def _filled(values: _Values, items: _Items, own: Sequence[str]) -> tuple[_Values, list[str]]:
    """The rows with at least one value, and the conversation of each, or else its item."""
    kept = np.flatnonzero(~np.isnan(values).all(axis=1))
    clusters = _clusters(items, own) or own
    return values[kept], [clusters[row] for row in kept]


def _clusters(items: _Items, own: Iterable[str]) -> list[str] | None:
    """The conversations of items; None: they are about single speeches."""
    found = [of for item in own if (of := items[item].get("conversation")) is not None]
    return found or None


def _between_experts(answers: Mapping[str, Answers], items: _Items, seed: int) -> dict[str, Any]:
    preferences = {
        aspect: _agreement(
            _values(answers, [(item, column) for item in items]), None, "nominal", seed, _clusters(items, items)
        )
        for aspect, column in PREFERENCES.items()
    }
    scores = {}
    for principle in PRINCIPLES:
        cells = [(item, _SCORES[principle, side]) for item in items for side in "AB"]
        clusters = _clusters(items, [item for item, _ in cells])
        scores[principle] = _agreement(_values(answers, cells), "quadratic", "ordinal", seed, clusters)
    return {"preferences": preferences, "scores": scores}


def _agreement(
    ratings: _Values,
    weights: Literal["quadratic"] | None,
    level: agreement.Level,
    seed: int,
    clusters: agreement.Clusters,
) -> dict[str, Any]:
    return {
        "percent": asdict(agreement.percent(ratings, seed, clusters=clusters)),
        "kappa": asdict(agreement.cohen_kappa(ratings, weights, seed, clusters=clusters)),
        "alpha": asdict(agreement.krippendorff_alpha(ratings, level, seed, clusters=clusters)),
    }


def _with_judge(
    answers: Mapping[str, Answers], items: _Items, judged: Mapping[str, float], own: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """Agreement of the experts' overall preferences with the judge; a tie equals only a tie."""
    pairs = [item for item in own if item in judged]
    chosen = _values(answers, [(item, PREFERENCES["overall"]) for item in pairs])
    judge = np.array([judged[item] for item in pairs]).reshape(-1, 1)
    equal, of = _filled(np.where(np.isnan(chosen), np.nan, chosen == judge), items, pairs)
    if not len(equal):
        return None
    shares = np.nanmean(equal, axis=1).tolist()
    return {
        "items": len(shares),
        "share": fmean(shares),
        "ci95": stats.clustered_mean(shares, of, seed),
        "experts": {
            expert: _agreement(np.hstack([chosen[:, [column]], judge]), None, "nominal", seed, _clusters(items, pairs))
            for column, expert in enumerate(EXPERTS)
        },
    }


def _read_answers(path: Path, items: _Items) -> Answers:
    """An expert's filled cells."""
    answers: Answers = {}
    for number, item, row in read_items(path, _COLUMNS, items):
        for column in _COLUMNS:
            cell = " ".join(row[column].split()).casefold()
            values, expected = (
                (_CHOICES, "A, B or tie") if column.endswith("preference") else (_POINTS, "a whole number, 1 to 5")
            )
            if cell and cell not in values:
                raise InputError(
                    f"{path} row {number}, column {column}: {described(row[column].strip())} is invalid; write "
                    f"{expected}, or leave it empty"
                )
            if cell:
                answers[item, column] = values[cell]
    return answers
