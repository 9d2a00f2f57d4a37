"""Errors of a disk that takes no more: full, over its quota, or read-only. They name the directory and the way out."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psyco_ray.config.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk without room: it is full, or a quota or a limit of sizes is reached."""

UNWRITABLE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def writing_in(directory: Path, what: str = "") -> Iterator[None]:
    """A context in which a failure to write below a directory is an `InputError` that names it and the way out.

    Args:
        directory: where the files are.
        what: the file, where one is written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and not _is_below(error.filename, directory):
            raise  # of a file that is read meanwhile
        raise unwritable(directory, error, what) from error


def unwritable(directory: str | Path, error: OSError, what: str = "") -> InputError:
    """The error for a directory that cannot be written."""
    why = os.strerror(error.errno) if error.errno else str(error)
    way_out = "make room" if error.errno in FULL else "make it writable, or name another"
    return InputError(f"{directory} cannot be written{what and f' ({what})'}: {why}; {way_out}, then go on")


def elsewhere(error: OSError) -> InputError:
    """The error for a file that a library writes, in the directory for temporary files or in a cache."""
    if error.filename is not None:
        path = Path(os.fsdecode(error.filename))
        return unwritable(path.parent, error, path.name)
    places = f"{tempfile.gettempdir()} (TMPDIR), the caches (PSYCO_RAY_CACHE, HF_HOME) or the run directory"
    return InputError(f"a file cannot be written: {error.strerror}; make room in {places}, then go on")


def _is_below(name: str | bytes, directory: Path) -> bool:
    return Path(os.fsdecode(name)).absolute().is_relative_to(directory.absolute())
