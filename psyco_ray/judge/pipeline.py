"""Stages of API calls on Ray Data: actors ask about one part of the speeches at a time and write each part once.

A part is done when its file exists. Answers are in the journal before anything else happens to them, so a killed stage
that is started again pays at most for the calls that were in flight.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.judge.ask import Asker
from psyco_ray.judge.client import Call, UnavailableError
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import BudgetExceededError, BudgetMeter, Limiter
from psyco_ray.pool import placement
from psyco_ray.run import shards
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import SET_ASIDE
from psyco_ray.run.types import Row

PARTS_PER_CALLER = 4  # in flight at the same time, so that no caller idles at the end of a part

_STOPPING = {error.__name__: error for error in (BudgetExceededError, UnavailableError, InputError)}


@dataclass(frozen=True)
class Question:
    """One call. It is data alone; the stage that asked it reads the answer."""

    speech_id: str
    what: str  # subject of the question, for rows that are set aside
    call: Call
    about: Row = field(default_factory=dict)  # JSON values that the stage needs to read the answer


class CallStage(Protocol):
    """A stage that consists of calls. It is pickled to the callers."""

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


class Caller:
    """An async worker of Ray Data that asks the questions of a few parts concurrently."""

    def __init__(self, stage: CallStage, journal: str, meter: Any) -> None:
        self._stage, self._limiter = stage, Limiter(meter)
        writer = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._journal = Journal(Path(journal), writer)
        self._asker: Asker | None = None
        self._stopped_by: dict[str, str] | None = None

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Do a part. A stop is returned, not raised: an exception would discard the answers in flight."""
        if self._stopped_by is None:
            try:
                if self._asker is None:  # created here because it belongs to this event loop
                    self._asker = Asker(self._stage.endpoint, self._journal, self._limiter)
                await self._do(self._asker, str(batch["part"][0]))
            except (BudgetExceededError, UnavailableError, InputError) as error:
                self._stopped_by = {"error": type(error).__name__, "text": str(error)}
        return {"stopped_by": [json.dumps(self._stopped_by)]}

    async def _do(self, asker: Asker, part: str) -> None:
        stage, shard = self._stage, asker.shard(part)
        questions = list(stage.questions(part))
        results = await asyncio.gather(
            *(shard.ask(q.speech_id, q.call, partial(stage.check, q), stage.attempts) for q in questions),
            return_exceptions=True,  # the other calls in flight are paid for and kept
        )
        stats, rows, set_aside = CallStats(), list[Row](), list[Row]()
        for question, result in zip(questions, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            stats += CallStats(1, 0, result.paid, result.reused, result.prompt_tokens, result.completion_tokens)
            if result.reason is None:
                rows += stage.rows(question, result.value, result.finished)
            else:
                stats.set_aside += 1
                set_aside.append(set_aside_row(question.speech_id, question.what, result.reason, result.text))
        self._journal.sync()
        await self._limiter.close()  # the meter counts a finished part in full
        shards.write(stage.out / "set-aside", part, set_aside, SET_ASIDE)
        shards.write(stage.out, part, rows, stage.schema, facts=asdict(stats))


def run(
    stage: CallStage, parts: Sequence[str], journal: Path, max_cost: float | None, what: str, progress: Progress
) -> float:
    """Do parts of a stage. Ray must be running.

    Args:
        stage: the questions.
        parts: the parts, at least one; `CallRun` finds the missing ones.
        journal: directory of paid answers.
        max_cost: limit on the cost of the calls, in US dollars; None: no limit.
        what: the stage's name on the progress line.
        progress: receives finished parts and dollars.

    Returns:
        The cost of the calls in US dollars; 0 without prices.

    Raises:
        BudgetExceededError: the limit is reached; everything paid for is kept.
        UnavailableError: the server failed repeatedly.
        InputError: the server refuses the key or the model.
    """
    import ray

    endpoint = stage.endpoint
    meter = (
        ray.remote(BudgetMeter)
        .options(num_cpus=0)
        .remote(
            endpoint.requests_per_minute, endpoint.tokens_per_minute, endpoint.price_in, endpoint.price_out, max_cost
        )
    )
    stream = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map_batches(
        Caller,
        fn_constructor_kwargs={"stage": stage, "journal": str(journal), "meter": meter},
        batch_size=1,
        num_cpus=0,
        compute=ray.data.ActorPoolStrategy(
            size=min(endpoint.callers, len(parts)),
            max_tasks_in_flight_per_actor=PARTS_PER_CALLER + 2,
            max_concurrent_calls_per_actor=PARTS_PER_CALLER,
        ),
        **placement.writer_options(stage.out),
    )
    stopped_by = None
    for row in progress.track(stream.iter_rows(), what, len(parts)):
        # after a stop the other parts return at once; Ray Data must not be left with a half-read stream
        stopped_by = json.loads(row["stopped_by"]) or stopped_by
    dollars: float = ray.get(meter.spent.remote(), timeout=60)["cost"]
    progress.spend(dollars)
    if stopped_by is not None:
        raise _STOPPING[stopped_by["error"]](stopped_by["text"])
    return dollars


def set_aside_row(speech_id: str, what: str, reason: str | None, answer: str | None) -> Row:
    """A row of SET_ASIDE."""
    return {"speech_id": speech_id, "what": what, "reason": reason, "answer": answer}
