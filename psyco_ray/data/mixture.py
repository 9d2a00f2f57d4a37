"""The pairs that a reward model is trained on, and their encoding as token ids on Ray Data."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import load_prompt, without_examples
from psyco_ray.config.training import Data, Job, Part
from psyco_ray.data import held_out, leakage, preferences, speeches, splits
from psyco_ray.data.principle_pairs import by_principle
from psyco_ray.models import loading
from psyco_ray.run import reasoning
from psyco_ray.run.changes import Changes
from psyco_ray.run.schemas import COMPARISONS
from psyco_ray.run.types import PreferencePair

_ENCODED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("gap", pa.float32()),
        ("weight", pa.float32()),
        ("prompt_ids", pa.list_(pa.int32())),  # null: a response exceeds the limit
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_ids", pa.list_(pa.int32())),
        ("context", pa.list_(pa.int32())),  # of both, the first ones that are not trained
        ("cut", pa.int32()),
        ("problem", pa.string()),  # a message for the user
    ]
)
LEAKED = "its question is held out"
"""Reason for leaving out a pair with `data.leakage: drop`."""
UNFINISHED = "its chosen response is unfinished"
"""Reason for leaving out a pair unless `sampling.unfinished` is `allow`."""
_BLOCK_ROWS = 256  # small: the first step does not wait for a large block

_log = logging.getLogger(__name__)


class PartOrigin(TypedDict):
    """The pairs drawn from one file."""

    pairs: str  # the file
    digest: str  # of its bytes
    train: int  # drawn
    of: int  # available
    dev: int
    left_out: dict[str, int]  # unusable rows by reason
    leaks: leakage.Leaks
    seed: list[int]
    weight: NotRequired[float]  # mean of the drawn pairs, of a file that gives weights
    principle: NotRequired[str]  # whose ratings order the responses


@dataclass(frozen=True)
class Mixture:
    """Training pairs, held-out pairs, and their origin."""

    train: pa.Table  # COMPARISONS
    dev: pa.Table  # COMPARISONS
    parts: list[PartOrigin]


def check(parts: Sequence[Part], data: Data, read: Sequence[PartOrigin], changes: Changes) -> None:
    """Check the files of a mixture before Ray starts.

    Args:
        parts: as in `mix`.
        data: names the file, if there are no parts.
        read: the parts as this run read them earlier.
        changes: refuses or accepts that a file has changed since.

    Raises:
        InputError: a file cannot be read or has no known format, or it has changed since it was read.
    """
    digests = {origin["pairs"]: origin.get("digest") for origin in read}
    for part in parts or (Part(pairs=data.pairs),):
        preferences.check(part.pairs, changes, digests.get(part.pairs))


def mix(
    parts: Sequence[Part],
    data: Data,
    seed: int,
    half: str | None = None,
    dev_pairs: int = 2000,
    unfinished: str = "exclude",
) -> Mixture:
    """Draw the pairs of each part of a mixture, deterministically by seed.

    Pairs whose question is held out follow `data.leakage`: held out are the dev and test pairs of all parts, and the
    dev and test speeches of `data.speeches`.

    Args:
        parts: files of pairs; empty: `data.pairs`.
        data: how pairs are split, the speeches, and the rule for leaks.
        seed: of the draw.
        half: keep only the pairs of one half, `a` or `b`, by a hash of the prompt.
        dev_pairs: maximum number of held-out pairs.
        unfinished: `sampling.unfinished`; unless `allow`, pairs with an unfinished chosen response are left out.

    Raises:
        InputError: a file is invalid, a part has fewer pairs than `count`, no training pair is left, or held-out
            questions are trained on.
    """
    parts = parts or (Part(pairs=data.pairs),)
    comparisons = [preferences.read(part.pairs, data.dev_share, part.by_hash) for part in parts]
    held_out = _held_out(parts, comparisons, data)  # also the questions of pairs that are left out below
    comparisons = [_by_principle(read, part) for read, part in zip(comparisons, parts, strict=True)]
    if unfinished != "allow":
        comparisons = [_with_finished_chosen(read, part) for read, part in zip(comparisons, parts, strict=True)]
    tables = [_by_text(read.table) for read in comparisons]
    trainable = [_of_half(_of_split(table, "train"), half) for table in tables]
    training = [
        leakage.TrainingSet(f"pairs file {part.pairs}", "pairs", leakage.questions(table))
        for part, table in zip(parts, trainable, strict=True)
    ]
    settled = leakage.settle(training, held_out, data)
    drawn: list[pa.Table] = []
    origins: list[PartOrigin] = []
    for number, (part, table, (kept, leaks)) in enumerate(zip(parts, trainable, settled, strict=True)):
        train = _draw(table.take(pa.array(kept, pa.int64())), part, [seed, number])
        drawn.append(train)
        dropped = {LEAKED: table.num_rows - len(kept)} if table.num_rows > len(kept) else {}
        origins.append(
            {
                "pairs": part.pairs,
                "digest": comparisons[number].digest,
                "train": train.num_rows,
                "of": len(kept),
                "dev": _of_split(tables[number], "dev").num_rows,
                "left_out": {**comparisons[number].left_out, **dropped},
                "leaks": leaks,
                "seed": [seed, number],
            }
        )
        if part.principle is not None:
            origins[-1]["principle"] = part.principle
        if train["weight"].null_count < train.num_rows:
            origins[-1]["weight"] = pc.mean(pc.fill_null(train["weight"], 1.0)).as_py()
    dev = _by_text(pa.concat_tables([_of_split(table, "dev") for table in tables]))
    return Mixture(_joined(drawn, parts), dev.slice(0, dev_pairs), origins)


def _joined(drawn: Sequence[pa.Table], parts: Sequence[Part]) -> pa.Table:
    """The pairs that are drawn from all parts."""
    joined = pa.concat_tables(drawn)
    if not joined.num_rows:
        files = ", ".join(part.pairs for part in parts)
        raise InputError(f"pairs file {files} leaves no pair to train on; look at data.dev_share and the mixture")
    return joined


def _held_out(parts: Sequence[Part], comparisons: Sequence[preferences.Comparisons], data: Data) -> leakage.HeldOut:
    """The questions that must not be trained on, by where they come from."""
    questions = dict(held_out.read(data))
    for part, read in zip(parts, comparisons, strict=True):
        for split in ("test", "dev"):
            questions[f"the {split} split of pairs file {part.pairs}"] = leakage.questions(_of_split(read.table, split))
    return questions


def _by_principle(read: preferences.Comparisons, part: Part) -> preferences.Comparisons:
    """The pairs of a file as its part's principle orders them, if it names one."""
    if part.principle is None:
        return read
    table, left_out = by_principle(read.table, part.principle, part.pairs)
    _log.info(f"{part.pairs}: {table.num_rows} pairs differ by {part.principle}, {sum(left_out.values())} are left out")
    return replace(read, table=table, left_out={**read.left_out, **left_out})


