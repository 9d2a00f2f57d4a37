"""CSV and TSV files as spreadsheets, databases and scripts write them."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Collection, Iterator
from typing import Any

from psyco_ray.files.packed import HEAD, Content
from psyco_ray.files.table import Cells, FileError, Table
from psyco_ray.files.text import Text, open_text

SEPARATORS = ",;\t|"
_NO_SEPARATOR = "\x1f"  # of a file with one column; no text has it
_CELL_CHARS = 2**24  # `csv` takes 4 bytes for each
_HEAD_ROWS = 100  # tell the separator
_LOST_LINES = 100  # that a quote may swallow before the file is refused
_REREAD_LINES = 10**6

csv.field_size_limit(_CELL_CHARS)  # Python's own limit, 131,072, splits cells of people who write much

Dialect = dict[str, Any]


class DelimitedTable(Table):
    """A CSV or TSV file. Its first row that is not blank names the columns."""

    has_header = True

    def __init__(self, text: Text, pad: bool = False) -> None:
        self._pad = pad
        self._text, self.encoding, self.mended = text, text.encoding, text.mended
        self._skipped, self._dialect = _sniff(text)
        separator = self._dialect["delimiter"]
        self.kind = {",": "CSV", _NO_SEPARATOR: "CSV", "\t": "TSV"}.get(separator, f"CSV with {separator}")
        header = next(self._parsed(), [])
        if isinstance(header, str):
            raise FileError(f"has no readable header: {header}")
        self._header = [name.strip().strip("\ufeff") for name in header]
        self.columns = [name for name in self._header if name]
        if header and not self.columns:
            raise FileError("has no names of columns in its first row")

    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The rows after the first, each cell as text; a blank cell is ``""``."""
        width = len(self._header)
        wanted = {name for name in self.columns if columns is None or name in columns}
        every = len(wanted) == width
        for cells in itertools.islice(self._parsed(), 1, None):
            if isinstance(cells, str):
                yield cells
            elif every:
                yield dict(zip(self._header, cells, strict=False))
            else:
                yield {name: cell for name, cell in zip(self._header, cells, strict=False) if name in wanted}

    def _parsed(self) -> Iterator[list[str] | str]:
        """The rows with the header, or the reasons why they cannot be read; blank lines are left out.

        A quote that never closes makes the rest of a file one cell. Where the lines of a bad row show such a quote, the
        row is its first line, and the next line begins a row.
        """
        lines = _Lines(itertools.islice(self._text.lines(), self._skipped, None))
        reader = csv.reader(lines, **self._dialect)
        width, in_lines, reread = 0, True, 0
        while True:
            lines.row.clear()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem, is_open = _reason(error), "limit" in str(error)
            else:
                if not cells:
                    continue
                width = width or len(cells)
                if len(cells) > width and not any(cells[width:]):
                    del cells[width:]  # a spreadsheet's blank columns
                if self._pad and len(cells) < width and not self._is_torn(lines.row):
                    cells += [""] * (width - len(cells))
                if len(cells) == width and not lines.ended:
                    in_lines = in_lines and len(lines.row) == 1
                    yield cells
                    continue
                problem, is_open = f"{len(cells)} cells where the header has {width}", lines.ended
            if is_open:
                problem = "a quote that never closes"
            yield problem
            if self._restarts(lines, in_lines) if is_open else self._is_torn(lines.row):
                reread += len(lines.row)
                if reread > _REREAD_LINES:
                    raise FileError("has quotes that do not match in many rows; it may not be a CSV file")
                lines.put_back(lines.row[1:])
                reader = csv.reader(lines, **self._dialect)

    def _is_torn(self, lines: list[str]) -> bool:
        """Whether the quotes of a row of several lines do not match."""
        if len(lines) == 1:
            return False
        try:
            list(csv.reader(lines, **self._dialect, strict=True))
        except csv.Error:
            return True
        return False

    def _restarts(self, lines: _Lines, in_lines: bool) -> bool:
        """Whether the lines after a quote that never closes are rows: where every row before is one line.

        Raises:
            FileError: they may be lines of one cell, and many rows would be lost.
        """
        swallowed, before = len(lines.row) - 1, lines.count - len(lines.row)
        if swallowed and in_lines and (before > 1 or swallowed > _LOST_LINES):
            return True
        if swallowed > _LOST_LINES:
            raise FileError(
                f"has a quote in line {before + self._skipped + 1} that never closes, and {swallowed} lines follow; "
                "close it"
            )
        return False


