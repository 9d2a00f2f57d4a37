"""Preference pairs of a file of any format that `data.preferences` reads, or of a dataset of `data build`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data import pair_files, preferences
from psyco_ray.data.shapes.pairs import number
from psyco_ray.data.splits import speech_id
from psyco_ray.desk.candidates import Candidate, flagged, known_facts
from psyco_ray.desk.turns import SPEAKERS
from psyco_ray.files.records import SAMPLES
from psyco_ray.run import storage
from psyco_ray.run.types import Row

_SIDES = ("chosen", "rejected")


def candidates(source: str) -> Iterator[Candidate]:
    """The pairs of a file; the chosen response is the first one, and what the file says of the two are facts.

    Raises:
        InputError: as `preferences.read` does.
    """
    name = file_of(source)
    pairs = preferences.read(name).table
    more = _more(name)
    signs = flagged(name)
    for row in pairs.to_pylist():
        speech = shown(row["form"], row["asked"])
        own = more.get(row["pair_id"], {})
        ratings = _ratings(own)
        plain = row["form"] == "speech"
        yield Candidate(
            source=source,
            speech=speech,
            responses=(row["chosen"].strip(), row["rejected"].strip()),
            crisis=signs.get(speech_id(speech)),
            facts=known_facts(
                pair_id=row["pair_id"],
                labels={"overall": 1} | _principle_labels(row),
                labels_by="the file",
                ratings=ratings,
                models=[own.get(f"{side}_model") for side in _SIDES]
                if any(own.get(f"{s}_model") for s in _SIDES)
                else None,
                finished=None if row["chosen_finished"] is None else [row["chosen_finished"], row["rejected_finished"]],
                topic=own.get("topic"),
                coarse_topic=row["topic"],
                split=row["split"],
                dialogue=row["dialogue"],
                form=None if plain else row["form"],
                asked=None if plain else row["asked"],
            ),
        )


def file_of(source: str) -> str:
    """The file or directory of pairs that a source names: a dataset of `data build` has them in `pairs`."""
    if source in SAMPLES or source.startswith(pair_files.HUB):
        return source
    path = storage.local_path(source)
    return str(path / "pairs") if (path / "pairs").is_dir() else source


def shown(form: str, asked: str) -> str:
    """What a person reads of the question: the speech, or a conversation with its speakers."""
    if form != "messages":
        return asked.strip()
    turns = json.loads(asked)
    return "\n\n".join(f"{SPEAKERS.get(turn['role'], turn['role'])}: {turn['content'].strip()}" for turn in turns)


def _principle_labels(row: Row) -> dict[str, int]:
    gaps = {principle: row[f"{principle}_gap"] for principle in PRINCIPLES}
    return {principle: (gap > 0) - (gap < 0) for principle, gap in gaps.items() if gap is not None}


def _more(name: str) -> Mapping[str, Row]:
    """The cells of the released columns that pairs are read without, by the pair's id."""
    if name.startswith(pair_files.HUB):
        return {}
    file = pair_files.opened(name)
    if "prefID" not in file.columns:
        return {}
    columns = [*preferences.IDS, "topic", *(f"{side}_model" for side in _SIDES)]
    columns += [f"{side}_{principle}_rating" for side in _SIDES for principle in PRINCIPLES]
    return {
        preferences.id_of(record.cells, record.number): record.cells
        for record in file.read(columns)
        if record.cells is not None
    }


def _ratings(row: Row) -> list[dict[str, int]] | None:
    """The ratings of both responses; None unless all are there."""
    found: list[dict[str, Any]] = [
        {principle: number(row.get(f"{side}_{principle}_rating")) for principle in PRINCIPLES} for side in _SIDES
    ]
    if any(value is None for ratings in found for value in ratings.values()):
        return None
    return [{principle: int(value) for principle, value in ratings.items()} for ratings in found]
