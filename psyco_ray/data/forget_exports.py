"""A client's items in what experts judge: the key of an export, and the sheets beside it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.data import speakers, turns
from psyco_ray.data.speakers import UnknownSpeakerError
from psyco_ray.data.splits import speech_id
from psyco_ray.data.traces import Traces
from psyco_ray.files.records import open_records
from psyco_ray.run import storage
from psyco_ray.run.types import Row

KEY = "key.json"
"""Name of the key of an export: under `items` what the experts must not see, by item."""


def learn(path: Path, traces: Traces) -> None:
    """Add the conversations in the sheets beside the key of an export in which the client's words are.

    Args:
        path: the key.
        traces: of the client.
    """
    items = _key(path).get("items", {})
    for sheet in sorted(path.parent.glob("*.csv")):
        for cells in _cells(sheet) or ():
            entry = items.get(next((str(cells[name]).strip() for name in cells if name.casefold() == "item"), ""))
            for text in cells.values() if isinstance(entry, dict) and traces.surely_within([*cells.values()]) else ():
                if isinstance(text, str):
                    _add(text, entry, traces)


def _add(text: str, entry: dict[str, Any], traces: Traces) -> None:
    """Add what an item is about, if a text is its conversation: the ids of both are equal."""
    with contextlib.suppress(UnknownSpeakerError):
        dialogue = turns.dialogue_of(speakers.conversation(text))
        if dialogue is not None and speech_id(dialogue.text) in entry.values():
            traces.add_context(dialogue.text)


def remove(path: Path, traces: Traces) -> Iterator[tuple[Path, int]]:
    """Remove a client's items from the key of an export and their rows from its CSV sheets.

    Args:
        path: the key.
        traces: of the client.

    Yields:
        Each file that was rewritten, and the number of rows that it lost.

    Raises:
        InputError: a file cannot be written.
    """
    key = _key(path)
    gone = {item for item, entry in key.get("items", {}).items() if traces.within(entry)}
    if not gone:
        return
    for sheet in sorted(path.parent.glob("*.csv")):
        if rows := _remove_rows(sheet, gone):
            yield sheet, rows
    kept = key | {"items": {item: entry for item, entry in key["items"].items() if item not in gone}}
    storage.write_text(path, json.dumps(kept, indent=1) + "\n")
    yield path, len(gone)


def _key(path: Path) -> dict[str, Any]:
    try:
        key = json.loads(path.read_bytes())
    except ValueError:  # damaged: the words in it are masked like those of any text
        return {}
    return key if isinstance(key, dict) and isinstance(key.get("items"), dict) else {}


def _cells(path: Path) -> list[Row] | None:
    """The rows of a sheet; None: they cannot all be read."""
    try:
        rows = [record.cells for record in open_records(path, "annotation", pad=True)]
    except InputError:
        return None
    cells = [row for row in rows if row is not None]
    return cells if len(cells) == len(rows) else None


def _remove_rows(path: Path, gone: Collection[str]) -> int:
    """Write a sheet without the rows of some items; 0 if it has none, or is no sheet whose rows can all be read."""
    cells = _cells(path)
    columns = list(cells[0]) if cells else []
    column = next((name for name in columns if name.casefold() == "item"), None)
    if not cells or column is None:
        return 0
    kept = [row for row in cells if row[column].strip() not in gone]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *([row[name] for name in columns] for row in kept)])
    if len(kept) < len(cells):
        storage.write_text(path, f"\ufeff{text.getvalue()}")
    return len(cells) - len(kept)
