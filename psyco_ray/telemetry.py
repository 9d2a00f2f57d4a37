"""What a run shows while it goes: progress on a terminal or plain lines in a log, metrics as JSONL, Ray and wandb."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from psyco_ray.config.training import Job
from psyco_ray.learner import StepResult
from psyco_ray.ledger import Ledger
from psyco_ray.live import Live

T = TypeVar("T")
_LOG_EVERY_S = 15.0


class Progress:
    """How far a run is, on a terminal or in a log."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self.stage, self.done, self.total = "", 0, 0  # of what goes on now
        self.live = Live()
        self._spent, self._gauges = 0.0, dict[str, Any]()

    def say(self, text: str) -> None:
        """One line about what happens."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"[{minutes:02d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)

    def track(self, stream: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass a stream on and show how far it is."""
        self.stage, self.done, self.total = what, 0, total
        if self._terminal:
            from rich.progress import track

            stream = track(stream, description=what, total=total, transient=True)
        shown = time.monotonic()
        for self.done, found in enumerate(stream, start=1):
            yield found
            if not self._terminal and time.monotonic() - shown > _LOG_EVERY_S:
                shown = time.monotonic()
                self.say(f"{what}: {self.done} of {total}")
        self.say(f"{what}: {self.done} done")

    def spend(self, dollars: float) -> None:
        """More dollars were spent on API calls."""
        self._spent += dollars
        self.live.last(spend_usd=self._spent)
        self.export({"spend_usd": self._spent})

    def export(self, figures: Mapping[str, Any]) -> None:
        """Set Ray's gauges, exported as ``ray_psyco_ray_<name>``; figures by role carry the tag `role`."""
        for name, value in figures.items():
            if isinstance(value, Mapping):
                for role, one in value.items():
                    self._gauge(f"psyco_ray_{name}", ("role",)).set(one, tags={"role": role})
            else:
                self._gauge(f"psyco_ray_{name}").set(value)

    def _gauge(self, name: str, tags: tuple[str, ...] = ()) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=f"psyco_ray: {name.replace('_', ' ')}", tag_keys=tags)
        return self._gauges[name]


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
            self.say(
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
        raise ValueError(
            "telemetry.wandb_project is set but wandb is not installed; pip install 'psyco-ray[wandb]' or leave it out"
        ) from None
    return wandb.init(
        project=job.telemetry.wandb_project,
        dir=ledger.root,
        config=job.model_dump(mode="json"),
        settings=wandb.Settings(silent=True),
    )
