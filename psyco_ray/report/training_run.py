"""One self-contained HTML page per run: no script, no font, no image from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.training import Job
from psyco_ray.report import figures
from psyco_ray.report.render import MODEL_TITLES
from psyco_ray.run.ledger import Ledger, stage

SAMPLES_SHOWN = 8
TITLES = {"policy": "Iterative DPO", "base": "One round of online DPO", "file": "Offline DPO"}


def write(job: Job, ledger: Ledger, summary: dict[str, Any]) -> None:
    """Write ``report.html`` of a finished run.

    Args:
        job: the run's job.
        ledger: its directory.
        summary: what ``summary.json`` holds.
    """
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (files("psyco_ray") / "report" / "page.html").read_text(encoding="utf-8")
    )
    evaluations = [ledger.record(f"iteration-{i:03d}/evaluate") or {} for i in range(summary["iterations"] + 1)]
    page = template.render(
        summary=summary,
        judged=summary["heldout"] or summary["train"],
        title=TITLES[summary["pairs_from"]],
        judge_is_heldout=summary["heldout"] is not None,
        reward_curve=_reward_curve(evaluations),
        loss_curve=_loss_curve(ledger, summary["iterations"]),
        stage_times=_stage_times(summary["per_iteration"]),
        timeline=figures.timeline(_timelines(ledger, summary["iterations"])),
        samples=_side_by_side(job, ledger, evaluations),
        job=job_file.dump(job),
    )
    ledger.write_text("report.html", page)


def _reward_curve(evaluations: list[dict[str, Any]]) -> str:
    """Mean reward of held-out speeches by iteration, with intervals, for every reward model."""
    figure, axes = figures.new()
    for model, title in MODEL_TITLES.items():
        if model not in evaluations[0]:
            continue
        means = np.array([e[model]["reward"] for e in evaluations])
        bounds = np.array([e[model]["ci95"] for e in evaluations])
        axes.errorbar(
            range(len(means)), means, yerr=np.abs(bounds.T - means), marker="o", capsize=3, label=title, linewidth=1.5
        )
    axes.set_xlabel("iteration (0: base model)")
    axes.set_ylabel("mean reward, held-out speeches")
    axes.set_xticks(range(len(evaluations)))
    axes.legend(frameon=False, fontsize=8)
    return figures.svg(figure)


def _loss_curve(ledger: Ledger, iterations: int) -> str:
    """DPO loss and accuracy by optimizer step, over all iterations."""
    steps: list[dict[str, float]] = []
    figure, axes = figures.new()
    for iteration in range(1, iterations + 1):
        record = ledger.record(f"iteration-{iteration:03d}/train") or {"steps": []}
        axes.axvline(len(steps) + 0.5, color="#cccccc", linewidth=0.8)
        steps += record["steps"]
    axes.plot(range(1, len(steps) + 1), [s["loss"] for s in steps], label="DPO loss (nats)", linewidth=1.5)
    axes.plot(range(1, len(steps) + 1), [s["accuracy"] for s in steps], label="accuracy", linewidth=1.0, alpha=0.7)
    axes.set_xlabel("optimizer step (lines: a new iteration)")
    axes.legend(frameon=False, fontsize=8)
    return figures.svg(figure)


def _stage_times(per_iteration: list[dict[str, float]]) -> str:
    """Seconds of each stage of each iteration, stacked."""
    figure, axes = figures.new()
    left = np.zeros(len(per_iteration))
    names = [f"iteration {row['iteration']:g}" for row in per_iteration]
    for name in ("sample", "train", "save", "sync", "evaluate"):
        seconds = np.array([row[f"{name}_s"] for row in per_iteration])
        axes.barh(names, seconds, left=left, label=name)
        left += seconds
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.legend(frameon=False, fontsize=8, ncol=5, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    return figures.svg(figure)


def _timelines(ledger: Ledger, iterations: int) -> dict[str, list[dict[str, Any]]]:
    """The parts of every iteration's timeline, by the iteration's name; those of an earlier version have none."""
    found = {k: ledger.record(stage(k, "timeline")) for k in range(iterations + 1)}
    return {f"iteration {k}" if k else "base model": of["parts"] for k, of in found.items() if of is not None}


def _side_by_side(job: Job, ledger: Ledger, evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of the base model and of the policy to held-out speeches, drawn by the run's seed, not picked."""
    speeches = {
        row["speech_id"]: row
        for row in pq.read_table(ledger.path("speeches.parquet"), columns=["speech_id", "speech", "topic"]).to_pylist()
    }
    before, after = (ledger.responses(stage(of, "dev")) for of in (0, len(evaluations) - 1))
    judge = "heldout" if "heldout" in evaluations[0] else "reward"
    keys = sorted(before.keys() & after.keys())  # one or the other may have been set aside
    chosen = np.random.default_rng(job.seed).permutation(len(keys))[:SAMPLES_SHOWN]
    return [
        {
            "topic": speeches[key]["topic"],
            "speech": speeches[key]["speech"],
            "before": before[key][0],
            "after": after[key][0],
            "score_before": evaluations[0][judge]["scores"][key][0],
            "score_after": evaluations[-1][judge]["scores"][key][0],
        }
        for key in (keys[i] for i in sorted(chosen))
    ]
