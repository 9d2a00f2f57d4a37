"""Reading what a command wrote: a record or a table that is damaged names its file and the way out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config.errors import InputError

REPEAT = "restore it, or remove it to make it again"


def read_json(path: Path, way_out: str = REPEAT, kind: type = dict) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        way_out: what to do if it is damaged.
        kind: of the value.

    Raises:
        InputError: the file is missing, empty or damaged, or cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # invalid JSON or UTF-8
        raise damaged(path, error if path.stat().st_size else "it is empty", way_out) from None
    except OSError as error:
        raise damaged(path, error.strerror or error, way_out) from None
    if not isinstance(value, kind):
        raise damaged(path, f"it holds a {type(value).__name__}, not a {kind.__name__}", way_out)
    return value


def read_table(path: Path, way_out: str = REPEAT, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a Parquet file.

    Args:
        path: the file.
        way_out: what to do if it is damaged.
        columns: to read; None: all.

    Raises:
        InputError: the file is missing, empty or damaged, lacks a column, or cannot be read.
    """
    with ParquetReading(path, way_out):
        return pq.read_table(path, columns=None if columns is None else [*columns])


class ParquetReading:
    """A context in which a failure to read a Parquet file is an `InputError` that names the file.

    Example:
        >>> with ParquetReading(path), pq.ParquetFile(path) as file:
        ...     file.read_row_group(0)
    """

    def __init__(self, path: Path, way_out: str = REPEAT) -> None:
        self._path, self._way_out = path, way_out

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            raise damaged(self._path, arrow_reason(error), self._way_out) from None


def arrow_reason(error: Exception) -> str:
    """Why Arrow cannot read a file: what its message says before the values, which it quotes behind a colon."""
    return str(error).partition("\n")[0].partition(":")[0] or type(error).__name__


def damaged(path: Path, why: object, way_out: str = REPEAT) -> InputError:
    """The error for a damaged file."""
    return InputError(f"{path} is damaged ({why}); {way_out}")
