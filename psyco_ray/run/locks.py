"""Locks among the processes of a machine."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from psyco_ray.config.errors import InputError
from psyco_ray.run.disk_errors import writing_in


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A context that holds a lock file, exclusive among the processes of this machine.

    Raises:
        InputError: the file cannot be created or locked.
    """
    file = lock_file(path)
    try:
        lock(file, path)
        yield
    finally:
        file.close()


def lock_file(path: Path) -> IO[str]:
    """An open file to lock.

    Raises:
        InputError: the file cannot be created.
    """
    with writing_in(path.parent, path.name):
        return open(path, "a+")


def lock(file: IO[str], path: Path, wait: bool = True) -> bool:
    """Lock an open file until it is closed; returns whether it is locked.

    Args:
        file: of `lock_file`.
        path: of the file.
        wait: whether to wait while another process holds it.

    Raises:
        InputError: the file system has no locks, as some network file systems without a lock service.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{path} cannot be locked: {error.strerror}; name a directory on a file system with locks, or mount this "
            "one with them"
        ) from None
    return True
