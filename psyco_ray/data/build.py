"""The stages of a dataset, each a verb: what it needs, what it makes, what it says at the end."""

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
from psyco_ray.config.training import Prompts
from psyco_ray.data import collect as collecting
from psyco_ray.data import pair as pairing
from psyco_ray.data import rate as rating
from psyco_ray.data import respond, topics
from psyco_ray.data.dataset import Dataset
from psyco_ray.judge.call_run import CallRun
from psyco_ray.judge.pipeline import CallStage
from psyco_ray.run import shards
from psyco_ray.run.hashing import key_of
from psyco_ray.run.progress import Progress
from psyco_ray.run.schemas import TOPICS

_log = logging.getLogger(__name__)


def collect(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Raw files to clean speeches with a split."""
    dataset.begin("collect", "sources", "collect", "scrub", "crisis")
    if (done := dataset.record("collect")) is not None:
        return done
    began = time.time()
    dataset.connect()
    facts = collecting.collect(dataset.job, dataset.root / "collect")
    dropped = ", ".join(f"{count} {reason}" for reason, count in facts["dropped"].items()) or "nothing"
    _log.info(f"collect: {facts['rows']} rows, dropped {dropped}; {facts['kept']} speeches kept {facts['splits']}")
    return dataset.finish("collect", began, **facts)


def label_topics(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """A fine and a coarse topic for every speech."""
    settings = dataset.job.topics
    prompt = dataset.prompts().entry("topic", "{client_speech}", "{topics}")
    dataset.begin("topics", "topics", prompt=key_of(prompt))
    if (done := dataset.record("topics")) is not None:
        return done
    began = time.time()
    if settings.endpoint is None:
        for part in dataset.speeches():
            rows = shards.read(dataset.root / "collect" / "speeches", part)
            shards.write(dataset.root / "topics", part, topics.from_source(rows), TOPICS)
        _log.info("topics: topics.endpoint names no model; the sources' own labels are kept where they are known")
        return dataset.finish("topics", began)
    stage = topics.TopicStage(settings.endpoint, settings.attempts, settings.max_tokens, prompt, dataset.root)
    return _ask(dataset, "topics", began, stage, progress)


def sample_responses(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Responses to every speech by the models drawn for it."""
    job, settings = dataset.job, dataset.job.respond
    pool = respond.load_pool(settings)
    prompt = load_prompt(Prompts(file=job.prompts, respond=settings.prompt))
    described = [
        member.model_dump(include={"name", "model", "temperature"}) | ({"api": member.api.model} if member.api else {})
        for member in pool
    ]
    dataset.begin("respond", prompt=key_of(prompt), pool=described, seed=job.seed, **_sampling(dataset))
    if (done := dataset.record("respond")) is not None:
        return done
    began = time.time()
    share = respond.Assignment(
        pool=tuple(member.name for member in pool),
        per_speech=settings.per_speech,
        seed=job.seed,
        prompt=prompt,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        root=dataset.root,
    )
    for model in dict.fromkeys(member.model for member in pool if member.model):
        _answer_locally(dataset, [member for member in pool if member.model == model], share, progress)
    spent: dict[str, Any] = {}
    for member in pool:
        if member.api is not None:
            stage = respond.ApiStage(member, share)
            calls = _call(dataset, f"respond: {member.name}", stage, progress)
            spent[member.name] = asdict(calls.stats()) | {"cost": calls.dollars()}
    count = sum(respond.merge(pool, share, part) for part in dataset.speeches())
    _log.info(f"respond: {count} responses by {len(pool)} models")
    return dataset.finish("respond", began, responses=count, calls=spent)


def rate(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Ratings of the responses, principle by principle."""
    job, settings = dataset.job, dataset.job.rate
    prompts = dataset.prompts()
    prompt, principles = prompts.entry("rate", *rating.PLACEHOLDERS), prompts.principles()
    dataset.begin("rate", "rate", prompt=key_of(prompt), principles=key_of(principles), seed=job.seed)
    if (done := dataset.record("rate")) is not None:
        return done
    stage = rating.RateStage(
        endpoint=settings.endpoint,
        attempts=settings.attempts,
        max_tokens=settings.max_tokens,
        rationale_chars=settings.rationale_chars,
        seed=job.seed,
        prompt=prompt,
        principles=principles,
        root=dataset.root,
    )
    return _ask(dataset, "rate", time.time(), stage, progress)


def pair(dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Preference pairs; made anew every time, for it takes seconds."""
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


def _call(dataset: Dataset, what: str, stage: CallStage, progress: Progress) -> CallRun:
    """Run the missing parts of a stage within what is left of `max_cost`."""
    calls = CallRun(what, stage, list(dataset.speeches()), dataset.journal)
    limit = dataset.job.max_cost
    dataset.spent += calls.execute(None if limit is None else limit - dataset.spent, progress, dataset.connect)
    return calls


def _answer_locally(
    dataset: Dataset, sharers: list[respond.ResponderModel], share: respond.Assignment, progress: Progress
) -> None:
    """Let one open model answer the shares of its members: each engine loads it once."""
    import ray

    from psyco_ray.pool import fit, placement
    from psyco_ray.rollout.actor import actor_environment

    given = dataset.job.respond.rollouts.model_dump() | sharers[0].rollouts
    settings = job_file.parse(Rollouts, given, f"pool member {sharers[0].name}: rollouts")
    done = set.intersection(*(set(shards.list_shards(share.out(member))) for member in sharers))
    missing = [part for part in dataset.speeches() if part not in done]
    if not missing:
        return
    dataset.connect()
    bundles = _bundles(missing, share, sharers, settings.max_num_seqs)
    workers = min(settings.actors, len(bundles))
    fit.check(
        "respond",
        [fit.Role("engine", workers, settings.cpus, settings.gpus, settings.role)],
        fit.cluster_nodes(),
    )
    options = placement.pool_options(settings, actor_environment(settings))
    del options["max_restarts"], options["scheduling_strategy"]
    stream = ray.data.from_items(
        [{"parts": bundle} for bundle in bundles], override_num_blocks=len(bundles)
    ).map_batches(
        respond.Responder,
        fn_constructor_args=(sharers, share, settings),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        **options,
    )
    for _ in progress.track(stream.iter_rows(), f"respond: {sharers[0].model}", len(bundles)):
        pass


def _bundles(
    missing: list[str], share: respond.Assignment, sharers: list[respond.ResponderModel], width: int
) -> list[str]:
    """Parts put together so that a member's share keeps its engine full: four times what it decodes at once."""
    bundles, current, prompts = list[str](), list[str](), 0
    for part in missing:
        current.append(part)
        prompts += max(len(share.of(member, part)) for member in sharers)
        if prompts >= 4 * width:
            bundles.append(" ".join(current))
            current, prompts = [], 0
    return [*bundles, " ".join(current)] if current else bundles


def _sampling(dataset: Dataset) -> dict[str, Any]:
    settings = dataset.job.respond
    return settings.model_dump(include={"per_speech", "temperature", "top_p", "max_tokens"}) | {
        "dtype": settings.rollouts.dtype
    }
