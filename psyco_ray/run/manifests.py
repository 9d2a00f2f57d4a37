"""The manifest of a directory, size and digest of every file: by it a damaged or unfinished directory is recognised."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash

from psyco_ray.run.remote import CHUNK, MANIFEST, damaged, require_inside


def check(directory: Path, digests: bool = False, name: str | Path | None = None) -> None:
    """Compares a directory with its manifest; a directory without a manifest, such as a user's model, passes.

    Args:
        directory: to check.
        digests: compare the digests of all files, not only their sizes.
        name: of the directory in errors; None: its path.

    Raises:
        InputError: the directory is damaged; the message names the first damaged file.
    """
    path, where = directory / MANIFEST, str(name or directory)
    if not path.is_file():
        return
    for file, expected in files_of(path.read_bytes(), where).items():
        held = directory / file
        size = held.stat().st_size if held.is_file() else None
        if size != expected["bytes"]:
            fault = "is missing" if size is None else f"has {size} bytes, not {expected['bytes']}"
            raise damaged(where, f"{file} {fault}")
        if digests and digest_of_file(held) != expected["xxh3_128"]:
            raise damaged(where, f"the bytes of {file} are not those that were written")


def seal(directory: Path) -> dict[str, Any]:
    """Writes the manifest of a directory and syncs everything to disk."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        if (name := path.relative_to(directory).as_posix()) != MANIFEST:
            files[name] = {"bytes": path.stat().st_size, "xxh3_128": digest_of_file(path)}
            fsync(path)
    manifest = {"psyco_ray": 1, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    fsync(directory / MANIFEST)
    fsync(directory)
    return manifest


def files_of(manifest: bytes, where: str) -> dict[str, Any]:
    """The files of a manifest; empty for a manifest of another program."""
    try:
        content = json.loads(manifest)
    except ValueError:
        raise damaged(where, f"{MANIFEST} is no JSON") from None
    files = content["files"] if isinstance(content, dict) and "psyco_ray" in content else {}
    for name in files:
        require_inside(name, where)
    return files


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of_file(path: Path) -> str:
    """A hash of a file's bytes, 32 hex digits."""
    digest = xxhash.xxh3_128()
    add_bytes_of(path, digest)
    return digest.hexdigest()


def add_bytes_of(path: Path, digest: xxhash.xxh3_128) -> None:
    """Add the bytes of a file to a hash."""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
