"""What ``psyco-ray plan`` says about time: the forecast of a job in words, and what a finished run teaches."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import yaml

from psyco_ray.cli.plan import cost_model
from psyco_ray.cli.plan.cost_model import Forecast, GpuSplit, ModelShape, Profile
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.run import storage

_WORTH_IT = 0.05  # share of an iteration that a change should save to be named


def forecast(
    job: Job,
    *,
    gpus: int | None = None,
    model: str | None = None,
    device: str | None = None,
    finished: str | None = None,
    cores: int | None = None,
) -> str:
    """How long an iteration of a job takes, stage by stage, what that rests on, and what a finished run teaches.

    Args:
        job: its settings.
        gpus: share out so many; None: the job's own actors.
        model: another policy than the job's.
        device: name or file of the profile; None: this project's CPU, or an H100 where the job takes GPUs.
        finished: directory or URI of a run, whose mean response length is used and whose idle shares are read.
        cores: that all actors share where they compute on CPUs; None: this machine's.

    Raises:
        InputError: model, device or run do not do, or the GPUs do not hold the job.
    """
    on_gpu = gpus is not None or job.learners.gpus > 0
    profile = cost_model.profile_of(device or ("h100" if on_gpu else "cpu-2-cores"))
    shape = cost_model.shape_of(model or job.model)
    records = _records(finished) if finished else []
    tokens = min(float(job.sampling.max_tokens), cost_model.RESPONSE_TOKENS)
    if sampled := [record["pairs"]["mean_tokens"] for record in records if record["pairs"]["mean_tokens"]]:
        tokens = sum(sampled) / len(sampled)
    roles = cost_model.allocate(job, shape, profile, gpus, tokens) if gpus is not None else cost_model.roles_of(job)
    cores = cores or len(os.sched_getaffinity(0)) if profile.kind == "cpu" else None
    found = cost_model.forecast(job, shape, profile, roles, tokens, cores)
    what, share = cost_model.sensitivity(job, shape, profile, roles, tokens, cores)
    lines = [
        f"{shape.name}: {shape.parameters / 1e9:.3g} billion parameters, on {profile.device}"
        + (" (ESTIMATED, not measured)" if profile.estimated else f" (measured, {profile.model})"),
        _shared_out(job, shape, profile, roles) if gpus is not None else _actors(roles),
        _table(found, profile),
        f"{job.iterations} iterations: {_time(job.iterations * found.seconds)}; starts and reward training come on top",
        f"what decides: a quarter more {what} makes an iteration {100 * share:.0f} % longer",
        f"assumed: {cost_model.prompt_tokens(job.prompts):.0f} tokens of a prompt and {tokens:.0f} of a response"
        + (f" (measured in {finished})" if sampled else "")
        + f"; rates carried over from {profile.model} by parameter count, sampling as bound by memory bandwidth and "
        "training by operations; reward models as large as the policy; no calls of a judge",
    ]
    return "\n".join([*lines, *([_taught(finished, records)] if finished else [])])


def _actors(roles: GpuSplit) -> str:
    return f"{roles.rollouts} rollouts, {roles.scorers} scorers, {roles.learners} learner ranks"


def _shared_out(job: Job, shape: ModelShape, profile: Profile, roles: GpuSplit) -> str:
    """The proposal in the job's own keys."""
    memory = cost_model.learner_bytes(job, shape, roles.learners, roles.zero_stage) / 1e9
    return (
        f"{roles.gpus} GPUs as rollout : scorer : learner = {roles.rollouts * roles.gpus_per_rollout} : "
        f"{roles.scorers} : {roles.learners}; a learner rank takes {memory:.0f} of {profile.memory_gb:g} GB\n"
        f"set rollouts.actors={roles.rollouts} rollouts.gpus={roles.gpus_per_rollout} "
        f"rollouts.tensor_parallel={roles.gpus_per_rollout} scorers.actors={roles.scorers} scorers.gpus=1 "
        f"learners.actors={roles.learners} learners.gpus=1 learners.zero_stage={roles.zero_stage}"
    )


def _table(found: Forecast, profile: Profile) -> str:
    rows = [*found.stages.items(), ("an iteration", found.seconds)]
    size, digits, unit = (3600, 3, "h") if profile.kind == "gpu" else (1, 1, "s")
    lines = [
        f"{name:<18}{seconds / size:>10.{digits}f} {unit}{100 * seconds / found.seconds:>6.0f} %"
        for name, seconds in rows
    ]
    idle = ", ".join(f"{role} {100 * share:.0f} %" for role, share in found.idle.items())
    return "\n".join([*lines, f"idle meanwhile: {idle}"])


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 600 else f"{seconds:.1f} s"


