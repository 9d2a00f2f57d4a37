"""Responses by models drawn from a pool: open ones on vLLM engines, commercial ones over their API (paper §3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from psyco_ray.config import job_file
from psyco_ray.config.data import Respond
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.config.job_file import Positive, Section
from psyco_ray.config.prompts import prompt_messages
from psyco_ray.config.resources import Rollouts
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.judge.client import Call
from psyco_ray.judge.pipeline import Question, Row
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.schemas import RESPONSES, SET_ASIDE
from psyco_ray.run.types import Prompt

PACKAGED_POOL = Path(__file__).with_name("responders.yaml")
"""The models of the paper (table 6)."""


class ResponderModel(Section):
    """A model of the pool."""

    name: str
    model: str | None = None  # an open one: a packaged name, a directory or a hub id
    api: Endpoint | None = None  # or a commercial one
    temperature: Positive | None = None  # if not the job's
    rollouts: dict[str, Any] = Field(default_factory=dict)  # settings of its engines that differ from the job's
    trust_remote_code: bool = False  # its repository brings code that has to run here
    size: str | None = None  # class of size
    family: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.model is None) == (self.api is None):
            raise InputError(f"{self.name} needs either model or api")
        return self


def load_pool(settings: Respond) -> list[ResponderModel]:
    """The models of the pool file that a job names.

    Raises:
        InputError: a wrong entry, a name that comes twice, fewer members than are drawn, or members whose code was not
            allowed to run.
    """
    path = PACKAGED_POOL if settings.pool == "default" else Path(settings.pool)
    entries, where = job_file.read_yaml(path, "pool file"), settings.pool
    if not isinstance(entries, list):
        raise InputError(f"pool file {where} must hold a list of members")
    found = [
        job_file.parse(ResponderModel, entry, f"pool file {where}: member {number}")
        for number, entry in enumerate(entries, start=1)
    ]
    names = [member.name for member in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"pool file {where}: two members are named {name}")
        if name != directory_of(name):
            raise InputError(f"pool file {where}: the name {name!r} may have letters, digits, dots, - and _ alone")
    if len(found) < settings.per_speech:
        raise InputError(f"pool file {where} has {len(found)} members; respond.per_speech draws {settings.per_speech}")
    coded = [member.name for member in found if member.trust_remote_code]
    if coded and not settings.trust_remote_code:
        raise InputError(
            f"pool file {where}: {', '.join(coded)} would run code out of their repositories; set "
            "respond.trust_remote_code=true if you trust it, or leave them out of a pool file of your own"
        )
    return found


def directory_of(name: str) -> str:
    """A member's name as the name of a directory."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def drawn(pool: list[str], speech_id: str, count: int, seed: int) -> set[str]:
    """The members that answer a speech, by a hash: a new member changes few of the draws of others."""
    by_hash = sorted(pool, key=lambda name: hashlib.sha256(f"{seed}:{speech_id}:{name}".encode()).digest())
    return set(by_hash[:count])


@dataclass(frozen=True)
class Assignment:
    """What every member is asked, and which speeches are its own."""

    pool: tuple[str, ...]
    per_speech: int
    seed: int
    prompt: dict[str, str]
    temperature: float
    top_p: float
    max_tokens: int
    root: Path  # of the dataset

    def of(self, member: ResponderModel, part: str) -> list[Row]:
        """The speeches of a part that a member answers."""
        rows = shards.read(self.root / "collect" / "speeches", part)
        pool = list(self.pool)
        return [row for row in rows if member.name in drawn(pool, row["speech_id"], self.per_speech, self.seed)]

    def out(self, member: ResponderModel) -> Path:
        """The directory of a member's parts."""
        return self.root / "respond" / "members" / member.name

    def seed_of(self, member: ResponderModel, speech_id: str) -> int:
        """The seed of a response."""
        return int(key_of(self.seed, "respond", member.name, speech_id), 16) % 2**31


