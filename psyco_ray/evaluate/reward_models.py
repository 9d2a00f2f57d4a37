"""Reward models and rankers on held-out pairs and RewardBench (paper §4.1).

Each pair is scored once; metrics are recomputed on every run. A part of the scores is named by a hash of the
model's files and of the texts in it, so an interrupted run, or one with more models or tests, scores only what is
missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_reward import REWARDBENCH, EvaluateRewardJob, ModelUnderTest, Test
from psyco_ray.config.prompts import load_prompt
from psyco_ray.data import preferences, trained_pairs
from psyco_ray.evaluate import metrics, rewardbench
from psyco_ray.evaluate.pair_sets import TestPairs, load, load_bench
from psyco_ray.evaluate.pairwise_ranker import PairwiseRanker
from psyco_ray.models import loading
from psyco_ray.pool import fit, placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run.directory import RunDirectory, versions, write_table
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


def evaluate(job: EvaluateRewardJob, directory: RunDirectory, progress: Progress) -> dict[str, Any]:
    """Score all pairs without scores, compare the models, and write ``evaluation.json``.

    Args:
        job: the models and the pairs.
        directory: holds the scores and receives the results.
        progress: receives finished work.

    Returns:
        The contents of ``evaluation.json``: `tests`, and for each of `models` its metrics by test and on RewardBench.

    Raises:
        InputError: a file, a model or the directory is invalid; reported before the first score where possible.
        BudgetExceededError: the rankers' calls reached `max_cost`; everything paid for is kept.
        UnavailableError: a ranker's server failed repeatedly.
    """
    directory.claim(job)
    pairs = {test.name: load(test, job.seed) for test in job.tests}
    if job.rewardbench is not None:
        pairs[REWARDBENCH] = load_bench(job.rewardbench, job.seed)
    rankers = {
        model.name: {
            name: PairwiseRanker(job, model, name, test_pairs.table.to_pylist(), directory.root)
            for name, test_pairs in pairs.items()
        }
        for model in job.models
        if model.endpoint is not None
    }
    if job.calibrate is not None:
        pairs[job.calibrate.name] = load(job.calibrate, job.seed)
    measured = _evaluate_reward_models(job, pairs, directory.root, progress)
    measured |= _evaluate_rankers(job, pairs, rankers, progress)
    results = {
        "name": Path(job.run_dir).name,
        "seed": job.seed,
        "versions": versions(),
        "tests": [_describe(test, pairs[test.name]) for test in job.tests],
        "models": [
            {
                "name": model.name,
                "group": model.table_group,
                "base": model.base,
                "trained_on": model.trained_on,
                "tables": list(model.tables),
                "training_pairs": _training_pairs(model),
                "tests": {test.name: measured[model.name][test.name] for test in job.tests},
                REWARDBENCH: measured[model.name].get(REWARDBENCH),
            }
            for model in job.models
        ],
    }
    directory.write_json("evaluation.json", results)
    return results


def _evaluate_reward_models(
    job: EvaluateRewardJob, pairs: Mapping[str, TestPairs], root: Path, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Score the pairs with every reward model; returns its metrics by name and test."""
    models = [model for model in job.models if model.model is not None]
    fingerprints = {m.name: fingerprint(m.model, m.logit_token) for m in models if m.model is not None}
    measured = {}
    for model in models:
        batches = {
            name: _batches(job, model.name, fingerprints[model.name], name, test_pairs, root)
            for name, test_pairs in pairs.items()
        }
        _score(job, model, [batch for test_batches in batches.values() for batch in test_batches], progress)
        scores = {name: _read(model, name, test_batches) for name, test_batches in batches.items()}
        measured[model.name] = _measure(job, pairs, scores)
    return measured


