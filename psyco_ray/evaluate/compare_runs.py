"""Comparison of training runs: the quality of each checkpoint on held-out speeches (paper §4.3, figure 4).

What chooses a run's checkpoint also compares runs: the judge's win rate against the base model, else the mean reward by
a reward model that takes no part in training, else by the one that trains the policy. Runs are compared on the held-out
speeches they share, at their last checkpoints and at those that the runs chose.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

import numpy as np
from scipy.stats import binomtest

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.resume import may_change
from psyco_ray.evaluate import compare_notes, run_files, stats
from psyco_ray.evaluate.run_files import Record

Scores = dict[str, list[float]]
"""Scores of the responses to each held-out speech, by its id."""

JUDGES = {
    "judge": "evaluation.judge.model",
    "heldout": "scorers.heldout_model",
    "reward": "scorers.reward_model",
}
"""What can judge a checkpoint, the best first, as runs choose theirs; and the setting that names each."""

_FIRST_RECORD = "iteration-000/evaluate.json"
_POLICY_RESULTS = "evaluation.json"
_RESPONSE_SETTINGS = ("evaluation.responses", "evaluation.temperature", "sampling.max_tokens", "prompts.")
_BASE_WIN_RATE = 0.5  # of the base model against itself


class Comparison(TypedDict):
    """Two checkpoints, ours and theirs, on their shared held-out speeches."""

    speeches: int
    wins: int  # speeches on which ours is above
    ties: int
    losses: int
    share: float  # of wins; a tie is half a win
    wilson95: stats.Interval  # the contexts of a conversation are dependent, in the next ones too
    difference: float  # mean of our scores minus theirs
    ci95: stats.Interval  # bootstrap
    p: float  # of the exact two-sided sign test of speeches, or of conversations by their sums, without ties


def compare(directories: Sequence[Path], seed: int = 0) -> dict[str, Any]:
    """Compare training runs and collect evaluations of policies, from the files in their directories.

    Args:
        directories: of training runs, finished or not, and of runs of ``evaluate-policy``.
        seed: of the bootstrap.

    Returns:
        `judge`: the best kind of JUDGES that all runs have, and `reward_model`: the best reward model that all have, or
        None. `runs`: by name `base`, `seed`, `planned` iterations, whether it is `finished`, `speeches` held out, its
        `curve` (a point for each evaluated checkpoint, see `_point`), the iterations `alarmed`, the `final` point, the
        `best` point as ``summary.json`` names it and what it was `chosen_by` (both None before the run has ended).
        `shared_speeches`: held-out speeches of all runs. `differences`: rows of `setting` and the `values` by run.
        `notes`: caveats for a reader. `pairs`: rows of two runs `a` and `b` with their `final` checkpoints compared by
        `paired`, and the `best` ones (None before both runs have ended). `policies`: see `_policies`.

    Raises:
        InputError: a directory holds neither or is given twice, or the runs share no held-out speech or no judge.
    """
    roots = _names(directories)
    for root in roots.values():
        _check_results(root)
    trained = {name: root for name, root in roots.items() if (root / _FIRST_RECORD).exists()}
    records = {name: run_files.evaluations(root) for name, root in trained.items()}
    jobs = {name: _settings(run_files.read_settings(root)) for name, root in trained.items()}
    judge = _judge(records, jobs)
    reward_model = next((m for m in ("heldout", "reward") if all(m in own[0] for own in records.values())), None)
    runs = {name: _run(root, records[name], (judge, reward_model), jobs[name]) for name, root in trained.items()}
    shared = _shared_speeches(records, judge)
    judges = _judge_models(records, jobs, judge, shared)

    def compared(a: str, b: str, which: str) -> Comparison | None:
        points = [(name, runs[name][which]) for name in (a, b)]
        if not all(point for _, point in points):
            return None
        ours, theirs = (_scores(records[name], point["iteration"], judge) for name, point in points)
        conversation = {key: of for name in (a, b) for key, of in records[name][0].get("conversations", {}).items()}
        return paired(ours, theirs, seed, conversation) if ours.keys() & theirs.keys() else None

    policies = [row for name, root in roots.items() for row in _policies(name, root / _POLICY_RESULTS)]
    return {
        "seed": seed,
        "judge": judge,
        "reward_model": reward_model,
        "runs": runs,
        "shared_speeches": len(shared),
        "differences": _differences(jobs),
        "notes": [
            *compare_notes.of_runs(runs, judge, judges, len(shared)),
            *_response_notes(jobs),
            *compare_notes.of_policies(policies),
            *compare_notes.of_other_checkpoints(policies, {trained[name]: (name, run) for name, run in runs.items()}),
        ],
        "pairs": [
            {"a": a, "b": b, **{which: compared(a, b, which) for which in ("final", "best")}}
            for a, b in itertools.combinations(runs, 2)
            if judges[a] == judges[b]
        ],
        "policies": policies,
    }


def _check_results(root: Path) -> None:
    if not (root / _FIRST_RECORD).exists() and not (root / _POLICY_RESULTS).exists():
        raise InputError(
            f"{root} has neither {_FIRST_RECORD} of a training run nor {_POLICY_RESULTS} of evaluate-policy; name "
            "the directory of a run that has evaluated its base model"
        )


def paired(ours: Scores, theirs: Scores, seed: int = 0, conversation: Mapping[str, str] | None = None) -> Comparison:
    """Compare two checkpoints on their shared speeches, by the mean score of each one's responses.

    Args:
        ours: scores by speech, of one judge.
        theirs: scores of the other checkpoint, of the same judge.
        seed: of the bootstrap.
        conversation: of speech ids; a speech without is independent of all others.
    """
    gaps = {key: fmean(ours[key]) - fmean(theirs[key]) for key in sorted(ours.keys() & theirs.keys())}
    assert gaps, "two runs without a shared speech are not compared"
    clusters = [(conversation or {}).get(key, key) for key in gaps]
    points = [float(0.5 + np.sign(gap) / 2) for gap in gaps.values()]
    by_cluster: dict[str, float] = {}
    for cluster, gap in zip(clusters, gaps.values(), strict=True):
        by_cluster[cluster] = by_cluster.get(cluster, 0.0) + gap
    up, down = sum(gap > 0 for gap in by_cluster.values()), sum(gap < 0 for gap in by_cluster.values())
    return {
        "speeches": len(gaps),
        "wins": points.count(1.0),
        "ties": points.count(0.5),
        "losses": points.count(0.0),
        "share": sum(points) / len(points),
        "wilson95": stats.clustered_wilson(points, clusters),
        "difference": fmean(gaps.values()),
        "ci95": stats.clustered_mean([*gaps.values()], clusters, seed),
        "p": float(binomtest(up, up + down).pvalue) if up + down else 1.0,
    }


def _names(directories: Sequence[Path]) -> dict[str, Path]:
    """The directories by the shortest ends of their paths that are distinct."""
    roots = [directory.resolve() for directory in directories]
    for root in roots:
        if roots.count(root) > 1:
            raise InputError(f"{root} is given twice; name every run once")
    depth = 1
    while len({root.parts[-depth:] for root in roots}) < len(roots):
        depth += 1
    return {"/".join(root.parts[-depth:]): root for root in roots}


def _run(root: Path, records: Sequence[Record], measures: tuple[str, str | None], job: Record) -> Record:
    """A training run as `compare` returns it; `measures` are the kinds that give win rates and rewards."""
    steps = [run_files.steps_until(root, iteration) for iteration in range(len(records))]
    curve = [_point(records, iteration, step, *measures) for iteration, step in enumerate(steps)]
    path = root / "summary.json"
    finished = path.exists() and run_files.read_object(path).get("iterations") == len(curve) - 1
    chosen = run_files.best_of(root) if finished else None
    return {
        "base": job["model"],
        "seed": job["seed"],
        "planned": job["iterations"],
        "finished": finished,
        "speeches": len(_scores(records, 0, measures[0])),
        "curve": curve,
        "alarmed": [iteration for iteration, record in enumerate(records) if record.get("alarms")],
        "final": curve[-1],
        "best": curve[chosen["iteration"]] if chosen else None,
        "chosen_by": chosen["by"] if chosen else None,
    }


def _point(records: Sequence[Record], iteration: int, step: int, judge: str, reward_model: str | None) -> Record:
    """A checkpoint's `win_rate` against the base model on its `speeches`, its `reward` if all runs have one, its
    `length_ratio` to the base model, and its `finished_share` if the run recorded it.
    """
    base, record = records[0], records[iteration]
    judged = record[judge] if iteration else {"win_rate_vs_base": _BASE_WIN_RATE, "win_rate_ci95": [_BASE_WIN_RATE] * 2}
    rewarded = record[reward_model] if reward_model else {"reward": None, "ci95": None}
    return {
        "iteration": iteration,
        "step": step,
        "speeches": len(_scores(records, iteration, judge)),
        "win_rate": judged["win_rate_vs_base"],
        "win_rate_ci95": judged["win_rate_ci95"],
        "reward": rewarded["reward"],
        "reward_ci95": rewarded["ci95"],
        "length_ratio": record["mean_tokens"] / base["mean_tokens"],
        "finished_share": record.get("finished_share"),
    }


def _scores(records: Sequence[Record], iteration: int, judge: str) -> Scores:
    """Scores of a checkpoint's responses; by the judge the share of its verdicts for them, without unreadable ones."""
    if judge != "judge":
        return records[iteration][judge]["scores"]
    if not iteration:
        judged = {key for record in records[1:] for key in record[judge]["outcomes"]}  # may be part of the speeches
        return {key: [_BASE_WIN_RATE] for key in judged or records[0]["tokens"]}
    return {key: [outcome] for key, outcome in records[iteration][judge]["outcomes"].items()}


