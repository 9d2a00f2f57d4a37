"""Runs and results that pages are drawn from: a training run, compared runs, policies, and experts."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa

from psyco_ray.config import job_file
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.config.training import Job
from psyco_ray.evaluate import stats, winrates
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.schemas import DIALOGUES
from support.reward_results import ODD, VERSIONS

SPEECHES = [f"speech-{i:02d}" for i in range(12)]
MONITORS = {"length_ratio": 1.1, "distinct_ratio": 0.93, "length_share": 0.09, "fall": -3.24, "reward_gap": -0.08}


def training_run(root: Path, iterations: int = 3, rise: float = 0.5, **settings) -> tuple[Job, Ledger]:
    """A finished run before its summary is written, with this rise of the rewards; the caller closes the ledger."""
    scorers = {"reward_model": "rm-a", "heldout_model": "rm-b", **settings.pop("scorers", {})}
    values = {"run_dir": str(root), "iterations": iterations, "scorers": scorers, **settings}
    job = job_file.parse(Job, values, "test")
    ledger = Ledger(job, resume=False)
    rows = [{"speech_id": key, "speech": f"I said <i>{key}</i>. " * 12, "topic": "Anxiety"} for key in SPEECHES]
    ledger.write_table("speeches.parquet", pa.Table.from_pylist(rows))
    for iteration in range(iterations + 1):
        turns = _dialogues(ledger, iteration, rise) if job.simulate else {}
        _write_evaluation(ledger, iteration, rise, bool(scorers["heldout_model"]), turns)
        if iteration:
            _write_training(ledger, iteration)
    return job, ledger


def _dialogues(ledger: Ledger, iteration: int, rise: float) -> dict:
    """Writes two-turn dialogues with each speech, of which the last client leaves, and returns their measures."""
    rows = []
    for number, key in enumerate(SPEECHES):
        left = key == SPEECHES[-1]
        said = [f"<b>Answer</b> {iteration}, turn {turn}." for turn in (1, 2)][: 1 if left else 2]
        scores = [number / 12 + turn * rise * iteration for turn in range(len(said))]
        row = {"speech_id": key, "index": 0, "speech": f"I said {key}.", "responses": said, "reward": scores}
        row |= {"finished": [True] * len(said), "replies": ["Goodbye."] if left else ["Yes."], "heldout": scores}
        rows.append({**row, "left": left, "policy_version": iteration, "client": "smol", "client_digest": "0f"})
    table = pa.Table.from_pylist(rows, schema=DIALOGUES)
    ledger.write_table(f"iteration-{iteration:03d}/dev-dialogues.parquet", table)
    turns = []
    for turn in range(2):
        scores = [row["heldout"][turn] for row in rows if len(row["heldout"]) > turn]
        measures: dict = {"reward": float(np.mean(scores)), "ci95": [0.0, 1.0]}
        if iteration:
            measures |= {"gain": turn * rise * iteration, "gain_ci95": [turn * rise * iteration - 0.1, 9.0]}
        facts = {"turn": turn + 1, "speeches": len(scores), "mean_tokens": 30.0 + iteration, "finished_share": 1.0}
        turns.append({**facts, "drop_out": turn / 12, "failed": 0, "reward": measures, "heldout": measures})
    return {"turns": turns}


def _write_evaluation(ledger: Ledger, iteration: int, rise: float, heldout: bool, turns: dict) -> None:
    name = f"iteration-{iteration:03d}"
    rows = [{"speech_id": key, "index": 0, "response": f"{ODD} {iteration} " * 15} for key in SPEECHES]
    ledger.write_table(f"{name}/dev/0.samples.parquet", pa.Table.from_pylist(rows))
    scores = [i / 12 + rise * iteration for i in range(len(SPEECHES))]
    measures: dict = {"reward": float(np.mean(scores)), "ci95": stats.bootstrap_mean(scores, 0)}
    measures["scores"] = {key: [score] for key, score in zip(SPEECHES, scores, strict=True)}
    if iteration:
        measures |= {"win_rate_vs_base": 0.875, "win_rate_ci95": [0.7, 0.95]}
    models = dict.fromkeys(["reward", *(["heldout"] if heldout else [])], measures)
    alarms = ["the held-out reward is 4.0 standard errors below its best"] if iteration == 2 else []
    monitors = {**MONITORS, "kl": 2.5} if iteration > 1 else MONITORS
    facts = {"speeches": len(SPEECHES), "mean_tokens": 60.0 + iteration, "monitors": monitors, "alarms": alarms}
    facts |= {"finished_share": 0.95 - 0.01 * iteration, "distinct_2": 0.8 - 0.04 * iteration, "kl": 2.5 * iteration}
    ledger.finish(f"{name}/evaluate", 0.0, **facts, **models, **turns)
    busy = {"rollouts": [2.0, 1.0, 0.0], "scorers": [1.0, 0.5, 0.0]}
    part = {"seconds": 5.0, "bin_s": 2.0, "actors": {"rollouts": 2, "scorers": 1, "learners": 2}, "busy": busy}
    ledger.write_json(f"{name}/timeline.json", {"parts": [{**part, "driver": [["evaluate", 0, 5]]}] * 2})


def _write_training(ledger: Ledger, iteration: int) -> None:
    name = f"iteration-{iteration:03d}"
    (ledger.root / name / "checkpoint").mkdir(parents=True)
    facts = {"rows": 1234, "speeches": 40, "reward": 1.5, "tokens": 10_051, "mean_tokens": 62.8, "finished_share": 0.9}
    ledger.finish(f"{name}/pairs", 0.0, **facts)
    steps = [{"loss": 0.7 - 0.05 * step, "margin": 0.1 * step, "accuracy": step / 5} for step in range(5)]
    ledger.finish(f"{name}/train", 0.0, train_s=22.4, save_s=2.8, tokens=9429, steps=steps)
    ledger.write_json(f"{name}/sync.json", {"export_s": 0.85, "load_s": 0.93, "bytes": 269_030_016})


def compared_runs(names: tuple[str, ...] = ("offline", "online", ODD)) -> dict:
    """What `evaluate.compare_runs.compare` returns of runs and of an evaluation of policies."""
    runs = {}
    for number, name in enumerate(names):
        curve = [
            {"iteration": k, "step": 100 * k, "reward": 0.3 * k + number, "reward_ci95": [0.3 * k + number - 0.2] * 2}
            | {"win_rate": 0.5 + 0.05 * k, "win_rate_ci95": [0.45 + 0.05 * k, 0.55 + 0.05 * k]}
            | {"length_ratio": 1 + 0.1 * k, "speeches": 1200, "finished_share": 0.97}
            for k in range(9)
        ]
        runs[name] = {"base": "smol", "seed": 0, "planned": 8, "finished": True, "speeches": 1200, "curve": curve}
        runs[name] |= {"alarmed": [], "final": curve[-1], "best": curve[7], "chosen_by": "win rate by the judge"}
    paired = {"speeches": 1200, "wins": 700, "ties": 10, "losses": 490, "share": 0.59, "wilson95": [0.56, 0.62]}
    paired |= {"difference": 0.25, "ci95": [0.1, 0.4], "p": 0.00001}
    pairs = [{"a": a, "b": b, "final": paired, "best": paired} for a, b in itertools.pairwise(names)]
    policy = {"run": "eval", "opponent": "GPT-4o", "policy": "Llama3-8B + DPO-Iter", "setting": "free", "overall": 0.7}
    policy |= {
        "trained_in": None,
        "iteration": 8,
        "steps": 800,
        "series": "8B",
        "speeches": 3291,
        "crisis": 0.6,
        "finished_share": 0.98,
    }
    policy |= {"wilson95": [0.6, 0.8], "topics": dict.fromkeys(winrates.TOPICS.values(), 0.75)}
    differences = [{"setting": "dpo.optimizer.learning_rate", "values": dict.fromkeys(names, "/secret/place/5e-07")}]
    notes = ["The runs answered the held-out speeches with different settings: evaluation.temperature."]
    found = {
        "seed": 0,
        "judge": "heldout",
        "reward_model": "heldout",
        "runs": runs,
        "shared_speeches": 1200,
        "differences": differences,
    }
    return {**found, "notes": notes, "pairs": pairs, "policies": [policy]}


def policy_results() -> tuple[dict, list[dict]]:
    """What `evaluate.matchups.results` and `evaluate.matchups.cases` return of two policies and two judges."""
    rate = {"rate": 0.694, "wilson95": [0.678, 0.71], "bootstrap95": [0.677, 0.711], "speeches": 3291, "wins": 2284}
    rate |= {"ties": 12, "unreadable": 3, "decided": 0.69}
    judged = {"overall": rate, "first_chosen": 0.52, "spent": {"paid": 3291, "reused": 12, "dollars": 12.345}}
    measures = {
        "overall": rate,
        "lc": {"rate": 0.55, "ci95": [0.53, 0.57]},
        "topics": dict.fromkeys([*winrates.TOPICS.values(), winrates.NO_TOPIC], rate),
        "mean_words": 181.5,
        "opponent_mean_words": 160.2,
        "length_ratio": 1.13,
        "unanswered": 1,
        "cut": 17,
        "finished_share": 0.994,
        "crisis": rate | {"speeches": 212},
        "by_judge": {"gpt-4o": judged, "qwen": judged | {"spent": {"paid": 1, "reused": 0, "dollars": None}}},
    }
    names = ("Llama3-8B + DPO-Iter, the third seed", ODD)
    variants = {"free": measures, "matched": measures}
    interval = {"value": 0.83, "low": 0.81, "high": 0.85, "items": 3291}
    results = {"name": "eval", "seed": 3, "versions": VERSIONS, "opponent": "GPT-4o ($)", "judges": ["gpt-4o", "qwen"]}
    results |= {"order": "seeded", "split": "test", "speeches": 3291, "opponent_silent": 2}
    results |= {"crisis_speeches": 212, "opponent_finished_share": 0.7}
    origin = {"model": None, "run": "runs/psyco-8b", "iteration": 12, "steps": 1200, "series": None}
    results |= {"policies": [{"name": name, **origin, "variants": variants} for name in names]}
    results["mcnemar"] = {"free": [{"a": names[0], "b": names[1], "a_only": 700, "b_only": 400, "p": 1e-9}]}
    agreement = {"percent": interval, "kappa": interval | {"low": None, "high": None}}
    results["agreement"] = [{"judges": ["gpt-4o", "qwen"], "policy": names[0], "variant": "free", **agreement}]
    verdict = {"judge": "gpt-4o", "ours": True, "ours_first": False, "rationale": f"because of {ODD}"}
    answers = [
        {
            "policy": names[0],
            "variant": "free",
            "response": "I hear you. " * 40,
            "words": 120,
            "cut": False,
            "verdicts": [verdict],
        },
        {"policy": names[1], "variant": "matched", "response": None, "words": 0, "cut": False, "verdicts": []},
    ]
    results |= {"conversations": 900, "dialogues": dialogue_results(names, rate)}
    for measures in variants.values():
        turn = {"overall": rate, "lc": measures["lc"], "mean_words": 41.5, "opponent_mean_words": 40.0}
        measures["turns"] = {"1": turn, "2": turn, "3": turn, "4+": {"overall": rate}}
    opponent = {"response": "Thank you. " * 30, "words": 60}
    case = {"topic": "Social Issues", "speech": "I cannot sleep. " * 20, "turn": 1}
    case |= {"opponent": opponent, "answers": answers}
    return results, [case]


def dialogue_results(names: tuple[str, ...], rate: dict) -> dict:
    """What `evaluate.dialogue_matchups.results` returns of two policies."""
    share = {"share": 0.12, "wilson95": [0.1, 0.14]}
    side = {
        "dropped": {"1": share, "2": share},
        "unanswered": 1,
        "unreplied": 0,
        "mean_words": {"1": 61.0, "2": 58.5, "3": 57.0},
        "repetition": {"responses": 1800, "share": 0.04, "ci95": [0.03, 0.05], "mean_overlap": 0.1},
        "consistency": {"dialogues": 900, "unreadable": 2, "contradiction": share, "forgotten": share},
    }
    turns = {"1": rate, "2": rate, "3": rate}
    met = {**side, "at_turn": turns, "whole": rate, "crisis": rate, "spent": {"calls": 8, "dollars": None}}
    return {
        "client": "Qwen/Qwen2.5-7B-Instruct",
        "client_state": "3f2a",
        "turns": 3,
        "openings": 900,
        "judge": "gpt-4o",
        "crisis_dialogues": 40,
        "not_screened": 0,
        "policies": [{**met, "name": name} for name in names],
        "opponent": {**side, "name": "GPT-4o ($)", "consistency": None},
    }


def dialogue_cases() -> list[dict]:
    """What `evaluate.dialogue_matchups.cases` returns of one opening and one policy."""
    turn = {"over": False, "response": "I hear you. " * 20, "words": 60, "reply": f"Yes, {ODD}. " * 9}
    turn |= {"ended": False, "failed": False}
    left = {**turn, "reply": "", "ended": True}
    silent = {**turn, "response": None, "words": 0, "reply": ""}
    turns = [
        {"ours": turn, "theirs": turn},
        {"ours": left, "theirs": turn},
        {"ours": {"over": True}, "theirs": silent},
    ]
    verdict = {"judge": "gpt-4o", "ours": False, "ours_first": True, "rationale": f"because of {ODD}"}
    met = {"policy": "Llama3-8B + DPO-Iter, the third seed", "turns": turns, "same": False, "verdicts": [verdict]}
    return [{"topic": "Social Issues", "opening": "I cannot sleep. " * 20, "met": [met]}]


def annotation_results() -> dict:
    """What `evaluate.annotation.score` returns."""
    measure = {"value": 0.8, "low": 0.7, "high": 0.9, "items": 1200}
    compared = {"items": 1200, "equal": 1044, "share": 0.87, "wilson": [0.85, 0.89], "kappa": measure, "alpha": measure}
    by_aspect = {**dict.fromkeys(PRINCIPLES, compared), "safety": None, "overall": compared}
    cells = {"filled": 9150, "unfilled": 450}
    return {
        "items": 1200,
        "experts": {"expert-1": cells, "expert-2": cells},
        "between_experts": by_aspect,
        "with_labels": {"expert-1": by_aspect, "expert-2": by_aspect},
        "paper": {"between_experts": 0.87, "expert-1": 0.92, "expert-2": 0.85},
    }


def expert_results() -> dict:
    """What `evaluate.experts.score` returns of one comparison with a judge's verdicts."""
    share = {"share": 0.5, "wilson95": [0.4, 0.6]}
    outcomes = {"items": 100, "wins": share, "ties": {**share, "share": 0.2}, "losses": {**share, "share": 0.3}}
    score = {"mean": 4.2, "ci95": [4.0, 4.4]}
    aspects = (*PRINCIPLES, "overall")
    measure = {"value": 0.8, "low": 0.7, "high": 0.9, "items": 100}
    measures = {"percent": measure, "kappa": measure, "alpha": {**measure, "value": None, "low": None, "high": None}}
    judged = {
        "items": 100,
        "share": 0.81,
        "ci95": [0.73, 0.88],
        "experts": {"expert-1": measures, "expert-2": measures},
    }
    comparison = {
        "items": 100,
        "preferences": {**dict.fromkeys(aspects, outcomes), "safety": None},
        "scores": {name: {"policy": score, "opponent": {"mean": 3.1, "ci95": [2.9, 3.3]}} for name in PRINCIPLES},
        "judge": judged,
    }
    agreement = {"preferences": dict.fromkeys(aspects, measures), "scores": dict.fromkeys(PRINCIPLES, measures)}
    cells = {"filled": 2150, "unfilled": 50}
    experts = {"expert-1": cells, "expert-2": cells}
    found = {"comparisons": {ODD: comparison}, "agreement": agreement, "experts": experts, "judge": judged}
    return {**found, "paper": 0.825}
