"""Pools of actors that take work items one at a time and stream results back; a pool owns the life of its members.

Work is pulled: a member gets its next item when it is done with the last, so a slow one never decides how long the
whole takes. What a member that died or hangs had begun is given to another; results are told apart by their identity,
so that each comes once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from psyco_ray.pool import processes
from psyco_ray.pool.slot import PendingUpdate, Slot, State, reason_of
from psyco_ray.pool.supervisor import PARTING_S, POLL_S, Supervisor
from psyco_ray.pool.work import EndOfStream, FailedItem, WorkStream


class ActorPool(Supervisor):
    """Members of one role."""

    def wait_ready(self) -> None:
        """Wait until every member has loaded and may get work.

        Raises:
            TimeoutError: one did not in time.
            RuntimeError: one died, or could not load what it needs.
        """
        while True:
            with self._lock:
                self._check()
                members = list(self._members.values())
                for member in members:
                    if member.error is not None:
                        raise member.error
                if all(member.state is State.IDLE for member in members):
                    return
            time.sleep(POLL_S)

    def stream(
        self,
        method: str,
        items: Iterable[Any],
        *,
        what: str = "work",
        identity: Callable[[Any], Hashable] = lambda _: None,
        split: Callable[[Any], list[Any]] = lambda item: [item],
        lost: Callable[[Any, str], None] | None = None,
    ) -> Iterator[Any]:
        """Give items to members as they get free, and yield what their generator `method` yields, as it comes.

        Several streams may run at the same time; they share the members. `items` may itself be a stream.

        Args:
            method: of the members.
            items: the work.
            what: the work's name, in messages.
            identity: tells the results of one item apart, so that none comes twice when the item is done again.
                Needed where an item has more than one.
            split: the parts of an item that members cannot do as a whole.
            lost: told about an item that members died of again and again, with the last reason; None: that is an error.

        Raises:
            InputError: as a member raised it.
            RuntimeError: an item is lost and `lost` is None, or nothing works any more.
            TimeoutError: no member could be had for so long.
        """
        stream = WorkStream(method, items, what, identity, split, 2 * max(4, len(self._members)))
        with self._lock:
            self._check()
            self._streams.append(stream)
        try:
            while not isinstance(found := stream.out.get(), EndOfStream):
                if not isinstance(found, FailedItem):
                    yield found
                elif lost is None:
                    raise RuntimeError(f"{what}: {self.role} actors gave an item up, {found.reason}")
                else:
                    lost(found.item, found.reason)
            if found.error is not None:
                raise found.error
        finally:
            stream.closed.set()

    def bring(
        self, method: str, *args: Any, version: int, check: Callable[[Any], str | None], deadline_s: float
    ) -> list[Any]:
        """Have every member call a method before its next item; whoever joins later calls it first of all.

        Members that are still busy with what others finished, or still loading, are not waited for.

        Args:
            method: of the members.
            *args: for it.
            version: what the members have then, for `status`.
            check: of what it returned; says what is wrong. Who fails twice is replaced.
            deadline_s: seconds it may take.

        Returns:
            What the members answered.

        Raises:
            RuntimeError: no member succeeded.
            TimeoutError: no member succeeded in time, or none could be had.
        """
        with self._lock:
            preparation = PendingUpdate(method, args, version, check, deadline_s)
            self._preparation, self._refused_in_a_row = preparation, 0
        while True:
            with self._lock:
                self._check()
                members = list(self._members.values())
                pending = [m for m in members if m.prepared is not preparation and m.must_prepare]
                if not pending and preparation.answers:
                    return list(preparation.answers.values())
                if self._unpreparable(preparation) or (not pending and len(preparation.refusals) >= len(members)):
                    raise preparation.failure(self.role)
                if time.monotonic() - self._fit > self._start_s:
                    raise self._nobody()
            time.sleep(POLL_S)

    @property
    def idle(self) -> list[Any]:
        """Handles of the members that could work and have none."""
        with self._lock:
            return [member.actor for member in self._members.values() if member.state is State.IDLE]

    def rest(self, method: str, *args: Any, deadline_s: float) -> None:
        """Have every member call a method that frees what it holds; until `rise` none is created or gets work.

        Who still works, loads or prepares is waited for. Who has not called it in time, or fails, is ended.

        Args:
            method: of the members.
            *args: for it.
            deadline_s: seconds it may take.
        """
        asked: dict[Any, Any] = {}  # by actor
        until = time.monotonic() + deadline_s
        with self._lock:
            self._resting = True
        while True:
            with self._lock:
                self._check()
                here = [member for member in self._members.values() if member.actor is not None]
                for member in here:
                    if member.state is State.IDLE and member.actor not in asked:
                        asked[member.actor] = getattr(member.actor, method).remote(*args)
                waiting = [m for m in here if m.actor not in asked or not self._wait_for(m, asked[m.actor], method)]
                late = waiting if time.monotonic() > until else []
                for member in late:
                    self._lose(member, f"did not finish {method} within {deadline_s:g} s")
            if not waiting or late:
                return
            time.sleep(POLL_S)

    def rise(self) -> None:
        """Go on after `rest`: missing members are created, and work is handed out."""
        with self._lock:
            self._resting, self._fit = False, time.monotonic()

    def resize(self, size: int) -> None:
        """Have so many members: new ones work as soon as they can, the last ones leave when their item is done."""
        with self._lock:
            for index in range(size):
                self._members.setdefault(index, Slot(index)).leaving = False
            for index, member in list(self._members.items()):
                if index < size:
                    continue
                member.leaving = True
                if member.state not in (State.BUSY, State.IDLE):
                    self._part(member)

    def status(self) -> list[dict[str, Any]]:
        """What each member does, for how long (s), where, and how often it was replaced."""
        with self._lock:
            return [member.status() for member in self._members.values()]

    def waiting(self) -> int:
        """Items that wait for a member."""
        with self._lock:
            return sum(stream.waiting for stream in self._streams)

    @property
    def actors(self) -> list[Any]:
        """Handles of the members that are there."""
        with self._lock:
            return [member.actor for member in self._members.values() if member.actor is not None]

    def _wait_for(self, member: Slot, answer: Any, method: str) -> bool:
        """Whether a member has answered, or is gone."""
        if not ray.wait([answer], timeout=0)[0]:
            return False
        try:
            ray.get(answer)
        except RayError as error:
            self._lose(member, f"failed in {method}, {reason_of(error)}")
        return True

    def close(self) -> None:
        """End all members; those that do nothing may tidy up first."""
        self._closed.set()
        self._thread.join()
        for stream in self._streams:
            stream.out.put(EndOfStream(RuntimeError(f"the pool of {self.role} actors was closed")))
        for member in self._members.values():
            if member.state is State.IDLE:
                self._say_goodbye(member)
            elif member.actor is not None:
                ray.kill(member.actor)
                if member.process is not None and (member.process.children or member.process.segments):
                    member.turn(State.ENDING, processes.end_remotely(member.process))
        leaving = [ref for _, ref, _ in self._parting]
        leaving += [m.ref for m in self._members.values() if m.state is State.ENDING and m.ref is not None]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=PARTING_S)
        for actor, _, _ in self._parting:
            ray.kill(actor)
