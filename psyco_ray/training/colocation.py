"""Alternating use of GPUs that rollout actors and learner workers share."""

from __future__ import annotations

import enum

from psyco_ray.learner.group import LearnerGroup
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor


class Side(enum.Enum):
    """Who holds the GPUs."""

    ROLLOUTS = "rollouts"
    LEARNER = "learner"


class ColocationManager:
    """Switches shared GPUs between rollouts and learner; a no-op unless colocated.

    Invariant: one side has left the GPUs before the other side enters them.

    Example:
        >>> colocation = ColocationManager(True, rollouts, learner, deadline_s=60)
        >>> colocation.to_rollouts()
        >>> colocation.to_learner()
    """

    def __init__(
        self, shared: bool, rollouts: ActorPool[RolloutActor], learner: LearnerGroup, deadline_s: float
    ) -> None:
        """Starts with the learner on the GPUs; the pool must have been created suspended.

        Args:
            shared: whether rollouts and learner share GPUs.
            rollouts: the actors that sample.
            learner: the workers that train.
            deadline_s: seconds in which rollout actors have to leave their GPUs.
        """
        self._shared, self._rollouts, self._learner, self._deadline_s = shared, rollouts, learner, deadline_s
        self._side = Side.LEARNER

    def to_learner(self, *, keep_weights: bool = False) -> None:
        """Suspends the rollouts and wakes the learner.

        Args:
            keep_weights: whether the rollouts keep their weights, because no weight update follows.
        """
        if not self._shared or self._side is Side.LEARNER:
            return
        self._rollouts.suspend(RolloutActor.sleep, keep_weights, deadline_s=self._deadline_s)
        self._learner.wake()
        self._side = Side.LEARNER

    def to_rollouts(self) -> None:
        """Puts the learner to sleep and resumes the rollouts; each wakes with its next work item."""
        if not self._shared or self._side is Side.ROLLOUTS:
            return
        self._learner.sleep()
        self._rollouts.resume()
        self._side = Side.ROLLOUTS
