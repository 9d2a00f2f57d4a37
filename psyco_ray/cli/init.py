"""The command ``init``: a commented starter job for a user's own speeches."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from psyco_ray.cli.arguments import add_command
from psyco_ray.cli.config import as_yaml, keys_of
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run import storage

_HEAD = """\
A starter job for your own client speeches, with the sizes of the demo: 2 cores, 12 GB of memory, no GPU. Two reward \
models are trained on halves of the pairs; A ranks the policy's responses, B only judges the result. The packaged \
pairs are synthetic: name your own in data.pairs for a result of use. `psyco-ray config` prints all other keys."""

_SETTINGS: dict[str, Any] = {
    "seed": 0,
    "model": "smollm2-135m",
    "iterations": 3,
    "speeches_per_iteration": 40,
    "data": {"pairs": "sample", "dev_share": 0.25},
    "prompts": {"respond": "respond-few-shot"},
    "sampling": {"responses": 4, "temperature": 0.7, "max_tokens": 96},
    "dpo": {
        "schedule_over": "run",
        "optimizer": {"learning_rate": 3.5e-5, "batch_size": 8, "schedule": "linear"},
    },
    "reward": {
        "optimizer": {"learning_rate": 3.0e-5, "batch_size": 4, "epochs": 1},
        "learners": {"actors": 1, "cpus": 0.5, "zero_stage": 1, "micro_batch_tokens": 400},
    },
    "rollouts": {
        "actors": 2,
        "cpus": 0.15,
        "max_model_len": 768,
        "max_num_seqs": 64,
        "kv_cache_gb": 0.8,
        "speeches_per_item": 10,
    },
    "scorers": {"actors": 2, "cpus": 0.15},
    "learners": {"actors": 2, "cpus": 0.2, "zero_stage": 1, "micro_batch_tokens": 900},
    "evaluation": {"speeches": 80, "temperature": 0.7},
}
"""The settings of ``jobs/demo.yaml``, for the user's speeches."""


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers, "init", init, "write a commented starter job for your own speeches", "psyco-ray init my-study"
    )
    command.add_argument("directory", metavar="DIR", type=Path, help="where job.yaml is written")


def init(_: None, options: argparse.Namespace) -> int:
    """Writes the job."""
    directory: Path = options.directory
    path = directory / "job.yaml"
    if path.exists():
        raise InputError(f"{path} exists and is not overwritten; remove it or name another directory")
    storage.write_text(path, render(directory))
    quoted = shlex.quote(str(path))
    print(
        f"{path} is written. Next:\n"
        f"  put your speeches into {directory / 'speeches.csv'}, in a column `speech`, 100 to 1,000 characters each\n"
        f"  psyco-ray plan {quoted}\n"
        f"  psyco-ray demo {quoted}"
    )
    return 0


def render(directory: Path) -> str:
    """The job as YAML; each key has its explanation above it."""
    texts = {key.path: key.text for key in keys_of(Job)}
    data = {"speeches": str(directory / "speeches.csv"), **_SETTINGS["data"]}
    settings = {"run_dir": str(directory / "run"), **_SETTINGS, "data": data}
    lines = [*textwrap.wrap(_HEAD, 118, initial_indent="# ", subsequent_indent="# "), *_lines(settings, texts, "")]
    return "\n".join(lines) + "\n"


def _lines(settings: Mapping[str, Any], texts: Mapping[str, str], prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in settings.items():
        if isinstance(value, dict) and not prefix:
            yield ""
        yield from textwrap.wrap(
            texts[prefix + key], 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, texts, f"{prefix}{key}.")
        else:
            yield f"{indent}{key}: {as_yaml(value)}"
