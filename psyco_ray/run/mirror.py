"""A remote run directory: the working copy on this machine, and the lease by which one process holds the run."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psyco_ray.run import storage
from psyco_ray.run.lease import LEASE, REFRESH_S, Lease
from psyco_ray.run.remote import MANIFEST, RemoteDirectory


class RemoteMirror:
    """The small files of a remote run directory, here; what is written here is there before the call returns."""

    def __init__(self, target: str, root: Path) -> None:
        """Take the lease and bring the copy up to date.

        Args:
            target: URI of the run directory.
            root: directory of the copy.

        Raises:
            InputError: the place cannot be reached, or the run is in use.
        """
        self.remote, self._root = RemoteDirectory(target), root
        self._lease = Lease(self.remote)
        try:
            self._pull()
        except BaseException:
            self.close()
            raise

    def push(self, name: str) -> None:
        """Bring a file there, whole or not at all.

        Raises:
            InputError: the place cannot be reached, or another process has taken the run over.
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


def _paid(name: str) -> bool:
    """Whether a file is of a journal of paid calls, which may be ahead here and only ever grows."""
    return "/journal/" in name
