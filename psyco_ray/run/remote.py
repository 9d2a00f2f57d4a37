"""Files in another place than this machine: whatever `pyarrow.fs` reaches, such as ``s3://bucket/runs/one``."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from psyco_ray.config.errors import InputError

MANIFEST = "manifest.json"
CHUNK = 2**24  # bytes that are read or sent at a time
_APPEAR_WHOLE = {"s3", "gcs", "abfs"}  # where an object is there only once its stream is closed

_SECRET = re.compile("secret|password|token|key|^sig$", re.IGNORECASE)  # an option of a URI that is one


def is_remote(target: str | Path) -> bool:
    """Whether a target is a URI other than ``file://``."""
    return "://" in str(target) and not str(target).startswith("file://")


def refuse_key(target: str) -> None:
    """Refuse a URI with a key in it: it would stand in logs and job files.

    Raises:
        InputError: there is one. The message does not show it.
    """
    # an S3 secret may hold a slash, so that no parser finds it
    in_s3 = target.startswith("s3://") and "@" in target.partition("?")[0]
    in_options = any(_SECRET.search(name) for name, _ in parse_qsl(target.partition("?")[2]))
    if is_remote(target) and (in_s3 or in_options or urlsplit(target).password is not None):
        raise InputError(
            f"a URI that begins with {target.partition('://')[0]}:// has a key in it; take it out and give it in the "
            "environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )


def damaged(where: str, what: str) -> InputError:
    """The error that names a damaged directory and the way out."""
    return InputError(
        f"directory {where} is damaged: {what}; put a whole copy in its place, or make it anew in another run_dir"
    )


class RemoteDirectory:
    """A remote directory and the files below it, by their relative names."""

    def __init__(self, target: str) -> None:
        """Say which.

        Raises:
            InputError: no file system of pyarrow knows such a URI, or it has a key in it.
        """
        refuse_key(target)
        parts = urlsplit(target)
        self.target = target
        with self._reaching():
            self._fs, base = _filesystem(f"{parts.scheme}://{parts.netloc}?{parts.query}".rstrip("?"))
        self._base = f"{base.rstrip('/')}{unquote(parts.path).rstrip('/')}"

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.info(name).type == fs.FileType.File

    def at(self, name: str) -> RemoteDirectory:
        """A directory below it."""
        # in text, for urlunsplit makes hdfs:/x out of hdfs:///x
        path, mark, options = self.target.partition("?")
        return RemoteDirectory(f"{path.rstrip('/')}/{quote(name)}{mark}{options}")

    def info(self, name: str) -> Any:
        """Size and time of a file, as pyarrow's `FileInfo`."""
        with self._reaching():
            return self._fs.get_file_info(self._path(name))

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None if there is none."""
        with self._reaching():
            try:
                while True:
                    with self._fs.open_input_stream(self._path(name)) as stream:
                        data = stream.read()
                    # as many bytes come as there were on opening: too few of a longer file that has just replaced it
                    if len(data) == self._fs.get_file_info(self._path(name)).size:
                        return data
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        path = self._path(name)
        at_once = self._fs.type_name in _APPEAR_WHOLE
        with self._reaching():
            self._make_room(name)
            # in a thread, where no signal's handler raises between open and write: closing would leave an empty file
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._put, path if at_once else f"{path}.partial", data).result()
            if not at_once:
                self._fs.move(f"{path}.partial", path)

    def upload(self, source: Path, name: str) -> None:
        """Bring a file of any size there; if that fails half of it may be, so it needs a manifest to count."""
        with open(source, "rb") as file, self._reaching():
            self._make_room(name)
            with self._fs.open_output_stream(self._path(name)) as stream:
                while chunk := file.read(CHUNK):
                    stream.write(chunk)

    def download(self, name: str, target: IO[bytes]) -> None:
        """Write what a file holds into an open one here.

        Raises:
            InputError: it is not there.
        """
        for chunk in self._chunks(name):
            target.write(chunk)

    def copy(self, name: str, other: RemoteDirectory) -> None:
        """Copy a file to the same name in another directory of the same place, without bringing it here."""
        with self._reaching():
            other._make_room(name)
            self._fs.copy_file(self._path(name), other._path(name))

    def files(self) -> dict[str, Any]:
        """All files below, as pyarrow's `FileInfo` by relative name."""
        found = self._below(recursive=True)
        return {info.path[len(self._base) + 1 :]: info for info in found if info.type == fs.FileType.File}

    def subdirs(self) -> list[str]:
        """Names of the directories in it."""
        return sorted(info.base_name for info in self._below(recursive=False) if info.type == fs.FileType.Directory)

    def remove(self, name: str = "") -> None:
        """Remove a file, or a directory with its manifest first; by default all."""
        path = self._path(name) if name else self._base
        with self._reaching():
            kind = self._fs.get_file_info(path).type
            if kind == fs.FileType.File:
                self._fs.delete_file(path)
            elif kind == fs.FileType.Directory:
                if self._fs.get_file_info(f"{path}/{MANIFEST}").type == fs.FileType.File:
                    self._fs.delete_file(f"{path}/{MANIFEST}")
                self._fs.delete_dir(path)

    def _make_room(self, name: str) -> None:
        """Make the directory that a file is written to, where there are directories."""
        if self._fs.type_name not in _APPEAR_WHOLE:
            self._fs.create_dir(self._path(name).rpartition("/")[0])

    def _put(self, path: str, data: bytes) -> None:
        # one call: a stream that fails between two would be closed, and half a file would be there
        with self._fs.open_output_stream(path) as stream:
            stream.write(data)

    def _chunks(self, name: str) -> Iterator[bytes]:
        with self._reaching():
            try:
                stream = self._fs.open_input_stream(self._path(name))
            except FileNotFoundError:
                raise damaged(self.target, f"{name} is missing") from None
        with stream:
            while True:
                with self._reaching():
                    chunk = stream.read(CHUNK)
                if not chunk:
                    return
                yield chunk

    def _below(self, recursive: bool) -> list[Any]:
        with self._reaching():
            return self._fs.get_file_info(fs.FileSelector(self._base, recursive=recursive, allow_not_found=True))

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{self.target} cannot be reached: {str(error).splitlines()[0]}") from None


@functools.cache
def _filesystem(uri: str) -> tuple[Any, str]:
    return fs.FileSystem.from_uri(uri)
