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
    BOTH = "both"  # a weight update: each has its weights there, and nothing else


class ColocationManager:
    """Switches shared GPUs between rollouts and learner; a no-op unless colocated.

    ::

        LEARNER ── hand_over ──▶ BOTH ── to_rollouts ──▶ ROLLOUTS ── to_learner ──▶ LEARNER
           ▲                      │ a failed update
           └───── to_learner ─────┘

    Invariant: one side has left the GPUs, except for its weights, before the other side enters them.

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
        """Suspends the rollouts and moves the learner's states back to the GPUs.

        Args:
            keep_weights: whether the rollouts keep their weights, because no weight update follows.
        """
        if not self._shared or self._side is Side.LEARNER:
            return
        self._rollouts.suspend(RolloutActor.sleep, keep_weights, deadline_s=self._deadline_s)
        self._learner.keep_on_gpu("all")
        self._side = Side.LEARNER

    def hand_over(self) -> None:
        """Leaves the learner its weights alone, so that the engines' weights have room beside them.

        Every rank has freed its memory before this returns: an engine may be told to wake up then, on any GPU.
        """
        if not self._shared:
            return
        assert self._side is Side.LEARNER, "a weight update begins with the learner on the GPUs"
        self._learner.keep_on_gpu("weights")
        self._side = Side.BOTH

    def to_rollouts(self) -> None:
        """Moves the learner to the host and resumes the rollouts; each wakes with its next work item."""
        if not self._shared or self._side is Side.ROLLOUTS:
            return
        self._learner.keep_on_gpu("nothing")
        self._rollouts.resume()
        self._side = Side.ROLLOUTS
