"""Training questions that repeat a held-out question, in the same words or nearly so, or that hold most of one.

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

import numpy as np
import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.data import Collect
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Data
from psyco_ray.data import containment, duplicates, turns
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


@dataclass(frozen=True)
class Known:
    """Held-out questions and what finding near duplicates of them needs."""

    origin: Mapping[str, str]  # of each question, by its `keys`
    texts: Sequence[str]  # those in which the client says enough for near duplicates
    signatures: np.ndarray  # of the client's words in the texts
    marks: Sequence[np.ndarray]  # of the client's words in each text, for `containment`


class Leaks(TypedDict):
    """Numbers of training rows of a file whose question is held out."""

    rule: str  # data.leakage
    exact: int  # equal after folding case and white space
    near: int
    contained: int  # hold most of a held-out question, or are held by one
    of: dict[str, int]  # by origin of the held-out question


def questions(table: pa.Table) -> list[str]:
    """The question of each pair of a COMPARISONS table: what is asked, without system prompts."""
    return [
        "\n".join(str(message["content"]) for message in json.loads(asked) if message["role"] != "system")
        if form == "messages"
        else asked
        for form, asked in zip(table["form"].to_pylist(), table["asked"].to_pylist(), strict=True)
    ]


def keys(text: str, min_chars: int) -> list[str]:
    """The ids by which a question is found again: its own, and of a conversation that of its beginning."""
    context = Context.of(text)
    begun = turns.beginning(context, min_chars) if context.is_conversation else None
    return [speech_id(text)] if begun is None else [speech_id(text), speech_id(begun)]


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
        facts = leaks_of(Counter(found.values()), data)
        leaky += sentences(part.file, len(part.questions), part.unit, facts)
        kept = [row for row in range(len(part.questions)) if data.leakage == "allow" or row not in found]
        settled.append((kept, facts))
    enforce(leaky, data)
    return settled


def leaks_of(found: Counter[tuple[str, str]], data: Data) -> Leaks:
    """The numbers of a file's leaks, from those by kind, as `find` names them, and origin of the held-out question."""
    kinds, origins = Counter[str](), Counter[str]()
    for (kind, origin), count in found.items():
        kinds[kind] += count
        origins[origin] += count
    return Leaks(
        rule=data.leakage,
        exact=kinds["exact"],
        near=kinds["near"],
        contained=kinds["contained"],
        of=dict(sorted(origins.items())),
    )


def enforce(leaky: Sequence[str], data: Data) -> None:
    """Refuse or log the leaks that `sentences` tells.

    Raises:
        InputError: there are leaks, and `data.leakage` is refuse.
    """
    if leaky and data.leakage == "refuse":
        raise InputError(
            f"{'; '.join(leaky)}; set data.leakage to drop to leave them out "
            "of training, or to allow to train on them all the same"
        )
    for sentence in leaky:
        done = "left out of training" if data.leakage == "drop" else "trained on all the same"
        _log.warning(f"{sentence}: {done} (data.leakage {data.leakage})")


def find(asked: Sequence[str], held_out: HeldOut, min_chars: int) -> dict[int, tuple[str, str]]:
    """The rows whose question is held out: by row `exact`, `near` or `contained`, and the held-out question's origin.

    Contexts are compared by what the client says in them: one that goes on from a held-out one holds it. Contexts of
    one conversation, at any turns, are found by its beginning.

    Args:
        asked: the questions of the rows.
        held_out: the held-out questions.
        min_chars: characters that near duplicates have at least: a few words in common make short texts alike.
    """
    origin: dict[str, str] = {}
    known: list[str] = []
    for name, texts in held_out.items():
        for text in texts:
            own, *beginning = keys(text, min_chars)
            known += [text] * (own not in origin and len(Context.of(text).client_words) >= min_chars)
            for key in (own, *beginning):
                origin.setdefault(key, name)
    words = [Context.of(text).client_words for text in known]
    marks = list(map(containment.marks, words))
    return find_known(asked, Known(origin, known, duplicates.signatures(words), marks), min_chars)


def find_known(asked: Sequence[str], known: Known, min_chars: int) -> dict[int, tuple[str, str]]:
    """As `find`, with held-out questions whose signatures exist."""
    origin = known.origin
    ids = [keys(text, min_chars) for text in asked]
    exact = [next((origin[key] for key in own if key in origin), None) for own in ids]
    found = {row: ("exact", name) for row, name in enumerate(exact) if name is not None}
    unknown = {own[0]: text for own, text, name in zip(ids, asked, exact, strict=True) if name is None}
    others = {key: Context.of(text).client_words for key, text in unknown.items()}
    others = {key: words for key, words in others.items() if len(words) >= min_chars}
    others_keys, others_words, first = list(others), list(others.values()), len(known.texts)
    signed = np.concatenate([known.signatures, duplicates.signatures(others_words)])

    def words_of(row: int) -> str:
        return Context.of(known.texts[row]).client_words if row < first else others_words[row - first]

    near = duplicates.resembling(signed, first, words_of, NEAR)
    holding = containment.holders(
        known.marks,
        [containment.marks(words) for words in others_words],
        lambda mate, row: containment.share_of(words_of(mate), others_words[row]),
    )
    alike = {others_keys[row]: ("contained", mate) for row, mate in holding.items()}
    alike |= {others_keys[row - first]: ("near", mate) for row, mate in near.items()}
    for row, (key, *_) in enumerate(ids):
        if key in alike:
            kind, mate = alike[key]
            found[row] = (kind, origin[speech_id(known.texts[mate])])
    return found


def sentences(file: str, total: int, unit: str, leaks: Leaks) -> list[str]:
    """One sentence about the leaks of a file with `total` pairs or speeches, or none."""
    if not leaks["of"]:
        return []
    origins = ", ".join(f"{count:,} of {origin}" for origin, count in leaks["of"].items())
    leaking = leaks["exact"] + leaks["near"] + leaks["contained"]
    how = f"{leaks['exact']:,} exactly, {leaks['near']:,} nearly"
    if leaks["contained"]:
        how += f", {leaks['contained']:,} hold {containment.SHARE:.0%} of one or are held by one"
    return [f"{file}: {leaking:,} of {total:,} {unit} repeat held-out questions ({how}): {origins}"]
