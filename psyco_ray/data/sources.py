"""Raw client speeches from files and hub datasets, row by row and uncleaned."""

from __future__ import annotations

import codecs
import csv
import functools
import glob
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from psyco_ray.config import job_file
from psyco_ray.config.data import Source
from psyco_ray.config.errors import InputError
from psyco_ray.run import hub

Cells = dict[str, Any] | str
"""Cells by column, or a sentence with the reason why the row cannot be read."""

_CLIENT_ROLES = ("user", "human", "client", "patient", "seeker", "usr")
_SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can hold them alone, files cannot
_PROBE = 100  # objects of a JSON file that define its columns
_PARQUET_ROWS = 1000  # per batch
_HUB_ENDINGS = (".parquet", ".jsonl", ".csv", ".json")  # of several formats, the first is read


@dataclass(frozen=True)
class RawRow:
    """An uncleaned row. `text` is None if it is empty or if `problem` says why it cannot be read."""

    source: str
    number: int  # from 1, over all files of the source
    text: str | None = None
    topic: str | None = None
    problem: str | None = None


class Adapter(job_file.Section):
    """Describes how the rows of a source are read; see ``sources.yaml``."""

    text: list[str] = Field(min_length=1)
    topic: list[str] = Field(default_factory=list)
    turns: list[str] = Field(default_factory=list)
    strip: list[str] = Field(default_factory=list)


def read(source: Source) -> Iterator[RawRow]:
    """All rows of a source, file by file in the order of names; CSV, JSONL and Parquet in bounded memory.

    Raises:
        InputError: a file is missing, empty, damaged or of another kind, or has none of the columns.
    """
    adapter = _adapter_of(source)
    rows = itertools.chain.from_iterable(_rows(path, source, adapter) for path in find(source))
    for number, cells in enumerate(rows, start=1):
        if isinstance(cells, str):
            yield RawRow(source.name, number, problem=cells)
        else:
            text, problem = _text(cells, adapter)
            yield RawRow(source.name, number, text, _topic(cells, adapter), problem)


def check(source: Source) -> None:
    """Check the first row of every file of a source.

    Raises:
        InputError: as `read` does.
    """
    adapter = _adapter_of(source)
    for path in find(source):
        next(_rows(path, source, adapter))


def find(source: Source) -> list[Path]:
    """The files of a source, sorted by name; those of a hub dataset are downloaded unless cached.

    Raises:
        InputError: no file matches, or the hub cannot provide them.
    """
    if source.hub is not None:
        return _download(source.hub)
    assert source.path is not None
    paths = [Path(source.path)] if Path(source.path).is_file() else [Path(p) for p in sorted(glob.glob(source.path))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise InputError(f"source {source.name}: no file matches {source.path}; path is a file or a glob of files")
    for path in paths:
        if path.suffix.lower() not in _READERS:
            raise InputError(f"source {source.name}: {path} has none of the endings {', '.join(_READERS)}")
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


def _rows(path: Path, source: Source, adapter: Adapter) -> Iterator[Cells]:
    """The rows of a file, at least one.

    Raises:
        InputError: the file is empty, damaged or has none of the columns.
    """
    try:
        columns, rows = _READERS[path.suffix.lower()](path, [*adapter.text, *adapter.topic])
        first = next(rows, None)
        if first is None:
            raise InputError(f"source {source.name}: {path} has no rows; leave it out")
        for key, accepted, required in (
            ("text", adapter.text, True),
            ("topic", adapter.topic, source.topic is not None),
        ):
            if required and columns and not set(accepted) & set(columns):
                raise InputError(
                    f"source {source.name}: {path} has no column {' or '.join(accepted)}; it has "
                    f"{', '.join(filter(None, columns))}; name the right one in the source's {key}"
                )
        yield first
        yield from rows
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise InputError(f"source {source.name}: {path} cannot be read: {' '.join(str(error).split())}") from None


def _read_csv(path: Path, names: list[str]) -> tuple[list[str], Iterator[Cells]]:
    reader = csv.reader(_lines(path))
    header = [name.strip() for name in next(reader, [])]

    def rows() -> Iterator[Cells]:
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # such as an unterminated cell; the reader continues with the next line
                yield f"invalid CSV: {error}"
                continue
            if cells and len(cells) != len(header):
                yield f"{len(cells)} cells where the header has {len(header)}"
            elif cells:
                yield dict(zip(header, cells, strict=True))

    return header, rows()


def _read_parquet(path: Path, names: list[str]) -> tuple[list[str], Iterator[Cells]]:
    file = pq.ParquetFile(path, pre_buffer=False)  # a pre-buffer keeps everything that was read until the end
    columns = [name for name in file.schema_arrow.names if name in names]
    batches = file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns)
    return file.schema_arrow.names, itertools.chain.from_iterable(batch.to_pylist() for batch in batches)


