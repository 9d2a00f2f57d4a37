"""What an actor's process leaves on its machine, and how that is removed when the process cannot do it itself."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ray

_SEGMENTS = "/dev/shm/"
_OURS = ("psm_", "sem.", "torch_")  # segments of engines and their workers; Ray's own store is Ray's
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Process:
    """An actor's process as it was when the actor got ready."""

    node: str  # Ray's node id
    host: str
    pid: int
    started: float  # seconds since the epoch; a process with the same pid and another start is somebody else's
    children: tuple[tuple[int, float], ...]  # pid and start of all below it
    segments: tuple[str, ...]  # files of shared memory that it or a child maps
    scratch: str  # its directory for temporary files


def describe() -> Process:
    """This process; from now on its temporary files lie in a directory of its own, which goes when it exits."""
    import psutil

    me = psutil.Process()
    below = me.children(recursive=True)
    return Process(
        node=ray.get_runtime_context().get_node_id(),
        host=socket.gethostname(),
        pid=me.pid,
        started=me.create_time(),
        children=tuple((child.pid, child.create_time()) for child in below),
        segments=tuple(sorted({name for pid in (me.pid, *(c.pid for c in below)) for name in _segments(pid)})),
        scratch=tempfile.gettempdir(),
    )


def own_scratch() -> None:
    """Give this process a directory of its own for temporary files; engines leave theirs behind otherwise."""
    tempfile.tempdir = tempfile.mkdtemp(prefix="psyco_ray-")
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


def end(process: Process) -> int:
    """Kill what lives of a process and its children, on this machine, and remove what they left.

    Works on stopped processes, which answer to nothing but SIGKILL. Returns how many were killed.
    """
    import psutil

    alive = []
    for pid, started in ((process.pid, process.started), *process.children):
        try:
            found = psutil.Process(pid)
            if abs(found.create_time() - started) < 1:
                alive += [found, *found.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for one in alive:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_PATIENCE_S)
    for name in process.segments:
        Path(name).unlink(missing_ok=True)
    if Path(process.scratch).name.startswith("psyco_ray-"):
        shutil.rmtree(process.scratch, ignore_errors=True)
    return len(alive)


def end_remotely(process: Process) -> ray.ObjectRef | None:
    """Have `end` done on the machine of a process; None where that machine is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not any(node["NodeID"] == process.node and node["Alive"] for node in ray.nodes()):
        return None
    there = NodeAffinitySchedulingStrategy(process.node, soft=False)
    return ray.remote(end).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(process)


def draining_nodes() -> set[str]:
    """Ids of the nodes that will be taken away."""
    from ray._private.state import state  # Ray has no public way to ask

    return set(state.get_draining_nodes())


def _segments(pid: int) -> set[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    names = {line[line.index(_SEGMENTS) :].removesuffix(" (deleted)") for line in lines if _SEGMENTS in line}
    return {name for name in names if os.path.basename(name).startswith(_OURS)}
