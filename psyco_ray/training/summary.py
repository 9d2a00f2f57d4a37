"""The numbers of a finished run: ``summary.json`` and the metrics of an iteration."""

from __future__ import annotations

import time
from typing import Any

from psyco_ray.config.training import Job
from psyco_ray.report.model_cards import policy_card
from psyco_ray.report.render import MODEL_TITLES
from psyco_ray.run import storage
from psyco_ray.run.directory import versions
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.training.run_state import RunState

METHODS = {"policy": "dpo-iter", "base": "online", "file": "dpo"}
"""Names of the training methods, by `pairs_from` of the job."""


def iteration_metrics(ledger: Ledger, iteration: int) -> dict[str, float]:
    """The metrics of an iteration: rewards, losses, lengths, seconds of each stage, tokens per second."""
    pairs, train, sync, evaluate = (_record(ledger, iteration, name) for name in ("pairs", "train", "sync", "evaluate"))
    last_step = train["steps"][-1]
    metrics = {
        **({} if pairs["reward"] is None else {"train_reward": pairs["reward"]}),
        "pairs": pairs["rows"],
        "mean_tokens": pairs["mean_tokens"],
        "finished_share": pairs["finished_share"],
        "loss": sum(step["loss"] for step in train["steps"]) / len(train["steps"]),
        "last_margin": last_step["margin"],
        "last_accuracy": last_step["accuracy"],
        "dev_tokens": evaluate["mean_tokens"],
        "dev_finished_share": evaluate["finished_share"],
        "sample_s": pairs["seconds"],
        "train_s": train["train_s"],
        "save_s": train["save_s"],
        "sync_s": sync["export_s"] + sync["load_s"],
        "evaluate_s": evaluate["seconds"],
        "rollout_tokens_per_s": pairs["tokens"] / pairs["seconds"],
        "train_tokens_per_s": train["tokens"] / train["train_s"],
        "groups_per_s": pairs["speeches"] / pairs["seconds"],
        "sync_bytes": sync["bytes"],
    }
    if train.get("mfu") is not None:
        metrics["mfu"] = train["mfu"]
    metrics |= evaluate["monitors"]
    if "judge" in evaluate:
        metrics["dev_judge_win_rate"] = evaluate["judge"]["win_rate_vs_base"]
    for model in MODEL_TITLES:
        if model in evaluate:
            metrics[f"dev_{model}"] = evaluate[model]["reward"]
            metrics[f"dev_{model}_win_rate"] = evaluate[model]["win_rate_vs_base"]
            if "ranked" in evaluate:
                metrics[f"dev_{model}_ranked"] = evaluate["ranked"][model]["reward"]
    return metrics


