"""How a learner group recovers from lost workers: when it is restarted, from which checkpoint, and what it replays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from psyco_ray.learner.worker_group import WorkerGroup, WorkerGroupFailedError
from psyco_ray.pool import placement
from psyco_ray.run.types import PreferencePair

MAX_RESTARTS = 3
_SMALLER_GROUP_S = 10.0  # seconds to place each smaller group; resources that are free by then are free

Batches = Iterable[Sequence[PreferencePair]]

_log = logging.getLogger(__name__)


class WeightSendError(RuntimeError):
    """Weights were not sent. Workers that may hang in the transfer were killed; the next call restarts them."""


class RestartPolicy:
    """Decides whether a lost group is restarted, and with how many workers.

    A group is restarted up to `MAX_RESTARTS` times without a completed optimizer step in between. It keeps its number
    of workers, or gets the largest number that the cluster has room for.
    """

    def __init__(self) -> None:
        self._restarts = 0

    def step_completed(self) -> None:
        """Reset the count of restarts."""
        self._restarts = 0

    def check_restart(self, failure: WorkerGroupFailedError) -> None:
        """Count a restart.

        Raises:
            RuntimeError: the group was restarted too often.
        """
        if self._restarts == MAX_RESTARTS:
            raise RuntimeError(
                f"{failure}; the learner failed after {MAX_RESTARTS} restarts without a completed step in between"
            ) from failure
        self._restarts += 1

    @staticmethod
    def start_largest(start: Callable[[int, float], WorkerGroup], world_size: int) -> WorkerGroup:
        """Start a group of `world_size` workers, or of as many as the cluster has room for.

        Args:
            start: creates a group of a number of workers within a number of seconds.
            world_size: largest number of workers.

        Raises:
            RuntimeError: the cluster has no room for a single worker.
        """
        try:
            return start(world_size, placement.PLACEMENT_DEADLINE_S)
        except placement.PlacementTimeoutError as error:
            for smaller in range(world_size - 1, 0, -1):
                try:
                    group = start(smaller, _SMALLER_GROUP_S)
                except placement.PlacementTimeoutError:
                    continue
                _log.warning("%s; the learner continues with %d", error, smaller)
                return group
            raise RuntimeError(f"the learner cannot be restarted: {error}, nor for fewer") from error


@dataclass
class ReplaySegment:
    """Consecutive optimizer steps of one `LearnerGroup.train` call since the last checkpoint."""

    batches_from: Callable[[int], Batches]  # the batches from a step on
    total_steps: int  # of the learning-rate schedule
    first_step: int
    next_step: int
    reset_optimizer: bool  # zero Adam's moments before the first step


class ReplayLog:
    """The checkpoint that the current weights came from, and the optimizer steps taken since.

    A restarted group loads the checkpoint and replays the steps, which gives bitwise-identical weights as long as its
    number of workers is the same.

    Example:
        >>> log = ReplayLog("run/state-000040")
        >>> segment = log.open(ReplaySegment(batches_from, 100, 40, 40, reset_optimizer=False))
        >>> segment.next_step += 1  # after each step
        >>> log.saved("run/state-000060")  # nothing is left to replay
    """

    def __init__(self, checkpoint: str | None) -> None:
        """Start from a training state on disk; None: from the base model."""
        self.checkpoint = checkpoint
        self._segments: list[ReplaySegment] = []

    def open(self, segment: ReplaySegment) -> ReplaySegment:
        """Add a segment; the caller advances its `next_step`."""
        self._segments.append(segment)
        return segment

    def saved(self, checkpoint: str) -> None:
        """The current weights were written to `checkpoint`; only later steps are replayed."""
        self.checkpoint = checkpoint
        del self._segments[:-1]
        for segment in self._segments:  # its training may continue
            segment.first_step, segment.reset_optimizer = segment.next_step, False

    def loaded(self, checkpoint: str) -> None:
        """The weights are now those of `checkpoint`; no step is replayed."""
        self.checkpoint, self._segments = checkpoint, []

    def replay(
        self, take_step: Callable[[Sequence[PreferencePair], int, int], object], reset_optimizer: Callable[[], object]
    ) -> None:
        """Repeat all steps since the checkpoint.

        Args:
            take_step: takes a batch, the number of the step and the steps of the schedule.
            reset_optimizer: zeroes Adam's moments.
        """
        for segment in self._segments:
            if segment.reset_optimizer:
                reset_optimizer()
            steps = range(segment.first_step, segment.next_step)
            batches = segment.batches_from(segment.first_step) if steps else ()
            for step, batch in zip(steps, batches, strict=False):
                take_step(batch, step, segment.total_steps)
