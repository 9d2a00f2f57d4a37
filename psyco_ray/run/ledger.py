"""What is done: the run directory with its tables, stage records and lock.

A stage counts as done once its record (JSON) is there; the record is written last, and every file appears whole or
not at all. Tables of streamed work are written part by part, each named by a hash of what produced it. The files of a
remote run are written to a working copy on this machine and are in their place before the call returns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psyco_ray.config import job_file
from psyco_ray.config.endpoint import TRANSPORT_FIELDS
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run import storage
from psyco_ray.run.directory import RunDirectory, refuse_keys, versions
from psyco_ray.run.schemas import SAMPLES, SCORES, group_rows, groups_from_rows
from psyco_ray.run.types import Group, PromptBatch

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
    *(f"evaluation.judge.{key}" for key in sorted(TRANSPORT_FIELDS)),
    *(
        f"{role}.{key}"
        for role in ("rollouts", "scorers", "learners", "reward.learners")
        for key in ("actors", "cpus", "gpus", "threads", "autoscale")
    ),
}
"""Settings that a resumed run may have otherwise: they say where and how long, not what."""

_BEFORE_WORK = {"LOCK", "job.yaml", "versions.json", "status.json", "scale.json"}


class Ledger(RunDirectory):
    """The directory of one training run."""

    def __init__(self, job: Job, resume: bool) -> None:
        """Open the directory, lock it and write down the job.

        Raises:
            InputError: the directory cannot be written, is in use, or holds another run.
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
                raise InputError(f"run_dir {self.run_dir} already holds a run; add --resume or choose another run_dir")
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
        items: Sequence[PromptBatch],
        produce: Callable[[list[PromptBatch]], Iterable[Group]],
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
        missing: dict[str, PromptBatch] = {}
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

    def _store(self, stage: str, item: PromptBatch, groups: dict[str, Group]) -> None:
        rows = [group_rows(groups[prompt.speech_id]) for prompt in item.prompts if prompt.speech_id in groups]
        for kind, schema, index in (("samples", SAMPLES, 0), ("scores", SCORES, 1)):
            table = pa.Table.from_pylist([row for pair in rows for row in pair[index]], schema=schema)
            self.write_table(f"{stage}/{item.key}.{kind}.parquet", table)


def _same_job(old: Job, new: Job, where: str) -> None:
    """Refuse to continue a run with settings that change its results."""
    before, after = job_file.flatten(old.model_dump(mode="json")), job_file.flatten(new.model_dump(mode="json"))
    for key, value in after.items():
        if before.get(key) != value and not any(key == k or key.startswith(f"{k}.") for k in MAY_CHANGE):
            raise InputError(
                f"{where} was written with {key}: {before.get(key)!r}, now it is {value!r}; "
                "continue with the old value or choose another run_dir"
            )


def stage(iteration: int, name: str) -> str:
    """The name of an iteration's stage in the ledger; iteration 0 is the base model."""
    return f"iteration-{iteration:03d}/{name}"
