"""Runs the stages that call models at the same time: a part goes on to the next stage as soon as it is ready.

collected parts --+--> topics
                  +--> API members of the pool, all at once --+--> part answered by all drawn members --> rate
                  +--> open members on engines, in turn ------+
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from psyco_ray.data import respond
from psyco_ray.data.dataset import Dataset
from psyco_ray.data.generate import Engines
from psyco_ray.data.rate import RateStage
from psyco_ray.judge import tokens
from psyco_ray.judge.call_run import CallRun, CallsTogether, Expected
from psyco_ray.run import shards
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import COLLECTED, RESPONSES

_SAMPLED_PARTS = 8  # whose ratings are estimated before their responses exist
_END_S = 60.0  # for the engines to end after a failure elsewhere
_CHECKED_ANSWERS = 400  # after which a pool of mostly unfinished answers stops, before more of them are rated


@dataclass
class Stage:
    """What a stage has to do in this command."""

    name: str
    calls: Sequence[CallRun]
    finish: Callable[[float], Any]  # writes the record; gets the time when the stage began
    responses: Responses | None = None  # of `respond`

    def complete(self) -> bool:
        """Whether nothing is left to do but the record."""
        merged = self.responses is None or self.responses.complete()
        return merged and not any(run.missing() for run in self.calls)


class Responses:
    """The responses of all members, merged part by part once every member drawn for a part has answered it.

    Args:
        dataset: the dataset.
        tasks: what the members answer.
        engines: of the open members.
    """

    def __init__(self, dataset: Dataset, tasks: Sequence[respond.ResponseTask], engines: Engines) -> None:
        self.engines = engines
        self.tasks, self._settings = tasks, dataset.job
        self._out = dataset.root / "respond"
        self._lock = threading.Lock()
        self._unmerged = [part for part in dataset.speeches() if not _exists(self._out, part)]
        self._drawn: dict[str, list[respond.ResponseTask]] = {}  # by part: the members that answer one of its speeches
        self._answers = self._unfinished = 0

    def complete(self) -> bool:
        """Whether all members have answered and all parts are merged."""
        with self._lock:
            return not self._unmerged and not any(task.missing() for task in self.tasks)

    def unmerged(self) -> set[str]:
        """Parts that cannot be rated yet."""
        with self._lock:
            return set(self._unmerged)

    def merge(self, candidates: Sequence[str] | None = None) -> list[str]:
        """Merge those parts that are whole now; returns them.

        Args:
            candidates: parts to look at; None: all.

        Raises:
            InputError: most answers are unfinished.
        """
        with self._lock:
            parts = [part for part in self._unmerged if candidates is None or part in candidates]
            whole = [part for part in parts if self._whole(part)]
            for part in whole:
                respond.merge(self.tasks, self._out, part)
                self._check(part)
                self._unmerged.remove(part)
        return whole

    def _whole(self, part: str) -> bool:
        if part not in self._drawn:
            self._drawn[part] = [task for task in self.tasks if task.rows(part)]
        return all(_exists(task.out, part) for task in self._drawn[part])

    def _check(self, part: str) -> None:
        """Stop early where the check at the end of the stage would stop; unfinished answers are not worth rating."""
        rows, set_aside = shards.read(self._out, part), shards.read(self._out / "set-aside", part)
        empty = sum(row["reason"].startswith(respond.EMPTY) for row in set_aside)
        self._answers += len(rows) + empty
        self._unfinished += sum(not row["finished"] for row in rows) + empty
        mostly = self._unfinished > respond.MOST_UNFINISHED * self._answers
        if self._settings.pair.unfinished != "allow" and self._answers >= _CHECKED_ANSWERS and mostly:
            respond.check_finished(respond.count_finished(self.tasks), self._settings.respond.max_tokens)


class Overlap:
    """The stages of one command, with one budget.

    Example:
        >>> Overlap(dataset, [topics, respond, rate], Progress()).run()
    """

    def __init__(self, dataset: Dataset, stages: Sequence[Stage], progress: Progress) -> None:
        """Check the settings of all stages; nothing runs yet.

        Raises:
            InputError: a key is missing, or a price that the budget needs.
        """
        self._dataset, self._stages, self._progress = dataset, list(stages), progress
        self._began, self._lock = time.time(), threading.Lock()
        self._responses = next((stage.responses for stage in stages if stage.responses is not None), None)
        self._rate = next((run for stage in stages if stage.name == "rate" for run in stage.calls), None)
        self._unrated = set(self._rate.missing()) if self._rate is not None else set()
        runs = {run.name: (stage, run) for stage in stages for run in stage.calls}
        self._calls = CallsTogether(
            [run for _, run in runs.values()],
            dataset.job.max_cost,
            {name: partial(self._on_part, run) for name, (_, run) in runs.items()},
        )
        self._engine_error: Exception | None = None

    def run(self) -> None:
        """Run all stages to their records.

        Raises:
            MemberFailedError, BudgetExceededError, UnavailableError, InputError: the first failure of any stage. The
                other stages end their calls in flight; everything paid for is kept, and finished parts stay.
        """
        responses = self._responses
        if responses is not None:
            responses.merge()  # members' parts of an earlier command
        self._finish_stages()
        if not self._stages:
            return
        self._calls.announce(self._expected_ratings())
        self._dataset.connect()
        if responses is not None:
            responses.engines.check()
        self._calls.open()
        waiting = responses.unmerged() if responses is not None else set()
        for stage in self._stages:
            for run in stage.calls:
                ready = run.missing()
                self._calls.ready(run.name, [part for part in ready if run is not self._rate or part not in waiting])
        engines = threading.Thread(target=self._run_engines, name="engines", daemon=True)
        engines.start()
        try:
            self._calls.run(self._progress)
        except BaseException:
            if responses is not None:
                responses.engines.stop()
                engines.join(_END_S)
            raise
        engines.join()
        if self._engine_error is not None:
            raise self._engine_error
        self._finish_stages()
        assert not self._stages, f"{[stage.name for stage in self._stages]} ended incomplete"

    def _on_part(self, run: CallRun, part: str) -> None:
        """A part of a stage of calls is written."""
        if self._responses is not None and run is not self._rate:
            self._rate_whole(self._responses.merge([part]))
        if not run.missing():
            self._finish_stages()

    def _run_engines(self) -> None:
        """The thread of the open members."""
        responses = self._responses
        if responses is None:
            return
        try:
            responses.engines.run(self._progress, lambda: self._rate_whole(responses.merge()))
            self._finish_stages()
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._engine_error = error
            self._calls.stop(error)

    def _rate_whole(self, parts: Sequence[str]) -> None:
        """Rate parts whose responses are merged now."""
        if self._rate is not None:
            self._calls.ready(self._rate.name, [part for part in parts if part in self._unrated])

    def _finish_stages(self) -> None:
        """Write the records of the stages that are complete."""
        with self._lock:
            for stage in [stage for stage in self._stages if stage.complete()]:
                stage.finish(self._began)
                self._stages.remove(stage)

    def _expected_ratings(self) -> dict[str, Expected]:
        """Usage of the ratings if their responses do not exist yet: with typical responses, and with the longest."""
        if self._rate is None or self._responses is None or not self._unrated:
            return {}
        settings, parts = self._dataset.job.respond, sorted(self._unrated)
        sample = parts[:: max(1, len(parts) // _SAMPLED_PARTS)]
        typical, most = (
            rating_usage(self._rate, self._dataset, sample, length)
            for length in (min(tokens.TYPICAL_TEXT, settings.max_tokens), settings.max_tokens)
        )
        scale = len(parts) / len(sample)
        return {
            self._rate.name: Expected(
                round(typical.calls * scale),
                round(typical.speeches * scale),
                typical.typical.scaled(scale),
                most.most.scaled(scale),
            )
        }


def rating_usage(run: CallRun, dataset: Dataset, parts: Sequence[str], length: int) -> Expected:
    """Usage of the ratings of parts, with stand-ins of `length` tokens for their responses."""
    assert isinstance(run.stage, RateStage)
    # in the run directory: what a killed command leaves of it holds clients' words
    with tempfile.TemporaryDirectory(prefix=".ratings-", dir=dataset.root) as directory:
        root = Path(directory)
        for part in parts:
            speeches = shards.read(dataset.root / "collect" / "speeches", part)
            stand_ins = [
                respond.response_row(row["speech_id"], f"model-{number}", " ".join(["word"] * length), True)
                for row in speeches
                for number in range(dataset.job.respond.per_speech)
            ]
            shards.write(root / "collect" / "speeches", part, speeches, COLLECTED)
            shards.write(root / "respond", part, stand_ins, RESPONSES)
        return CallRun(run.name, replace(run.stage, root=root), parts, run.journal, run.outgoing).expected()


def _exists(directory: Path, part: str) -> bool:
    return (directory / f"{part}.parquet").exists()
