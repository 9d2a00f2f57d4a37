"""The processes of a learner group from start to the first failure: if one is lost, the others are useless."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from psyco_ray.learner.batching import MicroBatch, computed_tokens, plan_step
from psyco_ray.learner.spec import WorkerSpec
from psyco_ray.learner.worker import LearnerWorker
from psyco_ray.models.sharing import Computed
from psyco_ray.pool import placement
from psyco_ray.pool.slot import actor_method
from psyco_ray.run.types import PreferencePair

_DEATH_REPORT_S = 5.0  # until Ray knows that a worker died; a collective of its partners fails sooner

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
OnBusy = Callable[[float, float], None]
"""Called with the start and the end of an interval (`time.monotonic`) in which a worker was busy."""


def ignore_busy(started: float, ended: float) -> None:
    """The `OnBusy` of a group without a timeline."""


class WorkerGroupFailedError(RuntimeError):
    """A worker died, hung or lost its partners: this group cannot continue, a new one can."""


def values_of(
    shards: Sequence[Sequence[MicroBatch]], results: Sequence[Sequence[tuple[float, float]]]
) -> list[tuple[float, float]]:
    """Values that the workers computed, in the order of `plan_values`, with those of the pairs that it added last."""
    by_key = {
        example.key: value
        for shard, values in zip(shards, results, strict=True)
        for example, value in zip((e for micro_batch in shard for e in micro_batch), values, strict=True)
    }
    return [by_key[key] for key in sorted(by_key)]


class WorkerGroup:
    """One `LearnerWorker` actor for each rank.

    Calls are typed: `run` takes a method of `LearnerWorker` and its arguments, and returns the results by rank.

    Example:
        >>> group = WorkerGroup(spec, world_size=2, placement_s=120)
        >>> group.wait_ready()
        >>> group.run(LearnerWorker.save_model, "saving the model", 300.0, "/models/policy")
        >>> group.shutdown()
    """

    def __init__(
        self,
        spec: WorkerSpec,
        world_size: int,
        placement_s: float,
        *,
        checkpoint: str | None = None,
        placement_group: PlacementGroup | None = None,
        on_busy: OnBusy = ignore_busy,
    ) -> None:
        """Create the actors, which load in the background until `wait_ready`.

        Args:
            spec: what every worker is started with.
            world_size: number of workers.
            placement_s: seconds within which the cluster must have room.
            checkpoint: directory or URI of the training state to continue from; None: the base model.
            placement_group: one bundle for each worker, shared with a rollout actor; None: the group makes its own.
            on_busy: called with each busy interval of a worker.

        Raises:
            PlacementTimeoutError: the cluster has no room for this many workers.
        """
        self._spec, self._on_busy = spec, on_busy
        actor = ray.remote(LearnerWorker)
        options, self._own_placement = placement.learner_options(
            spec.settings, world_size, placement_s, placement_group
        )
        self.workers: list[Any] = [
            actor.options(**options(rank)).remote(rank, world_size) for rank in range(world_size)
        ]
        self._locations = [worker.location.remote() for worker in self.workers]
        self._computed: Computed = "packed"  # known when the workers are ready
        address = self.workers[0].listen.remote()
        self._started = [worker.start.remote(address, spec, checkpoint) for worker in self.workers]

    def wait_ready(self) -> str:
        """Wait until every worker has loaded its model.

        Returns:
            The line that says why the model is computed the plain way; empty if it is packed.

        Raises:
            WorkerGroupFailedError: a worker was lost or not ready in time.
        """
        (self._computed, note), *_ = self._gather(self._started, "loading its model", self._spec.deadlines.start_s)
        return note

    def plan(self, batch: Sequence[PreferencePair]) -> list[list[MicroBatch]]:
        """Shard a batch over the workers, see `plan_step`.

        Raises:
            InputError: there are fewer pairs than workers.
        """
        return plan_step(batch, len(self.workers), self._spec.settings.micro_batch_tokens, self._computed)

    def tokens(self, shards: Sequence[Sequence[MicroBatch]]) -> int:
        """Return the tokens that the workers compute for the shards of a batch, see `computed_tokens`."""
        return computed_tokens(shards, self._computed)

    def plan_values(self, examples: Sequence[PreferencePair]) -> list[list[MicroBatch]]:
        """Shard examples over the workers for `values_of`; every worker has one."""
        # ZeRO-3 workers gather parameters together, so every worker needs a pair
        padded = [*examples, *[examples[-1]] * (len(self.workers) - len(examples))]
        return self.plan([replace(example, key=f"{i:09d}") for i, example in enumerate(padded)])

    def run(
        self,
        method: Callable[Concatenate[LearnerWorker, P], T],
        activity: str,
        timeout_s: float,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]:
        """Call a method on every worker with the same arguments.

        Args:
            method: of `LearnerWorker`.
            activity: what the workers do meanwhile, for messages.
            timeout_s: seconds for all workers.
            *args: arguments of the method.
            **kwargs: keyword arguments of the method.

        Returns:
            The results by rank.

        Raises:
            WorkerGroupFailedError: a worker died, hangs, or lost its connection to the others.
        """
        calls = [actor_method(worker, method).remote(*args, **kwargs) for worker in self.workers]
        return self._gather(calls, activity, timeout_s)

    def run_sharded(
        self,
        method: Callable[Concatenate[LearnerWorker, S, P], T],
        activity: str,
        timeout_s: float,
        shards: Sequence[S],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]:
        """As `run`, but the first argument of each worker is its own shard."""
        calls = [
            actor_method(worker, method).remote(shard, *args, **kwargs)
            for worker, shard in zip(self.workers, shards, strict=True)
        ]
        return self._gather(calls, activity, timeout_s)

    def locations(self) -> list[tuple[str, str, int]]:
        """Return address and id of each worker's node, and its process id, by rank."""
        return ray.get(self._locations)

    def shutdown(self) -> None:
        """Kill the workers and remove the group's own placement group."""
        for worker in self.workers:
            ray.kill(worker)
        if self._own_placement is not None:
            ray.util.remove_placement_group(self._own_placement)

    def _gather(self, calls: Sequence[ray.ObjectRef], activity: str, timeout_s: float) -> list[Any]:
        """Return all results, or raise at the first failure: the other workers would wait in a collective forever."""
        started, waiting = time.monotonic(), list(calls)
        while waiting:
            left = timeout_s - (time.monotonic() - started)
            done, waiting = ray.wait(waiting, timeout=max(0.0, left))
            if not done:
                late = [rank for rank, call in enumerate(calls) if call in waiting]
                raise self._failure(late, activity, started, f"no answer within {timeout_s:g} s")
            self._on_busy(started, time.monotonic())
            try:
                ray.get(done)
            except RayTaskError as error:
                if len(calls) == 1 or not isinstance(error.cause, (RuntimeError, RayError)):
                    raise
                # a failed collective; its cause may be the death of another worker
                rank, cause = self._first_dead(calls) or (calls.index(done[0]), error.cause)
                raise self._failure([rank], activity, started, str(cause)) from error
            except RayError as error:
                raise self._failure([calls.index(done[0])], activity, started, str(error)) from error
        return ray.get(list(calls))

    def _first_dead(self, calls: Sequence[ray.ObjectRef]) -> tuple[int, RayError] | None:
        """Return the first dead worker's rank and error."""
        ray.wait(list(calls), num_returns=len(calls), timeout=_DEATH_REPORT_S)
        for rank, call in enumerate(calls):
            if ray.wait([call], timeout=0)[0]:
                try:
                    ray.get(call)
                except RayTaskError:
                    continue
                except RayError as error:
                    return rank, error
        return None

    def _failure(self, ranks: Sequence[int], activity: str, started: float, cause: str) -> WorkerGroupFailedError:
        names = ", ".join(map(self._describe, ranks))
        seconds = time.monotonic() - started
        return WorkerGroupFailedError(
            f"lost learner {names} after {seconds:.1f} s of {activity}: {cause.strip().splitlines()[0]}"
        )

    def _describe(self, rank: int) -> str:
        """Name a rank and its process, as far as they are known."""
        if ray.wait([self._locations[rank]], timeout=0)[0]:
            try:
                address, node, process = ray.get(self._locations[rank])
            except RayError:
                return f"rank {rank} (never started)"
            return f"rank {rank} (process {process} on node {address}, id {node[:12]})"
        return f"rank {rank} (node unknown)"
