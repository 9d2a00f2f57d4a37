"""Removes a client from what runs have left: tables, journals, records, reports and caches.

Rows about the client go, with what models said to them; other texts get `FORGOTTEN` in the place of the client's words.
Weights cannot forget: the outcome names those that saw the client.
"""

from __future__ import annotations

import contextlib
import glob
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.data import trained_pairs
from psyco_ray.data.clean import clean
from psyco_ray.data.splits import speech_id
from psyco_ray.data.traces import SHORTEST, Traces
from psyco_ray.files.records import open_records
from psyco_ray.judge.journal import without_words
from psyco_ray.run import manifests, records, storage
from psyco_ray.run.records import ParquetReading
from psyco_ray.run.remote import MANIFEST
from psyco_ray.screening.personal_data import scrub

AUDIT = "forgotten.jsonl"

_UNFINISHED = (".collecting", ".ratings-", ".partial")  # of a killed command
_WEIGHTS = {".safetensors", ".bin", ".pt", ".gguf"}
_TEXTS = {".html", ".md", ".txt", ".csv", ".tsv", ".yaml", ".log", ".svg"}
_KEYS = ("pair", "pair_id")  # columns by which other tables name a row


@dataclass
class Outcome:
    """What a directory held of the client, and what was done."""

    rows: int = 0  # of tables and journals
    files: list[str] = field(default_factory=list)  # that were rewritten
    trained: list[str] = field(default_factory=list)  # weights that saw the client
    kept: list[str] = field(default_factory=list)  # files that hold a trace and cannot be rewritten
    sources: list[str] = field(default_factory=list)  # files that its job names and that hold the client
    provider_files: dict[str, bool] = field(default_factory=dict)  # by id: whether they are deleted there


def traces_of(ids: list[str], texts: list[str]) -> Traces:
    """What identifies a client, from ids and texts as they are or as `collect` would clean or scrub them."""
    traces = Traces(set(ids))
    for text in texts:
        for form in (text, clean(text), scrub(clean(text)).text):
            traces.ids.add(speech_id(form.strip()))
            traces.add_text(form)
    return traces


def seen(root: Path, traces: Traces, target: str | None = None) -> Outcome:
    """What weights and sources a directory's job has, before anything is removed.

    Args:
        root: a run directory, or a directory of exports or of caches.
        traces: of the client, after `learn`.
        target: URI of a remote run directory, of which `root` is the mirror.

    Raises:
        InputError: a Parquet file is damaged, or a remote directory cannot be reached.
    """
    sources = [path for path in _named_files(root) if _source_holds(path, traces)]
    outcome = Outcome(trained=_trained(root, traces, target or str(root)), sources=[str(path) for path in sources])
    if sources:  # pairs among them trained the reward models here
        outcome.trained += [str(path.parent.relative_to(root)) for path in sorted(root.rglob(trained_pairs.FILE))]
    return outcome


def remove_rows(root: Path, traces: Traces, said: Traces, outcome: Outcome) -> None:
    """Remove a client's rows from the Parquet files of a directory, and what unfinished commands left there.

    Args:
        root: a run directory, or a directory of exports or of caches.
        traces: of the client, after `learn`.
        said: receives the other texts of the rows, such as what models said to the client.
        outcome: of `seen`; receives what is done.

    Raises:
        InputError: a file is damaged or cannot be written.
    """
    unfinished = [] if root == storage.cache_dir() else list(root.rglob(".*"))  # other commands write to the cache
    for path in unfinished:
        if any(mark in path.name for mark in _UNFINISHED):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in _files(root):
        if path.suffix == ".parquet":
            _table(path, root, traces, said, outcome)


def remove_words(root: Path, traces: Traces, said: Traces, outcome: Outcome) -> None:
    """Remove a client from journals and records of a directory, and their words from its texts.

    Args:
        root: a run directory, or a directory of exports or of caches.
        traces: of the client, after `learn`.
        said: `traces`, and what `remove_rows` found in all directories.
        outcome: of `seen`; receives what is done.

    Raises:
        InputError: a file is damaged or cannot be written.
    """
    for path in _files(root):
        if path.suffix in (".jsonl", ".json") and path.name not in (AUDIT, MANIFEST):
            _records(path, root, traces, outcome)
    for path in _files(root):
        if path.suffix in _TEXTS:
            _text(path, root, said, outcome)
        elif path.suffix not in (".parquet", ".jsonl", ".json", *_WEIGHTS) and _holds(path, traces):
            outcome.kept.append(str(path.relative_to(root)))
    for path in sorted(root.rglob("batches/state.json")):
        outcome.provider_files |= records.read_json(path).get("provider_files", {})