def _records(run: str) -> list[dict[str, Any]]:
    """The records of each whole iteration of a run.

    Raises:
        InputError: the directory holds none.
    """
    found: list[dict[str, Any]] = []
    while True:
        stages = ("pairs", "train", "sync", "evaluate")
        texts = {name: storage.read_file(run, f"iteration-{len(found) + 1:03d}/{name}.json") for name in stages}
        given = {name: json.loads(text) for name, text in texts.items() if text is not None}
        if len(given) < len(stages):
            break
        found.append(given)
    if not found:
        raise InputError(f"{run} holds no whole iteration; name the run directory of a run that has finished one")
    if any("busy" not in record["evaluate"] for record in found):
        raise InputError(f"{run} was made by an older version, which did not note how long actors were busy")
    return found


def _taught(run: str, records: list[dict[str, Any]]) -> str:
    """Idle shares of a run, and what would shorten its iterations."""
    text = storage.read_file(run, "job.yaml")
    if text is None:
        raise InputError(f"{run} has no job.yaml; name a run directory, not one of its stages")
    job = Job.model_validate(yaml.safe_load(text))
    roles = cost_model.roles_of(job)
    seconds = _mean_seconds(records)
    sampling = seconds["pairs"] + seconds["evaluate"]
    total = sum(seconds.values())
    busy = {
        role: sum(r[stage]["busy"][role] for r in records for stage in ("pairs", "evaluate")) / len(records)
        for role in ("rollout", "scorer")
    }
    idle = {
        "rollouts": 1 - busy["rollout"] / roles.rollouts / total,
        "scorers": 1 - busy["scorer"] / roles.scorers / total,
        "learners": 1 - (seconds["train"]) / total,
    }
    told = ", ".join(f"{role} {100 * max(0.0, share):.0f} %" for role, share in idle.items())
    stages = ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())
    head = f"{run}, mean of {len(records)} iterations: {stages}; idle: {told}"
    return f"{head}\n{_change(job, roles, seconds, busy, sampling)}"


def _mean_seconds(records: list[dict[str, Any]]) -> dict[str, float]:
    def mean(of: Any) -> float:
        return sum(of(record) for record in records) / len(records)

    return {
        "pairs": mean(lambda r: r["pairs"]["seconds"]),
        "train": mean(lambda r: r["train"]["seconds"]),
        "sync": mean(lambda r: r["sync"]["export_s"] + r["sync"]["load_s"]),
        "evaluate": mean(lambda r: r["evaluate"]["seconds"]),
    }


def _change(job: Job, roles: GpuSplit, seconds: dict[str, float], busy: dict[str, float], sampling: float) -> str:
    """What to change, in a sentence or two."""
    total = sum(seconds.values())
    longest = max(seconds, key=lambda name: seconds[name])
    share = f"{longest} takes {100 * seconds[longest] / total:.0f} % of an iteration"
    if not job.learners.gpus:
        return (
            f"all roles share the same cores, so that other numbers of actors gain little. {share}: fewer tokens "
            "there or more cores shorten it"
        )
    best = _balanced(roles, busy, sampling, seconds["train"])
    predicted = _rebalanced(roles, best, busy, sampling, seconds["train"])
    saved = (sampling + seconds["train"] - predicted) / total
    if saved < _WORTH_IT:
        return f"the roles are in balance: no other split of these GPUs saves {100 * _WORTH_IT:.0f} %. {share}"
    now, then = (f"{r.rollouts} : {r.scorers} : {r.learners}" for r in (roles, best))
    return (
        f"change rollouts : scorers : learners from {now} to {then}, which shortens an iteration by about "
        f"{100 * saved:.0f} %. {share}"
    )


def _balanced(roles: GpuSplit, busy: dict[str, float], sampling: float, train: float) -> GpuSplit:
    """The split of the same GPUs with which such iterations are shortest."""
    each = roles.gpus_per_rollout
    splits = [
        replace(roles, rollouts=(roles.gpus - scorers - learners) // each, scorers=scorers, learners=learners)
        for learners in range(1, roles.gpus - each)
        for scorers in range(1, roles.gpus - each - learners + 1)
    ]
    return min(splits or [roles], key=lambda other: _rebalanced(roles, other, busy, sampling, train))


def _rebalanced(roles: GpuSplit, other: GpuSplit, busy: dict[str, float], sampling: float, train: float) -> float:
    """Seconds of sampling and training after a change: work is shared out evenly, what was waited for stays."""
    slowest = max(busy["rollout"] / roles.rollouts, busy["scorer"] / roles.scorers)
    after = max(busy["rollout"] / other.rollouts, busy["scorer"] / other.scorers)
    return max(0.0, sampling - slowest) + after + train * roles.learners / other.learners
