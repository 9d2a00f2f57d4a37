"""Tables of speeches and pairs out of files."""

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
"""What a split may be called, in a column or at the beginning of a file's name."""


SAMPLE = Path(str(files("psyco_ray") / "data" / "sample" / "pairs.jsonl"))
"""294 synthetic speeches with a preference pair each, in the released dataset's columns."""


def read_table(name: str, what: str) -> pa.Table:
    """Read a Parquet, JSONL or CSV file (by its ending), a directory of Parquet files, or the packaged `sample`.

    Raises:
        InputError: it is missing, truncated or of another kind.
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
        # without the cells that pyarrow shows: they may be what a client says
        said = re.sub(r"(got \d+:|invalid value).*", r"\1 ...", str(error).splitlines()[0])
        raise InputError(f"{what} file {path} cannot be read: {said}") from None
    if not table.num_rows:
        raise InputError(f"{what} file {path} has no rows")
    return table


def _read_parquet(path: str) -> pa.Table:
    """A Parquet file, or a directory of them: their names tell the split, as on the hub, where no column does.

    Raises:
        InputError: some names tell one and others do not.
    """
    files = sorted(Path(path).rglob("[!._]*.parquet")) if Path(path).is_dir() else []
    named = {file: SPLITS.get(re.split("[-_.]", file.name)[0]) for file in files}
    if not any(named.values()) or "split" in pq.read_schema(files[0]).names:
        return pq.read_table(path)
    if untold := [file.name for file, split in named.items() if split is None]:
        raise InputError(
            f"{path}: {untold[0]} does not begin with the name of a split ({', '.join(SPLITS)}), as others there do; "
            "rename it or take it away"
        )
    if "dev" not in named.values():  # it is drawn from what is to be trained on
        named = {file: None if split == "train" else split for file, split in named.items()}
    tables = ((pq.read_table(file), split) for file, split in named.items())
    return pa.concat_tables(
        (one.append_column("split", pa.array([split] * one.num_rows, pa.string())) for one, split in tables),
        promote_options="permissive",
    )


def _read_csv(path: str) -> pa.Table:
    how = pyarrow.csv.ParseOptions(newlines_in_values=True)
    found = pyarrow.csv.read_csv(path, parse_options=how)
    if pa.binary() in found.schema.types:  # not in UTF-8, but as old versions of Excel write it
        found = pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(encoding="cp1252"), how)
    return found
