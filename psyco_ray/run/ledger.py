"""The ledger of a training run: tables and stage records in the run directory.

Invariants:
    - A stage is done once its record (JSON) exists. The record is written after the stage's tables.
    - No record or item is stored while files that it may depend on are still being saved.
    - Files are written atomically.
    - Streamed work is stored item by item; an item's file name is a hash of its inputs.
    - A remote run's files are uploaded before the call returns; a local mirror serves the reads.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.resume import may_change
from psyco_ray.config.training import Job
from psyco_ray.run import records, storage
from psyco_ray.run.directory import RunDirectory, versions
from psyco_ray.run.schemas import group_tables, groups_from_tables
from psyco_ray.run.types import Group, PromptBatch
from psyco_ray.run.writers import Writers

_BEFORE_WORK = {"LOCK", "job.yaml", "versions.json", "status.json", "scale.json"}  # exist before the first stage
_BEFORE_WORK |= {"inputs.json", "telemetry.json", "wandb", "tensorboard"}
_TABLES = ("samples", "scores")  # of an item
_Whole = tuple[PromptBatch, dict[str, Group]]  # an item with its groups by speech id
PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""Options of Parquet for responses: compressing them would take most of the driver's time per group."""


class Ledger(RunDirectory):
    """The directory of one training run.

    Example:
        >>> ledger = Ledger(job, resume=True)
        >>> if ledger.record(stage(1, "train")) is None:
        ...     ledger.finish(stage(1, "train"), began, steps=steps)
        >>> ledger.close()
    """

    def __init__(self, job: Job, resume: bool) -> None:
        """Open and lock the directory and write ``job.yaml``.

        Args:
            job: of the run.
            resume: whether the directory may hold an earlier part of this run.

        Raises:
            InputError: the directory cannot be written, is in use, or holds another run.
        """
        self.resumes = resume
        self._wait: Callable[[], None] = lambda: None
        job_file.dump(job)  # refuses a key before the directory exists
        super().__init__(job.run_dir, may_be_remote=True)
        try:
            self._begin(job, resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, job: Job, resume: bool) -> None:
        """Write the job unless the directory holds another run."""
        written = self.root / "job.yaml"
        # a run without results, say because its data was invalid, may be replaced
        self.continues = written.exists() and bool({path.name for path in self.root.iterdir()} - _BEFORE_WORK)
        if self.continues:
            if not resume:
                raise InputError(f"run_dir {self.run_dir} already holds a run; add --resume or choose another run_dir")
            _require_same_job(job_file.load_as(Job, written), job, storage.join(self.run_dir, "job.yaml"))
        self.write_text("job.yaml", job_file.dump(job))
        self.write_json("versions.json", versions())

    def wait_before_results(self, wait: Callable[[], None]) -> None:
        """Call `wait` before each record and each stored item, which may depend on files that are being saved.

        Several threads call it. What it raises ends the stage.
        """
        self._wait = wait

    def finish(self, stage: str, began: float, **facts: Any) -> dict[str, Any]:
        """Writes the record of a finished stage, see `RunDirectory.finish`, once no save is running."""
        self._wait()
        return super().finish(stage, began, **facts)

    def table(
        self, stage: str, schema: pa.Schema, make: Callable[[], tuple[Iterable[pa.Table], Mapping[str, Any]]]
    ) -> Path:
        """The file of a stage's table; written and recorded unless the stage is done.

        Args:
            stage: its name.
            schema: of the table.
            make: returns the parts of the table, each of which is written as it comes, as a row group; and facts for
                the record, complete when the parts end.
        """
        path = self.path(f"{stage}.parquet")
        if self.record(stage) is None:
            began = time.time()
            with storage.atomic_file(path) as file, pq.ParquetWriter(file, schema) as writer:
                parts, facts = make()
                for part in parts:
                    writer.write_table(part)
            self.push(f"{stage}.parquet")
            self.finish(stage, began, **facts)
        return path

    def stored_groups(self, stage: str, items: Iterable[PromptBatch]) -> Iterator[Group]:
        """The groups of the items that are stored, in the order of the items."""
        if not (self.root / stage).is_dir():
            return  # nothing is stored: the items need not be read
        for item in items:
            if self._stored(stage, item):
                samples, scores = (
                    records.read_table(self.path(f"{stage}/{item.key}.{kind}.parquet")) for kind in _TABLES
                )
                yield from groups_from_tables(item, samples, scores)

    def store_missing(
        self,
        stage: str,
        items: Iterable[PromptBatch],
        produce: Callable[[Iterator[PromptBatch]], Iterable[Group]],
        quarantined: Mapping[str, str],
    ) -> Iterator[Group]:
        """Produce the groups of items that are not stored; store an item as soon as all of its groups have arrived.

        Items are read when `produce` takes them and forgotten when they are stored, by threads beside the stream; those
        of the same moment are stored together. All are stored when the stream ends. A crash loses only
        items in flight. An item with quarantined speeches is stored at the end of the stream.

        Args:
            stage: its name.
            items: of the stage.
            produce: the groups of missing items, in any order; not called if none is missing.
            quarantined: reason by speech id, complete when the groups end.
        """
        in_flight: dict[str, _Whole] = {}  # by speech id
        missing = (item for item in items if not self._stored(stage, item))
        first = list(itertools.islice(missing, 1))
        if not first:
            return

        def taken() -> Iterator[PromptBatch]:
            for item in itertools.chain(first, missing):
                in_flight.update(dict.fromkeys((prompt.speech_id for prompt in item.prompts), (item, {})))
                yield item

        with Writers[_Whole](lambda whole: self._store(stage, whole), "ledger") as writers:
            for group in produce(taken()):
                item, arrived = in_flight[group.prompt.speech_id]
                arrived[group.prompt.speech_id] = group
                if len(arrived) == len(item.prompts):
                    writers.write((item, arrived))
                    for prompt in item.prompts:
                        del in_flight[prompt.speech_id]
                yield group
        for key, (item, arrived) in {item.key: (item, arrived) for item, arrived in in_flight.values()}.items():
            absent = {prompt.speech_id for prompt in item.prompts} - arrived.keys()
            assert absent <= quarantined.keys(), f"item {key} is incomplete without a quarantined speech"
            reasons = {speech_id: quarantined[speech_id] for speech_id in sorted(absent)}
            self._wait()
            self.write_json(f"{stage}/{key}.quarantine.json", reasons)
            self._store(stage, [(item, arrived)])

    def quarantined(self, stage: str) -> dict[str, str]:
        """The quarantined speeches of a stage: reason by speech id."""
        files = sorted((self.root / stage).glob("*.quarantine.json"))
        return {key: reason for file in files for key, reason in records.read_json(file).items()}

    def responses(self, stage: str) -> dict[str, list[str]]:
        """Texts of a stage's stored responses by speech id, in sampling order."""
        files = sorted((self.root / stage).glob("*.samples.parquet"))
        columns = ["speech_id", "index", "response"]
        rows = [row for file in files for row in records.read_table(file).select(columns).to_pylist()]
        texts: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: row["index"]):
            texts.setdefault(row["speech_id"], []).append(row["response"])
        return texts

    def _stored(self, stage: str, item: PromptBatch) -> bool:
        return all((self.root / stage / f"{item.key}.{kind}.parquet").exists() for kind in _TABLES)

    def _store(self, stage: str, items: Iterable[_Whole]) -> None:
        self._wait()
        files: dict[str, pa.Table] = {}
        for item, groups in items:
            tables = group_tables([groups[prompt.speech_id] for prompt in item.prompts if prompt.speech_id in groups])
            files |= {f"{stage}/{item.key}.{kind}.parquet": tables[kind] for kind in _TABLES}
        self.write_tables(files, **PLAIN)


def _require_same_job(old: Job, new: Job, where: str) -> None:
    """Refuse to resume a run with settings that change its results."""
    before, after = job_file.flatten(old.model_dump(mode="json")), job_file.flatten(new.model_dump(mode="json"))
    for key in [*after, *(key for key in before if key not in after)]:  # a section that is gone has no key any more
        then, now = before.get(key), after.get(key)
        if then != now and not may_change(key):
            raise InputError(
                f"{where} was written with {key}: {then!r}, now it is {now!r}; "
                "continue with the old value or choose another run_dir"
            )
    if new.applied_dpo.schedule_over == "run" and old.iterations != new.iterations:
        raise InputError(
            f"{where} was written with iterations: {old.iterations}, now it is {new.iterations}, and the learning-rate "
            "schedule spans them all; continue with the old value or choose another run_dir"
        )


def stage(iteration: int, name: str) -> str:
    """The name of an iteration's stage in the ledger; iteration 0 is the base model."""
    return f"iteration-{iteration:03d}/{name}"
