"""Reward training as a command: dev evaluation, the best checkpoint, and a kill in the middle that changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import ended, here
from support.trackers import tensorboard_scalars, tensorboard_text

from psyco_ray.config.training import Optimizer
from psyco_ray.data import trained_pairs
from psyco_ray.learner.batching import plan
from psyco_ray.training.reward_trainer import checkpoint_score

JOB = """
run_dir: {run_dir}
model: {model}
data: {{dev_share: 0.2}}
prompts: {{respond: respond-small}}
reward:
  mixture: [{{pairs: sample, count: 48}}, {{pairs: {general}, fraction: 0.5}}]
  optimizer: {{learning_rate: 3.0e-3, batch_size: 8, epochs: 2}}
  learners: {{actors: 2, cpus: 0.2, zero_stage: 2, micro_batch_tokens: 600}}
  max_tokens: 400
  margin: 0.1
  centre: 0.01
  dev_pairs: 20
  evaluate_every: 3
  checkpoint_every: 2
telemetry: {{tensorboard: true}}
"""
STEPS = 18  # 48 + 24 pairs in batches of 8, twice


def start(job: Path, log: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "psyco_ray.cli", "train-reward", str(job), "--resume", *more]
    return subprocess.Popen(command, stdout=log.open("a"), stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def make_job(tmp_path_factory, tiny_model, local_ray):
    def make(name: str) -> tuple[Path, Path, Path]:
        where = tmp_path_factory.mktemp(name)
        general = where / "general.jsonl"
        rows = [{"prompt": f"What is {i} + {i}?", "chosen": f"It is {2 * i}.", "rejected": "No!"} for i in range(48)]
        rows = [{**row, "split": "train"} for row in rows] + [
            {**rows[0], "prompt": "What is a sum?", "split": "dev", "rejected": "word " * 500}
        ]
        general.write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = where / "job.yaml"
        job.write_text(JOB.format(run_dir=where / "run", model=tiny_model, general=general))
        return job, where / "run", where / "log"

    return make


@pytest.fixture(scope="module")
def undisturbed(make_job) -> Path:
    job, run, _ = make_job("undisturbed")
    assert here("train-reward", job).returncode == 0
    return run


def test_a_training_leaves_the_best_checkpoint_its_card_and_its_curve(undisturbed) -> None:
    from transformers import AutoModelForSequenceClassification

    record = json.loads((undisturbed / "reward.json").read_text())
    assert len(record["steps"]) == STEPS
    assert record["steps"][-1]["loss"] < record["steps"][0]["loss"]
    assert [found["step"] for found in record["evaluations"]] == [3, 6, 9, 12, 15, 18]
    best = max(record["evaluations"], key=checkpoint_score)
    assert record["best_step"] == best["step"]
    assert record["accuracy"] == best["accuracy"]
    assert [part["train"] for part in record["mixture"]] == [48, 24]
    assert record["heldout_pairs"] == 19, "one of the twenty is longer than max_tokens"
    assert AutoModelForSequenceClassification.from_pretrained(undisturbed / "reward").num_labels == 1
    card = (undisturbed / "reward" / "README.md").read_text()
    assert "sample" in card
    pairs = trained_pairs.read(str(undisturbed / "reward"))
    assert pairs.pairs == len(pairs.digests) == 72
    assert not (undisturbed / "reward-training").exists(), "what only a resumed run needs is gone"
    assert [part["leaks"]["of"] for part in record["mixture"]] == [{}, {}]
    shown = tensorboard_scalars(undisturbed / "tensorboard" / "reward")
    assert shown["loss"] == [(n, pytest.approx(step["loss"])) for n, step in enumerate(record["steps"], 1)]
    assert shown["dev_accuracy"] == [
        (found["step"], pytest.approx(found["accuracy"])) for found in record["evaluations"]
    ]
    assert f'"reward.best_step": {record["best_step"]}' in tensorboard_text(undisturbed / "tensorboard", "summary")


@pytest.mark.long
def test_a_training_that_is_killed_goes_on_to_the_same_weights(undisturbed, make_job) -> None:
    job, run, log = make_job("killed")
    moment = random.Random(0).randrange(3, STEPS - 3)
    process = start(job, log)
    deadline = time.monotonic() + 300
    while f"step {moment}/{STEPS}" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "reward.json").exists(), "the kill came too late to show anything"
    assert ended(start(job, log), 300, log.read_text) == 0, log.read_text()[-3000:]
    assert log.read_text().count(f" of {STEPS} steps are done") == 1, "it began anew"
    ours, theirs = (load_file(r / "reward" / "model.safetensors") for r in (run, undisturbed))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    found, expected = (json.loads((r / "reward.json").read_text()) for r in (run, undisturbed))
    for key in ("steps", "evaluations", "best_step", "cut", "too_long"):
        assert found[key] == expected[key], key
    ours, theirs = (tensorboard_scalars(r / "tensorboard" / "reward") for r in (run, undisturbed))
    for name in ("loss", "dev_accuracy"):
        assert ours[name] == theirs[name], name


def test_bad_settings_are_one_sentence(make_job) -> None:
    job, run, _ = make_job("refused")
    missing = here("train-reward", job, "reward.mixture=[{pairs: nowhere.jsonl}]")
    assert missing.returncode == 2
    assert missing.stderr.strip().splitlines()[-1] == "psyco-ray: pairs file nowhere.jsonl does not exist"
    misspelt = here("train-reward", job, "reward.mixture=[{pair: sample}]")
    assert misspelt.returncode == 2
    assert "reward.mixture.0.pairs" in misspelt.stderr.splitlines()[-1]
    assert not (run / "reward.json").exists()


def test_the_plan_has_every_pair_once_an_epoch() -> None:
    found = plan(72, Optimizer(batch_size=8, epochs=2), 2, seed=0)
    assert len(found) == STEPS
    assert sorted(row for batch in found[:9] for row in batch) == list(range(72))
