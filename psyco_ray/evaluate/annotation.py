"""Pairs for two experts to judge blind, and how far their choices agree with each other and with the labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.evaluate import agreement as measures
from psyco_ray.evaluate.expert_csv import escape_formula, ordering_hash, rows
from psyco_ray.evaluate.stats import wilson

EXPERTS = ("expert-1", "expert-2")
PAPER = {"between_experts": 0.87, "expert-1": 0.92, "expert-2": 0.85}
"""Shares of equal choices in the paper (§3.3): between its experts, and of each with the labels."""

_COLUMNS = ("item", "client speech", "response A", "response B", "preference", "comment")
_TEXTS = ("question", "chosen", "rejected")
_CHOICES = {"a": "A", "b": "B", "response a": "A", "response b": "B"}


def export(pairs: Sequence[dict[str, Any]], out: Path, count: int = 200, seed: int = 0) -> None:
    """Write ``expert-1.csv`` and ``expert-2.csv`` to fill in, and ``key.json``, which stays away from the experts.

    Both experts get the same items with the same sides, each in an order of their own. Which pairs are drawn, the sides
    and the orders follow from the seed and the pairs' ids alone.

    Args:
        pairs: in the columns of the PREFERENCES table.
        out: directory for the files.
        count: pairs to draw.
        seed: of all that is random.

    Raises:
        InputError: there are too few pairs, two of one id, or the directory already holds an export.
    """
    if count < 1:
        raise InputError(f"the experts need pairs, but the count is {count}; ask for 1 or more")
    if len(pairs) < count:
        raise InputError(f"the experts shall judge {count} pairs, but there are only {len(pairs)}; ask for fewer")
    if len({pair["prefID"] for pair in pairs}) < len(pairs):
        raise InputError("two of the pairs have the same prefID; give each pair its own")
    if (out / "key.json").exists():
        raise InputError(f"{out} already holds an export, perhaps filled in; choose another directory")
    drawn = sorted(pairs, key=lambda pair: ordering_hash(seed, "draw", pair["prefID"]))[:count]
    items = {f"p{ordering_hash(seed, 'item', pair['prefID'])[:8]}": pair for pair in drawn}
    assert len(items) == count, "two pairs got the same item"
    sides = {item: _sides(seed, pair) for item, pair in items.items()}
    out.mkdir(parents=True, exist_ok=True)
    for expert in EXPERTS:
        order = sorted(items, key=lambda item: ordering_hash(seed, expert, items[item]["prefID"]))
        rows = [
            [item, items[item]["question"], items[item][sides[item]["A"]], items[item][sides[item]["B"]], "", ""]
            for item in order
        ]
        with open(out / f"{expert}.csv", "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([list(_COLUMNS), *([escape_formula(cell) for cell in row] for row in rows)])
    key = {
        item: {**sides[item], **{name: value for name, value in pair.items() if name not in _TEXTS}}
        for item, pair in sorted(items.items())
    }
    (out / "key.json").write_text(json.dumps({"seed": seed, "items": key}, indent=1) + "\n", encoding="utf-8")


def agreement(directory: Path) -> dict[str, Any]:
    """How far the experts agree with each other and with the labels.

    Args:
        directory: where `export` wrote and the filled files lie, as a spreadsheet saved them.

    Returns:
        `items`, and for each expert under `experts` the rows `filled` and `unfilled`. `between_experts` and, by expert,
        `with_labels` hold the `items` compared, how many are `equal`, their `share` with its `wilson` interval, `kappa`
        and `alpha` (nominal) with bootstrap intervals, and the `paper`'s share; None where there is nothing to compare.

    Raises:
        InputError: a file is missing or cannot be read, or a row holds something else than a choice.
    """
    path = directory / "key.json"
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name the directory that the pairs were exported to") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: {error}; take the file that was exported") from None
    items = key["items"]
    labels = {item: "A" if sides["A"] == "chosen" else "B" for item, sides in items.items()}
    choices = {expert: _choices(directory / f"{expert}.csv", labels) for expert in EXPERTS}
    first, second = (choices[expert] for expert in EXPERTS)
    return {
        "items": len(items),
        "experts": {
            expert: {"filled": len(made), "unfilled": len(items) - len(made)} for expert, made in choices.items()
        },
        "between_experts": _compare(first, second, PAPER["between_experts"], key["seed"]),
        "with_labels": {expert: _compare(made, labels, PAPER[expert], key["seed"]) for expert, made in choices.items()},
    }


def _compare(ours: dict[str, str], theirs: dict[str, str], paper: float, seed: int) -> dict[str, Any] | None:
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    ratings = [[float(side[item] == "B") for side in (ours, theirs)] for item in both]
    equal = sum(a == b for a, b in ratings)
    return {
        "items": len(both),
        "equal": equal,
        "share": equal / len(both),
        "wilson": wilson(equal, len(both)),
        "kappa": asdict(measures.cohen_kappa(ratings, seed=seed)),
        "alpha": asdict(measures.krippendorff_alpha(ratings, "nominal", seed=seed)),
        "paper": paper,
    }


def _choices(path: Path, labels: dict[str, str]) -> dict[str, str]:
    """The side that an expert chose, by item; rows without a choice are left out."""
    seen: set[str] = set()
    found: dict[str, str] = {}
    for number, row in rows(path, ("item", "preference")):
        item, choice = row["item"].strip(), " ".join(row["preference"].split())
        if item not in labels:
            raise InputError(f"{path} row {number}: item {item!r} is not in key.json; take the row as it was exported")
        if item in seen:
            raise InputError(f"{path} row {number}: item {item} comes a second time; keep one of its rows")
        seen.add(item)
        if choice and choice.casefold() not in _CHOICES:
            raise InputError(
                f"{path} row {number}: the preference {choice!r} of item {item} is neither A nor B; "
                "write A or B, or leave it empty"
            )
        if choice:
            found[item] = _CHOICES[choice.casefold()]
    return found


def _sides(seed: int, pair: dict[str, Any]) -> dict[str, str]:
    swapped = int(ordering_hash(seed, "sides", pair["prefID"])[0], 16) % 2
    return {"A": "rejected", "B": "chosen"} if swapped else {"A": "chosen", "B": "rejected"}
