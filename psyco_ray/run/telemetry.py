"""Progress and metrics of a training run: log lines, ``metrics.jsonl``, Ray's gauges and trackers."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from psyco_ray.config.job_file import flatten
from psyco_ray.config.training import Job
from psyco_ray.run import records
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.progress import Progress
from psyco_ray.run.trackers import trackers
from psyco_ray.run.types import StepResult

_log = logging.getLogger(__name__)


class Telemetry(Progress):
    """Progress and metrics of one training run; several trainings may report at the same time.

    Example:
        >>> with Telemetry(job, ledger) as telemetry:
        ...     telemetry.log_iteration(1, {"loss": 0.6})
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._trackers, self._tracking = trackers(job, ledger), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def steps(self, stream: Iterable[StepResult], what: str, group: str, done: int) -> Iterator[StepResult]:
        """Pass optimizer steps on; log each, and report it to the trackers.

        Args:
            stream: the steps.
            what: name in the log.
            group: `policy`, or the reward model's name.
            done: number of steps of the group before these.
        """
        for number, step in enumerate(stream, start=done + 1):
            self.stage, self.done, self.total = what, step.step + 1, step.steps
            self.rolling.add(learner_tokens=step.tokens, learner_s=step.seconds)
            accuracy, speed = step.metrics["accuracy"], step.tokens / step.seconds
            _log.info(
                f"{what} step {step.step + 1}/{step.steps}: loss {step.loss:.4f}, accuracy {accuracy:.2f}, "
                f"{speed:.0f} tokens/s"
            )
            norm = {} if step.grad_norm is None else {"grad_norm": step.grad_norm}
            figures = {"loss": step.loss, "lr": step.learning_rate, **norm, **step.metrics, "tokens_per_s": speed}
            self.track_figures(group, number, figures)
            yield step

    def track_figures(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        """Report figures of a step (1, 2, ...) of a group to the trackers."""
        with self._tracking:
            for tracker in self._trackers:
                tracker.log(group, step, figures)

    def summarise(self, results: Mapping[str, Any]) -> None:
        """Report results of the run to the trackers: numbers and words, also in nested mappings."""
        flat = {key: value for key, value in flatten(dict(results)).items() if isinstance(value, int | float | str)}
        with self._tracking:
            for tracker in self._trackers:
                tracker.summarise(flat)

    def log_iteration(self, iteration: int, values: dict[str, float]) -> None:
        """Write an iteration's figures to ``metrics.jsonl``, Ray's gauges and the trackers, once also after a resume.

        Ray exports them as ``ray_psyco_<name>``; figures within an iteration are in `rolling`.
        """
        path = self._ledger.path("metrics.jsonl")
        rows = _rows(path) if path.exists() else []
        if iteration not in {row["iteration"] for row in rows}:
            self.track_figures("iterations", iteration, values)
        rows = [row for row in rows if row["iteration"] != iteration]
        rows.append({"iteration": iteration, **values})
        self._ledger.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name, value in values.items():
            self._gauge(f"psyco_{name}").set(value)
        if "kl" in values:
            self.rolling.set(kl=values["kl"])

    def close(self, failed: bool = False) -> None:
        """Finish pending uploads; `failed` marks a run that did not come to its end."""
        for tracker in self._trackers:
            tracker.close(failed)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise records.damaged(path, "a line is no JSON") from None
