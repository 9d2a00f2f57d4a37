"""Which preference pairs a reward model is trained on, and their way to the learner as token ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import load_prompt
from psyco_ray.config.training import Data, Job, Part, Prompts
from psyco_ray.data import preferences, speeches, splits
from psyco_ray.models import loading
from psyco_ray.run.schemas import COMPARISONS
from psyco_ray.run.types import PreferencePair

_ENCODED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("gap", pa.float32()),
        ("prompt_ids", pa.list_(pa.int32())),  # null: a response is longer than the bound
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_ids", pa.list_(pa.int32())),
        ("cut", pa.int32()),
    ]
)
_BLOCK_ROWS = 256  # small, so that the first step does not wait for many


@dataclass(frozen=True)
class Mixture:
    """Pairs to train on, held-out pairs, and where they came from."""

    train: pa.Table  # COMPARISONS
    dev: pa.Table  # COMPARISONS
    parts: list[dict[str, Any]]  # of each file: pairs, train (drawn), of, dev, left_out, seed


def mix(parts: Sequence[Part], data: Data, seed: int, half: str | None = None, dev_pairs: int = 2000) -> Mixture:
    """Draw the pairs of each part of a mixture; the same seed draws the same.

    Args:
        parts: files of pairs; none: `data.pairs`.
        data: says how pairs are split.
        seed: of the draw.
        half: only the pairs of one half, by what was asked.
        dev_pairs: at most so many held-out pairs.

    Raises:
        InputError: a wrong file, a part with fewer pairs than wanted, or nothing to train on.
    """
    drawn: list[pa.Table] = []
    held_out: list[pa.Table] = []
    told: list[dict[str, Any]] = []
    for number, part in enumerate(parts or (Part(pairs=data.pairs),)):
        found = preferences.read(part.pairs, data.dev_share, part.by_hash)
        table = _by_text(found.table)
        train = table.filter(pc.equal(table["split"], "train"))
        if half is not None:
            halves = [splits.half(asked) for asked in train["asked"].to_pylist()]
            train = train.filter(pc.equal(pa.array(halves), half))
        of = train.num_rows
        wanted = part.count or round(part.fraction * of)
        if wanted > of:
            raise InputError(f"pairs file {part.pairs} has {of} pairs to train on, not {wanted}; lower its count")
        if wanted < of:
            picks = np.random.default_rng([seed, number]).choice(of, wanted, replace=False)
            train = train.take(pa.array(np.sort(picks)))
        dev = table.filter(pc.equal(table["split"], "dev"))
        drawn.append(train)
        held_out.append(dev)
        told.append(
            {
                "pairs": part.pairs,
                "train": train.num_rows,
                "of": of,
                "dev": dev.num_rows,
                "left_out": dict(found.left_out),
                "seed": [seed, number],
            }
        )
    whole = pa.concat_tables(drawn)
    if not whole.num_rows:
        files = ", ".join(part["pairs"] for part in told)
        raise InputError(f"pairs file {files} leaves no pair to train on; look at data.dev_share and the mixture")
    return Mixture(whole, _by_text(pa.concat_tables(held_out)).slice(0, dev_pairs), told)


class Encoder:
    """Pairs as token ids, made by Ray Data away from the learner and ahead of it, in the order that is asked for."""

    def __init__(self, job: Job, for_policy: bool = False, cut: int = 0, too_long: int = 0) -> None:
        """Say whose prompt, tokenizer and bounds.

        Args:
            job: the job.
            for_policy: split prompt and response as a policy meets them, rather than where the two responses part.
            cut: pairs that an earlier process counted as cut.
            too_long: pairs that it left out.
        """
        wanted = job.rollouts.max_model_len if for_policy else job.reward.max_tokens
        most = min(wanted, loading.max_positions(loading.resolve(job.model)) or wanted)
        self._encode = functools.partial(
            _encode_rows, model=job.model, prompts=job.prompts, max_tokens=most, for_policy=for_policy
        )
        self._cpus, self._margin = job.data.cpus, job.reward.margin
        self.cut = cut  # times so far that a pair's prompt lost its left
        self.too_long = too_long  # times so far that a pair was left out, for a response alone is too long

    def examples(self, table: pa.Table) -> list[PreferencePair]:
        """All pairs of a table that fit."""
        return [example for example in self._stream(table, range(table.num_rows)) if example is not None]

    def batches(self, table: pa.Table, plan: Sequence[Sequence[int]]) -> Iterator[list[PreferencePair]]:
        """The pairs of each batch, in the plan's order.

        Raises:
            InputError: nothing of a batch fits.
        """
        stream = self._stream(table, [row for batch in plan for row in batch])
        for batch in plan:
            found = [example for example in (next(stream) for _ in batch) if example is not None]
            if not found:
                raise InputError("every pair of a batch is longer than its bound; raise reward.max_tokens")
            yield found
        assert next(stream, None) is None, "the stream has no more than the plan"

    def _stream(self, table: pa.Table, order: Sequence[int]) -> Iterator[PreferencePair | None]:
        import ray

        if not len(order):
            return
        held = ray.put(table)  # in shared memory once, however many epochs and workers read it
        blocks = [pa.table({"row": pa.array(order[i : i + _BLOCK_ROWS])}) for i in range(0, len(order), _BLOCK_ROWS)]
        dataset = ray.data.from_arrow(blocks)
        dataset.context.execution_options.preserve_order = True
        encoded = dataset.map_batches(
            _taking(self._encode, held), batch_format="pyarrow", batch_size=None, num_cpus=self._cpus
        )
        for batch in encoded.iter_batches(batch_size=_BLOCK_ROWS, batch_format="pyarrow", prefetch_batches=4):
            yield from map(self._example, batch.to_pylist())

    def _example(self, row: dict[str, Any]) -> PreferencePair | None:
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
        )


def _taking(encode: Callable[[pa.Table], pa.Table], held: Any) -> Callable[[pa.Table], pa.Table]:
    """Encode the rows whose positions come, out of a table that lies in shared memory."""

    def work(positions: pa.Table) -> pa.Table:
        import ray

        return encode(ray.get(held).take(positions["row"]))

    return work


def _encode_rows(table: pa.Table, model: str, prompts: Prompts, max_tokens: int, for_policy: bool) -> pa.Table:
    from psyco_ray.models.encoding import ResponseTooLongError, encode, encode_turn

    prompt = load_prompt(prompts)
    tokenizer = speeches.shared_tokenizer(model)
    rows: list[dict[str, Any]] = []
    for pair in table.to_pylist():
        row = {"pair_id": pair["pair_id"], "gap": pair["gap"]}
        rows.append(row)
        asked = preferences.conversation(pair["form"], pair["asked"], prompt)
        try:
            found = (encode_turn if for_policy else encode)(
                tokenizer, asked, (pair["chosen"], pair["rejected"]), max_tokens
            )
        except ResponseTooLongError:
            continue
        chosen, rejected = found.response_ids
        row |= {"prompt_ids": found.prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected, "cut": found.cut}
    return pa.Table.from_pylist(rows, schema=_ENCODED)


def _by_text(table: pa.Table) -> pa.Table:
    """The rows in an order that depends on their texts alone."""
    keys = [splits.speech_id(asked) for asked in table["asked"].to_pylist()]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return table.take(pa.array(order, pa.int64())) if keys else pa.Table.from_pylist([], schema=COMPARISONS)
