"""Excel files: one sheet, whose first row that is not blank names the columns."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator
from typing import Any
from xml.etree.ElementTree import ParseError

from psyco_ray.files.packed import Content, choice
from psyco_ray.files.table import Cells, FileError, Table, shown, shown_each

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ParseError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    OSError,
    EOFError,
)
"""What openpyxl raises on a damaged file."""


class Sheet(Table):
    """The rows of a sheet; values of formulas are those that Excel stored."""

    kind = "Excel"
    has_header = True

    def __init__(self, content: Content, sheet: str) -> None:
        self._content, self._sheet = content, sheet
        self._header = [_name(cell) for cell in next(self._filled(), ())]
        self.columns = [name for name in self._header if name]

    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The rows after the first, without blank ones; cells are text, numbers, dates, truth values or None."""
        width = len(self._header)
        wanted = {name for name in self.columns if columns is None or name in columns}
        for cells in itertools.islice(self._filled(), 1, None):
            if any(cell is not None for cell in cells[width:]):
                yield f"{len(cells)} cells where the header has {width}"
            else:
                row = itertools.zip_longest(self._header, cells[:width])
                yield {name: cell for name, cell in row if name in wanted}

    def _filled(self) -> Iterator[tuple[Any, ...]]:
        with _workbook(self._content) as book:
            for cells in _rows_of(book[self._sheet]):
                if any(cell is not None for cell in cells):
                    yield cells


def open_table(content: Content, sheet: str | None) -> Sheet:
    """Open an Excel file.

    Args:
        content: the bytes.
        sheet: its name, where several have rows.

    Raises:
        FileError: the file is damaged, or several sheets have rows and none is named.
    """
    with _workbook(content) as book:
        filled = [
            name
            for name in book.sheetnames
            if hasattr(book[name], "iter_rows")  # else a chart
            and any(cell is not None for cells in _rows_of(book[name]) for cell in cells)
        ]
        if sheet is not None and sheet not in filled:
            raise FileError(f"has no sheet {sheet} with rows; it has {shown(filled)}")
    if sheet is None and len(filled) > 1:
        raise FileError(f"has several sheets with rows; {choice(content.path, shown_each(filled))}")
    if not filled:
        raise FileError("has no rows")
    return Sheet(content, sheet or filled[0])


@contextlib.contextmanager
def _workbook(content: Content) -> Iterator[Any]:
    """The opened workbook, and one message for everything that a damaged one raises."""
    import openpyxl

    warnings.filterwarnings("ignore", module="openpyxl")  # of styles and checks that have no effect on values
    try:
        with content.open() as file:
            seekable = file if not content.packing else io.BytesIO(file.read())
            book = openpyxl.load_workbook(seekable, read_only=True, data_only=True)
            try:
                yield book
            finally:
                book.close()
    except FileError:
        raise
    except _DAMAGE:
        raise FileError("cannot be read: it is a zip file but no undamaged Excel workbook") from None


def _rows_of(sheet: Any) -> Iterator[tuple[Any, ...]]:
    sheet.reset_dimensions()  # some programs write wrong ones
    return sheet.iter_rows(values_only=True)


def _name(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()
