"""The client speeches of a training run: read, cleaned, split, checked and rendered by Ray Data in a stream.

::

    file ─▶ read ─▶ clean ─▶ held-out speeches and their signatures, in Ray's object store ─┐
    file ─▶ read ─▶ clean ─▶ sort by id ─▶ leaks ◀──────────────────────────────────────────┘
                                             └─▶ render ─▶ first row of each id, in small tables

The driver does the last step, on one small table at a time; the others run in Ray's workers. A row that cannot be used
travels to the driver as a row with a problem, because Ray would wrap an error of a worker.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Data, Job
from psyco_ray.data import duplicates, leakage
from psyco_ray.data.splits import speech_id, split_of
from psyco_ray.data.tables import columns_of, size_of, stream_rows
from psyco_ray.run.schemas import SPEECHES
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Row

_BLOCK_BYTES = 2**24
_SORTED_BYTES = 2**28  # of a task that sorts; small pieces, below 100 kB, would be held by the driver
_RANGE_BYTES = 2**22  # of the file, whose speeches are checked and rendered by one task
_MAX_RANGES = 256
_PREFIXES = 16**4  # values of the first digits of an id
_WRITTEN_ROWS = 4096  # of a table that the driver yields, before repeated speeches are left out

_READ = pa.schema([("row", pa.int64()), *[(name, pa.string()) for name in ("speech", "topic", "split", "problem")]])
_CLEANED = pa.schema(
    [
        ("prefix", pa.int64()),  # first digits of the id
        ("speech_id", pa.string()),  # empty with a problem: sorted first
        ("speech", pa.string()),
        ("split", pa.string()),
        ("topic", pa.string()),
        ("row", pa.int64()),  # of the file, from 1; 0: the file cannot be read
        ("problem", pa.string()),  # a message for the user
    ]
)
_HELD_OUT = pa.schema(
    [
        ("speech_id", pa.string()),
        ("speech", pa.string()),
        ("split", pa.string()),
        ("signature", pa.binary(4 * duplicates.PERMUTATIONS)),
    ]
)


def prepare(job: Job) -> tuple[Iterator[pa.Table], Row]:
    """Read the job's speeches, clean and split them, and render their prompts, with Ray Data.

    Of equal speeches the first of the file stays. A `split` column decides the split if the file has one. Speeches of
    the test split are left out, and training speeches that repeat a held-out one follow `data.leakage`. Ray must be
    running.

    Args:
        job: names the file, length limits, prompts and the model whose chat template renders them.

    Returns:
        A stream of tables of the SPEECHES schema, ordered by id, whose sizes depend on the file alone; and facts for
        the stage's record, complete when the stream ends: the `leaks`. The stream raises an InputError if the file or a
        column is invalid, a speech is empty or too long for the context, none is left, or training speeches are held
        out too.
    """
    facts: Row = {}
    return _stream(job, facts), facts


def held_out(data: Data) -> leakage.HeldOut:
    """The test and dev speeches of `data.speeches`, of any length, which evaluations answer, by origin.

    Raises:
        InputError: the file or a column is invalid, or a speech is empty.
    """
    texts: dict[str, list[str]] = {"test": [], "dev": []}
    column = _speech_column(data)
    for table in _read(data, column):
        for row in table.to_pylist():
            text, split = _checked(row, data, column)
            if split in texts:
                texts[split].append(text)
    return {_origin(split, data): found for split, found in texts.items()}


def _stream(job: Job, facts: Row) -> Iterator[pa.Table]:
    data, splits, found = job.data, Counter[str](), Counter[tuple[str, str]]()
    last = pa.array([""])
    for table in _rendered(job).iter_batches(batch_size=_WRITTEN_ROWS, batch_format="pyarrow", prefetch_batches=1):
        for problem in table["problem"].drop_null().slice(0, 1).to_pylist():
            raise InputError(problem)
        # a speech of both splits leaks: if that is allowed it is trained on, else its dev row stays
        same = ("speech_id",) if data.leakage == "allow" else ("speech_id", "split")
        keys = pa.concat_arrays(
            [last, pc.binary_join_element_wise(*(table[name].combine_chunks() for name in same), "")]
        )
        last = keys[-1:]
        table = table.filter(pc.not_equal(keys[1:], keys[:-1]))
        leaking = table.filter(table["leak"].is_valid())
        found.update(zip(leaking["leak"].to_pylist(), leaking["origin"].to_pylist(), strict=True))
        usable = table if data.leakage == "allow" else table.filter(table["leak"].is_null())
        splits.update(usable["split"].to_pylist())
        if usable.num_rows:
            yield usable.select(SPEECHES.names).cast(SPEECHES).combine_chunks()
    facts["leaks"] = leakage.leaks_of(found, data)
    total = splits["train"] + (found.total() if data.leakage != "allow" else 0)
    leakage.enforce(leakage.sentences(f"speeches file {data.speeches}", total, "speeches", facts["leaks"]), data)
    for split in ("train", "dev"):
        if not splits[split]:
            rows = sum(table.num_rows for table in _read(data, _speech_column(data)))
            raise InputError(
                f"{data.speeches}: no {split} speech is left of {rows} rows; look at data.min_chars "
                f"{data.min_chars}, data.max_chars {data.max_chars} and data.dev_share {data.dev_share}"
            )


def _rendered(job: Job) -> Any:
    """The dataset of speeches with prompts, problems and leaks, ordered by id, split (train first) and row."""
    data = job.data
    column = _speech_column(data)
    blocks = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 1}
    held_out = _read_dataset(data, column).map_batches(functools.partial(_held_out, data=data, column=column), **blocks)
    cleaned = _read_dataset(data, column).map_batches(functools.partial(_clean, data=data, column=column), **blocks)
    # ids are hashes: equal ranges of them are ranges of equal size
    ranges = min(_MAX_RANGES, size_of(data.speeches, "speeches") // _RANGE_BYTES + 1)
    boundaries = [_PREFIXES * number // ranges for number in range(1, ranges)]
    ordered = cleaned.sort(
        ["prefix", "speech_id", "split", "row"], [False, False, True, False], boundaries=boundaries or None
    )
    check = functools.partial(_check, data=data, held_out=held_out.to_arrow_refs())
    return ordered.map_batches(check, **blocks).map_batches(functools.partial(_render, job=job), **blocks)


def _read_dataset(data: Data, column: str) -> Any:
    """The dataset of the file's rows, in their order."""
    import ray

    # the file may be on the driver's node alone, which may have no CPU to reserve
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    dataset = ray.data.from_items([{"file": data.speeches}])
    dataset.context.target_max_block_size = _BLOCK_BYTES
    dataset.context.shuffle_input_batch_bytes = _SORTED_BYTES
    dataset.context.execution_options.preserve_order = True

    def read(_: Any) -> Iterator[pa.Table]:
        try:
            yield from _read(data, column)
        except InputError as error:
            yield pa.Table.from_pylist([{"row": 0, "problem": str(error)}], schema=_READ)

    return dataset.map_batches(read, num_cpus=0, label_selector=here)


