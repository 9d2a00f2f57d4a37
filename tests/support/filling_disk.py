"""A small run, done in acts: in each the disk is full from a given point on, and before the next there is room again.

`python filling_disk.py JOB POINT...` prints a line of JSON for each act.
"""

import contextlib
import io
import json
import resource
import sys
import time
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from psyco_ray.cli import train
from psyco_ray.cli.main import main
from psyco_ray.run import ray_session, storage
from psyco_ray.run.types import StepResult
from psyco_ray.training.step_log import StepLog
from support.groups import groups_of, stream

STEPS = 3


class Learner:
    """Stands for a group of ranks, with weights that tell every step."""

    def __init__(self, state: str | None) -> None:
        found = load_file(storage.fetch(state, digests=True) / "state-00000.safetensors") if state else {}
        self.weights = found.get("w", torch.zeros(10_000))

    def step(self, number: int) -> StepResult:
        self.weights = self.weights / 3 + number + 1
        return StepResult(number, STEPS, 0.5, 1e-3, None, {"accuracy": 1.0}, 10, 0.1)

    def save_state(self, target: str, moments: bool = False) -> None:
        with storage.atomic_dir(target) as staging:
            save_file({"w": self.weights}, staging / "state-00000.safetensors")


def room(size: int) -> None:
    """A limit on the size of files stands for the disk: a write fails in its middle, as it would there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def act(job: str, full_from: str) -> dict:
    made: list[str] = []

    def reach(point: str) -> None:
        if point == full_from:
            room(1000)
        made.append(point)

    def sampled(items):
        stored = None
        for item in items:
            while stored is not None and not stored.exists():  # the ledger writes beside the stream
                time.sleep(0.01)
            stored = Path("run/it/samples", f"{item.key}.scores.parquet")
            reach(item.key)
            yield from groups_of(item)

    def work(ledger, telemetry) -> None:
        def table() -> tuple[list[pa.Table], dict]:
            reach("table")
            return [pa.table({"a": [number**0.5 for number in range(1000)]})], {}

        ledger.table("x", pa.schema([("a", pa.float64())]), table)
        list(stream(ledger, sampled))
        log = StepLog(ledger, "it/training")
        learner = Learner(log.state)
        for number in range(log.done, STEPS):
            reach(f"step{number}")
            log.add(learner.step(number))
            log.write(learner)
        reach("checkpoint")
        learner.save_state(ledger.place("it/checkpoint"))
        ledger.finish("it/train", log.began, steps=log.facts["steps"])
        log.clear()

    ray_session.connect = lambda address: None
    train.train_reward = lambda job, options: train._in_run(job, options, work)
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = main(["train-reward", job, "--resume"])
    room(resource.RLIM_INFINITY)
    return {"code": code, "error": told.getvalue().strip(), "made": made}


if __name__ == "__main__":
    for point in sys.argv[2:]:
        print(json.dumps(act(sys.argv[1], point)))
