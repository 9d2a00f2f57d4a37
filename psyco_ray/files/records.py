"""One reader for every table that a user names: rows as they are in the file, in bounded memory."""

from __future__ import annotations

import codecs
import contextlib
import functools
import logging
import lzma
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from psyco_ray.config.errors import InputError
from psyco_ray.config.names import is_name, named_file
from psyco_ray.files import delimited, json_rows, packed, parquet, sheets
from psyco_ray.files.table import FileError, Table, is_data, shown, shown_among
from psyco_ray.run.manifests import add_bytes_of
from psyco_ray.run.records import arrow_reason

_PACKAGED = Path(str(package_files("psyco_ray") / "data" / "sample"))
SAMPLE = _PACKAGED / "pairs.jsonl"
"""368 pairs on 294 synthetic speeches, in the released dataset's columns; 74 of the rejected responses are cut."""
SAMPLES = {"sample": SAMPLE, "sample-conversations": _PACKAGED / "conversations.jsonl"}
"""Packaged files by the name that stands for each: pairs on synthetic speeches, and synthetic conversations."""

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx")
"""Endings of names, in any case; .gz or .zip may follow. Parquet and Excel files are known by their content."""

_ENCODING = "#encoding="
_NO_HEADER = "its first row looks like data; add a row with the names of the columns"
_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """A row of a file.

    Attributes:
        number: from 1, over all rows of the file, bad ones too; lines without a row have none.
        cells: values by column as the format has them. A CSV file has text alone and blank cells are ``""``; JSON and
            Parquet have numbers, lists, dicts, bytes or None too, and a JSON row only the keys that it names.
            `cells.text_of` takes one as text.
        problem: why the row cannot be read, without its content; `cells` is then None.
    """

    number: int
    cells: dict[str, Any] | None
    problem: str | None = None


class RecordFile:
    """A table on disk. Each iteration reads it anew and yields its records.

    Attributes:
        path: the file or directory.
        what: the kind of table in messages, such as "pairs".
        kind: the format in words, such as "CSV with ;".
        encoding: of a text file, as Python names it, else None.
        mended: lines with bytes that are not of the encoding; of a UTF-8 file they are read as Windows-1252.
        columns: the names of the columns; of JSON rows those of the first 1,000.
    """

    def __init__(self, path: Path, what: str, table: Table) -> None:
        self.path, self.what, self._table = path, what, table
        self.kind, self.encoding, self.mended = table.kind, table.encoding, table.mended
        self.columns: list[str] = list(table.columns)

    def __iter__(self) -> Iterator[Record]:
        return self.read()

    def read(self, columns: Collection[str] | None = None) -> Iterator[Record]:
        """The records with all cells, or with those of some columns; absent ones are left out.

        Raises:
            InputError: the file is damaged; the records before the damage are yielded.
        """
        with reading(self.path, self.what):
            for number, cells in enumerate(self._table.rows(columns), start=1):
                yield Record(number, None, cells) if isinstance(cells, str) else Record(number, cells)

    def column(self, names: Sequence[str], key: str) -> str:
        """The first of some names that is a column of the file.

        Args:
            names: accepted names, the preferred one first.
            key: where a job names the right column, for the message.

        Raises:
            InputError: the file has none of them. The message shows no name that may be a client's words.
        """
        if all(name not in self.columns for name in names):
            with reading(self.path, self.what):
                self.columns = list(self._table.all_columns())
        if (found := next((name for name in names if name in self.columns), None)) is not None:
            return found
        raise InputError(
            f"{self.what} file {self.path} has no column {' or '.join(names)}; it has {self.shown_columns()}; name the "
            f"right one in {key}"
        )

    def shown_columns(self) -> str:
        """The columns for a message, without names that may be a client's words."""
        if self._table.has_header and not all(map(is_name, self.columns)):
            return f"{shown(self.columns)}: {_NO_HEADER}"
        return shown(self.columns)

    def digest(self) -> str:
        """A hash of the bytes of the file, or of the names and bytes of a directory's Parquet files."""
        return digest_of(self.path, self.what)


def digest_of(name: str | Path, what: str) -> str:
    """A hash of the bytes of a file, or of the names and bytes of a directory's Parquet files.

    Args:
        name: as in `open_records`.
        what: the kind of table, for messages.

    Raises:
        InputError: the file cannot be read.
    """
    path, state = locate(name)[0], xxhash.xxh3_128()
    with reading(path, what):
        for file in parquet.files_of(path) if path.is_dir() else [path]:
            if file != path:
                state.update(str(file.relative_to(path)).encode(errors="surrogateescape") + b"\0")
            add_bytes_of(file, state)
    return state.hexdigest()


