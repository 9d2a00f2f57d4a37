"""Where files lie: a local path, or any place that `pyarrow.fs` reaches, such as ``s3://bucket/runs/one``.

A directory of ours is complete or absent. It is filled under another name and gets a ``manifest.json``, with size and
digest of every file. A local one then takes its name; of a remote one the manifest is the last thing that is written,
and without it the directory does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import xxhash

from psyco_ray.config.errors import InputError
from psyco_ray.run.remote import CHUNK, MANIFEST, RemoteDirectory, damaged, is_remote


def cache_dir() -> Path:
    """Directory of what can be had again: ``$PSYCO_RAY_CACHE``, else ``~/.cache/psyco_ray``."""
    return Path(os.environ.get("PSYCO_RAY_CACHE") or Path.home() / ".cache" / "psyco_ray")


def working_copy(target: str) -> Path:
    """Where the small files of a remote run directory lie on this machine."""
    return cache_dir() / "runs" / _hash(target) / _name(target)


def local_path(target: str | Path) -> Path:
    """The path of a local target."""
    text = str(target)
    return Path(unquote(urlsplit(text).path) if text.startswith("file://") else text).expanduser()


def absolute(target: str | Path) -> str:
    """A target that means the same in a process with another working directory."""
    return str(target) if is_remote(target) else str(local_path(target).absolute())


def join(target: str, name: str) -> str:
    """The target of a name below a target; a URI keeps its options."""
    if not is_remote(target):
        return str(local_path(target) / name)
    return RemoteDirectory(target).at(name).target


@contextmanager
def atomic_dir(target: str | Path) -> Iterator[Path]:
    """A context in which a local directory is filled; at its end it is whole and durable at the target, or not at all.

    Raises:
        InputError: it cannot be written, say because the disk is full.
    """
    from safetensors import SafetensorError

    remote = RemoteDirectory(str(target)) if is_remote(target) else None
    place = cache_dir() / "staging" / _hash(str(target)) if remote else local_path(target)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        staging = Path(tempfile.mkdtemp(prefix=_unfinished(place), dir=place.parent))
        try:
            yield staging
            manifest = _seal(staging)
            if remote is None:
                staging.chmod(0o755)
                remove_dir(place)
                staging.rename(place)
                _fsync(place.parent)
            else:
                remote.remove()
                for name in manifest["files"]:
                    remote.upload(staging / name, name)
                remote.write(MANIFEST, (staging / MANIFEST).read_bytes())
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(f"directory {target} cannot be written: {error}; make room or make it writable") from error


def check(directory: Path, digests: bool = False, name: str | Path | None = None) -> None:
    """Compare a directory with its manifest; one without ours, say a user's model, passes.

    Args:
        directory: it.
        digests: read every byte; else only sizes are looked at.
        name: what an error calls it; None: its path.

    Raises:
        InputError: it is damaged; the first damaged file is named.
    """
    path, where = directory / MANIFEST, str(name or directory)
    if not path.is_file():
        return
    for file, wanted in _files(path.read_bytes(), where).items():
        held = directory / file
        size = held.stat().st_size if held.is_file() else None
        if size != wanted["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {wanted['bytes']}"
            raise damaged(where, f"{file} {found}")
        if digests and _digest(held) != wanted["xxh3_128"]:
            raise damaged(where, f"the bytes of {file} are not those that were written")


def fetch(target: str | Path, digests: bool = False) -> Path:
    """A local directory with what a target holds; a remote one is downloaded into the cache, once for all processes.

    Args:
        target: a directory that `atomic_dir` wrote, or a local one from elsewhere.
        digests: read every byte of what is there already; what is downloaded is always checked so.

    Raises:
        InputError: there is no such directory, or it is damaged.
    """
    if not is_remote(target):
        if not (path := local_path(target)).is_dir():
            raise InputError(f"directory {path} does not exist")
        check(path, digests)
        return path
    remote = RemoteDirectory(str(target))
    manifest = remote.read(MANIFEST)
    if manifest is None:
        raise InputError(
            f"{target} has no {MANIFEST}: it does not exist, was not written whole, or not by psyco_ray; "
            "name another directory, or copy a model from elsewhere to a local one"
        )
    path = _cached(str(target))
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        if path.is_dir() and (path / MANIFEST).is_file() and (path / MANIFEST).read_bytes() == manifest:
            try:
                check(path, digests)
                return path
            except ValueError:  # only the copy is damaged, so it is fetched again
                pass
        with atomic_dir(path) as staging:
            (staging / MANIFEST).write_bytes(manifest)
            for name in _files(manifest, str(target)):
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                with open(staging / name, "wb") as file:
                    remote.download(name, file)
            check(staging, digests=True, name=target)
    return path


def exists(target: str | Path) -> bool:
    """Whether there is a (complete, if remote) directory."""
    return RemoteDirectory(str(target)).has(MANIFEST) if is_remote(target) else local_path(target).is_dir()


def remove_dir(target: str | Path) -> None:
    """Remove a directory, if it is there; a process killed meanwhile leaves none that looks complete."""
    if is_remote(target):
        shutil.rmtree(_cached(str(target)).parent, ignore_errors=True)
        RemoteDirectory(str(target)).remove()
        return
    path = local_path(target)
    if path.exists():
        gone = path.with_name(f"{_unfinished(path)}{uuid.uuid4().hex}")  # a full disk may have no room for a directory
        path.rename(gone)
        shutil.rmtree(gone)


def move_dir(source: str, target: str) -> None:
    """Give a directory another name, in the place of what has that name; both are local, or in one remote place."""
    if not is_remote(source):
        remove_dir(target)
        local_path(source).rename(local_path(target))
        return
    old, new = RemoteDirectory(source), RemoteDirectory(target)
    new.remove()
    for name in sorted(old.files(), key=lambda name: name == MANIFEST):  # the manifest is the last
        old.copy(name, new)
    remove_dir(source)


def subdirs(target: str) -> list[str]:
    """Names of the directories in a directory, complete or not; none if it is not there."""
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes may write the same file
    try:
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"{path.parent} cannot be written ({path.name}): {why}; make room, then go on") from error


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


def read_file(directory: str | Path, name: str) -> bytes | None:
    """What a small file in a directory holds; None if there is none.

    Raises:
        InputError: the place cannot be reached.
    """
    if is_remote(directory):
        return RemoteDirectory(str(directory)).read(name)
    path = local_path(directory) / name
    return path.read_bytes() if path.exists() else None


def write_bytes(directory: str | Path, name: str, data: bytes) -> None:
    """Write a small file into a directory, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    if is_remote(directory):
        RemoteDirectory(str(directory)).write(name, data)
    else:
        write_file(local_path(directory) / name, lambda file: file.write(data))