def _evaluate_rankers(
    job: EvaluateRewardJob,
    pairs: Mapping[str, TestPairs],
    rankers: Mapping[str, Mapping[str, PairwiseRanker]],
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Ask every ranker about the pairs; returns its metrics by name and test."""
    spent, measured = 0.0, {}
    for name, by_test in rankers.items():
        for ranker in by_test.values():
            spent += ranker.ask(None if job.max_cost is None else job.max_cost - spent, progress)
        measured[name] = _measure_ranker(job, pairs, by_test)
    return measured


def fingerprint(model: str, logit_token: int | None = None) -> str:
    """A hash that changes when a file of a reward model changes.

    Args:
        model: its directory or hub id.
        logit_token: as in `ModelUnderTest`.

    Raises:
        InputError: the model does not exist or is no reward model.
    """
    from transformers import AutoConfig

    path = loading.resolve(model)
    try:
        config = AutoConfig.from_pretrained(path)
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
    return key_of(files) if logit_token is None else key_of(files, logit_token)


def _batches(
    job: EvaluateRewardJob, model: str, model_hash: str, test: str, pairs: TestPairs, root: Path
) -> list[ScoreBatch]:
    """Batches of pairs of similar length, the longest first, so that the last batches are short."""
    prompt = load_prompt(job.prompts)
    rows = pairs.table.to_pylist()
    order = sorted(
        range(len(rows)), key=lambda row: -sum(len(rows[row][key]) for key in ("asked", "chosen", "rejected"))
    )
    batches = []
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
        batches.append(ScoreBatch(root / "scores" / model / test / f"{key}.parquet", taken, requests))
    return batches


def _score(job: EvaluateRewardJob, model: ModelUnderTest, batches: Sequence[ScoreBatch], progress: Progress) -> None:
    """Score the batches without a file; each file is written when its scores arrive."""
    assert model.model is not None, "a ranker gives no scores"
    missing = {batch.path.stem: batch for batch in batches if not batch.path.exists()}
    if not missing:
        return
    fit.check("evaluation", [fit.Role.from_config("scorer", job.scorers)], fit.cluster_nodes())
    rewards, scorer = {model.name: model.model}, ray.remote(ScorerActor)
    pool = ActorPool[ScorerActor](
        "scorer",
        lambda index: scorer.options(**placement.pool_options(job.scorers)).remote(
            f"scorer-{index}", rewards, None, job.scorers, max_tokens=job.max_tokens, logit_token=model.logit_token
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
            batch.path.parent.mkdir(parents=True, exist_ok=True)
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


def _read(model: ModelUnderTest, test: str, batches: Sequence[ScoreBatch]) -> PairScores:
    """The scores of all pairs of a test.

    Raises:
        InputError: no pair has scores, or a score is not finite.
    """
    by_row: dict[int, dict[str, Any]] = {}
    for batch in batches:
        by_row.update(zip(batch.rows, pq.read_table(batch.path).to_pylist(), strict=True))
    kept = [row for row in sorted(by_row) if by_row[row]["chosen"] is not None]
    if not kept:
        raise InputError(
            f"{model.name} has no score on {test}: in every pair a response alone fills its context; raise max_tokens "
            "or leave one of the two out"
        )
    for row in kept:
        if not math.isfinite(by_row[row]["chosen"] - by_row[row]["rejected"]):
            raise InputError(
                f"{model.name} gives pair {by_row[row]['pair_id']} of {test} a score that is not finite; look at its "
                f"weights and at scorers.dtype, and remove {batches[0].path.parent} to score again"
            )
    return PairScores(
        kept=kept,
        chosen=[by_row[row]["chosen"] for row in kept],
        rejected=[by_row[row]["rejected"] for row in kept],
        facts={"cut": sum(by_row[row]["cut"] > 0 for row in kept), "too_long": len(by_row) - len(kept)},
    )


def _measure(
    job: EvaluateRewardJob, pairs: Mapping[str, TestPairs], scores: Mapping[str, PairScores]
) -> dict[str, Any]:
    """A reward model's metrics by test and on the benchmark."""
    temperature = None
    if job.calibrate is not None:
        calibration = scores[job.calibrate.name]
        temperature = metrics.fit_temperature(calibration.chosen, calibration.rejected)
    by_test: dict[str, Any] = {}
    for test in job.tests:
        own, table = scores[test.name], pairs[test.name].table
        chosen_and_rejected = zip(own.chosen, own.rejected, strict=True)
        right = [0.5 if chosen == rejected else float(chosen > rejected) for chosen, rejected in chosen_and_rejected]
        by_test[test.name] = {
            **metrics.measure(own.chosen, own.rejected),
            **own.facts,
            "slices": metrics.slices(table.take(own.kept), right),
            "temperature": temperature,
            "calibrated": temperature and metrics.calibrated(own.chosen, own.rejected, temperature),
        }
    if job.rewardbench is not None:
        own = scores[REWARDBENCH]
        subsets = pairs[REWARDBENCH].table["subset"].take(own.kept).to_pylist()
        sections = job.rewardbench.sections  # without subsets of which no pair fits the model's context
        sections = sections and {
            section: [name for name in names if name in subsets] for section, names in sections.items()
        }
        by_test[REWARDBENCH] = {**rewardbench.bench(subsets, own.chosen, own.rejected, sections), **own.facts}
    return by_test


def _measure_ranker(
    job: EvaluateRewardJob, pairs: Mapping[str, TestPairs], rankers: Mapping[str, PairwiseRanker]
) -> dict[str, Any]:
    """A ranker's metrics by test and on the benchmark."""
    by_test: dict[str, Any] = {}
    for name, ranker in rankers.items():
        table, (first_right, second_right) = pairs[name].table, ranker.choices()
        if name == REWARDBENCH:
            assert job.rewardbench is not None
            subsets = table["subset"].to_pylist()
            by_test[name] = rewardbench.bench_ranked(subsets, first_right, second_right, job.rewardbench.sections)
        else:
            by_test[name] = metrics.ranked(first_right, second_right)
            by_test[name]["slices"] = metrics.slices(table, metrics.shares_right(first_right, second_right))
        by_test[name]["spent"] = ranker.usage()
    return by_test


def _training_pairs(model: ModelUnderTest) -> int | None:
    """Number of pairs that a reward model of psyco_ray was trained on; None for other models."""
    trained = trained_pairs.read(model.model) if model.model is not None else None
    return None if trained is None else trained.pairs


def _describe(test: Test, pairs: TestPairs) -> dict[str, Any]:
    return {
        "name": test.name,
        "pairs": test.pairs,
        "split": test.split,
        "rows": pairs.table.num_rows,
        "left_out": dict(pairs.left_out),
    }
