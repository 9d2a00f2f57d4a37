"""The page of a finished training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psyco_ray.config import job_file
from psyco_ray.config.contexts import Context
from psyco_ray.config.training import Job
from psyco_ray.report import figures
from psyco_ray.report.render import MODEL_TITLES, judge_note, render
from psyco_ray.run import records
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.simulate.dialogue import Answer, Dialogue, Reply

SAMPLES_SHOWN = 8
DIALOGUES_SHOWN = 6
TITLES = {"policy": "Iterative DPO", "base": "One round of online DPO", "file": "Offline DPO"}
"""Training methods by `pairs_from` of the job."""

_STAGES = ("sample", "train", "save", "sync", "evaluate")

_CONVERSATION = {"repetition": "Repeats", "question_only": "Asks", "sycophancy": "Agrees"}  # monitors' titles

Evaluations = Sequence[Mapping[str, Any]]  # records of the stage evaluate, the base model's first


def write_report(job: Job, ledger: Ledger, summary: Mapping[str, Any]) -> None:
    """Write ``report.html`` of a finished run.

    Args:
        job: the run's job.
        ledger: its directory.
        summary: content of ``summary.json``.
    """
    iterations = summary["iterations"]
    evaluations = [ledger.record(stage(k, "evaluate")) or {} for k in range(iterations + 1)]
    page = render(
        "training_run.html",
        {"summary": summary},
        judged=summary["heldout"] or summary["train"],
        judge_note=judge_note(summary["heldout_training"]),
        method=TITLES[summary["pairs_from"]],
        responses=job.evaluation.responses,
        temperature=f"{job.evaluation.temperature:g}",
        alarms_veto=job.guards.roll_back,
        conversation_monitors={
            name: title
            for name, title in _CONVERSATION.items()
            if any(name in evaluation.get("monitors", {}) for evaluation in evaluations)
        },
        models={key: title for key, title in MODEL_TITLES.items() if key in evaluations[0]},
        evaluations=evaluations,
        reward_figure=_reward_figure(evaluations),
        loss_figure=_loss_figure(ledger, iterations),
        time_figure=_time_figure(summary["per_iteration"]),
        timeline=figures.timeline(_timelines(ledger, iterations)),
        samples=_samples(job, ledger, evaluations),
        dialogues=[] if job.simulate is None else _dialogues(job, ledger, summary),
        client=None if job.simulate is None else job.simulate.client.name,
        job=job_file.dump(job),
    )
    ledger.write_text("report.html", page)


def _reward_figure(evaluations: Evaluations) -> str:
    """Mean reward of held-out responses by iteration, with intervals, a curve for each reward model."""
    figure, axes = figures.new()
    descriptions = []
    for (model, title), color, marker in zip(MODEL_TITLES.items(), figures.SERIES, "os", strict=False):
        if model not in evaluations[0]:
            continue
        means = np.array([evaluation[model]["reward"] for evaluation in evaluations])
        bounds = np.array([evaluation[model]["ci95"] for evaluation in evaluations])
        errors = np.abs(bounds.T - means)
        axes.errorbar(
            range(len(means)), means, yerr=errors, color=color, marker=marker, markersize=4, capsize=3, label=title
        )
        descriptions.append(f"{title}: from {means[0]:.3f} to {means[-1]:.3f} after {len(means) - 1} iterations")
    axes.set_xlabel("iteration (0: base model)")
    axes.set_ylabel("mean reward (model's own scale)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figures.legend(figure, 1)
    return figures.svg(figure, f"Mean reward of held-out responses by iteration. {'; '.join(descriptions)}.")


def _loss_figure(ledger: Ledger, iterations: int) -> str:
    """DPO loss and accuracy by optimizer step over all iterations."""
    steps: list[Mapping[str, float]] = []
    figure, axes = figures.new()
    for iteration in range(1, iterations + 1):
        if iteration > 1:
            axes.axvline(len(steps) + 0.5, color=figures.GRID, linewidth=0.8)
        record = ledger.record(stage(iteration, "train"))
        steps += record["steps"] if record else []
    numbers = range(1, len(steps) + 1)
    for key, label, color, style in (
        ("loss", "DPO loss (nats)", figures.SERIES[0], "-"),
        ("accuracy", "accuracy (share of pairs)", figures.SERIES[1], "--"),
    ):
        axes.plot(numbers, [step[key] for step in steps], color=color, linestyle=style, linewidth=1.4, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("optimizer step (vertical lines: next iteration)")
    axes.set_ylabel("nats; share of pairs")
    figures.legend(figure, 1)
    first, last = steps[0], steps[-1]
    description = (
        f"DPO loss and accuracy over {len(steps)} steps. Loss: from {first['loss']:.3f} to {last['loss']:.3f} "
        f"nats; accuracy: from {first['accuracy']:.2f} to {last['accuracy']:.2f}."
    )
    return figures.svg(figure, description)


def _time_figure(per_iteration: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of each stage of each iteration, stacked."""
    figure, axes = figures.new(height=1.1 + 0.32 * len(per_iteration))
    left = np.zeros(len(per_iteration))
    places = range(len(per_iteration))
    for name in _STAGES:
        seconds = np.array([row[f"{name}_s"] for row in per_iteration])
        axes.barh(places, seconds, left=left, height=0.7, color=figures.STAGE_COLORS[name], label=name)
        left += seconds
    axes.set_yticks(places, [f"{row['iteration']:g}" for row in per_iteration])
    axes.invert_yaxis()
    axes.set_ylabel("iteration")
    axes.set_xlabel("time (s)")
    figures.legend(figure, 3)
    total = {name: sum(row[f"{name}_s"] for row in per_iteration) for name in _STAGES}
    described = ", ".join(f"{name} {seconds:.0f}" for name, seconds in total.items())
    return figures.svg(figure, f"Time of each stage by iteration. Seconds over all iterations: {described}.")