def _read(data: Data, column: str) -> Iterator[pa.Table]:
    rows = 0
    for table in stream_rows(data.speeches, "speeches", [column, "topic", "split"]):
        missing = pa.nulls(table.num_rows, pa.string())
        columns = [table[name] if name in table.column_names else missing for name in (column, "topic", "split")]
        numbers = pa.array(range(rows + 1, rows + table.num_rows + 1), pa.int64())
        yield pa.table([numbers, *columns, missing], schema=_READ)
        rows += table.num_rows


def _speech_column(data: Data) -> str:
    candidates = [data.speech_column] if data.speech_column else ["question", "speech", "text"]
    names = columns_of(data.speeches, "speeches")
    column = next((name for name in candidates if name in names), None)
    if column is None:
        raise InputError(
            f"speeches file {data.speeches} has no column {' or '.join(candidates)}; it has "
            f"{', '.join(names)}; name the right one in data.speech_column"
        )
    return column


def _checked(row: Row, data: Data, column: str) -> tuple[str, str]:
    """The speech and the split of a row.

    Raises:
        InputError: one of them is invalid.
    """
    if row["problem"] is not None:
        raise InputError(row["problem"])
    where = f"{data.speeches}: row {row['row']}"  # messages name speeches by number, never by a client's words
    text = (row["speech"] or "").strip()
    if not text:
        raise InputError(f"{where} has an empty {column}; remove the row or fill it in")
    try:
        return text, split_of(row, text, data.dev_share)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _clean(batch: pa.Table, data: Data, column: str) -> pa.Table:
    """The training and dev speeches within the length limits, with ids."""
    rows: list[Row] = []
    for row in batch.to_pylist():
        try:
            text, split = _checked(row, data, column)
        except InputError as error:
            rows.append({"prefix": 0, "speech_id": "", "split": "", "row": row["row"], "problem": str(error)})
            continue
        if split != "test" and data.min_chars <= len(text) <= data.max_chars:
            key = speech_id(text)
            rows.append({**row, "prefix": int(key[:4], 16), "speech_id": key, "speech": text, "split": split})
    return pa.Table.from_pylist(rows, schema=_CLEANED)


