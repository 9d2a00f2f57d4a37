"""Client speeches and preference pairs from files, cleaned, split and drawn from."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Data, Job, Prompts
from psyco_ray.run.schemas import SPEECHES
from psyco_ray.run.startup import without_collector

SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("dev", "eval", "valid", "val", "validation"), "dev")
"""What a split may be called, in a column or at the beginning of a file's name."""

SAMPLE = Path(str(files("psyco_ray") / "data" / "sample" / "pairs.jsonl"))
"""294 synthetic speeches with a preference pair each, in the released dataset's columns."""


def read_table(name: str, what: str) -> pa.Table:
    """Read a Parquet, JSONL or CSV file (by its ending), a directory of Parquet files, or the packaged `sample`.

    Raises:
        ValueError: it is missing, truncated or of another kind.
    """
    path = SAMPLE if name == "sample" else Path(name)
    readers = {".parquet": _read_parquet, ".jsonl": pyarrow.json.read_json, ".csv": _read_csv}
    readers[".jsonl.gz"] = readers[".jsonl"]
    ending = ".parquet" if path.is_dir() else "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending not in readers:
        raise ValueError(f"{what} file {path} has none of the endings {', '.join(readers)}")
    try:
        table = readers[ending](str(path))
    except FileNotFoundError:
        raise ValueError(f"{what} file {path} does not exist") from None
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        # without the cells that pyarrow shows: they may be what a client says
        said = re.sub(r"(got \d+:|invalid value).*", r"\1 ...", str(error).splitlines()[0])
        raise ValueError(f"{what} file {path} cannot be read: {said}") from None
    if not table.num_rows:
        raise ValueError(f"{what} file {path} has no rows")
    return table


