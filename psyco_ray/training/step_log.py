"""Progress of one training inside an iteration or of a reward model: steps taken, and the state to resume from.

Invariant: a state is written before ``progress.json`` names it, so the named state always exists.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from psyco_ray.run import preemption, storage

if TYPE_CHECKING:
    from psyco_ray.learner.group import LearnerGroup
    from psyco_ray.run.ledger import Ledger
    from psyco_ray.run.types import StepResult

Record = dict[str, Any]


class StepLog:
    """The steps of one training.

    Example:
        >>> log = StepLog(ledger, "iteration-001/training")
        >>> for step in learner.train(batches[log.done :], len(batches), log.done):
        ...     log.add(step)
        ...     log.pause(learner)
        >>> log.clear()
    """

    def __init__(self, ledger: Ledger, directory: str, **facts: Any) -> None:
        """Reads the progress of an earlier driver, if any.

        Args:
            ledger: of the run.
            directory: inside the run directory, used by this training alone.
            facts: further facts to keep, with their initial values.
        """
        self._ledger, self._directory = ledger, directory
        progress = ledger.record(f"{directory}/progress")
        self.facts: Record = {"done": 0, "steps": [], "tokens": 0, "seconds": 0.0, **facts, **(progress or {})}
        self.began = time.time() - self.facts["seconds"]  # excludes the time between drivers
        self.state = self._ledger.place(self._state()) if progress else None  # path or URI to resume from

    @property
    def done(self) -> int:
        """Number of steps taken."""
        return int(self.facts["done"])

    def add(self, step: StepResult) -> None:
        """Adds a step's result."""
        self.facts["done"] += 1
        self.facts["tokens"] += step.tokens
        self.facts["steps"].append(
            {"loss": step.loss, "lr": step.learning_rate, "grad_norm": step.grad_norm, **step.metrics}
        )

    def write(self, learner: LearnerGroup, *kept: str) -> None:
        """Writes a state to resume from and removes the directories of this training except those in `kept`."""
        self.state = self._ledger.place(self._state())
        learner.save_state(self.state, moments=True)
        self.facts["seconds"] = time.time() - self.began
        self._ledger.write_json(f"{self._directory}/progress.json", self.facts)
        directories = storage.subdirs(self._ledger.place(self._directory))
        for old in {f"{self._directory}/{name}" for name in directories} - {self._state(), *kept}:
            self._ledger.remove(old)

    def pause(self, learner: LearnerGroup, *kept: str) -> None:
        """Writes a state and stops if the driver was asked to stop.

        Raises:
            Preempted: a signal asks for a stop.
        """
        if preemption.requested():
            self.write(learner, *kept)
            raise preemption.Preempted

    def clear(self) -> None:
        """Removes the directory at the end of the training."""
        self._ledger.remove(self._directory)

    def _state(self) -> str:
        return f"{self._directory}/state-{self.done:06d}"