def _timelines(ledger: Ledger, iterations: int) -> dict[str, list[dict[str, Any]]]:
    """The parts of every recorded timeline by the iteration's title; runs of early versions have none."""
    records = {k: ledger.record(stage(k, "timeline")) for k in range(iterations + 1)}
    return {f"iteration {k}" if k else "base model": record["parts"] for k, record in records.items() if record}


def _samples(job: Job, ledger: Ledger, evaluations: Evaluations) -> list[dict[str, Any]]:
    """Responses of the base model and of the policy to held-out speeches that the run's seed draws."""
    table = records.read_table(ledger.path("speeches.parquet"), columns=["speech_id", "speech", "topic"])
    speeches = {row["speech_id"]: row for row in table.to_pylist()}
    before, after = (ledger.responses(stage(k, "dev")) for k in (0, len(evaluations) - 1))
    judge = "heldout" if "heldout" in evaluations[0] else "reward"
    # a quarantined speech lacks a response, and one that the file no longer has is not shown
    keys = sorted(before.keys() & after.keys() & speeches.keys())
    drawn = np.random.default_rng(job.seed).permutation(len(keys))[:SAMPLES_SHOWN]
    return [
        {
            "topic": speeches[key]["topic"],
            "speech": Context.of(speeches[key]["speech"]).transcript,
            "before": before[key][0],
            "after": after[key][0],
            "reward_before": evaluations[0][judge]["scores"][key][0],
            "reward_after": evaluations[-1][judge]["scores"][key][0],
        }
        for key in (keys[i] for i in sorted(drawn))
    ]


def _dialogues(job: Job, ledger: Ledger, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Held-out dialogues of the base model and of the best policy from one beginning, which the run's seed draws."""
    best = summary["best"]["iteration"] or summary["iterations"]
    before, after = (_dialogues_of(ledger, iteration) for iteration in (0, best))
    topics = records.read_table(ledger.path("speeches.parquet"), columns=["speech_id", "topic"]).to_pylist()
    topic = {row["speech_id"]: row["topic"] for row in topics}
    keys = sorted(before.keys() & after.keys() & topic.keys())
    drawn = np.random.default_rng(job.seed).permutation(len(keys))[:DIALOGUES_SHOWN]
    return [
        {
            "topic": topic[key],
            "opening": Context.of(before[key]["speech"]).transcript,
            "iteration": best,
            "before": _panel(before[key]),
            "after": _panel(after[key]),
        }
        for key in (keys[i] for i in sorted(drawn))
    ]


def _dialogues_of(ledger: Ledger, iteration: int) -> dict[str, dict[str, Any]]:
    """The first held-out dialogue from each context in an iteration."""
    rows = records.read_table(ledger.path(stage(iteration, "dev-dialogues.parquet"))).to_pylist()
    return {row["speech_id"]: row for row in rows if row["index"] == 0}


def _panel(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was said in a dialogue after its beginning, and its rewards by turn."""
    ended = len(row["replies"]) if row["left"] else None
    replies = [Reply(text, turn == ended) for turn, text in enumerate(row["replies"], start=1)]
    answers = [Answer(text) for text in row["responses"]]
    dialogue = Dialogue(row["speech_id"], Context.of(row["speech"]), answers=answers, replies=replies)
    failed = f"\n\nThe dialogue fails: {row['failed']}." if row["failed"] is not None else ""
    rewards = row["heldout"] if row["heldout"][0] is not None else row["reward"]
    return {"text": dialogue.transcript() + failed, "rewards": rewards}
