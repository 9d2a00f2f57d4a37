"""Reward models and rankers on held-out pairs and RewardBench (paper §4.1).

Each pair is scored once (see `pair_scores`); metrics are recomputed on every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psyco_ray.config.evaluate_reward import REWARDBENCH, EvaluateRewardJob, ModelUnderTest, Test
from psyco_ray.data import trained_pairs
from psyco_ray.evaluate import metrics, pair_scores, rewardbench
from psyco_ray.evaluate.pair_scores import PairScores
from psyco_ray.evaluate.pair_sets import TestPairs, load, load_bench
from psyco_ray.evaluate.pairwise_ranker import PairwiseRanker
from psyco_ray.judge.call_run import execute_together
from psyco_ray.run.directory import RunDirectory, versions
from psyco_ray.run.progress import Progress


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
    fingerprints = {
        m.name: pair_scores.fingerprint(m.model, m.logit_token, m.template_options)
        for m in models
        if m.model is not None
    }
    measured = {}
    for model in models:
        batches = {
            name: pair_scores.batches(job, model.name, fingerprints[model.name], name, test_pairs, root)
            for name, test_pairs in pairs.items()
        }
        pair_scores.score(job, model, [batch for test_batches in batches.values() for batch in test_batches], progress)
        scores = {name: pair_scores.read(model, name, test_batches) for name, test_batches in batches.items()}
        measured[model.name] = _measure(job, pairs, scores)
    return measured


def _evaluate_rankers(
    job: EvaluateRewardJob,
    pairs: Mapping[str, TestPairs],
    rankers: Mapping[str, Mapping[str, PairwiseRanker]],
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Ask all rankers about the pairs, at the same time; returns their metrics by name and test."""
    for test in pairs:  # one after the other: a pair may be in several
        asked = [by_test[test].calls for by_test in rankers.values() if test in by_test]
        execute_together(asked, job.max_cost, progress)
    return {name: _measure_ranker(job, pairs, by_test) for name, by_test in rankers.items()}


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
        subsets, items = (pairs[REWARDBENCH].table[name].take(own.kept).to_pylist() for name in ("subset", "item"))
        sections = job.rewardbench.sections  # without subsets of which no pair fits the model's context
        sections = sections and {
            section: [name for name in names if name in subsets] for section, names in sections.items()
        }
        by_test[REWARDBENCH] = {**rewardbench.bench(subsets, own.chosen, own.rejected, sections, items), **own.facts}
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
            subsets, items = (table[column].to_pylist() for column in ("subset", "item"))
            sections = job.rewardbench.sections
            by_test[name] = rewardbench.bench_ranked(subsets, first_right, second_right, sections, items)
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
