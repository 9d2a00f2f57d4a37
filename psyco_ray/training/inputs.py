"""Models, prompts, code and packages that a training run was made with, compared when it goes on.

Speeches and pairs are compared by the stages that read them.
"""

from __future__ import annotations

import time
from typing import Any

from psyco_ray.config.training import Job
from psyco_ray.models import loading
from psyco_ray.run.changes import Changes, digest_of_code, digest_of_model
from psyco_ray.run.directory import versions
from psyco_ray.run.ledger import Ledger
from psyco_ray.run.manifests import digest_of_file
from psyco_ray.run.remote import is_remote
from psyco_ray.run.storage import local_path

RECORD = "inputs"

_OF_PROMPTS = {"model", "prompts.file"}


def check(job: Job, ledger: Ledger, changes: Changes) -> None:
    """Compare what a run is made of with what an earlier part of it was made of, and record it.

    A finished run is left alone: a repeated command shows its result, whatever has changed since.

    Prompts of another model or file are rendered again: the stage `speeches` holds them.

    Args:
        job: names the models and prompts.
        ledger: of the run; has the record.
        changes: refuses or accepts.

    Raises:
        InputError: something has changed and is not accepted, or a model cannot be found.
    """
    if _is_finished(job, ledger):
        return
    now: dict[str, Any] = {**_inputs(job), **{f"package {name}": value for name, value in versions().items()}}
    now["code of psyco_ray"] = digest_of_code()
    record = (ledger.record(RECORD) if ledger.continues else None) or {"inputs": now, "accepted": []}
    then = record["inputs"]
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    for name in changed:
        changes.found(f"{name} has changed since this run began{_said(then.get(name), now.get(name))}")
    if not _OF_PROMPTS.isdisjoint(changed):
        ledger.discard("speeches")
    accepted = [{"at": time.time(), "change": change} for change in changes.accepted]
    ledger.write_json(f"{RECORD}.json", {"inputs": now, "accepted": [*record["accepted"], *accepted]})


def _is_finished(job: Job, ledger: Ledger) -> bool:
    """Whether the run has all its iterations, or its reward model: nothing is computed any more."""
    summary = ledger.record("summary")
    return ledger.record("reward") is not None or (summary is not None and summary.get("iterations") == job.iterations)


def _inputs(job: Job) -> dict[str, str]:
    """Digests of models and prompts by the settings that name them."""
    scorers = job.scorers
    models = {"model": job.model, "scorers.reward_model": scorers.reward_model}
    models |= {"scorers.heldout_model": scorers.heldout_model, "scorers.safety_model": scorers.safety_model}
    if job.simulate is not None:
        models["simulate.client.model"] = job.simulate.client.model
    digests = {key: digest_of(name) for key, name in models.items() if name is not None}
    if job.prompts.file != "default":
        digests["prompts.file"] = digest_of_file(local_path(job.prompts.file))
    return digests


def digest_of(name: str) -> str:
    """A digest of a model's files, which changes with them."""
    if is_remote(name) or local_path(name).is_dir():
        return digest_of_model(name)
    return digest_of_model(str(loading.resolve(name)))


def _said(then: Any, now: Any) -> str:
    """Short values of both times, as those of packages; digests say nothing to a reader."""
    if then is None or now is None:
        return f" ({'is new' if then is None else 'is gone'})"
    return f" ({then}, now {now})" if len(str(then)) < 30 else ""
