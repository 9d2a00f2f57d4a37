"""One reader for every table that a user names: rows as they are in the file, in bounded memory."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from psyco_ray.config.errors import InputError
from psyco_ray.files import delimited, json_rows, packed, parquet
from psyco_ray.files.table import Table

SAMPLE = Path(str(package_files("psyco_ray") / "data" / "sample" / "pairs.jsonl"))
"""368 pairs on 294 synthetic speeches, in the released dataset's columns; 74 of the rejected responses are cut."""

_NAME_CHARS, _NAME_WORDS = 40, 4  # of a column; more may be what a client says
_CHUNK = 2**20


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
        mended: lines whose bytes are not UTF-8 and were read as Windows-1252.
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
        missing = f"{self.what} file {self.path} has no column {' or '.join(names)}"
        if any(map(_is_data, self.columns)):
            raise InputError(f"{missing}, and its first row looks like data; add a row with the names of the columns")
        raise InputError(f"{missing}; it has {shown(self.columns)}; name the right one in {key}")

    def digest(self) -> str:
        """A hash of the bytes of the file, or of the names and bytes of a directory's Parquet files."""
        state = xxhash.xxh3_128()
        with reading(self.path, self.what):
            for file in parquet.files_of(self.path) if self.path.is_dir() else [self.path]:
                if file != self.path:
                    state.update(str(file.relative_to(self.path)).encode(errors="surrogateescape") + b"\0")
                with file.open("rb") as content:
                    while chunk := content.read(_CHUNK):
                        state.update(chunk)
        return state.hexdigest()


def open_records(name: str | Path, what: str, encoding: str | None = None) -> RecordFile:
    """Open a CSV, JSON, JSONL or Parquet file, a directory of Parquet files, or the packaged `sample`.

    Args:
        name: the path, or `sample`.
        what: the kind of table, for messages.
        encoding: of a text file, where it is not UTF-8 and has no byte-order mark.

    Raises:
        InputError: the file is missing, damaged, empty, of another kind or encoding, or has two columns of one name.
    """
    path = SAMPLE if name == "sample" else Path(name)
    with reading(path, what):
        table = _open(path, encoding)
    twice = next((column for column in table.columns if table.columns.count(column) > 1), None)
    if twice is not None:
        raise InputError(f"{what} file {path} has two columns {shown([twice])}; rename or drop one of them")
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


def shown(columns: Sequence[str]) -> str:
    """Names of columns for a message; what may be a client's words in a file without names is counted.

    Example:
        >>> shown(["id", "I cannot sleep since my mother moved in"])
        'id, (a text of 39 characters)'
    """
    return ", ".join(f"(a text of {len(name)} characters)" if _is_data(name) else name for name in columns)


def _is_data(name: str) -> bool:
    return len(name) > _NAME_CHARS or len(name.split()) > _NAME_WORDS or "\n" in name


def _open(path: Path, encoding: str | None) -> Table:
    if path.is_dir():
        return parquet.open_directory(path)
    ending = packed.ending_of(path)
    if ending == ".parquet":
        return parquet.open_file(path)
    if ending in (".csv", ".tsv"):
        return delimited.open_table(path, encoding)
    if ending in (".json", ".jsonl"):
        return json_rows.open_table(path, encoding)
    raise InputError(f"{path} has none of the endings .csv, .tsv, .json, .jsonl, .parquet")


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """A context that names the file where it cannot be read, without the cells that a library quotes."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{what} file {path} does not exist") from None
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].split(":")[0]
        raise InputError(f"{what} file {path} cannot be read: {reason}") from None
    except (OSError, EOFError, UnicodeError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{what} file {path} cannot be read: {' '.join(str(error).split())}") from None
