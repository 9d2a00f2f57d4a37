"""Processes of actors: what they leave on their machine, and its removal if they cannot do it themselves."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_log = logging.getLogger(__name__)

EXIT_S = 5.0  # for an actor to exit by itself
_SHARED_MEMORY = "/dev/shm/"
_PREFIXES = ("psm_", "sem.", "torch_")  # of segments of engines and their workers; Ray cleans up its own store
_SCRATCH_PREFIX = "psyco_ray-"
_KILL_S = 10.0  # for killed processes to end


@dataclass(frozen=True)
class Process:
    """An actor's process at the moment when the actor got ready."""

    node: str  # Ray's node id
    host: str
    pid: int
    started: float  # seconds since the epoch; tells a reused pid apart
    children: tuple[tuple[int, float], ...]  # pid and start of all descendants
    segments: tuple[str, ...]  # files of shared memory that it or a descendant maps
    scratch: str  # its directory for temporary files
    notes: tuple[str, ...]  # what a user should know about the loaded actor

    def report(self, logged: set[str]) -> None:
        """Log the notes that are not in `logged`, and add them."""
        for note in self.notes:
            if note not in logged:
                _log.warning(note)
        logged.update(self.notes)


def get_ready(actor: Any) -> Process:
    """Load an actor in its process, and describe it; `actor.notes` need not exist."""
    import psutil

    own_scratch()
    actor.ready()
    process = psutil.Process()
    children = process.children(recursive=True)
    pids = (process.pid, *(child.pid for child in children))
    return Process(
        node=ray.get_runtime_context().get_node_id(),
        host=socket.gethostname(),
        pid=process.pid,
        started=process.create_time(),
        children=tuple((child.pid, child.create_time()) for child in children),
        segments=tuple(sorted({name for pid in pids for name in _segments(pid)})),
        scratch=tempfile.gettempdir(),
        notes=tuple(getattr(actor, "notes", ())),
    )


def own_scratch() -> None:
    """Give this process its own directory for temporary files and remove it at exit; engines leave theirs behind."""
    tempfile.tempdir = tempfile.mkdtemp(prefix=_SCRATCH_PREFIX)
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


def end(process: Process) -> int:
    """Kill a process of this machine with its descendants and remove what they left.

    Works on stopped processes, which only react to SIGKILL.

    Returns:
        Number of processes that were killed.
    """
    import psutil

    alive = []
    for pid, started in ((process.pid, process.started), *process.children):
        try:
            running = psutil.Process(pid)
            if abs(running.create_time() - started) < 1:
                alive += [running, *running.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for running in alive:
        try:
            running.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_KILL_S)
    for name in process.segments:
        Path(name).unlink(missing_ok=True)
    if Path(process.scratch).name.startswith(_SCRATCH_PREFIX):
        shutil.rmtree(process.scratch, ignore_errors=True)
    return len(alive)


def end_remotely(process: Process) -> ray.ObjectRef | None:
    """Run `end` on the machine of a process; None if that machine is lost."""
    if not any(node["NodeID"] == process.node and node["Alive"] for node in ray.nodes()):
        return None
    on_node = NodeAffinitySchedulingStrategy(process.node, soft=False)
    return ray.remote(end).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node).remote(process)


def draining_nodes() -> set[str]:
    """Ids of the nodes that are being removed from the cluster."""
    from ray._private.state import state  # Ray has no public function for it

    return set(state.get_draining_nodes())


class ExitingActors:
    """Actors that were asked to exit by themselves; late ones are killed."""

    def __init__(self) -> None:
        self._exiting: list[tuple[Any, Any, float]] = []  # actor, its last call, deadline

    def add(self, actor: Any) -> None:
        """Ask a ready actor to exit."""
        self._exiting.append((actor, actor.__ray_terminate__.remote(), time.monotonic() + EXIT_S))

    def kill_late(self) -> None:
        """Kill the actors past their deadline."""
        now = time.monotonic()
        for actor, _, deadline in self._exiting:
            if now > deadline:
                ray.kill(actor)
        self._exiting = [entry for entry in self._exiting if now <= entry[2]]

    def kill_all(self, also: list[Any]) -> None:
        """Wait for the actors and the references of other exits, then kill the actors that are left."""
        refs = [ref for _, ref, _ in self._exiting] + also
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=EXIT_S)
        for actor, _, _ in self._exiting:
            ray.kill(actor)


def _segments(pid: int) -> set[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    names = {line[line.index(_SHARED_MEMORY) :].removesuffix(" (deleted)") for line in lines if _SHARED_MEMORY in line}
    return {name for name in names if os.path.basename(name).startswith(_PREFIXES)}
