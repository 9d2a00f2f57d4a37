"""Atomic and durable files and directories, local or remote (any `pyarrow.fs`, such as ``s3://bucket/runs/one``).

A target is a local path or a URI. Directories are written atomically: a directory is filled under a temporary name and
gets a ``manifest.json`` with size and digest of every file. A local directory is then renamed; the manifest of a remote
directory is uploaded last, and a directory without it does not exist.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from psyco_ray.config.errors import InputError
from psyco_ray.run import manifests
from psyco_ray.run.disk_errors import writing_in
from psyco_ray.run.locks import locked
from psyco_ray.run.remote import MANIFEST, RemoteDirectory, is_remote

_NAMED = 2  # files in an error


def cache_dir() -> Path:
    """Directory for data that can be restored: ``$PSYCO_RAY_CACHE``, else ``~/.cache/psyco_ray``."""
    return Path(os.environ.get("PSYCO_RAY_CACHE") or Path.home() / ".cache" / "psyco_ray")


def working_copy(target: str) -> Path:
    """Local mirror of a remote run directory."""
    return private_dir(cache_dir() / "runs" / _hash(target)) / _name(target)


def private_dir(path: Path) -> Path:
    """Create a directory, and those above it, that only this user can enter; one that exists stays as it is.

    Clients' words are in it; whoever cannot enter it can read no file below it.

    Raises:
        InputError: the directory cannot be created.
    """
    with writing_in(path):
        if path.is_dir():
            return path
        missing = [path, *path.parents]
        for directory in reversed(missing[: next(n for n, one in enumerate(missing) if one.exists())]):
            directory.mkdir(mode=0o700, exist_ok=True)
            manifests.fsync(directory.parent)
    return path


def local_path(target: str | Path) -> Path:
    """The path of a local target."""
    text = str(target)
    return Path(unquote(urlsplit(text).path) if text.startswith("file://") else text).expanduser()


def absolute(target: str | Path) -> str:
    """A target that does not depend on the working directory."""
    return str(target) if is_remote(target) else str(local_path(target).absolute())


def join(target: str, name: str) -> str:
    """The target of a name below a directory; a URI keeps its options."""
    if not is_remote(target):
        return str(local_path(target) / name)
    return RemoteDirectory(target).at(name).target


@contextmanager
def atomic_dir(target: str | Path) -> Iterator[Path]:
    """A context that yields a local directory to fill; at its end the target is complete and durable, or unchanged.

    Raises:
        InputError: the target cannot be written, for example because the disk is full.

    Example:
        >>> with atomic_dir("runs/demo/state") as staging:
        ...     (staging / "weights.bin").write_bytes(data)
    """
    from safetensors import SafetensorError

    remote = RemoteDirectory(str(target)) if is_remote(target) else None
    place = cache_dir() / "staging" / _hash(str(target)) if remote else local_path(target)
    try:
        private_dir(place.parent)
        _sweep(place)
        staging = Path(tempfile.mkdtemp(prefix=_unfinished(place), dir=place.parent))
        try:
            yield staging
            manifest = manifests.seal(staging)
            if remote is None:
                remove_dir(place)
                staging.rename(place)
                manifests.fsync(place.parent)
            else:
                remote.remove()
                for name in manifest["files"]:
                    remote.upload(staging / name, name)
                remote.write(MANIFEST, (staging / MANIFEST).read_bytes())
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(f"directory {target} cannot be written: {error}; make room or make it writable") from error


def fetch(target: str | Path, digests: bool = False) -> Path:
    """A local copy of a directory; a remote one is downloaded into the cache, once for all processes.

    Args:
        target: a directory that `atomic_dir` wrote, or any local directory.
        digests: check the digests of files that exist already; downloads are always checked.

    Raises:
        InputError: the directory does not exist or is damaged.
    """
    if not is_remote(target):
        if not (path := local_path(target)).is_dir():
            raise InputError(f"directory {path} does not exist")
        manifests.check(path, digests)
        return path
    remote = RemoteDirectory(str(target))
    manifest = remote.read(MANIFEST)
    if manifest is None:
        raise InputError(
            f"{target} has no {MANIFEST}: it does not exist, was not written whole, or not by psyco_ray; "
            "name another directory, or copy a model from elsewhere to a local one"
        )
    path = _cached(str(target))
    private_dir(path.parent)
    with locked(path.parent / ".lock"):
        if path.is_dir() and (path / MANIFEST).is_file() and (path / MANIFEST).read_bytes() == manifest:
            try:
                manifests.check(path, digests)
                return path
            except InputError:  # only the local copy is damaged: download it again
                pass
        with atomic_dir(path) as staging:
            (staging / MANIFEST).write_bytes(manifest)
            for name in manifests.files_of(manifest, str(target)):
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                with open(staging / name, "wb") as file:
                    remote.download(name, file)
            manifests.check(staging, digests=True, name=target)
    return path


def exists(target: str | Path) -> bool:
    """Whether a directory exists (a remote one: with its manifest)."""
    return RemoteDirectory(str(target)).has(MANIFEST) if is_remote(target) else local_path(target).is_dir()


def remove_dir(target: str | Path) -> None:
    """Removes a directory if it exists; if interrupted, no directory is left that looks complete."""
    if is_remote(target):
        shutil.rmtree(_cached(str(target)).parent, ignore_errors=True)
        RemoteDirectory(str(target)).remove()
        return
    path = local_path(target)
    if path.exists():
        gone = path.with_name(f"{_unfinished(path)}{uuid.uuid4().hex}")  # needs no room on a full disk
        with writing_in(path.parent, path.name):
            path.rename(gone)
            shutil.rmtree(gone)


def move_dir(source: str, target: str) -> None:
    """Renames a directory and replaces the target; both are local, or on one remote file system."""
    if not is_remote(source):
        remove_dir(target)
        place = local_path(target)
        with writing_in(place.parent, place.name):
            local_path(source).rename(place)
            manifests.fsync(place.parent)
        return
    old, new = RemoteDirectory(source), RemoteDirectory(target)
    new.remove()
    for name in sorted(old.files(), key=lambda name: name == MANIFEST):  # the manifest last
        old.copy(name, new)
    remove_dir(source)


def subdirs(target: str) -> list[str]:
    """Names of the directories in a directory, complete or not; empty if it does not exist."""
    if is_remote(target):
        return RemoteDirectory(target).subdirs()
    path = local_path(target)
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A context that yields an open local file; at its end the file is complete and on disk, or absent.

    Raises:
        InputError: the file cannot be written, for example because the disk is full.
    """
    with atomic_files([path]) as [file]:
        yield file


