"""Runs a stage of calls: finds missing parts, logs the expected cost, asks, and adds up the usage of all parts."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.judge import pipeline
from psyco_ray.judge.batch_api import BatchOutcome, run_batch
from psyco_ray.judge.journal import Journal
from psyco_ray.judge.pipeline import CallStage, CallStats
from psyco_ray.run import shards
from psyco_ray.run.progress import Progress

_SAMPLED_PARTS = 8  # on which the expected cost of a stage is estimated

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallRun:
    """A stage of calls over all its parts. Parts that are done are never asked again.

    Example:
        >>> calls = CallRun("verdicts", stage, parts, journal=root / "journal")
        >>> dollars = calls.execute(max_cost=5.0, progress=Progress())
        >>> calls.stats().set_aside
    """

    name: str  # on the progress line and in messages
    stage: CallStage
    parts: Sequence[str]
    journal: Path  # directory of paid answers; several stages may share it

    def missing(self) -> list[str]:
        """The parts that are not done."""
        done = set(shards.list_shards(self.stage.out))
        return [part for part in self.parts if part not in done]

    def execute(self, max_cost: float | None, progress: Progress, connect: Callable[[], None] = lambda: None) -> float:
        """Do the missing parts.

        Args:
            max_cost: limit on the cost of the calls, in US dollars; None: no limit.
            progress: receives finished parts and dollars.
            connect: starts or joins Ray; called once the input is checked and only if a part is missing.

        Returns:
            The cost in US dollars; 0 without prices or missing parts.

        Raises:
            BudgetExceededError: the limit is reached; everything paid for is kept.
            UnavailableError: the server failed repeatedly.
            InputError: a price is missing, or the server refuses the key, the model or a batch.
        """
        missing, endpoint = self.missing(), self.stage.endpoint
        if not missing:
            return 0.0
        if max_cost is not None and None in (endpoint.price_in, endpoint.price_out):
            raise InputError(
                f"{self.name}: max_cost needs price_in and price_out of its endpoint, dollars per million tokens"
            )
        expected = self._expected(missing)
        dollars = _cost(expected, endpoint)
        _log.info(
            f"{self.name}: about {expected.units} calls to {endpoint.model}, {expected.prompt_tokens} tokens in and at "
            f"most {expected.completion_tokens} out" + (f", at most ${dollars:.2f}" if dollars is not None else "")
        )
        spent = self._fill_journal_by_batches(missing, dollars, max_cost) if endpoint.via == "batch" else 0.0
        connect()
        left = None if max_cost is None else max_cost - spent
        return spent + pipeline.run(self.stage, missing, self.journal, left, self.name, progress)

    def stats(self) -> CallStats:
        """Counts of all parts, whenever they were done; every part must be done."""
        return sum((CallStats(**shards.facts(self.stage.out, part)) for part in self.parts), CallStats())

    def dollars(self) -> float | None:
        """Cost of all parts in US dollars; None without prices."""
        return _cost(self.stats(), self.stage.endpoint)

    def usage(self) -> dict[str, Any]:
        """`stats` as a dictionary, with the cost in US dollars as `dollars` (None without prices)."""
        return asdict(self.stats()) | {"dollars": self.dollars()}

    def _expected(self, missing: list[str]) -> CallStats:
        """Upper bound of the usage of some parts, extrapolated from a sample of them."""
        sample = missing[:: max(1, len(missing) // _SAMPLED_PARTS)]
        calls = [question.call for part in sample for question in self.stage.questions(part)]
        scale = len(missing) / len(sample)
        return CallStats(
            units=round(len(calls) * scale),
            prompt_tokens=round(sum(call.prompt_tokens() for call in calls) * scale),
            completion_tokens=round(sum(call.answer_tokens(self.stage.endpoint) for call in calls) * scale),
        )

    def _fill_journal_by_batches(self, missing: list[str], expected: float | None, max_cost: float | None) -> float:
        """Use the provider's batch API. Calls that a batch leaves out are sent one by one afterwards."""
        if max_cost is not None and expected is not None and expected > max_cost:
            raise InputError(
                f"{self.name}: a batch may cost up to ${expected:.2f}, ${max_cost:.2f} of max_cost are left; raise it, "
                "or set via to calls, which can stop in between"
            )
        calls = ((question.speech_id, question.call) for part in missing for question in self.stage.questions(part))
        journal = Journal(self.journal, f"batch-{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        state = self.stage.out / "batches" / "state.json"
        outcome = asyncio.run(run_batch(self.stage.endpoint, calls, journal, state))
        journal.close()
        _log.info(
            f"{self.name}: {outcome.sent} calls sent in batches, {outcome.answered} answered, {outcome.refused} "
            f"refused, {outcome.failed} to be asked again {' '.join(outcome.notes)}"
        )
        return _cost(outcome, self.stage.endpoint) or 0.0


def _cost(stats: CallStats | BatchOutcome, endpoint: Endpoint) -> float | None:
    """Cost of calls in US dollars; None without prices."""
    if endpoint.price_in is None or endpoint.price_out is None:
        return None
    return (stats.prompt_tokens * endpoint.price_in + stats.completion_tokens * endpoint.price_out) / 1e6