class _Lines:
    """Lines for `csv.reader` that keeps those of the row it reads."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: list[str] = []  # the last one first
        self.row: list[str] = []
        self.count = 0
        self.ended = False  # within a row

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines, None)
        if line is None:
            self.ended = bool(self.row)
            raise StopIteration
        self.count += 1
        self.row.append(line)
        return line

    def put_back(self, lines: list[str]) -> None:
        """Read some lines again."""
        self._again.extend(reversed(lines))
        self.count -= len(lines)
        self.ended = False


def open_table(content: Content, encoding: str | None, pad: bool = False) -> DelimitedTable:
    """Open a CSV or TSV file.

    Args:
        content: the bytes.
        encoding: declared by the user.
        pad: rows that are shorter than the header end with blank cells.

    Raises:
        FileError: its encoding is not clear.
    """
    return DelimitedTable(open_text(content, encoding), pad)


def _sniff(text: Text) -> tuple[int, Dialect]:
    """The lines before the header, and how the first rows are separated and quoted.

    The separator is the one by which most rows have as many cells as the header. Backslashes before quotes, spaces
    before them, and tabs without quoting are read as such only where that gives more such rows.
    """
    lines: list[str] = []
    chars = 0
    whole = True
    for line in text.lines():
        if chars > HEAD:
            whole = False
            break
        lines.append(line)
        chars += len(line)
    head = "".join(lines[:1]).strip()
    if len(head) == 5 and head.startswith("sep="):  # Excel's own line
        return 1, {"delimiter": head[4]}
    candidates: list[Dialect] = [{"delimiter": separator} for separator in SEPARATORS]
    if any('\\"' in line for line in lines):
        candidates += [{"delimiter": separator, "escapechar": "\\"} for separator in SEPARATORS]
    if any(f'{separator} "' in line for line in lines for separator in SEPARATORS):
        candidates += [{"delimiter": separator, "skipinitialspace": True} for separator in SEPARATORS]
    candidates.append({"delimiter": "\t", "quoting": csv.QUOTE_NONE})
    scores = [_agreement(lines, dialect, whole) for dialect in candidates]
    best = max(scores)
    if not best[0] and _is_prose(lines):
        return 0, {"delimiter": _NO_SEPARATOR}
    return 0, candidates[scores.index(best)]  # the first of equal ones


def _is_prose(lines: list[str]) -> bool:
    """Whether the commas of a file with one column are those of sentences: most are before a space."""
    commas = sum(line.count(",") for line in lines)
    return sum(line.count(", ") for line in lines) >= 0.8 * commas


def _agreement(lines: list[str], dialect: Dialect, whole: bool) -> tuple[bool, float, int]:
    """How well a dialect fits: several columns, the share of the rows with as many cells, and the number of columns."""
    rows: list[list[str]] = []
    head = _Lines(iter(lines))
    reader = csv.reader(head, **dialect)
    while len(rows) < _HEAD_ROWS:
        head.row.clear()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error:
            cells = [""]
        rows.append([""] if head.ended else cells)
    rows = [row for row in (rows if whole or len(rows) == _HEAD_ROWS else rows[:-1]) if row]
    if not rows:
        return False, 0.0, 0
    width = len(rows[0])
    share = sum(len(row) == width for row in rows) / len(rows)
    return width > 1, share if width > 1 else 0.0, width


def _reason(error: csv.Error) -> str:
    if "new-line" in str(error):
        return "a carriage return outside quotes"
    return f"invalid CSV: {error}"
