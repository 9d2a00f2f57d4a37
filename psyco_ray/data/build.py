"""The stages of a dataset. Each finds its inputs, makes what is missing, logs a summary and returns its record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import load_prompt
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Deadlines, Prompts
from psyco_ray.data import collect as collecting
from psyco_ray.data import generate, respond, topics
from psyco_ray.data import pair as pairing
from psyco_ray.data import rate as rating
from psyco_ray.data.dataset import Dataset
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.pipeline import CallStage
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import TOPICS

ENGINE_DEADLINES = Deadlines(start_s=4 * 3600, item_s=4 * 3600)
"""For engines of the responders: a model of 70 B parameters may be downloaded first."""

_log = logging.getLogger(__name__)


def collect(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Clean the raw files and split their speeches."""
    dataset.begin("collect", "sources", "collect", "scrub", "crisis")
    if (record := dataset.record("collect")) is not None:
        return record
    began = time.time()
    dataset.connect()
    facts = collecting.collect(dataset.job, dataset.root / "collect")
    dropped = ", ".join(f"{count} {reason}" for reason, count in facts["dropped"].items()) or "nothing"
    _log.info(f"collect: {facts['rows']} rows, dropped {dropped}; {facts['kept']} speeches kept {facts['splits']}")
    return dataset.finish("collect", began, **facts)


def label_topics(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Label every speech with a fine and a coarse topic."""
    settings = dataset.job.topics
    prompt = dataset.prompts().entry("topic", "{client_speech}", "{topics}")
    dataset.begin("topics", "topics", prompt=key_of(prompt))
    if (record := dataset.record("topics")) is not None:
        return record
    began = time.time()
    if settings.endpoint is None:
        for part in dataset.speeches():
            rows = shards.read(dataset.root / "collect" / "speeches", part)
            shards.write(dataset.root / "topics", part, topics.from_source(rows), TOPICS)
        _log.info("topics: topics.endpoint names no model; the sources' own labels are kept where they are known")
        return dataset.finish("topics", began)
    stage = topics.TopicStage(settings, prompt, dataset.root)
    return _ask(dataset, "topics", began, stage, progress)


def sample_responses(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Sample responses to every speech by the models drawn for it."""
    job, settings = dataset.job, dataset.job.respond
    pool = respond.load_pool(settings)
    prompt = load_prompt(Prompts(file=job.prompts, respond=settings.prompt))
    description = [
        model.model_dump(include={"name", "model", "temperature"}) | ({"api": model.api.model} if model.api else {})
        for model in pool
    ]
    sampling = settings.model_dump(include={"per_speech", "temperature", "top_p", "max_tokens"})
    sampling["dtype"] = settings.rollouts.dtype
    dataset.begin("respond", prompt=key_of(prompt), pool=description, seed=job.seed, **sampling)
    if (record := dataset.record("respond")) is not None:
        return record
    began = time.time()
    tasks = {model.name: _response_task(dataset, model, pool, prompt) for model in pool}
    for name in dict.fromkeys(model.model for model in pool if model.model):
        _generate(dataset, [model for model in pool if model.model == name], tasks, progress)
    spent: dict[str, Any] = {}
    for model in pool:
        if model.api is not None:
            stage = respond.ApiStage(model.api, tasks[model.name])
            calls = _call(dataset, f"respond: {model.name}", stage, progress)
            spent[model.name] = asdict(calls.stats()) | {"cost": calls.dollars()}
    finished = {name: respond.count_finished(task) for name, task in tasks.items()}
    if job.pair.unfinished != "allow":
        respond.check_finished(finished, settings.max_tokens)
    count = sum(respond.merge([*tasks.values()], dataset.root / "respond", part) for part in dataset.speeches())
    unfinished = {name: asdict(member) for name, member in finished.items()}
    cut = sum(member.unfinished for member in finished.values())
    _log.info(f"respond: {count} responses by {len(pool)} models; {cut} answers are empty or cut at max_tokens")
    return dataset.finish("respond", began, responses=count, finished=unfinished, calls=spent)


def rate(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Rate the responses by each principle."""
    job, prompts = dataset.job, dataset.prompts()
    prompt, principles = rating.load_prompt(prompts, job.respond.per_speech), prompts.principles()
    dataset.begin("rate", "rate", prompt=key_of(prompt), principles=key_of(principles), seed=job.seed)
    if (record := dataset.record("rate")) is not None:
        return record
    stage = rating.RateStage(job.rate, job.seed, prompt, principles, dataset.root)
    return _ask(dataset, "rate", time.time(), stage, progress)


def pair(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Make preference pairs. They are made again on every call, which takes seconds."""
    if dataset.record("rate") is None:
        raise InputError(f"run_dir {dataset.root}: pair builds on rate; run `psyco-ray data rate` first")
    began = time.time()
    facts = pairing.pair(dataset.root, dataset.job.pair)
    _log.info("pair: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in facts.items()))
    return dataset.finish("pair", began, **facts)


STAGES: dict[str, Callable[[Dataset, Progress], dict[str, Any]]] = {
    "collect": collect,
    "topics": label_topics,
    "respond": sample_responses,
    "rate": rate,
    "pair": pair,
}


def _ask(dataset: Dataset, name: str, began: float, stage: CallStage, progress: Progress) -> dict[str, Any]:
    """Run a stage of calls and record it."""
    calls = _call(dataset, name, stage, progress)
    stats, dollars = calls.stats(), calls.dollars()
    _log.info(
        f"{name}: {stats.units} questions, {stats.paid} calls sent, {stats.reused} answers from the journal, "
        f"{stats.set_aside} set aside, {stats.prompt_tokens} + {stats.completion_tokens} tokens"
        + (f", ${dollars:.2f}" if dollars is not None else "")
    )
    return dataset.finish(name, began, **asdict(stats), cost=dollars)


def _call(dataset: Dataset, name: str, stage: CallStage, progress: Progress) -> CallRun:
    """Run the missing parts of a stage within what is left of `max_cost`."""
    calls = CallRun(name, stage, dataset.speeches(), dataset.journal)
    limit = dataset.job.max_cost
    dataset.spent += calls.execute(None if limit is None else limit - dataset.spent, progress, dataset.connect)
    return calls


def _response_task(
    dataset: Dataset, model: respond.ResponderModel, pool: list[respond.ResponderModel], prompt: dict[str, str]
) -> respond.ResponseTask:
    settings = dataset.job.respond
    return respond.ResponseTask(
        model.name,
        respond.ResponseSampling(
            prompt=prompt,
            temperature=model.temperature or settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=dataset.job.seed,
        ),
        speeches=dataset.root / "collect" / "speeches",
        out=dataset.root / "respond" / "members" / model.name,
        draw=respond.Draw(tuple(responder.name for responder in pool), settings.per_speech),
    )


def _generate(
    dataset: Dataset,
    sharing: list[respond.ResponderModel],
    tasks: dict[str, respond.ResponseTask],
    progress: Progress,
) -> None:
    """Sample the responses of all pool entries that share one open model."""
    first = sharing[0]
    assert first.model is not None
    overrides = dataset.job.respond.rollouts.model_dump() | first.rollouts
    rollouts = job_file.parse(Rollouts, overrides, f"pool member {first.name}: rollouts")
    todo = [tasks[model.name] for model in sharing]
    if any(task.missing() for task in todo):
        dataset.connect()
        local = generate.LocalModel(first.model, rollouts, dataset.job.seed, first.trust_remote_code)
        generate.generate(local, todo, ENGINE_DEADLINES, progress, f"respond: {first.model}")