def audit(root: Path, outcome: Outcome) -> None:
    """Append what was done to the directory's `AUDIT`, without any of the client's words or ids."""
    line = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(outcome), "files": len(outcome.files)}
    before = (root / AUDIT).read_bytes() if (root / AUDIT).exists() else b""
    storage.write_file(root / AUDIT, lambda file: file.write(before + json.dumps(line).encode() + b"\n"))


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())


def _holds(path: Path, traces: Traces) -> bool:
    content = path.read_bytes()
    return traces.may_be_in(content) and traces.within(content.decode("utf-8", "ignore"))


def learn(root: Path, traces: Traces) -> None:
    """Add the client's words, found by the id, and the keys of rows about them, until no more are found.

    Raises:
        InputError: a Parquet file is damaged.
    """
    known = -1
    while known != (known := len(traces.ids) + len(traces.needles)):
        for path in _files(root):
            if path.suffix == ".parquet":
                with ParquetReading(path):
                    names = set(pq.read_schema(path).names)
                if {"speech", "speech_id"} <= names or names & set(_KEYS):
                    for row in _about(records.read_table(path), traces)[1]:
                        if row.get("speech_id") in traces.ids and isinstance(row.get("speech"), str):
                            traces.add_text(row["speech"])
                            traces.add_text(scrub(row["speech"]).text)  # as APIs got it
                        traces.ids |= {row[key] for key in _KEYS if re.fullmatch("[0-9a-f]{12,}", str(row.get(key)))}


def _about(table: pa.Table, traces: Traces) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """For each row, whether it stays; and the rows that do not."""
    texts = [name for name in table.column_names if _may_hold_text(table.schema.field(name).type)]
    likely = np.zeros(len(table), bool)
    for name in texts:
        likely |= _likely(table[name], traces)
    stays, about = ~np.zeros(len(table), bool), list[dict[str, Any]]()
    for number in np.flatnonzero(likely):
        row = table.select(texts).slice(number, 1).to_pylist()[0]
        if traces.within(list(row.values())):
            stays[number] = False
            about.append(row)
    return stays, about


def _likely(column: pa.ChunkedArray | pa.Array, traces: Traces) -> np.ndarray:
    """Which values may hold a trace: they have an id or a long word of a text."""
    kind, likely = column.type, np.zeros(len(column), bool)
    if pa.types.is_primitive(kind):
        return likely
    if pa.types.is_list(kind):
        lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        inside = _likely(pc.list_flatten(lists), traces)
        likely[np.asarray(pc.list_parent_indices(lists))[inside]] = True
        return likely
    if pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            likely |= _likely(pc.struct_field(column, [place]), traces)
        return likely
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return ~likely
    for key in traces.ids:
        likely |= np.asarray(pc.match_substring(column, key).fill_null(False))
    for word in set(traces.needles.values()):
        likely |= np.asarray(pc.match_substring(column, word.decode(), ignore_case=True).fill_null(False))
    return likely


def _may_hold_text(kind: pa.DataType) -> bool:
    while pa.types.is_list(kind):
        kind = kind.value_type
    return not pa.types.is_primitive(kind)


def _table(path: Path, root: Path, traces: Traces, said: Traces, outcome: Outcome) -> None:
    """Remove the client's rows from a Parquet file, row group by row group."""
    with ParquetReading(path), pq.ParquetFile(path) as file:
        groups = [_about(file.read_row_group(number), traces) for number in range(file.num_row_groups)]
        about = [row for _, rows in groups for row in rows]
        if not about:
            return
        with storage.atomic_file(path) as rewritten, pq.ParquetWriter(rewritten, file.schema_arrow) as writer:
            for number, (stays, _) in enumerate(groups):
                writer.write_table(file.read_row_group(number).filter(pa.array(stays, pa.bool_())))
    for row in about:
        for value in row.values():
            if isinstance(value, str) and len(value) >= 2 * SHORTEST:
                said.add_text(value)  # such as the responses, which reports show
    _changed(path, root, outcome, len(about))


