"""Training questions that repeat a held-out question, in the same words or nearly so.

A result on held-out speeches or pairs means little where the training saw the same questions. Building a dataset drops
duplicates across splits; this check covers files from elsewhere, and several files in one job.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa

from psyco_ray.config.data import Collect
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Data
from psyco_ray.data import duplicates
from psyco_ray.data.splits import speech_id

NEAR = Collect().near_duplicates
"""Similarity from which two questions are near duplicates: the one that datasets are built with."""

HeldOut = Mapping[str, Sequence[str]]
"""Held-out questions by their origin, such as `the test split of pairs file x.parquet`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """Questions of one file that are to be trained on; several pairs may ask the same."""

    file: str  # as messages call it, such as `pairs file x.parquet`
    unit: str  # speeches or pairs
    questions: Sequence[str]


class Leaks(TypedDict):
    """Numbers of training rows of a file whose question is held out."""

    rule: str  # data.leakage
    exact: int  # equal after folding case and white space
    near: int
    of: dict[str, int]  # by origin of the held-out question


def questions(table: pa.Table) -> list[str]:
    """The question of each pair of a COMPARISONS table: what is asked, without system prompts."""
    return [
        "\n".join(str(message["content"]) for message in json.loads(asked) if message["role"] != "system")
        if form == "messages"
        else asked
        for form, asked in zip(table["form"].to_pylist(), table["asked"].to_pylist(), strict=True)
    ]


def settle(training: Sequence[TrainingSet], held_out: HeldOut, data: Data) -> list[tuple[list[int], Leaks]]:
    """Apply `data.leakage` to training questions that repeat a held-out one.

    Args:
        training: the files to train on.
        held_out: the questions that no training may see.
        data: the rule, and the shortest length of a near duplicate.

    Returns:
        For each file the rows to train on and the numbers of its leaks.

    Raises:
        InputError: a question leaks, and the rule is refuse.
    """
    settled = []
    leaky: list[str] = []
    for part in training:
        found = find(part.questions, held_out, data.min_chars)
        kinds = Counter(kind for kind, _ in found.values())
        origins = Counter(origin for _, origin in found.values())
        facts = Leaks(rule=data.leakage, exact=kinds["exact"], near=kinds["near"], of=dict(sorted(origins.items())))
        if found:
            leaky.append(_sentence(part, facts))
        kept = [row for row in range(len(part.questions)) if data.leakage == "allow" or row not in found]
        settled.append((kept, facts))
    if leaky and data.leakage == "refuse":
        raise InputError(
            f"{'; '.join(leaky)}; set data.leakage to drop to leave them out "
            "of training, or to allow to train on them all the same"
        )
    for sentence in leaky:
        done = "left out of training" if data.leakage == "drop" else "trained on all the same"
        _log.warning(f"{sentence}: {done} (data.leakage {data.leakage})")
    return settled


def find(asked: Sequence[str], held_out: HeldOut, min_chars: int) -> dict[int, tuple[str, str]]:
    """The rows whose question is held out: by row, `exact` or `near`, and the origin of the held-out question.

    Args:
        asked: the questions of the rows.
        held_out: the held-out questions.
        min_chars: characters that near duplicates have at least: a few words in common make short texts alike.
    """
    origin: dict[str, str] = {}
    held_texts: list[str] = []
    for name, texts in held_out.items():
        for text in texts:
            if (key := speech_id(text)) not in origin:
                origin[key] = name
                held_texts.append(text)
    keys = [speech_id(text) for text in asked]
    found = {row: ("exact", origin[key]) for row, key in enumerate(keys) if key in origin}
    known = [text for text in held_texts if len(text) >= min_chars]
    others = {key: text for key, text in zip(keys, asked, strict=True) if key not in origin and len(text) >= min_chars}
    texts = [*known, *others.values()]
    near = duplicates.resembling(duplicates.signatures(texts), len(known), texts.__getitem__, NEAR)
    others_keys = list(others)
    alike = {others_keys[row - len(known)]: origin[speech_id(texts[mate])] for row, mate in near.items()}
    return found | {row: ("near", alike[key]) for row, key in enumerate(keys) if key in alike}


def _sentence(part: TrainingSet, leaks: Leaks) -> str:
    origins = ", ".join(f"{count:,} of {origin}" for origin, count in leaks["of"].items())
    count = leaks["exact"] + leaks["near"]
    how = f"{leaks['exact']:,} exactly, {leaks['near']:,} nearly"
    return f"{part.file}: {count:,} of {len(part.questions):,} {part.unit} repeat held-out questions ({how}): {origins}"
