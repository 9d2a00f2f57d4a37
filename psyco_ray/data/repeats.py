"""The rows of a dataset that repeat another one: exactly, nearly, or by holding most of it or being held."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from psyco_ray.data import containment, duplicates
from psyco_ray.run.disk_errors import writing_in


class Repeats(NamedTuple):
    """Rows of a table that repeat others.

    Attributes:
        representative: for each row the row that represents it: itself, another one, or -1 without a speech.
        held: keys of the speeches that are left out as they hold most of another one or are held.
    """

    representative: np.ndarray
    held: set[int]


def find(cleaned: pa.Table, keys: np.ndarray, order: np.ndarray, threshold: float, path: Path) -> Repeats:
    """The rows of a table that repeat others; of rows that repeat each other the first by rank stays.

    Args:
        cleaned: a table with the columns `reason` (null: the row has a speech), `speech`, `signature` and `marks`.
        keys: the speech ids of its rows as numbers.
        order: its rows by rank.
        threshold: similarity of near duplicates; 1: only equal speeches represent each other.
        path: a file for the signatures by rank.
    """
    representative = np.full(len(order), -1)
    rows = order[cleaned["reason"].is_null().to_numpy()[order]]
    _, first, inverse = np.unique(keys[rows], return_index=True, return_inverse=True)
    representative[rows] = rows[first[inverse]]
    unique = rows[np.sort(first)]
    if threshold == 1 or not len(unique):
        return Repeats(representative, set())
    near = duplicates.near(_signatures(cleaned, unique, path), _reader(cleaned, unique), threshold)
    _replace(representative, rows, unique, near)
    stays = np.delete(unique, list(near))
    held = containment.held(lambda: _marks(cleaned, stays), len(stays), _reader(cleaned, stays))
    _replace(representative, rows, stays, held)
    return Repeats(representative, set(keys[stays[list(held)]].tolist()))


def _replace(representative: np.ndarray, rows: np.ndarray, ranked: np.ndarray, dropped: dict[int, int]) -> None:
    """Let rows be represented by others; `dropped` has positions in `ranked`."""
    replacement = np.arange(len(representative))
    replacement[ranked[list(dropped)]] = ranked[list(dropped.values())]
    representative[rows] = replacement[representative[rows]]


def _reader(cleaned: pa.Table, rows: np.ndarray) -> Callable[[int], str]:
    return lambda n: cleaned["speech"][rows[n]].as_py()


def _signatures(cleaned: pa.Table, rows: np.ndarray, path: Path) -> np.ndarray:
    """The signatures of some rows, in their order, memory-mapped from a file."""
    width = duplicates.PERMUTATIONS
    with writing_in(path.parent), open(path, "wb") as file:  # without room a later access would end the process
        os.posix_fallocate(file.fileno(), 0, len(rows) * width * np.dtype(np.uint32).itemsize)
    signed = np.memmap(path, dtype=np.uint32, mode="r+", shape=(len(rows), width))
    for ranks, chunk in _ranked(cleaned, rows, "signature"):
        signatures = np.frombuffer(chunk.buffers()[1], dtype=np.uint32).reshape(-1, width)[chunk.offset :][: len(chunk)]
        signed[ranks[ranks >= 0]] = signatures[ranks >= 0]
    return signed


def _marks(cleaned: pa.Table, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The marks of some rows, chunk by chunk of the table, each with the position of its row."""
    for ranks, chunk in _ranked(cleaned, rows, "marks"):
        offsets = chunk.offsets.to_numpy()
        values = chunk.values.to_numpy()[offsets[0] : offsets[-1]]
        positions = np.repeat(ranks, np.diff(offsets))
        yield values[positions >= 0], positions[positions >= 0]


def _ranked(cleaned: pa.Table, rows: np.ndarray, column: str) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """The chunks of a column, with the positions of their rows in `rows`; -1: not among them."""
    positions = np.full(len(cleaned), -1, np.int32)
    positions[rows] = np.arange(len(rows))
    start = 0
    for chunk in cleaned[column].chunks:
        yield positions[start : start + len(chunk)], chunk
        start += len(chunk)
