"""Tables of speeches and pairs, read from files."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from psyco_ray.config.errors import InputError

SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("dev", "eval", "valid", "val", "validation"), "dev")
"""Accepted names of splits, in a column or at the beginning of a file name."""

SAMPLE = Path(str(files("psyco_ray") / "data" / "sample" / "pairs.jsonl"))
"""294 synthetic speeches with a preference pair each, in the released dataset's columns."""


def read_table(name: str, what: str) -> pa.Table:
    """Read a Parquet, JSONL or CSV file (by its ending), a directory of Parquet files, or the packaged `sample`.

    Args:
        name: the path, or `sample`.
        what: the kind of table, for messages.

    Raises:
        InputError: the file is missing, damaged, empty or of another kind.
    """
    path = SAMPLE if name == "sample" else Path(name)
    readers = {".parquet": _read_parquet, ".jsonl": pyarrow.json.read_json, ".csv": _read_csv}
    readers[".jsonl.gz"] = readers[".jsonl"]
    ending = ".parquet" if path.is_dir() else "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending not in readers:
        raise InputError(f"{what} file {path} has none of the endings {', '.join(readers)}")
    try:
        table = readers[ending](str(path))
    except FileNotFoundError:
        raise InputError(f"{what} file {path} does not exist") from None
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        # without the cells that pyarrow quotes: they may be a client's words
        reason = re.sub(r"(got \d+:|invalid value).*", r"\1 ...", str(error).splitlines()[0])
        raise InputError(f"{what} file {path} cannot be read: {reason}") from None
    if not table.num_rows:
        raise InputError(f"{what} file {path} has no rows")
    return table


def _read_parquet(path: str) -> pa.Table:
    """A Parquet file, or a directory of them. Without a split column, file names give the split, as on the hub.

    Raises:
        InputError: only some of the names give a split.
    """
    files = sorted(Path(path).rglob("[!._]*.parquet")) if Path(path).is_dir() else []
    split_by_file = {file: SPLITS.get(re.split("[-_.]", file.name)[0]) for file in files}
    if not any(split_by_file.values()) or "split" in pq.read_schema(files[0]).names:
        return pq.read_table(path)
    if unnamed := [file.name for file, split in split_by_file.items() if split is None]:
        raise InputError(
            f"{path}: {unnamed[0]} does not begin with the name of a split ({', '.join(SPLITS)}), as other files do; "
            "rename it or remove it"
        )
    if "dev" not in split_by_file.values():  # dev is drawn from the training split
        split_by_file = {file: None if split == "train" else split for file, split in split_by_file.items()}
    tables = ((pq.read_table(file), split) for file, split in split_by_file.items())
    return pa.concat_tables(
        (table.append_column("split", pa.array([split] * table.num_rows, pa.string())) for table, split in tables),
        promote_options="permissive",
    )


def _read_csv(path: str) -> pa.Table:
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(path, parse_options=options)
    if pa.binary() in table.schema.types:  # not UTF-8: the encoding of old versions of Excel
        table = pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(encoding="cp1252"), options)
    return table
