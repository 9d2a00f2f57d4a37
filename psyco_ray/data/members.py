"""What each member of a pool answers, and what happens when one cannot."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from psyco_ray.config.errors import InputError
from psyco_ray.data.dataset import Dataset
from psyco_ray.data.draws import Draw, Failure, MemberFailedError, read_failures, record_failure
from psyco_ray.data.generate import EngineRun, LocalModel
from psyco_ray.data.respond import ResponderModel, ResponseSampling, ResponseTask

_log = logging.getLogger(__name__)


def failed_file(dataset: Dataset) -> Path:
    """The file of the failures, in the directory of the stage."""
    return dataset.root / "respond" / "failed.json"


def failed_members(dataset: Dataset) -> dict[str, str]:
    """The reasons of the failures by name."""
    return {failure.name: failure.reason for failure in read_failures(failed_file(dataset))}


def response_tasks(dataset: Dataset, pool: Sequence[ResponderModel], prompt: dict[str, str]) -> list[ResponseTask]:
    """What the members answer: the speeches drawn for each, and those that failed members hand on to it.

    Raises:
        InputError: too many members have failed.
    """
    settings, file, seed = dataset.job.respond, failed_file(dataset), dataset.job.seed
    draw = Draw(tuple(member.name for member in pool), settings.per_speech, read_failures(file))
    if len(draw.left()) < settings.per_speech:
        raise InputError(
            f"respond: {len(draw.failures)} of {len(pool)} members failed, and respond.per_speech draws "
            f"{settings.per_speech}; the last one, {draw.failures[-1].name}: {draw.failures[-1].reason}; put it right "
            f"and remove {file}"
        )
    tasks, speeches = [], dataset.root / "collect" / "speeches"
    parts = draw.parts(speeches, seed) if draw.failures else {}
    for number in range(len(draw.failures) + 1):
        for member in pool:
            only = parts.get((member.name, number), ()) if draw.failures else None
            if only is None or only:
                temperature = member.temperature or settings.temperature
                sampling = ResponseSampling(prompt, temperature, settings.top_p, settings.max_tokens, seed)
                out = dataset.root / "respond" / "members" / member.name / (f"round-{number}" if number else "")
                tasks.append(ResponseTask(member.name, sampling, speeches, out, draw, number, only))
    return tasks


def engine_runs(dataset: Dataset, pool: Sequence[ResponderModel], tasks: Sequence[ResponseTask]) -> list[EngineRun]:
    """The open models and all that they answer; pool entries of one model and template options share engines.

    Models that only have speeches of failed members come last: a further failure may hand them more.
    """
    sharing: dict[tuple[str, str], list[ResponderModel]] = {}
    for member in pool:
        if member.model is not None:
            options = json.dumps(member.template_options, sort_keys=True)
            sharing.setdefault((member.model, options), []).append(member)
    runs = []
    for (model, _), members in sharing.items():
        rollouts = members[0].engines(dataset.job.respond.rollouts)
        first = members[0]
        local = LocalModel(model, rollouts, dataset.job.seed, first.revision, first.allow_code, first.template_options)
        names = {member.name for member in members}
        runs.append(EngineRun(f"respond: {model}", local, [task for task in tasks if task.name in names]))
    return sorted(runs, key=lambda run: min((task.round for task in run.tasks if task.missing()), default=0))


def finished(name: str, tasks: Sequence[ResponseTask]) -> dict[str, list[str]]:
    """The parts that a member has finished, by round."""
    return {str(task.round): sorted({*task.parts()} - {*task.missing()}) for task in tasks if task.name == name}


def hand_on(dataset: Dataset, failed: MemberFailedError, tasks: Sequence[ResponseTask]) -> None:
    """Record failed members: others get their speeches, now and whenever the stage is continued."""
    file = failed_file(dataset)
    for name in failed.names:
        record_failure(file, Failure(name, str(failed), finished(name, tasks)))
        _log.warning(
            f"respond: {name} failed, other members answer its speeches: {failed}; to undo this, remove {file}"
        )
