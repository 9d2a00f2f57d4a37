"""Preference pairs from ratings, part by part, in the released dataset's columns (paper §3.3)."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config.data import Pairs
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.run import shards, storage
from psyco_ray.run.schemas import COLLECTED, COLLECTED_DIALOGUES, PREFERENCES
from psyco_ray.run.types import Row

SPLITS = ("train", "dev", "test")
SCHEMA = pa.schema(
    [
        *PREFERENCES,
        ("topic", pa.string()),
        ("coarse_topic", pa.string()),
        ("split", pa.string()),
        COLLECTED.field("crisis"),
        ("chosen_finished", pa.bool_()),  # false: cut at the token limit
        ("rejected_finished", pa.bool_()),
    ]
)
"""The columns of built pairs."""

SCHEMA_OF_DIALOGUES = SCHEMA.append(COLLECTED_DIALOGUES.field("dialogue"))
"""The columns of pairs built from conversations."""

COUNTED = ("responses", "not_fully_rated", "unfinished", "pairs_left_out_as_unfinished")
_HIGHEST = 5  # rating

Ratings = Mapping[str, int]
"""Principle -> rating of 1 to 5, for all principles."""


def pair(root: Path, settings: Pairs) -> dict[str, int]:
    """Write ``pairs/train.parquet``, ``dev.parquet`` and ``test.parquet`` of a dataset.

    Args:
        root: the dataset's directory; its ``rate`` stage is done.
        settings: gap, weights, and the rule for unfinished responses.

    Returns:
        Pairs by split; responses, how many of them lack a rating and how many are unfinished; and the pairs that only
        `unfinished: allow` would make.

    Raises:
        InputError: a weight names no principle, all weights are 0, or the files cannot be written.
    """
    for name in settings.weights:
        if name not in PRINCIPLES:
            raise InputError(f"pair.weights names {name}; the principles are {', '.join(PRINCIPLES)}")
    if not any(settings.weights.get(name, 1) for name in PRINCIPLES):
        raise InputError("pair.weights sets every principle to 0; keep at least one above 0")
    counts = Counter(dict.fromkeys([*(f"{split}_pairs" for split in SPLITS), *COUNTED], 0))
    storage.private_dir(root / "pairs")
    parts = shards.list_shards(root / "rate")
    first = shards.read(root / "collect" / "speeches", parts[0])[:1] if parts else []
    schema = SCHEMA_OF_DIALOGUES if first and "dialogue" in first[0] else SCHEMA
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(storage.atomic_file(root / "pairs" / f"{split}.parquet")) for split in SPLITS
        }
        writers = {split: stack.enter_context(pq.ParquetWriter(file, schema)) for split, file in files.items()}
        for part in parts:
            pairs, counted = _pairs_of(root, part, settings)
            counts.update(counted)
            for split, writer in writers.items():
                rows = [row for row in pairs if row["split"] == split]
                counts[f"{split}_pairs"] += len(rows)
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return dict(counts)


def _pairs_of(root: Path, part: str, settings: Pairs) -> tuple[list[Row], Counter[str]]:
    """The pairs of a part, and its counts."""
    speeches = {row["speech_id"]: row for row in shards.read(root / "collect" / "speeches", part)}
    topics = {row["speech_id"]: row for row in shards.read(root / "topics", part)}
    responses = {(row["speech_id"], row["model"]): row for row in shards.read(root / "respond", part)}
    ratings: dict[str, dict[str, dict[str, int]]] = {}
    for row in shards.read(root / "rate", part):
        ratings.setdefault(row["speech_id"], {}).setdefault(row["model"], {})[row["principle"]] = row["rating"]
    rows, counts = list[Row](), Counter[str]()
    for speech_id, by_model in sorted(ratings.items()):
        rated = {model: by_name for model, by_name in sorted(by_model.items()) if len(by_name) == len(PRINCIPLES)}
        unfinished = {model for model in by_model if responses[speech_id, model]["finished"] is False}
        speech = speeches[speech_id]
        select = extreme_pair if speech["split"] == "test" else gap_pairs
        pairs = all_pairs = select(rated, settings.weights, settings.min_gap)
        if settings.unfinished != "allow":
            penalise = settings.unfinished == "penalise"
            pairs = select(rated, settings.weights, settings.min_gap, unfinished, penalise)
        counts["responses"] += len(by_model)
        counts["not_fully_rated"] += len(by_model) - len(rated)
        counts["unfinished"] += len(unfinished)
        counts["pairs_left_out_as_unfinished"] += len({*all_pairs} - {*pairs})
        for number, (chosen, rejected) in enumerate(pairs, start=1):
            sides = {"chosen": chosen, "rejected": rejected}
            rows.append(
                {
                    "ID": speech_id,
                    "prefID": f"{speech_id}-{number}",
                    "question": speech["speech"],
                    **{side: responses[speech_id, model]["response"] for side, model in sides.items()},
                    **{f"{side}_model": model for side, model in sides.items()},
                    **dict(_rating_columns(sides, rated)),
                    "topic": topics.get(speech_id, {}).get("topic"),
                    "coarse_topic": topics.get(speech_id, {}).get("coarse_topic"),
                    "split": speech["split"],
                    "crisis": speech["crisis"],
                    "dialogue": speech.get("dialogue"),
                    **{f"{side}_finished": model not in unfinished for side, model in sides.items()},
                }
            )
    return rows, counts


def _rating_columns(sides: Mapping[str, str], rated: Mapping[str, Ratings]) -> Iterator[tuple[str, int]]:
    for side, model in sides.items():
        for principle in PRINCIPLES:
            yield f"{side}_{principle}_rating", rated[model][principle]


def overall(ratings: Ratings, weights: Mapping[str, float]) -> Fraction:
    """The weighted mean rating of a response, exactly: as floats, a gap of exactly 1 is often a little less.

    Args:
        ratings: one rating per principle.
        weights: of principles that count other than 1.
    """
    shares = {name: Fraction(str(weights.get(name, 1))) for name in PRINCIPLES}
    return sum((shares[name] * ratings[name] for name in PRINCIPLES), Fraction()) / sum(shares.values())


def gap_pairs(
    rated: Mapping[str, Ratings],
    weights: Mapping[str, float],
    min_gap: float,
    unfinished: Collection[str] = (),
    penalise: bool = False,
) -> list[tuple[str, str]]:
    """All pairs of responses whose mean ratings differ by at least the gap (paper §3.3, training).

    Args:
        rated: name of a response -> its ratings.
        weights: of principles that count other than 1.
        min_gap: smallest difference of the means, in rating points.
        unfinished: names of responses that are never chosen.
        penalise: rank these below all others, whatever the ratings.

    Returns:
        Names of chosen and rejected, sorted by descending gap, then by name.
    """
    threshold = Fraction(str(min_gap))
    means = {name: overall(ratings, weights) for name, ratings in rated.items()}
    if penalise:
        means |= {name: means[name] - _HIGHEST - threshold for name in means if name in unfinished}
    chosen = [name for name in means if name not in unfinished]
    pairs = [(a, b) for a in chosen for b in means if means[a] - means[b] >= threshold]
    return sorted(pairs, key=lambda pair: (means[pair[1]] - means[pair[0]], pair))


def extreme_pair(
    rated: Mapping[str, Ratings],
    weights: Mapping[str, float],
    min_gap: float,
    unfinished: Collection[str] = (),
    penalise: bool = False,
) -> list[tuple[str, str]]:
    """The pair of highest and lowest mean if their gap is wide enough; ties by name (paper §3.3, testing).

    The arguments are those of `gap_pairs`.
    """
    return gap_pairs(rated, weights, min_gap, unfinished, penalise)[:1]
