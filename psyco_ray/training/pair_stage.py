"""The pairs of an iteration: formed from scored groups or taken from a file, stored, and read back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.data.mixture import Encoder
from psyco_ray.run import records
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import PAIRS
from psyco_ray.run.types import Group, PreferencePair, Rows
from psyco_ray.training import guards, pairs

_log = logging.getLogger(__name__)

Row = dict[str, Any]
AddReference = Callable[[str, Iterable[PreferencePair]], dict[str, PreferencePair]]
"""Maps a stage's name and pairs to the pairs with reference log-probabilities, by key; may drop quarantined pairs."""


class PairStage:
    """Makes the PAIRS table of each iteration.

    Training always reads the pairs back from the table, so a fresh run and a resumed run train on the same bytes.

    Example:
        >>> pair_stage = PairStage(job, ledger, progress, pipeline.add_reference)
        >>> facts = pair_stage.make_sampled(1, rows, pipeline.samples(1, rows, version=0))
        >>> pairs = pair_stage.read(1)
    """

    def __init__(self, job: Job, ledger: Ledger, progress: Progress, add_reference: AddReference) -> None:
        self._job, self._ledger, self._progress, self._add_reference = job, ledger, progress, add_reference

    def read(self, iteration: int) -> list[PreferencePair]:
        """The stored pairs of an iteration."""
        path = self._ledger.path(stage(iteration, "pairs.parquet"))
        return [pairs.example_of(row) for row in records.read_table(path).to_pylist()]

    def make_sampled(self, iteration: int, rows: Rows, stream: Iterable[Group]) -> Row:
        """Forms a pair of the best and the worst response of each group, adds the reference, and stores the pairs.

        Groups stream through: the reference of a pair is computed while other groups are still sampled. Only with
        `guards.length_debias` or `guards.min_margin`, whose measures need all groups, it is computed afterwards.

        Args:
            iteration: of the run.
            rows: of the SPEECHES table, in the order of the pairs.
            stream: scored groups, in any order.

        Returns:
            Facts for the stage's record.

        Raises:
            InputError: no group has a pair, or more than half of the responses are unfinished.
        """
        job, unfinished = self._job, self._job.sampling.unfinished
        groups: dict[str, Group] = {}
        slope = 0.0

        def arriving() -> Iterator[Group]:
            for group in self._progress.track(stream, f"iteration {iteration}: sample and score", len(rows)):
                groups[group.prompt.speech_id] = group
                yield group

        def formed() -> Iterator[PreferencePair]:
            nonlocal slope
            arrived, min_margin = arriving(), 0.0
            if job.guards.length_debias or job.guards.min_margin:
                arrived = iter(list(arrived))
                effect = guards.length_effect(groups.values(), unfinished)
                slope = effect.slope if job.guards.length_debias else 0.0
                min_margin = job.guards.min_margin * effect.deviation
            for group in arrived:
                if (pair := pairs.pair_of(group, unfinished, slope, min_margin, job.dpo.reasoning)) is not None:
                    yield pair

        referenced = self._add_reference(stage(iteration, "pairs"), formed())
        facts = _facts_of(groups.values(), unfinished)
        guards.require_finished(facts["finished_share"], f"iteration {iteration}'s sampled responses", job.sampling)
        if not referenced:
            raise InputError(
                f"iteration {iteration} has no pair to train on: {job.scorers.reward_model} ranks no "
                f"{'finished ' if facts['finished_share'] < 1 else ''}response above another"
                + (" beyond what length explains (guards.length_debias)" if slope else "")
            )
        if (silent := facts["unfinished_speeches"]) and unfinished != "allow":
            _log.warning(
                f"iteration {iteration}: {silent} of {len(groups)} speeches make no pair, all answers are cut or empty"
            )
        speech_ids = [row["speech_id"] for row in rows]
        self._write(iteration, [pairs.row_of(referenced[key], groups[key]) for key in speech_ids if key in referenced])
        quarantined = self._ledger.quarantined(stage(iteration, "samples"))
        return {"rows": len(referenced), "speeches": len(rows), **facts, "quarantined": quarantined}

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
        tracked = self._progress.track(examples, f"iteration {iteration}: reference", len(examples))
        referenced = self._add_reference(stage(iteration, "pairs"), tracked)
        text_by_key = dict(zip(keys, texts.to_pylist(), strict=True))
        stored = [example.key for example in examples if example.key in referenced]
        self._write(iteration, [pairs.offline_row(referenced[key], text_by_key[key]) for key in stored])
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

    def _write(self, iteration: int, rows: list[Row]) -> None:
        self._ledger.write_table(stage(iteration, "pairs.parquet"), pa.Table.from_pylist(rows, schema=PAIRS))


def _facts_of(groups: Collection[Group], unfinished: str) -> Row:
    """Rewards, lengths and finished share of sampled groups, and the effect of length on the reward."""
    groups = sorted(groups, key=lambda group: group.prompt.speech_id)  # sums of floats depend on the order
    means = [sum(group.scores["reward"]) / len(group.responses) for group in groups]
    lengths = [response.tokens for group in groups for response in group.responses]
    finished = [[response.finished for response in group.responses] for group in groups]
    effect = guards.length_effect(groups, unfinished)
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
