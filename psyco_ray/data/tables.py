"""Tables of speeches and pairs, read from files."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json
import pyarrow.parquet as pq

from psyco_ray.config.errors import InputError

SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("dev", "eval", "valid", "val", "validation"), "dev")
"""Accepted names of splits, in a column or at the beginning of a file name."""

SAMPLE = Path(str(files("psyco_ray") / "data" / "sample" / "pairs.jsonl"))
"""368 pairs on 294 synthetic speeches, in the released dataset's columns; 74 of the rejected responses are cut."""

_ENDINGS = (".parquet", ".jsonl", ".csv", ".jsonl.gz")
_BATCH_ROWS = 4096  # of a streamed file
_PROBE = 1000  # lines of a JSONL file that give its columns


def read_table(name: str, what: str) -> pa.Table:
    """Read a Parquet, JSONL or CSV file (by its ending), a directory of Parquet files, or the packaged `sample`.

    Args:
        name: the path, or `sample`.
        what: the kind of table, for messages.

    Raises:
        InputError: the file is missing, damaged, empty, of another kind, or has two columns of the same name.
    """
    path, ending = _find(name, what)
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    with _reading(path, what):
        table = readers.get(ending, pyarrow.json.read_json)(str(path))
    _require_distinct(table.column_names, path, what)
    if not table.num_rows:
        raise InputError(f"{what} file {path} has no rows")
    return table


def size_of(name: str, what: str) -> int:
    """Bytes of the files of a table."""
    path, _ = _find(name, what)
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*.parquet")))


def columns_of(name: str, what: str) -> list[str]:
    """The names of the columns that `stream_rows` can read.

    Raises:
        InputError: the file is missing, damaged, empty or of another kind.
    """
    path, ending = _find(name, what)
    with _reading(path, what):
        if ending == ".parquet":
            named = ["split"] if _split_by_file(path) else []
            schema = pyarrow.dataset.dataset(path, format="parquet").schema
            return [*_require_distinct(schema.names, path, what), *named]
        if ending == ".csv":
            return _require_distinct(pyarrow.csv.open_csv(path, _csv_encoding(path), _CSV).schema.names, path, what)
        columns: dict[str, None] = {}
        for _, row in zip(range(_PROBE), _json_rows(path), strict=False):
            columns |= dict.fromkeys(row)
    if not columns:
        raise InputError(f"{what} file {path} has no rows")
    return list(columns)


