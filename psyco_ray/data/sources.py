"""Raw client speeches from files and hub datasets, row by row and uncleaned."""

from __future__ import annotations

import functools
import glob
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path

from pydantic import Field

from psyco_ray.config import job_file
from psyco_ray.config.data import Source
from psyco_ray.config.errors import InputError
from psyco_ray.data.client_rows import ClientFile
from psyco_ray.data.speaker_columns import Keys
from psyco_ray.files import records
from psyco_ray.run import hub

_HUB_ENDINGS = (".parquet", ".jsonl", ".csv", ".json")  # of several formats, the first is read


@dataclass(frozen=True)
class RawRow:
    """An uncleaned row. `text` is None if it is empty, skipped, or if `problem` says why it cannot be read."""

    source: str
    number: int  # from 1, over all files of the source
    text: str | None = None
    topic: str | None = None
    problem: str | None = None
    skipped: bool = False  # it is not a row of the source's `where`
    dialogue: bool = False  # the text is a whole dialogue, of which contexts are to be made


class Adapter(job_file.Section):
    """Describes how the rows of a source are read; see ``sources.yaml``."""

    text: list[str] = Field(min_length=1)
    topic: list[str] = Field(default_factory=list)
    strip: list[str] = Field(default_factory=list)


def read(source: Source) -> Iterator[RawRow]:
    """All rows of a source, file by file in the order of names, in bounded memory.

    Raises:
        InputError: a file is missing, empty, damaged or of another kind, has none of the columns, or names speakers
            without a `where`.
    """
    adapter, before = _adapter_of(source), 0
    for path in find(source):
        file = _open(path, source, adapter)
        for row in file.dialogues():
            yield RawRow(source.name, before + row.number, row.text, row.topic, row.problem, row.skipped, row.dialogue)
        before += file.seen


def check(source: Source) -> None:
    """Check columns, encoding and first rows of every file of a source.

    Raises:
        InputError: as `read` does, or no row of a file is one of `where`.
    """
    adapter = _adapter_of(source)
    for path in find(source):
        _open(path, source, adapter).check()


def digests(source: Source) -> dict[str, str]:
    """A hash of each file of a source by its path; of a hub dataset none, as its revision names the files.

    Raises:
        InputError: a file is missing.
    """
    paths = find(source) if source.hub is None else []
    return {str(path): records.digest_of(path, f"source {source.name}:") for path in paths}


def changed(source: Source, then: dict[str, str]) -> list[str]:
    """The files of a source that are other than they were, new or gone; none if all are gone.

    Args:
        source: the source.
        then: its `digests` at that time.
    """
    if not any(records.locate(path)[0].exists() for path in then):
        return []
    now = digests(source)
    return sorted(path for path in {*then, *now} if then.get(path) != now.get(path))


def find(source: Source) -> list[Path]:
    """The files of a source, sorted by name; those of a hub dataset are downloaded unless cached.

    Raises:
        InputError: no file matches, or the hub cannot provide them.
    """
    if source.hub is not None:
        return _download(source.hub)
    assert source.path is not None
    if records.locate(source.path)[0].exists():
        return [Path(source.path)]
    paths = [Path(path) for path in sorted(glob.glob(source.path)) if Path(path).is_file()]
    if not paths:
        raise InputError(f"source {source.name}: no file matches {source.path}; path is a file or a glob of files")
    return paths


@functools.lru_cache(maxsize=1)
def adapters() -> dict[str, Adapter]:
    """The entries of ``sources.yaml``."""
    path = Path(str(package_files("psyco_ray") / "data" / "sources.yaml"))
    entries = job_file.read_yaml(path, "adapters file")
    return {name: job_file.parse(Adapter, entry, f"{path}: {name}") for name, entry in entries.items()}


def _adapter_of(source: Source) -> Adapter:
    """The source's adapter, with the columns that the job names instead of its own.

    Raises:
        InputError: the adapter does not exist.
    """
    if source.adapter not in adapters():
        known = ", ".join(sorted(adapters()))
        raise InputError(f"source {source.name}: unknown adapter {source.adapter}; known are {known}")
    columns = {"text": source.text, "topic": source.topic}
    overrides = {key: [column] for key, column in columns.items() if column is not None}
    return adapters()[source.adapter].model_copy(update=overrides)


def _open(path: Path, source: Source, adapter: Adapter) -> ClientFile:
    """A file of a source.

    Raises:
        InputError: it cannot be read, or lacks a column that the job names.
    """
    keys = Keys("the source's text", "the source's where", "the source's dialogue")
    file = ClientFile(path, f"source {source.name}:", adapter.text, keys, source, adapter.topic, adapter.strip)
    if source.topic is not None:
        file.file.column([source.topic], "the source's topic")
    return file


def _download(name: str) -> list[Path]:
    """The files of a hub dataset, all of one format; downloaded unless cached."""
    hub_id, revision = hub.split_revision(name)
    patterns = [f"*{ending}" for ending in _HUB_ENDINGS]
    directory = hub.snapshot(hub_id, patterns, revision, kind="dataset")
    for pattern in patterns:
        if paths := sorted(directory.rglob(pattern)):
            return paths
    raise InputError(f"the hub's dataset {hub_id} has no file with the endings {', '.join(_HUB_ENDINGS)}")
