"""Raw sources to client speeches: cleaned, measured, without duplicates, split (paper §3.1, §3.3).

Ray Data reads and cleans in a stream. The driver keeps some hundred bytes a speech to find duplicates by; the texts
lie in a file beside the result until it is written. What stays is decided by the place of a row alone (order of the
sources in the job, then row), never by the order in which rows arrive.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psyco_ray.data import crisis, duplicates, parts, sources
from psyco_ray.data.clean import clean
from psyco_ray.data.job import Collect, DataJob
from psyco_ray.data.scrub import analyzer, scrub
from psyco_ray.data.speeches import is_dev, speech_id, unit
from psyco_ray.records import COLLECTED, DROPPED

_ROWS = 1000  # rows that are cleaned together, and that the driver looks at together
_BROKEN = 0  # the row that stands for what cannot be read of a source
_HOPELESS = 20  # times max_chars: a raw text above that is not even cleaned

_RAW = pa.schema(
    [
        ("source", pa.int32()),  # place in the job's list
        ("row", pa.int64()),
        ("text", pa.string()),
        ("topic", pa.string()),
        ("problem", pa.string()),
    ]
)

_CLEANED = pa.schema(
    [
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("reason", pa.string()),  # why the row goes; null: it has a speech
        ("detail", pa.string()),
        ("speech", pa.string()),
        ("key", pa.uint64()),  # speech_id as a number
        ("signature", pa.binary(4 * duplicates.PERMUTATIONS)),
        ("split", pa.string()),
        ("topic", pa.string()),
        ("crisis", pa.list_(pa.string())),
    ]
)


def collect(job: DataJob, out: Path) -> dict[str, Any]:
    """Write the speeches of all sources to ``out/speeches`` (COLLECTED), and what goes to ``out/dropped.parquet``.

    Speeches are hashed and split by their cleaned (and scrubbed) text. Ray must have been started.

    Returns:
        Counts: `rows`, `kept`, `dropped` by reason, `splits`, `crisis` by kind (none if not screened), and by name
        of the `sources` their own rows, kept and reasons.

    Raises:
        ValueError: a source cannot be read, the `presidio` extra is missing, or no speech is left.
    """
    for source in job.sources:
        sources.check(source)
    if job.scrub.enabled and job.scrub.presidio:
        analyzer()
    work = out / ".collecting"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        cleaned = _clean_all(job, work / "cleaned.arrow")
        order = np.lexsort((cleaned["row"].to_numpy(), cleaned["source"].to_numpy()))
        stands_for = _duplicates(cleaned, order, job.collect.near_duplicates)
        kept = np.flatnonzero(stands_for == np.arange(len(stands_for)))
        facts = _write_dropped(cleaned, order, stands_for, job, work / "dropped.parquet")
        if not len(kept):
            raise ValueError(
                f"no speech is left of {facts['rows']} rows ({facts['dropped']}); look at collect.min_chars "
                f"{job.collect.min_chars}, collect.max_chars {job.collect.max_chars} and the sources' text columns"
            )
        _write_speeches(cleaned, kept, job, work / "speeches")
        shutil.rmtree(out / "speeches", ignore_errors=True)
        (work / "speeches").rename(out / "speeches")
        (work / "dropped.parquet").replace(out / "dropped.parquet")
    finally:
        shutil.rmtree(work)
    return facts


def _clean_all(job: DataJob, path: Path) -> pa.Table:
    """Read and clean all rows with Ray Data; the table, in no order, stays in the file."""
    import ray

    # two readers and a cleaner share one CPU if need be, so that readers with nowhere to write never block cleaners
    readers = min(2, len(job.sources))
    places = ray.data.from_items([{"place": n} for n in range(len(job.sources))], override_num_blocks=len(job.sources))
    raw = places.map_batches(functools.partial(_read, job=job), batch_size=1, num_cpus=0.25, concurrency=readers)
    if job.collect.blocks is None:
        raw = raw.repartition(target_num_rows_per_block=_ROWS)
    else:
        raw = raw.repartition(job.collect.blocks)
    cleaned = raw.map_batches(
        functools.partial(_clean, job=job), batch_size=_ROWS, batch_format="pyarrow", num_cpus=0.5
    )
    with pa.ipc.new_file(path, _CLEANED) as writer:
        for batch in cleaned.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.filter(pc.equal(batch["row"], _BROKEN)).to_pylist():
                raise ValueError(row["detail"])
            writer.write_table(batch.select(_CLEANED.names).cast(_CLEANED))
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _read(batch: dict[str, np.ndarray], job: DataJob) -> Iterator[pa.Table]:
    """The rows of the one source of a batch; a source that breaks off ends with row 0, which says why."""
    place = int(batch["place"][0])
    rows = sources.read(job.sources[place])
    while True:
        try:
            chunk = list(itertools.islice(rows, _ROWS))
        except ValueError as error:  # Ray would bury it in its own
            chunk = [sources.RawRow(job.sources[place].name, _BROKEN, problem=str(error))]
        if not chunk:
            return
        found = [
            {"source": place, "row": row.number, "text": row.text, "topic": row.topic, "problem": row.problem}
            for row in chunk
        ]
        yield pa.Table.from_pylist(found, schema=_RAW)


def _clean(batch: pa.Table, job: DataJob) -> pa.Table:
    rows = []
    for raw in batch.to_pylist():
        speech, reason, detail = _speech(raw, job)
        rows.append({"source": raw["source"], "row": raw["row"], "reason": reason, "detail": detail})
        if reason is None:
            rows[-1] |= {
                "speech": speech,
                "key": int(speech_id(speech), 16),
                "split": _split(speech, job.collect),
                "topic": clean(raw["topic"] or "") or None,
                "crisis": crisis.signs(speech) if job.crisis.enabled else None,
            }
    speeches = [row for row in rows if "speech" in row]
    for row, signature in zip(speeches, duplicates.signatures([row["speech"] for row in speeches]), strict=True):
        row["signature"] = signature.tobytes()
    return pa.Table.from_pylist(rows, schema=_CLEANED)


def _speech(raw: dict[str, Any], job: DataJob) -> tuple[str, str | None, str]:
    """The speech of a raw row, the reason why it goes (None: it does not), and a detail of that."""
    text, bounds = raw["text"] or "", job.collect
    if raw["problem"] is not None:
        return "", "bad row", raw["problem"]
    if len(text) > _HOPELESS * bounds.max_chars:
        return "", "too long", f"{len(text)} characters uncleaned"
    speech = clean(text)
    if job.scrub.enabled:
        speech = scrub(speech, job.scrub.presidio)
    if not speech:
        return "", "empty", ""
    if len(speech) < bounds.min_chars:
        return "", "too short", f"{len(speech)} characters"
    if len(speech) > bounds.max_chars:
        return "", "too long", f"{len(speech)} characters"
    return speech, None, ""


def _split(speech: str, shares: Collect) -> str:
    if unit("test", speech) < shares.test_share:
        return "test"
    return "dev" if is_dev(speech, shares.dev_share) else "train"


def _duplicates(cleaned: pa.Table, order: np.ndarray, threshold: float) -> np.ndarray:
    """For each row of the table, the row that stays in its place: itself, another one, or -1 where there is no speech.

    `order` holds the rows of the table by rank.
    """
    stands_for = np.full(len(order), -1)
    rows = order[cleaned["reason"].is_null().to_numpy()[order]]
    _, first, inverse = np.unique(_keys(cleaned)[rows], return_index=True, return_inverse=True)
    stands_for[rows] = rows[first[inverse]]
    unique = rows[np.sort(first)]
    if threshold < 1:
        column, signed = cleaned["signature"], np.empty((len(unique), duplicates.PERMUTATIONS), dtype=np.uint32)
        for place, n in enumerate(unique):
            signed[place] = np.frombuffer(column[n].as_py(), dtype=np.uint32)
        near = duplicates.near(signed, lambda n: cleaned["speech"][unique[n]].as_py(), threshold)
        instead = np.arange(len(order))
        instead[unique[list(near)]] = unique[list(near.values())]
        stands_for[rows] = instead[stands_for[rows]]
    return stands_for


def _write_dropped(
    cleaned: pa.Table, order: np.ndarray, stands_for: np.ndarray, job: DataJob, path: Path
) -> dict[str, Any]:
    """Write the rows that go, by rank, and count all rows."""
    names = [source.name for source in job.sources]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    splits: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    keys, places = _keys(cleaned), cleaned["source"].to_numpy()
    with pq.ParquetWriter(path, DROPPED) as writer:
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            dropped = []
            found = _rows(cleaned, rows, ["source", "row", "reason", "detail", "split", "crisis"])
            for n, row in zip(rows.tolist(), found, strict=True):
                name, instead = names[row["source"]], stands_for[n]
                if instead == n:
                    counts[name]["kept"] += 1
                    splits[row["split"]] += 1
                    flagged.update(row["crisis"] or [])
                    continue
                reason, detail = row["reason"], row["detail"]
                if reason is None:
                    reason = "exact duplicate" if keys[n] == keys[instead] else "near duplicate"
                    detail = f"{keys[instead]:016x} of {names[places[instead]]}"
                counts[name][reason] += 1
                dropped.append({"source": name, "source_row": row["row"], "reason": reason, "detail": detail})
            writer.write_table(pa.Table.from_pylist(dropped, schema=DROPPED))
    reasons = sum(counts.values(), Counter())
    kept = reasons.pop("kept", 0)
    return {
        "rows": len(order),
        "kept": kept,
        "dropped": dict(reasons),
        "splits": {split: splits[split] for split in ("train", "dev", "test")},
        "crisis": {kind: flagged[kind] for kind in crisis.KINDS} if job.crisis.enabled else {},
        "sources": {name: {"rows": found.total(), "kept": 0, **found} for name, found in counts.items()},
    }


def _write_speeches(cleaned: pa.Table, kept: np.ndarray, job: DataJob, directory: Path) -> None:
    """Write the rows that stay, part by part, each part sorted by speech id."""
    kept = kept[np.argsort(_keys(cleaned)[kept])]
    digits = parts.digits(len(kept))
    names, starts = np.unique(_keys(cleaned)[kept] >> np.uint64(64 - 4 * digits), return_index=True)
    for name, rows in zip(names.tolist(), np.split(kept, starts[1:]), strict=True):
        found = _rows(cleaned, rows, ["key", "speech", "split", "source", "row", "topic", "crisis"])
        speeches = [
            {
                "speech_id": f"{row['key']:016x}",
                "speech": row["speech"],
                "split": row["split"],
                "source": job.sources[row["source"]].name,
                "source_row": row["row"],
                "source_topic": row["topic"],
                "crisis": row["crisis"],
            }
            for row in found
        ]
        parts.write(directory, f"{name:0{digits}x}", speeches, COLLECTED)


def _keys(cleaned: pa.Table) -> np.ndarray:
    """The speech ids as numbers, 0 where there is no speech."""
    return cleaned["key"].fill_null(0).to_numpy()


def _rows(cleaned: pa.Table, rows: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Some rows of the table; one by one, since Arrow's own `take` would first put the whole file into memory."""
    columns = [cleaned[name] for name in names]
    return [dict(zip(names, (column[n].as_py() for column in columns), strict=True)) for n in rows.tolist()]
