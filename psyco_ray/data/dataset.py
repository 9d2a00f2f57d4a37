"""The directory of one dataset: what each stage was made with, its parts and its record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.data import DataJob
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PromptsFile
from psyco_ray.config.resume import without_transport
from psyco_ray.run import shards
from psyco_ray.run.directory import RunDirectory, versions
from psyco_ray.run.hashing import key_of

STAGES = ("collect", "topics", "respond", "rate", "pair")
"""In the order in which one builds on another."""

_BUILDS_ON = {"collect": (), "topics": ("collect",), "respond": ("collect",), "rate": ("respond",)}


class Dataset(RunDirectory):
    """A dataset under way. Every stage continues where it was, so a command can always be given again."""

    def __init__(self, job: DataJob, address: str | None = None) -> None:
        """Open and lock the directory.

        Args:
            job: what is made.
            address: of the Ray cluster that makes it; None: that of the environment, or one of its own.

        Raises:
            InputError: it cannot be written or is in use.
        """
        super().__init__(job.run_dir)
        self.job, self._address = job, address
        self.spent = 0.0  # dollars, by the command under way
        self.write_text("job.yaml", job_file.dump(job))
        self.write_json("versions.json", versions())

    def connect(self) -> None:
        """Have Ray, which only a stage with something left to do needs: what is wrong with a job is said before."""
        import ray

        from psyco_ray.run.ray_session import connect

        if not ray.is_initialized():
            connect(self._address)

    @property
    def journal(self) -> Path:
        """Where paid calls are written down."""
        return Path(self.job.journal) if self.job.journal else self.root / "journal"

    def begin(self, stage: str, *sections: str, **more: Any) -> None:
        """Claim a stage's directory for these settings.

        Args:
            stage: one of STAGES.
            sections: parts of the job that decide what the stage makes.
            more: other things that do, such as the text of a prompt.

        Raises:
            InputError: an earlier stage is not done, or this one was begun with other settings.
        """
        for earlier in _BUILDS_ON[stage]:
            if self.record(earlier) is None:
                raise InputError(
                    f"run_dir {self.root}: {stage} builds on {earlier}; run `psyco-ray data {earlier}` first"
                )
        job = self.job.model_dump(mode="json")
        wanted = {name: without_transport(job[name]) for name in sections} | more
        wanted["builds on"] = {earlier: self._made_with(earlier) for earlier in _BUILDS_ON[stage]}
        wanted = json.loads(json.dumps(wanted))
        name = f"{stage}/settings.json"
        path = self.path(name)
        if not path.exists():
            self.write_json(name, wanted)
            return
        written = json.loads(path.read_text())
        for key in sorted({*_flat(wanted), *_flat(written)}):
            then, now = _flat(written).get(key), _flat(wanted).get(key)
            if then != now:
                raise InputError(
                    f"run_dir {self.root} holds {stage} made with {key} {then!r}, now it is {now!r}; take the old "
                    f"value, another run_dir, or remove {path.parent} and {self.root / stage}.json to make it anew"
                )

    def speeches(self) -> Iterator[str]:
        """The parts of the collected speeches."""
        return iter(shards.list_shards(self.root / "collect" / "speeches"))

    def prompts(self) -> PromptsFile:
        """The job's prompts.

        Raises:
            InputError: the file is missing or holds no YAML.
        """
        return PromptsFile(self.job.prompts)

    def _made_with(self, stage: str) -> str:
        return key_of((self.root / stage / "settings.json").read_text())


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(settings, dict) and settings:
        return {
            k: v
            for key, value in settings.items()
            for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: settings}
