"""The command ``sample``: one speech, answered by a trained policy. Neither text is logged or stored."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from psyco_ray.cli.arguments import add_command
from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.names import named_file
from psyco_ray.config.prompts import load_prompt, prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Job
from psyco_ray.run import storage
from psyco_ray.run.remote import is_remote
from psyco_ray.run.startup import gc_paused
from psyco_ray.run.types import Prompt, Response


def add(subparsers: Any) -> None:
    """Adds the command."""
    command = add_command(
        subparsers,
        "sample",
        sample,
        "answer a client speech with a trained policy; the answer is a draft for a professional",
        "psyco-ray sample runs/demo - --max-tokens 128",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's directory, or that of a finished run")
    command.add_argument(
        "speech", metavar="SPEECH", help="the client's words; - reads them from stdin, so that no shell keeps them"
    )
    command.add_argument("--max-tokens", type=int, help="tokens of the answer (default: the run's, else 1024)")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    command.add_argument("--seed", type=int, default=0, help="of a temperature above 0 (default: 0)")


def sample(_: None, options: argparse.Namespace) -> int:
    """Prints the policy's answer, marked as a draft."""
    job = _job_of(options.checkpoint)
    max_tokens = job.sampling.max_tokens if options.max_tokens is None else options.max_tokens
    if max_tokens < 1 or options.temperature < 0 or options.seed < 0:
        raise InputError("--max-tokens needs 1 or more, --temperature and --seed 0 or more")
    speech = (sys.stdin.read() if options.speech == "-" else options.speech).strip()
    if not speech:
        raise InputError("the speech is empty; give the client's words, or - and the words on stdin")
    response = _generate(options, job, speech, max_tokens)
    text = response.text.strip()
    missing = f"[all {max_tokens} tokens are reasoning]" if response.reasoning else "[the answer is empty]"
    cut = "" if response.finished else f"\n[cut after {max_tokens} tokens]" if text else missing
    print(f"DRAFT for a professional to review; not for direct use with clients.\n\n{text}{cut}")
    return 0


def _generate(options: argparse.Namespace, job: Job, speech: str, max_tokens: int) -> Response:
    from psyco_ray.rollout.actor import actor_environment

    # before vLLM and torch are imported; vLLM logs to stdout otherwise
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    os.environ.update(actor_environment(Rollouts()) | quiet)
    from psyco_ray.evaluate import checkpoints
    from psyco_ray.models import loading, templates

    path = loading.resolve(checkpoints.find(options.checkpoint).path)
    messages = prompt_messages(load_prompt(job.prompts), speech)
    token_ids = tuple(templates.conversation_ids(loading.load_tokenizer(path), messages))
    length, positions = len(token_ids) + max_tokens, loading.max_positions(path)
    if positions is not None and length > positions:
        raise InputError(
            f"the prompt takes {len(token_ids)} tokens and the answer up to {max_tokens}, but {options.checkpoint} "
            f"holds {positions}; lower --max-tokens or shorten the speech"
        )
    with gc_paused():
        import torch

        from psyco_ray.rollout.engine import Engine

    gpus = int(torch.cuda.is_available())
    settings = Rollouts(gpus=gpus, max_model_len=length, max_num_seqs=1, kv_cache_gb=1.0, enforce_eager=True)
    engine = Engine(path, settings, options.seed)
    prompt = Prompt("speech", token_ids, options.seed)
    (group,) = engine.generate([prompt], 1, options.temperature, job.sampling.top_p, max_tokens)
    return group.responses[0]


def _job_of(checkpoint: str) -> Job:
    """The job of a checkpoint's run, or the defaults for a checkpoint without one.

    Raises:
        InputError: the checkpoint does not exist, or is a run without a summary.
    """
    if is_remote(checkpoint):
        return Job()
    directory = storage.local_path(checkpoint)
    if not directory.is_dir():
        raise InputError(
            f"checkpoint {named_file(checkpoint)} does not exist; name a checkpoint's directory or that of a run"
        )
    runs = [place for place in (directory, *directory.absolute().parents[:2]) if _is_run(place)]
    if directory in runs and not (directory / "summary.json").exists():
        raise InputError(
            f"run {checkpoint} has no summary.json yet; name one of its checkpoints, such as "
            f"{directory / 'iteration-001' / 'checkpoint'}"
        )
    return job_file.load_as(Job, runs[0] / "job.yaml") if runs else Job()


def _is_run(directory: Path) -> bool:
    return (directory / "job.yaml").is_file() and (directory / "versions.json").is_file()
