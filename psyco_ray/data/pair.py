"""Preference pairs out of ratings, part by part, in the released dataset's columns (paper §3.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config.data import Pairs
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.run import shards, storage
from psyco_ray.run.schemas import PREFERENCES
from psyco_ray.run.types import Row

SPLITS = ("train", "dev", "test")
SCHEMA = pa.schema([*PREFERENCES, ("topic", pa.string()), ("coarse_topic", pa.string()), ("split", pa.string())])


def pair(root: Path, settings: Pairs) -> dict[str, Any]:
    """Write ``pairs/train.parquet``, ``dev.parquet`` and ``test.parquet`` of a dataset.

    Args:
        root: the dataset's directory, whose ``rate`` stage is done.
        settings: gap and weights.

    Returns:
        Pairs by split, and counts of responses that had not all seven ratings.
    """
    for name in settings.weights:
        if name not in PRINCIPLES:
            raise InputError(f"pair.weights names {name}; the principles are {', '.join(PRINCIPLES)}")
    if not any(settings.weights.get(name, 1) for name in PRINCIPLES):
        raise InputError("pair.weights makes every principle count 0; leave some above it")
    counts = {f"{split}_pairs": 0 for split in SPLITS} | {"responses": 0, "not_fully_rated": 0}
    (root / "pairs").mkdir(exist_ok=True)
    with contextlib.ExitStack() as files:
        writers = {}
        for split in SPLITS:
            file = files.enter_context(storage.atomic_file(root / "pairs" / f"{split}.parquet"))
            writers[split] = files.enter_context(pq.ParquetWriter(file, SCHEMA))
        for part in shards.list_shards(root / "rate"):
            found, responses, incomplete = _pairs_of(root, part, settings)
            counts["responses"] += responses
            counts["not_fully_rated"] += incomplete
            for split, writer in writers.items():
                rows = [row for row in found if row["split"] == split]
                counts[f"{split}_pairs"] += len(rows)
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return counts


def _pairs_of(root: Path, part: str, settings: Pairs) -> tuple[list[Row], int, int]:
    """The pairs of a part, how many responses it has, and how many of them lack a rating."""
    speeches = {row["speech_id"]: row for row in shards.read(root / "collect" / "speeches", part)}
    topics = {row["speech_id"]: row for row in shards.read(root / "topics", part)}
    texts = {(row["speech_id"], row["model"]): row["response"] for row in shards.read(root / "respond", part)}
    ratings: dict[str, dict[str, dict[str, int]]] = {}
    for row in shards.read(root / "rate", part):
        ratings.setdefault(row["speech_id"], {}).setdefault(row["model"], {})[row["principle"]] = row["rating"]
    rows, incomplete = list[Row](), 0
    for speech_id, by_model in sorted(ratings.items()):
        whole = {model: given for model, given in sorted(by_model.items()) if len(given) == len(PRINCIPLES)}
        incomplete += len(by_model) - len(whole)
        speech = speeches[speech_id]
        choose = extreme_pair if speech["split"] == "test" else gap_pairs
        for number, (chosen, rejected) in enumerate(choose(whole, settings.weights, settings.min_gap), start=1):
            sides = {"chosen": chosen, "rejected": rejected}
            rows.append(
                {
                    "ID": speech_id,
                    "prefID": f"{speech_id}-{number}",
                    "question": speech["speech"],
                    **{side: texts[speech_id, model] for side, model in sides.items()},
                    **{f"{side}_model": model for side, model in sides.items()},
                    **dict(_rating_columns(sides, whole)),
                    "topic": topics.get(speech_id, {}).get("topic"),
                    "coarse_topic": topics.get(speech_id, {}).get("coarse_topic"),
                    "split": speech["split"],
                }
            )
    return rows, sum(len(by_model) for by_model in ratings.values()), incomplete


def _rating_columns(sides: Mapping[str, str], rated: Mapping[str, Ratings]) -> Iterator[tuple[str, int]]:
    for side, model in sides.items():
        for principle in PRINCIPLES:
            yield f"{side}_{principle}_rating", rated[model][principle]


Ratings = Mapping[str, int]
"""Principle -> rating of 1 to 5, all seven of them."""


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