def remove_file(directory: str | Path, name: str) -> None:
    """Remove a file from a directory, if it is there.

    Raises:
        InputError: the place cannot be reached.
    """
    if is_remote(directory):
        RemoteDirectory(str(directory)).remove(name)
    else:
        (local_path(directory) / name).unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file among the processes of this machine."""
    import fcntl

    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cached(target: str) -> Path:
    return cache_dir() / "fetched" / _hash(target) / _name(target)


def _name(target: str) -> str:
    """The last name in a URI."""
    return Path(urlsplit(target).path).name or urlsplit(target).netloc


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unfinished(path: Path) -> str:
    """How names begin under which a directory is filled or removed."""
    return f".{path.name}.partial-"


def _sweep(path: Path) -> None:
    """Remove what a process that was killed left of a directory."""
    for entry in list(path.parent.iterdir()):
        if entry.name.startswith(_unfinished(path)):
            shutil.rmtree(entry)


def _seal(directory: Path) -> dict[str, Any]:
    """Write the manifest of a directory, and bring all of it to the disk."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        if (name := path.relative_to(directory).as_posix()) != MANIFEST:
            files[name] = {"bytes": path.stat().st_size, "xxh3_128": _digest(path)}
            _fsync(path)
    manifest = {"psyco_ray": 1, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    _fsync(directory / MANIFEST)
    _fsync(directory)
    return manifest


def _files(manifest: bytes, where: str) -> dict[str, Any]:
    """The files of a manifest; none of one that is not ours."""
    try:
        found = json.loads(manifest)
    except ValueError:
        raise damaged(where, f"{MANIFEST} is no JSON") from None
    return found["files"] if isinstance(found, dict) and "psyco_ray" in found else {}


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
