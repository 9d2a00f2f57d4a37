"""Stages of API calls as one stream of Ray Data: a row per question, a row per answer, and a file per finished part.

A part is done when its file exists. Answers are in the journal before anything else happens to them, so a killed
command that is started again pays at most for the calls that were in flight. Stages of one stream overlap: a part is
asked as soon as it is ready, whatever other stages and parts do.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import EndpointError
from psyco_ray.judge.callers import (
    PARTS_PER_CALLER,
    STOPPING,
    Caller,
    CallStage,
    CallStats,
    Questions,
    Schedule,
    described,
)
from psyco_ray.judge.rate_limit import BudgetMeter, Usage
from psyco_ray.pool import placement
from psyco_ray.run import shards
from psyco_ray.run.progress import Counter, Progress
from psyco_ray.run.schemas import SET_ASIDE
from psyco_ray.run.types import Row

_REPLY_S = 600.0  # within which the actors of a stream start and reply to the driver

_STOPPING = {error.__name__: error for error in STOPPING}


@dataclass(frozen=True)
class StreamedStage:
    """A stage in a stream of calls."""

    name: str  # on the progress line
    stage: CallStage
    parts: Sequence[str]  # to do
    on_part: Callable[[str], None] | None = None  # called in the driver with each part that is written


class AnswerStream:
    """Stages that are asked at the same time, with one budget. Ray must be running.

    Example:
        >>> stream = AnswerStream([StreamedStage("verdicts", stage, parts)], journal=root / "journal", max_cost=5.0)
        >>> stream.ready(0, parts)
        >>> dollars = stream.run(Progress())
    """

    def __init__(self, stages: Sequence[StreamedStage], journal: Path, max_cost: float | None) -> None:
        """Start the actors that count and schedule.

        Args:
            stages: what is asked; none has parts that are done.
            journal: directory of paid answers.
            max_cost: limit on the cost of all calls, in US dollars; None: no limit.
        """
        import ray

        self._stages, self._journal = stages, journal
        endpoints = [streamed.stage.endpoint for streamed in stages]
        self._room = [PARTS_PER_CALLER * endpoint.callers for endpoint in endpoints]
        self._meter = ray.remote(BudgetMeter).options(num_cpus=0).remote(endpoints, max_cost)
        self._schedule = ray.remote(Schedule).options(num_cpus=0).remote(self._room)
        self._lock = threading.Lock()
        self._error: Exception | None = None  # the first one

    def ready(self, stage: int, parts: Sequence[str]) -> None:
        """Parts of a stage whose questions can be asked from now on. May be called from any thread.

        Args:
            stage: its place among the stages.
            parts: each of its `parts` becomes ready once.
        """
        self._reply(self._schedule.add.remote(stage, parts))

    def stop(self, error: Exception) -> None:
        """Send no further call; `run` raises the first error. May be called from any thread."""
        with self._lock:
            self._error = self._error or error
        self._reply(self._schedule.stop.remote(described(error)))

    def reserve_batch(self, stage: int, dollars: float) -> float | None:
        """As `BudgetMeter.reserve_batch`."""
        left: float | None = self._reply(self._meter.reserve_batch.remote(stage, dollars))
        return left

    def report_batch(self, stage: int, used: Usage, calls: int) -> None:
        """As `BudgetMeter.report_batch`."""
        self._reply(self._meter.report_batch.remote(stage, used, calls))

    def run(self, progress: Progress) -> float:
        """Ask until all parts of all stages are written; ends when the last of them has become ready and is done.

        Args:
            progress: receives finished parts and dollars.

        Returns:
            The cost of the calls in US dollars; 0 without prices.

        Raises:
            BudgetExceededError: the limit is reached; everything paid for is kept.
            UnavailableError: a server failed repeatedly.
            InputError: a server refuses the key or the model, or a part cannot be written.
        """
        counters = [progress.counter(streamed.name, len(streamed.parts)) for streamed in self._stages]
        arrived: dict[tuple[int, str], dict[int, Row]] = {}  # answers by the place of their question, of each part
        try:
            # after a stop the other parts return at once; Ray Data must not be left with a half-read stream
            for table in self._answers():
                for row in table.to_pylist():
                    try:
                        self._take(row, arrived, counters)
                    except Exception as error:  # noqa: BLE001 - raised below
                        self.stop(error)
        finally:
            for counter in counters:
                counter.close()
        dollars: float = self._reply(self._meter.spent.remote())["cost"]
        progress.spend(dollars)
        if self._error is not None:
            raise self._error
        assert not arrived, "the stream lost answers"
        return dollars

    def _answers(self) -> Any:
        """Tables of ANSWERS, as parts are answered."""
        import ray

        stages = [streamed.stage for streamed in self._stages]
        callers = max(stage.endpoint.callers for stage in stages)
        slots = [math.ceil(stage.endpoint.concurrency * stage.endpoint.callers / callers) for stage in stages]
        tickets = sum(len(streamed.parts) for streamed in self._stages)
        in_flight = math.ceil(sum(self._room) / callers)
        stream = (
            ray.data.from_items([{"ticket": number} for number in range(tickets)], override_num_blocks=tickets)
            .map_batches(
                Questions,
                fn_constructor_kwargs={"stages": stages, "schedule": self._schedule},
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=0,
                compute=ray.data.ActorPoolStrategy(size=1),
                **placement.on_this_node(),  # reads what this process has written
            )
            .map_batches(
                Caller,
                fn_constructor_kwargs={
                    "stages": stages,
                    "slots": slots,
                    "journal": str(self._journal),
                    "meter": self._meter,
                    "schedule": self._schedule,
                },
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,
                compute=ray.data.ActorPoolStrategy(
                    size=callers, max_tasks_in_flight_per_actor=in_flight + 2, max_concurrent_calls_per_actor=in_flight
                ),
                **placement.caller_options(self._journal),
            )
        )
        return stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    def _take(self, row: Row, arrived: dict[tuple[int, str], dict[int, Row]], counters: Sequence[Counter]) -> None:
        """Keep an answer, and write its part with the last one."""
        if stopped_by := json.loads(row["stopped_by"]):
            error = _STOPPING[stopped_by["error"]](stopped_by["text"])
            if isinstance(error, EndpointError):
                error.stage = self._stages[int(stopped_by["stage"])].name
            self.stop(error)
            return
        index, name = row["stage"], row["part"]
        answers = arrived.setdefault((index, name), {})
        answers[row["place"]] = row
        if len(answers) < row["of"]:
            return
        del arrived[index, name]
        streamed = self._stages[index]
        rows, set_aside, stats = list[Row](), list[Row](), CallStats()
        for _, answer in sorted(answers.items()):
            rows += json.loads(answer["rows"])
            set_aside += [row for row in [json.loads(answer["set_aside"])] if row is not None]
            stats += CallStats(**json.loads(answer["stats"]))
        shards.write(streamed.stage.out / "set-aside", name, set_aside, SET_ASIDE)
        shards.write(streamed.stage.out, name, rows, streamed.stage.schema, facts=asdict(stats))
        self._reply(self._schedule.written.remote(index))
        counters[index].advance()
        if streamed.on_part is not None:
            streamed.on_part(name)

    def _reply(self, reference: Any) -> Any:
        import ray

        return ray.get(reference, timeout=_REPLY_S)
