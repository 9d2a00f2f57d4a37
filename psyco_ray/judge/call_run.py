"""Runs stages of calls: finds missing parts, logs the expected cost, asks, and adds up the usage of all parts."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.judge.batch_api import BatchOutcome, run_batch
from psyco_ray.judge.callers import CallStage, CallStats
from psyco_ray.judge.calls import Call
from psyco_ray.judge.journal import Journal, spent
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.judge.pipeline import AnswerStream, StreamedStage
from psyco_ray.judge.rate_limit import Tokens, cost_of
from psyco_ray.run import shards
from psyco_ray.run.progress import Progress

_SAMPLED_PARTS = 8  # on which the expected usage of a stage is estimated
_SAMPLED_CALLS = 64  # of each of them

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expected:
    """Usage to expect of a stage."""

    calls: int
    speeches: int  # that they are about
    typical: Tokens  # with answers of typical length
    most: Tokens  # with the longest possible answers


@dataclass(frozen=True)
class CallRun:
    """A stage of calls over all its parts. Parts that are done are never asked again.

    Example:
        >>> calls = CallRun("verdicts", stage, parts, root / "journal", Outgoing(job.scrub, job.privacy))
        >>> dollars = calls.execute(max_cost=5.0, progress=Progress())
        >>> calls.stats().set_aside
    """

    name: str  # on the progress line and in messages
    stage: CallStage
    parts: Sequence[str]
    journal: Path  # directory of paid answers; several stages may share it
    outgoing: Outgoing  # the terms on which its texts are sent

    def missing(self) -> list[str]:
        """The parts that are not done."""
        done = set(shards.list_shards(self.stage.out))
        return [part for part in self.parts if part not in done]

    def execute(self, max_cost: float | None, progress: Progress) -> float:
        """Do the missing parts. Ray must be running if there are any.

        Args:
            max_cost: limit on the cost of the calls, in US dollars; None: no limit.
            progress: receives finished parts and dollars.

        Returns:
            The cost in US dollars; 0 without prices or missing parts.

        Raises:
            BudgetExceededError: the limit is reached; everything paid for is kept.
            UnavailableError: the server failed repeatedly.
            InputError: a price is missing, or the server refuses the key, the model or a batch.
        """
        return execute_together([self], max_cost, progress)

    def stats(self) -> CallStats:
        """Counts of all parts, whenever they were done; every part must be done."""
        return sum((CallStats(**shards.facts(self.stage.out, part)) for part in self.parts), CallStats())

    def dollars(self) -> float | None:
        """Cost of all parts in US dollars; None without prices."""
        return cost_of(self.stats(), self.stage.endpoint)

    def usage(self) -> dict[str, Any]:
        """`stats` as a dictionary, with the cost in US dollars as `dollars` (None without prices)."""
        return asdict(self.stats()) | {"dollars": self.dollars()}

    def expected(self) -> Expected:
        """Usage of the missing parts, extrapolated from a sample of their calls."""
        missing = self.missing()
        sample = missing[:: max(1, len(missing) // _SAMPLED_PARTS)]
        calls, speeches, counted = 0, 0, list[Call]()
        for part in sample:
            questions = list(self.stage.questions(part))
            calls += len(questions)
            speeches += len({question.speech_id for question in questions})
            counted += [question.call for question in questions[:: max(1, len(questions) // _SAMPLED_CALLS)]]
        parts = len(missing) / max(1, len(sample))
        scale = calls * parts / max(1, len(counted))
        return Expected(
            round(calls * parts),
            round(speeches * parts),
            sum((call.typical(self.stage.endpoint) for call in counted), Tokens()).scaled(scale),
            sum((call.estimated(self.stage.endpoint) for call in counted), Tokens()).scaled(scale),
        )

    def fill_journal(self, parts: Sequence[str]) -> BatchOutcome:
        """Use the provider's batch API. Calls that a batch leaves out are sent one by one afterwards."""
        calls = ((question.speech_id, question.call) for part in parts for question in self.stage.questions(part))
        journal = Journal(self.journal, f"batch-{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        state = self.stage.out / "batches" / "state.json"
        outcome = asyncio.run(run_batch(self.stage.endpoint, calls, journal, state))
        journal.close()
        _log.info(
            f"{self.name}: {outcome.sent} calls sent in batches, {outcome.answered} answered, {outcome.refused} "
            f"refused, {outcome.failed} to be asked again {' '.join(outcome.notes)}"
        )
        return outcome


class CallsTogether:
    """The missing parts of several stages, asked at the same time and within one budget.

    Example:
        >>> calls = CallsTogether([topics, rate], max_cost=5.0)
        >>> calls.announce()
        >>> calls.open()
        >>> calls.ready("topics", topics.missing())
        >>> calls.ready("rate", rate.missing())
        >>> dollars = calls.run(Progress())
    """

    def __init__(
        self,
        runs: Sequence[CallRun],
        max_cost: float | None,
        on_part: Mapping[str, Callable[[str], None]] | None = None,
    ) -> None:
        """Check what can be checked before anything is sent.

        Args:
            runs: the stages; their names differ.
            max_cost: limit on the cost of all calls in the journal, also of earlier commands, in US dollars; None: no
                limit.
            on_part: by the name of a stage: what is called with each of its parts that is written.

        Raises:
            InputError: a price that a budget needs is missing, or a key is, or clients' words must not be sent there.
        """
        missing = {run.name: run.missing() for run in runs}
        self._runs = [run for run in runs if missing[run.name]]
        limited = max_cost is not None and self._runs
        self._spent = spent(self._runs[0].journal) if limited else 0.0  # by earlier commands
        self._left = None if max_cost is None else max_cost - self._spent
        self._missing, self._max_cost, self._on_part = missing, max_cost, on_part or {}
        self._awaited = {run.name: set(missing[run.name]) for run in self._runs if run.stage.endpoint.via == "batch"}
        self._bounds: dict[str, float | None] = {}  # of batches, in dollars
        self._threads: list[threading.Thread] = []
        self._stream: AnswerStream | None = None
        for run in self._runs:
            endpoint = run.stage.endpoint
            if max_cost is not None and None in (endpoint.price_in, endpoint.price_out):
                raise InputError(
                    f"{run.name}: max_cost needs price_in and price_out of its endpoint, dollars per million tokens"
                )
            run.outgoing.check({run.name: endpoint})

    @property
    def any(self) -> bool:
        """Whether a part is missing."""
        return bool(self._runs)

    def announce(self, known: Mapping[str, Expected] | None = None) -> None:
        """Log the usage to expect of each stage, and of all of them.

        Args:
            known: by the name of a stage: what to expect of it, where its questions do not exist yet.
        """
        costs: list[tuple[float, float]] = []
        for run in self._runs:
            expected, endpoint = (known or {}).get(run.name) or run.expected(), run.stage.endpoint
            typical, most = expected.typical, expected.most
            cost, bound = cost_of(typical, endpoint), cost_of(most, endpoint)
            self._bounds[run.name] = bound
            _log.info(
                f"{run.name}: sends about {expected.speeches} speeches to {run.outgoing.describe(endpoint)}; about "
                f"{expected.calls} calls to {endpoint.model}, {typical.prompt_tokens} tokens in and "
                f"{typical.completion_tokens} out, at most {most.prompt_tokens} and {most.completion_tokens}"
                + (f"; about ${cost:.2f}, at most ${bound:.2f}" if cost is not None and bound is not None else "")
            )
            costs.append((cost or 0.0, bound or 0.0))
        cost, bound = (sum(side) for side in zip(*costs, strict=True)) if costs else (0.0, 0.0)
        if len(self._runs) > 1 and bound:
            _log.info(f"all calls together: about ${cost:.2f}, at most ${bound:.2f}")
        before = f", of which ${self._spent:.2f} are spent," if self._spent else ""
        if self._left is not None and self._runs and cost > self._left:
            _log.warning(
                f"max_cost ${self._max_cost:.2f}{before} is below the ${cost:.2f} to expect: the command will stop on "
                "the way, keep what is paid for, and go on with a higher max_cost"
            )
        elif before and self._runs:
            _log.info(f"max_cost ${self._max_cost:.2f}: ${self._spent:.2f} are spent by earlier commands")

    def open(self) -> None:
        """Start the actors if a part is missing. Ray must be running then."""
        if self._runs:
            stages = [
                StreamedStage(run.name, run.stage, self._missing[run.name], self._on_part.get(run.name))
                for run in self._runs
            ]
            self._stream = AnswerStream(stages, self._runs[0].journal, self._left)

    def ready(self, name: str, parts: Sequence[str]) -> None:
        """Parts of a stage whose questions can be asked from now on. May be called from any thread.

        Args:
            name: of the stage.
            parts: each of its missing parts becomes ready once.
        """
        if not parts or self._stream is None:
            return
        index = next(index for index, run in enumerate(self._runs) if run.name == name)
        if name not in self._awaited:
            self._stream.ready(index, parts)
            return
        self._awaited[name] -= set(parts)
        if not self._awaited[name]:  # a batch holds all calls of the stage
            thread = threading.Thread(
                target=self._batch, args=(self._stream, index), name=f"{name}: batch", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self, error: Exception) -> None:
        """Send no further call; `run` raises the first error. May be called from any thread."""
        if self._stream is not None:
            self._stream.stop(error)

    def run(self, progress: Progress) -> float:
        """Ask until all parts are written.

        Args:
            progress: receives finished parts and dollars.

        Returns:
            The cost in US dollars; 0 without prices or missing parts.

        Raises:
            BudgetExceededError, UnavailableError, InputError: as `CallRun.execute`; the first one of all stages.
        """
        return self._stream.run(progress) if self._stream is not None else 0.0

    def _batch(self, stream: AnswerStream, index: int) -> None:
        """Fill the journal by batches, then let the stream find the answers there."""
        run, bound = self._runs[index], self._bounds[self._runs[index].name] or 0.0
        try:
            if (left := stream.reserve_batch(index, bound)) is not None:
                raise InputError(
                    f"{run.name}: a batch may cost up to ${bound:.2f}, ${left:.2f} of max_cost are left; raise it, "
                    "or set via to calls, which can stop in between"
                )
            outcome = run.fill_journal(self._missing[run.name])
            stream.report_batch(index, Tokens(outcome.prompt_tokens, outcome.completion_tokens), outcome.answered)
            stream.ready(index, self._missing[run.name])
        except Exception as error:  # noqa: BLE001 - raised by `run`
            stream.stop(error)


def execute_together(runs: Sequence[CallRun], max_cost: float | None, progress: Progress) -> float:
    """Do the missing parts of several stages at the same time. Ray must be running if there are any.

    Args:
        runs: the stages; their names and models differ, because a question in two of them would be paid for twice.
        max_cost: limit on the cost of all calls, in US dollars; None: no limit.
        progress: receives finished parts and dollars.

    Returns:
        The cost in US dollars; 0 without prices or missing parts.

    Raises:
        BudgetExceededError, UnavailableError, InputError: as `CallRun.execute`; the first one of all stages.
    """
    together = CallsTogether(runs, max_cost)
    together.announce()
    together.open()
    for run in runs:
        together.ready(run.name, run.missing())
    return together.run(progress)
