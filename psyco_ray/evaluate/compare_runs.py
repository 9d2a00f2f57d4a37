"""Comparison of training runs: the quality of each checkpoint by a held-out judge (paper §4.3, figure 4).

The judge is the reward model that takes no part in training. Runs are compared on the held-out speeches they share.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

from scipy.stats import binomtest

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.resume import may_change
from psyco_ray.evaluate import stats

Record = dict[str, Any]
"""A JSON object of a run directory."""

Scores = dict[str, list[float]]
"""Scores of the responses to each held-out speech, by its id."""

JUDGES = {"heldout": "scorers.heldout_model", "reward": "scorers.reward_model"}
"""Reward models that can judge, the better one first, and the setting that names each."""

_FIRST_RECORD = "iteration-000/evaluate.json"
_POLICY_RESULTS = "evaluation.json"
_RESPONSE_SETTINGS = ("evaluation.responses", "evaluation.temperature", "sampling.max_tokens", "prompts.")


class Comparison(TypedDict):
    """Two checkpoints, ours and theirs, on their shared held-out speeches."""

    speeches: int
    wins: int  # speeches on which ours is above
    ties: int
    losses: int
    share: float  # of wins; a tie is half a win
    wilson95: stats.Interval
    difference: float  # mean of our scores minus theirs
    ci95: stats.Interval  # bootstrap
    p: float  # of the exact two-sided sign test, without ties


def compare(directories: Sequence[Path], seed: int = 0) -> dict[str, Any]:
    """Compare training runs and collect evaluations of policies, from the files in their directories.

    Args:
        directories: of training runs, finished or not, and of runs of ``evaluate-policy``.
        seed: of the bootstrap.

    Returns:
        `runs`: by name `base`, `seed`, `planned` iterations, whether it is `finished`, `speeches` held out, its `curve`
        (a point for each judged checkpoint), the iterations `alarmed`, and the `final` and the `best` point. `judge`:
        heldout, or reward if a run has no other. `shared_speeches`: held-out speeches of all runs. `differences`: rows
        of `setting` and the `values` by run. `notes`: caveats for a reader. `pairs`: rows of two runs `a` and `b` with
        their `final` and `best` checkpoints compared by `paired`. `policies`: rows of `run`, `opponent`, `policy`,
        `setting` (free or matched length), `overall`, `wilson95` and the rates by `topics`.

    Raises:
        InputError: a directory holds neither or is given twice, or the runs share no held-out speech or no judge.
    """
    roots = _names(directories)
    for root in roots.values():
        if not (root / _FIRST_RECORD).exists() and not (root / _POLICY_RESULTS).exists():
            raise InputError(
                f"{root} has neither {_FIRST_RECORD} of a training run nor {_POLICY_RESULTS} of evaluate-policy; name "
                "the directory of a run that has evaluated its base model"
            )
    trained = {name: root for name, root in roots.items() if (root / _FIRST_RECORD).exists()}
    records = {name: _records(root) for name, root in trained.items()}
    judge = _judge(records)
    jobs = {name: job_file.flatten(_job(root / "job.yaml")) for name, root in trained.items()}
    runs = {name: _run(root, records[name], judge, jobs[name]) for name, root in trained.items()}
    shared = _shared_speeches(records, judge)
    judges = _judge_models(records, jobs, judge, shared)

    def scores(name: str, checkpoint: str) -> Scores:
        return records[name][runs[name][checkpoint]["iteration"]][judge]["scores"]

    policies = [row for name, root in roots.items() for row in _policies(name, root / _POLICY_RESULTS)]
    return {
        "seed": seed,
        "judge": judge,
        "runs": runs,
        "shared_speeches": len(shared),
        "differences": _differences(jobs),
        "notes": [*_notes(runs, judge, judges, len(shared)), *_response_notes(jobs), *_policy_notes(policies)],
        "pairs": [
            {"a": a, "b": b, **{point: paired(scores(a, point), scores(b, point), seed) for point in ("final", "best")}}
            for a, b in itertools.combinations(runs, 2)
            if judges[a] == judges[b]
        ],
        "policies": policies,
    }


def paired(ours: Scores, theirs: Scores, seed: int = 0) -> Comparison:
    """Compare two checkpoints on their shared speeches, by the mean score of each one's responses.

    Args:
        ours: scores by speech, of one judge.
        theirs: scores of the other checkpoint, of the same judge.
        seed: of the bootstrap.
    """
    gaps = [fmean(ours[key]) - fmean(theirs[key]) for key in sorted(ours.keys() & theirs.keys())]
    assert gaps, "two runs without a shared speech are not compared"
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    ties = len(gaps) - wins - losses
    points = wins + ties / 2
    return {
        "speeches": len(gaps),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "share": points / len(gaps),
        "wilson95": stats.wilson(points, len(gaps)),
        "difference": fmean(gaps),
        "ci95": stats.bootstrap_mean(gaps, seed),
        "p": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
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


def _records(root: Path) -> list[Record]:
    """The evaluation records of a training run, the base model's first."""
    paths = (root / f"iteration-{iteration:03d}" / "evaluate.json" for iteration in itertools.count())
    return [_json(path) for path in itertools.takewhile(Path.exists, paths)]