def _judge(records: Mapping[str, list[Record]], jobs: Mapping[str, Record]) -> str:
    """The best kind of judge that all runs have."""
    kinds = {
        name: [kind for kind in JUDGES if (jobs[name].get(JUDGES[kind]) if kind == "judge" else kind in own[0])]
        for name, own in records.items()
    }
    for kind in JUDGES:
        if all(kind in own for own in kinds.values()):
            return kind
    found = ", ".join(f"{name}: {' and '.join(own)}" for name, own in kinds.items())
    raise InputError(f"the runs have no kind of judge in common ({found}); compare those that have one")


def _shared_speeches(records: Mapping[str, list[Record]], judge: str) -> set[str]:
    """The held-out speeches that all runs answered."""
    keys = [set(_scores(own, 0, judge)) for own in records.values()]
    shared = set.intersection(*keys) if keys else set()
    if keys and not shared:
        raise InputError(
            f"the runs {', '.join(records)} share no held-out speech, so nothing compares them; compare runs of the "
            "same data.speeches and data.dev_share"
        )
    return shared


def _judge_models(
    records: Mapping[str, list[Record]], jobs: Mapping[str, Record], judge: str, shared: set[str]
) -> dict[str, str]:
    """The model that judged each run: the one its job names, else one of its own.

    If the base model has the same scores as in an earlier run, the reward model is the same, whatever its name.
    """
    if judge == "judge":
        return {name: job[JUDGES[judge]] for name, job in jobs.items()}
    models: dict[str, str] = {}
    for name, job in jobs.items():
        base = records[name][0][judge]["scores"]
        same_scores = (
            other for other in models if all(records[other][0][judge]["scores"][key] == base[key] for key in shared)
        )
        earlier = next(same_scores, None)
        models[name] = models[earlier] if earlier else job.get(JUDGES[judge]) or f"the judge of {name}"
    return models


