"""The models that an evaluation names: a model itself, or checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import Policy
from psyco_ray.config.prompts import prompt_messages
from psyco_ray.evaluate import run_files
from psyco_ray.models import loading, templates
from psyco_ray.run import storage
from psyco_ray.run.ledger import stage


@dataclass(frozen=True)
class Checkpoint:
    """A model that engines load, and where it comes from."""

    path: str  # a directory, a URI, a packaged name or a hub id
    run: str | None = None  # directory of its training run, as the job names it; None: the job names the model itself
    iteration: int | None = None  # of that run; 0: its base model
    steps: int | None = None  # optimizer steps that led to it
    template_options: Mapping[str, Any] = field(default_factory=dict)  # which its chat template does not have already

    def with_options(self, options: Mapping[str, Any]) -> Checkpoint:
        """The same model with further options of its chat template."""
        return replace(self, template_options={**self.template_options, **options})


@dataclass(frozen=True)
class Candidate:
    """A policy under test.

    Example:
        >>> [candidate.name for candidate in candidates([Policy(name="dpo", model="runs/dpo", iteration="all")])]
        ['dpo iteration 0', 'dpo iteration 1']
    """

    name: str
    checkpoint: Checkpoint
    series: str | None = None  # name of the entry that stands for all checkpoints of a run


def candidates(policies: Sequence[Policy]) -> list[Candidate]:
    """The policies under test, in the order of the job.

    Raises:
        InputError: a run or a checkpoint does not exist, or two policies have the same name.
    """
    found: list[Candidate] = []
    for policy in policies:
        if policy.iteration == "all":
            run = _run_directory(policy.model)
            iterations = (0, *run_files.trained_iterations(run))
            found += [Candidate(f"{policy.name} iteration {k}", _of(policy, k), policy.name) for k in iterations]
        else:
            found.append(Candidate(policy.name, _of(policy, policy.iteration)))
    names = [candidate.name for candidate in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two policies are named {name}; give each its own name")
    return found


def _of(policy: Policy, iteration: int | None) -> Checkpoint:
    return find(policy.model, iteration).with_options(policy.template_options)


def find(model: str, iteration: int | None = None) -> Checkpoint:
    """The checkpoint that a model's name stands for.

    Args:
        model: a directory, a packaged name, a hub id, or the directory of a training run.
        iteration: of the run; 0: its base model; None: the best one, as ``summary.json`` names it.

    Raises:
        InputError: the run has not chosen a checkpoint, has chosen the base model, or lacks the iteration.
    """
    directory = Path(model).expanduser()
    if iteration is None and not _is_run(directory):
        return Checkpoint(str(directory.absolute()) if directory.is_dir() else model)
    run = _run_directory(model)
    if iteration is not None:
        path = _checkpoint(run, iteration)
        # checkpoints hold the run's options, its base model does not
        options = {} if iteration else run_files.read_settings(run).get("template_options", {})
        return Checkpoint(path, model, iteration, run_files.steps_until(run, iteration), options)
    best = run_files.best_of(run)
    if not best["iteration"]:
        raise InputError(
            f"run {model} has chosen its base model, as no trained checkpoint was better on the held-out speeches "
            f"({best['by']}); name the base model {run_files.read_settings(run)['model']} itself, or a checkpoint such "
            f"as {directory / stage(1, 'checkpoint')}"
        )
    return Checkpoint(_checkpoint(run, best["iteration"]), model, best["iteration"], best["steps"])


def check_context(checkpoint: Checkpoint, max_model_len: int) -> None:
    """Check that a model exists and its context is long enough.

    Args:
        checkpoint: the model.
        max_model_len: minimum context length, in tokens.

    Raises:
        InputError: it does not exist, or its context is too short.
    """
    positions = loading.max_positions(loading.resolve(checkpoint.path))
    if positions is not None and positions < max_model_len:
        raise InputError(
            f"{checkpoint.path} holds {positions} tokens, rollouts.max_model_len is {max_model_len}; lower it"
        )


def check_prompt(checkpoint: Checkpoint, prompt: Mapping[str, str]) -> None:
    """Render a prompt with a model's chat template as a trial.

    Raises:
        InputError: the template refuses the prompt, or does not use an option.
    """
    options = checkpoint.template_options
    tokenizer = loading.load_tokenizer(loading.resolve(checkpoint.path), template_options=options)
    templates.check(tokenizer, prompt_messages(prompt, "I cannot sleep."))


def _is_run(directory: Path) -> bool:
    """Whether a directory was written by a run rather than by `save_pretrained`."""
    is_model = (directory / "config.json").exists()
    return not is_model and ((directory / "summary.json").exists() or (directory / "job.yaml").exists())


def _run_directory(model: str) -> Path:
    directory = Path(model).expanduser()
    if not _is_run(directory):
        raise InputError(f"{model} is no directory of a training run, so it has no iterations; leave iteration out")
    return directory.absolute()


def _checkpoint(run: Path, iteration: int) -> str:
    """The model of an iteration; of a run that was moved, the directory that holds it now."""
    if not iteration:
        return run_files.read_settings(run)["model"]
    name = stage(iteration, "checkpoint")
    if (run / name).is_dir():
        return str(run / name)
    written = storage.join(run_files.read_settings(run).get("run_dir", str(run)), name)  # it may be remote
    if storage.exists(written):
        return storage.absolute(written)
    kept = [k for k in run_files.trained_iterations(run) if (run / stage(k, "checkpoint")).is_dir()]
    raise InputError(
        f"run {run} has no checkpoint of iteration {iteration} (kept: {', '.join(map(str, kept)) or 'none'}); choose "
        "another iteration, or train with checkpoints.keep_last: null, which keeps them all"
    )