@contextmanager
def atomic_files(paths: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """A context that yields open local files of one directory; at its end each is complete and on disk, or absent.

    None has its name before all are on disk. The names become durable together, at the cost of one.

    Raises:
        InputError: a file cannot be written, for example because the disk is full.
    """
    directory = paths[0].parent
    assert all(path.parent == directory for path in paths), "the files are in one directory"
    # two processes may write the same file
    partials = [path.with_name(f".{path.name}.{os.getpid()}.partial") for path in paths]
    more = f" and {len(paths) - _NAMED} others" if len(paths) > _NAMED else ""
    with writing_in(directory, ", ".join(path.name for path in paths[:_NAMED]) + more):
        try:
            with ExitStack() as opened:
                files: list[IO[bytes]] = [
                    opened.enter_context(open(partial, "wb", opener=_privately)) for partial in partials
                ]
                yield files
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
            for partial, path in zip(partials, paths, strict=True):
                os.replace(partial, path)
        except BaseException:
            for partial in partials:
                partial.unlink(missing_ok=True)
            raise
        manifests.fsync(directory)


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a local file atomically and durably.

    Args:
        path: the file.
        write: writes to the open file.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_file(path) as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a local text file atomically and durably; its directory is created.

    Raises:
        InputError: the file cannot be written.
    """
    private_dir(path.parent)
    write_file(path, lambda file: file.write(text.encode()))


def append_to(path: Path) -> int:
    """A descriptor of a local file to append to, created if needed with its directory. Its name is durable.

    Raises:
        InputError: the file cannot be written.
    """
    private_dir(path.parent)
    with writing_in(path.parent, path.name):
        new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        if new:
            manifests.fsync(path.parent)
        return file


def read_file(directory: str | Path, name: str) -> bytes | None:
    """Content of a small file in a directory; None if it does not exist.

    Raises:
        InputError: the directory cannot be reached.
    """
    if is_remote(directory):
        return RemoteDirectory(str(directory)).read(name)
    path = local_path(directory) / name
    return path.read_bytes() if path.exists() else None


def write_bytes(directory: str | Path, name: str, data: bytes) -> None:
    """Writes a small file into a directory atomically.

    Raises:
        InputError: the file cannot be written.
    """
    if is_remote(directory):
        RemoteDirectory(str(directory)).write(name, data)
    else:
        write_file(local_path(directory) / name, lambda file: file.write(data))


def remove_file(directory: str | Path, name: str) -> None:
    """Removes a file from a directory if it exists.

    Raises:
        InputError: the directory cannot be reached.
    """
    if is_remote(directory):
        RemoteDirectory(str(directory)).remove(name)
    else:
        with writing_in(local_path(directory), name):
            (local_path(directory) / name).unlink(missing_ok=True)


def _cached(target: str) -> Path:
    return cache_dir() / "fetched" / _hash(target) / _name(target)


def _name(target: str) -> str:
    """Last component of a URI."""
    return Path(urlsplit(target).path).name or urlsplit(target).netloc


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unfinished(path: Path) -> str:
    """Prefix of the temporary names of a directory."""
    return f".{path.name}.partial-"


def _sweep(path: Path) -> None:
    """Removes temporary directories that a killed process left."""
    for entry in list(path.parent.iterdir()):
        if entry.name.startswith(_unfinished(path)):
            shutil.rmtree(entry)


def _privately(path: str, flags: int) -> int:
    """Opens a new file that only this user can read; a stricter umask stays in force."""
    return os.open(path, flags, 0o600)
