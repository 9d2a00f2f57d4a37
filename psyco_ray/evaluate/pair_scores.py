"""Reward models' scores of pairs, in one file for each batch.

A file is named by a hash of the model's files and of the texts, so that an interrupted run, or one with more models or
tests, scores only what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_reward import EvaluateRewardJob, ModelUnderTest
from psyco_ray.config.prompts import load_prompt, without_examples
from psyco_ray.data import preferences
from psyco_ray.evaluate.pair_sets import TestPairs
from psyco_ray.models import loading
from psyco_ray.pool import fit, placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run import records, storage
from psyco_ray.run.directory import write_table
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import ScoreRequest, ScoreResult

PAIRS_PER_BATCH = 32

SCORED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("chosen", pa.float64()),  # raw scores; null where a response alone fills the context
        ("rejected", pa.float64()),
        ("cut", pa.int32()),  # prompt tokens cut off to fit the context
    ]
)
"""A reward model's scores of pairs."""


@dataclass(frozen=True)
class ScoreBatch:
    """Pairs that a scorer takes at a time, and the file of their scores."""

    path: Path
    rows: tuple[int, ...]  # of the pairs' table
    requests: tuple[ScoreRequest, ...]


@dataclass(frozen=True)
class PairScores:
    """A reward model's scores of the pairs that fit its context."""

    kept: list[int]  # rows of the pairs' table
    chosen: list[float]
    rejected: list[float]
    facts: dict[str, int]  # `cut`: pairs whose prompt was cut; `too_long`: pairs without scores


def fingerprint(model: str, logit_token: int | None = None, template_options: Mapping[str, Any] | None = None) -> str:
    """A hash that changes when a file of a reward model changes.

    Args:
        model: its directory or hub id.
        logit_token: as in `ModelUnderTest`.
        template_options: as in `ModelUnderTest`.

    Raises:
        InputError: the model does not exist or is no reward model.
    """
    from transformers import AutoConfig

    path = loading.resolve(model)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"reward model {model}: its config.json is invalid: {reason}") from None
    architectures = config.architectures or ["no architecture"]
    kind = "SequenceClassification" if logit_token is None else "CausalLM"
    if not any(kind in name for name in architectures):
        raise InputError(
            f"{model} is no reward model: its config.json names {architectures[0]}; give a sequence classifier with "
            "one label, set logit_token for a language model whose reward is a token's logit, or serve the model and "
            "name its endpoint, to use it as a ranker"
            if logit_token is None
            else f"{model} is no language model: its config.json names {architectures[0]}; leave logit_token out"
        )
    if logit_token is None and config.num_labels != 1:
        raise InputError(f"reward model {model} has {config.num_labels} labels; one is needed")
    files = [
        [name, state] if isinstance(state, str) else [name, *state] for name, state in loading.model_fingerprint(path)
    ]
    settings: list[Any] = [] if logit_token is None else [logit_token]
    if template_options:
        settings.append(dict(template_options))
    return key_of(files, *settings)


def batches(
    job: EvaluateRewardJob, model: str, model_hash: str, test: str, pairs: TestPairs, root: Path
) -> list[ScoreBatch]:
    """Batches of pairs of similar length, the longest first, so that the last batches are short."""
    prompt = without_examples(load_prompt(job.prompts))
    rows = pairs.table.to_pylist()
    order = sorted(
        range(len(rows)), key=lambda row: -sum(len(rows[row][key]) for key in ("asked", "chosen", "rejected"))
    )
    made = []
    for start in range(0, len(order), PAIRS_PER_BATCH):
        taken = tuple(order[start : start + PAIRS_PER_BATCH])
        texts = [
            (
                preferences.conversation(pair["form"], pair["asked"], prompt),
                (pair["chosen"], pair["rejected"]),
                tuple(pair[f"{side}_finished"] is not False for side in ("chosen", "rejected")),
            )
            for pair in (rows[row] for row in taken)
        ]
        key = key_of(model_hash, job.scorers.dtype, job.max_tokens, test, texts)
        requests = tuple(
            ScoreRequest(f"{key}:{rows[row]['pair_id']}", tuple(turns), responses, finished)
            for row, (turns, responses, finished) in zip(taken, texts, strict=True)
        )
        made.append(ScoreBatch(root / "scores" / model / test / f"{key}.parquet", taken, requests))
    return made


def score(job: EvaluateRewardJob, model: ModelUnderTest, batches: Sequence[ScoreBatch], progress: Progress) -> None:
    """Score the batches without a file; each file is written when its scores arrive."""
    assert model.model is not None, "a ranker gives no scores"
    missing = {batch.path.stem: batch for batch in batches if not batch.path.exists()}
    if not missing:
        return
    fit.check("evaluation", [fit.Role.from_config("scorer", job.scorers)], fit.cluster_nodes())
    # actors may have another working directory
    place = storage.absolute(model.model) if storage.local_path(model.model).is_dir() else model.model
    rewards, scorer = {model.name: place}, ray.remote(ScorerActor)
    pool = ActorPool[ScorerActor](
        "scorer",
        lambda index: scorer.options(**placement.pool_options(job.scorers)).remote(
            f"scorer-{index}",
            rewards,
            None,
            job.scorers,
            max_tokens=job.max_tokens,
            logit_token=model.logit_token,
            template_options=model.template_options,
        ),
        min(job.scorers.actors, len(missing)),
        job.deadlines,
    )
    try:
        pool.wait_ready()
        work = ((model.name, batch.requests) for batch in missing.values())
        stream = pool.stream(ScorerActor.score_many, work, name=f"scores of {model.name}")
        for scored, _ in progress.track(stream, f"{model.name}, {PAIRS_PER_BATCH} pairs at a time", len(missing)):
            batch = missing[scored[0].key.partition(":")[0]]
            storage.private_dir(batch.path.parent)
            write_table(batch.path, _table(batch, scored))
    finally:
        pool.close()


def _table(batch: ScoreBatch, scored: Sequence[ScoreResult]) -> pa.Table:
    assert [result.key for result in scored] == [request.key for request in batch.requests], "scores are out of order"
    rows = []
    for result in scored:
        chosen, rejected = result.values or (None, None)
        pair_id = result.key.partition(":")[2]
        rows.append({"pair_id": pair_id, "chosen": chosen, "rejected": rejected, "cut": result.cut})
    return pa.Table.from_pylist(rows, schema=SCORED)


def read(model: ModelUnderTest, test: str, batches: Sequence[ScoreBatch]) -> PairScores:
    """The scores of all pairs of a test.

    Raises:
        InputError: no pair has scores.
    """
    by_row: dict[int, dict[str, Any]] = {}
    for batch in batches:
        by_row.update(zip(batch.rows, records.read_table(batch.path).to_pylist(), strict=True))
    kept = [row for row in sorted(by_row) if by_row[row]["chosen"] is not None]
    if not kept:
        raise InputError(
            f"{model.name} has no score on {test}: in every pair a response alone fills its context; raise max_tokens "
            "or leave one of the two out"
        )
    return PairScores(
        kept=kept,
        chosen=[by_row[row]["chosen"] for row in kept],
        rejected=[by_row[row]["rejected"] for row in kept],
        facts={"cut": sum(by_row[row]["cut"] > 0 for row in kept), "too_long": len(by_row) - len(kept)},
    )
