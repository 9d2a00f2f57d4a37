"""What a run shows while it goes: progress on a terminal or plain lines in a log, metrics as JSONL, Ray and wandb."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.progress import Progress
from psyco_ray.run.types import StepResult

_log = logging.getLogger(__name__)


class Telemetry(Progress):
    """Progress and metrics of one training run."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._wandb = _wandb_run(job, ledger) if job.telemetry.wandb_project else None

    def steps(self, stream: Iterable[StepResult], what: str) -> Iterator[StepResult]:
        """Pass optimizer steps on and say each in a line."""
        for step in stream:
            self.stage, self.done, self.total = what, step.step + 1, step.steps
            self.live.count(learner_tokens=step.tokens, learner_s=step.seconds)
            accuracy, speed = step.metrics["accuracy"], step.tokens / step.seconds
            _log.info(
                f"{what} step {step.step + 1}/{step.steps}: loss {step.loss:.4f}, accuracy {accuracy:.2f}, "
                f"{speed:.0f} tokens/s"
            )
            yield step

    def metrics(self, iteration: int, values: dict[str, float]) -> None:
        """Numbers of an iteration, to ``metrics.jsonl`` (once, also after a resume), Ray's metrics and wandb.

        Ray exports them as ``ray_psyco_<name>``; what goes on within an iteration is `live`.
        """
        path = self._ledger.path("metrics.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows = [row for row in rows if row["iteration"] != iteration]
        rows.append({"iteration": iteration, **values})
        self._ledger.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name, value in values.items():
            self._gauge(f"psyco_{name}").set(value)
        if "kl" in values:
            self.live.last(kl=values["kl"])
        if self._wandb is not None:
            self._wandb.log(values, step=iteration)

    def close(self) -> None:
        """Finish what is still being sent."""
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(job: Job, ledger: Ledger) -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError(
            "telemetry.wandb_project is set but wandb is not installed; pip install 'psyco-ray[wandb]' or leave it out"
        ) from None
    return wandb.init(
        project=job.telemetry.wandb_project,
        dir=ledger.root,
        config=job.model_dump(mode="json"),
        settings=wandb.Settings(silent=True),
    )