def _held_out(batch: pa.Table, data: Data, column: str) -> pa.Table:
    """The held-out speeches of any length, with the signatures by which near duplicates are found."""
    rows: list[Row] = []
    for row in batch.to_pylist():
        try:
            text, split = _checked(row, data, column)
        except InputError:  # raised for the training speeches
            continue
        if split != "train":
            rows.append({"speech_id": speech_id(text), "speech": text, "split": split})
    signed = duplicates.signatures([row["speech"] for row in rows])
    for row, signature in zip(rows, signed, strict=True):
        row["signature"] = signature.tobytes()
    return pa.Table.from_pylist(rows, schema=_HELD_OUT)


def _check(batch: pa.Table, data: Data, held_out: Sequence[Any]) -> pa.Table:
    """Add kind and origin of the leaks of training speeches.

    Args:
        batch: of the CLEANED schema.
        data: the shortest length of a near duplicate.
        held_out: object references to tables of held-out speeches.
    """
    import ray

    if not batch.num_rows:  # Ray's empty block has no columns
        batch = _CLEANED.empty_table()
    train = np.flatnonzero(pc.equal(batch["split"], "train"))
    known = _known(pa.concat_tables([_HELD_OUT.empty_table(), *filter(len, ray.get(list(held_out)))]), data)
    kinds, origins = np.full((2, batch.num_rows), None, dtype=object)
    for row, leak in leakage.find_known(batch["speech"].take(train).to_pylist(), known, data.min_chars).items():
        kinds[train[row]], origins[train[row]] = leak
    leaks = {"leak": pa.array(kinds, pa.string()), "origin": pa.array(origins, pa.string())}
    return pa.table({**{name: batch[name] for name in _CLEANED.names}, **leaks})


def _known(held_out: pa.Table, data: Data) -> leakage.Known:
    """The held-out speeches of a table; one of both splits counts as one of the test split."""
    held_out = held_out.sort_by([("split", "descending")])
    origin: dict[str, str] = {}
    first: list[int] = []
    for row, (key, split) in enumerate(
        zip(*(held_out[name].to_pylist() for name in ("speech_id", "split")), strict=True)
    ):
        if key not in origin:
            origin[key] = _origin(split, data)
            first.append(row)
    held_out = held_out.take(pa.array(first, pa.int64()))
    held_out = held_out.filter(pc.greater_equal(pc.utf8_length(held_out["speech"]), data.min_chars))
    signed = held_out["signature"].combine_chunks()
    signatures = np.frombuffer(signed.buffers()[1], np.uint32).reshape(-1, duplicates.PERMUTATIONS)
    return leakage.Known(origin, held_out["speech"].to_pylist(), signatures[signed.offset :][: len(signed)])


def _origin(split: str, data: Data) -> str:
    return f"the {split} split of speeches file {data.speeches}"


@functools.lru_cache(maxsize=1)
@gc_paused()
def shared_tokenizer(model: str, template_options: tuple[tuple[str, Any], ...]) -> Any:
    """A model's tokenizer with options of its chat template, loaded once per process."""
    from psyco_ray.models import loading

    return loading.load_tokenizer(loading.resolve(model), template_options=dict(template_options))


def check_prompt(job: Job) -> None:
    """Render the job's prompt with a speech of psyco_ray's own, before anything starts.

    Raises:
        InputError: the model's chat template refuses the prompt.
    """
    from psyco_ray.models import templates

    tokenizer = shared_tokenizer(job.model, (*job.template_options.items(),))
    templates.check(tokenizer, prompt_messages(load_prompt(job.prompts), "I cannot sleep."))


def _render(batch: pa.Table, job: Job) -> pa.Table:
    """Add each speech's prompt as token ids, and a problem where it leaves too little room for a response."""
    from psyco_ray.models import templates

    prompt, tokenizer = load_prompt(job.prompts), shared_tokenizer(job.model, (*job.template_options.items(),))
    room = job.rollouts.max_model_len - job.sampling.max_tokens
    rendered: list[list[int] | None] = []
    problems: list[str | None] = []
    for row in batch.to_pylist():
        ids, problem = None, row["problem"]
        if problem is None and (row["leak"] is None or job.data.leakage == "allow"):
            ids = templates.conversation_ids(tokenizer, prompt_messages(prompt, row["speech"]))
            if len(ids) > room:
                problem = (
                    f"{job.data.speeches}: row {row['row']} takes {len(ids)} tokens with its prompt, {room} fit; raise "
                    "rollouts.max_model_len or lower sampling.max_tokens"
                )
        rendered.append(ids)
        problems.append(problem)
    columns = {name: batch[name] for name in ("speech_id", "speech", "split", "topic", "leak", "origin")}
    columns["prompt_ids"] = pa.array(rendered, type=SPEECHES.field("prompt_ids").type)
    return pa.table({**columns, "problem": pa.array(problems, pa.string())})
