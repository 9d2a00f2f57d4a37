"""The processes of a learner group for as long as all of them live: if one is lost, the others are of no use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from psyco_ray.config.resources import Learners
from psyco_ray.learner.worker import LearnerWorker
from psyco_ray.pool import placement

_DEATH_TOLD_S = 5.0  # after which a rank's death is known to Ray; its partners feel it sooner


class WorkerGroupFailedError(RuntimeError):
    """A rank died, hung or lost its partners: this group cannot go on, but a new one can."""


class WorkerGroup:
    """One actor for each rank."""

    def __init__(
        self,
        settings: Learners,
        count: int,
        room_s: float,
        state: str | None,
        begin: dict[str, Any],
        rooms: PlacementGroup | None = None,
        worked: Callable[[float, float], None] = lambda *_: None,
    ) -> None:
        """Create the actors; they load in the background.

        Args:
            settings: what each of them takes.
            count: how many there are.
            room_s: seconds within which the cluster must have room.
            state: directory of the state to continue from.
            begin: the other arguments of `LearnerWorker.start`.
            rooms: that they share with rollouts; None: they get their own.
            worked: told from when to when (`time.monotonic`) a rank was at work, whenever one has answered.

        Raises:
            PlacementTimeoutError: the cluster has no room for as many.
        """
        self._worked = worked
        actor = ray.remote(LearnerWorker)
        options, self._group = placement.learner_options(settings, count, room_s, rooms)
        self.actors = [actor.options(**options(rank)).remote(rank, count) for rank in range(count)]
        self._places = [rank.place.remote() for rank in self.actors]
        meeting = self.actors[0].address.remote()
        self._started = [rank.start.remote(meeting, state=state, **begin) for rank in self.actors]

    def wait_ready(self, deadline_s: float) -> None:
        """Wait until every rank has its model.

        Raises:
            WorkerGroupFailedError: one was lost, or did not get ready in time.
        """
        self.get(self._started, deadline_s, "loading its model")

    def ask(self, method: str, *given: Any, deadline_s: float, doing: str) -> list[Any]:
        """What every rank answers to the same question; see `get`."""
        return self.get([getattr(rank, method).remote(*given) for rank in self.actors], deadline_s, doing)

    def get(self, answers: Sequence[ray.ObjectRef], deadline_s: float, doing: str) -> list[Any]:
        """The answers of all ranks, or the first failure at once: the others would wait in a collective for ever.

        Args:
            answers: one of each rank.
            deadline_s: seconds that they may take.
            doing: what the ranks do meanwhile, for messages.

        Raises:
            WorkerGroupFailedError: a rank died, hangs, or has lost its connection to the others.
        """
        asked, waiting = time.monotonic(), list(answers)
        while waiting:
            left = deadline_s - (time.monotonic() - asked)
            done, waiting = ray.wait(waiting, timeout=max(0.0, left))
            if not done:
                late = [rank for rank, answer in enumerate(answers) if answer in waiting]
                raise self._lost(late, doing, asked, f"no answer within {deadline_s:g} s")
            self._worked(asked, time.monotonic())
            try:
                ray.get(done)
            except RayTaskError as error:
                if len(answers) == 1 or not isinstance(error.cause, (RuntimeError, RayError)):
                    raise
                # what a collective raises; it may be but an echo of a partner's death
                rank, cause = self._dead(answers) or (answers.index(done[0]), error.cause)
                raise self._lost([rank], doing, asked, str(cause)) from error
            except RayError as error:
                raise self._lost([answers.index(done[0])], doing, asked, str(error)) from error
        return ray.get(list(answers))

    def places(self) -> list[tuple[str, str, int]]:
        """Address and id of each rank's node, and its process id."""
        return ray.get(self._places)

    def end(self) -> None:
        """Kill the ranks, whatever they do, and give their room back."""
        for rank in self.actors:
            ray.kill(rank)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)

    def _dead(self, answers: Sequence[ray.ObjectRef]) -> tuple[int, RayError] | None:
        """The first rank that is dead, and how that is told."""
        ray.wait(list(answers), num_returns=len(answers), timeout=_DEATH_TOLD_S)
        for rank, answer in enumerate(answers):
            if ray.wait([answer], timeout=0)[0]:
                try:
                    ray.get(answer)
                except RayTaskError:
                    continue
                except RayError as error:
                    return rank, error
        return None

    def _lost(self, ranks: Sequence[int], doing: str, asked: float, cause: str) -> WorkerGroupFailedError:
        names = ", ".join(map(self._named, ranks))
        seconds = time.monotonic() - asked
        return WorkerGroupFailedError(
            f"lost learner {names} after {seconds:.1f} s of {doing}: {cause.strip().splitlines()[0]}"
        )

    def _named(self, rank: int) -> str:
        """A rank and where it runs, as far as that is known."""
        if ray.wait([self._places[rank]], timeout=0)[0]:
            try:
                address, node, process = ray.get(self._places[rank])
            except RayError:
                return f"rank {rank} (which never ran)"
            return f"rank {rank} (process {process} on node {address}, id {node[:12]})"
        return f"rank {rank} (which has not told its node)"
