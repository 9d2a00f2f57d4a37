"""Training runs side by side: how good each checkpoint is by a held-out judge (paper §4.3, figure 4).

The judge is the reward model that took no part in training. All runs are judged on the held-out speeches they share.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import binomtest

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.resume import may_change
from psyco_ray.evaluate import stats

Record = dict[str, Any]
Scores = dict[str, list[float]]  # of the responses to a held-out speech, by its id

JUDGES = {"heldout": "scorers.heldout_model", "reward": "scorers.reward_model"}
"""Reward models that may judge, the better one first, and the setting that names each."""

_FIRST = "iteration-000/evaluate.json"
_EVALUATED = "evaluation.json"
_ANSWERED = ("evaluation.responses", "evaluation.temperature", "sampling.max_tokens", "prompts.")


def compare(directories: Sequence[Path], seed: int = 0) -> dict[str, Any]:
    """Compare training runs, and gather evaluations of policies, by what their directories hold.

    Args:
        directories: of training runs, finished or not, and of runs of ``evaluate-policy``.
        seed: of the bootstrap.

    Returns:
        `runs`: by name `base`, `seed`, `planned` iterations, whether it is `finished`, `speeches` held out, its `curve`
        (a point for each judged checkpoint), the iterations `alarmed`, and the `final` and the `best` point. `judge`:
        heldout, or reward where a run has no other. `shared_speeches`: held-out speeches of all runs. `differences`:
        rows of `setting` and the `values` by run. `notes`: what a reader has to know. `pairs`: rows of two runs `a` and
        `b` with their `final` and `best` checkpoints as `paired` compares them. `policies`: rows of `run`, `opponent`,
        `policy`, `setting` (free or matched length), `overall`, `wilson95` and the rates by `topics`.

    Raises:
        InputError: a directory holds neither, or is given twice, or the runs share no held-out speech or no judge.
    """
    named = _names(directories)
    for root in named.values():
        if not (root / _FIRST).exists() and not (root / _EVALUATED).exists():
            raise InputError(
                f"{root} has neither {_FIRST} of a training run nor {_EVALUATED} of evaluate-policy; name the "
                "directory of a run that has evaluated its base model"
            )
    trained = {name: root for name, root in named.items() if (root / _FIRST).exists()}
    records = {name: _records(root) for name, root in trained.items()}
    judge = _judge(records)
    jobs = {name: job_file.flatten(_job(root / "job.yaml")) for name, root in trained.items()}
    runs = {name: _run(root, records[name], judge, jobs[name]) for name, root in trained.items()}
    shared = _shared(records, judge)
    judges = _judges(records, jobs, judge, shared)

    def scores(name: str, which: str) -> Scores:
        return records[name][runs[name][which]["iteration"]][judge]["scores"]

    policies = [row for name, root in named.items() for row in _policies(name, root / _EVALUATED)]
    return {
        "seed": seed,
        "judge": judge,
        "runs": runs,
        "shared_speeches": len(shared),
        "differences": _differences(jobs),
        "notes": [*_notes(runs, judge, judges, len(shared)), *_notes_on_answers(jobs), *_notes_on_policies(policies)],
        "pairs": [
            {"a": a, "b": b, **{of: paired(scores(a, of), scores(b, of), seed) for of in ("final", "best")}}
            for a, b in itertools.combinations(runs, 2)
            if judges[a] == judges[b]
        ],
        "policies": policies,
    }


def paired(ours: Scores, theirs: Scores, seed: int = 0) -> dict[str, Any]:
    """Two checkpoints on the speeches that both answered, by the mean score of each one's responses.

    Args:
        ours: scores by speech, of one judge.
        theirs: the other's, of the same judge.
        seed: of the bootstrap.

    Returns:
        `speeches`, on how many of them ours is above (`wins`), equal (`ties`) or below (`losses`), the `share` of wins
        with its `wilson95` (a tie is half a win), the mean `difference` of the scores with its bootstrap `ci95`, and
        `p` of the exact two-sided sign test, which leaves ties out.
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
    """The directories, each by as much of the end of its path as tells it from the others."""
    roots = [directory.resolve() for directory in directories]
    for root in roots:
        if roots.count(root) > 1:
            raise InputError(f"{root} is given twice; name every run once")
    depth = 1
    while len({root.parts[-depth:] for root in roots}) < len(roots):
        depth += 1
    return {"/".join(root.parts[-depth:]): root for root in roots}


def _records(root: Path) -> list[Record]:
    """What a training run has written of its evaluations, the base model's first."""
    paths = (root / f"iteration-{iteration:03d}" / "evaluate.json" for iteration in itertools.count())
    return [_json(path) for path in itertools.takewhile(Path.exists, paths)]


