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
        held: dialogues that are left out as they hold most of another one or are held.
    """

    representative: np.ndarray
    held: set[int]


def find(cleaned: pa.Table, order: np.ndarray, threshold: float, path: Path) -> Repeats:
    """The rows of a table that repeat others; of those that repeat each other the first by rank stays.

    Rows are equal by their speech, or resemble each other by what the client says in their whole dialogues: contexts
    of one dialogue stay or go together. A speech is a dialogue by itself.

    Args:
        cleaned: a table with the columns `reason` (null: the row has a speech), `speech`, `key`, `dialogue`, `turn`,
            `words`, `signed`, `signature` and `marks` of `collect_rows.CLEANED`.
        order: its rows by rank.
        threshold: similarity of near duplicates; 1: only equal speeches represent each other.
        path: a file for the signatures by rank.
    """
    representative = np.full(len(order), -1)
    rows = order[cleaned["reason"].is_null().to_numpy()[order]]
    keys, dialogues = numbers(cleaned, "key")[rows], numbers(cleaned, "dialogue")[rows]
    _, first, unit = np.unique(dialogues, return_index=True, return_inverse=True)
    by_rank = np.argsort(first)
    unit = np.argsort(by_rank)[unit]  # of each row the dialogue, numbered by the rank of its first row
    stays = np.arange(len(first))  # for each dialogue the one that represents it
    held = np.empty(0, np.int64)
    if threshold < 1 and len(rows):
        stays, held = _alike(cleaned, rows[_signed(cleaned, rows, unit)], threshold, path)
    kept = stays[unit] == unit
    gone, first = ~kept, rows[first[by_rank]]
    equal, at, inverse = np.unique(keys[kept], return_index=True, return_inverse=True)
    representative[rows[kept]] = rows[kept][at[inverse]]
    # a row of a dialogue that goes: by an equal row that stays, else by the first one of the dialogue that stays
    place = np.searchsorted(equal, keys[gone]).clip(max=max(0, len(equal) - 1))
    same = equal[place] == keys[gone]
    representative[rows[gone]] = np.where(same, rows[kept][at[place]], first[stays[unit[gone]]])
    return Repeats(representative, set(numbers(cleaned, "dialogue")[first[held]].tolist()))


def numbers(cleaned: pa.Table, column: str) -> np.ndarray:
    """The ids of a column as numbers; 0 without a speech."""
    return cleaned[column].fill_null(0).to_numpy()


def _signed(cleaned: pa.Table, rows: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """For each dialogue the place in `rows` of the row with its signature; of several the one of the latest turn."""
    signed = cleaned["signed"].fill_null(False).to_numpy()[rows]
    places = np.flatnonzero(signed)
    latest = np.lexsort((places, -cleaned["turn"].to_numpy()[rows[places]], unit[places]))
    _, first = np.unique(unit[places[latest]], return_index=True)
    return places[latest[first]]


def _alike(cleaned: pa.Table, dialogues: np.ndarray, threshold: float, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """For each dialogue, given by its row with a signature, the one that represents it; and those that are held."""
    near = duplicates.near(_signatures(cleaned, dialogues, path), _reader(cleaned, dialogues), threshold)
    left = np.delete(np.arange(len(dialogues)), list(near))
    found = containment.held(lambda: _marks(cleaned, dialogues[left]), len(left), _reader(cleaned, dialogues[left]))
    representative, holder = np.arange(len(dialogues)), np.arange(len(dialogues))
    representative[list(near)] = list(near.values())
    holder[left[list(found)]] = left[list(found.values())]
    return holder[representative], left[list(found)]


def _reader(cleaned: pa.Table, rows: np.ndarray) -> Callable[[int], str]:
    def words(n: int) -> str:
        said = cleaned["words"][rows[n]].as_py()
        return cleaned["speech"][rows[n]].as_py() if said is None else said

    return words


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
