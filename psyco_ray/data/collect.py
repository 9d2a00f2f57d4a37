"""From raw sources to client speeches: cleaned, filtered by length, deduplicated, split (paper §3.1, §3.3).

Ray Data reads and cleans in a stream. The driver keeps a few hundred bytes per speech to find duplicates; the texts are
in a temporary file beside the result. A row's rank (order of the sources in the job, then row number) decides which
duplicate stays, never the order in which rows arrive. Of a dialogue all contexts are in one split, and stay or go
together: duplicates are looked for among whole dialogues.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.data import collect_rows, repeats, sources
from psyco_ray.data.client_rows import by_count
from psyco_ray.data.mapped import take
from psyco_ray.run import shards, storage
from psyco_ray.run.disk_errors import writing_in
from psyco_ray.run.schemas import COLLECTED, COLLECTED_DIALOGUES, DROPPED
from psyco_ray.screening import crisis
from psyco_ray.screening.personal_data import KINDS, analyzer

_ROWS = 1000  # per block that is cleaned
_WRITTEN_ROWS = 20_000  # per block that the driver writes
_BROKEN_ROW = 0  # row number of an error that ends a source
_BAD_ROWS = 10  # kinds of bad rows in the counts


class CollectCounts(TypedDict):
    """Counts of rows and speeches."""

    rows: int
    kept: int
    dropped: dict[str, int]  # by reason, the commonest first
    bad_rows: dict[str, int]  # by what is wrong with them, the commonest first
    splits: dict[str, int]
    crisis: dict[str, int]  # speeches by kind; empty if not screened
    not_screened: dict[str, int]  # speeches by language, the commonest first: those that the crisis screen cannot read
    scrubbed: dict[str, int]  # replacements by kind, and the kept `speeches` with any; empty if not scrubbed
    sources: dict[str, dict[str, int]]  # by name: rows, kept, and dropped rows by reason
    conversations: NotRequired[dict[str, int]]  # conversations, contexts of them and the most turns; only if any


def check(job: DataJob) -> None:
    """Check columns, encodings and first rows of all sources, before Ray starts.

    Raises:
        InputError: a source cannot be read.
    """
    for source in job.sources:
        sources.check(source)


def collect(
    job: DataJob, out: Path, digits: int | None = None, before: Callable[[Path], None] | None = None
) -> CollectCounts:
    """Write the speeches of all sources to ``out/speeches`` (COLLECTED) and dropped rows to ``out/dropped.parquet``.

    Speeches are hashed and split by their cleaned (and scrubbed) text. Ray must be running.

    Args:
        job: the data job.
        out: the directory of the stage.
        digits: of the shards' names; None: by the number of speeches.
        before: is called with the directory of the new speeches before it takes the place of the old one.

    Raises:
        InputError: a source cannot be read, the `presidio` extra is missing, or no speech is left.
    """
    if job.scrub.enabled and job.scrub.presidio:
        analyzer()
    work = out / ".collecting"
    shutil.rmtree(work, ignore_errors=True)
    storage.private_dir(work)
    try:
        cleaned = _clean_all(job, work / "cleaned.arrow")
        order = np.lexsort([cleaned[name].to_numpy() for name in ("turn", "row", "source")])
        repeated = repeats.find(cleaned, order, job.collect.near_duplicates, work / "signatures")
        kept = np.flatnonzero(repeated.representative == np.arange(len(cleaned)))
        facts = _write_dropped(cleaned, order, repeated, job, work / "dropped.parquet")
        if not len(kept):
            raise InputError(
                f"no speech is left of {facts['rows']:,} rows ({described(facts)}); look at collect.min_chars "
                f"{job.collect.min_chars}, collect.max_chars {job.collect.max_chars} and the sources' text columns"
            )
        _write_speeches(cleaned, kept, job, work / "speeches", digits or shards.digits(len(kept)))
        if before is not None:
            before(work / "speeches")
        storage.move_dir(str(work / "speeches"), str(out / "speeches"))
        with writing_in(out):
            (work / "dropped.parquet").replace(out / "dropped.parquet")
    finally:
        shutil.rmtree(work, ignore_errors=True)  # another error is worth more than this one
    return facts


def described(facts: CollectCounts) -> str:
    """Dropped rows by reason, the commonest first, and what is wrong with bad rows."""
    bad = f" ({by_count(facts['bad_rows'])})" if facts["bad_rows"] else ""
    return by_count(facts["dropped"]).replace(collect_rows.BAD_ROW, collect_rows.BAD_ROW + bad) or "nothing"


def _clean_all(job: DataJob, path: Path) -> pa.Table:
    """Read and clean all rows with Ray Data; the table is unordered and memory-mapped from the file."""
    import ray

    # two readers and a cleaner fit on one CPU: readers that wait for room never block cleaners
    readers = min(2, len(job.sources))
    indices = ray.data.from_items([{"index": n} for n in range(len(job.sources))], override_num_blocks=len(job.sources))
    raw = indices.map_batches(functools.partial(_read, job=job), batch_size=1, num_cpus=0.25, concurrency=readers)
    if job.collect.blocks is None:
        raw = raw.repartition(target_num_rows_per_block=_ROWS)
    else:
        raw = raw.repartition(job.collect.blocks)
    cleaned = raw.map_batches(
        functools.partial(collect_rows.clean_batch, job=job), batch_size=_ROWS, batch_format="pyarrow", num_cpus=0.5
    )
    with writing_in(path.parent), pa.ipc.new_file(path, collect_rows.CLEANED) as writer:
        for batch in cleaned.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.filter(pc.equal(batch["row"], _BROKEN_ROW)).to_pylist():
                raise InputError(row["detail"])
            writer.write_table(batch.select(collect_rows.CLEANED.names).cast(collect_rows.CLEANED))
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _read(batch: dict[str, np.ndarray], job: DataJob) -> Iterator[pa.Table]:
    """The rows of the source in a batch; if it cannot be read to its end, row 0 comes last with the reason."""
    index = int(batch["index"][0])
    rows = sources.read(job.sources[index])
    while True:
        try:
            chunk = list(itertools.islice(rows, _ROWS))
        except InputError as error:  # returned as a row: Ray would wrap it
            chunk = [sources.RawRow(job.sources[index].name, _BROKEN_ROW, problem=str(error))]
        if not chunk:
            return
        columns = [
            [index] * len(chunk),
            [row.number for row in chunk],
            [row.text for row in chunk],
            [row.topic for row in chunk],
            [row.problem for row in chunk],
            [row.skipped for row in chunk],
            [row.dialogue for row in chunk],
        ]
        yield pa.table(columns, schema=collect_rows.RAW)


def _write_dropped(
    cleaned: pa.Table, order: np.ndarray, repeated: repeats.Repeats, job: DataJob, path: Path
) -> CollectCounts:
    """Write the dropped rows by rank, and count all rows."""
    names = [source.name for source in job.sources]
    keys, source_of = repeats.numbers(cleaned, "key"), cleaned["source"].to_numpy()
    dialogues = repeats.numbers(cleaned, "dialogue")
    representative, held = repeated
    stays = representative == np.arange(len(representative))
    kept = np.bincount(source_of[stays], minlength=len(names)).tolist()
    counts = {name: Counter({"kept": count}) for name, count in zip(names, kept, strict=True)}
    dropped_rows, bad = order[~stays[order]], Counter[str]()
    with storage.atomic_file(path) as file, pq.ParquetWriter(file, DROPPED) as writer:
        for start in range(0, len(dropped_rows), _WRITTEN_ROWS):
            rows = dropped_rows[start : start + _WRITTEN_ROWS]
            dropped = []
            table = take(cleaned, rows, ["source", "row", "reason", "detail"])
            for n, row in zip(rows.tolist(), table.to_pylist(), strict=True):
                name, other, reason, detail = names[row["source"]], representative[n], row["reason"], row["detail"]
                if reason is None:
                    alike = "contained duplicate" if int(dialogues[n]) in held else "near duplicate"
                    reason = "exact duplicate" if keys[n] == keys[other] else alike
                    detail = f"{keys[other]:016x} of {names[source_of[other]]}"
                counts[name][reason] += 1
                bad.update([detail] if reason == collect_rows.BAD_ROW else [])
                dropped.append({"source": name, "source_row": row["row"], "reason": reason, "detail": detail})
            writer.write_table(pa.Table.from_pylist(dropped, schema=DROPPED))
    splits = _count(cleaned["split"].filter(pa.array(stays)))
    flagged = _count(pc.list_flatten(cleaned["crisis"].filter(pa.array(stays))))
    unread = Counter(_count(cleaned["language"].filter(pc.and_(pa.array(stays), pc.is_null(cleaned["crisis"])))))
    reasons = sum(counts.values(), Counter())
    facts: CollectCounts = {
        "rows": len(order),
        "kept": reasons.pop("kept", 0),
        "dropped": dict(reasons.most_common()),
        "bad_rows": dict(bad.most_common(_BAD_ROWS)),
        "splits": {split: splits.get(split, 0) for split in ("train", "dev", "test")},
        "crisis": {kind: flagged.get(kind, 0) for kind in crisis.KINDS} if job.crisis.enabled else {},
        "not_screened": dict(unread.most_common()) if job.crisis.enabled else {},
        "scrubbed": _count_scrubbed(cleaned["scrubbed"].filter(pa.array(stays))) if job.scrub.enabled else {},
        "sources": {name: {"rows": count.total(), **count} for name, count in counts.items()},
    }
    if (dialogues != keys)[stays].any():
        turns = cleaned["turn"].to_numpy()[stays]
        conversations = np.unique(dialogues[stays][turns > 1])
        facts["conversations"] = {
            "conversations": len(conversations),
            "contexts": int(np.isin(dialogues[stays], conversations).sum()),
            "most turns": int(turns.max()),
        }
    return facts


def _count(values: pa.ChunkedArray) -> dict[str, int]:
    return {count["values"]: count["counts"] for count in values.value_counts().to_pylist()}


def _count_scrubbed(kinds: pa.ChunkedArray) -> dict[str, int]:
    counts = _count(pc.list_flatten(kinds))
    speeches = pc.sum(pc.greater(pc.list_value_length(kinds), 0)).as_py() or 0
    return {"speeches": speeches, **{kind: counts[kind] for kind in KINDS if kind in counts}}


def _write_speeches(cleaned: pa.Table, kept: np.ndarray, job: DataJob, directory: Path, digits: int) -> None:
    """Write the kept rows, part by part, each part sorted by speech id."""
    keys, dialogues = repeats.numbers(cleaned, "key"), repeats.numbers(cleaned, "dialogue")
    kept = kept[np.argsort(keys[kept])]
    schema = COLLECTED_DIALOGUES if (dialogues != keys)[kept].any() else COLLECTED
    names, starts = np.unique(keys[kept] >> np.uint64(64 - 4 * digits), return_index=True)
    ends = np.append(starts[1:], len(kept))
    for block in np.array_split(np.arange(len(names)), len(kept) // _WRITTEN_ROWS + 1):
        begin = starts[block[0]]
        rows = kept[begin : ends[block[-1]]]
        table = take(cleaned, rows, ["speech", "split", "source", "row", "topic", "turn", *collect_rows.SCREENED])
        columns = {
            "speech_id": [f"{key:016x}" for key in keys[rows].tolist()],
            "speech": table["speech"],
            "split": table["split"],
            "source": [job.sources[index].name for index in table["source"].to_pylist()],
            "source_row": table["row"],
            "source_topic": table["topic"],
            **{name: table[name] for name in collect_rows.SCREENED},
            "dialogue": [f"{key:016x}" for key in dialogues[rows].tolist()],
            "turn": table["turn"],
        }
        speeches = pa.table({name: columns[name] for name in schema.names}, schema=schema)
        for n in block:
            part = speeches.slice(starts[n] - begin, ends[n] - starts[n])
            shards.write(directory, f"{names[n]:0{digits}x}", part, schema)
