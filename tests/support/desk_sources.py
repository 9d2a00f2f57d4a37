"""Directories that a desk asks about: of a training run and of a policy evaluation, as the commands write them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from support.raw_speeches import speech

from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate.policies import ANSWERED, JUDGED
from psyco_ray.run.schemas import PAIRS, SAMPLES, SPEECHES

DEV = [speech(number) for number in range(6)]
TRAIN = [speech(number) for number in range(6, 10)]
CRISIS = "I want to kill myself. I have the pills here and I am going to take them all tonight when they sleep."


def table(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def answer(text: str, iteration: int) -> str:
    return f"At {iteration} I hear that {text.split()[1]} weighs on you. What would help?"


def training_run(root: Path, dev: list[str] = DEV, speeches: str = "sample", best: int | None = 2) -> Path:
    """A run of two iterations."""
    rows = [{"speech_id": speech_id(t), "speech": t, "split": s, "topic": "Sleep"} for s, ts in (("dev", dev), ("train", TRAIN)) for t in ts]  # fmt: skip
    table(root / "speeches.parquet", rows, SPEECHES)
    job = {"model": "base-1b", "seed": 0, "iterations": 2, "data": {"speeches": speeches}}
    (root / "job.yaml").write_text(yaml.safe_dump(job))
    for iteration in (0, 1, 2):
        for place, texts in enumerate((dev[:3], dev[3:])):
            samples = [
                {"speech_id": speech_id(t), "index": i, "response": f"{answer(t, iteration)} {i}", "finished": True, "policy_version": iteration}  # fmt: skip
                for t in texts
                for i in (0, 1)
            ]
            table(root / f"iteration-{iteration:03d}" / "dev" / f"{place}.samples.parquet", samples, SAMPLES)
        scores = {speech_id(t): [float(iteration if n else -iteration)] for n, t in enumerate(dev)}
        judge = {"outcomes": {speech_id(dev[1]): 0.5, speech_id(dev[2]): 0.0}} if iteration else None
        write_json(root / f"iteration-{iteration:03d}" / "evaluate.json", {"heldout": {"scores": scores}, "judge": judge})
        if iteration:
            pairs = [
                {"speech_id": speech_id(t), "chosen": f"{answer(t, iteration)} good", "rejected": f"{answer(t, iteration)} bad", "policy_version": iteration - 1}  # fmt: skip
                for t in TRAIN
            ]
            table(root / f"iteration-{iteration:03d}" / "pairs.parquet", pairs, PAIRS)
    if best is not None:
        write_json(root / "summary.json", {"best": {"iteration": best, "steps": 9, "by": "mean reward"}})
    return root


def policy_evaluation(root: Path, speeches: str = "sample") -> Path:
    """An evaluation of one policy under two variants, with two judges."""
    rows = [{"speech_id": speech_id(t), "speech": t, "topic": "Social Issues", "response": f"Theirs: {answer(t, 0)}", "finished": True} for t in DEV]  # fmt: skip
    table(root / "responses" / "GPT-4o" / "responses.parquet", rows, ANSWERED)
    for variant in ("free", "matched"):
        ours = [{**row, "response": f"Ours, {variant}: {row['response']}"} for row in rows]
        ours[5]["response"] = rows[5]["response"]  # the same words: nothing to compare
        table(root / "responses" / "dpo" / variant / "responses.parquet", ours, ANSWERED)
        for judge, choices in (("gpt", ["ours", "theirs", "tie", None, "ours", "tie"]), ("other", ["ours"] * 6)):
            judged = [{"key": row["speech_id"], "better": better} for row, better in zip(rows, choices, strict=True)]
            table(root / "judged" / judge / "dpo" / f"{variant}.parquet", judged, JUDGED)
    policy = {"name": "dpo", "run": "runs/p", "iteration": 4, "variants": {"free": {}, "matched": {}}}
    write_json(root / "evaluation.json", {"policies": [policy], "opponent": "GPT-4o", "judges": ["gpt", "other"], "split": "test"})
    (root / "job.yaml").write_text(yaml.safe_dump({"speeches": {"file": speeches}}))
    return root
