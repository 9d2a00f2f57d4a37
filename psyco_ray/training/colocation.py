"""Whose turn it is on GPUs that rollout actors and learner ranks share: one side sleeps while the other works."""

from __future__ import annotations

import enum

from psyco_ray.learner.group import LearnerGroup
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor


class Side(enum.Enum):
    """Who works."""

    ROLLOUTS = "rollouts"
    LEARNER = "learner"


class ColocationManager:
    """Gives the GPUs to one side; where each side has its own, both may always work and nothing is done here."""

    def __init__(
        self, shared: bool, rollouts: ActorPool[RolloutActor], learner: LearnerGroup, deadline_s: float
    ) -> None:
        """Take both sides; it is the learner's turn, and the pool must have been made `suspended`.

        Args:
            shared: whether they share GPUs.
            rollouts: the actors that sample.
            learner: the ranks that train.
            deadline_s: seconds in which rollout actors have to leave their GPUs.
        """
        self._shared, self._rollouts, self._learner, self._deadline_s = shared, rollouts, learner, deadline_s
        self._side = Side.LEARNER

    def learning(self, *, keep_weights: bool = False) -> None:
        """Let the learner work.

        Args:
            keep_weights: the rollouts' weights are wanted once more; else they are dropped, for others will come.
        """
        if not self._shared or self._side is Side.LEARNER:
            return
        self._rollouts.suspend(RolloutActor.sleep, keep_weights, deadline_s=self._deadline_s)
        self._learner.wake()
        self._side = Side.LEARNER

    def sampling(self) -> None:
        """Let the rollouts work; each wakes as soon as something is asked of it."""
        if not self._shared or self._side is Side.ROLLOUTS:
            return
        self._learner.sleep()
        self._rollouts.resume()
        self._side = Side.ROLLOUTS
