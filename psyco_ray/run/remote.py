"""Remote files: any file system that `pyarrow.fs` supports, such as ``s3://bucket/runs/one``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from psyco_ray.config.errors import InputError
from psyco_ray.config.keys import refuse_key

MANIFEST = "manifest.json"
CHUNK = 2**24  # bytes read or sent at a time
_APPEAR_WHOLE = {"s3", "gcs", "abfs"}  # an object appears when its stream is closed


def is_remote(target: str | Path) -> bool:
    """Whether a target is a URI other than ``file://``."""
    return "://" in str(target) and not str(target).startswith("file://")


def damaged(where: str, what: str) -> InputError:
    """The error for a damaged directory."""
    return InputError(
        f"directory {where} is damaged: {what}; put a whole copy in its place, or create it again in another run_dir"
    )


def require_inside(name: str, where: str) -> str:
    """Check that a name from elsewhere, say of an object in a bucket, leads to a file below a directory.

    Raises:
        InputError: it would lead out of the directory.
    """
    parts = name.split("/")
    if "\\" in name or "\0" in name or not all(parts) or {".", ".."} & set(parts):
        raise damaged(where, f"it holds the name {name!r}, which leads out of a directory")
    return name


class RemoteDirectory:
    """A remote directory and the files below it, by relative name.

    Example:
        >>> remote = RemoteDirectory("s3://bucket/run")
        >>> remote.write("job.yaml", b"seed: 0")
        >>> remote.read("job.yaml")
        b'seed: 0'
    """

    def __init__(self, target: str) -> None:
        """Connects to the file system.

        Raises:
            InputError: pyarrow has no file system for the URI, or the URI contains a key.
        """
        refuse_key(target)
        parts = urlsplit(target)
        self.target = target
        with self._reaching():
            self._fs, base = _filesystem(f"{parts.scheme}://{parts.netloc}?{parts.query}".rstrip("?"))
        self._base = f"{base.rstrip('/')}{unquote(parts.path).rstrip('/')}"

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return self.info(name).type == fs.FileType.File

    def at(self, name: str) -> RemoteDirectory:
        """A directory below it."""
        # as text, because urlunsplit turns hdfs:///x into hdfs:/x
        path, mark, options = self.target.partition("?")
        return RemoteDirectory(f"{path.rstrip('/')}/{quote(name)}{mark}{options}")

    def info(self, name: str) -> Any:
        """Size and time of a file, as pyarrow's `FileInfo`."""
        with self._reaching():
            return self._fs.get_file_info(self._path(name))

    def read(self, name: str) -> bytes | None:
        """Content of a small file; None if it does not exist."""
        with self._reaching():
            try:
                while True:
                    with self._fs.open_input_stream(self._path(name)) as stream:
                        data = stream.read()
                    # a reader gets the size at opening, which truncates a longer file that has just replaced it
                    if len(data) == self._fs.get_file_info(self._path(name)).size:
                        return data
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Writes a file atomically."""
        path = self._path(name)
        at_once = self._fs.type_name in _APPEAR_WHOLE
        with self._reaching():
            self._create_parent(name)
            # in a thread, where no signal handler raises between open and write and leaves an empty file
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._put, path if at_once else f"{path}.partial", data).result()
            if not at_once:
                self._fs.move(f"{path}.partial", path)

    def upload(self, source: Path, name: str) -> None:
        """Uploads a file of any size; not atomic, so the file counts only with a manifest."""
        with open(source, "rb") as file, self._reaching():
            self._create_parent(name)
            with self._fs.open_output_stream(self._path(name)) as stream:
                while chunk := file.read(CHUNK):
                    stream.write(chunk)

    def download(self, name: str, target: IO[bytes]) -> None:
        """Writes the content of a file to an open local file.

        Raises:
            InputError: the file does not exist.
        """
        for chunk in self._chunks(name):
            target.write(chunk)

    def copy(self, name: str, other: RemoteDirectory) -> None:
        """Copies a file to the same name in another directory of the same file system."""
        with self._reaching():
            other._create_parent(name)
            self._fs.copy_file(self._path(name), other._path(name))

    def files(self) -> dict[str, Any]:
        """All files below, as pyarrow's `FileInfo` by relative name.

        Raises:
            InputError: a name leads out of a directory.
        """
        infos = [info for info in self._below(recursive=True) if info.type == fs.FileType.File]
        return {require_inside(info.path[len(self._base) + 1 :], self.target): info for info in infos}

    def subdirs(self) -> list[str]:
        """Names of the directories in it."""
        return sorted(info.base_name for info in self._below(recursive=False) if info.type == fs.FileType.Directory)

    def remove(self, name: str = "") -> None:
        """Removes a file, or a directory (its manifest first); by default the whole directory."""
        path = self._path(name) if name else self._base
        with self._reaching():
            kind = self._fs.get_file_info(path).type
            if kind == fs.FileType.File:
                self._fs.delete_file(path)
            elif kind == fs.FileType.Directory:
                if self._fs.get_file_info(f"{path}/{MANIFEST}").type == fs.FileType.File:
                    self._fs.delete_file(f"{path}/{MANIFEST}")
                self._fs.delete_dir(path)

    def _create_parent(self, name: str) -> None:
        """Creates the directory of a file, if the file system has directories."""
        if self._fs.type_name not in _APPEAR_WHOLE:
            self._fs.create_dir(self._path(name).rpartition("/")[0])

    def _put(self, path: str, data: bytes | pa.Buffer) -> None:
        # one call: closing a stream after a failed second write would leave half a file
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
