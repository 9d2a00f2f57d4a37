"""A remote run directory: the working copy on this machine, and the lease by which one process holds the run."""

from __future__ import annotations

import functools
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psyco_ray import storage
from psyco_ray.remote import MANIFEST, Remote

LEASE = "LOCK"
REFRESH_S = 10.0
EXPIRES_S = 60.0
_SETTLE_S = 1.0  # in which a rival that saw no lease either has written its own


class WorkingCopy:
    """The small files of a remote run directory, here; what is written here is there before the call returns."""

    def __init__(self, target: str, root: Path) -> None:
        """Take the lease and bring the copy up to date.

        Args:
            target: URI of the run directory.
            root: directory of the copy.

        Raises:
            ValueError: the place cannot be reached, or the run is in use.
        """
        self.remote, self._root = Remote(target), root
        self._lease = Lease(self.remote)
        try:
            self._pull()
        except BaseException:
            self.close()
            raise

    def push(self, name: str) -> None:
        """Bring a file there, whole or not at all.

        Raises:
            ValueError: the place cannot be reached, or another process has taken the run over.
        """
        self._lease.check()
        self.remote.write(name, (self._root / name).read_bytes())
        self._same_time(name)

    def check(self) -> None:
        """Refuse where the run is no longer ours."""
        self._lease.check()

    @contextmanager
    def mirrored(self, below: str) -> Iterator[None]:
        """A context in which what other processes write below a directory here is brought there, every few seconds."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(REFRESH_S):
                try:
                    self._push_changed(below, time.time_ns())
                except ValueError:  # out of reach; the next time or the end of the context says so
                    continue

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._push_changed(below, None)

    def close(self) -> None:
        """Let the run go."""
        self._lease.release()

    def _pull(self) -> None:
        """Make the copy what is there, but for complete directories and weights, which are fetched when needed."""
        there = self.remote.files()
        whole = {name.removesuffix(MANIFEST) for name in there if name.endswith(f"/{MANIFEST}")}
        wanted = {
            name: info
            for name, info in there.items()
            if name != LEASE and not name.endswith(".safetensors") and not any(name.startswith(of) for of in whole)
        }
        for path in [path for path in self._root.rglob("*") if path.is_file()]:
            name = path.relative_to(self._root).as_posix()
            if name not in wanted and name != LEASE and not _paid(name):
                path.unlink()
        for name, info in wanted.items():
            path = self._root / name
            held = path.stat() if path.exists() else None
            if held is not None and _paid(name) and held.st_size >= info.size:
                continue
            if held is None or (held.st_size, held.st_mtime_ns) != (info.size, info.mtime_ns):
                path.parent.mkdir(parents=True, exist_ok=True)
                storage.write_file(path, functools.partial(self.remote.download, name))
                os.utime(path, ns=(info.mtime_ns, info.mtime_ns))

    def _push_changed(self, below: str, began_ns: int | None) -> None:
        """Push what differs, in the order of writing, for a file may promise older ones.

        Args:
            below: a directory.
            began_ns: now, if it is being written to: of what is newer, older files may not be seen. None: it is not.
        """
        there = self.remote.at(below).files()
        found: list[tuple[int, str]] = []
        paths = (self._root / below).rglob("[!.]*")
        for path in (path for path in paths if path.is_file()):
            name, held = path.relative_to(self._root).as_posix(), path.stat()
            info = there.get(path.relative_to(self._root / below).as_posix())
            if info is not None and info.size == held.st_size:
                continue
            if _paid(name):  # it promises nothing, and is always new
                found.append((0, name))
            elif began_ns is None or held.st_mtime_ns <= began_ns:
                found.append((held.st_mtime_ns, name))
        for _, name in sorted(found):
            self.push(name)

    def _same_time(self, name: str) -> None:
        """Give the copy the time of what is there: by size and time a later start knows that they are the same."""
        info = self.remote.info(name)
        os.utime(self._root / name, ns=(info.mtime_ns, info.mtime_ns))


class Lease:
    """A file that says who holds a run, written anew every few seconds while that process lives."""

    def __init__(self, remote: Remote) -> None:
        """Take it.

        Raises:
            ValueError: somebody else has it.
        """
        self._remote, self._owner = remote, uuid.uuid4().hex
        holder = self._holder()
        if holder is not None and time.time() - holder["time"] < EXPIRES_S:
            raise self._in_use(holder)
        self._write()
        time.sleep(_SETTLE_S)
        holder = self._holder()
        if holder is None or holder["owner"] != self._owner:
            raise self._in_use(holder or {})
        self._lost, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the run is still ours.

        Raises:
            ValueError: another process took it, or may have, for the place was out of reach too long.
        """
        if self._lost or time.monotonic() - self._written > EXPIRES_S - REFRESH_S:
            raise ValueError(
                f"run_dir {self._remote.target} is no longer held by this process: its lease was taken over or could "
                "not be refreshed in time; see that no other process works in it, then go on with --resume"
            )

    def release(self) -> None:
        """Give it back."""
        self._stop.set()
        self._thread.join()
        holder = self._holder()
        if holder is not None and holder["owner"] == self._owner:
            self._remote.remove(LEASE)

    def _keep(self) -> None:
        while not self._stop.wait(REFRESH_S):
            try:
                holder = self._holder()
                self._lost = holder is None or holder["owner"] != self._owner
                if self._lost:
                    return
                self._write()
            except ValueError:  # out of reach for now; `check` says when that lasts too long
                continue

    def _holder(self) -> dict[str, Any] | None:
        found = self._remote.read(LEASE)
        return None if found is None else json.loads(found)

    def _write(self) -> None:
        who = {"owner": self._owner, "host": platform.node(), "pid": os.getpid(), "time": time.time()}
        began = time.monotonic()
        self._remote.write(LEASE, json.dumps(who).encode())
        self._written = began

    def _in_use(self, holder: dict[str, Any]) -> ValueError:
        age = max(0.0, time.time() - holder.get("time", time.time()))
        return ValueError(
            f"run_dir {self._remote.target} is in use by process {holder.get('pid')} on {holder.get('host')}, heard of "
            f"{age:.0f} s ago; wait for it or choose another run_dir. If it was killed, the run can go on in "
            f"{EXPIRES_S - age:.0f} s"
        )


def _paid(name: str) -> bool:
    """Whether a file is of a journal of paid calls, which may be ahead here and only ever grows."""
    return "/journal/" in name