def _records(path: Path, root: Path, traces: Traces, outcome: Outcome) -> None:
    """Remove the client's lines from a journal, or entries from a JSON file."""
    content = path.read_bytes()
    if not traces.may_be_in(content):
        return
    if path.suffix == ".jsonl":
        lines = content.splitlines(keepends=True)
        about = [traces.within(line.decode("utf-8", "replace")) for line in lines]
        kept = [without_words(line) if gone else line for line, gone in zip(lines, about, strict=True)]
        rows, cleaned = sum(about), b"".join(kept)
    else:
        rows, cleaned = 0, _json_without(content, traces)
    if cleaned != content:
        storage.write_file(path, lambda file: file.write(cleaned))
        _changed(path, root, outcome, rows)


def _json_without(content: bytes, traces: Traces) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:  # damaged: as text
        return traces.masked(content.decode("utf-8", "replace")).encode()
    cleaned = traces.removed_from(value)
    return content if cleaned == value else json.dumps(cleaned, indent=1).encode() + b"\n"


def _text(path: Path, root: Path, said: Traces, outcome: Outcome) -> None:
    """Mask the client's words, and what models said to them, in a report or an export."""
    content = path.read_bytes()
    if not said.may_be_in(content):
        return
    text = content.decode("utf-8", "surrogateescape")
    if (masked := said.masked(text)) != text:
        storage.write_file(path, lambda file: file.write(masked.encode("utf-8", "surrogateescape")))
        _changed(path, root, outcome, 0)


def _changed(path: Path, root: Path, outcome: Outcome, rows: int) -> None:
    outcome.rows += rows
    outcome.files.append(str(path.relative_to(root)))
    for directory in path.parents:
        if (directory / MANIFEST).exists():
            manifests.seal(directory)
        if directory == root:
            break


def _named_files(root: Path) -> list[Path]:
    """The files outside a directory that its job names, also by patterns, and those in directories that it names."""
    job = root / "job.yaml"
    if not job.exists():
        return []
    settings = job_file.flatten(job_file.read_yaml(job, "job file") or {})
    values = [value for setting in settings.values() for value in _strings(setting)]
    found: list[Path] = []
    for value in values:
        is_member = "#" in value and Path(value.rpartition("#")[0]).is_file()  # of an archive, or a sheet
        there = is_member or Path(value).exists()
        paths = [Path(value)] if there else map(Path, glob.glob(value)) if "*" in value else []
        for path in paths:
            found += sorted(_files(path)) if path.is_dir() else [path]
    own = root.resolve()
    return [
        path
        for path in dict.fromkeys(found)
        if path.suffix not in (*_WEIGHTS, ".yaml") and not path.resolve().is_relative_to(own)
    ]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if 0 < len(value) < 4096 and "\0" not in value else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in _strings(one)]


def _source_holds(path: Path, traces: Traces) -> bool:
    if path.suffix == ".parquet":
        return bool(_about(records.read_table(path), traces)[1])
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        return traces.within(path.read_bytes().decode())
    try:  # a member of an archive, a packed file, a spreadsheet or another encoding
        rows = open_records(path, "source")
        return any(row.cells is not None and traces.within(list(row.cells.values())) for row in rows)
    except InputError:  # no table
        return path.exists() and _holds(path, traces)


def _trained(root: Path, traces: Traces, target: str) -> list[str]:
    """The weights that saw the client: from the first iteration that trained on a pair about them."""
    seen: list[str] = []
    first = next(
        (
            path.parent.name
            for path in sorted(root.glob("iteration-*/pairs.parquet"))
            if _about(records.read_table(path), traces)[1]
        ),
        None,
    )
    if first is not None:
        for directory in sorted(path for path in root.glob("iteration-*") if path.name >= first):
            names = [f"{directory.name}/{name}" for name in ("checkpoint", "state")]
            seen += [name for name in names if storage.exists(storage.join(target, name))]
    return seen
