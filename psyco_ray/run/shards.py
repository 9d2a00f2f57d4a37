"""A dataset on disk: Parquet parts of about a hundred speeches, named by the first digits of their speeches' ids.

A speech stays in its part from stage to stage, so that a stage does one part at a time, and its memory does not grow
with the dataset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SPEECHES_PER_PART = 128  # at most, on average


def digits(speeches: int) -> int:
    """How many digits of the id name the part of a speech, in a dataset of so many."""
    found = 1
    while speeches > SPEECHES_PER_PART * 16**found:
        found += 1
    return found


def list_shards(directory: Path) -> list[str]:
    """The parts in a directory, in order."""
    return sorted(path.stem for path in directory.glob("*.parquet") if not path.name.startswith("."))


def read(directory: Path, part: str) -> list[dict[str, Any]]:
    """A part's rows; none if there is no such part."""
    path = directory / f"{part}.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


def write(
    directory: Path,
    part: str,
    rows: Sequence[dict[str, Any]] | pa.Table,
    schema: pa.Schema,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write a part, whole or not at all; `facts` about its making travel in the file's metadata."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f".{part}.{os.getpid()}.parquet"
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)
    if facts is not None:
        table = table.replace_schema_metadata({"facts": json.dumps(facts)})
    pq.write_table(table, unfinished)
    unfinished.replace(directory / f"{part}.parquet")


def facts(directory: Path, part: str) -> dict[str, Any]:
    """What was noted about a part when it was written."""
    return json.loads(pq.read_schema(directory / f"{part}.parquet").metadata[b"facts"])