@dataclass(frozen=True)
class ApiStage:
    """A commercial member's share: one call a speech."""

    member: ResponderModel
    share: Assignment
    attempts = 3
    schema = RESPONSES

    @property
    def endpoint(self) -> Endpoint:
        """The member's API."""
        assert self.member.api is not None
        return self.member.api

    @property
    def out(self) -> Path:
        """The directory of its parts."""
        return self.share.out(self.member)

    def questions(self, part: str) -> Iterator[Question]:
        """A question for each speech of the member's share."""
        share, member = self.share, self.member
        for row in share.of(member, part):
            call = Call(
                tuple(prompt_messages(share.prompt, row["speech"])),
                None,
                share.max_tokens,
                temperature=member.temperature or share.temperature,
                top_p=share.top_p,
                seed=share.seed_of(member, row["speech_id"]),
            )
            yield Question(
                row["speech_id"], member.name, call, _not_empty, partial(_row, row["speech_id"], member.name)
            )


class Responder:
    """An engine that answers the shares of the members with its model (a worker of Ray Data)."""

    def __init__(self, sharers: list[ResponderModel], share: Assignment, settings: Rollouts) -> None:
        from psyco_ray.models import loading
        from psyco_ray.rollout.engine import Engine

        assert sharers[0].model is not None
        path = loading.resolve(sharers[0].model)
        self._members, self._share, self._settings = sharers, share, settings
        trusted = sharers[0].trust_remote_code
        self._tokenizer = loading.load_tokenizer(path, trusted)
        self._engine = Engine(path, settings, share.seed, trusted)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answer the shares of some parts, member by member, and write each part once."""
        todo = str(batch["parts"][0]).split()
        for member in self._members:
            done = set(shards.list_shards(self._share.out(member)))
            self._answer(member, [part for part in todo if part not in done])
        return {"done": [" ".join(todo)]}

    def _answer(self, member: ResponderModel, todo: list[str]) -> None:
        from psyco_ray.models import loading

        share = self._share
        room = self._settings.max_model_len - share.max_tokens
        prompts: list[Prompt] = []
        part_of: dict[str, str] = {}
        rows: dict[str, list[Row]] = {part: [] for part in todo}
        aside: dict[str, list[Row]] = {part: [] for part in todo}
        for part in todo:
            for row in share.of(member, part):
                key = row["speech_id"]
                ids = loading.conversation_ids(self._tokenizer, prompt_messages(share.prompt, row["speech"]))
                if len(ids) > room:
                    aside[part].append(_too_long(key, member, len(ids), room))
                    continue
                part_of[key] = part
                prompts.append(Prompt(key, tuple(ids), share.seed_of(member, key)))
        if prompts:
            temperature = member.temperature or share.temperature
            for group in self._engine.generate(prompts, 1, temperature, share.top_p, share.max_tokens):
                key, (response,) = group.prompt.speech_id, group.responses
                text = response.text.strip()
                if text:
                    rows[part_of[key]] += _row(key, member.name, text, response.finished)
                else:
                    empty = {"speech_id": key, "what": member.name, "reason": "empty answer", "answer": ""}
                    aside[part_of[key]].append(empty)
        for part in todo:
            shards.write(share.out(member) / "set-aside", part, aside[part], SET_ASIDE)
            shards.write(share.out(member), part, sorted(rows[part], key=lambda r: r["speech_id"]), RESPONSES)


def merge(pool: list[ResponderModel], share: Assignment, part: str) -> int:
    """Bring the members' responses to a part's speeches together; returns their number."""
    rows = [row for member in pool for row in shards.read(share.out(member), part)]
    aside = [row for member in pool for row in shards.read(share.out(member) / "set-aside", part)]
    rows.sort(key=lambda row: (row["speech_id"], row["model"]))
    out = share.root / "respond"
    shards.write(out / "set-aside", part, aside, SET_ASIDE)
    shards.write(out, part, rows, RESPONSES)
    return len(rows)


def _not_empty(text: str) -> str:
    if not text.strip():
        raise UnreadableAnswerError("the answer is empty")
    return text.strip()


def _row(speech_id: str, model: str, text: str, finished: bool) -> list[Row]:
    return [{"speech_id": speech_id, "model": model, "response": text, "finished": finished}]


def _too_long(speech_id: str, member: ResponderModel, tokens: int, room: int) -> Row:
    reason = f"the prompt takes {tokens} tokens, {room} fit; raise respond.rollouts.max_model_len"
    return {"speech_id": speech_id, "what": member.name, "reason": reason, "answer": None}
