"""JSON files: an array of objects, or one object per line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.files.cells import kind_of
from psyco_ray.files.table import Cells, Table
from psyco_ray.files.text import Text, open_text

_PROBE = 1000  # rows that give the columns


class JsonTable(Table):
    """An array of objects, or one object per line."""

    def __init__(self, text: Text) -> None:
        self._text = text
        start = next((line for line in text.lines() if line.strip()), "").lstrip()
        self._array = start.startswith("[")
        self.kind = "JSON" if self._array else "JSONL"
        self.encoding, self.mended = text.encoding, text.mended
        self.columns = _keys(itertools.islice(self.rows(None), _PROBE))

    def all_columns(self) -> list[str]:
        """The keys of all rows."""
        return _keys(self.rows(None))

    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The objects."""
        lines = (line for line in self._text.lines() if line.strip())
        for cells in self._elements() if self._array else map(_object, lines):
            if columns is None or isinstance(cells, str):
                yield cells
            else:
                yield {name: cells[name] for name in columns if name in cells}

    def _elements(self) -> Iterator[Cells]:
        try:
            values = json.loads("".join(self._text.lines()), strict=False)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self._text.path} is not a JSON array: {error}") from None
        for value in values:
            yield value if isinstance(value, dict) else f"{kind_of(value)} instead of an object"


def open_table(path: Path, encoding: str | None) -> JsonTable:
    """Open a JSON or JSONL file."""
    return JsonTable(open_text(path, encoding))


def _keys(rows: Iterable[Cells]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(row for row in rows if not isinstance(row, str))))


def _object(line: str) -> Cells:
    try:
        value = json.loads(line, strict=False)
    except (ValueError, RecursionError) as error:
        return f"invalid JSON: {str(error).partition(':')[0]}"
    return value if isinstance(value, dict) else f"{kind_of(value)} instead of an object"
