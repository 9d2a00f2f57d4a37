"""Weights & Biases and TensorBoard: figures by optimizer step, in one run across resumes.

Figures belong to a group (`policy`, `reward`, `iterations`) with steps of its own. A resumed run repeats the steps
after its last checkpoint under the same numbers, so that they replace or overlay the earlier ones.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run.ledger import Ledger

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A destination of figures."""

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Records figures of a step (1, 2, ...) of a group."""

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Records results of the run."""

    def close(self, failed: bool) -> None:
        """Writes what is pending."""


def trackers(job: Job, ledger: Ledger) -> list[Tracker]:
    """The trackers that a job names.

    Raises:
        InputError: one of them cannot start.
    """
    started: list[Tracker] = []
    if job.telemetry.wandb_project is not None:
        started.append(WandbTracker(job, ledger))
    if job.telemetry.tensorboard is not False:
        started.append(TensorBoardTracker(job, ledger))
    return started


class WandbTracker:
    """Weights & Biases; ``telemetry.json`` in the run directory holds the id that resumes continue.

    Each group has a step metric of its own, because W&B's own step cannot go back to the last checkpoint.

    Example:
        >>> tracker = WandbTracker(job, ledger)
        >>> tracker.log("policy", 1, {"loss": 0.69})
        >>> tracker.close(failed=False)
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        import wandb

        record = ledger.record("telemetry") if ledger.resumes else None
        run_id = record["wandb_id"] if record else secrets.token_hex(6)
        try:
            self._run = wandb.init(
                project=job.telemetry.wandb_project,
                id=run_id,
                resume="allow",
                name=PurePosixPath(urlsplit(job.run_dir).path).name,
                dir=ledger.root,
                config=job.model_dump(mode="json"),
                allow_val_change=True,  # a resumed run may have more actors or iterations
                # neither the console nor a remote's URL, which may hold a token, leaves the machine
                settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
            )
        except wandb.errors.Error as error:
            raise InputError(
                f"telemetry.wandb_project: W&B cannot start: {str(error).splitlines()[0]}; run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from None
        ledger.write_json("telemetry.json", {"wandb_id": run_id})
        self._groups: set[str] = set()

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if group not in self._groups:
            self._groups.add(group)
            self._run.define_metric(f"{group}/step", hidden=True)
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self._run.log({f"{group}/step": step} | {f"{group}/{name}": value for name, value in values.items()})

    def summarise(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.summary.update(dict(values))

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))


class TensorBoardTracker:
    """TensorBoard event files, in one directory per group.

    Example:
        >>> tracker = TensorBoardTracker(job, ledger)
        >>> tracker.log("policy", 1, {"loss": 0.69})
        >>> tracker.close(failed=False)
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"telemetry.tensorboard needs the package tensorboard ({error}); pip install tensorboard, or set it to "
                "false"
            ) from None
        place = job.telemetry.tensorboard
        self._directory = Path(place) if isinstance(place, str) else ledger.root / "tensorboard"
        self._open = SummaryWriter
        try:
            self._run = SummaryWriter(str(self._directory))
        except OSError as error:
            raise InputError(
                f"telemetry.tensorboard: {self._directory} cannot be written: {error.strerror}; name another directory"
            ) from None
        _log.info(f"TensorBoard files are in {self._directory}")
        self._run.add_text("job", _code(job_file.dump(job)))
        self._groups: dict[str, Any] = {}

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if group not in self._groups:  # steps from here on that an earlier driver wrote are void
            self._groups[group] = self._open(str(self._directory / group), purge_step=step)
        for name, value in values.items():
            self._groups[group].add_scalar(name, value, step)
        self._groups[group].flush()  # a killed driver loses no step that its checkpoint has

    def summarise(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.add_text("summary", _code(json.dumps(values, indent=1)))

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        for writer in (self._run, *self._groups.values()):
            writer.close()


def _code(text: str) -> str:
    """Text that TensorBoard's Markdown shows as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