def _run(root: Path, records: list[Record], judge: str, job: Record) -> Record:
    """A training run as `compare` returns it.

    The best point is the first with the highest mean reward among those without an alarm.
    """
    steps = [0]
    for iteration in range(1, len(records)):
        steps.append(steps[-1] + len(_json(root / f"iteration-{iteration:03d}" / "train.json")["steps"]))
    curve = [
        {
            "iteration": iteration,
            "step": step,
            "reward": record[judge]["reward"],
            "reward_ci95": record[judge]["ci95"],
            "win_rate": record[judge].get("win_rate_vs_base", 0.5),  # the base model against itself
            "win_rate_ci95": record[judge].get("win_rate_ci95", (0.5, 0.5)),
            "length_ratio": record["mean_tokens"] / records[0]["mean_tokens"],
        }
        for iteration, (step, record) in enumerate(zip(steps, records, strict=True))
    ]
    alarmed = [iteration for iteration, record in enumerate(records) if record.get("alarms")]
    summary = _json(root / "summary.json") if (root / "summary.json").exists() else {}
    return {
        "base": job["model"],
        "seed": job["seed"],
        "planned": job["iterations"],
        "finished": summary.get("iterations") == len(curve) - 1,
        "speeches": len(records[0][judge]["scores"]),
        "curve": curve,
        "alarmed": alarmed,
        "final": curve[-1],
        "best": max((curve[i] for i in range(len(curve)) if i not in alarmed), key=lambda point: point["reward"]),
    }


def _judge(records: Mapping[str, list[Record]]) -> str:
    """The best judge that all runs have."""
    for judge in JUDGES:
        if all(judge in own[0] for own in records.values()):
            return judge
    kinds = ", ".join(
        f"{name}: {' and '.join(judge for judge in JUDGES if judge in own[0])}" for name, own in records.items()
    )
    raise InputError(f"the runs have no kind of judge in common ({kinds}); compare those that have one")


