"""A look at a table: its first rows, counts of all of them, and rows drawn at random."""

from __future__ import annotations

import random
import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import xxhash

from psyco_ray.files import parquet
from psyco_ray.files.cells import kind_of
from psyco_ray.files.records import Record, RecordFile
from psyco_ray.run.types import Row

SAMPLE_ROWS = 1000
"""Rows that are looked at."""
_READ_BYTES = 2**28
_FIRST_CHARS = 2**25

Looked = TypeVar("Looked")


@dataclass
class Counts:
    """Rows of a table.

    Attributes:
        rows: that were read.
        whole: they are all rows of the table.
        total: rows of a table that was not read whole; None: unknown.
        bad: rows that cannot be read, by reason.
        equal: rows with a text that a row before has.
    """

    rows: int = 0
    whole: bool = True
    total: int | None = None
    bad: Counter[str] = field(default_factory=Counter)
    equal: int = 0


def first_rows(file: RecordFile) -> list[Record]:
    """The first rows, fewer if they are long."""
    rows, chars = list[Record](), 0
    for record in islice(file, SAMPLE_ROWS):
        rows.append(record)
        chars += sum(len(cell) for cell in (record.cells or {}).values() if isinstance(cell, str))
        if chars > _FIRST_CHARS:
            break
    return rows


def cells_of(records: Iterable[Record]) -> list[Row]:
    """The cells of the rows that can be read."""
    return [record.cells for record in records if record.cells is not None]


def columns_of(file: RecordFile, rows: Sequence[Row]) -> dict[str, str]:
    """What each column holds: the commonest kind of cell, and the median length of texts."""
    described = {}
    for column in file.columns:
        cells = [row[column] for row in rows if row.get(column) not in (None, "")]
        kinds = Counter(kind_of(cell) for cell in cells).most_common(1)
        described[column] = kinds[0][0] if kinds else "nothing"
        if described[column] == "text":
            described[column] += f" of {median_chars(cells):,.0f} characters"
        if 0 < len(cells) < len(rows):
            described[column] += f", {1 - len(cells) / len(rows):.0%} empty"
    return described


def median_chars(cells: Iterable[Any]) -> float:
    """The median length of cells; one that is no text has 0."""
    return statistics.median([len(cell) if isinstance(cell, str) else 0 for cell in cells] or [0])


def scan(
    file: RecordFile, first: Sequence[Record], text: Callable[[Row], Any], look: Callable[[Record], Looked]
) -> tuple[Counts, list[Looked]]:
    """Read a table, count its rows, bad ones and equal texts, and look at rows drawn at random.

    Args:
        file: is read up to a size, which the first rows tell by theirs.
        first: the first rows.
        text: the text of a row, if any.
        look: what is kept of a drawn row, so that long rows take no memory.
    """
    most = max(len(first), int(_READ_BYTES / _row_bytes(file, first)))
    counts, draw, sample = Counts(), random.Random(0), list[Looked]()
    hashes = array("Q")
    for record in file:
        if counts.rows == most:
            counts.whole, counts.total = False, _total(file, first)
            break
        counts.rows += 1
        if record.cells is None:
            counts.bad[record.problem or ""] += 1
        elif cell := text(record.cells):
            hashes.append(xxhash.xxh3_64_intdigest(str(cell).strip().encode(errors="surrogatepass")))
        if len(sample) < SAMPLE_ROWS:
            sample.append(look(record))
        elif (place := draw.randrange(counts.rows)) < SAMPLE_ROWS:
            sample[place] = look(record)
    counts.equal = len(hashes) - len(np.unique(np.frombuffer(hashes, dtype=np.uint64)))
    return counts, sample


def _row_bytes(file: RecordFile, first: Sequence[Record]) -> float:
    """The mean size of a row in the file."""
    encoding = file.encoding or "utf-8"
    name_bytes = 6 if file.kind.startswith("JSON") else 0  # quotes and a colon
    size = 0
    for row in cells_of(first):
        for name, cell in row.items():
            size += len(str(cell).encode(encoding, errors="replace")) + 1
            size += len(name) + name_bytes if name_bytes else 0
    return max(1, size / max(1, len(first)))


def _total(file: RecordFile, first: Sequence[Record]) -> int | None:
    """Rows of a large file: those of Parquet files, else an estimate by its size; None for a compressed file."""
    if file.kind.startswith("Parquet"):
        paths = parquet.files_of(file.path) if file.path.is_dir() else [file.path]
        return sum(pq.read_metadata(path).num_rows for path in paths)
    if file.path.suffix.lower() in (".gz", ".zip", ".xlsx"):
        return None
    return round(file.path.stat().st_size / _row_bytes(file, first))
