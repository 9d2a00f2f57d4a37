"""Directories that a desk asks about: of a training run and of a policy evaluation, as the commands write them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from psyco_ray.data.splits import speech_id
from psyco_ray.evaluate.policies import ANSWERED, JUDGED
from psyco_ray.run.schemas import PAIRS, SAMPLES, SPEECHES
from support.raw_speeches import speech

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
    rows = [
        {"speech_id": speech_id(text), "speech": text, "split": split, "topic": "Sleep"}
        for split, texts in (("dev", dev), ("train", TRAIN))
        for text in texts
    ]
    table(root / "speeches.parquet", rows, SPEECHES)
    job = {"model": "base-1b", "seed": 0, "iterations": 2, "data": {"speeches": speeches}}
    (root / "job.yaml").write_text(yaml.safe_dump(job))
    for iteration in (0, 1, 2):
        directory = root / f"iteration-{iteration:03d}"
        for place, texts in enumerate((dev[:3], dev[3:])):
            samples = [
                {"speech_id": speech_id(text), "index": index, "response": f"{answer(text, iteration)} {index}"}
                | {"finished": True, "policy_version": iteration}
                for text in texts
                for index in (0, 1)
            ]
            table(directory / "dev" / f"{place}.samples.parquet", samples, SAMPLES)
        scores = {speech_id(text): [float(iteration if n else -iteration)] for n, text in enumerate(dev)}
        outcomes = {speech_id(dev[1]): 0.5, speech_id(dev[2]): 0.0}
        judge = {"outcomes": outcomes} if iteration else None
        write_json(directory / "evaluate.json", {"heldout": {"scores": scores}, "judge": judge})
        if iteration:
            pairs = [
                {"speech_id": speech_id(text), "policy_version": iteration - 1}
                | {
                    side: f"{answer(text, iteration)} {kind}"
                    for side, kind in (("chosen", "good"), ("rejected", "bad"))
                }
                for text in TRAIN
            ]
            table(directory / "pairs.parquet", pairs, PAIRS)
    if best is not None:
        write_json(root / "summary.json", {"best": {"iteration": best, "steps": 9, "by": "mean reward"}})
    return root


def policy_evaluation(root: Path, speeches: str = "sample") -> Path:
    """An evaluation of one policy under two variants, with two judges."""
    rows = [
        {"speech_id": speech_id(text), "speech": text, "topic": "Social Issues", "finished": True}
        | {"response": f"Theirs: {answer(text, 0)}"}
        for text in DEV
    ]
    table(root / "responses" / "GPT-4o" / "responses.parquet", rows, ANSWERED)
    for variant in ("free", "matched"):
        ours = [{**row, "response": f"Ours, {variant}: {row['response']}"} for row in rows]
        ours[5]["response"] = rows[5]["response"]  # the same words: nothing to compare
        table(root / "responses" / "dpo" / variant / "responses.parquet", ours, ANSWERED)
        for judge, choices in (("gpt", ["ours", "theirs", "tie", None, "ours", "tie"]), ("other", ["ours"] * 6)):
            judged = [{"key": row["speech_id"], "better": better} for row, better in zip(rows, choices, strict=True)]
            table(root / "judged" / judge / "dpo" / f"{variant}.parquet", judged, JUDGED)
    policy = {"name": "dpo", "run": "runs/p", "iteration": 4, "variants": {"free": {}, "matched": {}}}
    about = {"policies": [policy], "opponent": "GPT-4o", "judges": ["gpt", "other"], "split": "test"}
    write_json(root / "evaluation.json", about)
    (root / "job.yaml").write_text(yaml.safe_dump({"speeches": {"file": speeches}}))
    return root
