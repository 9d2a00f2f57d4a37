"""The stages of a dataset. Each finds its inputs, makes what is missing, logs a summary and returns its record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from psyco_ray.config.data import DataJob
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import EndpointError, InputError
from psyco_ray.config.prompts import ContextEntry, load_prompt
from psyco_ray.config.resume import without_transport
from psyco_ray.config.training import Deadlines, Prompts
from psyco_ray.data import crisis_classifier, crisis_flags, crisis_judge, members, respond, topics
from psyco_ray.data import pair as pairing
from psyco_ray.data import rate as rating
from psyco_ray.data.collect_stage import collect, require_unchanged
from psyco_ray.data.dataset import Dataset
from psyco_ray.data.draws import MemberFailedError
from psyco_ray.data.generate import Engines
from psyco_ray.data.overlap import Overlap, Responses, Stage
from psyco_ray.judge import injections
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.callers import CallStage, CallStats
from psyco_ray.run import shards
from psyco_ray.run.changes import digest_of_model
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import TOPICS

ENGINE_DEADLINES = Deadlines(start_s=4 * 3600, item_s=4 * 3600)
"""For engines of the responders: a model of 70 B parameters may be downloaded first."""

_log = logging.getLogger(__name__)


def look_again(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Let `crisis.classifier` and `crisis.judge` look for signs of a crisis, and merge their flags."""
    settings = dataset.job.crisis
    if settings.classifier is None and settings.judge is None:
        raise InputError(
            "crisis.classifier and crisis.judge name no model; collect has flagged the speeches by the lexicons"
        )
    require_unchanged(dataset)
    record = crisis_classifier.make(dataset, progress) if settings.classifier is not None else {}
    if settings.judge is not None:
        record = _make(dataset, ["crisis"], progress)
    crisis_flags.merge(dataset)
    return record


