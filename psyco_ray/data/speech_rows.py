"""Rows of a run's speeches, read from its table when they are needed, and the draw of an iteration's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psyco_ray.config.errors import InputError
from psyco_ray.run import records
from psyco_ray.run.types import Row

_BATCH_ROWS = 64  # Python objects at a time


class SpeechRows:
    """Some rows of a SPEECHES table; only their numbers are held until they are iterated.

    The first iteration reads them in one pass over the file, a row group at a time, and keeps them in Arrow's memory,
    so iterate parts: the speeches of an iteration, or those of an evaluation.

    Example:
        >>> train, dev = train_and_dev(ledger.table("speeches", SPEECHES, lambda: prepare(job)))
        >>> for row in dev[:200]:
        ...     print(row["speech_id"], len(row["prompt_ids"]))
    """

    def __init__(self, path: Path, numbers: np.ndarray) -> None:
        """Name the rows.

        Args:
            path: of the table.
            numbers: of its rows, from 0, each once.
        """
        self._path, self._numbers = path, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, picks: slice | np.ndarray) -> SpeechRows:
        """The rows at a slice or at indices, in their order."""
        return SpeechRows(self._path, self._numbers[picks])

    def __iter__(self) -> Iterator[Row]:
        for batch in self._table.to_batches(max_chunksize=_BATCH_ROWS):
            yield from batch.to_pylist()

    @functools.cached_property
    def _table(self) -> pa.Table:
        order = np.argsort(self._numbers)
        ascending = self._numbers[order]
        with records.ParquetReading(self._path), pq.ParquetFile(self._path) as file:
            pieces, start = [file.schema_arrow.empty_table()], 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                first, last = np.searchsorted(ascending, (start, end))
                if last > first:
                    pieces.append(file.read_row_group(group).take(pa.array(ascending[first:last] - start)))
                start = end
        return pa.concat_tables(pieces).take(pa.array(np.argsort(order))).combine_chunks()


def train_and_dev(path: Path) -> tuple[SpeechRows, SpeechRows]:
    """The training and the held-out rows of a SPEECHES table, in its order."""
    numbers: dict[str, list[np.ndarray]] = {"train": [], "dev": []}
    start = 0
    with records.ParquetReading(path), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            splits = file.read_row_group(group, columns=["split"])["split"]
            for split, found in numbers.items():
                found.append(np.flatnonzero(pc.equal(splits, split)) + start)
            start += len(splits)
    train, dev = (SpeechRows(path, np.concatenate(found)) for found in numbers.values())
    return train, dev


def draw(total: int, count: int, iterations: int, seed: int) -> list[np.ndarray]:
    """What each iteration trains on: the next `count` of an endless sequence of reshuffled passes over all.

    Nothing repeats within an iteration, nor before everything was drawn once.

    Args:
        total: number of speeches or pairs.
        count: of an iteration.
        iterations: of the run.
        seed: of the run.

    Returns:
        Indices below `total` by iteration.

    Raises:
        InputError: `count` exceeds `total`.
    """
    if count > total:
        raise InputError(
            f"speeches_per_iteration is {count}, but the training split has only {total} speeches; lower it"
        )
    left = np.empty(0, np.int64)
    draws: list[np.ndarray] = []
    passes = 0
    for _ in range(iterations):
        drawn, left = left[:count].copy(), left[count:]
        if len(drawn) < count:
            shuffled = np.random.default_rng([seed, passes]).permutation(total)
            passes += 1
            again = np.isin(shuffled, drawn)
            fresh, missing = shuffled[~again], count - len(drawn)
            drawn, left = np.append(drawn, fresh[:missing]), np.append(fresh[missing:], shuffled[again])
        draws.append(drawn)
    return draws
