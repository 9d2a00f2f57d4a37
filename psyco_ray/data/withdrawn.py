"""What the stages of a dataset keep when its sources have changed: all that is about the speeches that are left."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from psyco_ray.run import records, shards


class Settled(TypedDict):
    """Numbers of speeches that have left a dataset and that have joined it."""

    withdrawn: int
    added: int


def settle(speeches: Path, now: Path, stages: list[Path]) -> Settled:
    """Remove from the stages what is about speeches that have left.

    Shards that gain a speech are removed whole, and their stages make them again: answers about the other speeches come
    from the journal.

    Args:
        speeches: directory of the speeches as they were.
        now: that of the speeches as they are, in shards of the same names.
        stages: directories whose tables name speeches by `speech_id`.

    Raises:
        InputError: a shard is damaged or cannot be written.
    """
    tables: dict[str, list[Path]] = {}
    for path in sorted(path for stage in stages for path in stage.rglob("*.parquet")):
        tables.setdefault(path.stem, []).append(path)
    counts = Settled(withdrawn=0, added=0)
    for part in sorted({*shards.list_shards(speeches), *shards.list_shards(now), *tables}):
        then_ids, now_ids = _ids(speeches, part), _ids(now, part)
        counts["withdrawn"] += len(then_ids - now_ids)
        counts["added"] += len(now_ids - then_ids)
        for path in tables.get(part, []):
            if now_ids - then_ids or not now_ids:
                path.unlink()
            else:
                _keep(path, now_ids)
    return counts


def _ids(directory: Path, part: str) -> set[str]:
    path = directory / f"{part}.parquet"
    return set(records.read_table(path, columns=["speech_id"])["speech_id"].to_pylist()) if path.exists() else set()


def _keep(path: Path, ids: set[str]) -> None:
    """Write a shard without rows about other speeches, with its facts about the calls that were paid."""
    table = records.read_table(path)
    stays = pc.is_in(table["speech_id"], pa.array(sorted(ids)))
    if not pc.all(stays).as_py():
        shards.write(path.parent, path.stem, table.filter(stays), table.schema)
