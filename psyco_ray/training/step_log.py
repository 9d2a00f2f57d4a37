"""How far a training is, in the run directory: the figures of its steps and the state that a resumed one goes on from.

A state is written first and then the word that it is there, so that the last word always has its state.
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
    """The steps of one training."""

    def __init__(self, ledger: Ledger, place: str, **facts: Any) -> None:
        """Find out how far the training is.

        Args:
            ledger: of the run.
            place: a directory inside the run directory that is this training's alone.
            facts: what else is remembered, as it is at the beginning.
        """
        self._ledger, self._place = ledger, place
        begun = ledger.record(f"{place}/progress")
        self.facts: Record = {"done": 0, "steps": [], "tokens": 0, "seconds": 0.0, **facts, **(begun or {})}
        self.began = time.time() - self.facts["seconds"]  # as if it had never been interrupted
        # where the state that it goes on from is, a path or a URI
        self.state = self._ledger.place(self._state()) if begun else None

    @property
    def done(self) -> int:
        """Steps taken."""
        return int(self.facts["done"])

    def add(self, step: StepResult) -> None:
        """Remember what a step reports."""
        self.facts["done"] += 1
        self.facts["tokens"] += step.tokens
        self.facts["steps"].append(
            {"loss": step.loss, "lr": step.learning_rate, "grad_norm": step.grad_norm, **step.metrics}
        )

    def write(self, learner: LearnerGroup, *kept: str) -> None:
        """Write a state to go on from and remove what came before it, except what is to be kept."""
        self.state = self._ledger.place(self._state())
        learner.save_state(self.state, moments=True)
        self.facts["seconds"] = time.time() - self.began
        self._ledger.write_json(f"{self._place}/progress.json", self.facts)
        found = {f"{self._place}/{name}" for name in storage.subdirs(self._ledger.place(self._place))}
        for old in found - {self._state(), *kept}:
            self._ledger.remove(old)

    def pause(self, learner: LearnerGroup, *kept: str) -> None:
        """Write a state and stop, if a stop was asked for.

        Raises:
            Stopped: it was.
        """
        if preemption.asked():
            self.write(learner, *kept)
            raise preemption.Preempted

    def clear(self) -> None:
        """Remove everything, for the training has ended."""
        self._ledger.remove(self._place)

    def _state(self) -> str:
        return f"{self._place}/state-{self.done:06d}"
