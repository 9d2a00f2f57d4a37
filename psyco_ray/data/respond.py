"""Responses by models drawn from a pool: open models on vLLM engines, commercial ones over an API (paper §3.3)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from psyco_ray.config import job_file
from psyco_ray.config.contexts import Context
from psyco_ray.config.data import Respond
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.config.job_file import Name, Positive, Section, TemplateOptions
from psyco_ray.config.keys import refuse_keys
from psyco_ray.config.prompts import prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.data.draws import Draw
from psyco_ray.judge import outside_texts
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.judge.callers import Question
from psyco_ray.judge.calls import Call
from psyco_ray.run import hub, reasoning, shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.schemas import RESPONSES, SET_ASIDE
from psyco_ray.run.types import Row

EMPTY = "the answer is empty"
"""Why an answer without text is set aside."""

MOST_UNFINISHED = 0.5
"""Share of unfinished answers above which the stage stops: its pairs would teach to stop in the middle."""

PACKAGED_POOL = Path(__file__).with_name("responders.yaml")
"""The models of the paper (table 6)."""


class ResponderModel(Section):
    """A model of the pool."""

    name: Name
    model: str | None = None  # open: a packaged name, a directory or a hub id
    api: Endpoint | None = None  # commercial
    temperature: Positive | None = None  # None: the job's
    rollouts: dict[str, Any] = Field(default_factory=dict)  # engine settings that differ from the job's
    revision: str | None = None  # commit of a hub id
    allow_code: bool = False  # its repository holds code that must run here
    template_options: TemplateOptions = Field(default_factory=dict)  # of an open model's chat template
    size: str | None = None  # size class
    family: str | None = None

    @model_validator(mode="after")
    def _model_or_api(self) -> Self:
        if (self.model is None) == (self.api is None):
            raise ValueError(f"{self.name} needs either model or api")
        if self.template_options and self.model is None:
            raise ValueError(f"{self.name} is behind an API, which renders its prompts; leave template_options out")
        if self.allow_code and self.model and not is_directory(self) and not hub.is_commit(self.revision):
            raise ValueError(
                f"{self.name} would run whatever code its repository holds that day; pin its revision, the 40 hex "
                "digits of a commit that you have read"
            )
        return self

    def engines(self, rollouts: Rollouts) -> Rollouts:
        """Engines of an open model: the job's, with the member's own settings.

        A member with more GPUs for each engine has fewer engines: as many as fit on the job's GPUs.

        Raises:
            InputError: one of its settings is invalid.
        """
        settings = rollouts.model_dump(exclude_unset=True) | self.rollouts  # defaults depend on the member's GPUs
        gpus = settings.get("gpus")
        if "actors" not in self.rollouts and isinstance(gpus, int | float) and gpus > rollouts.gpus:
            settings["actors"] = max(1, int(rollouts.actors * rollouts.gpus // gpus))
        return job_file.parse(Rollouts, settings, f"pool member {self.name}: rollouts")


def load_pool(settings: Respond) -> list[ResponderModel]:
    """Read the pool file that a job names.

    Raises:
        InputError: an entry is invalid or holds a key, a name repeats, the pool is smaller than `per_speech`, a model
            needs code that the job does not allow, or its revision is not pinned.
    """
    path = PACKAGED_POOL if settings.pool == "default" else Path(settings.pool)
    entries, where = job_file.read_yaml(path, "pool file"), settings.pool
    refuse_keys(entries, f"pool file {where}")  # messages and records name the addresses of members
    if not isinstance(entries, list):
        raise InputError(f"pool file {where} must hold a list of members")
    pool = [
        job_file.parse(ResponderModel, entry, f"pool file {where}: member {number}")
        for number, entry in enumerate(entries, start=1)
    ]
    names = [responder.name for responder in pool]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"pool file {where}: two members are named {name}")
        if not re.fullmatch(r"(?:[^\W_]|[._-])*", name):  # it names a directory
            raise InputError(f"pool file {where}: the name {name!r} may have letters, digits, dots, - and _ alone")
    if len(pool) < settings.per_speech:
        raise InputError(f"pool file {where} has {len(pool)} members; respond.per_speech draws {settings.per_speech}")
    with_code = [responder.name for responder in pool if responder.allow_code]
    if with_code and not settings.allow_code:
        raise InputError(
            f"pool file {where}: {', '.join(with_code)} would run code from their repositories; set "
            "respond.allow_code=true if you trust it, or leave them out of a pool file of your own"
        )
    for responder in pool:
        responder.engines(settings.rollouts)
    return pool


def is_directory(member: ResponderModel) -> bool:
    """Whether the model of a pool's member is a local directory, not a hub id, a packaged name or behind an API."""
    return member.model is not None and Path(member.model).expanduser().is_dir()


