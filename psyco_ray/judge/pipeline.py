"""Stages that ask an API about every speech: Ray Data hands out parts, callers ask and write each part once.

A part is done when its file is there. What was paid for is in the journal before anything else happens with it, so
that a killed stage, started again, pays for at most the calls that were in flight.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.judge.ask import Asker, AskResult
from psyco_ray.judge.client import Call, UnavailableError
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.rate_limit import BudgetExceededError, BudgetMeter, Limiter
from psyco_ray.pool import placement
from psyco_ray.run import shards
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import SET_ASIDE

Row = dict[str, Any]

PARTS_AT_A_TIME = 4  # of each caller, so that the end of one part is hidden behind the next


@dataclass(frozen=True)
class Question:
    """One thing to find out: a call, how its answer is read, and the rows that come of it."""

    speech_id: str
    what: str  # what is asked, for rows that are set aside
    call: Call
    check: Callable[[str], Any]  # raises ValueError with what is wrong
    rows: Callable[[Any, bool], list[Row]]  # of the checked value, and whether the answer was finished


class CallStage(Protocol):
    """A stage that consists of calls; it travels to the callers."""

    @property
    def endpoint(self) -> Endpoint:
        """Whom to ask."""

    @property
    def attempts(self) -> int:
        """Questions before a unit is set aside."""

    @property
    def out(self) -> Path:
        """The directory of its parts."""

    @property
    def schema(self) -> pa.Schema:
        """Of its rows."""

    def units(self, part: str) -> Iterator[Question]:
        """What there is to ask in a part; the same calls every time."""


@dataclass
class CallStats:
    """Counts of a part or of a stage."""

    units: int = 0
    set_aside: int = 0
    paid: int = 0  # calls sent
    reused: int = 0  # answers that the journal had
    prompt_tokens: int = 0  # of all answers in use, whenever they were paid for
    completion_tokens: int = 0

    def __add__(self, other: CallStats) -> CallStats:
        return CallStats(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


class Caller:
    """Asks for one part after another, several at a time (an async worker of Ray Data)."""

    def __init__(self, stage: CallStage, journal: str, meter: Any) -> None:
        self._stage, self._limiter = stage, Limiter(meter)
        writer = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._journal = Journal(Path(journal), writer)
        self._asker: Asker | None = None
        self._stopped: dict[str, str] | None = None

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Do a part; a stop for all is told in the result, for an exception would cost the answers in flight."""
        told: dict[str, Any] = {}
        if self._stopped is None:
            try:
                if self._asker is None:  # here, for it belongs to this event loop
                    self._asker = Asker(self._stage.endpoint, self._journal, self._limiter)
                told = {"facts": asdict(await self._do(str(batch["part"][0])))}
            except (BudgetExceededError, UnavailableError, InputError) as error:
                self._stopped = {"error": type(error).__name__, "text": str(error)}
        return {"told": [json.dumps(told or self._stopped)]}

    async def _do(self, part: str) -> CallStats:
        assert self._asker is not None
        stage, desk = self._stage, self._asker.desk(part)
        units = list(stage.units(part))
        asked = await asyncio.gather(
            *(desk.ask(unit.speech_id, unit.call, unit.check, stage.attempts) for unit in units),
            return_exceptions=True,  # whatever ends the stage, the other calls in flight are paid for and kept
        )
        facts, rows, aside = CallStats(), list[Row](), list[Row]()
        for unit, found in zip(units, asked, strict=True):
            if isinstance(found, BaseException):
                raise found
            facts += CallStats(1, 0, found.paid, found.reused, found.prompt_tokens, found.completion_tokens)
            if found.reason is None:
                rows += unit.rows(found.value, found.finished)
            else:
                facts.set_aside += 1
                aside.append(_aside(unit, found))
        self._journal.sync()
        await self._limiter.close()  # a done part is on the meter
        shards.write(stage.out / "set-aside", part, aside, SET_ASIDE)
        shards.write(stage.out, part, rows, stage.schema, facts=asdict(facts))
        return facts


def run(
    stage: CallStage, todo: Sequence[str], journal: Path, max_cost: float | None, what: str, progress: Progress
) -> tuple[CallStats, float]:
    """Do the parts of a stage that are not done.

    Args:
        stage: what to ask.
        todo: all parts.
        journal: directory of paid calls.
        max_cost: dollars that the calls may cost; None: no limit.
        what: the stage's name on the progress line.
        progress: shows how far it is.

    Returns:
        The facts of the parts done now, and the dollars that their calls cost (0 where prices are not known).

    Raises:
        BudgetExceededError: the limit was reached; everything paid for is kept.
        UnavailableError: the server failed again and again.
        InputError: the server refuses the key or the model.
    """
    import ray

    done = set(shards.list_shards(stage.out))
    missing = [part for part in todo if part not in done]
    if not missing:
        return CallStats(), 0.0
    endpoint = stage.endpoint
    meter = (
        ray.remote(BudgetMeter)
        .options(num_cpus=0)
        .remote(
            endpoint.requests_per_minute, endpoint.tokens_per_minute, endpoint.price_in, endpoint.price_out, max_cost
        )
    )
    stream = ray.data.from_items([{"part": part} for part in missing], override_num_blocks=len(missing)).map_batches(
        Caller,
        fn_constructor_kwargs={"stage": stage, "journal": str(journal), "meter": meter},
        batch_size=1,
        num_cpus=0,
        compute=ray.data.ActorPoolStrategy(
            size=min(endpoint.callers, len(missing)),
            max_tasks_in_flight_per_actor=PARTS_AT_A_TIME + 2,
            max_concurrent_calls_per_actor=PARTS_AT_A_TIME,
        ),
        **placement.writer_options(stage.out),
    )
    facts, stopped = CallStats(), None
    for row in progress.track(stream.iter_rows(), what, len(missing)):
        told = json.loads(row["told"])
        if "error" in told:
            stopped = told  # the other parts come back at once; Ray must not be left with a stream half read
        else:
            facts += CallStats(**told["facts"])
    dollars = ray.get(meter.spent.remote(), timeout=60)["cost"]
    progress.spend(dollars)
    if stopped is not None:
        raise {
            "BudgetExceededError": BudgetExceededError,
            "UnavailableError": UnavailableError,
            "InputError": InputError,
        }[stopped["error"]](stopped["text"])
    return facts, dollars


def _aside(unit: Question, found: AskResult[Any]) -> Row:
    return {"speech_id": unit.speech_id, "what": unit.what, "reason": found.reason, "answer": found.text}
