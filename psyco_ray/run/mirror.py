"""Local mirror of a remote run directory."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.run import storage
from psyco_ray.run.lease import LEASE, REFRESH_S, Lease
from psyco_ray.run.remote import CHUNK, MANIFEST, RemoteDirectory


class RemoteMirror:
    """The small files of a remote run directory on this machine; writes are uploaded before the call returns.

    Example:
        >>> mirror = RemoteMirror("s3://bucket/run", root)
        >>> (root / "job.yaml").write_text(text)
        >>> mirror.push("job.yaml")
        >>> mirror.close()
    """

    def __init__(self, target: str, root: Path) -> None:
        """Acquires the lease and updates the mirror.

        Args:
            target: URI of the run directory.
            root: local directory of the mirror.

        Raises:
            InputError: the directory cannot be reached, or the run is in use.
        """
        self.remote, self._root = RemoteDirectory(target), root
        self._lease = Lease(self.remote)
        try:
            self._pull()
        except BaseException:
            self.close()
            raise

    def push(self, name: str) -> None:
        """Uploads a file atomically.

        Raises:
            InputError: the directory cannot be reached, or another process holds the run.
        """
        self._lease.check()
        path = self._root / name
        large = path.stat().st_size > CHUNK
        self.remote.write(name, pa.memory_map(str(path)).read_buffer() if large else path.read_bytes())
        self._copy_time(name)

    def check(self) -> None:
        """Verifies that this process still holds the run."""
        self._lease.check()

    @contextmanager
    def mirrored(self, below: str) -> Iterator[None]:
        """A context that uploads, every few seconds, what other processes write below a local directory."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(REFRESH_S):
                try:
                    self._push_changed(below, time.time_ns())
                except InputError:  # unreachable; the end of the context retries and raises
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
        """Releases the lease."""
        self._lease.release()

    def _pull(self) -> None:
        """Makes the mirror equal to the remote directory, except complete directories and weights."""
        remote_files = self.remote.files()
        complete_dirs = {name.removesuffix(MANIFEST) for name in remote_files if name.endswith(f"/{MANIFEST}")}
        mirrored = {
            name: info
            for name, info in remote_files.items()
            if name != LEASE
            and not name.endswith(".safetensors")
            and not any(name.startswith(directory) for directory in complete_dirs)
        }
        for path in [path for path in self._root.rglob("*") if path.is_file()]:
            name = path.relative_to(self._root).as_posix()
            if name not in mirrored and name != LEASE and not _is_journal(name):
                path.unlink()
        for name, info in mirrored.items():
            path = self._root / name
            held = path.stat() if path.exists() else None
            if held is not None and (held.st_size, held.st_mtime_ns) == (info.size, info.mtime_ns):
                continue
            storage.private_dir(path.parent)
            if held is not None and _is_journal(name) and (newer := self._newer_lines(name)):
                storage.write_file(path, functools.partial(_write, newer))
                continue  # with a time of its own: it differs from the remote one
            storage.write_file(path, functools.partial(self.remote.download, name))
            os.utime(path, ns=(info.mtime_ns, info.mtime_ns))

    def _newer_lines(self, name: str) -> bytes:
        """The remote journal with the lines that were added to the local one alone; empty if there are none.

        Journals only grow, but the remote one may have been written anew without a client's words (`forget`), a line
        for each line: so its lines count, and of the local ones only those beyond them.
        """
        remote = self.remote.read(name) or b""
        lines = (self._root / name).read_bytes().split(b"\n", remote.count(b"\n"))
        added = lines[-1] if len(lines) > remote.count(b"\n") else b""
        return remote[: remote.rfind(b"\n") + 1] + added if added else b""

    def _push_changed(self, below: str, began_ns: int | None) -> None:
        """Uploads the files that differ, in order of writing, because a file may refer to older ones.

        Args:
            below: a directory.
            began_ns: only files up to this time, because older ones may not be listed yet; None: all files, because
                nothing is written any more.
        """
        remote_files = self.remote.at(below).files()
        changed: list[tuple[int, str]] = []
        paths = (self._root / below).rglob("[!.]*")
        for path in (path for path in paths if path.is_file()):
            name, held = path.relative_to(self._root).as_posix(), path.stat()
            info = remote_files.get(path.relative_to(self._root / below).as_posix())
            if info is not None and info.size == held.st_size:
                continue
            if _is_journal(name):  # refers to no other file
                changed.append((0, name))
            elif began_ns is None or held.st_mtime_ns <= began_ns:
                changed.append((held.st_mtime_ns, name))
        for _, name in sorted(changed):
            self.push(name)

    def _copy_time(self, name: str) -> None:
        """Sets a local file's time to the remote one, so that a later start recognises the file by size and time."""
        info = self.remote.info(name)
        os.utime(self._root / name, ns=(info.mtime_ns, info.mtime_ns))


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _is_journal(name: str) -> bool:
    """Whether a file belongs to a journal of paid calls; it only grows, so the local one may be newer."""
    return "/journal/" in name