def _run(root: Path, records: list[Record], judge: str, job: Record) -> Record:
    """A training run as `compare` returns it.

    The best point has the highest mean reward of those that raised no alarm, and is the first of them.
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
        if all(judge in of[0] for of in records.values()):
            return judge
    kinds = ", ".join(
        f"{name}: {' and '.join(judge for judge in JUDGES if judge in of[0])}" for name, of in records.items()
    )
    raise InputError(f"the runs have no kind of judge in common ({kinds}); compare those that have one")


def _shared(records: Mapping[str, list[Record]], judge: str) -> set[str]:
    """The held-out speeches that all runs answered."""
    keys = [set(of[0][judge]["scores"]) for of in records.values()]
    shared = set.intersection(*keys) if keys else set()
    if keys and not shared:
        raise InputError(
            f"the runs {', '.join(records)} share no held-out speech, so nothing compares them; compare runs of the "
            "same data.speeches and data.dev_share"
        )
    return shared


def _judges(
    records: Mapping[str, list[Record]], jobs: Mapping[str, Record], judge: str, shared: set[str]
) -> dict[str, str]:
    """Which model judged each run: the one that its job names, else one of its own.

    Where the base model has the same scores as in an earlier run, the judge is the same whatever its name.
    """
    found: dict[str, str] = {}
    for name, job in jobs.items():
        base = records[name][0][judge]["scores"]
        alike = (
            other for other in found if all(records[other][0][judge]["scores"][key] == base[key] for key in shared)
        )
        twin = next(alike, None)
        found[name] = found[twin] if twin else job.get(JUDGES[judge]) or f"the own judge of {name}"
    return found


def _differences(jobs: Mapping[str, Record]) -> list[Record]:
    """The settings in which runs differ, less those that say only where and how fast."""
    return [
        {"setting": key, "values": {name: job.get(key) for name, job in jobs.items()}}
        for key in dict.fromkeys(key for job in jobs.values() for key in job)
        if len({json.dumps(job.get(key)) for job in jobs.values()}) > 1 and (key == "iterations" or not may_change(key))
    ]


def _notes(runs: Mapping[str, Record], judge: str, judges: Mapping[str, str], shared: int) -> list[str]:
    """What differs between runs that a comparison has to be read with."""
    found = []
    for name, run in runs.items():
        done = len(run["curve"]) - 1
        if not run["finished"]:
            found.append(f"{name} is not finished: {done} of {run['planned']} iterations are there.")
        elif done < run["planned"]:
            found.append(f"{name} ended after {done} of {run['planned']} iterations.")
        if run["alarmed"]:
            iterations = ", ".join(map(str, run["alarmed"]))
            found.append(f"{name} raised an alarm in iteration {iterations}, which cannot be its best.")
    if runs and judge == "reward":
        found.append(
            "Not every run has a reward model that only judges, so the judge is the one that trains the policy: expect "
            "it to flatter."
        )
    if len(set(judges.values())) > 1:
        kinds = [[name for name in judges if judges[name] == one] for one in dict.fromkeys(judges.values())]
        found.append(
            f"The runs have different judges ({'; '.join(', '.join(kind) for kind in kinds)}): their rewards are on "
            "different scales, and only runs of one judge are compared in pairs."
        )
    if len({run["base"] for run in runs.values()}) > 1:
        found.append("The runs have different base models, and a win rate is against a run's own.")
    if any(run["speeches"] != shared for run in runs.values()):
        sizes = ", ".join(f"{name}: {run['speeches']}" for name, run in runs.items())
        found.append(
            f"The runs have different held-out speeches ({sizes}; all share {shared}): a curve is of a run's own "
            "speeches, a comparison in pairs of those that both have."
        )
    return found


def _notes_on_answers(jobs: Mapping[str, Record]) -> list[str]:
    keys = [row["setting"] for row in _differences(jobs) if row["setting"].startswith(_ANSWERED)]
    return [f"The runs answered the held-out speeches with different settings: {', '.join(keys)}."] if keys else []


def _notes_on_policies(policies: Sequence[Record]) -> list[str]:
    opponents = dict.fromkeys(row["opponent"] for row in policies)
    if len(opponents) < 2:
        return []
    return [f"The policies have different opponents ({', '.join(opponents)}): do not compare their win rates."]


def _policies(run: str, path: Path) -> list[Record]:
    """A row for each policy and setting that a run of ``evaluate-policy`` judged; none if it is no such run."""
    if not path.exists():
        return []
    found = _json(path)
    try:
        return [
            {
                "run": run,
                "opponent": found["opponent"],
                "policy": policy["name"],
                "setting": setting,
                "overall": variant["overall"]["rate"],
                "wilson95": variant["overall"]["wilson95"],
                "topics": {topic: of["rate"] for topic, of in variant["topics"].items()},
            }
            for policy in found["policies"]
            for setting, variant in policy["variants"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what evaluate-policy writes ({error!r}); run the evaluation again") from None


def _job(path: Path) -> Record:
    """A run's settings as they were written, which an older version may have done."""
    found = job_file.read_yaml(path, "job file")
    if not isinstance(found, dict) or not {"model", "seed", "iterations"} <= found.keys():
        raise InputError(f"job file {path} has no model, seed and iterations; take the one that the run wrote")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist, but what came after it does; copy the run with all its files"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: {error}; take the file that the run wrote") from None
