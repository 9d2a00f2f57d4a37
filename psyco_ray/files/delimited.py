"""CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from pathlib import Path

from psyco_ray.files.table import Cells, Table
from psyco_ray.files.text import Text, open_text

_CELL_CHARS = 2**26

csv.field_size_limit(_CELL_CHARS)  # Python's own limit, 131,072, splits cells of people who write much


class DelimitedTable(Table):
    """A CSV or TSV file; its first row names the columns."""

    def __init__(self, text: Text, separator: str) -> None:
        self._text, self._separator = text, separator
        self.kind = "TSV" if separator == "\t" else "CSV" if separator == "," else f"CSV with {separator}"
        self.encoding, self.mended = text.encoding, text.mended
        self._header = [name.strip() for name in next(csv.reader(text.lines(), delimiter=separator), [])]
        self.columns = [name for name in self._header if name]

    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The rows after the first, each cell as text."""
        reader = csv.reader(self._text.lines(), delimiter=self._separator)
        next(reader, None)
        wanted = set(self.columns if columns is None else columns)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"invalid CSV: {error}"
                continue
            if cells and len(cells) != len(self._header):
                yield f"{len(cells)} cells where the header has {len(self._header)}"
            elif cells:
                yield {name: cell for name, cell in zip(self._header, cells, strict=True) if name in wanted}


def open_table(path: Path, encoding: str | None) -> DelimitedTable:
    """Open a CSV or TSV file."""
    text = open_text(path, encoding)
    head = next(text.lines(), "")
    return DelimitedTable(text, max(",;\t|", key=head.count))