def write_summary(job: Job, ledger: Ledger, run_state: RunState) -> dict[str, Any]:
    """Write ``summary.json``, and the model card of the best checkpoint next to its weights.

    Returns:
        The content of ``summary.json``. `best` names the checkpoint; `train`, `heldout`, `judge`, `length_ratio`,
        `finished_share`, `distinct_ratio` and `kl` (nats per response; None without the base model as reference)
        compare the policy of the last iteration with the base model on the held-out speeches; `turns`, in a job with
        simulated clients, does so at each turn of the dialogues.
    """
    last = run_state.last_evaluated()
    assert last, "a finished run has trained"
    best = run_state.best(last, kept=True)
    before, after = (_record(ledger, iteration, "evaluate") for iteration in (0, last))
    steps = [len(_record(ledger, k, "train")["steps"]) for k in range(1, last + 1)]
    summary: dict[str, Any] = {
        "model": job.model,
        "seed": job.seed,
        "pairs_from": job.pairs_from,
        "iterations": last,
        "steps": sum(steps),
        "best": {
            "iteration": best,
            "name": f"iteration {best}" if best else "the base model",
            "by": run_state.measure,
            "value": run_state.score_of(best, _record(ledger, best, "evaluate")),
            "steps": sum(steps[:best]),
            "alarms": _record(ledger, best, "evaluate").get("alarms", []),
        },
        "checkpoint": storage.join(ledger.run_dir, stage(best, "checkpoint")) if best else job.model,
        "train": _comparison(before, after, "reward"),
        "heldout": _comparison(before, after, "heldout"),
        "judge": _judged(job, after),
        "heldout_training": ledger.record("judge-pairs") or None,
        **_turns(job, before, after),
        "length_ratio": after["mean_tokens"] / before["mean_tokens"],
        "finished_share": {"base": before["finished_share"], "policy": after["finished_share"]},
        "distinct_ratio": after["distinct_2"] / before["distinct_2"],
        "kl": after.get("kl"),
        "per_iteration": [
            {"iteration": k, **iteration_metrics(ledger, k), "alarms": _record(ledger, k, "evaluate")["alarms"]}
            for k in range(1, last + 1)
        ],
        "reward_models": {
            name: {key: record[key] for key in ("pairs", "heldout_pairs", "accuracy", "accuracy_ci95", "seconds")}
            for name in ("reward-a", "reward-b")
            if (record := ledger.record(name)) is not None
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
    }
    ledger.write_json("summary.json", summary)
    if best:
        ledger.write_text(f"{stage(best, 'checkpoint')}/README.md", _card(job, ledger, summary))
    return summary


def headline(summary: dict[str, Any]) -> str:
    """The figures that a finished run prints: the last policy against the base model, and the best checkpoint."""
    judged, best = summary["heldout"] or summary["train"], summary["best"]
    low, high = judged["ci95"]
    lines = [
        f"iteration {summary['iterations']} on {judged['speeches']} held-out speeches: "
        f"reward {judged['reward_before']:.3f} before, {judged['reward_after']:.3f} after; its answer beats the base "
        f"model's in {judged['win_rate_vs_base']:.0%} of them (95 % interval {low:.0%} to {high:.0%})"
    ]
    if summary["judge"] is not None:
        low, high = summary["judge"]["win_rate_ci95"]
        rate = summary["judge"]["win_rate_vs_base"]
        lines.append(
            f"{summary['judge']['model']} prefers its answer in {rate:.0%} of {summary['judge']['speeches']} speeches "
            f"(95 % interval {low:.0%} to {high:.0%})"
        )
    lines += [_turn_line(turn) for turn in summary.get("turns", ())[1:]]
    finished = summary["finished_share"]
    lines.append(
        f"its answers: {finished['policy']:.0%} finished (base model {finished['base']:.0%}), "
        f"{summary['length_ratio']:.2f} times the tokens, {summary['distinct_ratio']:.2f} times the distinct word pairs"
        + ("" if summary["kl"] is None else f", {summary['kl']:.1f} nats a response away from the base model")
    )
    alarms = f"; its alarms: {'; '.join(best['alarms'])}" if best["alarms"] else ""
    lines.append(f"best: {best['name']}, by {best['by']} ({best['value']:.3f}){alarms}")
    lines.append(f"policy: {summary['checkpoint']}")
    return "\n".join(lines)


def _card(job: Job, ledger: Ledger, summary: dict[str, Any]) -> str:
    """The model card of the best checkpoint, with that checkpoint's own figures."""
    base, best = (_record(ledger, k, "evaluate") for k in (0, summary["best"]["iteration"]))
    data = job.data.model_dump(include={"speeches", "leakage"})
    if job.pairs_from == "file":
        pairs = ", ".join(part.pairs for part in job.mixture) or job.data.pairs
        data = {"pairs": pairs, "leakage": job.data.leakage}
    return policy_card(
        {
            "name": ledger.root.name,
            "base": job.model,
            "method": METHODS[job.pairs_from],
            "seed": job.seed,
            "iterations": summary["iterations"],
            "steps": summary["steps"],
            "best": summary["best"],
            "dpo": job.applied_dpo.model_dump(),
            "sampling": job.sampling.model_dump(),
            "reward_model": job.scorers.reward_model,
            "heldout_model": job.scorers.heldout_model,
            "data": data,
            "judged": _judged(job, best),
            "heldout": _comparison(base, best, "heldout"),
            "heldout_training": summary["heldout_training"],
            "length_ratio": best["mean_tokens"] / base["mean_tokens"],
            "finished_share": {"base": base["finished_share"], "policy": best["finished_share"]},
            "distinct_ratio": best["distinct_2"] / base["distinct_2"],
            "kl": best.get("kl"),
            "temperature": job.evaluation.temperature,
            "guards": job.guards.model_dump() if job.guards.act else None,
            "versions": summary["versions"],
        }
    )


def _comparison(before: dict[str, Any], after: dict[str, Any], model: str) -> dict[str, Any] | None:
    """Base model and policy on the held-out speeches by one reward model; None if it did not score them."""
    if model not in after:
        return None
    return {
        "speeches": after["speeches"],
        "reward_before": before[model]["reward"],
        "reward_before_ci95": before[model]["ci95"],
        "reward_after": after[model]["reward"],
        "reward_after_ci95": after[model]["ci95"],
        "win_rate_vs_base": after[model]["win_rate_vs_base"],
        "ci95": after[model]["win_rate_ci95"],
    }


def _turns(job: Job, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Held-out dialogues of base model and policy by turn, by the model that judges; empty without dialogues."""
    if job.simulate is None:
        return {}
    model = "heldout" if "heldout" in after else "reward"
    turns = []
    for base, policy in zip(
        before["turns"], after["turns"], strict=False
    ):  # a turn that only one of them has is left out
        rewards = {"reward_before": base[model]["reward"], "reward_after": policy[model]["reward"]}
        gains = {key: policy[model][key] for key in ("gain", "gain_ci95")}
        compared = {
            f"{name}_{when}": turn[name]
            for name in ("speeches", "mean_tokens", "finished_share", "drop_out", "failed")
            for when, turn in (("before", base), ("after", policy))
        }
        turns.append({"turn": policy["turn"], **rewards, **gains, **compared})
    return {"turns": turns}


def _turn_line(turn: dict[str, Any]) -> str:
    if turn["gain"] is None:
        return f"turn {turn['turn']}: no dialogue of both reaches it"
    low, high = turn["gain_ci95"]
    return (
        f"turn {turn['turn']} of dialogues with simulated clients: reward {turn['reward_before']:.3f} before, "
        f"{turn['reward_after']:.3f} after; paired gain {turn['gain']:.3f} (95 % interval {low:.3f} to {high:.3f})"
    )


def _judged(job: Job, after: dict[str, Any]) -> dict[str, Any] | None:
    """A policy against the base model by the judge; None without a judge."""
    if job.evaluation.judge is None:
        return None
    measures = {key: value for key, value in after["judge"].items() if key != "outcomes"}
    return {"model": job.evaluation.judge.model, "speeches": len(after["judge"]["outcomes"]), **measures}


def _record(ledger: Ledger, iteration: int, name: str) -> dict[str, Any]:
    record = ledger.record(stage(iteration, name))
    assert record is not None, f"iteration {iteration} has no {name} record"
    return record
