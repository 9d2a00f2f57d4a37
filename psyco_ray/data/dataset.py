"""The run directory of a dataset: settings, parts and record of each stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.contexts import Context
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.config.privacy import ScrubSent
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.config.resume import without_transport
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run import records, shards, storage
from psyco_ray.run.changes import Changes
from psyco_ray.run.directory import RunDirectory, versions
from psyco_ray.run.hashing import key_of

_BUILDS_ON = {
    "collect": (),
    "classify": ("collect",),
    "crisis": ("collect",),
    "topics": ("collect",),
    "respond": ("collect",),
    "rate": ("respond",),
}


class Dataset(RunDirectory):
    """The directory of a dataset. Every stage continues where it stopped, so each command can be repeated.

    Example:
        >>> dataset = Dataset(job)
        >>> dataset.begin("topics", "topics")
        >>> for part in dataset.speeches():
        ...     ...
        >>> dataset.finish("topics", began)
    """

    def __init__(self, job: DataJob, address: str | None = None, accept_changes: bool = False) -> None:
        """Open and lock the directory.

        Args:
            job: the data job.
            address: of a Ray cluster; None: that of the environment, else a local one.
            accept_changes: whether paid stages go on although their sources have changed.

        Raises:
            InputError: the directory cannot be written or is in use.
        """
        super().__init__(job.run_dir)
        self.job, self._address = job, address
        self.changes = Changes(accept_changes)
        self._begun: set[str] = set()  # stages of the current command
        self.write_text("job.yaml", job_file.dump(job))
        self.write_json("versions.json", versions())

    def connect(self) -> None:
        """Start or join Ray. Called late: an invalid job fails before, and a finished stage needs no Ray."""
        import ray

        from psyco_ray.run.ray_session import connect

        if not ray.is_initialized():
            connect(self._address)

    @property
    def journal(self) -> Path:
        """Directory of paid answers."""
        return Path(self.job.journal) if self.job.journal else self.root / "journal"

    @property
    def outgoing(self) -> Outgoing:
        """The terms on which speeches are sent to APIs; `collect` has scrubbed them, if the job says so."""
        scrub = ScrubSent(enabled=self.job.scrub.enabled, presidio=self.job.scrub.presidio)
        return Outgoing(scrub, self.job.privacy, before=True)

    def begin(self, stage: str, *sections: str, **more: Any) -> None:
        """Claim a stage's directory for these settings.

        Args:
            stage: its name.
            sections: sections of the job that decide what the stage makes.
            more: other values that do, such as the key of a prompt.

        Raises:
            InputError: an earlier stage is neither done nor begun by this command, or this stage was begun with other
                settings.
        """
        self._begun.add(stage)
        for earlier in _BUILDS_ON[stage]:
            if self.record(earlier) is None and earlier not in self._begun:
                raise InputError(
                    f"run_dir {self.root}: {stage} builds on {earlier}; run `psyco-ray data {earlier}` first"
                )
        job = self.job.model_dump(mode="json")
        settings = {name: without_transport(job[name]) for name in sections} | more
        settings["builds on"] = {earlier: self._settings_key(earlier) for earlier in _BUILDS_ON[stage]}
        name = f"{stage}/settings.json"
        path = self.path(name)
        if not path.exists():
            self.write_json(name, settings)
            return
        stored = job_file.flatten(_given(self._settings(stage)))
        current = job_file.flatten(_given(json.loads(json.dumps(settings))))
        for key in sorted({*current, *stored}):
            then, now = stored.get(key), current.get(key)
            if then != now:
                raise InputError(
                    f"run_dir {self.root} holds {stage} made with {key} {then!r}, now it is {now!r}; take the old "
                    f"value, another run_dir, or remove {path.parent} and {self.root / stage}.json to make it again"
                )

    def paid_stages(self) -> list[str]:
        """The stages with topics, responses or ratings that a model or an API was asked for."""
        return [stage for stage in ("crisis", "topics", "respond", "rate") if self._asked(stage)]

    def discard(self, *stages: str) -> None:
        """Remove the results of stages, such as those that build on other speeches."""
        for stage in stages:
            (self.root / f"{stage}.json").unlink(missing_ok=True)
            storage.remove_dir(self.root / ("pairs" if stage == "pair" else stage))

    def speeches(self) -> list[str]:
        """The parts of the collected speeches."""
        return shards.list_shards(self.root / "collect" / "speeches")

    def has_conversations(self) -> bool:
        """Whether a collected context is a conversation, whose questions have entries of their own."""
        return any(
            Context.of(text).is_conversation
            for part in self.speeches()
            for text in records.read_table(self.path(f"collect/speeches/{part}.parquet"), columns=["speech"])[
                "speech"
            ].to_pylist()
        )

    def prompts(self) -> PromptsFile:
        """The job's prompts.

        Raises:
            InputError: the file is missing or holds no YAML.
        """
        return PromptsFile(self.job.prompts)

    def _asked(self, stage: str) -> bool:
        if not shards.list_shards(self.root / stage):
            return False
        own = stage == "topics" and self._settings(stage)["topics"]["endpoint"] is None
        return not own  # topics of the sources themselves

    def _settings(self, stage: str) -> dict[str, Any]:
        directory = self.root / stage
        way_out = f"restore it, or remove {directory} and {directory}.json to make the stage again"
        return records.read_json(directory / "settings.json", way_out)

    def _settings_key(self, stage: str) -> str:
        return key_of((self.root / stage / "settings.json").read_text())


def _given(settings: Any) -> Any:
    """Settings without empty ones, which a directory of an earlier version may lack."""
    if isinstance(settings, dict):
        return {key: _given(value) for key, value in settings.items() if value not in (None, [], {})}
    return [_given(value) for value in settings] if isinstance(settings, list) else settings
