"""Progress and metrics of a training run: log lines, ``metrics.jsonl``, Ray's gauges and wandb."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from psyco_ray.config.training import Job
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import StepResult

_log = logging.getLogger(__name__)


class Telemetry(Progress):
    """Progress and metrics of one training run.

    Example:
        >>> telemetry = Telemetry(job, ledger)
        >>> telemetry.log_iteration(1, {"loss": 0.6})
        >>> telemetry.close()
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._wandb = _wandb_run(job, ledger) if job.telemetry.wandb_project else None

    def steps(self, stream: Iterable[StepResult], what: str) -> Iterator[StepResult]:
        """Pass optimizer steps on and log each."""
        for step in stream:
            self.stage, self.done, self.total = what, step.step + 1, step.steps
            self.rolling.add(learner_tokens=step.tokens, learner_s=step.seconds)
            accuracy, speed = step.metrics["accuracy"], step.tokens / step.seconds
            _log.info(
                f"{what} step {step.step + 1}/{step.steps}: loss {step.loss:.4f}, accuracy {accuracy:.2f}, "
                f"{speed:.0f} tokens/s"
            )
            yield step

    def log_iteration(self, iteration: int, values: dict[str, float]) -> None:
        """Write an iteration's figures to ``metrics.jsonl`` (once, also after a resume), Ray's gauges and wandb.

        Ray exports them as ``ray_psyco_<name>``; figures within an iteration are in `rolling`.
        """
        path = self._ledger.path("metrics.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows = [row for row in rows if row["iteration"] != iteration]
        rows.append({"iteration": iteration, **values})
        self._ledger.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name, value in values.items():
            self._gauge(f"psyco_{name}").set(value)
        if "kl" in values:
            self.rolling.set(kl=values["kl"])
        if self._wandb is not None:
            self._wandb.log(values, step=iteration)

    def close(self) -> None:
        """Finish pending uploads."""
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(job: Job, ledger: Ledger) -> Any:
    import wandb

    return wandb.init(
        project=job.telemetry.wandb_project,
        dir=ledger.root,
        config=job.model_dump(mode="json"),
        settings=wandb.Settings(silent=True),
    )
