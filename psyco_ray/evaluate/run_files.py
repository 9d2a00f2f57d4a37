"""What evaluations read from the directory of a training run: its settings, its records and its best checkpoint."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.run import records
from psyco_ray.run.ledger import stage

Record = dict[str, Any]
"""A JSON object of a run directory."""


def read_object(path: Path) -> Record:
    """The JSON object in a file.

    Raises:
        InputError: the file does not exist or holds something else.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist, but later files do; copy the run with all its files")
    return records.read_json(path, "copy it from the run again")


def read_settings(root: Path) -> Record:
    """A run's settings as they were written, perhaps by an older version.

    Raises:
        InputError: ``job.yaml`` is missing, damaged or of another kind of run.
    """
    path = root / "job.yaml"
    job = job_file.read_yaml(path, "job file")
    if not isinstance(job, dict) or not {"model", "seed", "iterations"} <= job.keys():
        raise InputError(f"job file {path} has no model, seed and iterations; take the one that the run wrote")
    return job


def evaluations(root: Path) -> list[Record]:
    """The evaluation records of a run, the base model's first."""
    paths = (root / f"{stage(iteration, 'evaluate')}.json" for iteration in itertools.count())
    return [read_object(path) for path in itertools.takewhile(Path.exists, paths)]


def trained_iterations(root: Path) -> range:
    """The iterations that have trained, from 1."""
    last = 0
    while (root / f"{stage(last + 1, 'train')}.json").exists():
        last += 1
    return range(1, last + 1)


def steps_until(root: Path, iteration: int) -> int:
    """Number of optimizer steps that led to the checkpoint of an iteration."""
    return sum(len(read_object(root / f"{stage(k, 'train')}.json")["steps"]) for k in range(1, iteration + 1))


def best_of(root: Path) -> Record:
    """The checkpoint that a finished run chose: at least its `iteration`, its `steps` and what it was chosen `by`.

    Raises:
        InputError: the run has no summary yet, or its summary names no checkpoint.
    """
    path = root / "summary.json"
    if not path.exists():
        raise InputError(
            f"run {root} has no summary.json yet, so it has not chosen its best checkpoint; finish it, or name one of "
            f"its checkpoints, such as {root / stage(1, 'checkpoint')}"
        )
    best = read_object(path).get("best")
    if not isinstance(best, dict) or not {"iteration", "steps", "by"} <= best.keys():
        raise InputError(
            f"{path} names no best checkpoint with its iteration, steps and measure; resume the run to write it again, "
            "or name the directory of a model"
        )
    return best
