"""The numbers of a finished run: ``summary.json``, the metrics of an iteration."""

from __future__ import annotations

import time
from typing import Any

from psyco_ray.config import Job
from psyco_ray.ledger import Ledger, versions

MODEL_TITLES = {"reward": "reward model that trains", "heldout": "reward model that only judges"}


def iteration_metrics(ledger: Ledger, iteration: int) -> dict[str, float]:
    """What is logged of an iteration: rewards, losses, lengths, seconds of each stage, tokens a second."""
    stages = {name: _record(ledger, iteration, name) for name in ("pairs", "train", "evaluate")}
    pairs, train, evaluate = stages.values()
    sync = _record(ledger, iteration, "sync")
    last = train["steps"][-1]
    found = {
        "train_reward": pairs["reward"],
        "pairs": pairs["rows"],
        "mean_tokens": pairs["mean_tokens"],
        "finished_share": pairs["finished_share"],
        "loss": sum(step["loss"] for step in train["steps"]) / len(train["steps"]),
        "last_margin": last["margin"],
        "last_accuracy": last["accuracy"],
        "dev_tokens": evaluate["mean_tokens"],
        "sample_s": pairs["seconds"],
        "train_s": train["train_s"],
        "save_s": train["save_s"],
        "sync_s": sync["export_s"] + sync["load_s"],
        "evaluate_s": evaluate["seconds"],
        "rollout_tokens_per_s": pairs["tokens"] / pairs["seconds"],
        "train_tokens_per_s": train["tokens"] / train["train_s"],
    }
    for model in ("reward", "heldout"):
        if model in evaluate:
            found[f"dev_{model}"] = evaluate[model]["reward"]
            found[f"dev_{model}_win_rate"] = evaluate[model]["win_rate_vs_base"]
    return found


def write(job: Job, ledger: Ledger) -> dict[str, Any]:
    """Write and return ``summary.json``."""
    before, after = _record(ledger, 0, "evaluate"), _record(ledger, job.iterations, "evaluate")
    found: dict[str, Any] = {
        "model": job.model,
        "seed": job.seed,
        "iterations": job.iterations,
        "checkpoint": str(ledger.root / f"iteration-{job.iterations:03d}" / "checkpoint"),
        "train": _comparison(before, after, "reward"),
        "heldout": _comparison(before, after, "heldout") if "heldout" in after else None,
        "length_ratio": after["mean_tokens"] / before["mean_tokens"],
        "per_iteration": [
            {"iteration": iteration, **iteration_metrics(ledger, iteration)}
            for iteration in range(1, job.iterations + 1)
        ],
        "reward_models": {
            name: {key: record[key] for key in ("pairs", "heldout_pairs", "accuracy", "accuracy_ci95", "seconds")}
            for name in ("reward-a", "reward-b")
            if (record := ledger.record(name)) is not None
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
    }
    ledger.write_json("summary.json", found)
    return found


def _comparison(before: dict[str, Any], after: dict[str, Any], model: str) -> dict[str, Any]:
    """Base model and final policy on the held-out speeches, judged by one reward model."""
    return {
        "speeches": after["speeches"],
        "reward_before": before[model]["reward"],
        "reward_before_ci95": before[model]["ci95"],
        "reward_after": after[model]["reward"],
        "reward_after_ci95": after[model]["ci95"],
        "win_rate_vs_base": after[model]["win_rate_vs_base"],
        "ci95": after[model]["win_rate_ci95"],
    }


def _record(ledger: Ledger, iteration: int, name: str) -> dict[str, Any]:
    found = ledger.record(f"iteration-{iteration:03d}/{name}")
    assert found is not None, f"iteration {iteration} has no {name} record"
    return found