def _with_finished_chosen(read: preferences.Comparisons, part: Part) -> preferences.Comparisons:
    """The pairs of a file but those whose chosen response is unfinished."""
    cut = pc.fill_null(pc.invert(read.table["chosen_finished"]), False)
    count = pc.sum(cut).as_py()
    if not count:
        return read
    _log.info(f"{part.pairs}: {count} pairs left out whose chosen response is unfinished (sampling.unfinished)")
    return replace(read, table=read.table.filter(pc.invert(cut)), left_out={**read.left_out, UNFINISHED: count})


def _of_split(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def _of_half(table: pa.Table, half: str | None) -> pa.Table:
    """The pairs of one half, by a hash of the prompt or its dialogue; None: all."""
    if half is None:
        return table
    rows = zip(*(table[name].to_pylist() for name in ("form", "asked", "dialogue")), strict=True)
    halves = [splits.half(preferences.parted_by(form, asked), dialogue) for form, asked, dialogue in rows]
    return table.filter(pa.array([of == half for of in halves], pa.bool_()))


def _draw(train: pa.Table, part: Part, seed: list[int]) -> pa.Table:
    """The pairs that a part of a mixture asks for, in the order of the table."""
    available = train.num_rows
    count = part.count or round(part.fraction * available)
    if count > available:
        raise InputError(f"pairs file {part.pairs} has {available} pairs to train on, not {count}; lower its count")
    if count == available:
        return train
    picks = np.random.default_rng(seed).choice(available, count, replace=False)
    return train.take(pa.array(np.sort(picks)))


class Encoder:
    """Encodes pairs as token ids on Ray Data, ahead of the learner and in the requested order.

    Example:
        >>> encoder = Encoder(job)
        >>> for batch in encoder.batches(mixture.train, plan=[[3, 1], [0, 2]]):
        ...     learner.train(batch)
    """

    def __init__(self, job: Job, for_policy: bool = False, cut: int = 0, too_long: int = 0) -> None:
        """Choose prompt, tokenizer and length limit.

        Args:
            job: the job.
            for_policy: split prompt and response at the assistant's turn, as a policy sees them, instead of at the
                first token where the two responses differ.
            cut: initial value of the counter `cut`, from an earlier process.
            too_long: initial value of the counter `too_long`.
        """
        speeches.check_prompt(job)
        limit = job.rollouts.max_model_len if for_policy else job.reward.max_tokens
        limit = min(limit, loading.max_positions(loading.resolve(job.model)) or limit)
        self._encode = functools.partial(_encode_rows, job=job, max_tokens=limit, for_policy=for_policy)
        self._cpus, self._margin = job.data.cpus, job.reward.margin
        self.cut = cut  # pairs with a prompt truncated on the left
        self.too_long = too_long  # pairs left out because a response alone exceeds the limit

    def examples(self, table: pa.Table) -> list[PreferencePair]:
        """All pairs of a table that fit the limit."""
        return [example for example in self._stream(table, range(table.num_rows)) if example is not None]

    def batches(self, table: pa.Table, plan: Sequence[Sequence[int]]) -> Iterator[list[PreferencePair]]:
        """The pairs of each batch, in the plan's order.

        Raises:
            InputError: no pair of a batch fits.
        """
        stream = self._stream(table, [row for batch in plan for row in batch])
        for batch in plan:
            examples = [example for example in (next(stream) for _ in batch) if example is not None]
            if not examples:
                raise InputError("every pair of a batch exceeds the limit; raise reward.max_tokens")
            yield examples
        assert next(stream, None) is None, "the stream ends with the plan"

    def _stream(self, table: pa.Table, order: Sequence[int]) -> Iterator[PreferencePair | None]:
        import ray

        if not len(order):
            return
        shared = ray.put(table)  # in shared memory once, for all epochs and workers
        blocks = [pa.table({"row": pa.array(order[i : i + _BLOCK_ROWS])}) for i in range(0, len(order), _BLOCK_ROWS)]
        dataset = ray.data.from_arrow(blocks)
        dataset.context.execution_options.preserve_order = True
        encoded = dataset.map_batches(
            _encode_positions(self._encode, shared), batch_format="pyarrow", batch_size=None, num_cpus=self._cpus
        )
        for batch in encoded.iter_batches(batch_size=_BLOCK_ROWS, batch_format="pyarrow", prefetch_batches=4):
            yield from map(self._example, batch.to_pylist())

    def _example(self, row: dict[str, Any]) -> PreferencePair | None:
        if row["problem"] is not None:
            raise InputError(row["problem"])
        if row["prompt_ids"] is None:
            self.too_long += 1
            return None
        self.cut += row["cut"] > 0
        return PreferencePair(
            key=row["pair_id"],
            prompt_ids=tuple(row["prompt_ids"]),
            chosen_ids=tuple(row["chosen_ids"]),
            rejected_ids=tuple(row["rejected_ids"]),
            margin=self._margin * (row["gap"] or 0.0),
            context=tuple(row["context"]),
            weight=1.0 if row["weight"] is None else row["weight"],
        )


def _encode_positions(encode: Callable[[pa.Table], pa.Table], shared: Any) -> Callable[[pa.Table], pa.Table]:
    """A function that encodes the rows at some positions of a table in shared memory."""

    def encode_batch(positions: pa.Table) -> pa.Table:
        import ray

        return encode(ray.get(shared).take(positions["row"]))

    return encode_batch


def _encode_rows(table: pa.Table, job: Job, max_tokens: int, for_policy: bool) -> pa.Table:
    from psyco_ray.models.encoding import ResponseTooLongError, encode, encode_turn

    prompt = load_prompt(job.prompts)
    if not for_policy:
        prompt = without_examples(prompt)
    tokenizer = speeches.shared_tokenizer(job.model, (*job.template_options.items(),))
    rows: list[dict[str, Any]] = []
    for pair in table.to_pylist():
        row = {name: pair[name] for name in ("pair_id", "gap", "weight")} | {"problem": None}
        rows.append(row)
        conversation = preferences.conversation(pair["form"], pair["asked"], prompt)
        try:
            encoded = (encode_turn if for_policy else encode)(
                tokenizer,
                conversation,
                # a reward model reads what a client reads
                [text if for_policy else reasoning.split(text)[1] for text in (pair["chosen"], pair["rejected"])],
                max_tokens,
                finished=[pair[f"{side}_finished"] is not False for side in ("chosen", "rejected")],
            )
        except ResponseTooLongError:
            continue
        except InputError as error:  # Ray would wrap it
            row["problem"] = f"pair {pair['pair_id']}: {error}"
            continue
        chosen, rejected = encoded.response_ids
        context = encoded.reasoning_tokens if for_policy and job.dpo.reasoning == "answer" else (0, 0)
        row |= {"prompt_ids": encoded.prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}
        row |= {"context": context, "cut": encoded.cut}
    return pa.Table.from_pylist(rows, schema=_ENCODED)


def _by_text(table: pa.Table) -> pa.Table:
    """The rows in an order that depends only on their texts."""
    keys = [splits.speech_id(asked) for asked in table["asked"].to_pylist()]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return table.take(pa.array(order, pa.int64())) if keys else pa.Table.from_pylist([], schema=COMPARISONS)