def label_topics(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Label every speech with a fine and a coarse topic."""
    require_unchanged(dataset)
    return _make(dataset, ["topics"], progress)


def sample_responses(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Sample responses to every speech by the models drawn for it."""
    require_unchanged(dataset)
    return _make(dataset, ["respond"], progress)


def rate(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Rate the responses by each principle."""
    require_unchanged(dataset)
    return _make(dataset, ["rate"], progress)


def pair(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Make preference pairs. They are made again on every call, which takes seconds."""
    if dataset.record("rate") is None:
        raise InputError(f"run_dir {dataset.root}: pair builds on rate; run `psyco-ray data rate` first")
    began = time.time()
    crisis_flags.merge(dataset)
    facts = pairing.pair(dataset.root, dataset.job.pair)
    _log.info("pair: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in facts.items()))
    return dataset.finish("pair", began, **facts)


def build(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Make all stages. Topics, responses and ratings overlap; returns the record of the pairs."""
    settings = dataset.job.crisis
    dataset.outgoing.check(_endpoints(dataset.job))
    if settings.classifier is not None and dataset.record("classify") is None:
        crisis_classifier.check(settings.classifier)
    collect(dataset, progress)
    if settings.classifier is not None:
        crisis_classifier.make(dataset, progress)
    judged = ["crisis"] if settings.judge is not None else []
    _make(dataset, [*judged, "topics", "respond", "rate"], progress)
    return pair(dataset, progress)


def _endpoints(job: DataJob) -> dict[str, Endpoint]:
    """The APIs of all stages, by the stage."""
    endpoints = {"crisis": job.crisis.judge, "topics": job.topics.endpoint, "rate": job.rate.endpoint}
    endpoints |= {f"respond: {member.name}": member.api for member in respond.load_pool(job.respond)}
    return {name: endpoint for name, endpoint in endpoints.items() if endpoint is not None}


STAGES: dict[str, Callable[[Dataset, Progress], dict[str, Any]]] = {
    "collect": collect,
    "crisis": look_again,
    "topics": label_topics,
    "respond": sample_responses,
    "rate": rate,
    "pair": pair,
    "build": build,
}


def _make(dataset: Dataset, names: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Make the stages of calls that are not done, all at the same time; returns the record of the last one."""
    for name in names:
        if dataset.record(name) is not None:
            _log.info(f"{name}: done before")
    while stages := [stage for name in names if (stage := _OF_CALLS[name](dataset)) is not None]:
        try:
            Overlap(dataset, stages, progress).run()
            break
        except (MemberFailedError, EndpointError) as error:
            _hand_on(dataset, error, stages)
    record = dataset.record(names[-1])
    assert record is not None
    return record


def _hand_on(dataset: Dataset, error: MemberFailedError | EndpointError, stages: Sequence[Stage]) -> None:
    """Let other members answer the speeches of those that failed; other errors are raised again."""
    responses = next((stage.responses for stage in stages if stage.responses is not None), None)
    if responses is None:
        raise error
    if isinstance(error, EndpointError):
        names = [task.name for task in responses.tasks if _name(task) == error.stage]
        if not names:
            raise error
        error = MemberFailedError(names, str(error))
    members.hand_on(dataset, error, responses.tasks)


def _is_done(dataset: Dataset, stage: str, *sections: str, **more: Any) -> bool:
    """Claim a stage's directory for these settings; whether the stage is done."""
    dataset.begin(stage, *sections, **more)
    return dataset.record(stage) is not None


def _entry(dataset: Dataset, name: str, placeholder: str) -> ContextEntry:
    return dataset.prompts().context_entry(name, dataset.has_conversations(), placeholder)


def _crisis(dataset: Dataset) -> Stage | None:
    settings = dataset.job.crisis
    assert settings.judge is not None
    prompt = _entry(dataset, "crisis", "{kinds}")
    asked = without_transport(settings.model_dump(mode="json", exclude={"classifier"}))
    if _is_done(dataset, "crisis", crisis=asked, prompt=key_of(*prompt.key())):
        return None
    return _of_calls(dataset, crisis_judge.CrisisStage(settings.judge, settings, prompt, dataset.root))


def _topics(dataset: Dataset) -> Stage | None:
    settings = dataset.job.topics
    prompt = _entry(dataset, "topic", "{topics}")
    if _is_done(dataset, "topics", "topics", prompt=key_of(*prompt.key())):
        return None
    if settings.endpoint is not None:
        return _of_calls(dataset, topics.TopicStage(settings.endpoint, settings, prompt, dataset.root))
    began = time.time()
    for part in dataset.speeches():
        rows = shards.read(dataset.root / "collect" / "speeches", part)
        shards.write(dataset.root / "topics", part, topics.from_source(rows), TOPICS)
    _log.info("topics: topics.endpoint names no model; the sources' own labels are kept where they are known")
    dataset.finish("topics", began)
    return None


def _respond(dataset: Dataset) -> Stage | None:
    job, settings = dataset.job, dataset.job.respond
    pool = respond.load_pool(settings)
    prompt = load_prompt(Prompts(file=job.prompts, respond=settings.prompt))
    description = [
        model.model_dump(include={"name", "model", "revision", "temperature", "template_options"})
        | ({"api": model.api.model} if model.api else {})
        for model in pool
    ]
    sampling = settings.model_dump(include={"per_speech", "temperature", "top_p", "max_tokens"})
    sampling["dtype"] = settings.rollouts.dtype
    weights = {model.name: digest_of_model(str(model.model)) for model in pool if respond.is_directory(model)}
    drawn = {"pool": description, "weights": weights, "seed": job.seed, **sampling}
    if _is_done(dataset, "respond", prompt=key_of(prompt), **drawn):
        return None
    tasks = members.response_tasks(dataset, pool, prompt)
    apis = {model.name: model.api for model in pool if model.api is not None}
    calls = [
        CallRun(_name(task), respond.ApiStage(apis[task.name], task), task.parts(), dataset.journal, dataset.outgoing)
        for task in tasks
        if task.name in apis
    ]
    engines = Engines(members.engine_runs(dataset, pool, tasks), ENGINE_DEADLINES)
    finish = partial(_finish_responses, dataset, tasks, calls)
    return Stage("respond", calls, finish, Responses(dataset, tasks, engines))


def _name(task: respond.ResponseTask) -> str:
    return f"respond: {task.name}" + (f", handed on {task.round}" if task.round else "")


def _rate(dataset: Dataset) -> Stage | None:
    job, prompts = dataset.job, dataset.prompts()
    prompt = rating.load_prompt(prompts, job.respond.per_speech, dataset.has_conversations())
    principles = prompts.principles()
    key = key_of(*prompt.key())
    if _is_done(dataset, "rate", "rate", prompt=key, principles=key_of(principles), seed=job.seed):
        return None
    return _of_calls(dataset, rating.RateStage(job.rate, job.seed, prompt, principles, dataset.root))


_OF_CALLS: dict[str, Callable[[Dataset], Stage | None]] = {
    "crisis": _crisis,
    "topics": _topics,
    "respond": _respond,
    "rate": _rate,
}


def _of_calls(dataset: Dataset, stage: CallStage) -> Stage:
    name = stage.out.name
    calls = CallRun(name, stage, dataset.speeches(), dataset.journal, dataset.outgoing)
    return Stage(name, [calls], partial(_finish_calls, dataset, calls))


def _finish_calls(dataset: Dataset, calls: CallRun, began: float) -> None:
    """Log and record a stage of calls."""
    stats, dollars = calls.stats(), calls.dollars()
    _log.info(
        f"{calls.name}: {stats.units} questions, {stats.paid} calls sent, {stats.reused} answers from the journal, "
        f"{stats.set_aside} set aside, {stats.prompt_tokens} + {stats.completion_tokens} tokens"
        + (f", ${dollars:.2f}" if dollars is not None else "")
    )
    addressed = injections.report(calls.name, _texts(dataset, calls)) if calls.name == "rate" else []
    dataset.finish(calls.name, began, **asdict(stats), cost=dollars, addressed=addressed)


def _texts(dataset: Dataset, calls: CallRun) -> Iterator[tuple[str, str]]:
    """Ids and texts of all speeches and responses that a stage was asked about."""
    for part in calls.parts:
        for directory, column in (("collect/speeches", "speech"), ("respond", "response")):
            for row in shards.read(dataset.root / directory, part):
                yield row["speech_id"], row[column]


def _finish_responses(
    dataset: Dataset, tasks: Sequence[respond.ResponseTask], calls: Sequence[CallRun], began: float
) -> None:
    """Check, log and record the responses.

    Raises:
        InputError: most answers are unfinished.
    """
    finished, failed = respond.count_finished(tasks), members.failed_members(dataset)
    if dataset.job.pair.unfinished != "allow":
        respond.check_finished(finished, dataset.job.respond.max_tokens)
    count = sum(len(shards.read(dataset.root / "respond", part)) for part in dataset.speeches())
    cut = sum(member.unfinished for member in finished.values())
    _log.info(
        f"respond: {count} responses by {len(finished)} models, {cut} answers are empty or cut at max_tokens"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    runs: dict[str, list[CallRun]] = {}
    for run in calls:
        assert isinstance(run.stage, respond.ApiStage)
        runs.setdefault(run.stage.task.name, []).append(run)
    dataset.finish(
        "respond",
        began,
        responses=count,
        finished={name: asdict(member) for name, member in finished.items()},
        failed=failed,
        calls={name: _spent(of_member) for name, of_member in runs.items()},
    )


def _spent(runs: Sequence[CallRun]) -> dict[str, Any]:
    """Usage of some stages of calls to one endpoint, and its cost (None without prices)."""
    dollars = [run.dollars() for run in runs]
    cost = None if None in dollars else sum(filter(None, dollars))
    return asdict(sum((run.stats() for run in runs), CallStats())) | {"cost": cost}
