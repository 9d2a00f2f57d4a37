"""The workers of a stream of calls: a schedule of parts, a reader of their questions, and callers that ask them.

Schedule -- next part --> Questions -- a row per question --> Caller -- a row per answer --> AnswerStream (driver)
    ^                                                                                            |
    +------------------------- parts that are written, parts that became ready ------------------+
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import EndpointError, InputError
from psyco_ray.judge.ask import Asker, AskResult
from psyco_ray.judge.calls import Call
from psyco_ray.judge.client import UnavailableError
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import BudgetExceededError, Limiter
from psyco_ray.run.types import Row

PARTS_PER_CALLER = 4  # of a stage, in flight at the same time, so that no caller idles at the end of a part

STOPPING = (BudgetExceededError, UnavailableError, EndpointError, InputError)
"""Errors that stop all calls of a command. Workers return them as rows: an exception discards answers in flight."""

QUESTIONS = pa.schema(
    [
        ("stage", pa.int64()),  # its place among the stages of the stream
        ("part", pa.string()),
        ("place", pa.int64()),  # of the question in its part
        ("of", pa.int64()),  # number of the part's questions; the one row of a part without any has 0
        ("speech_id", pa.string()),
        ("what", pa.string()),
        ("about", pa.string()),  # JSON
        ("call", pa.string()),  # JSON: messages, schema and sampling
    ]
)
ANSWERS = pa.schema(
    [
        ("stage", pa.int64()),
        ("part", pa.string()),
        ("place", pa.int64()),
        ("of", pa.int64()),
        ("rows", pa.string()),  # JSON: rows of the stage's table
        ("set_aside", pa.string()),  # JSON: a row of SET_ASIDE, or null
        ("stats", pa.string()),  # JSON: a CallStats
        ("stopped_by", pa.string()),  # JSON: the error that stopped the caller, or null
    ]
)
NO_STAGE = -1  # in the row of a ticket that got no part, because the stream was stopped


@dataclass(frozen=True)
class Question:
    """One call. It is data alone; the stage that asked it reads the answer."""

    speech_id: str
    what: str  # subject of the question, for rows that are set aside
    call: Call
    about: Row = field(default_factory=dict)  # JSON values that the stage needs to read the answer


class CallStage(Protocol):
    """A stage that consists of calls. It is pickled to the workers."""

    @property
    def endpoint(self) -> Endpoint:
        """The API."""

    @property
    def attempts(self) -> int:
        """Attempts per question before it is set aside."""

    @property
    def out(self) -> Path:
        """Directory of the stage's parts."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the stage's rows."""

    def questions(self, part: str) -> Iterator[Question]:
        """The questions of a part; the same calls every time."""

    def check(self, question: Question, text: str) -> Any:
        """The value in an answer.

        Raises:
            UnreadableAnswerError: the answer cannot be used.
        """

    def rows(self, question: Question, value: Any, finished: bool) -> list[Row]:
        """The rows of a checked value; `finished`: the answer was not cut off."""


@dataclass
class CallStats:
    """Counts of a part or of a stage."""

    units: int = 0  # questions
    set_aside: int = 0
    paid: int = 0  # calls sent
    reused: int = 0  # answers from the journal
    prompt_tokens: int = 0  # of all answers in use, whenever they were paid for
    completion_tokens: int = 0

    def __add__(self, other: CallStats) -> CallStats:
        return CallStats(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


class Schedule:
    """Decides which part is asked next: any that is ready, of the stage with the fewest parts in flight.

    A Ray actor; its methods wait without blocking each other.
    """

    def __init__(self, room: Sequence[int]) -> None:
        """Start without parts.

        Args:
            room: number of parts of each stage that may be in flight, which bounds the memory of the stream.
        """
        self._room = list(room)
        self._ready: list[deque[str]] = [deque() for _ in room]
        self._in_flight = [0] * len(room)
        self._given: dict[int, tuple[int, str]] = {}  # by ticket: Ray Data may ask again after a failure
        self._stopped_by: Mapping[str, str] | None = None
        self._changed = asyncio.Condition()

    async def add(self, stage: int, parts: Sequence[str]) -> None:
        """Parts whose questions can be asked now."""
        async with self._changed:
            self._ready[stage].extend(parts)
            self._changed.notify_all()

    async def take(self, ticket: int) -> tuple[int, str] | None:
        """Wait for the stage and part of a ticket; None if the stream is stopped."""
        async with self._changed:
            await self._changed.wait_for(lambda: ticket in self._given or self._stopped_by or self._open())
            if ticket not in self._given and not self._stopped_by:
                stage = min(self._open(), key=lambda index: self._in_flight[index])
                self._in_flight[stage] += 1
                self._given[ticket] = (stage, self._ready[stage].popleft())
            return None if self._stopped_by else self._given[ticket]

    async def written(self, stage: int) -> None:
        """A part of the stage is written."""
        async with self._changed:
            self._in_flight[stage] -= 1
            self._changed.notify_all()

    async def stop(self, reason: Mapping[str, str]) -> None:
        """Give out no further part, and tell the callers."""
        async with self._changed:
            self._stopped_by = self._stopped_by or reason
            self._changed.notify_all()

    async def stopped(self) -> Mapping[str, str]:
        """Wait for a stop; returns its reason."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopped_by)
            assert self._stopped_by is not None
            return self._stopped_by

    def _open(self) -> list[int]:
        """Stages with a ready part and room for it."""
        stages = range(len(self._room))
        return [index for index in stages if self._ready[index] and self._in_flight[index] < self._room[index]]