def _shared_speeches(records: Mapping[str, list[Record]], judge: str) -> set[str]:
    """The held-out speeches that all runs answered."""
    keys = [set(own[0][judge]["scores"]) for own in records.values()]
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

    If the base model has the same scores as in an earlier run, the judge is the same, whatever its name.
    """
    models: dict[str, str] = {}
    for name, job in jobs.items():
        base = records[name][0][judge]["scores"]
        same_scores = (
            other for other in models if all(records[other][0][judge]["scores"][key] == base[key] for key in shared)
        )
        earlier = next(same_scores, None)
        models[name] = models[earlier] if earlier else job.get(JUDGES[judge]) or f"the judge of {name}"
    return models


def _differences(jobs: Mapping[str, Record]) -> list[Record]:
    """The settings in which runs differ, without those that affect only place and speed."""
    return [
        {"setting": key, "values": {name: job.get(key) for name, job in jobs.items()}}
        for key in dict.fromkeys(key for job in jobs.values() for key in job)
        if len({json.dumps(job.get(key)) for job in jobs.values()}) > 1 and (key == "iterations" or not may_change(key))
    ]


def _notes(runs: Mapping[str, Record], judge: str, judges: Mapping[str, str], shared: int) -> list[str]:
    """Caveats of a comparison."""
    notes = []
    for name, run in runs.items():
        done = len(run["curve"]) - 1
        if not run["finished"]:
            notes.append(f"{name} is not finished: it has {done} of {run['planned']} iterations.")
        elif done < run["planned"]:
            notes.append(f"{name} ended after {done} of {run['planned']} iterations.")
        if run["alarmed"]:
            iterations = ", ".join(map(str, run["alarmed"]))
            notes.append(f"{name} raised an alarm in iteration {iterations}, which cannot be its best.")
    if runs and judge == "reward":
        notes.append(
            "A run has no reward model that only judges, so the judge is the reward model that trains the policy; its "
            "scores are probably too high."
        )
    if len(set(judges.values())) > 1:
        kinds = [[name for name in judges if judges[name] == model] for model in dict.fromkeys(judges.values())]
        notes.append(
            f"The runs have different judges ({'; '.join(', '.join(kind) for kind in kinds)}): their rewards are on "
            "different scales, and only runs of one judge are compared in pairs."
        )
    if len({run["base"] for run in runs.values()}) > 1:
        notes.append("The runs have different base models; a win rate is against a run's own base model.")
    if any(run["speeches"] != shared for run in runs.values()):
        sizes = ", ".join(f"{name}: {run['speeches']}" for name, run in runs.items())
        notes.append(
            f"The runs have different held-out speeches ({sizes}; all share {shared}): a curve is of a run's own "
            "speeches, a comparison in pairs of those that both have."
        )
    return notes


def _response_notes(jobs: Mapping[str, Record]) -> list[str]:
    keys = [row["setting"] for row in _differences(jobs) if row["setting"].startswith(_RESPONSE_SETTINGS)]
    return [f"The runs answered the held-out speeches with different settings: {', '.join(keys)}."] if keys else []


def _policy_notes(policies: Sequence[Record]) -> list[str]:
    opponents = dict.fromkeys(row["opponent"] for row in policies)
    if len(opponents) < 2:
        return []
    return [f"The policies have different opponents ({', '.join(opponents)}): do not compare their win rates."]


def _policies(run: str, path: Path) -> list[Record]:
    """A row for each policy and setting of a run of ``evaluate-policy``; none for other runs."""
    if not path.exists():
        return []
    results = _json(path)
    try:
        return [
            {
                "run": run,
                "opponent": results["opponent"],
                "policy": policy["name"],
                "setting": setting,
                "overall": variant["overall"]["rate"],
                "wilson95": variant["overall"]["wilson95"],
                "topics": {topic: rates["rate"] for topic, rates in variant["topics"].items()},
            }
            for policy in results["policies"]
            for setting, variant in policy["variants"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what evaluate-policy writes ({error!r}); run the evaluation again") from None


def _job(path: Path) -> Record:
    """A run's settings as they were written, perhaps by an older version."""
    job = job_file.read_yaml(path, "job file")
    if not isinstance(job, dict) or not {"model", "seed", "iterations"} <= job.keys():
        raise InputError(f"job file {path} has no model, seed and iterations; take the one that the run wrote")
    return job


def _json(path: Path) -> Any:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist, but later files do; copy the run with all its files") from None
    except ValueError as error:  # invalid JSON or UTF-8
        raise InputError(f"{path} is invalid JSON: {error}; copy it from the run again") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no JSON object; copy it from the run again")
    return record
