"""Processes that a test starts or watches: whether they run, and their end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it may end between any two calls
        return False


def eventually(condition: Callable[[], bool], within_s: float = 25) -> bool:
    """Whether a condition comes to hold in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def all_ended(pids: Iterable[int], within_s: float = 25) -> bool:
    """Whether none of some processes runs any more in time."""
    return eventually(lambda: not any(alive(pid) for pid in pids), within_s)


def children_of(pid: int) -> list[psutil.Process]:
    """All processes below one but Ray's agents: those try for a minute to tell a dead head of Ray their end."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [] if child.name().endswith("Agent") else [child]
    return found


def kill_tree(pid: int) -> list[psutil.Process]:
    """Kill a process and all below it, Ray's too; those of them that are still there after ten seconds."""
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return psutil.wait_procs(processes, timeout=10)[1]


def mapped_segments(pid: int) -> set[str]:
    """Names of the files of shared memory that a process maps."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # it has ended, or is another user's
        return set()
    return {line.rpartition("/")[2] for line in lines if f" {SHARED_MEMORY}/" in line}


def segments() -> set[str]:
    """Names of all files of shared memory."""
    return {path.name for path in SHARED_MEMORY.iterdir()}


def no_segment_left(before: set[str]) -> bool:
    """Whether in time there is no shared memory but that of `before` and what runs beside this process and its own."""

    def left() -> set[str]:
        new = segments() - before
        if not new:
            return new
        ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        return new.difference(*(mapped_segments(pid) for pid in psutil.pids() if pid not in ours))

    return eventually(lambda: not left(), within_s=5)
