"""What a directory holds of a client before anything is removed: weights that saw the client, and sources."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.data import forget_tables, trained_pairs
from psyco_ray.data.traces import Traces
from psyco_ray.files.records import locate, open_records
from psyco_ray.run import storage

WEIGHTS = {".safetensors", ".bin", ".pt", ".gguf"}
"""Endings of files that hold no text."""

_CHUNK = 2**22  # bytes of a text that are searched together


@dataclass
class Outcome:
    """What a directory held of the client, and what was done."""

    rows: int = 0  # of tables and journals
    files: list[str] = field(default_factory=list)  # that were rewritten
    trained: list[str] = field(default_factory=list)  # weights that saw the client
    kept: list[str] = field(default_factory=list)  # files that hold a trace and cannot be rewritten
    sources: list[str] = field(default_factory=list)  # files that its job names and that hold the client
    provider_files: dict[str, bool] = field(default_factory=dict)  # by id: whether they are deleted there


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


def files(root: Path) -> Iterator[Path]:
    """The files below a directory in the order of their names."""
    return (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())


def holds(path: Path, traces: Traces) -> bool:
    """Whether a text file holds a trace."""
    overlap = max(2**18, 16 * max(map(len, traces.needles), default=0))  # bytes that a text may take with its escapes
    with open(path, "rb") as file:
        before = b""
        while chunk := file.read(_CHUNK):
            content = before + chunk
            if traces.may_be_in(content) and traces.within(content.decode("utf-8", "ignore")):
                return True
            before = content[-overlap:]
    return False


def _named_files(root: Path) -> list[Path]:
    """The files outside a directory that its job names, also by patterns, and those in directories that it names."""
    job = root / "job.yaml"
    if not job.exists():
        return []
    settings = job_file.flatten(job_file.read_yaml(job, "job file") or {})
    values = [value for setting in settings.values() for value in _strings(setting)]
    found: list[Path] = []
    for value in values:
        there = Path(value).exists() or ("#" in value and locate(value)[0].is_file())  # with a sheet or an encoding
        paths = [Path(value)] if there else map(Path, glob.glob(value)) if "*" in value else []
        for path in paths:
            found += sorted(files(path)) if path.is_dir() else [path]
    own = root.resolve()
    return [
        path
        for path in dict.fromkeys(found)
        if path.suffix not in (*WEIGHTS, ".yaml") and not path.resolve().is_relative_to(own)
    ]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if 0 < len(value) < 4096 and "\0" not in value else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in _strings(one)]


def _source_holds(path: Path, traces: Traces) -> bool:
    if path.suffix == ".parquet":
        return forget_tables.holds(path, traces)
    with contextlib.suppress(FileNotFoundError):
        if holds(path, traces):
            return True
    try:  # a member of an archive, a packed file, a spreadsheet or another encoding
        rows = open_records(path, "source")
        return any(row.cells is not None and traces.within(list(row.cells.values())) for row in rows)
    except InputError:  # no table
        return False


def _trained(root: Path, traces: Traces, target: str) -> list[str]:
    """The weights that saw the client: from the first iteration that trained on a pair about them."""
    seen: list[str] = []
    first = next(
        (
            path.parent.name
            for path in sorted(root.glob("iteration-*/pairs.parquet"))
            if forget_tables.holds(path, traces)
        ),
        None,
    )
    if first is not None:
        for directory in sorted(path for path in root.glob("iteration-*") if path.name >= first):
            names = [f"{directory.name}/{name}" for name in ("checkpoint", "state")]
            seen += [name for name in names if storage.exists(storage.join(target, name))]
    return seen
