"""One slot of a pool: its actor, the actor's state, and its items."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from psyco_ray.pool import states
from psyco_ray.pool.processes import Process
from psyco_ray.pool.states import State
from psyco_ray.pool.work import WorkItem, WorkStream

_FETCH_S = 60.0  # for a result that exists, perhaps on another node


@dataclass(eq=False)
class PendingUpdate:
    """A call that every actor makes before its next item, and the replies."""

    method: Callable[..., Any]  # of the actor class
    args: tuple[Any, ...]
    version: int
    check: Callable[[Any], str | None]
    deadline_s: float
    proof: Callable[..., Any] | None = None  # of the actor class
    check_proof: Callable[[Any], str | None] | None = None  # None: not known yet
    check_since: float = 0.0  # time.monotonic() from which it is known
    acks: dict[int, Any] = field(default_factory=dict)  # by slot
    proofs: dict[int, Any] = field(default_factory=dict)  # accepted ones, by slot
    errors: dict[int, Exception] = field(default_factory=dict)  # of replaced actors, by slot
    failures_in_a_row: int = 0
    failure: BaseException | None = None  # ends all streams until another update

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.__name__

    def error(self, role: str) -> Exception:
        """The error of an update that no actor applied."""
        first = next(iter(self.errors.values()))
        message = f"no {role} actor took version {self.version}: {first}"
        return TimeoutError(message) if isinstance(first, TimeoutError) else RuntimeError(message)


@dataclass(eq=False)
class Task:
    """An item at an actor."""

    stream: WorkStream
    work: WorkItem
    ref: Any  # generator of references to its results, or reference to all of them
    last_result: float  # when it came, or when the items before it were done

    @property
    def has_more(self) -> bool:
        """Whether results that nobody has taken, or the end of the results, have come."""
        return _has_come(self.ref, self.stream.one_by_one)

    def take(self) -> tuple[list[Any], bool]:
        """The results that come next, and whether the end is still to come; waits for it."""
        if not self.stream.one_by_one:
            return ray.get(self.ref, timeout=_FETCH_S), False
        ref = next(self.ref, None)  # a default, because a StopIteration could come from elsewhere
        if ref is None:
            return [], False
        found = ray.get(ref, timeout=_FETCH_S)
        return (found if isinstance(found, list) else [found]), True


class Slot:
    """A place in a pool; a lost actor is replaced in the same slot."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = states.ABSENT
        self.since = time.monotonic()  # when it entered the state
        self.actor: Any = None
        self.ref: Any = None  # of the pending call, except of items
        self.process: Process | None = None
        self.update: PendingUpdate | None = None  # the last one sent to the actor
        self.updated: PendingUpdate | None = None  # the last one applied
        self.proof: Any = None  # of the update, until it is accepted; results are held meanwhile
        self.proof_since = 0.0  # when it was asked for
        self.rejections = 0  # of updates, in a row
        self.retiring = False  # the slot goes when its items are done
        self.draining = False  # its node is being removed
        self.failed_starts = 0  # in a row
        self.not_before = 0.0  # backoff until this time
        self.start_error: Exception | None = None
        self.tasks: list[Task] = []  # in the order of their dispatch
        self.last_result = 0.0  # of any item, when it came
        self.restarts = self.items = 0
        self._ready_since: float | None = None
        self._busy_s = 0.0

    def enter(self, state: State, ref: Any = None) -> None:
        """Change the state; `ref` is what the slot waits for."""
        now = time.monotonic()
        if self.state is states.BUSY:
            self._busy_s += now - self.since
        if state is states.IDLE and self._ready_since is None:
            self._ready_since = now
        self.state, self.since, self.last_result, self.ref = state, now, now, ref

    def vacate(self, state: State, ref: Any) -> None:
        """Give up the actor; `ref` is what the slot waits for."""
        self.restarts += 1
        self.actor = self.process = self.update = self.updated = self.proof = None
        self.rejections = 0
        self.enter(state, ref)

    def assign(self, stream: WorkStream, work: WorkItem) -> None:
        """Dispatch an item to the actor, which is idle or has others."""
        now = time.monotonic()
        work.actors += 1
        work.began = work.began or now
        stream.running.add(work)
        call = actor_method(self.actor, stream.method)
        ref = (call.options(num_returns="streaming") if stream.one_by_one else call).remote(work.item)
        self.tasks.append(Task(stream, work, ref, now))
        work.has_come = partial(_has_come, ref, stream.one_by_one)
        if self.state is not states.BUSY:
            self.enter(states.BUSY)

    def release(self, task: Task) -> None:
        """Take an item away from the actor, which is idle without any."""
        task.work.actors -= 1
        self.tasks.remove(task)
        self.last_result = time.monotonic()
        if self.tasks:
            self.tasks[0].last_result = max(self.tasks[0].last_result, self.last_result)
        else:
            self.enter(states.IDLE)

    def release_all(self) -> list[tuple[WorkStream, WorkItem]]:
        """Take all items away from an actor that is lost."""
        released = [(task.stream, task.work) for task in self.tasks]
        self.tasks = []
        for _, work in released:
            work.actors -= 1
        return released

    def send(self, update: PendingUpdate) -> None:
        """Send an update to the idle actor."""
        self.update, self.proof = update, None
        self.enter(states.UPDATING, actor_method(self.actor, update.method).remote(*update.args))

    @property
    def held(self) -> bool:
        """Whether results wait for the proof of the update; none do once nobody can check it."""
        return self.proof is not None and self.updated is not None and self.updated.failure is None

    @property
    def proof_is_due(self) -> bool:
        """Whether results wait for a proof that can be checked now."""
        return self.held and self.updated is not None and self.updated.check_proof is not None

    def ask_proof(self, method: Callable[..., Any]) -> None:
        """Have the actor prove that it works with its update, before its next item."""
        self.proof, self.proof_since = actor_method(self.actor, method).remote(), time.monotonic()

    def release_results(self) -> None:
        """Let the results be taken that were held for the proof."""
        self.proof = None
        if self.tasks:
            self.tasks[0].last_result = time.monotonic()

    @property
    def must_update(self) -> bool:
        """Whether a broadcast waits for this slot: its actor is free, or works on a result that is still needed."""
        if self.state is not states.BUSY:
            return self.state in (states.IDLE, states.UPDATING)
        return any(not task.work.finished and not task.stream.closed.is_set() for task in self.tasks)

    @property
    def alone(self) -> bool:
        """Whether the actor has an item that must not share it."""
        return any(task.work.alone for task in self.tasks)

    def __str__(self) -> str:
        return f"actor {self.index}" + (f" on {self.process.host}" if self.process else "")

    def status(self) -> dict[str, Any]:
        """The slot's record in `status.json`."""
        now = time.monotonic() + 1e-9
        busy_s = self._busy_s + (now - self.since if self.state is states.BUSY else 0.0)
        ready_s = now - self._ready_since if self._ready_since is not None else 0.0
        return {
            "member": self.index,
            "state": "leaving" if self.retiring else self.state.value,
            "seconds": round(now - self.since, 1),
            "node": self.process.host if self.process else None,
            "pid": self.process.pid if self.process else None,
            "version": self.updated.version if self.updated else 0,
            "items": self.items,
            "restarts": self.restarts,
            "busy_s": busy_s,
            "there_s": ready_s,  # since it was first ready
            "idle_share": round(1 - busy_s / ready_s, 3) if ready_s else 0,
        }


