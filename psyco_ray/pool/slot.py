"""One member of a pool: its actor, what it does, and what it has to do before it may work."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ActorDiedError

from psyco_ray.pool.processes import Process
from psyco_ray.pool.work import WorkItem, WorkStream


class State(enum.Enum):
    """What a member does."""

    ABSENT = "absent"  # waits until it may be created
    STARTING = "starting"  # waits for a place in the cluster, or loads
    PREPARING = "preparing"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"  # its processes are being removed


@dataclass(eq=False)
class PendingUpdate:
    """A call that every member makes before its next item, and what came of it."""

    method: str
    args: tuple[Any, ...]
    version: int
    check: Callable[[Any], str | None]
    deadline_s: float
    answers: dict[int, Any] = field(default_factory=dict)  # by member
    refusals: dict[int, Exception] = field(default_factory=dict)

    def failure(self, role: str) -> Exception:
        """What is raised where no member succeeded."""
        first = next(iter(self.refusals.values()))
        told = f"no {role} actor took version {self.version}: {first}"
        return TimeoutError(told) if isinstance(first, TimeoutError) else RuntimeError(told)


class Slot:
    """A place in a pool; when its actor is lost, another takes the place."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = State.ABSENT
        self.since = time.monotonic()  # in this state
        self.actor: Any = None
        self.ref: Any = None  # what it is waited for: an object reference, or a stream of them
        self.process: Process | None = None
        self.prepared: PendingUpdate | None = None
        self.refused = 0  # times in a row
        self.leaving = False  # for good
        self.moving = False  # to another node
        self.failures = 0  # to get ready, in a row
        self.not_before = 0.0
        self.error: Exception | None = None  # why it could not get ready
        self.stream: WorkStream | None = None
        self.work: WorkItem | None = None
        self.heard = 0.0  # when its last result came
        self.restarts = self.items = 0
        self._fit_since: float | None = None
        self._busy_s = 0.0

    def turn(self, state: State, ref: Any = None) -> None:
        """Begin with something else."""
        now = time.monotonic()
        if self.state is State.BUSY:
            self._busy_s += now - self.since
        if state is State.IDLE and self._fit_since is None:
            self._fit_since = now
        self.state, self.since, self.heard, self.ref = state, now, now, ref

    def begin(self, stream: WorkStream, work: WorkItem) -> None:
        """Begin an item."""
        now = time.monotonic()
        work.doers += 1
        work.began = work.began or now
        stream.running.add(work)
        self.stream, self.work = stream, work
        call = getattr(self.actor, stream.method).options(num_returns="streaming")
        self.turn(State.BUSY, call.remote(work.item))

    def drop_work(self) -> tuple[WorkStream, WorkItem] | None:
        """What it was busy with; it is not any more."""
        if self.stream is None or self.work is None:
            return None
        found = self.stream, self.work
        self.work.doers -= 1
        self.stream = self.work = None
        return found

    @property
    def must_prepare(self) -> bool:
        """Whether a preparation has to wait for it: it could work, or does what is still wanted."""
        wanted = self.state is State.BUSY and self.work is not None and not self.work.finished
        return self.state in (State.IDLE, State.PREPARING) or (wanted and not self.stream_closed)

    @property
    def stream_closed(self) -> bool:
        """Whether nobody wants the results of what it does."""
        return self.stream is not None and self.stream.closed.is_set()

    def __str__(self) -> str:
        return f"actor {self.index}" + (f" on {self.process.host}" if self.process else "")

    def status(self) -> dict[str, Any]:
        """For `psyco-ray status`."""
        now = time.monotonic() + 1e-9
        busy = self._busy_s + (now - self.since if self.state is State.BUSY else 0.0)
        there = now - self._fit_since if self._fit_since is not None else 0.0
        return {
            "member": self.index,
            "state": "leaving" if self.leaving else self.state.value,
            "seconds": round(now - self.since, 1),
            "node": self.process.host if self.process else None,
            "pid": self.process.pid if self.process else None,
            "version": self.prepared.version if self.prepared else 0,
            "items": self.items,
            "restarts": self.restarts,
            "busy_s": busy,
            "there_s": there,  # since it could work for the first time
            "idle_share": round(1 - busy / there, 3) if there else 0,
        }


def reason_of(error: BaseException) -> str:
    """An error in one line; of a dead actor also why it died, which Ray tells below what it was."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if not line.startswith("\t")] or [""]
    return f"{type(cause).__name__}: {' '.join(lines[:2] if isinstance(cause, ActorDiedError) else lines[:1])}"
