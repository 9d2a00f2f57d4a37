"""What a reader of a comparison of runs must know: caveats, as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from psyco_ray.evaluate.run_files import Record
from psyco_ray.evaluate.stats import MIN_FINISHED_SHARE


def of_runs(runs: Mapping[str, Record], judge: str, judges: Mapping[str, str], shared: int) -> list[str]:
    """Notes on training runs.

    Args:
        runs: as `compare_runs.compare` returns them.
        judge: the kind of judge.
        judges: the model that judges each run.
        shared: number of held-out speeches of all runs.
    """
    notes = []
    for name, run in runs.items():
        done = len(run["curve"]) - 1
        if not run["finished"]:
            notes.append(
                f"{name} is not finished: it has {done} of {run['planned']} iterations and has not chosen its best."
            )
        elif done < run["planned"]:
            notes.append(f"{name} ended after {done} of {run['planned']} iterations.")
        if run["alarmed"]:
            iterations = ", ".join(map(str, run["alarmed"]))
            chosen = run["best"] and run["best"]["iteration"] in run["alarmed"]
            notes.append(
                f"{name} raised an alarm in iteration {iterations}{', its best one included' if chosen else ''}."
            )
        notes += _unfinished(f"{name}, iteration {run['final']['iteration']}", run["final"]["finished_share"])
    if runs and judge == "reward":
        notes.append(
            "A run has no reward model that only judges, so the judge is the reward model that trains the policy; its "
            "scores are probably too high."
        )
    measures = {run["chosen_by"] for run in runs.values() if run["chosen_by"]}
    if len(measures) > 1:
        by = "; ".join(f"{name}: {run['chosen_by']}" for name, run in runs.items() if run["chosen_by"])
        notes.append(f"The runs chose their best checkpoints by different measures ({by}).")
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


def of_policies(policies: Sequence[Record]) -> list[str]:
    """Notes on evaluations of policies."""
    notes = []
    for row in policies:
        notes += _unfinished(f"{row['policy']} of {row['run']}, {row['setting']}", row["finished_share"])
    opponents = dict.fromkeys(row["opponent"] for row in policies)
    if len(opponents) > 1:
        notes.append(f"The policies have different opponents ({', '.join(opponents)}): do not compare their win rates.")
    return notes


def of_other_checkpoints(policies: Sequence[Record], runs: Mapping[Path, tuple[str, Record]]) -> list[str]:
    """Notes on policies that are another checkpoint than the one that their run has chosen.

    Args:
        policies: rows of `compare_runs.compare`.
        runs: name and facts of the compared training runs by their directories.
    """
    notes = []
    for row in policies:
        if row["trained_in"] is None or row["series"]:
            continue
        name, run = runs.get(Path(row["trained_in"]).expanduser().resolve(), ("", None))
        if run and run["best"] and run["best"]["iteration"] != row["iteration"]:
            notes.append(
                f"{row['policy']} of {row['run']} is iteration {row['iteration']} of {name}, whose best is iteration "
                f"{run['best']['iteration']}."
            )
    return list(dict.fromkeys(notes))


def _unfinished(name: str, share: float | None) -> list[str]:
    """A warning where too many answers were cut or are empty; none where the share is not known."""
    if share is None or share >= MIN_FINISHED_SHARE:
        return []
    return [f"Warning: {name}: only {share:.0%} of the answers are finished; the others were cut or are missing."]
