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
        header = self._header
        wanted = {name for name in self.columns if columns is None or name in columns}
        every = len(wanted) == len(header)
        for cells in itertools.islice(self._parsed(), 1, None):
            if isinstance(cells, str):
                yield cells
            elif every:
                yield dict(zip(header, cells, strict=False))
            else:
                yield {name: cell for name, cell in zip(header, cells, strict=False) if name in wanted}

    def _parsed(self) -> Iterator[list[str] | str]:
        """The rows with the header, or the reasons why they cannot be read; blank lines are left out.

        A quote that never closes makes the rest of a file one cell. Where the lines of a bad row show such a quote, the
        row is its first line, and the next line begins a row.
        """
        lines = _Lines(itertools.islice(self._text.lines(), self._skipped, None))
        row, width, in_lines, reread = lines.row, -1, True, 0
        reader = csv.reader(lines.feed(), **self._dialect)
        while True:
            try:
                for cells in reader:
                    if len(cells) != width or lines.ended:
                        break
                    in_lines = in_lines and len(row) == 1
                    row.clear()
                    yield cells
                else:
                    return
            except csv.Error as error:
                problem, is_open = _reason(error), "limit" in str(error)
            else:
                width = len(cells) or width if width < 0 else width
                if not lines.ended and self._fits(cells, width, row):
                    row.clear()
                    if cells:
                        yield cells
                    continue
                problem, is_open = f"{len(cells)} cells where the header has {width}", lines.ended
            yield "a quote that never closes" if is_open else problem
            if self._restarts(lines, in_lines) if is_open else self._is_torn(row):
                reread += len(row)
                if reread > _REREAD_LINES:
                    raise FileError("has quotes that do not match in many rows; it may not be a CSV file")
                lines.put_back(row[1:])
                reader = csv.reader(lines.feed(), **self._dialect)
            row.clear()

    def _fits(self, cells: list[str], width: int, lines: list[str]) -> bool:
        """Make a row as wide as the header; whether that is possible without a loss."""
        if len(cells) > width and not any(cells[width:]):
            del cells[width:]  # a spreadsheet's blank columns
        if self._pad and len(cells) < width and cells and not self._is_torn(lines):
            cells += [""] * (width - len(cells))
        return len(cells) == width or not cells

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
        swallowed, before = len(lines.row) - 1, lines.before_row()
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
        self._lines = enumerate(lines, start=1)
        self._again: list[str] = []  # the last one first
        self._count = 0
        self.row: list[str] = []  # emptied by the caller
        self.ended = False  # within a row

    def feed(self) -> Iterator[str]:
        """The lines that are left."""
        while self._again:
            self.row.append(self._again[-1])
            yield self._again.pop()
        for self._count, line in self._lines:  # noqa: B020
            self.row.append(line)
            yield line
        self.ended = bool(self.row)

    def put_back(self, lines: list[str]) -> None:
        """Read some lines again, by another `feed`."""
        self._again.extend(reversed(lines))
        self.ended = False

    def before_row(self) -> int:
        """Lines before the row."""
        return self._count - len(self._again) - len(self.row)


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
    reader = csv.reader(head.feed(), **dialect)
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
