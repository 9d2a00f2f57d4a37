"""The client speeches of a training run: reads, splits and renders them, and draws those of an iteration."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Data, Job, Prompts
from psyco_ray.data import leakage
from psyco_ray.data.splits import speech_id, split_of
from psyco_ray.data.tables import read_table
from psyco_ray.run.schemas import SPEECHES
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Row


def load_speeches(job: Job, tokenizer_of: str) -> tuple[list[Row], Row]:
    """Split the speeches and render their prompts with Ray Data.

    A `split` column decides the split if the file has one. Speeches of the test split are left out, and training
    speeches that repeat a held-out one follow `data.leakage`.

    Args:
        job: names the file, length limits and prompts.
        tokenizer_of: the model whose chat template renders the prompts.

    Returns:
        Rows of the SPEECHES table, ordered by id, and facts for the stage's record: the `leaks`.

    Raises:
        InputError: the file or a column is invalid, a speech is empty or too long for the context, none is left, or
            training speeches are held out too.
    """
    import ray

    data = job.data
    every = read_speeches(data)
    usable = [row for row in every if data.min_chars <= len(row["speech"]) <= data.max_chars]
    train = _unique(row for row in usable if row["split"] == "train")
    dev = _unique(row for row in usable if row["split"] == "dev")
    training = leakage.TrainingSet(f"speeches file {data.speeches}", "speeches", [row["speech"] for row in train])
    [(kept, leaks)] = leakage.settle([training], held_out(data, every), data)
    rows = _unique([*(train[row] for row in kept), *dev])
    rows.sort(key=lambda row: row["speech_id"])
    for split in ("train", "dev"):
        if not any(row["split"] == split for row in rows):
            raise InputError(
                f"{data.speeches}: no {split} speech is left of {len(every)} rows; look at data.min_chars "
                f"{data.min_chars}, data.max_chars {data.max_chars} and data.dev_share {data.dev_share}"
            )
    numbers = {row["speech_id"]: row["number"] for row in reversed(usable)}  # of the first row with a speech
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
            raise InputError(
                f"{data.speeches}: row {numbers[row['speech_id']]} takes {len(row['prompt_ids'])} tokens with its "
                f"prompt, {room} fit; raise rollouts.max_model_len or lower sampling.max_tokens"
            )
    return rendered, {"leaks": leaks}


def read_speeches(data: Data) -> list[Row]:
    """All speeches of `data.speeches`, of any length and split: speech_id, speech, split, topic, and row number from 1.

    Raises:
        InputError: the file or a column is invalid, or a speech is empty.
    """
    table = read_table(data.speeches, "speeches")
    column = _speech_column(table, data)
    raw_rows = table.select([name for name in (column, "topic", "split") if name in table.column_names]).to_pylist()
    rows: list[Row] = []
    for number, raw in enumerate(raw_rows, start=1):  # messages name speeches by number, never by a client's words
        text = "" if raw[column] is None else str(raw[column]).strip()
        if not text:
            raise InputError(f"{data.speeches}: row {number} has an empty {column}; remove the row or fill it in")
        try:
            split = split_of(raw, text, data.dev_share)
        except InputError as error:
            raise InputError(f"{data.speeches}: row {number}: {error}") from None
        topic = None if raw.get("topic") is None else str(raw["topic"])
        rows.append({"number": number, "speech_id": speech_id(text), "speech": text, "split": split, "topic": topic})
    return rows


def held_out(data: Data, rows: Sequence[Row] | None = None) -> leakage.HeldOut:
    """The test and dev speeches of `data.speeches`, which evaluations answer, by origin.

    Args:
        data: names the file.
        rows: of `read_speeches`; None: read now.
    """
    rows = read_speeches(data) if rows is None else rows
    return {
        f"the {split} split of speeches file {data.speeches}": [row["speech"] for row in rows if row["split"] == split]
        for split in ("test", "dev")
    }


def _unique(rows: Iterable[Row]) -> list[Row]:
    """The first row of each speech."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["speech_id"], row)
    return list(first.values())


def draw(ids: Sequence[str], count: int, iteration: int, seed: int) -> list[str]:
    """The speeches of an iteration (1, 2, ...): the next `count` of an endless sequence of reshuffled passes.

    No speech repeats within an iteration, nor before all speeches were drawn once.

    Raises:
        InputError: `count` exceeds the number of speeches.
    """
    if count > len(ids):
        raise InputError(
            f"speeches_per_iteration is {count}, but the training split has only {len(ids)} speeches; lower it"
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
            missing = count - len(drawn)
            left = fresh[missing:] + [key for key in shuffled if key in taken]
            drawn += fresh[:missing]
    return drawn


def _speech_column(table: pa.Table, data: Data) -> str:
    candidates = [data.speech_column] if data.speech_column else ["question", "speech", "text"]
    column = next((name for name in candidates if name in table.column_names), None)
    if column is None:
        raise InputError(
            f"speeches file {data.speeches} has no column {' or '.join(candidates)}; it has "
            f"{', '.join(table.column_names)}; name the right one in data.speech_column"
        )
    return column


@functools.lru_cache(maxsize=1)
@gc_paused()
def shared_tokenizer(model: str) -> Any:
    """A model's tokenizer, loaded once per process."""
    from psyco_ray.models import loading

    return loading.load_tokenizer(loading.resolve(model))


def _render(batch: pa.Table, model: str, prompts: Prompts) -> pa.Table:
    """Add each speech's prompt as token ids."""
    from psyco_ray.models import loading

    prompt, tokenizer = load_prompt(prompts), shared_tokenizer(model)
    ids = [loading.conversation_ids(tokenizer, prompt_messages(prompt, text)) for text in batch["speech"].to_pylist()]
    return batch.append_column("prompt_ids", pa.array(ids, type=SPEECHES.field("prompt_ids").type))
