"""Responses of one model to the contexts of an evaluation, on vLLM engines or over its API.

They are stored in parts, in a directory named by a hash of the model's files, the sampling settings and the prompts, so
that an interrupted run answers only what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from psyco_ray.config.contexts import Context
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.prompts import SPEECH, fill
from psyco_ray.config.resources import Rollouts
from psyco_ray.data.generate import LocalModel, ModelFailedError
from psyco_ray.data.generate import generate as generate_responses
from psyco_ray.data.respond import ApiStage, ResponseSampling, ResponseTask
from psyco_ray.evaluate.checkpoints import Checkpoint
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.models import loading
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import Row

_QUESTIONS = pa.schema([("speech_id", pa.string()), ("speech", pa.string())])


def write_task(
    job: PolicyEvaluationJob,
    name: str,
    variant: str,
    prompt: Mapping[str, str],
    values: Mapping[str, Mapping[str, str]],
    fingerprint: Sequence[Any],
    root: Path,
) -> ResponseTask:
    """Write the prompts that a model answers; nothing is answered yet.

    Args:
        job: how responses are sampled.
        name: of the model.
        variant: of the prompt.
        prompt: the entry of the prompts file.
        values: by speech id, the values of the prompt's placeholders; that of SPEECH is the text of a context.
        fingerprint: what else decides the responses: `fingerprint` with engine settings, or the API's model.
        root: the run directory.
    """
    rows = [{"speech_id": key, "speech": _filled(prompt, values[key])} for key in sorted(values)]
    texts = key_of(prompt.get("system"), rows)
    questions = root / "questions" / texts
    shards.write_by_id(questions, rows, "speech_id", _QUESTIONS)
    sampling = ResponseSampling(
        prompt={**prompt, "user": SPEECH, "later": SPEECH},  # all placeholders are filled
        temperature=job.sampling.temperature,
        top_p=1.0,
        max_tokens=job.sampling.max_tokens,
        seed=job.seed,
    )
    key = key_of(list(fingerprint), job.sampling.model_dump(), job.seed, texts)
    return ResponseTask(name, sampling, questions, root / "answers" / name / variant / key)


def _filled(prompt: Mapping[str, str], values: Mapping[str, str]) -> str:
    """A context with the prompt's words around its client's turns, as `prompt_messages` puts them there."""
    first, *others = Context.of(values[SPEECH]).turns
    asked = [fill(prompt["user"], {**values, SPEECH: first})]
    for place, turn in enumerate(others):
        asked.append(fill(prompt.get("later", SPEECH), {**values, SPEECH: turn}) if place % 2 else turn)
    return Context(tuple(asked)).text


def read(task: ResponseTask) -> dict[str, Row]:
    """The answers by speech id; speeches without a usable answer are missing."""
    return {row["speech_id"]: row for part in task.parts() for row in shards.read(task.out, part)}


def set_aside(task: ResponseTask) -> list[Row]:
    """The speeches without a usable answer, each with the reason."""
    return [row for part in task.parts() for row in shards.read(task.out / "set-aside", part)]


def generate(
    job: PolicyEvaluationJob,
    name: str,
    model: Checkpoint,
    tasks: Sequence[ResponseTask],
    progress: Progress,
    rollouts: Rollouts | None = None,
) -> None:
    """Let a model answer what is missing, on engines that load it once.

    Args:
        job: engines and deadlines.
        name: of the model.
        model: what the engines load.
        tasks: all that it answers.
        progress: receives finished work.
        rollouts: the engines; None: the job's.
    """
    local = LocalModel(model.path, rollouts or job.rollouts, job.seed, template_options=model.template_options)
    try:
        generate_responses(local, tasks, job.deadlines, progress, f"{name} answers")
    except ModelFailedError as error:
        raise (error.__cause__ or error) from None


def calls(
    endpoint: Endpoint, task: ResponseTask, journal: Path, outgoing: Outgoing, name: str | None = None
) -> CallRun:
    """The calls by which a model behind an API, called `name` or as the task, answers what is missing."""
    return CallRun(f"{name or task.name} answers", ApiStage(endpoint, task), task.parts(), journal, outgoing)


def fingerprint(model: Checkpoint) -> str:
    """A hash that changes when a file of a model or an option of its chat template changes."""
    states = loading.model_fingerprint(loading.resolve(model.path))
    options = [dict(model.template_options)] if model.template_options else []
    return key_of([name for name, _ in states], [state for _, state in states], *options)
