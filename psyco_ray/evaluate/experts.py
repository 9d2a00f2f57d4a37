"""Blind comparisons of a policy and its opponent by two experts (paper §4.2, figures 2 and 3).

Each pair of responses gets a preference under each of the seven principles and overall, and each of the two responses
scores of 1 to 5. Experts fill in a spreadsheet; `export` writes it, `score` reads it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data.splits import speech_id
from psyco_ray.data.tables import read_table
from psyco_ray.evaluate import agreement, stats
from psyco_ray.evaluate.annotation import EXPERTS
from psyco_ray.evaluate.expert_csv import escape_formula, ordering_hash, rows

PAPER_JUDGE = 0.825
"""Share of cases in which the paper's judge and its experts chose alike (§4.2)."""

ASPECTS = (*PRINCIPLES, "overall")
"""Under what a preference is asked for."""

SIDES = ("policy", "opponent")

Responses = dict[str, tuple[str, str]]  # speech and response, by the speech's id
Answers = dict[tuple[str, str], float]  # what an expert filled in, by item and column; a preference as in _CHOICES

_CHOICES = {"a": 1.0, "b": -1.0, "response a": 1.0, "response b": -1.0, "tie": 0.0, "equal": 0.0}
_PREFERENCES = {aspect: f"{aspect} preference" for aspect in ASPECTS}
_SCORES = {(principle, side): f"{principle} {side}" for principle in PRINCIPLES for side in "AB"}
_ASKED = [
    *[name for p in PRINCIPLES for name in (_PREFERENCES[p], _SCORES[p, "A"], _SCORES[p, "B"])],
    _PREFERENCES["overall"],
]
_POINTS = {form.format(points): float(points) for points in range(1, 6) for form in ("{}", "{}.0", "{},0")}
_VERDICTS = {"ours": 1.0, "theirs": -1.0, "tie": 0.0}
_ENDS = (("wins", 1.0), ("ties", 0.0), ("losses", -1.0))

_Items = Mapping[str, Mapping[str, str]]  # of key.json: comparison, speech_id, A and B


def read_responses(path: str) -> Responses:
    """The responses of a model by speech.

    Args:
        path: a Parquet, JSONL or CSV file, or a directory of Parquet files, with the columns speech and response.

    Raises:
        InputError: it cannot be read, lacks a column or a text, or answers a speech twice.
    """
    table = read_table(path, "responses")
    for column in ("speech", "response"):
        if column not in table.column_names:
            raise InputError(f"responses file {path} has no column {column}; it has {', '.join(table.column_names)}")
    found: Responses = {}
    for number, row in enumerate(table.select(["speech", "response"]).to_pylist(), start=1):
        for column, text in row.items():
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"responses file {path}: row {number} has no {column}; remove the row or fill it in")
        key = speech_id(row["speech"])
        if key in found:
            raise InputError(
                f"responses file {path}: row {number} answers a speech that an earlier row answers; keep one of them"
            )
        found[key] = (row["speech"], row["response"])
    return found