def pending_of(slots: Iterable[Slot]) -> dict[Any, tuple[Slot, Task | None]]:
    """The references that slots wait for, with their items; of a slot with a proof only that, if it can be checked."""
    pending: dict[Any, tuple[Slot, Task | None]] = {}
    for slot in slots:
        if slot.held:
            if slot.proof_is_due:
                pending[slot.proof] = slot, None
            continue
        for task in slot.tasks:
            pending[task.ref] = slot, task
        if not slot.tasks and slot.ref is not None:
            pending[slot.ref] = slot, None
    return pending


def _has_come(ref: Any, one_by_one: bool) -> bool:
    """Whether results of a call that are not taken, or their end, have come."""
    if not one_by_one:
        return bool(ray.wait([ref], timeout=0)[0])
    return bool(ref.next_ready() or ref.is_finished())


def actor_method(actor: Any, method: Callable[..., Any]) -> Any:
    """The remote method of an actor handle that has the name of a method of the actor's class."""
    return getattr(actor, method.__name__)


def reason_of(error: BaseException) -> str:
    """An error in one line; for a dead actor with the cause of death, which Ray gives on the second line."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if not line.startswith("\t")] or [""]
    return f"{type(cause).__name__}: {' '.join(lines[:2] if isinstance(cause, ActorDiedError) else lines[:1])}"
