"""The pairs of an iteration: formed from scored groups or taken from a file, stored, and read back."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.data.mixture import Encoder
from psyco_ray.models.layout import common_start
from psyco_ray.run import records
from psyco_ray.run.ledger import PLAIN, Ledger, stage
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import PAIRS, PAIRS_OF_FILES, rows_of, table_of
from psyco_ray.run.types import Group, PreferencePair, Rows
from psyco_ray.training import guards, pairs
from psyco_ray.training.batches import Batches, tokens_of_call

_log = logging.getLogger(__name__)

_NOT_TRAINED = {"chosen", "rejected"}  # columns whose texts are read as token ids
_SOME_PROMPTS = 16  # that tell what all have in common

Row = dict[str, Any]
Reference = Callable[[str, Iterable[Sequence[PreferencePair]]], dict[str, tuple[float, float]]]
"""Maps a stage's name and batches of pairs to log-probabilities under the reference model, by key; may drop
quarantined pairs."""


class PairStage:
    """Makes the PAIRS table of each iteration.

    Training always reads the pairs back from the table, so a fresh run and a resumed run train on the same bytes.

    Example:
        >>> pair_stage = PairStage(job, ledger, progress, pipeline.reference)
        >>> facts = pair_stage.make_sampled(1, rows, pipeline.samples(1, rows, version=0))
        >>> pairs = pair_stage.read(1)
    """

    def __init__(self, job: Job, ledger: Ledger, progress: Progress, reference: Reference) -> None:
        self._job, self._ledger, self._progress, self._reference = job, ledger, progress, reference

    def read(self, iteration: int) -> list[PreferencePair]:
        """The stored pairs of an iteration."""
        return [pairs.example_of(row) for row in rows_of(self._stored(iteration))]

    def first(self, iteration: int) -> PreferencePair:
        """The first stored pair of an iteration."""
        [row] = rows_of(self._stored(iteration).slice(0, 1))
        return pairs.example_of(row)

    def make_sampled(self, iteration: int, rows: Rows, stream: Iterable[Group]) -> Row:
        """Forms a pair of the best and the worst response of each group, adds the reference, and stores the pairs.

        Groups stream through: the reference of a pair is computed while other groups are still sampled, and a group's
        other responses are forgotten. Only with `guards.length_debias` or `guards.min_margin`, whose measures need all
        groups, pairs are formed afterwards, and the groups kept as bytes, a fifth of their size.

        Args:
            iteration: of the run.
            rows: of the SPEECHES table, in the order of the pairs.
            stream: scored groups, in any order.

        Returns:
            Facts for the stage's record.

        Raises:
            InputError: there is no group, no group has a pair, or more than half of the responses are unfinished.
        """
        job, unfinished = self._job, self._job.sampling.unfinished
        outcomes: list[guards.Outcome] = []
        formed_rows: dict[str, Row] = {}  # by speech, without the reference
        slope = 0.0
        if not len(rows):
            raise self._no_group(iteration, 0)
        batches, keys = self._batches((row["speech_id"], row["prompt_ids"]) for row in rows)

        def arriving() -> Iterator[Group]:
            for group in self._progress.track(stream, f"iteration {iteration}: sample and score", len(rows)):
                outcomes.append(guards.Outcome.of(group))
                yield group

        def formed() -> Iterator[tuple[PreferencePair, ...]]:
            nonlocal slope
            arrived, min_margin = arriving(), 0.0
            if job.guards.length_debias or job.guards.min_margin:
                packed = [pickle.dumps(group) for group in arrived]
                arrived = map(pickle.loads, packed)
                effect = guards.length_effect(outcomes, unfinished)
                slope = effect.slope if job.guards.length_debias else 0.0
                min_margin = job.guards.min_margin * effect.deviation
            for group in arrived:
                pair = pairs.pair_of(group, unfinished, slope, min_margin, job.dpo.reasoning)
                if pair is not None:
                    formed_rows[pair.key] = pairs.row_of(pair, group)
                of_pair = (pair.tokens, pair.prompt_ids) if pair else ()
                yield from batches.add(group.prompt.speech_id, pair, *of_pair)
            yield from batches.rest()

        reference = self._reference(stage(iteration, "pairs"), formed())
        if not outcomes:
            raise self._no_group(iteration, len(rows))
        facts = _facts_of(outcomes, unfinished)
        guards.require_finished(facts["finished_share"], f"iteration {iteration}'s sampled responses", job.sampling)
        if not reference:
            raise self._no_pair(iteration, facts["finished_share"], slope)
        if (silent := facts["unfinished_speeches"]) and unfinished != "allow":
            _log.warning(
                f"iteration {iteration}: {silent} of {len(outcomes)} speeches make no pair, "
                "all answers are cut or empty"
            )
        stored = (key for key in keys if key in reference)
        self._write(iteration, [pairs.with_reference(formed_rows[key], reference[key]) for key in stored])
        quarantined = self._ledger.quarantined(stage(iteration, "samples"))
        return {"rows": len(reference), "speeches": len(rows), **facts, "quarantined": quarantined}

    def make_offline(self, iteration: int, rows: np.ndarray, table: pa.Table) -> Row:
        """Encodes rows of a file of preference pairs, adds the reference, and stores the pairs.

        Args:
            iteration: of the run.
            rows: numbers of the rows.
            table: of the COMPARISONS schema.

        Returns:
            Facts for the stage's record.

        Raises:
            InputError: no pair fits the length limit.
        """
        encoder = Encoder(self._job, for_policy=True)
        texts = table.take(pa.array(rows))
        # row numbers make the keys unique: several files of a mixture, or rows of one file, may share an id
        keys = [f"{row}:{pair_id}" for row, pair_id in zip(rows, texts["pair_id"].to_pylist(), strict=True)]
        column = texts.schema.get_field_index("pair_id")
        examples = encoder.examples(texts.set_column(column, "pair_id", pa.array(keys, pa.string())))
        if not examples:
            raise InputError(
                f"iteration {iteration} has no pair to train on: none of {len(rows)} fits rollouts.max_model_len"
            )
        batches, _ = self._batches((example.key, example.prompt_ids) for example in examples)
        tracked = self._progress.track(examples, f"iteration {iteration}: reference", len(examples))
        formed = (
            batch
            for example in tracked
            for batch in batches.add(example.key, example, example.tokens, example.prompt_ids)
        )
        reference = self._reference(stage(iteration, "pairs"), formed)
        text_by_key = dict(zip(keys, texts.to_pylist(), strict=True))
        kept = [example for example in examples if example.key in reference]
        rows_of_kept = (pairs.offline_row(example, text_by_key[example.key]) for example in kept)
        stored = [example.key for example in kept]
        self._write(
            iteration,
            [pairs.with_reference(row, reference[key]) for key, row in zip(stored, rows_of_kept, strict=True)],
        )
        lengths = [tokens for example in examples for tokens in example.trained_tokens]
        ends = [text_by_key[key][f"{side}_finished"] is not False for key in stored for side in ("chosen", "rejected")]
        return {
            "rows": len(stored),
            "speeches": len(rows),
            "cut": encoder.cut,
            "too_long": encoder.too_long,
            "reward": None,
            "tokens": 0,
            "mean_tokens": sum(lengths) / len(lengths),
            "finished_share": sum(ends) / len(ends),
        }

    def _stored(self, iteration: int) -> pa.Table:
        path = self._ledger.path(stage(iteration, "pairs.parquet"))
        with records.ParquetReading(path):
            names = pq.read_schema(path).names
        return records.read_table(path, columns=[name for name in names if name not in _NOT_TRAINED])

    def _batches(self, prompts: Iterable[tuple[str, Sequence[int]]]) -> tuple[Batches[PreferencePair], list[str]]:
        """Batches of pairs with these keys and prompts, each of one work item of an engine; and the keys."""
        keys: list[str] = []
        some: list[Sequence[int]] = []
        for key, prompt_ids in prompts:
            keys.append(key)
            if len(some) < _SOME_PROMPTS:
                some.append(prompt_ids)
        # on a CPU scorers compute once what all prompts of a batch begin with
        batches = Batches[PreferencePair](
            tokens_of_call(self._job.scorers), 0 if self._job.scorers.gpus else common_start(some)
        )
        for start in range(0, len(keys), size := self._job.rollouts.speeches_per_item):
            batches.open(keys[start : start + size])
        return batches, keys

    @staticmethod
    def _no_group(iteration: int, speeches: int) -> InputError:
        answered = f"all of its {speeches} speeches were" if speeches else "each of its dialogues was"
        return InputError(
            f"iteration {iteration} has no responses to compare: {answered} set aside, for the reasons in the warnings "
            "above"
        )

    def _no_pair(self, iteration: int, finished_share: float, slope: float) -> InputError:
        return InputError(
            f"iteration {iteration} has no pair to train on: {self._job.scorers.reward_model} ranks no "
            f"{'finished ' if finished_share < 1 else ''}response above another"
            + (" beyond what length explains (guards.length_debias)" if slope else "")
        )

    def _write(self, iteration: int, rows: list[Row]) -> None:
        needed = {
            "weight": any(row.get("weight", 1.0) != 1 for row in rows),
            "conversation": any(row.get("conversation") for row in rows),
        }
        schema = pa.schema([*PAIRS, *((name, PAIRS_OF_FILES[name]) for name, is_needed in needed.items() if is_needed)])
        self._ledger.write_table(stage(iteration, "pairs.parquet"), table_of(rows, schema), **PLAIN)


def _facts_of(outcomes: Iterable[guards.Outcome], unfinished: str) -> Row:
    """Rewards, lengths and finished share of sampled groups, and the effect of length on the reward."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.speech_id)  # sums of floats depend on the order
    means = [sum(outcome.rewards) / len(outcome.rewards) for outcome in outcomes]
    lengths = [tokens for outcome in outcomes for tokens in outcome.tokens]
    finished = [outcome.finished for outcome in outcomes]
    effect = guards.length_effect(outcomes, unfinished)
    return {
        "reward": sum(means) / len(means),
        "tokens": sum(lengths),
        "mean_tokens": sum(lengths) / len(lengths),
        "finished_share": sum(map(sum, finished)) / len(lengths),
        "unfinished_speeches": sum(not any(ends) for ends in finished),
        "length_slope": effect.slope,
        "length_share": effect.share,
        "reward_deviation": effect.deviation,
    }
