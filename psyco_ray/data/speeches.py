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
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.training import Data, Job
from psyco_ray.data import fitting, held_out, leakage, speech_file
from psyco_ray.data.client_rows import by_count
from psyco_ray.data.splits import speech_id
from psyco_ray.run.schemas import SPEECHES
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Row

_BLOCK_BYTES = 2**24
_SORTED_BYTES = 2**28  # of a task that sorts; small pieces, below 100 kB, would be held by the driver
_RANGE_BYTES = 2**22  # of the file, whose speeches are checked and rendered by one task
_MAX_RANGES = 256
_PREFIXES = 16**4  # values of the first digits of an id
_WRITTEN_ROWS = 4096  # of a table that the driver yields, before repeated speeches are left out

_CLEANED = pa.schema(
    [
        ("prefix", pa.int64()),  # first digits of the id
        ("speech_id", pa.string()),  # empty with a problem or rows left out: sorted first
        ("speech", pa.string()),
        ("split", pa.string()),
        ("topic", pa.string()),
        ("row", pa.int64()),  # of the file, from 1; 0: the file cannot be read
        ("shortened", pa.bool_()),  # whether oldest exchanges were left out to make room for a response
        ("problem", pa.string()),  # a message for the user
        ("left_out", pa.string()),  # why rows have no speech
        ("rows", pa.int64()),  # their number
    ]
)
_RENDERED = ("speech_id", "speech", "split", "topic", "leak", "origin", "shortened", "left_out", "rows")
_log = logging.getLogger(__name__)


def prepare(job: Job) -> tuple[Iterator[pa.Table], Row]:
    """Read the job's speeches, clean and split them, and render their prompts, with Ray Data.

    Of equal speeches the first of the file stays. A `split` column decides the split if the file has one. Speeches of
    the test split are left out, and training speeches that repeat a held-out one follow `data.leakage`. Ray must be
    running.

    Args:
        job: names the file, length limits, prompts and the model whose chat template renders them.

    Returns:
        A stream of tables of the SPEECHES schema, ordered by id, whose sizes depend on the file alone; and facts for
        the stage's record, complete when the stream ends: the `leaks`, the rows `left_out` by reason, and the
        `digest` of the file. The stream raises an InputError if the file or a column is invalid, a speech is too long
        for the context, none is left, or training speeches are held out too.
    """
    facts: Row = {}
    return _stream(job, facts), facts


def _stream(job: Job, facts: Row) -> Iterator[pa.Table]:
    data, splits, found, left_out = job.data, Counter[str](), Counter[tuple[str, str]](), Counter[str]()
    shortened = 0
    file = speech_file.open_file(data)
    facts["digest"] = file.file.digest()
    last = pa.array([""])
    for table in _rendered(job, speech_file.size_of(file)).iter_batches(
        batch_size=_WRITTEN_ROWS, batch_format="pyarrow", prefetch_batches=1
    ):
        for problem in table["problem"].drop_null().slice(0, 1).to_pylist():
            raise InputError(problem)
        counts = table.filter(table["left_out"].is_valid())
        for reason, rows in zip(counts["left_out"].to_pylist(), counts["rows"].to_pylist(), strict=True):
            left_out[reason] += rows
        table = table.filter(table["left_out"].is_null())
        # a speech of both splits leaks: if that is allowed it is trained on, else its dev row stays
        same = ("speech_id",) if data.leakage == "allow" else ("speech_id", "split")
        keys = pa.concat_arrays(
            [last, pc.binary_join_element_wise(*(table[name].combine_chunks() for name in same), "")]
        )
        last, rows = keys[-1:], table.num_rows
        table = table.filter(pc.not_equal(keys[1:], keys[:-1]))
        left_out["repeated"] += rows - table.num_rows
        leaking = table.filter(table["leak"].is_valid())
        found.update(zip(leaking["leak"].to_pylist(), leaking["origin"].to_pylist(), strict=True))
        usable = table if data.leakage == "allow" else table.filter(table["leak"].is_null())
        splits.update(usable["split"].to_pylist())
        shortened += pc.sum(usable["shortened"]).as_py() or 0
        if usable.num_rows:
            yield usable.select(SPEECHES.names).cast(SPEECHES).combine_chunks()
    facts["left_out"] = dict((+left_out).most_common())
    if facts["left_out"]:
        _log.info(f"speeches file {data.speeches}: left out {by_count(facts['left_out'])}")
    if shortened:
        _log.info(
            f"speeches file {data.speeches}: {shortened:,} of {splits.total():,} contexts lose their oldest exchanges, "
            f"as {fitting.room(job):,} tokens fit (rollouts.max_model_len less sampling.max_tokens)"
        )
    facts["leaks"] = leakage.leaks_of(found, data)
    total = splits["train"] + (found.total() if data.leakage != "allow" else 0)
    leakage.enforce(leakage.sentences(f"speeches file {data.speeches}", total, "speeches", facts["leaks"]), data)
    for split in ("train", "dev"):
        if not splits[split]:
            rows = sum(table.num_rows for table in speech_file.read(data))
            reasons = f" (left out: {by_count(facts['left_out'])})" if facts["left_out"] else ""
            raise InputError(
                f"{data.speeches}: no {split} speech is left of {rows} rows{reasons}; look at data.min_chars "
                f"{data.min_chars}, data.max_chars {data.max_chars} and data.dev_share {data.dev_share}"
            )