def _settings(job: Record) -> Record:
    """A run's settings by dotted key, those of `Job.applied_dpo` as they apply."""
    one_training = job.get("pairs_from", "policy") != "policy"
    return job_file.flatten(job) | ({"dpo.keep_optimizer": True, "dpo.schedule_over": "run"} if one_training else {})


def _differences(jobs: Mapping[str, Record]) -> list[Record]:
    """The settings in which runs differ, without those that affect only place and speed."""
    return [
        {"setting": key, "values": {name: job.get(key) for name, job in jobs.items()}}
        for key in dict.fromkeys(key for job in jobs.values() for key in job)
        if len({json.dumps(job.get(key)) for job in jobs.values()}) > 1 and (key == "iterations" or not may_change(key))
    ]


def _response_notes(jobs: Mapping[str, Record]) -> list[str]:
    keys = [row["setting"] for row in _differences(jobs) if row["setting"].startswith(_RESPONSE_SETTINGS)]
    return [f"The runs answered the held-out speeches with different settings: {', '.join(keys)}."] if keys else []


def _policies(run: str, path: Path) -> list[Record]:
    """A row for each policy and setting of a run of ``evaluate-policy``; none for other runs.

    Returns:
        By row the names of `run`, `opponent`, `policy` and `setting` (free or matched length); the directory of the run
        that it was `trained_in`, `iteration` and `steps` of the checkpoint and its `series` (None for other models); on
        its `speeches` the `overall` win rate with `wilson95`, rates by `topics` and on `crisis` speeches (None without
        any); and the `finished_share`.
    """
    if not path.exists():
        return []
    results = run_files.read_object(path)
    try:
        return [
            {
                "run": run,
                "opponent": results["opponent"],
                "policy": policy["name"],
                "setting": setting,
                "trained_in": policy["run"],
                "iteration": policy["iteration"],
                "steps": policy["steps"],
                "series": policy["series"],
                "speeches": variant["overall"]["speeches"],
                "overall": variant["overall"]["rate"],
                "wilson95": variant["overall"]["wilson95"],
                "topics": {topic: rates["rate"] for topic, rates in variant["topics"].items()},
                "crisis": variant["crisis"]["rate"] if variant["crisis"] else None,
                "finished_share": variant["finished_share"],
            }
            for policy in results["policies"]
            for setting, variant in policy["variants"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what evaluate-policy writes ({error!r}); run the evaluation again") from None