def export(policies: Mapping[str, str], opponent: str, out: Path, count: int = 100, seed: int = 0) -> None:
    """Write ``expert-1.csv`` and ``expert-2.csv`` to fill in, and ``key.json``, which stays away from the experts.

    Both experts get the same items with the same sides, each in an order of their own, all comparisons mixed. Which
    speeches are drawn, the sides and the orders follow from the seed, the comparisons' names and the speeches alone.

    Args:
        policies: responses (as `read_responses` takes them) by the comparison's name.
        opponent: the opponent's responses.
        out: directory for the files.
        count: pairs of each comparison.
        seed: of all that is random.

    Raises:
        InputError: responses do not do, a comparison has too few pairs, or the directory already holds an export.
    """
    if count < 1:
        raise InputError(f"a comparison needs pairs, but the count is {count}; ask for 1 or more")
    if (out / "key.json").exists():
        raise InputError(f"{out} already holds an export, perhaps filled in; choose another directory")
    theirs = read_responses(opponent)
    items: dict[str, dict[str, Any]] = {}
    for name, path in policies.items():
        ours = read_responses(path)
        both = [key for key in ours.keys() & theirs.keys() if ours[key][1] != theirs[key][1]]
        if len(both) < count:
            raise InputError(
                f"the experts shall compare {count} pairs of {name}, but {path} and {opponent} have only {len(both)} "
                "speeches that both answer, and not in the same words; ask for fewer with --count"
            )
        # other speeches than other comparisons have, as long as there are: the opponent's answer would come again
        met = {of["speech_id"] for of in items.values()}
        order = sorted((speech in met, ordering_hash(seed, f"draw {name}", speech), speech) for speech in both)
        for _, _, speech in order[:count]:
            item = f"e{ordering_hash(seed, f'item {name}', speech)[:8]}"
            assert item not in items, "two pairs got the same item"
            a, b = SIDES if int(ordering_hash(seed, f"sides {name}", speech)[0], 16) % 2 else SIDES[::-1]
            texts = {"policy": ours[speech][1], "opponent": theirs[speech][1]}
            items[item] = {"comparison": name, "speech_id": speech, "A": a, "B": b, "texts": (ours[speech][0], texts)}
    out.mkdir(parents=True, exist_ok=True)
    for expert in EXPERTS:
        with open(out / f"{expert}.csv", "w", encoding="utf-8-sig", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["item", "client speech", "response A", "response B", *_ASKED, "comment"])
            for item in sorted(items, key=lambda item: ordering_hash(seed, expert, item)):
                speech, texts = items[item]["texts"]
                shown = [speech, *[texts[items[item][side]] for side in "AB"]]
                rows.writerow([item, *[escape_formula(text) for text in shown], *[""] * (len(_ASKED) + 1)])
    hidden = {item: {name: of[name] for name in of if name != "texts"} for item, of in sorted(items.items())}
    key = {"seed": seed, "comparisons": list(policies), "items": hidden}
    (out / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def score(directory: Path, verdicts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the experts found, and how far they agree with each other and with a judge.

    A pair counts once: where both experts filled it in, each has half a say.

    Args:
        directory: where `export` wrote and the filled files lie, as a spreadsheet saved them.
        verdicts: files of a judge's choices by the comparison's name, as `read_verdicts` takes them.

    Returns:
        `experts`: cells `filled` and `unfilled` of each. `comparisons`: by name the `items`; `preferences`: by aspect
        the `items` and the share with `wilson95` of `wins`, `ties` and `losses` of the policy; `scores`: by principle
        and side of SIDES the `items`, `mean` and bootstrap `ci95`; and `judge`, as below. `agreement` between the
        experts: by aspect the `percent`, `kappa` and `alpha` (nominal) of `preferences`, and by principle those of
        `scores`, with quadratic weights and of ranks. `judge`: of all pairs with verdicts the `items`, the `share` of
        choices like the judge's with bootstrap `ci95`, and by expert under `experts` the percent, kappa and alpha.
        `paper`: its share. What nobody filled in is None.

    Raises:
        InputError: a file is missing or cannot be read, a cell holds what it must not, or a name is of no comparison.
    """
    key = _key(directory / "key.json")
    items, names, seed = key["items"], key["comparisons"], key["seed"]
    answers = {expert: _answers(directory / f"{expert}.csv", items) for expert in EXPERTS}
    for name in verdicts or {}:
        if name not in names:
            raise InputError(f"there is no comparison {name} in {directory}; it has {', '.join(names)}")
    by_name = {name: [item for item, of in items.items() if of["comparison"] == name] for name in names}
    chosen = {
        item: verdict
        for name, path in (verdicts or {}).items()
        for item, verdict in _by_item(read_verdicts(path), by_name[name], items).items()
    }
    cells = len(items) * len(_ASKED)
    return {
        "seed": seed,
        "experts": {expert: {"filled": len(of), "unfilled": cells - len(of)} for expert, of in answers.items()},
        "comparisons": {
            name: {
                "items": len(of),
                "preferences": {aspect: _preferences(answers, items, of, aspect) for aspect in ASPECTS},
                "scores": {p: {side: _scores(answers, items, of, p, side, seed) for side in SIDES} for p in PRINCIPLES},
                "judge": _with_judge(answers, chosen, of, seed),
            }
            for name, of in by_name.items()
        },
        "agreement": _agreement(answers, items, seed),
        "judge": _with_judge(answers, chosen, list(items), seed),
        "paper": PAPER_JUDGE,
    }


def read_verdicts(path: str) -> dict[str, float]:
    """A judge's choices by speech: 1 for the policy, -1 for the opponent, 0 for a tie; unreadable ones are left out.

    Args:
        path: a JSON list, or a Parquet, JSONL or CSV file, of rows with a `key`, the speech's id, and `better`: ours,
            theirs or tie, and null where the judge's answer could not be read. Evaluate-policy writes such files.

    Raises:
        InputError: it cannot be read, or a row does not do.
    """
    rows = _json(Path(path)) if path.endswith(".json") else read_table(path, "verdicts").to_pylist()
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"key", "better"} <= row.keys() for row in rows):
        raise InputError(f"verdicts file {path} does not hold rows with key and better; write both for every speech")
    found: dict[str, float] = {}
    for number, row in enumerate(rows, start=1):
        if row["better"] in (None, ""):  # a CSV file knows no null
            continue
        if row["better"] not in list(_VERDICTS):
            raise InputError(
                f"verdicts file {path}: row {number} has better {row['better']!r}; {', '.join(_VERDICTS)} are known, "
                "and null where the judge could not be read"
            )
        if row["key"] in found:
            raise InputError(f"verdicts file {path}: row {number} has the key {row['key']} again; keep one of the rows")
        found[row["key"]] = _VERDICTS[row["better"]]
    return found


def _by_item(verdicts: Mapping[str, float], of: Sequence[str], items: _Items) -> dict[str, float]:
    """A judge's choices as an expert would have filled them in."""
    found = {item: _turned(verdicts[key], items[item]) for item in of if (key := items[item]["speech_id"]) in verdicts}
    if not found:
        raise InputError(
            f"no verdict is about a speech of the comparison {items[of[0]]['comparison']}; their keys must be "
            f"speech ids, such as {items[of[0]]['speech_id']}"
        )
    return found


def _turned(value: float, item: Mapping[str, str]) -> float:
    """A choice between A and B as one between policy and opponent, and the other way round."""
    return value if item["A"] == "policy" else -value


def _table(answers: Mapping[str, Answers], cells: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Filled-in values, a row a cell and a column an expert; NaN where a cell is empty."""
    rows = [[answers[expert].get(cell, np.nan) for expert in EXPERTS] for cell in cells]
    return np.array(rows, dtype=float).reshape(-1, len(EXPERTS))


def _preferences(
    answers: Mapping[str, Answers], items: _Items, of: Sequence[str], aspect: str
) -> dict[str, Any] | None:
    """Shares of pairs that the policy wins, ties and loses; where experts differ a pair is divided among them."""
    turns = np.array([_turned(1.0, items[item]) for item in of])
    found = _rated(_table(answers, [(item, _PREFERENCES[aspect]) for item in of]) * turns[:, None])
    if not len(found):
        return None
    counts = {
        name: np.nanmean(np.where(np.isnan(found), np.nan, found == value), axis=1).sum() for name, value in _ENDS
    }
    return {
        "items": len(found),
        **{
            name: {"share": float(count / len(found)), "wilson95": stats.wilson(float(count), len(found))}
            for name, count in counts.items()
        },
    }


def _scores(
    answers: Mapping[str, Answers], items: _Items, of: Sequence[str], principle: str, side: str, seed: int
) -> dict[str, Any] | None:
    """Mean score of the responses of one side, and of two experts' scores first the mean."""
    cells = [(item, _SCORES[principle, "A" if items[item]["A"] == side else "B"]) for item in of]
    found = _rated(_table(answers, cells))
    if not len(found):
        return None
    means = np.nanmean(found, axis=1).tolist()
    return {"items": len(means), "mean": fmean(means), "ci95": stats.bootstrap_mean(means, seed)}


def _rated(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows that an expert filled in."""
    return table[~np.isnan(table).all(axis=1)]


def _agreement(answers: Mapping[str, Answers], items: _Items, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"preferences": {}, "scores": {}}
    for aspect, column in _PREFERENCES.items():
        table = _table(answers, [(item, column) for item in items])
        found["preferences"][aspect] = _measures(table, None, "nominal", seed)
    for principle in PRINCIPLES:
        table = _table(answers, [(item, _SCORES[principle, side]) for item in items for side in "AB"])
        found["scores"][principle] = _measures(table, "quadratic", "ordinal", seed)
    return found


def _measures(
    table: NDArray[np.float64], weights: Literal["quadratic"] | None, level: agreement.Level, seed: int
) -> dict[str, Any]:
    return {
        "percent": asdict(agreement.percent(table, seed)),
        "kappa": asdict(agreement.cohen_kappa(table, weights, seed)),
        "alpha": asdict(agreement.krippendorff_alpha(table, level, seed)),
    }


def _with_judge(
    answers: Mapping[str, Answers], chosen: Mapping[str, float], of: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """How often experts choose as the judge does, overall; a tie is like a tie alone."""
    judged = [item for item in of if item in chosen]
    table = _table(answers, [(item, _PREFERENCES["overall"]) for item in judged])
    judge = np.array([chosen[item] for item in judged]).reshape(-1, 1)
    equal = _rated(np.where(np.isnan(table), np.nan, table == judge))
    if not len(equal):
        return None
    shares = np.nanmean(equal, axis=1).tolist()
    return {
        "items": len(shares),
        "share": fmean(shares),
        "ci95": stats.bootstrap_mean(shares, seed),
        "experts": {
            expert: _measures(np.hstack([table[:, [place]], judge]), None, "nominal", seed)
            for place, expert in enumerate(EXPERTS)
        },
    }


def _key(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"{path} does not exist; name the directory that evaluate-experts export wrote")
    found = _json(path)
    if not isinstance(found, dict) or not {"seed", "comparisons", "items"} <= found.keys():
        raise InputError(f"{path} is not the key of evaluate-experts export; take the file that was exported")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def _answers(path: Path, items: _Items) -> Answers:
    """What an expert filled in; empty cells are left out."""
    seen: set[str] = set()
    found: Answers = {}
    for number, row in rows(path, ("item", *_ASKED)):
        item = row["item"].strip()
        if item not in items:
            raise InputError(f"{path} row {number}: item {item!r} is not in key.json; take the row as it was exported")
        if item in seen:
            raise InputError(f"{path} row {number}: item {item} comes a second time; keep one of its rows")
        seen.add(item)
        for column in _ASKED:
            text = " ".join(row[column].split()).casefold()
            known, words = (
                (_CHOICES, "A, B or tie") if column.endswith("preference") else (_POINTS, "a whole number, 1 to 5")
            )
            if text and text not in known:
                raise InputError(
                    f"{path} row {number}, column {column}: {row[column].strip()!r} does not do; write {words}, "
                    "or leave it empty"
                )
            if text:
                found[item, column] = known[text]
    return found
