"""The actors of a policy training run: rollout pool, scorer pool and learner group."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import ray
from ray.util import remove_placement_group

from psyco_ray.config.resources import PoolConfig
from psyco_ray.config.training import Job
from psyco_ray.learner.group import LearnerGroup
from psyco_ray.learner.losses import DpoObjective
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.pool import placement
from psyco_ray.pool.actor_pool import ActorPool
from psyco_ray.rollout.actor import RolloutActor, actor_options
from psyco_ray.rollout.scorer import ScorerActor
from psyco_ray.run.timeline import Timeline
from psyco_ray.training.colocation import ColocationManager


def reward_models(job: Job) -> dict[str, str]:
    """The reward models that scorers load, by their name in the SCORES table."""
    scorers = job.scorers
    models = {"reward": scorers.reward_model, "heldout": scorers.heldout_model, "safety": scorers.safety_model}
    return {name: model for name, model in models.items() if model is not None}


def pool_settings(job: Job) -> dict[str, PoolConfig]:
    """The settings of a run's pools, by role."""
    settings: dict[str, PoolConfig] = {"rollouts": job.rollouts, "scorers": job.scorers}
    if job.simulate is not None and job.simulate.client.model is not None:
        settings["clients"] = job.simulate.client.rollouts
    return settings


class RunActors:
    """Starts, waits for and closes all actors of a run; each loads while the others load.

    Example:
        >>> actors = RunActors(job, state=None, timeline=timeline)
        >>> actors.wait_ready()
        >>> actors.close()
    """

    def __init__(self, job: Job, state: str | None, timeline: Timeline) -> None:
        """Starts the actors; if one cannot be placed, those already started are closed.

        Args:
            job: of the run.
            state: the learner's state to continue from; None: the job's model.
            timeline: records when actors are busy.

        Raises:
            PlacementTimeoutError: the cluster has no room.
        """
        self._on_busy = {
            role: functools.partial(timeline.add_busy, role) for role in ("rollouts", "scorers", "learners", "clients")
        }
        with contextlib.ExitStack() as started:
            bundles = None
            if job.colocated:
                bundles = placement.shared_bundles(job)
                started.callback(remove_placement_group, bundles)
            self.rollouts = self._start_rollouts(job, bundles)
            started.callback(self.rollouts.close)
            self.scorers = self._start_scorers(job)
            started.callback(self.scorers.close)
            self.clients = self._start_clients(job)
            if self.clients is not None:
                started.callback(self.clients.close)
            self.learner = self._start_learner(job, state, bundles)
            started.callback(self.learner.close)
            self.colocation = ColocationManager(job.colocated, self.rollouts, self.learner, job.sync.deadline_s)
            self.close = started.pop_all().close

    @property
    def pools(self) -> dict[str, ActorPool[Any]]:
        """The pools by role."""
        clients = {} if self.clients is None else {"clients": self.clients}
        return {"rollouts": self.rollouts, "scorers": self.scorers, **clients}

    def counts(self) -> dict[str, int]:
        """The current number of actors by role."""
        return {role: len(pool.actors) for role, pool in self.pools.items()} | {"learners": len(self.learner.workers)}

    def _start_rollouts(self, job: Job, bundles: Any) -> ActorPool[RolloutActor]:
        actor = ray.remote(RolloutActor)
        return ActorPool(
            "rollout",
            lambda index: actor.options(**actor_options(job.rollouts, bundles, index)).remote(
                f"rollout-{index}", job.model, job.rollouts, job.seed, shared=job.colocated
            ),
            job.rollouts.actors,
            job.deadlines,
            on_busy=self._on_busy["rollouts"],
            suspended=job.colocated,
        )

    def _start_clients(self, job: Job) -> ActorPool[RolloutActor] | None:
        """The engines that play clients; None: there are no clients, or they are behind an API."""
        if job.simulate is None or job.simulate.client.model is None:
            return None
        actor, client = ray.remote(RolloutActor), job.simulate.client
        return ActorPool(
            "client",
            lambda index: actor.options(**actor_options(client.rollouts)).remote(
                f"client-{index}", client.model, client.rollouts, job.seed
            ),
            client.rollouts.actors,
            job.deadlines,
            on_busy=self._on_busy["clients"],
        )

    def _start_scorers(self, job: Job) -> ActorPool[ScorerActor]:
        actor = ray.remote(ScorerActor)
        # with another reference the learner computes the log-probabilities itself
        reference = job.model if job.dpo.reference == "base" else None
        return ActorPool(
            "scorer",
            lambda index: actor.options(**placement.pool_options(job.scorers)).remote(
                f"scorer-{index}", reward_models(job), reference, job.scorers
            ),
            job.scorers.actors,
            job.deadlines,
            on_busy=self._on_busy["scorers"],
        )

    def _start_learner(self, job: Job, state: str | None, bundles: Any) -> LearnerGroup:
        spec = WorkerSpec(
            model=job.model,
            objective=DpoObjective(job.dpo),
            settings=job.learners,
            optimizer=job.dpo.optimizer,
            seed=job.seed,
            deadlines=job.deadlines,
            template_options=job.template_options,
        )
        return LearnerGroup(spec, state=state, placement_group=bundles, on_busy=self._on_busy["learners"])