def _rendered(job: Job, size: int) -> Any:
    """The dataset of speeches with prompts, problems and leaks, ordered by id, split (train first) and row.

    Args:
        job: the job.
        size: bytes of the file.
    """
    data = job.data
    blocks = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 1}
    known = _read_dataset(data).map_batches(functools.partial(held_out.signed, data=data), **blocks)
    cleaned = _read_dataset(data).map_batches(functools.partial(_clean, job=job), **blocks)
    # ids are hashes: equal ranges of them are ranges of equal size
    ranges = min(_MAX_RANGES, size // _RANGE_BYTES + 1)
    boundaries = [_PREFIXES * number // ranges for number in range(1, ranges)]
    ordered = cleaned.sort(
        ["prefix", "speech_id", "split", "row"], [False, False, True, False], boundaries=boundaries or None
    )
    check = functools.partial(_check, data=data, held_out_speeches=known.to_arrow_refs())
    return ordered.map_batches(check, **blocks).map_batches(functools.partial(_render, job=job), **blocks)


def _read_dataset(data: Data) -> Any:
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
            yield from speech_file.read(data)
        except InputError as error:
            yield pa.Table.from_pylist([{"row": 0, "problem": str(error)}], schema=speech_file.READ)

    return dataset.map_batches(read, num_cpus=0, label_selector=here)


def _clean(batch: pa.Table, job: Job) -> pa.Table:
    """The training and dev speeches within the length limits, with ids, and the numbers of other rows.

    Conversations whose prompt leaves no room for a response lose their oldest exchanges.
    """
    data = job.data
    rows: list[Row] = []
    left_out = Counter[str]()
    for row in batch.to_pylist():
        if row["left_out"] is not None:
            left_out[row["left_out"]] += 1
            continue
        try:
            text, split = speech_file.speech_and_split(row, data)
        except InputError as error:
            rows.append({"prefix": 0, "speech_id": "", "split": "", "row": row["row"], "problem": str(error)})
            continue
        if (reason := _outside(text, split, data)) is not None:
            left_out[reason] += 1
            continue
        fits = _fitted(text, job)
        key = speech_id(fits)
        known = {"prefix": int(key[:4], 16), "speech_id": key, "speech": fits, "split": split}
        rows.append({**row, **known, "shortened": fits != text})
    for reason, count in left_out.items():
        rows.append({"prefix": 0, "speech_id": "", "split": "", "row": 0, "left_out": reason, "rows": count})
    return pa.Table.from_pylist(rows, schema=_CLEANED)


def _outside(text: str, split: str, data: Data) -> str | None:
    """Why a speech is not trained on; None: it is."""
    if split == "test":
        return "of the test split"
    if len(Context.of(text).client_words) < data.min_chars:
        return f"shorter than data.min_chars {data.min_chars}"
    longest = max(map(len, Context.of(text).client_turns))
    return f"longer than data.max_chars {data.max_chars}" if longest > data.max_chars else None


def _fitted(text: str, job: Job) -> str:
    """A context that leaves room for a response; a speech as it is."""
    if not Context.of(text).is_conversation:
        return text
    tokenizer = shared_tokenizer(job.model, (*job.template_options.items(),))
    return fitting.fitted(text, tokenizer, load_prompt(job.prompts), fitting.room(job))


def _check(batch: pa.Table, data: Data, held_out_speeches: Sequence[Any]) -> pa.Table:
    """Add kind and origin of the leaks of training speeches.

    Args:
        batch: of the CLEANED schema.
        data: the shortest length of a near duplicate.
        held_out_speeches: object references to tables of held-out speeches.
    """
    import ray

    if not batch.num_rows:  # Ray's empty block has no columns
        batch = _CLEANED.empty_table()
    train = np.flatnonzero(pc.equal(batch["split"], "train"))
    known = held_out.known(filter(len, ray.get(list(held_out_speeches))), data)
    kinds, origins = np.full((2, batch.num_rows), None, dtype=object)
    for row, leak in leakage.find_known(batch["speech"].take(train).to_pylist(), known, data.min_chars).items():
        kinds[train[row]], origins[train[row]] = leak
    leaks = {"leak": pa.array(kinds, pa.string()), "origin": pa.array(origins, pa.string())}
    return pa.table({**{name: batch[name] for name in _CLEANED.names}, **leaks})


@functools.lru_cache(maxsize=2)  # of the policy and of a simulated client
@gc_paused()
def shared_tokenizer(model: str, template_options: tuple[tuple[str, Any], ...]) -> Any:
    """A model's tokenizer with options of its chat template, loaded once per process."""
    from psyco_ray.models import loading

    return loading.load_tokenizer(loading.resolve(model), template_options=dict(template_options))


def check_prompt(job: Job, directory: Path | None = None) -> None:
    """Render the job's prompt with a speech of psyco_ray's own, before anything starts.

    Args:
        job: names the prompts and the model.
        directory: of the model's tokenizer; None: the model is fetched if it is not on this machine.

    Raises:
        InputError: the model's chat template refuses the prompt.
    """
    from psyco_ray.models import loading, templates

    options = job.template_options
    if directory is None:
        tokenizer = shared_tokenizer(job.model, (*options.items(),))
    else:
        tokenizer = loading.load_tokenizer(directory, template_options=options)
    context = Context.of("I cannot sleep.")
    if job.data.conversations == "contexts":
        context = context.answered("Since when?", "Since May.")
    templates.check(tokenizer, prompt_messages(load_prompt(job.prompts), context.text))


def _render(batch: pa.Table, job: Job) -> pa.Table:
    """Add each speech's prompt as token ids, and a problem where it leaves too little room for a response."""
    from psyco_ray.models import templates

    prompt, tokenizer = load_prompt(job.prompts), shared_tokenizer(job.model, (*job.template_options.items(),))
    room = fitting.room(job)
    rendered: list[list[int] | None] = []
    problems: list[str | None] = []
    for row in batch.to_pylist():
        ids, problem = None, row["problem"]
        if problem is None and row["left_out"] is None and (row["leak"] is None or job.data.leakage == "allow"):
            ids = templates.conversation_ids(tokenizer, prompt_messages(prompt, row["speech"]))
            if len(ids) > room:
                problem = (
                    f"{job.data.speeches}: row {row['row']} takes {len(ids)} tokens with its prompt, {room} fit; raise "
                    "rollouts.max_model_len or lower sampling.max_tokens"
                )
        rendered.append(ids)
        problems.append(problem)
    columns = {name: batch[name] for name in _RENDERED}
    columns["prompt_ids"] = pa.array(rendered, type=SPEECHES.field("prompt_ids").type)
    return pa.table({**columns, "problem": pa.array(problems, pa.string())})