def _read_json(path: Path, names: list[str]) -> tuple[list[str], Iterator[Cells]]:
    """An array of objects, else one object per line, whatever the file's ending."""
    start = next((line for line in _lines(path) if line.strip()), "").lstrip()
    rows = _array(path) if start.startswith("[") else (_object(line) for line in _lines(path) if line.strip())
    head = list(itertools.islice(rows, _PROBE))
    columns = dict.fromkeys(itertools.chain.from_iterable(row for row in head if not isinstance(row, str)))
    return list(columns), itertools.chain(head, rows)


def _array(path: Path) -> Iterator[Cells]:
    try:
        values = json.loads("".join(_lines(path)), strict=False)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON array: {error}") from None
    for value in values:
        yield value if isinstance(value, dict) else f"a {type(value).__name__} instead of an object"


def _object(line: str) -> Cells:
    try:
        value = json.loads(line, strict=False)
    except (ValueError, RecursionError) as error:
        return f"invalid JSON: {error}"
    return value if isinstance(value, dict) else f"a {type(value).__name__} instead of an object"


_READERS: dict[str, Callable[[Path, list[str]], tuple[list[str], Iterator[Cells]]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends, in UTF-8 or UTF-16; lines that are not UTF-8 are read as cp1252.

    `charset-normalizer` assumes one encoding per file and guesses wrong on single lines.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield from io.TextIOWrapper(file, encoding="utf-16", errors="replace", newline="")
            return
        if start.startswith(codecs.BOM_UTF8):
            file.seek(len(codecs.BOM_UTF8))
        for line in file:
            try:
                yield line.decode()
            except UnicodeDecodeError:
                yield line.decode("cp1252", errors="replace")


def _download(name: str) -> list[Path]:
    """The files of a hub dataset, all of one format; downloaded unless cached."""
    hub_id, revision = hub.split_revision(name)
    patterns = [f"*{ending}" for ending in _HUB_ENDINGS]
    directory = hub.snapshot(hub_id, patterns, revision, kind="dataset")
    for pattern in patterns:
        if paths := sorted(directory.rglob(pattern)):
            return paths
    raise InputError(f"the hub's dataset {hub_id} has no file with the endings {', '.join(_HUB_ENDINGS)}")


def _text(cells: dict[str, Any], adapter: Adapter) -> tuple[str | None, str | None]:
    """The client's words, or the reason why they cannot be read; neither if every column is empty."""
    for column in adapter.text:
        value = cells.get(column)
        if isinstance(value, list):
            value = _first_turn(value)
            if value is None:
                return None, f"{column} is a list without a message of the client"
        if value is not None and not isinstance(value, str):
            return None, f"{column} is a {type(value).__name__}, not text"
        if value and (text := _client_words(_SURROGATES.sub("", value), adapter)):
            return text, None
    return None, None


def _client_words(text: str, adapter: Adapter) -> str:
    """A text without other speakers and instructions."""
    turns = (re.search(pattern, text, re.IGNORECASE | re.DOTALL) for pattern in adapter.turns)
    if match := next(filter(None, turns), None):
        text = match[1]
    for pattern in adapter.strip:
        if match := re.match(rf"\s*{pattern}", text, re.IGNORECASE | re.DOTALL):
            text = text[match.end() :]
    return text.strip()


def _topic(cells: dict[str, Any], adapter: Adapter) -> str | None:
    for column in adapter.topic:
        value = cells.get(column)
        if isinstance(value, list):
            value = "; ".join(part for part in value if isinstance(part, str))
        if isinstance(value, str) and value.strip():
            return _SURROGATES.sub("", value).strip()
    return None


def _first_turn(messages: list[Any]) -> str | None:
    """The client's first message."""
    for message in messages:
        if isinstance(message, dict):
            role, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
            if isinstance(text, str) and str(role).lower() in _CLIENT_ROLES:
                return text
    return None
