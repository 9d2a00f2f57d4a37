"""Blind annotation of preference pairs by two experts, and their agreement with each other and with the labels.

The experts choose by each of the seven principles and overall (paper §3.4). A choice is A or B; there are no ties.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.data.splits import dialogue_in
from psyco_ray.evaluate.agreement import cohen_kappa, krippendorff_alpha
from psyco_ray.evaluate.expert_csv import (
    ASPECTS,
    EXPERTS,
    PREFERENCES,
    conversations,
    ordering_hash,
    read_items,
    read_key,
    write_table,
)
from psyco_ray.evaluate.stats import clustered_wilson
from psyco_ray.files.cells import described
from psyco_ray.run import storage

PAPER = {"between_experts": 0.87, "expert-1": 0.92, "expert-2": 0.85}
"""Shares of equal overall choices in the paper (§3.4): between its experts, and of each expert with the labels."""

_COLUMNS = ("item", "client speech", "response A", "response B", *PREFERENCES.values(), "comment")
_OVERALL_ALONE = {"overall": "preference"}  # columns of exports without principles
_TEXTS = ("question", "chosen", "rejected")
_CHOICES = {"a": "A", "b": "B", "response a": "A", "response b": "B"}


def export(pairs: Sequence[dict[str, Any]], out: Path, count: int = 200, seed: int = 0) -> None:
    """Write ``expert-1.csv`` and ``expert-2.csv`` to fill in, and ``key.json``, which the experts must not see.

    Both experts get the same items with the same sides, each in an order of their own. The sample, the sides and the
    orders depend only on the seed and the pairs' ids.

    Args:
        pairs: rows of the PREFERENCES table; their ratings label the principles.
        out: directory for the files.
        count: number of pairs to sample.
        seed: of sample, sides and orders.

    Raises:
        InputError: too few pairs, two pairs with the same id, or the directory already holds an export.
    """
    if count < 1:
        raise InputError(f"the experts need pairs, but the count is {count}; ask for 1 or more")
    if len(pairs) < count:
        raise InputError(f"the experts are to judge {count} pairs, but there are only {len(pairs)}; ask for fewer")
    if len({pair["prefID"] for pair in pairs}) < len(pairs):
        raise InputError("two of the pairs have the same prefID; give each pair its own")
    if (out / "key.json").exists():
        raise InputError(f"{out} already holds an export, perhaps filled in; choose another directory")
    sample = sorted(pairs, key=lambda pair: ordering_hash(seed, "draw", pair["prefID"]))[:count]
    items = {f"p{ordering_hash(seed, 'item', pair['prefID'])[:8]}": pair for pair in sample}
    assert len(items) == count, "two pairs got the same item"
    sides = {item: _sides(seed, pair) for item, pair in items.items()}
    for expert in EXPERTS:
        rows = [
            [
                item,
                Context.of(pair["question"]).transcript,
                pair[sides[item]["A"]],
                pair[sides[item]["B"]],
                *[""] * (len(PREFERENCES) + 1),
            ]
            for item, pair in sorted(items.items(), key=lambda entry: ordering_hash(seed, expert, entry[1]["prefID"]))
        ]
        write_table(out / f"{expert}.csv", _COLUMNS, rows)
    key = {
        item: {**sides[item], **{name: value for name, value in pair.items() if name not in _TEXTS}}
        for item, pair in sorted(items.items())
    }
    contexts = {item: pair["question"] for item, pair in items.items()}
    dialogues = {item: dialogue_in(pair.get("dialogue")) for item, pair in items.items()}
    for item, conversation in conversations(contexts, dialogues).items():
        key[item]["conversation"] = conversation
    key_file = {"seed": seed, "aspects": list(ASPECTS), "items": key}
    storage.write_text(out / "key.json", json.dumps(key_file, indent=1) + "\n")


def score(directory: Path) -> dict[str, Any]:
    """Agreement of the experts with each other and with the labels, by principle and overall.

    The label of a principle is the response that the judge rated higher under it; equal ratings give none. An export
    without principles is scored overall.

    Args:
        directory: of the export, with the filled files.

    Returns:
        `items`; for each expert under `experts` the numbers of choices `filled` and `unfilled`; and `paper`, its shares
        overall (PAPER). `between_experts` and, by expert, `with_labels` hold by aspect the `items` compared, the number
        of `equal` choices, their `share` with its `wilson` interval, and `kappa` and `alpha` (nominal) with bootstrap
        intervals; None without items.

    Raises:
        InputError: a file is missing or unreadable, or a preference is neither A nor B.
    """
    key = read_key(directory, "seed", "items")
    items, seed = key["items"], key["seed"]
    columns = {aspect: PREFERENCES[aspect] for aspect in ASPECTS} if "aspects" in key else _OVERALL_ALONE
    labels = {aspect: _labels(items, aspect) for aspect in columns}
    choices = {expert: _choices(directory / f"{expert}.csv", columns, items) for expert in EXPERTS}
    first, second = (choices[expert] for expert in EXPERTS)
    filled = {expert: sum(map(len, own.values())) for expert, own in choices.items()}
    return {
        "items": len(items),
        "experts": {
            expert: {"filled": count, "unfilled": len(columns) * len(items) - count} for expert, count in filled.items()
        },
        "between_experts": {aspect: _compare(first[aspect], second[aspect], items, seed) for aspect in columns},
        "with_labels": {
            expert: {aspect: _compare(own[aspect], labels[aspect], items, seed) for aspect in columns}
            for expert, own in choices.items()
        },
        "paper": PAPER,
    }


def _labels(items: Mapping[str, dict[str, Any]], aspect: str) -> dict[str, str]:
    """The better side by the dataset, by item: the chosen one overall, the higher rated one under a principle."""
    labels: dict[str, str] = {}
    for item, key in items.items():
        chosen, rejected = ("A", "B") if key["A"] == "chosen" else ("B", "A")
        if aspect == "overall":
            labels[item] = chosen
            continue
        own, others = (key.get(f"{side}_{aspect}_rating") for side in ("chosen", "rejected"))
        if own is not None and others is not None and own != others:
            labels[item] = chosen if own > others else rejected
    return labels


def _compare(
    first: dict[str, str], second: dict[str, str], items: Mapping[str, dict[str, Any]], seed: int
) -> dict[str, Any] | None:
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    ratings = [[float(choices[item] == "B") for choices in (first, second)] for item in both]
    equal = [float(a == b) for a, b in ratings]
    of = [items[item].get("conversation") for item in both]
    clusters = None if None in of else of
    return {
        "items": len(both),
        "equal": int(sum(equal)),
        "share": sum(equal) / len(both),
        "wilson": clustered_wilson(equal, clusters or both),
        "kappa": asdict(cohen_kappa(ratings, seed=seed, clusters=clusters)),
        "alpha": asdict(krippendorff_alpha(ratings, "nominal", seed=seed, clusters=clusters)),
    }


def _choices(path: Path, columns: Mapping[str, str], items: Container[str]) -> dict[str, dict[str, str]]:
    """The side that an expert chose, by aspect and item, without empty cells."""
    choices: dict[str, dict[str, str]] = {aspect: {} for aspect in columns}
    for number, item, row in read_items(path, tuple(columns.values()), items):
        for aspect, column in columns.items():
            choice = " ".join(row[column].split())
            if choice and choice.casefold() not in _CHOICES:
                raise InputError(
                    f"{path} row {number}: the {column} of item {item}, {described(choice)}, is neither A nor B; write "
                    "one of the two, or leave it empty"
                )
            if choice:
                choices[aspect][item] = _CHOICES[choice.casefold()]
    return choices


def _sides(seed: int, pair: dict[str, Any]) -> dict[str, str]:
    swapped = int(ordering_hash(seed, "sides", pair["prefID"])[0], 16) % 2
    return {"A": "rejected", "B": "chosen"} if swapped else {"A": "chosen", "B": "rejected"}
