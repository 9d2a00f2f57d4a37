"""Reward models and rankers on held-out pairs and RewardBench: scores once, metrics as often as wished (paper §4.1).

A part of the scores is named by a hash of the model's files and of the texts in it, so that a killed run, or one with
more models or tests, scores only what is missing.
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
from psyco_ray.data import preferences
from psyco_ray.evaluate import metrics, rewardbench
from psyco_ray.evaluate.pair_sets import TestPairs, load, load_bench
from psyco_ray.evaluate.pairwise_ranker import Ranking
from psyco_ray.models import loading
from psyco_ray.pool import fit, placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run.directory import RunDirectory, versions, write_table
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import ScoreRequest, ScoreResult

PAIRS_PER_ITEM = 32

SCORED = pa.schema(
    [
        ("pair_id", pa.string()),
        ("chosen", pa.float64()),  # raw scores; null where a response alone fills the context
        ("rejected", pa.float64()),
        ("cut", pa.int32()),  # prompt tokens that were cut off to fit the context
    ]
)
"""The scores that a reward model gives to pairs."""


@dataclass(frozen=True)
class ScoreBatch:
    """Pairs that a scorer takes at a time, and where their scores are kept."""

    path: Path
    rows: tuple[int, ...]  # of the pairs' table
    asked: tuple[ScoreRequest, ...]


@dataclass(frozen=True)
class Scores:
    """What a reward model gave to pairs, of which `kept` are the rows that fit its context."""

    kept: list[int]
    chosen: list[float]
    rejected: list[float]
    facts: dict[str, int]  # `cut`: pairs whose prompt was cut; `too_long`: pairs without scores


def evaluate(job: EvaluateRewardJob, directory: RunDirectory, progress: Progress) -> dict[str, Any]:
    """Score all pairs that have no scores yet, compare the models, and write ``evaluation.json``.

    Args:
        job: the models and the pairs.
        directory: holds the scores and gets the results.
        progress: shows how far it is.

    Returns:
        What ``evaluation.json`` holds: `tests`, and for each of `models` its figures by test and on RewardBench.

    Raises:
        InputError: a file, a model or the directory does not do; as far as that can be seen, before anything is scored.
        BudgetExceededError: the rankers' calls reached `max_cost`; everything paid for is kept.
        UnavailableError: a ranker's server failed again and again.
    """
    directory.claim(job)
    pairs = {test.name: load(test, job.seed) for test in job.tests}
    if job.rewardbench is not None:
        pairs[REWARDBENCH] = load_bench(job.rewardbench, job.seed)
    rankings = {
        model.name: {
            name: Ranking(job, model, name, of.table.to_pylist(), directory.root) for name, of in pairs.items()
        }
        for model in job.models
        if model.endpoint is not None
    }
    if job.calibrate is not None:
        pairs[job.calibrate.name] = load(job.calibrate, job.seed)
    marks = {model.name: mark(model.model) for model in job.models if model.model is not None}
    figures: dict[str, dict[str, Any]] = {}
    for model in job.models:
        if model.model is not None:
            items = {
                name: _items(job, model, marks[model.name], name, of, directory.root) for name, of in pairs.items()
            }
            _score(job, model, [item for of in items.values() for item in of], progress)
            scores = {name: _read(model, name, of) for name, of in items.items()}
            figures[model.name] = _measured(job, pairs, scores)
    spent = 0.0
    for name, by_test in rankings.items():
        for ranking in by_test.values():
            spent += ranking.ask(None if job.max_cost is None else job.max_cost - spent, progress)
        figures[name] = _ranked(job, pairs, by_test)
    results = {
        "name": Path(job.run_dir).name,
        "seed": job.seed,
        "versions": versions(),
        "tests": [_about(test, pairs[test.name]) for test in job.tests],
        "models": [
            {
                "name": model.name,
                "group": model.table_group,
                "base": model.base,
                "trained_on": model.trained_on,
                "tests": {test.name: figures[model.name][test.name] for test in job.tests},
                REWARDBENCH: figures[model.name].get(REWARDBENCH),
            }
            for model in job.models
        ],
    }
    directory.write_json("evaluation.json", results)
    return results


def mark(model: str) -> str:
    """A hash that changes when a reward model's files do.

    Args:
        model: its directory or hub id.

    Raises:
        InputError: there is no such model, or it is no reward model.
    """
    from transformers import AutoConfig

    path = loading.resolve(model)
    try:
        settings = AutoConfig.from_pretrained(path)
    except (ValueError, OSError) as error:
        said = str(error).splitlines()[0]
        raise InputError(f"reward model {model}: its config.json cannot be used: {said}") from None
    named = settings.architectures or ["no architecture"]
    if not any("SequenceClassification" in name for name in named):
        raise InputError(
            f"{model} is no reward model: its config.json names {named[0]}; give a sequence classifier with one label, "
            "or serve the model and name its endpoint, to use it as a ranker"
        )
    if settings.num_labels != 1:
        raise InputError(f"reward model {model} has {settings.num_labels} labels; one is needed")
    states = loading.model_fingerprint(path)
    return key_of([[name, state] if isinstance(state, str) else [name, *state] for name, state in states])


def _items(
    job: EvaluateRewardJob, model: ModelUnderTest, marked: str, name: str, pairs: TestPairs, root: Path
) -> list[ScoreBatch]:
    """Pairs of about the same length together, the longest first, so that the end is not spent on one long item."""
    prompt = load_prompt(job.prompts)
    rows = pairs.table.select(["pair_id", "form", "asked", "chosen", "rejected"]).to_pylist()
    order = sorted(range(len(rows)), key=lambda at: -sum(len(rows[at][key]) for key in ("asked", "chosen", "rejected")))
    items = []
    for start in range(0, len(order), PAIRS_PER_ITEM):
        taken = tuple(order[start : start + PAIRS_PER_ITEM])
        texts = [
            (preferences.conversation(row["form"], row["asked"], prompt), (row["chosen"], row["rejected"]))
            for row in (rows[at] for at in taken)
        ]
        key = key_of(marked, job.scorers.dtype, job.max_tokens, name, texts)
        asked = tuple(
            ScoreRequest(f"{key}:{rows[at]['pair_id']}", tuple(turns), sides)
            for at, (turns, sides) in zip(taken, texts, strict=True)
        )
        items.append(ScoreBatch(root / "scores" / model.name / name / f"{key}.parquet", taken, asked))
    return items


def _score(job: EvaluateRewardJob, model: ModelUnderTest, items: Sequence[ScoreBatch], progress: Progress) -> None:
    """Score the items that are not there, each written as it comes."""
    assert model.model is not None, "a ranker gives no scores"
    missing = {item.path.stem: item for item in items if not item.path.exists()}
    if not missing:
        return
    fit.check("evaluation", [fit.Role.of("scorer", job.scorers)], fit.cluster_nodes())
    rewards, scorer = {model.name: model.model}, ray.remote(ScorerActor)
    pool = ActorPool[ScorerActor](
        "scorer",
        lambda index: scorer.options(**placement.pool_options(job.scorers)).remote(
            f"scorer-{index}", rewards, None, job.scorers, max_tokens=job.max_tokens
        ),
        min(job.scorers.actors, len(missing)),
        job.deadlines,
    )
    try:
        pool.wait_ready()
        stream = pool.stream(
            ScorerActor.score_many,
            ((model.name, item.asked) for item in missing.values()),
            name=f"scores of {model.name}",
        )
        for scored, _ in progress.track(stream, f"{model.name}, {PAIRS_PER_ITEM} pairs at a time", len(missing)):
            item = missing[scored[0].key.partition(":")[0]]
            item.path.parent.mkdir(parents=True, exist_ok=True)
            write_table(item.path, _table(item, scored))
    finally:
        pool.close()


def _table(item: ScoreBatch, scored: Sequence[ScoreResult]) -> pa.Table:
    assert [one.key for one in scored] == [one.key for one in item.asked], "scores came in another order"
    rows = []
    for one in scored:
        chosen, rejected = one.values or (None, None)
        pair_id = one.key.partition(":")[2]
        rows.append({"pair_id": pair_id, "chosen": chosen, "rejected": rejected, "cut": one.cut})
    return pa.Table.from_pylist(rows, schema=SCORED)


def _read(model: ModelUnderTest, name: str, items: Sequence[ScoreBatch]) -> Scores:
    """The scores of all pairs, out of their parts.

    Raises:
        InputError: no pair has one, or one is not finite.
    """
    by_row: dict[int, dict[str, Any]] = {}
    for item in items:
        by_row.update(zip(item.rows, pq.read_table(item.path).to_pylist(), strict=True))
    kept = [row for row in sorted(by_row) if by_row[row]["chosen"] is not None]
    if not kept:
        raise InputError(
            f"{model.name} has no score on {name}: in every pair a response alone fills its context; raise max_tokens "
            "or leave one of the two out"
        )
    for row in kept:
        if not math.isfinite(by_row[row]["chosen"] - by_row[row]["rejected"]):
            raise InputError(
                f"{model.name} gives pair {by_row[row]['pair_id']} of {name} a score that is not finite; look at its "
                f"weights and at scorers.dtype, and remove {items[0].path.parent} to score again"
            )
    return Scores(
        kept=kept,
        chosen=[by_row[row]["chosen"] for row in kept],
        rejected=[by_row[row]["rejected"] for row in kept],
        facts={"cut": sum(by_row[row]["cut"] > 0 for row in kept), "too_long": len(by_row) - len(kept)},
    )


def _measured(job: EvaluateRewardJob, pairs: Mapping[str, TestPairs], scores: Mapping[str, Scores]) -> dict[str, Any]:
    """A reward model's figures by test and on the benchmark."""
    temperature = None
    if job.calibrate is not None:
        on = scores[job.calibrate.name]
        temperature = metrics.fit_temperature(on.chosen, on.rejected)
    found: dict[str, Any] = {}
    for test in job.tests:
        of, table = scores[test.name], pairs[test.name].table
        sides = zip(of.chosen, of.rejected, strict=True)
        right = [0.5 if chosen == rejected else float(chosen > rejected) for chosen, rejected in sides]
        found[test.name] = metrics.measure(of.chosen, of.rejected) | of.facts
        found[test.name] |= {"slices": metrics.slices(table.take(of.kept), right), "temperature": temperature}
        found[test.name]["calibrated"] = temperature and metrics.calibrated(of.chosen, of.rejected, temperature)
    if job.rewardbench is not None:
        of = scores[REWARDBENCH]
        subsets = pairs[REWARDBENCH].table["subset"].take(of.kept).to_pylist()
        given = job.rewardbench.sections  # less the subsets of which no pair fits the model's context
        sections = given and {name: [one for one in all_ if one in subsets] for name, all_ in given.items()}
        found[REWARDBENCH] = rewardbench.bench(subsets, of.chosen, of.rejected, sections) | of.facts
    return found


def _ranked(job: EvaluateRewardJob, pairs: Mapping[str, TestPairs], rankings: Mapping[str, Ranking]) -> dict[str, Any]:
    """A ranker's figures by test and on the benchmark."""
    found: dict[str, Any] = {}
    for name, ranking in rankings.items():
        table, choices = pairs[name].table, ranking.choices()
        if name == REWARDBENCH:
            assert job.rewardbench is not None, "there is a benchmark to rank"
            subsets = table["subset"].to_pylist()
            found[name] = rewardbench.bench_ranked(subsets, *choices, job.rewardbench.sections)
        else:
            found[name] = metrics.ranked(*choices)
            found[name]["slices"] = metrics.slices(table, metrics.shares_right(*choices))
        found[name]["spent"] = ranking.spent()
    return found


def _about(test: Test, pairs: TestPairs) -> dict[str, Any]:
    return {
        "name": test.name,
        "pairs": test.pairs,
        "split": test.split,
        "rows": pairs.table.num_rows,
        "left_out": dict(pairs.left_out),
    }
