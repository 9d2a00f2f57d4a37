"""The file that `data.speeches` names, as tables of rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Data
from psyco_ray.data.client_rows import COLUMNS, ClientFile, ClientRow
from psyco_ray.data.speaker_columns import Keys
from psyco_ray.data.splits import split_of
from psyco_ray.files import parquet
from psyco_ray.files.records import SAMPLES, digest_of, locate
from psyco_ray.run.changes import Changes
from psyco_ray.run.types import Row

_ROWS = 4096  # of a table

READ = pa.schema(
    [
        ("row", pa.int64()),  # of the file, from 1; 0: the file cannot be read
        *[(name, pa.string()) for name in ("speech", "topic", "split")],
        ("begins", pa.string()),  # how the dialogue of a context begins; null: as the context does
        ("left_out", pa.string()),  # why the row has no speech
        ("problem", pa.string()),  # a message for the user
    ]
)

_log = logging.getLogger(__name__)


def open_file(data: Data) -> ClientFile:
    """The file, whose columns and first rows are checked.

    Raises:
        InputError: it cannot be read, has no column of speeches, or names speakers without `data.where`.
    """
    columns = [data.speech_column] if data.speech_column else COLUMNS
    return ClientFile(
        data.speeches, "speeches", columns, Keys("data.speech_column", "data.where", "data.dialogue"), data
    )


def check(data: Data, record: Row | None, changes: Changes) -> bool:
    """Check the file before Ray starts.

    Args:
        data: names the file.
        record: of the stage that read it in this run; None: it was not read yet.
        changes: refuses or accepts that the file has changed since.

    Returns:
        Whether the file is to be read again.

    Raises:
        InputError: as `open_file` does, no row is one of `data.where`, or the file has changed since it was read.
    """
    if record is None:
        open_file(data).check()
        return False
    if data.speeches in SAMPLES:
        return False
    if not locate(data.speeches)[0].exists():
        _log.warning(f"speeches file {data.speeches} is gone; the run has its speeches and goes on")
        return False
    then = record.get("digest")
    if then is None or then == digest_of(data.speeches, "speeches"):
        return False
    changes.found(f"speeches file {data.speeches} has changed since this run read it")
    open_file(data).check()
    return True


def size_of(file: ClientFile) -> int:
    """Bytes of the file, or of the files of a directory."""
    path = file.file.path
    return sum(part.stat().st_size for part in (parquet.files_of(path) if path.is_dir() else [path]))


def read(data: Data) -> Iterator[pa.Table]:
    """The rows of the file as tables of the READ schema.

    Raises:
        InputError: the file cannot be read to its end; the rows before are yielded.
    """
    file = open_file(data)
    rows = (_row(row, file.column) for row in file.rows())
    while chunk := list(islice(rows, _ROWS)):
        yield pa.Table.from_pylist(chunk, schema=READ)


def speech_and_split(row: Row, data: Data) -> tuple[str, str]:
    """The speech and the split of a row that is not left out.

    Raises:
        InputError: the file cannot be read, or the row names an unknown split.
    """
    if row["problem"] is not None:
        raise InputError(row["problem"])
    try:
        return row["speech"], split_of(row, row["begins"] or row["speech"], data.dev_share)
    except InputError as error:
        # named by number, never by a client's words
        raise InputError(f"{data.speeches}: row {row['row']}: {error}") from None


def _row(row: ClientRow, column: str) -> Row:
    reason = row.problem or ("outside data.where" if row.skipped else None if row.text else f"with an empty {column}")
    return {
        "row": row.number,
        "speech": row.text,
        "topic": row.topic,
        "split": row.split,
        "begins": row.begins,
        "left_out": reason,
    }