def open_records(name: str | Path, what: str, encoding: str | None = None, pad: bool = False) -> RecordFile:
    """Open a CSV, JSON, Parquet or Excel file, also compressed, a directory of Parquet files, or a packaged one.

    Args:
        name: the path, or a name of `SAMPLES`. After a # it names one of several sheets, lists, or files of a zip file,
            and after ``#encoding=`` the encoding of a text file.
        what: the kind of table, for messages.
        encoding: of a text file, where it is not UTF-8 and has no byte-order mark; one in the name comes first.
        pad: rows of a CSV file may be shorter than the header, as spreadsheets drop blank cells at the end. Otherwise
            such a row is bad: it may be a part of one.

    Raises:
        InputError: the file is missing, damaged, empty, of another kind or encoding, or has two columns of one name.
    """
    path, part, named = _parts(name)
    with reading(path, what):
        table = _open(path, part, named or encoding, pad)
    if table.mended:
        mended = "Windows-1252" if (table.encoding or "").startswith("utf-8") else "\ufffd"
        _warn(f"{what} file {path}: {table.mended} lines are not all {table.encoding}; the rest is read as {mended}")
    twice = next((column for column in table.columns if table.columns.count(column) > 1), None)
    if twice is not None:
        raise InputError(
            f"{what} file {path} has two columns {shown_among(twice, table.columns)}; rename or drop one of them"
        )
    if table.has_header and table.columns and all(map(is_data, table.columns)):
        raise InputError(f"{what} file {path} has no names of columns: {_NO_HEADER}")
    file = RecordFile(path, what, table)
    if next(file.read(), None) is None:
        raise InputError(f"{what} file {path} has no rows")
    return file


def read_rows(name: str | Path, what: str, encoding: str | None = None) -> list[dict[str, Any]]:
    """All rows of a small file.

    Raises:
        InputError: as `open_records` does, or a row is bad.
    """
    file = open_records(name, what, encoding)
    rows = []
    for record in file:
        if record.cells is None:
            raise InputError(f"{what} file {file.path}: row {record.number} cannot be read: {record.problem}")
        rows.append(record.cells)
    return rows


def locate(name: str | Path) -> tuple[Path, str | None]:
    """The path of a file, and the part of it that is named after a # where the file has several.

    Example:
        >>> locate("sample")[0].name, locate("no/such/book.xlsx#Clients")
        ('pairs.jsonl', (PosixPath('no/such/book.xlsx'), 'Clients'))
    """
    return _parts(name)[:2]


def _parts(name: str | Path) -> tuple[Path, str | None, str | None]:
    """The path, the part and the encoding that a name gives."""
    if str(name) in SAMPLES:
        return SAMPLES[str(name)], None, None
    if Path(name).exists():
        return Path(name), None, None
    rest, mark, encoding = str(name).rpartition(_ENCODING)
    rest = rest if mark else str(name)
    encoding = encoding if mark else ""
    path, _, part = rest.rpartition("#")
    named = path and part and not Path(rest).exists()
    return (Path(path), part, encoding or None) if named else (Path(rest), None, encoding or None)


@functools.lru_cache(maxsize=1000)  # a command opens a file several times
def _warn(message: str) -> None:
    _log.warning(message)


def _open(path: Path, part: str | None, encoding: str | None, pad: bool) -> Table:
    if path.is_dir():
        return parquet.open_directory(path)
    content, part = packed.find(path, part)
    head = content.head()
    if head.startswith(packed.ZIP):
        return sheets.open_table(content, part)
    if head.startswith(b"PAR1") or (not head and content.ending == ".parquet"):
        return parquet.open_file(content)
    if content.ending in (".json", ".jsonl", ".ndjson") or (content.ending in (".csv", ".tsv") and _is_json(head)):
        return json_rows.open_table(content, encoding, part)
    if content.ending in (".csv", ".tsv"):
        return delimited.open_table(content, encoding, pad)
    if content.ending in (".xlsx", ".parquet"):
        raise FileError(f"is not a {content.ending} file, whatever its name says")
    raise FileError(f"has none of the endings {', '.join(ENDINGS)}, also with .gz or .zip")


def _is_json(head: bytes) -> bool:
    """Whether a file that is named as a CSV file begins as JSON."""
    return re.match(rb'\s*(\[\s*)?\{\s*"', head.removeprefix(codecs.BOM_UTF8)) is not None


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """A context that names the file where it cannot be read, without the cells that a library quotes."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{what} file {named_file(path)} does not exist") from None
    except FileError as error:
        raise InputError(f"{what} file {path} {error}") from None
    except pa.ArrowException as error:
        raise InputError(f"{what} file {path} cannot be read: {arrow_reason(error)}") from None
    except (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{what} file {named_file(path)} cannot be read: {reason}") from None