class Questions:
    """A worker of Ray Data that turns a ticket into the questions of the next part."""

    def __init__(self, stages: Sequence[CallStage], schedule: Any) -> None:
        self._stages, self._schedule = stages, schedule

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row per question."""
        import ray

        (ticket,) = batch["ticket"].to_pylist()
        if (item := ray.get(self._schedule.take.remote(ticket))) is None:
            return pa.Table.from_pylist([question_row(NO_STAGE, "", 0, 0, None)], schema=QUESTIONS)
        index, part = item
        questions = list(self._stages[index].questions(part))
        rows = [question_row(index, part, place, len(questions), q) for place, q in enumerate(questions)]
        return pa.Table.from_pylist(rows or [question_row(index, part, 0, 0, None)], schema=QUESTIONS)


class Caller:
    """An async worker of Ray Data that asks the questions of several parts and stages at the same time."""

    def __init__(self, stages: Sequence[CallStage], slots: Sequence[int], journal: str, meter: Any, schedule: Any):
        """Create the worker; clients are created with the first call, in its event loop.

        Args:
            stages: of the stream.
            slots: calls of each stage that this caller may have in flight.
            journal: directory of paid answers.
            meter: `BudgetMeter` over the stages.
            schedule: of the stream.
        """
        self._stages, self._slots, self._meter, self._schedule = stages, slots, meter, schedule
        writer = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._journal = Journal(Path(journal), writer)
        self._askers: dict[int, tuple[Asker, Limiter]] = {}
        self._stopped_by: Mapping[str, str] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer the questions of a part; every answer is in the journal before it is returned."""
        rows = batch.to_pylist()
        if rows[0]["stage"] == NO_STAGE:
            return pa.Table.from_pylist([], schema=ANSWERS)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        answers: list[Row] = []
        if self._stopped_by is None:
            try:
                answers = await self._answer(rows)
            except STOPPING as error:
                self._stop(described(error) | {"stage": str(rows[0]["stage"])})
        if self._stopped_by is not None:
            answers = [_answer_row(rows[0], stopped_by=self._stopped_by)]
        return pa.Table.from_pylist(answers, schema=ANSWERS)

    async def _answer(self, rows: Sequence[Row]) -> list[Row]:
        index, part, of = rows[0]["stage"], rows[0]["part"], rows[0]["of"]
        if not of:
            return [_answer_row(rows[0])]
        stage, (asker, limiter) = self._stages[index], self._asker(index)
        shard = asker.shard(part)
        questions = [question_of(row) for row in rows]
        results = await asyncio.gather(
            *(shard.ask(q.speech_id, q.call, partial(stage.check, q), stage.attempts) for q in questions),
            return_exceptions=True,  # the other calls in flight are paid for and kept
        )
        self._journal.sync()
        await limiter.close()  # the meter counts a finished part in full
        return [
            _result_row(stage, row, question, result)
            for row, question, result in zip(rows, questions, results, strict=True)
        ]

    def _asker(self, index: int) -> tuple[Asker, Limiter]:
        if index not in self._askers:
            limiter = Limiter(self._meter, index)
            endpoint = self._stages[index].endpoint.model_copy(update={"concurrency": self._slots[index]})
            self._askers[index] = (Asker(endpoint, self._journal, limiter), limiter)
        return self._askers[index]

    async def _watch(self) -> None:
        """Stop when another worker or the driver stops the stream."""
        self._stop(await self._schedule.stopped.remote())

    def _stop(self, reason: Mapping[str, str]) -> None:
        self._stopped_by = self._stopped_by or reason
        for asker, _ in self._askers.values():
            asker.stop(UnavailableError(reason["text"]))


def described(error: Exception) -> dict[str, str]:
    """An error as JSON."""
    return {"error": type(error).__name__, "text": str(error)}


def set_aside_row(speech_id: str, what: str, reason: str | None, answer: str | None) -> Row:
    """A row of SET_ASIDE."""
    return {"speech_id": speech_id, "what": what, "reason": reason, "answer": answer}


def question_row(stage: int, part: str, place: int, of: int, question: Question | None) -> Row:
    """A row of QUESTIONS; without a question that of a part without any."""
    row = {"stage": stage, "part": part, "place": place, "of": of}
    if question is None:
        return row | {"speech_id": "", "what": "", "about": "", "call": ""}
    call = replace(question.call, counted=question.call.prompt_tokens())  # counted once, here
    return row | {
        "speech_id": question.speech_id,
        "what": question.what,
        "about": json.dumps(question.about),
        "call": json.dumps(vars(call)),
    }


def question_of(row: Row) -> Question:
    """The question of a row of QUESTIONS."""
    return Question(row["speech_id"], row["what"], Call(**json.loads(row["call"])), json.loads(row["about"]))


def _answer_row(
    question: Row,
    rows: Sequence[Row] = (),
    set_aside: Row | None = None,
    stats: CallStats | None = None,
    stopped_by: Mapping[str, str] | None = None,
) -> Row:
    return {key: question[key] for key in ("stage", "part", "place", "of")} | {
        "rows": json.dumps(rows),
        "set_aside": json.dumps(set_aside),
        "stats": json.dumps(asdict(stats or CallStats())),
        "stopped_by": json.dumps(stopped_by),
    }


def _result_row(stage: CallStage, row: Row, question: Question, result: AskResult[Any] | BaseException) -> Row:
    """The row of a question's outcome.

    Raises:
        BudgetExceededError, UnavailableError, InputError: the outcome is this error.
    """
    if isinstance(result, BaseException):
        raise result
    stats = CallStats(1, 0, result.paid, result.reused, result.prompt_tokens, result.completion_tokens)
    if result.reason is None:
        return _answer_row(row, rows=stage.rows(question, result.value, result.finished), stats=stats)
    stats.set_aside = 1
    aside = set_aside_row(question.speech_id, question.what, result.reason, result.text)
    return _answer_row(row, set_aside=aside, stats=stats)
