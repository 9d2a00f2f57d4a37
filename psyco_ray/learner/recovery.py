"""A group of learner ranks that outlives them.

It remembers which state on disk its weights came from and which steps it has taken since; when a rank is lost, new
ranks load that state, take those steps again, and go on with what was interrupted.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from ray.util.placement_group import PlacementGroup

from psyco_ray.config.resources import Learners
from psyco_ray.learner.worker_group import WorkerGroup, WorkerGroupFailedError
from psyco_ray.pool import placement
from psyco_ray.run import preemption
from psyco_ray.run.types import PreferencePair

REBUILDS = 3  # of a group, without an optimizer step in between, before it is given up
_FEWER_ROOM_S = 10.0  # for fewer ranks than there was room for: what is free by then is free

P = ParamSpec("P")
T = TypeVar("T")
Batches = Iterable[Sequence[PreferencePair]]

_log = logging.getLogger(__name__)


@dataclass
class ReplaySegment:
    """A training's steps since the state that the group would be rebuilt from."""

    batches: Callable[[int], Batches]  # from a step on
    steps: int
    first: int
    done: int  # number of the next step
    fresh: bool  # begins without Adam's moments


class Lasting(ABC):
    """The ranks of a group, and what it takes to have others in their place; `LearnerGroup` says what they can do."""

    def __init__(
        self,
        settings: Learners,
        begin: dict[str, Any],
        state: str | None,
        rooms: PlacementGroup | None,
        start_s: float,
        worked: Callable[[float, float], None],
    ) -> None:
        """Create the ranks; they load in the background until `wait_ready`.

        Args:
            settings: their number and what each takes.
            begin: what every rank is started with, state aside.
            state: a directory that they continue from, a path or a URI.
            rooms: one for each rank, that it shares with a rollout; None: the ranks have theirs alone.
            start_s: seconds a rank may take to get ready.
            worked: told from when to when a rank was at work.

        Raises:
            PlacementTimeoutError: the cluster has no room for the ranks.
        """
        self._settings, self._begin, self._rooms, self._start_s = settings, begin, rooms, start_s
        self._worked = worked
        self._state = state  # where a rebuilt group starts from; None: the base model
        self._since: list[ReplaySegment] = []  # and what it does again
        self._rebuilds, self._closed = 0, False
        self._ranks = self._placed(settings.actors, placement.PLACEMENT_DEADLINE_S)

    @property
    def ranks(self) -> list[Any]:
        """The ranks' actors; others after a loss."""
        return self._ranks.actors

    def wait_ready(self) -> None:
        """Wait until every rank has its model.

        Raises:
            RuntimeError: ranks were lost again and again, here as in every other method.
        """
        self._lasting(lambda: self._ranks.wait_ready(self._start_s))

    def close(self) -> None:
        """End the ranks and free what they held."""
        self._closed = True
        self._ranks.end()

    def _lasting(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What an action gives, done again with a rebuilt group as often as ranks are lost.

        Raises:
            RuntimeError: that was too often.
        """
        while True:
            try:
                return action(*args, **kwargs)
            except WorkerGroupFailedError as loss:
                self._rebuild(loss)

    def _rebuild(self, loss: WorkerGroupFailedError) -> None:
        """End what is left of the group and bring a new one to where it was."""
        began = time.monotonic()
        while True:
            self._ranks.end()
            preemption.check()  # what is on disk is whole, and there is nobody to write more
            if self._closed:
                raise loss
            if self._rebuilds == REBUILDS:
                raise RuntimeError(
                    f"{loss}; the learner is given up, for it was rebuilt {REBUILDS} times without a step in between"
                ) from loss
            self._rebuilds += 1
            _log.warning("%s; the learner is rebuilt from %s", loss, self._state or "the base model")
            try:
                self._replace(len(self.ranks))
            except WorkerGroupFailedError as another:
                loss = another
            else:
                seconds = time.monotonic() - began
                _log.warning("the learner is back with %d ranks after %.1f s", len(self.ranks), seconds)
                return

    def _replace(self, count: int) -> None:
        """Start new ranks from the last state and take the steps since then again."""
        self._ranks = self._placed_or_fewer(count)
        if self._closed:
            self._ranks.end()
            raise WorkerGroupFailedError("the learner was closed while it was rebuilt")
        self._ranks.wait_ready(self._start_s)
        for training in self._since:
            self._retake(training)

    @abstractmethod
    def _retake(self, training: ReplaySegment) -> None:
        """Take the steps of a training once more."""

    def _placed_or_fewer(self, count: int) -> WorkerGroup:
        """New ranks, as many of `count` as the cluster has room for.

        Raises:
            RuntimeError: it has room for none.
        """
        try:
            return self._placed(count, placement.PLACEMENT_DEADLINE_S)
        except placement.PlacementTimeoutError as error:
            for fewer in range(count - 1, 0, -1):
                try:
                    ranks = self._placed(fewer, _FEWER_ROOM_S)
                except placement.PlacementTimeoutError:
                    continue
                _log.warning("%s; the learner goes on with %d", error, fewer)
                return ranks
            raise RuntimeError(f"the learner cannot be rebuilt: {error}, nor for fewer") from error

    def _placed(self, count: int, room_s: float) -> WorkerGroup:
        return WorkerGroup(self._settings, count, room_s, self._state, self._begin, self._rooms, self._worked)