@dataclass(frozen=True)
class ResponseSampling:
    """How responses are sampled."""

    prompt: Mapping[str, str]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class ResponseTask:
    """The speeches that one model answers, how it samples, and where its responses are stored, part by part.

    Example:
        >>> task = ResponseTask("gemma-3-4b-it", sampling, root / "speeches", root / "answers")
        >>> for part in task.missing():
        ...     speeches = task.rows(part)
    """

    name: str  # of the model, in the tables
    sampling: ResponseSampling
    speeches: Path  # directory of parts with speech_id and speech
    out: Path  # directory of the responses
    draw: Draw | None = None  # None: all speeches
    round: int = 0  # of the draw
    only: tuple[str, ...] | None = None  # the parts in which the model has speeches; None: all parts

    def rows(self, part: str) -> list[Row]:
        """The speeches of a part that the model answers."""
        rows = shards.read(self.speeches, part)
        if self.draw is None:
            return rows
        draw, seed = self.draw, self.sampling.seed
        return [row for row in rows if draw.holders(row["speech_id"], part, seed).get(self.name) == self.round]

    def parts(self) -> list[str]:
        """The parts to answer."""
        return shards.list_shards(self.speeches) if self.only is None else [*self.only]

    def missing(self) -> list[str]:
        """The parts without responses."""
        done = set(shards.list_shards(self.out))
        return [part for part in self.parts() if part not in done]

    def messages(self, speech: str) -> list[dict[str, str]]:
        """The conversation that asks for a response."""
        return prompt_messages(self.sampling.prompt, speech)

    def seed_of(self, speech_id: str) -> int:
        """The seed of a response."""
        return int(key_of(self.sampling.seed, "respond", self.name, speech_id), 16) % 2**31

    def write(self, part: str, rows: Sequence[Row], set_aside: Sequence[Row]) -> None:
        """Store a part; it is done afterwards."""
        shards.write(self.out / "set-aside", part, set_aside, SET_ASIDE)
        shards.write(self.out, part, sorted(rows, key=lambda row: row["speech_id"]), RESPONSES)


@dataclass(frozen=True)
class ApiStage:
    """The task of a model behind an API: one call per speech."""

    endpoint: Endpoint
    task: ResponseTask
    attempts = 3
    schema = RESPONSES

    @property
    def out(self) -> Path:
        """Directory of the responses."""
        return self.task.out

    def questions(self, part: str) -> Iterator[Question]:
        """One question per speech of the task."""
        task, sampling = self.task, self.task.sampling
        for row in task.rows(part):
            context = Context.of(row["speech"]).map(outside_texts.as_data)
            call = Call(
                tuple(task.messages(context.text)),
                None,
                sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=task.seed_of(row["speech_id"]),
            )
            yield Question(row["speech_id"], task.name, call)

    def check(self, question: Question, text: str) -> str:
        """The response in an answer."""
        _, answer = reasoning.split(text)
        if not answer.strip():
            raise UnreadableAnswerError(EMPTY)
        return answer.strip()

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The row of a response."""
        return [response_row(question.speech_id, self.task.name, value, finished)]


def merge(tasks: Sequence[ResponseTask], out: Path, part: str) -> int:
    """Write all models' responses to the speeches of a part to one directory; returns their number."""
    tasks = [task for task in tasks if part in task.parts()]
    rows = [row for task in tasks for row in shards.read(task.out, part)]
    set_aside = [row for task in tasks for row in shards.read(task.out / "set-aside", part)]
    rows.sort(key=lambda row: (row["speech_id"], row["model"]))
    shards.write(out / "set-aside", part, set_aside, SET_ASIDE)
    shards.write(out, part, rows, RESPONSES)
    return len(rows)


@dataclass(frozen=True)
class Finished:
    """How many answers of a pool member are finished."""

    answers: int  # also those without text
    unfinished: int  # cut at the token limit, or without text


def count_finished(tasks: Sequence[ResponseTask]) -> dict[str, Finished]:
    """Count the answers of each member, in all finished parts of its tasks."""
    counts: dict[str, Finished] = {}
    for task in tasks:
        answers = unfinished = 0
        for part in shards.list_shards(task.out):
            rows = shards.read(task.out, part)
            empty = sum(row["reason"].startswith(EMPTY) for row in shards.read(task.out / "set-aside", part))
            answers += len(rows) + empty
            unfinished += sum(not row["finished"] for row in rows) + empty
        before = counts.get(task.name, Finished(0, 0))
        counts[task.name] = Finished(before.answers + answers, before.unfinished + unfinished)
    return counts


def check_finished(members: Mapping[str, Finished], max_tokens: int) -> None:
    """Check that most answers of all members together are finished.

    Args:
        members: counts by name.
        max_tokens: the limit that cut the others, for the message.

    Raises:
        InputError: more than half of the answers are unfinished.
    """
    total = sum(member.answers for member in members.values())
    share = sum(member.unfinished for member in members.values()) / max(1, total)
    if share > MOST_UNFINISHED:
        worst = sorted(members.items(), key=lambda item: (-item[1].unfinished, item[0]))[:3]
        named = ", ".join(f"{name} {member.unfinished} of {member.answers}" for name, member in worst)
        raise InputError(
            f"respond: {share:.0%} of {total} answers are empty or cut at respond.max_tokens {max_tokens}, most of "
            f"{named}; raise respond.max_tokens, or set pair.unfinished=allow to make pairs of them as they are"
        )


def response_row(speech_id: str, model: str, text: str, finished: bool) -> Row:
    """A row of RESPONSES."""
    return {"speech_id": speech_id, "model": model, "response": text, "finished": finished}
