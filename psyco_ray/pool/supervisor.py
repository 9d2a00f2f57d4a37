"""The thread that starts, updates, dispatches to, polls, health-checks and restarts the actors of a pool."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Deadlines
from psyco_ray.pool import processes, states
from psyco_ray.pool.dispatcher import Dispatcher
from psyco_ray.pool.polling import POLL_S, Polling
from psyco_ray.pool.slot import PendingUpdate, Slot, Task, pending_of, reason_of
from psyco_ray.pool.updates import Updates
from psyco_ray.pool.work import WorkStream

_log = logging.getLogger(__name__)

_QUIET_POLL_S = 0.2  # while only the end of an item can change anything
_DRAIN_CHECK_S = 2.0  # between checks for draining nodes
# Every actor would raise these for the item: the user's input, or a bug. They end the stream, and the actor stays.
# Any other exception counts as a failure of the actor.
_ITEM_ERRORS = (InputError, ValueError, AssertionError)


class Supervisor:
    """Slots of one role and the thread that serves them; `ActorPool` owns one.

    The thread repeats: start, update; wait for a reply; poll the replies; health-check, dispatch. Public methods may
    be called from any thread. The arguments are those of `ActorPool`.
    """

    def __init__(
        self,
        role: str,
        create: Callable[[int], Any],
        size: int,
        deadlines: Deadlines,
        on_busy: Callable[[float, float], None],
        suspended: bool,
    ) -> None:
        self.role = role
        self._create, self._on_busy, self._suspended = create, on_busy, suspended
        self._start_s, self._item_s = deadlines.start_s, deadlines.item_s
        self._lock = threading.RLock()
        self._slots = {index: Slot(index) for index in range(size)}
        self._dispatcher = Dispatcher()
        self._exiting = processes.ExitingActors()
        self._updates = Updates(role, self._slots, self._fail_update, on_busy)
        self._last_healthy = time.monotonic()  # when an actor could last work
        self._last_drain_check = 0.0
        self._last_reason = ""
        self._notes: set[str] = set()  # of ready actors, as logged
        self._error: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role} pool", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def locked(self) -> Iterator[list[Slot]]:
        """Stop the thread at its next step and yield the slots; do not block inside."""
        with self._lock:
            yield list(self._slots.values())

    def check(self) -> None:
        """Raise a RuntimeError if an error or `close` ended the thread."""
        if self._error is not None or self._closed.is_set():
            raise RuntimeError(f"the pool of {self.role} actors broke or was closed") from self._error

    def check_capacity(self) -> None:
        """Raise a TimeoutError with the last failure if no actor could work for the start deadline."""
        if time.monotonic() - self._last_healthy > self._start_s:
            last = f"; the last reason was: {self._last_reason}" if self._last_reason else ""
            raise TimeoutError(f"no {self.role} actor could work for {self._start_s:g} s{last}")

    def add(self, stream: WorkStream) -> None:
        """Dispatch the items of a stream."""
        with self._lock:
            self.check()
            self._dispatcher.add(stream)

    def set_update(self, update: PendingUpdate) -> None:
        """Send an update to every actor before its next item, and to every new actor before its first."""
        with self._lock:
            self.check()
            self._updates.last = update
            self._start_and_update()  # without the thread, which looks at an idle pool every `POLL_S`

    def last_update(self) -> PendingUpdate:
        """The update that every actor gets."""
        assert self._updates.last is not None, "an update comes first"
        return self._updates.last

    def suspend(self) -> None:
        """Create no actor and dispatch nothing until `resume`."""
        with self._lock:
            self._suspended = True

    def resume(self) -> None:
        """Create missing actors and dispatch again."""
        with self._lock:
            self._suspended, self._last_healthy = False, time.monotonic()

    def resize(self, size: int) -> None:
        """Change the number of slots; a slot above it retires when its item is done."""
        with self._lock:
            for index in range(size):
                self._slots.setdefault(index, Slot(index)).retiring = False
            for slot in [slot for slot in self._slots.values() if slot.index >= size]:
                slot.retiring = True
                if slot.state not in (states.BUSY, states.IDLE):
                    self._dismiss(slot)

    def waiting(self) -> int:
        """Number of items that wait for an actor."""
        with self._lock:
            return self._dispatcher.waiting()

    def fail(self, slot: Slot, reason: str, start_error: Exception | None = None, items_at_fault: bool = True) -> None:
        """Kill an actor with everything that it left, requeue its items, and have the actor replaced.

        Args:
            slot: whose actor is dead, hangs or is not to be trusted.
            reason: why.
            start_error: what `ActorPool.wait_ready` raises, for an actor that never got ready.
            items_at_fault: whether it may be for its items, which are given up after some attempts.
        """
        released = slot.release_all()
        self._last_reason = f"{self.role} {slot} {reason}"
        if slot.state in (states.STARTING, states.UPDATING) or slot.held:
            slot.failed_starts += 1
            slot.start_error = start_error
            slot.not_before = time.monotonic() + min(2.0 ** (slot.failed_starts - 1), 60.0)
        if released and not items_at_fault:
            self._dispatcher.put_back(released)
        elif released:
            self._dispatcher.fail(released, self._last_reason, len(self._slots))
        _log.warning(f"{self._last_reason}; it is replaced" + ("; its work goes to others" if released else ""))
        ray.kill(slot.actor)
        cleanup = processes.end_remotely(slot.process) if slot.process else None
        slot.vacate(states.ENDING if cleanup is not None else states.ABSENT, cleanup)

    def close(self) -> None:
        """End the thread, the streams and all actors; idle actors may exit by themselves."""
        self._closed.set()
        self._thread.join()
        self._dispatcher.end_all(RuntimeError(f"the pool of {self.role} actors was closed"))
        for slot in self._slots.values():
            if slot.state is states.IDLE:
                self._exit(slot)
            elif slot.actor is not None:
                ray.kill(slot.actor)
                if slot.process is not None and (slot.process.children or slot.process.segments):
                    slot.enter(states.ENDING, processes.end_remotely(slot.process))
        cleanups = [s.ref for s in self._slots.values() if s.state is states.ENDING and s.ref is not None]
        self._exiting.kill_all(cleanups)

    def _run(self) -> None:
        try:
            polling = Polling(self._closed.wait)
            starved = True
            while not self._closed.is_set():
                polling.start()
                with self._lock:
                    self._start_and_update()
                    pending = pending_of(self._slots.values())
                ready = polling.ready(list(pending), POLL_S if starved else _QUIET_POLL_S)
                with self._lock:
                    for ref in ready:
                        self._poll(ref, *pending[ref])
                    self._health_check()
                    starved = self._dispatch()  # before the rest: an actor that is done has its next item at once
                polling.rest()
        except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait for the pool
            with self._lock:
                self._error = error
                self._dispatcher.end_all(error)

    def _dispatch(self) -> bool:
        """Give items to actors that may take more; whether there are too few items for them."""
        most = self._dispatcher.in_flight
        more = [slot for slot in self._slots.values() if self._may_take(slot, most)]
        self._dispatcher.dispatch(more)
        return self._dispatcher.active and any(self._may_take(slot, most) for slot in more)

    def _may_take(self, slot: Slot, most: int) -> bool:
        """Whether an actor may get one more item of at most so many."""
        if len(slot.tasks) >= most:
            return False
        if slot.state not in (states.IDLE, states.BUSY) or slot.updated is not self._updates.last:
            return False
        leaves = self._suspended or slot.retiring or slot.draining
        return not leaves and not slot.alone

    def _start_and_update(self) -> None:
        """Start missing actors, send pending updates, dismiss retiring actors."""
        now = time.monotonic()
        for slot in list(self._slots.values()):
            if slot.state is states.BUSY:
                continue
            if slot.retiring and slot.state in (states.IDLE, states.ABSENT):
                self._dismiss(slot)
            elif slot.draining and slot.state is states.IDLE:
                _log.warning(f"{self.role} {slot} leaves: its node is being drained")
                self._dismiss(slot)
            elif self._suspended:
                continue
            elif slot.state is states.ABSENT and now >= slot.not_before:
                slot.actor = self._create(slot.index)
                slot.enter(states.STARTING, slot.actor.__ray_call__.remote(processes.get_ready))
            elif slot.state is states.IDLE and slot.updated is not self._updates.last:
                assert self._updates.last is not None, "an update is never withdrawn"
                slot.send(self._updates.last)
        self._exiting.kill_late()

    def _poll(self, ref: Any, slot: Slot, task: Task | None) -> None:
        if task is not None:
            more = task in slot.tasks  # else the actor was replaced meanwhile
            while more:  # all that has come: a look at many calls is rare
                more = self._poll_result(slot, task) and task.has_more
        elif slot.proof is ref:
            self._updates.poll_proof(slot)
        elif slot.ref is not ref:
            return
        elif slot.state is states.STARTING:
            self._poll_start(slot)
        elif slot.state is states.UPDATING:
            self._updates.poll(slot)
        elif slot.state is states.ENDING:
            slot.enter(states.ABSENT)

    def _poll_start(self, slot: Slot) -> None:
        try:
            slot.process = ray.get(slot.ref)
        except RayTaskError as error:
            self.fail(slot, reason_of(error), error)
        except RayError as error:
            reason = f"died before it was ready, {reason_of(error)}"
            self.fail(slot, reason, RuntimeError(f"{self.role} {slot} {reason}"))
        else:
            slot.start_error = None
            slot.process.report(self._notes)
            if self._updates.last is None:
                slot.failed_starts = 0
            slot.enter(states.IDLE)

    def _fail_update(self, slot: Slot, reason: str, items_at_fault: bool) -> None:
        self.fail(slot, reason, items_at_fault=items_at_fault)

    def _poll_result(self, slot: Slot, task: Task) -> bool:
        """Deliver the results of an item that come next; returns whether there may be others."""
        self._on_busy(slot.last_result, time.monotonic())
        stream, work = task.stream, task.work
        try:
            results, more = task.take()
            for result in results:
                self._dispatcher.deliver(stream, work, result)
            if more:
                slot.last_result = task.last_result = self._last_healthy = time.monotonic()
                return True
            slot.items += 1
            slot.release(task)
            stream.finish(work)
        except RayTaskError as error:
            if isinstance(error, _ITEM_ERRORS):
                slot.release(task)
                if not work.finished:
                    self._dispatcher.end(stream, error)
            else:
                self.fail(slot, f"failed at {stream.name}, {reason_of(error)}")
        except RayError as error:
            self.fail(slot, f"died at {stream.name}, {reason_of(error)}")
        return False

    def _health_check(self) -> None:
        """Replace actors past their deadline, look for draining nodes, end the streams if no actor can work."""
        now = time.monotonic()
        for slot in self._slots.values():
            if slot.state is states.STARTING and now - slot.since > self._start_s:
                reason = f"was not ready within {self._start_s:g} s"
                self.fail(slot, reason, TimeoutError(f"{self.role} {slot} {reason}"))
            elif slot.state is states.UPDATING or slot.held:
                self._updates.check_deadline(slot, now)
            elif slot.state is states.BUSY and (silent_s := now - slot.tasks[0].last_result) > self._item_s:
                self.fail(slot, f"gave no result for {silent_s:.0f} s at {slot.tasks[0].stream.name}")
            elif slot.state is states.ENDING and now - slot.since > 3 * processes.EXIT_S:
                slot.enter(states.ABSENT)
            if slot.state in (states.IDLE, states.BUSY, states.UPDATING):
                self._last_healthy = now
        if self._updates.last is not None and self._updates.last.failure is not None:
            self._dispatcher.end_all(self._updates.last.failure)
        if self._dispatcher.active:
            try:
                self.check_capacity()
            except TimeoutError as error:
                self._dispatcher.end_all(error)
        if now - self._last_drain_check > _DRAIN_CHECK_S:
            self._last_drain_check = now
            draining = processes.draining_nodes()
            for slot in self._slots.values():
                slot.draining = slot.process is not None and slot.process.node in draining

    def _dismiss(self, slot: Slot) -> None:
        """Let an actor without an item exit, and remove its slot if it retires."""
        if slot.state in (states.IDLE, states.STARTING, states.UPDATING):
            self._exit(slot)
        if slot.retiring:
            del self._slots[slot.index]
        else:
            slot.vacate(states.ABSENT, None)

    def _exit(self, slot: Slot) -> None:
        """Let an actor exit by itself; one that is still starting could not answer."""
        if slot.state is states.STARTING:
            ray.kill(slot.actor)
        else:
            self._exiting.add(slot.actor)
