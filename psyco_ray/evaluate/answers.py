"""Answers of one model to the speeches of an evaluation, on vLLM engines or over its API.

They are kept in parts, in a directory named by a hash of the model's files and of all that it was asked, so that a
killed run answers only what is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.config.prompts import fill
from psyco_ray.data.respond import ApiStage, Assignment, Responder, ResponderModel
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.pipeline import Row
from psyco_ray.models import loading
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import actor_environment
from psyco_ray.run import shards, storage
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.remote import is_remote

_ASKED = pa.schema([("speech_id", pa.string()), ("speech", pa.string())])


@dataclass(frozen=True)
class Questions(Assignment):
    """What one model is asked: responders and API stages work on it as on a pool member's share of a dataset.

    `root` holds its parts, whose `speech` is the whole user text of a prompt.
    """

    answers: Path

    def of(self, member: ResponderModel, part: str) -> list[Row]:
        """All questions of a part."""
        return shards.read(self.root, part)

    def out(self, member: ResponderModel) -> Path:
        """The directory of the answers."""
        return self.answers

    def missing(self) -> list[str]:
        """The parts that are not answered yet."""
        done = set(shards.list_shards(self.answers))
        return [part for part in shards.list_shards(self.root) if part not in done]

    def read(self) -> dict[str, Row]:
        """The answers, by speech id; a speech that the model gave nothing on is missing."""
        return {
            row["speech_id"]: row for part in shards.list_shards(self.root) for row in shards.read(self.answers, part)
        }

    def set_aside(self) -> list[Row]:
        """The speeches without an answer, each with the reason."""
        return [row for part in shards.list_shards(self.root) for row in shards.read(self.answers / "set-aside", part)]


class Answerer(Responder):
    """A dataset's responder as a member of a pool, where every piece of work has a deadline."""

    def __init__(self, member: ResponderModel, questions: Questions, job: PolicyEvaluationJob) -> None:
        self._load = partial(super().__init__, [member], questions, job.rollouts)

    def ready(self) -> None:
        """Load the engine."""
        self._load()

    def answer(self, work: tuple[Questions, list[str]]) -> Iterator[int]:
        """Answer some parts and write each of them; yields their number."""
        self._share, todo = work
        self._answer(self._members[0], todo)
        yield len(todo)


def lay_out(
    job: PolicyEvaluationJob,
    name: str,
    prompt: Mapping[str, str],
    places: Mapping[str, Mapping[str, str]],
    how: Sequence[Any],
    root: Path,
) -> Questions:
    """Write down what a model is asked; nothing is answered yet.

    Args:
        job: says how responses are drawn.
        name: of the model and of what it is asked for, a path below ``answers``.
        prompt: the entry of the prompts file.
        places: by speech id, what stands for the places in it.
        how: what else decides the answers: `mark` of a model with its engine's settings, or the API's model.
        root: the run directory.
    """
    rows = [{"speech_id": key, "speech": fill(prompt["user"], dict(places[key]))} for key in sorted(places)]
    texts = key_of(prompt.get("system"), rows)
    asked = root / "questions" / texts
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row["speech_id"][: shards.digits(len(rows))], []).append(row)
    for part, of in by_part.items():
        shards.write(asked, part, of, _ASKED)
    return Questions(
        pool=(name,),
        per_speech=1,
        seed=job.seed,
        prompt={**prompt, "user": "{client_speech}"},  # which is the whole text, already filled in
        temperature=job.sampling.temperature,
        top_p=1.0,
        max_tokens=job.sampling.max_tokens,
        root=asked,
        answers=root / "answers" / name / key_of(list(how), job.sampling.model_dump(), job.seed, texts),
    )


def generate(job: PolicyEvaluationJob, name: str, model: str, asked: Sequence[Questions], progress: Progress) -> None:
    """Let a model answer what it has not answered yet, on engines that load it once.

    Args:
        job: engines and deadlines.
        name: of the model.
        model: as `checkpoint` gives it.
        asked: all that it is asked.
        progress: shows how far it is.
    """
    work = [(questions, bundle) for questions in asked for bundle in _bundles(questions, job)]
    if not work:
        return
    member = ResponderModel(name=name, model=model)
    pool = ActorPool(
        "responder",
        lambda index: (
            ray.remote(Answerer)
            .options(**placement.pool_options(job.rollouts, actor_environment(job.rollouts)))
            .remote(member, work[0][0], job)
        ),
        min(job.rollouts.actors, len(work)),
        start_s=job.deadlines.start_s,
        item_s=job.deadlines.item_s,
    )
    try:
        pool.wait_ready()
        for _ in progress.track(pool.stream("answer", work, what=f"{name} answers"), f"{name} answers", len(work)):
            pass
    finally:
        pool.close()


def call(
    name: str, endpoint: Endpoint, questions: Questions, journal: Path, max_cost: float | None, progress: Progress
) -> float:
    """Let a model behind an API answer what it has not answered yet; the dollars that this took.

    Raises:
        BudgetExceededError, UnavailableError, InputError: as `CallRun.execute`.
    """
    stage = ApiStage(ResponderModel(name=name, api=endpoint), questions)
    calls = CallRun(f"{name} answers", stage, shards.list_shards(questions.root), journal)
    return calls.execute(max_cost, progress)


def checkpoint(model: str, max_model_len: int) -> str:
    """What engines load for a model: a directory, or a packaged name or hub id as it is.

    Args:
        model: one of these, or the directory of a training run, whose ``summary.json`` names the checkpoint.
        max_model_len: tokens of prompt and response that it must hold.

    Raises:
        InputError: there is no such model, or it holds fewer tokens.
    """
    directory = Path(model).expanduser()
    found = str(directory.absolute()) if directory.is_dir() else model
    summary = directory / "summary.json"
    if summary.exists() and not (directory / "config.json").exists():
        named = json.loads(summary.read_text(encoding="utf-8")).get("checkpoint")
        if named is None:
            raise InputError(f"{summary} names no checkpoint; name the directory of the model itself")
        inside = directory.joinpath(*Path(named.partition("?")[0]).parts[-2:])  # the run may have been moved
        if inside.is_dir():
            found = storage.absolute(inside)
        elif is_remote(named) or Path(named).is_dir():
            found = storage.absolute(named)
        else:
            found = named  # the base model, where no policy was better
    context = loading.max_positions(loading.resolve(found))
    if context is not None and context < max_model_len:
        raise InputError(f"{model} holds {context} tokens, rollouts.max_model_len is {max_model_len}; lower it")
    return found


def mark(model: str) -> str:
    """A hash that changes when the files of a model do.

    Args:
        model: as `checkpoint` gives it.
    """
    states = loading.model_fingerprint(loading.resolve(model))
    return key_of([name for name, _ in states], [state for _, state in states])


def _bundles(questions: Questions, job: PolicyEvaluationJob) -> Iterator[list[str]]:
    """Missing parts put together: enough to keep an engine full, few enough that every engine gets some."""
    missing = {part: len(shards.read(questions.root, part)) for part in questions.missing()}
    wanted = min(4 * job.rollouts.max_num_seqs, math.ceil(sum(missing.values()) / job.rollouts.actors))
    bundle, size = list[str](), 0
    for part, count in missing.items():
        bundle.append(part)
        size += count
        if size >= wanted:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle
