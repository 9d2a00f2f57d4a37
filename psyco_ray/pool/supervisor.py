"""The life of a pool's members: one thread creates, prepares, feeds, hears, watches and replaces them."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from psyco_ray.pool import processes
from psyco_ray.pool.slot import PendingUpdate, Slot, State, reason_of
from psyco_ray.pool.work import EndOfStream, WorkItem, WorkStream

_log = logging.getLogger(__name__)

POLL_S = 0.02
PARTING_S = 5.0
_QUIET_S = 0.2  # where nothing can happen but the end of an item
_LOOK_S = 2.0  # between looks at the nodes
_ATTEMPTS = 2  # of an item, each with another member, before it is taken apart, and of each part of it
_BACKLOG = 1024  # results that nobody took yet, above which a stream gets no more work
_FETCH_S = 60.0  # for a result that is there, if perhaps on another node
_LAGGARD = 2.0  # medians that an item may take before an idle member does it as well


class Supervisor:
    """Members of one role, and the thread that keeps them; `ActorPool` says what can be asked of them."""

    def __init__(
        self,
        role: str,
        make: Callable[[int], Any],
        size: int,
        *,
        start_s: float,
        item_s: float,
        worked: Callable[[float, float], None] = lambda *_: None,
        resting: bool = False,
    ) -> None:
        """Create the members; they load in the background.

        Args:
            role: what the members are, in messages.
            make: creates the actor of an index; it has a method `ready` that loads what it needs.
            size: number of members.
            start_s: seconds a member may take to get ready.
            item_s: seconds a member may take between two results.
            worked: told from when to when (`time.monotonic`) a member was at work, whenever it is heard.
            resting: create none before `rise`.
        """
        self.role = role
        self._make, self._start_s, self._item_s, self._worked = make, start_s, item_s, worked
        self._resting = resting
        self._lock = threading.RLock()
        self._members = {index: Slot(index) for index in range(size)}
        self._streams: list[WorkStream] = []
        self._parting: list[tuple[Any, Any, float]] = []  # actor, its last call, until when
        self._preparation: PendingUpdate | None = None
        self._failed_in_a_row = self._refused_in_a_row = 0
        self._fit = time.monotonic()  # when a member could last work
        self._looked = 0.0
        self._last_reason = ""
        self._error: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role} pool", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """The pool's thread."""
        try:
            while not self._closed.is_set():
                with self._lock:
                    self._settle()
                    self._hand_out()
                    waiting = {member.ref: member for member in self._members.values() if member.ref is not None}
                    watchful = any(m.state is State.IDLE for m in self._members.values()) and bool(self._streams)
                heard = self._wait(list(waiting), POLL_S if watchful else _QUIET_S)
                with self._lock:
                    for ref in heard:
                        if waiting[ref].ref is ref:
                            self._hear(waiting[ref])
                    self._watch()
        except BaseException as error:  # noqa: BLE001 - whatever ends this thread is raised again by who waits for it
            with self._lock:
                self._error = error
                self._fail(error)

    def _wait(self, refs: list[Any], timeout: float) -> list[Any]:
        """The refs that have something, as soon as one has."""
        if not refs:
            time.sleep(POLL_S)
            return []
        first, _ = ray.wait(refs, timeout=timeout)
        return ray.wait(refs, num_returns=len(refs), timeout=0)[0] if first else []

    def _settle(self) -> None:
        """Create who is due, prepare who is not, let go who leaves."""
        now = time.monotonic()
        for member in list(self._members.values()):
            if member.leaving and member.state in (State.IDLE, State.ABSENT):
                self._part(member)
            elif member.moving and member.state is State.IDLE:
                _log.warning(f"{self.role} {member} leaves: its node is being drained")
                self._part(member)
            elif self._resting:
                continue
            elif member.state is State.ABSENT and now >= member.not_before:
                member.actor = self._make(member.index)
                member.turn(State.STARTING, member.actor.__ray_call__.remote(_get_ready))
            elif member.state is State.IDLE and member.prepared is not self._preparation:
                assert self._preparation is not None, "a preparation is never taken back"
                call = getattr(member.actor, self._preparation.method)
                member.turn(State.PREPARING, call.remote(*self._preparation.args))
        for gone in [entry for entry in self._parting if now > entry[2]]:
            ray.kill(gone[0])
            self._parting.remove(gone)

    def _hand_out(self) -> None:
        """Give idle members work, each stream in turn; at a stream's end, what one of them takes long to do."""
        for stream in [s for s in self._streams if s.closed.is_set() or s.done]:
            stream.out.put(EndOfStream(None))
            self._streams.remove(stream)
        for member in [] if self._resting else self._members.values():
            if member.state is not State.IDLE or member.leaving or member.prepared is not self._preparation:
                continue
            for stream in sorted(self._streams, key=lambda s: len(s.running)):
                try:
                    work = stream.next() if stream.out.qsize() < _BACKLOG else None
                except BaseException as error:  # noqa: BLE001 - the items' error, for who reads the stream
                    self._end(stream, error)
                    continue
                if work is not None or (work := _laggard(stream)) is not None:
                    member.begin(stream, work)
                    break
            else:
                return  # no work for this one, none for the others

    def _hear(self, member: Slot) -> None:
        """Take what a member has to say."""
        if member.state is State.STARTING:
            self._hear_ready(member)
        elif member.state is State.PREPARING:
            self._hear_prepared(member)
        elif member.state is State.BUSY:
            self._hear_result(member)
        elif member.state is State.ENDING:
            member.turn(State.ABSENT)

    def _hear_ready(self, member: Slot) -> None:
        try:
            member.process = ray.get(member.ref)
        except RayTaskError as error:
            self._lose(member, reason_of(error), error)
        except RayError as error:
            reason = f"died before it was ready, {reason_of(error)}"
            self._lose(member, reason, RuntimeError(f"{self.role} {member} {reason}"))
        else:
            member.error = None
            if self._preparation is None:
                member.failures = 0
            member.turn(State.IDLE)

    def _hear_prepared(self, member: Slot) -> None:
        preparation = self._preparation
        assert preparation is not None, "it prepares for something"
        try:
            answer = ray.get(member.ref)
            wrong = preparation.check(answer)
        except RayTaskError as error:
            wrong = reason_of(error)
        except RayError as error:
            self._lose(member, f"died in {preparation.method}, {reason_of(error)}")
            return
        if wrong is not None:
            self._refuse(member, preparation, RuntimeError(wrong))
            return
        member.prepared, member.refused, member.failures = preparation, 0, 0
        self._refused_in_a_row = 0
        preparation.answers[member.index] = answer
        self._worked(member.since, time.monotonic())
        member.turn(State.IDLE)

    def _refuse(self, member: Slot, preparation: PendingUpdate, error: Exception) -> None:
        """A member failed to prepare: once it may try again."""
        member.refused += 1
        if member.refused == 1 and not isinstance(error, TimeoutError):
            _log.warning(f"{self.role} {member}: {error}; it tries again")
            member.turn(State.IDLE)
        else:
            preparation.refusals[member.index] = error
            self._lose(member, str(error))
            self._refused_in_a_row += 1
            # newcomers load and are lost again for ever, where what they are to take went away with its owner
            if self._unpreparable(preparation):
                self._fail(preparation.failure(self.role))

    def _unpreparable(self, preparation: PendingUpdate) -> bool:
        """Whether nobody has prepared, however often members were replaced."""
        taken = any(member.prepared is preparation for member in self._members.values())
        return not taken and self._refused_in_a_row > 2 * len(self._members)

    def _hear_result(self, member: Slot) -> None:
        stream, work = member.stream, member.work
        assert stream is not None, "it is busy with something"
        assert work is not None, "it is busy with something"
        self._worked(member.heard, time.monotonic())
        try:
            result = next(member.ref, None)  # its end is told by a default: a StopIteration could come from elsewhere
            if result is None:
                member.items += 1
                member.drop_work()
                stream.finish(work)
                member.turn(State.IDLE)
            else:
                stream.deliver(work, ray.get(result, timeout=_FETCH_S))
                member.heard = self._fit = time.monotonic()
                self._failed_in_a_row = 0
        except RayTaskError as error:
            if isinstance(error, (ValueError, AssertionError)):  # the item does not do; the member is as good as before
                member.drop_work()
                member.turn(State.IDLE)
                if not work.finished:
                    self._end(stream, error)
            else:
                self._lose(member, f"failed at {stream.what}, {reason_of(error)}")
        except RayError as error:
            self._lose(member, f"died at {stream.what}, {reason_of(error)}")

    def _watch(self) -> None:
        """Look for who takes too long, for nodes that are going away, and whether there is anybody left."""
        now = time.monotonic()
        for member in self._members.values():
            if member.state is State.STARTING and now - member.since > self._start_s:
                text = f"was not ready within {self._start_s:g} s"
                self._lose(member, text, TimeoutError(f"{self.role} {member} {text}"))
            elif member.state is State.PREPARING and now - member.since > _of(member, self._preparation).deadline_s:
                preparation = _of(member, self._preparation)
                text = f"did not finish {preparation.method} within {preparation.deadline_s:g} s"
                self._refuse(member, preparation, TimeoutError(f"{self.role} {member} {text}"))
            elif member.state is State.BUSY and (silent := now - member.heard) > self._item_s:
                stream = member.stream
                self._lose(member, f"gave no result for {silent:.0f} s at {stream.what if stream else 'work'}")
            elif member.state is State.ENDING and now - member.since > 3 * PARTING_S:
                member.turn(State.ABSENT)
            if member.state in (State.IDLE, State.BUSY, State.PREPARING):
                self._fit = now
        if now - self._fit > self._start_s and self._streams:
            self._fail(self._nobody())
        if now - self._looked > _LOOK_S:
            self._looked = now
            draining = processes.draining_nodes()
            for member in self._members.values():
                member.moving = member.process is not None and member.process.node in draining

    def _lose(self, member: Slot, reason: str, error: Exception | None = None) -> None:
        """Remove a member with whatever it left, give its item to another, and have its place filled.

        Args:
            member: who is dead, hangs or is not to be trusted.
            reason: why.
            error: what `wait_ready` raises, where it never got ready.
        """
        doing = member.drop_work()
        self._last_reason = f"{self.role} {member} {reason}"
        if member.state in (State.STARTING, State.PREPARING):
            member.failures += 1
            member.error = error
            member.not_before = time.monotonic() + min(2.0 ** (member.failures - 1), 60.0)
        if doing is not None:
            self._failed_in_a_row += 1
            doing[0].failed(doing[1], self._last_reason, _ATTEMPTS)
        _log.warning(f"{self._last_reason}; it is replaced" + ("; its item goes to another" if doing else ""))
        ray.kill(member.actor)
        reaping = processes.end_remotely(member.process) if member.process else None
        self._vacate(member, State.ENDING if reaping is not None else State.ABSENT, reaping)
        if self._failed_in_a_row > len(self._members) + 4 * _ATTEMPTS:
            self._fail(RuntimeError(f"{self._failed_in_a_row} items failed one after another; {self._last_reason}"))

    def _part(self, member: Slot) -> None:
        """Let a member go that does no work."""
        if member.state in (State.IDLE, State.STARTING, State.PREPARING):
            self._say_goodbye(member)
        if member.leaving:
            del self._members[member.index]
        else:
            self._vacate(member, State.ABSENT, None)

    def _vacate(self, member: Slot, state: State, ref: Any) -> None:
        member.restarts += 1
        member.actor = member.process = member.prepared = None
        member.refused = 0
        member.turn(state, ref)

    def _say_goodbye(self, member: Slot) -> None:
        """Ask an actor to end by itself, with a deadline; one that is not ready yet would not hear it."""
        if member.state is State.STARTING:
            ray.kill(member.actor)
        else:
            leaving = member.actor.__ray_terminate__.remote()
            self._parting.append((member.actor, leaving, time.monotonic() + PARTING_S))

    def _end(self, stream: WorkStream, error: BaseException) -> None:
        """Raise an error where a stream is read."""
        stream.closed.set()
        stream.out.put(EndOfStream(error))
        if stream in self._streams:
            self._streams.remove(stream)

    def _fail(self, error: BaseException) -> None:
        for stream in list(self._streams):
            self._end(stream, error)

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the pool of {self.role} actors broke") from self._error

    def _nobody(self) -> Exception:
        last = f"; the last reason was: {self._last_reason}" if self._last_reason else ""
        return TimeoutError(f"no {self.role} actor could work for {self._start_s:g} s{last}")


def _get_ready(actor: Any) -> processes.Process:
    """Runs in the actor: load what it needs and say where that is."""
    processes.own_scratch()
    actor.ready()
    return processes.describe()


def _laggard(stream: WorkStream) -> WorkItem | None:
    """An item that one member takes much longer for than was usual, while nothing else is left to do."""
    if not stream.exhausted or not stream.durations:
        return None
    usual, now = statistics.median(stream.durations), time.monotonic()
    late = [w for w in stream.running if w.doers == 1 and now - w.began > max(1.0, _LAGGARD * usual)]
    return min(late, key=lambda work: work.began, default=None)


def _of(member: Slot, preparation: PendingUpdate | None) -> PendingUpdate:
    assert preparation is not None, f"{member} prepares for something"
    return preparation
