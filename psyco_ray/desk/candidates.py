"""What sources yield: a context with one or two responses, and the signs of a crisis that a file names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.data.splits import speech_id
from psyco_ray.files.cells import CellError, text_of
from psyco_ray.files.records import locate, open_records

Signs = list[str] | None
"""Kinds of a crisis that somebody saw in a speech; None: nobody has screened it."""

_TEXTS = ("speech", "question", "text")
_NO = ("false", "0", "no", "none")


@dataclass(frozen=True)
class Candidate:
    """A context, as its text, and responses to it. `facts` are those of `sources`."""

    source: str
    speech: str
    responses: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    crisis: Signs = None


def known_facts(**facts: Any) -> dict[str, Any]:
    """The facts that are known: those that are not None."""
    return {name: value for name, value in facts.items() if value is not None}


def flagged(name: str | None) -> Mapping[str, Signs]:
    """The column `crisis` of a file of speeches or pairs, by speech id; empty without such a column or file.

    Args:
        name: a file as `files.records` takes it; None: there is none.

    Raises:
        InputError: the file cannot be read.
    """
    if name is None or name.startswith("hub:") or not Path(locate(name)[0]).exists():
        return {}
    file = open_records(name, "speeches")
    column = next((text for text in _TEXTS if text in file.columns), None)
    if column is None or "crisis" not in file.columns:
        return {}
    signs: dict[str, Signs] = {}
    for record in file.read([column, "crisis"]):
        try:
            speech = text_of((record.cells or {}).get(column))
        except CellError:  # no text: the reader of the pairs or speeches leaves the row out, too
            continue
        found = _signs((record.cells or {}).get("crisis"))
        if found is not None:
            key = speech_id(Context.of(speech.strip()).text)
            signs[key] = [*dict.fromkeys([*(signs.get(key) or []), *found])]
    return signs


def _signs(cell: Any) -> Signs:
    """The kinds in a cell: a list, a list as text, words with commas, or true for some kind."""
    if isinstance(cell, str) and cell.strip():
        try:
            cell = json.loads(cell.replace("'", '"'))
        except ValueError:
            cell = [] if cell.strip().casefold() in _NO else cell.split(",")
    if isinstance(cell, bool | int):
        return ["flagged"] if cell else []
    return [str(kind).strip() for kind in cell] if isinstance(cell, list) else None
