"""A dataset on disk: Parquet shards of about 128 speeches, named by the first hex digits of their speeches' ids.

A speech stays in the same shard from stage to stage. A stage reads and writes one shard at a time, so its memory use
does not depend on the size of the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.run import records, storage

SPEECHES_PER_PART = 128  # on average, at most
AGAIN = "restore it, or remove its stage's directory and record to make the stage again"
"""What to do about a damaged shard."""


def digits(speeches: int) -> int:
    """Number of hex digits in a shard's name, for a dataset of this many speeches."""
    count = 1
    while speeches > SPEECHES_PER_PART * 16**count:
        count += 1
    return count


def list_shards(directory: Path) -> list[str]:
    """Names of the shards in a directory, sorted."""
    return sorted(path.stem for path in directory.glob("*.parquet") if not path.name.startswith("."))


def read(directory: Path, part: str) -> list[dict[str, Any]]:
    """Rows of a shard; empty if the shard does not exist.

    Raises:
        InputError: the shard is damaged.
    """
    path = directory / f"{part}.parquet"
    return records.read_table(path, AGAIN).to_pylist() if path.exists() else []


def write(
    directory: Path,
    part: str,
    rows: Sequence[dict[str, Any]] | pa.Table,
    schema: pa.Schema,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write a shard atomically and durably.

    Args:
        directory: of the stage; created if needed.
        part: name of the shard.
        rows: of the shard.
        schema: of the rows.
        facts: JSON values about the shard, stored in the file's metadata.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    storage.private_dir(directory)
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)
    if facts is not None:
        table = table.replace_schema_metadata({"facts": json.dumps(facts)})
    storage.write_file(directory / f"{part}.parquet", lambda file: pq.write_table(table, file))


def facts(directory: Path, part: str) -> dict[str, Any]:
    """The `facts` given to `write`.

    Raises:
        InputError: the shard is damaged.
    """
    path = directory / f"{part}.parquet"
    with records.ParquetReading(path, AGAIN):
        return json.loads(pq.read_schema(path).metadata[b"facts"])


def write_by_id(directory: Path, rows: Sequence[dict[str, Any]], column: str, schema: pa.Schema) -> list[str]:
    """Write rows in shards, each named by the first digits of the ids in a column; returns the shards' names."""
    by_part: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_part.setdefault(row[column][: digits(len(rows))], []).append(row)
    for part, part_rows in by_part.items():
        write(directory, part, part_rows, schema)
    return list(by_part)