def _read_parquet(path: str) -> pa.Table:
    """A Parquet file, or a directory of them: their names tell the split, as on the hub, where no column does.

    Raises:
        ValueError: some names tell one and others do not.
    """
    files = sorted(Path(path).rglob("[!._]*.parquet")) if Path(path).is_dir() else []
    named = {file: SPLITS.get(re.split("[-_.]", file.name)[0]) for file in files}
    if not any(named.values()) or "split" in pq.read_schema(files[0]).names:
        return pq.read_table(path)
    if untold := [file.name for file, split in named.items() if split is None]:
        raise ValueError(
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


@functools.lru_cache(maxsize=1)  # id, split and screen ask for the same text one after another
def fold(text: str) -> str:
    """A text without case and white-space differences, by which equal speeches are recognised."""
    return " ".join(text.casefold().split())


def text_hash(purpose: str, text: str) -> str:
    """A hash of a folded text, as 64 hex digits; equal on every machine, independent between purposes."""
    return hashlib.sha256(f"{purpose}:{fold(text)}".encode()).hexdigest()


def unit(purpose: str, text: str) -> float:
    """A number in [0, 1) that belongs to a text: stable however much data is added."""
    return int(text_hash(purpose, text)[:13], 16) / 16**13


def speech_id(text: str) -> str:
    """The name of a speech: 16 hex digits of its hash."""
    return text_hash("speech", text)[:16]


def is_dev(text: str, dev_share: float) -> bool:
    """Whether a speech is held out; decided by its text alone (paper §3.3 draws; a hash never moves a speech)."""
    return unit("split", text) < dev_share


def split_of(row: dict[str, Any], text: str, dev_share: float) -> str:
    """The split that a row names (train, dev or test), or that its speech's hash gives.

    Raises:
        ValueError: the row names another one.
    """
    given = row.get("split")
    if given not in (None, "train", "dev", "test"):
        raise ValueError(f"the split is {given!r}; train, dev and test are known")
    return given or ("dev" if is_dev(text, dev_share) else "train")


def half(text: str) -> str:
    """The half of the pairs, a or b, that a speech's pairs belong to."""
    return "a" if unit("half", text) < 0.5 else "b"


def load_speeches(job: Job, tokenizer_of: str) -> list[dict[str, Any]]:
    """Clean, split and render the speeches with Ray Data, as rows of the SPEECHES table ordered by id.

    Args:
        job: says which file, bounds and prompts.
        tokenizer_of: the model whose chat template renders the prompts.

    Raises:
        ValueError: a wrong file or column, an empty speech, one that leaves no room in the context, or nothing left.

    A `split` column decides where there is one; speeches of the test split are left out.
    """
    import ray

    data = job.data
    table = read_table(data.speeches, "speeches")
    column = _speech_column(table, data)
    given = table.select([name for name in (column, "topic", "split") if name in table.column_names]).to_pylist()
    kept: dict[str, dict[str, Any]] = {}
    numbers: dict[str, int] = {}  # of the rows, by which messages name speeches: what clients say is not for logs
    for number, row in enumerate(given, start=1):
        text = None if row[column] is None else str(row[column])
        if text is None or not text.strip():
            raise ValueError(f"{data.speeches}: row {number} has an empty {column}; remove the row or fill it in")
        text = text.strip()
        if data.min_chars <= len(text) <= data.max_chars:
            try:
                split = split_of(row, text, data.dev_share)
            except ValueError as error:
                raise ValueError(f"{data.speeches}: row {number}: {error}") from None
            topic, key = None if row.get("topic") is None else str(row["topic"]), speech_id(text)
            kept.setdefault(key, {"speech_id": key, "speech": text, "split": split, "topic": topic})
            numbers.setdefault(key, number)
    rows = [kept[key] for key in sorted(kept) if kept[key]["split"] != "test"]
    for split in ("train", "dev"):
        if not any(row["split"] == split for row in rows):
            raise ValueError(
                f"{data.speeches}: no {split} speech is left of {len(given)} rows; look at data.min_chars "
                f"{data.min_chars}, data.max_chars {data.max_chars} and data.dev_share {data.dev_share}"
            )
    schema = pa.schema([field for field in SPEECHES if field.name != "prompt_ids"])
    render = functools.partial(_render, model=tokenizer_of, prompts=job.prompts)
    stream = ray.data.from_arrow(pa.Table.from_pylist(rows, schema=schema)).map_batches(
        render, batch_format="pyarrow", num_cpus=data.cpus
    )
    rendered = sorted(stream.take_all(), key=lambda row: row["speech_id"])
    room = job.rollouts.max_model_len - job.sampling.max_tokens
    for row in rendered:
        row["prompt_ids"] = [int(token) for token in row["prompt_ids"]]
        if len(row["prompt_ids"]) > room:
            raise ValueError(
                f"{data.speeches}: row {numbers[row['speech_id']]} takes {len(row['prompt_ids'])} tokens with its "
                f"prompt, {room} fit; raise rollouts.max_model_len or lower sampling.max_tokens"
            )
    return rendered


def draw(ids: Sequence[str], count: int, iteration: int, seed: int) -> list[str]:
    """The speeches of an iteration (1, 2, ...): the next `count` of an endless row of reshuffled passes.

    Nothing comes twice in an iteration, nor again before everything has come once.

    Raises:
        ValueError: an iteration wants more speeches than there are.
    """
    if count > len(ids):
        raise ValueError(
            f"speeches_per_iteration is {count}, but only {len(ids)} speeches are there to train on; lower it"
        )
    left: list[str] = []
    drawn: list[str] = []
    passes = 0
    for _ in range(iteration):
        drawn, left = left[:count], left[count:]
        if len(drawn) < count:
            shuffled = [ids[i] for i in np.random.default_rng([seed, passes]).permutation(len(ids))]
            passes += 1
            taken = set(drawn)
            fresh = [key for key in shuffled if key not in taken]
            wanted = count - len(drawn)
            left = fresh[wanted:] + [key for key in shuffled if key in taken]
            drawn += fresh[:wanted]
    return drawn


def _speech_column(table: pa.Table, data: Data) -> str:
    wanted = [data.speech_column] if data.speech_column else ["question", "speech", "text"]
    found = next((name for name in wanted if name in table.column_names), None)
    if found is None:
        raise ValueError(
            f"speeches file {data.speeches} has no column {' or '.join(wanted)}; it has "
            f"{', '.join(table.column_names)}; name the right one in data.speech_column"
        )
    return found


@functools.lru_cache(maxsize=1)
@without_collector()
def shared_tokenizer(model: str) -> Any:
    """A model's tokenizer, loaded once in a process."""
    from psyco_ray.models import loading

    return loading.load_tokenizer(loading.resolve(model))


def _render(batch: pa.Table, model: str, prompts: Prompts) -> pa.Table:
    """Add each speech's prompt as token ids."""
    from psyco_ray.models import loading

    prompt, tokenizer = load_prompt(prompts), shared_tokenizer(model)
    ids = [loading.conversation_ids(tokenizer, prompt_messages(prompt, text)) for text in batch["speech"].to_pylist()]
    return batch.append_column("prompt_ids", pa.array(ids, type=SPEECHES.field("prompt_ids").type))
