"""Parquet files, and directories of them as the hub has them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from psyco_ray.files.packed import Content
from psyco_ray.files.table import Cells, FileError, Table

SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("dev", "eval", "valid", "val", "validation"), "dev")
"""Accepted names of splits, in a column or at the beginning of a file name."""

_BATCH_ROWS = 1000


class ParquetTable(Table):
    """The rows of Parquet files, one file after another."""

    def __init__(self, files: dict[Path, dict[str, Any]], kind: str) -> None:
        """Look at the columns of the files.

        Args:
            files: cells that every row of a file has beside its own.
            kind: in words.
        """
        self._files, self.kind = files, kind
        names = [pq.read_schema(file).names for file in files]
        twice = [found for found in names if len(set(found)) < len(found)]  # told by the caller
        self.columns = twice[0] if twice else list(dict.fromkeys(itertools.chain(*names, *files.values())))

    def rows(self, columns: Collection[str] | None) -> Iterator[Cells]:
        """The rows of the files in their order; a column that a file lacks is None."""
        wanted = [name for name in self.columns if columns is None or name in columns]
        for path, more in self._files.items():
            file = pq.ParquetFile(path, pre_buffer=False)  # a pre-buffer keeps everything that was read until the end
            own = [name for name in wanted if name in file.schema_arrow.names]
            lacking = {name: more.get(name) for name in wanted if name not in own}
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=own):
                for row in _rows_of(batch):
                    yield row | lacking if lacking else row


def _rows_of(batch: Any) -> list[dict[str, Any]]:
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        raise FileError("cannot be read: it has a text that is not UTF-8, or a date out of range") from None


def open_file(content: Content) -> ParquetTable:
    """Open one Parquet file.

    Raises:
        FileError: it is in a compressed file, where it cannot be read in parts.
    """
    if content.packing:
        raise FileError(f"is a Parquet file in a {content.packing} file; unpack it first")
    return ParquetTable({content.path: {}}, "Parquet")


def open_directory(path: Path) -> ParquetTable:
    """Open a directory of Parquet files.

    Raises:
        FileError: it has none, or only some of the names begin with a split.
    """
    files = files_of(path)
    if not files:
        raise FileError("is a directory without a Parquet file; name a file")
    splits = _split_by_file(files)
    return ParquetTable(
        {file: {"split": splits[file]} if splits else {} for file in files}, f"Parquet, {len(files)} files"
    )


def files_of(path: Path) -> list[Path]:
    """The Parquet files below a directory in the order of their names, without hidden ones."""
    files = (file for file in path.rglob("[!._]*.parquet") if file.is_file())
    return sorted(files, key=str)


def _split_by_file(files: list[Path]) -> dict[Path, str | None]:
    """The split by file where there is no split column, as names on the hub tell it; dev is drawn from train.

    Raises:
        FileError: only some of the names give a split.
    """
    splits = {file: SPLITS.get(re.split("[-_.]", file.name)[0]) for file in files}
    if not any(splits.values()) or "split" in pq.read_schema(files[0]).names:
        return {}
    if unnamed := [file.name for file, split in splits.items() if split is None]:
        known = ", ".join(SPLITS)
        raise FileError(
            f"has {unnamed[0]}, which does not begin with the name of a split ({known}), as others do; rename it or "
            "remove it"
        )
    if "dev" not in splits.values():  # dev is drawn from the training split
        return {file: None if split == "train" else split for file, split in splits.items()}
    return dict(splits)
