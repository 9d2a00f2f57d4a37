"""What a run was made of, and what of it has changed when it goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import xxhash

from psyco_ray.config.errors import InputError
from psyco_ray.run import storage
from psyco_ray.run.manifests import digest_of_file
from psyco_ray.run.remote import MANIFEST, is_remote

_MODEL_FILES = {".safetensors", ".json", ".model", ".txt", ".jinja", ".gguf", ".py"}

_log = logging.getLogger(__name__)


class Changes:
    """Changes since an earlier part of a run, each of which is refused or accepted.

    Example:
        >>> changes = Changes(accept=False)
        >>> changes.found("the model has changed since this run began")
        Traceback (most recent call last):
        ...
        psyco_ray.config.errors.InputError: the model has changed since this run began; put the old one back, choose ...
    """

    def __init__(self, accept: bool) -> None:
        self.accept = accept
        self.accepted: list[str] = []  # in words, as found

    def found(self, change: str) -> None:
        """Accept a change, or refuse it.

        Args:
            change: in words; names what has changed.

        Raises:
            InputError: changes are not accepted.
        """
        if not self.accept:
            raise InputError(
                f"{change}; put the old one back, choose another run_dir, or go on with the change by --accept-changes"
            )
        _log.warning(f"{change}; the run goes on with it (--accept-changes)")
        self.accepted.append(change)


def digest_of_model(place: str) -> str:
    """A hash of the names and bytes of a model's files, 32 hex digits.

    The hash of a file is kept by its size and time, so that a model is read once; the hub's cache and the manifests of
    remote directories have hashes already.

    Args:
        place: a directory, or the URI of one.
    """
    if is_remote(place):
        return xxhash.xxh3_128_hexdigest(storage.read_file(place, MANIFEST) or b"")
    state = xxhash.xxh3_128()
    for path in sorted(storage.local_path(place).iterdir()):
        if path.suffix in _MODEL_FILES and path.name != MANIFEST and path.is_file():
            state.update(f"{path.name}\0{_content(path)}\0".encode())
    return state.hexdigest()


def digest_of_code() -> str:
    """A hash of the package's source, 32 hex digits."""
    root, state = Path(__file__).parents[1], xxhash.xxh3_128()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            state.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return state.hexdigest()


def _content(path: Path) -> str:
    """A hash of a file's bytes, or what stands for it."""
    if path.is_symlink() and path.parent.parent.name == "snapshots":  # the hub names files in its cache by content
        return Path(os.readlink(path)).name
    status = path.stat()
    key = hashlib.sha256(
        f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}".encode()
    ).hexdigest()
    return _kept(storage.cache_dir() / "digests" / key[:2] / key, lambda: digest_of_file(path))


def _kept(place: Path, compute: Callable[[], str]) -> str:
    try:
        return str(json.loads(place.read_text()))
    except (OSError, ValueError):
        digest = compute()
    try:
        storage.private_dir(place.parent)
        storage.write_file(place, lambda file: file.write(json.dumps(digest).encode()))
    except (InputError, OSError):  # a cache that cannot be written costs time only
        _log.info(f"{place.parent} cannot be written: the digest of a model is computed again next time")
    return digest