def stream_rows(name: str, what: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read the files of `read_table` in small batches, each value as text.

    Args:
        name: the path, or `sample`.
        what: the kind of table, for messages.
        columns: those to read; one that the file lacks is left out.

    Yields:
        Tables of string columns. A blank cell of a CSV file is null.

    Raises:
        InputError: as `read_table` does; rows before the damage are yielded.
    """
    path, ending = _find(name, what)
    streams = {".parquet": _stream_parquet, ".csv": _stream_csv}
    rows = 0
    with _reading(path, what):
        for table in streams.get(ending, _stream_json)(path, columns):
            rows += table.num_rows
            yield pa.table({name: _as_text(table[name]) for name in table.column_names})
    if not rows:
        raise InputError(f"{what} file {path} has no rows")


def _require_distinct(columns: list[str], path: Path, what: str) -> list[str]:
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise InputError(f"{what} file {path} has two columns {twice}; rename or drop one of them")
    return columns


def _find(name: str, what: str) -> tuple[Path, str]:
    """The path of a table, and the ending that tells its kind."""
    path = SAMPLE if name == "sample" else Path(name)
    ending = ".parquet" if path.is_dir() else "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending not in _ENDINGS:
        raise InputError(f"{what} file {path} has none of the endings {', '.join(_ENDINGS)}")
    return path, ending


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """A context that names the file where it cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{what} file {path} does not exist") from None
    except (pa.ArrowInvalid, OSError, EOFError, UnicodeError) as error:
        # without the cells that pyarrow quotes: they may be a client's words
        reason = re.sub(r"(got \d+:|invalid value).*", r"\1 ...", str(error).splitlines()[0])
        raise InputError(f"{what} file {path} cannot be read: {reason}") from None


def _split_by_file(path: Path) -> dict[str, str | None]:
    """The split by file of a directory of Parquet files without a split column, as names on the hub tell it.

    Raises:
        InputError: only some of the names give a split.
    """
    files = sorted(path.rglob("[!._]*.parquet")) if path.is_dir() else []
    split_by_file = {str(file): SPLITS.get(re.split("[-_.]", file.name)[0]) for file in files}
    if not any(split_by_file.values()) or "split" in pq.read_schema(files[0]).names:
        return {}
    if unnamed := [Path(file).name for file, split in split_by_file.items() if split is None]:
        raise InputError(
            f"{path}: {unnamed[0]} does not begin with the name of a split ({', '.join(SPLITS)}), as other files do; "
            "rename it or remove it"
        )
    if "dev" not in split_by_file.values():  # dev is drawn from the training split
        split_by_file = {file: None if split == "train" else split for file, split in split_by_file.items()}
    return split_by_file


def _read_parquet(path: str) -> pa.Table:
    split_by_file = _split_by_file(Path(path))
    if not split_by_file:
        return pq.read_table(path)
    tables = ((pq.read_table(file), split) for file, split in split_by_file.items())
    return pa.concat_tables(
        (table.append_column("split", pa.array([split] * table.num_rows, pa.string())) for table, split in tables),
        promote_options="permissive",
    )


def _stream_parquet(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    split_by_file = _split_by_file(path)
    dataset = pyarrow.dataset.dataset(path, format="parquet")
    found = [name for name in columns if name in dataset.schema.names]
    for fragment in dataset.get_fragments():
        split = split_by_file.get(fragment.path)
        batches = fragment.to_batches(schema=dataset.schema, columns=found, batch_size=_BATCH_ROWS, batch_readahead=1)
        for batch in batches:
            table = pa.Table.from_batches([batch])
            if split_by_file and "split" in columns:
                table = table.append_column("split", pa.array([split] * len(batch), pa.string()))
            yield table


_CSV = pyarrow.csv.ParseOptions(newlines_in_values=True)


def _read_csv(path: str) -> pa.Table:
    table = pyarrow.csv.read_csv(path, parse_options=_CSV)
    if pa.binary() in table.schema.types:  # not UTF-8: the encoding of old versions of Excel
        table = pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(encoding="cp1252"), _CSV)
    return table


def _stream_csv(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    encoding = _csv_encoding(path)
    with pyarrow.csv.open_csv(path, encoding, _CSV) as reader:
        found = [name for name in columns if name in reader.schema.names]
    as_text = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(found, pa.string()),
        include_columns=found,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    with pyarrow.csv.open_csv(path, encoding, _CSV, as_text) as reader:
        yield from map(pa.Table.from_batches, ([batch] for batch in reader))


def _csv_encoding(path: Path) -> pyarrow.csv.ReadOptions:
    """UTF-8, or the encoding of old versions of Excel if the file is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(2**20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return pyarrow.csv.ReadOptions(encoding="cp1252")
    return pyarrow.csv.ReadOptions()


def _stream_json(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    schema = pa.schema([(name, pa.string()) for name in columns])
    rows: list[dict[str, Any]] = []
    for row in _json_rows(path):
        rows.append({name: None if row.get(name) is None else str(row[name]) for name in columns})
        if len(rows) == _BATCH_ROWS:
            yield pa.Table.from_pylist(rows, schema=schema)
            rows = []
    yield pa.Table.from_pylist(rows, schema=schema)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = str(error).partition(":")[0]  # without the text around it
                raise pa.ArrowInvalid(f"line {number} is not JSON: {reason}") from None
            if not isinstance(row, dict):
                raise pa.ArrowInvalid(f"line {number} is a {type(row).__name__}, not an object")
            yield row


def _as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(values.type):
        return values
    texts = [None if value is None else str(value) for value in values.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])
