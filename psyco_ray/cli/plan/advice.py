"""The forecast that ``psyco-ray plan`` prints, and its advice from a finished run."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from typing import Any

import yaml

from psyco_ray.cli.plan import allocation, cost_model, devices, lengths
from psyco_ray.cli.plan.cost_model import Forecast, GpuSplit, Scenario
from psyco_ray.cli.plan.devices import Profile
from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.models.shape import ModelShape, shape_of
from psyco_ray.run import storage

_WORTH_IT = 0.05  # smallest share of an iteration that an advised change saves
_STAGES = ("pairs", "train", "sync", "evaluate")


def forecast(
    job: Job,
    *,
    gpus: int | None = None,
    model: str | None = None,
    device: str | None = None,
    finished: str | None = None,
    cores: int | None = None,
) -> str:
    """The time of an iteration by stage, its assumptions, and advice from a finished run.

    Args:
        job: its settings.
        gpus: number of GPUs to split over the roles; None: the job's own actors.
        model: a policy in place of the job's.
        device: name or file of the profile; None: the packaged CPU profile, or an H100 where the job takes GPUs.
        finished: directory or URI of a run; its mean response length is used, its idle shares are printed.
        cores: cores that all actors share where they compute on CPUs; None: this machine's.

    Raises:
        InputError: the model, device or run is invalid, or the GPUs do not hold the job.
    """
    on_gpu = gpus is not None or job.learners.gpus > 0
    if gpus is not None:
        job = _on_gpus(job)
    profile = devices.profile_of(device or ("h100" if on_gpu else "cpu-2-cores"))
    shape = shape_of(model or job.model)
    records = _records(finished) if finished else []
    tokens = min(float(job.sampling.max_tokens), lengths.RESPONSE_TOKENS)
    if sampled := [record["pairs"]["mean_tokens"] for record in records if record["pairs"]["mean_tokens"]]:
        tokens = sum(sampled) / len(sampled)
    cores = cores or len(os.sched_getaffinity(0)) if profile.kind == "cpu" else None
    scenario, sizes = Scenario(job, shape, profile, cost_model.split_of(job), tokens, cores), ""
    if gpus is not None:
        scenario, sizes = _fitting(job, shape, profile, gpus, tokens)
    result = cost_model.forecast(scenario)
    assumption, share = cost_model.sensitivity(scenario)
    lines = [
        f"{shape.name}: {shape.parameters / 1e9:.3g} billion parameters, on {profile.device}"
        + (" (ESTIMATED, not measured)" if profile.estimated else f" (measured, {profile.model})"),
        _actors(scenario.split) if gpus is None else _proposal(scenario) + sizes,
        _table(result, profile),
        f"{job.iterations} iterations: {_time(job.iterations * result.seconds)}, without starts and reward training",
        f"most sensitive to: a quarter more {assumption} makes an iteration {100 * share:.0f} % longer",
        f"assumed: {scenario.prompt_tokens:.0f} tokens per prompt{_growing(job)} and {tokens:.0f} per response"
        + (f" (measured in {finished})" if sampled else "")
        + f"; rates scaled from {profile.model} by parameter count, with sampling bound by memory bandwidth and "
        "training by operations; reward models as large as the policy; no judge calls",
    ]
    return "\n".join([*lines, *([_lessons_from_run(finished, records)] if finished else [])])


def _growing(job: Job) -> str:
    """What is added to a prompt with each turn of a dialogue."""
    return "" if job.simulate is None else f", {lengths.reply_tokens(job.simulate):.0f} per reply of a client"


def _on_gpus(job: Job) -> Job:
    """The job with every role on GPUs, which have defaults of their own."""
    settings = job.model_dump(exclude_unset=True)
    for role in ("rollouts", "scorers", "learners"):
        if not getattr(job, role).gpus:
            settings[role] = {**settings.get(role, {}), "gpus": 1.0}
    return Job.model_validate(settings)


def _fitting(job: Job, shape: ModelShape, profile: Profile, gpus: int, tokens: float) -> tuple[Scenario, str]:
    """The job on the best split of the GPUs; where its learner does not fit, with smaller passes or checkpointing.

    Returns:
        The scenario, and the sizes that it sets.

    Raises:
        InputError: the GPUs do not hold the job as it is, nor otherwise.
    """

    def on_best_split(changed: Job) -> Scenario:
        return Scenario(changed, shape, profile, allocation.allocate(changed, shape, profile, gpus, tokens), tokens)

    try:
        return on_best_split(job), ""
    except InputError as error:
        refused = error
    fitting = []
    for sizes in ({"micro_batch_tokens": min(4096, job.learners.micro_batch_tokens)}, {"gradient_checkpointing": True}):
        with contextlib.suppress(InputError):
            changed = job.model_copy(update={"learners": job.learners.model_copy(update=sizes)})
            listed = "".join(f" learners.{key}={json.dumps(value)}" for key, value in sizes.items())
            fitting.append((on_best_split(changed), listed))
    if not fitting:
        raise refused
    return min(fitting, key=lambda each: cost_model.forecast(each[0]).seconds)


def _actors(split: GpuSplit) -> str:
    return f"{split.rollouts} rollouts, {split.scorers} scorers, {split.learners} learner ranks"


def _proposal(scenario: Scenario) -> str:
    """The split in the job's own keys."""
    split, profile = scenario.split, scenario.profile
    memory = allocation.learner_bytes(scenario.job, scenario.shape, split.learners, split.zero_stage) / 1e9
    names = "rollout and learner in turn : scorer" if split.colocated else "rollout : scorer : learner"
    clients = allocation.clients_gpus(scenario.job)
    beside = f" (and {clients} of simulated clients)" if clients else ""
    engines, ranks = split.rollouts * split.gpus_per_rollout, "" if split.colocated else f" : {split.learners}"
    keys = " ".join(
        f"{key}={str(value).lower() if value is True else value}"
        for key, value in allocation.settings_of(split).items()
    )
    return (
        f"{split.gpus} GPUs as {names} = {engines} : {split.scorers}{ranks}{beside}; a learner rank takes {memory:.0f} "
        f"of {profile.memory_gb:g} GB\nset {keys}"
    )


def _table(result: Forecast, profile: Profile) -> str:
    rows = [*result.stages.items(), ("an iteration", result.seconds)]
    size, digits, unit = (3600, 3, "h") if profile.kind == "gpu" else (1, 1, "s")
    lines = [
        f"{name:<18}{seconds / size:>10.{digits}f} {unit}{100 * seconds / result.seconds:>6.0f} %"
        for name, seconds in rows
    ]
    idle = ", ".join(f"{role} {100 * share:.0f} %" for role, share in result.idle.items())
    return "\n".join([*lines, f"idle meanwhile: {idle}"])


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 600 else f"{seconds:.1f} s"


def _records(run: str) -> list[dict[str, Any]]:
    """The stage records of each complete iteration of a run.

    Raises:
        InputError: the directory holds none, or a record is damaged.
    """
    records: list[dict[str, Any]] = []
    while True:
        names = {stage: f"iteration-{len(records) + 1:03d}/{stage}.json" for stage in _STAGES}
        data = {stage: storage.read_file(run, name) for stage, name in names.items()}
        if any(text is None for text in data.values()):
            break
        records.append({stage: _parse(text or b"", f"{run}/{names[stage]}") for stage, text in data.items()})
    if not records:
        raise InputError(f"{run} holds no complete iteration; name the run directory of a run that has finished one")
    if any("busy" not in record["evaluate"] for record in records):
        raise InputError(f"{run} was made by an older version, which did not record how long actors were busy")
    return records


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError:  # invalid JSON or UTF-8
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{where} is damaged; name another run")
    return record


def _job_of(run: str) -> Job:
    data = storage.read_file(run, "job.yaml")
    if data is None:
        raise InputError(f"{run} has no job.yaml; name a run directory, not one of its stages")
    try:
        settings = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"job.yaml in {run} cannot be read as YAML; name another run") from None
    return job_file.parse(Job, settings, f"job.yaml in {run}")


def _lessons_from_run(run: str, records: list[dict[str, Any]]) -> str:
    """Idle shares of a run, and the change that shortens its iterations."""
    job = _job_of(run)
    split = cost_model.split_of(job)
    seconds = _mean_seconds(records)
    total = sum(seconds.values())
    busy = {
        role: sum(r[stage]["busy"][role] for r in records for stage in ("pairs", "evaluate")) / len(records)
        for role in ("rollout", "scorer")
    }
    idle = {
        "rollouts": 1 - busy["rollout"] / split.rollouts / total,
        "scorers": 1 - busy["scorer"] / split.scorers / total,
        "learners": 1 - (seconds["train"]) / total,
    }
    shares = ", ".join(f"{role} {100 * max(0.0, share):.0f} %" for role, share in idle.items())
    stages = ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())
    head = f"{run}, mean of {len(records)} iterations: {stages}; idle: {shares}"
    return f"{head}\n{_advise(job, split, seconds, busy)}"


def _mean_seconds(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds of each stage."""

    def seconds_of(stage: str, record: dict[str, Any]) -> float:
        facts = record[stage]
        return facts["export_s"] + facts["load_s"] if stage == "sync" else facts["seconds"]

    return {stage: sum(seconds_of(stage, record) for record in records) / len(records) for stage in _STAGES}


def _advise(job: Job, split: GpuSplit, seconds: dict[str, float], busy: dict[str, float]) -> str:
    """The change to make, in a sentence or two."""
    total = sum(seconds.values())
    longest = max(seconds, key=lambda name: seconds[name])
    share = f"{longest} takes {100 * seconds[longest] / total:.0f} % of an iteration"
    if not job.learners.gpus:
        return (
            f"all roles share the same cores, so other numbers of actors gain little. {share}: fewer tokens there "
            "or more cores shorten it"
        )
    sampling = seconds["pairs"] + seconds["evaluate"]
    best = _balanced(split, busy, sampling, seconds["train"])
    predicted = _rebalanced_s(split, best, busy, sampling, seconds["train"])
    saved = (sampling + seconds["train"] - predicted) / total
    if saved < _WORTH_IT:
        return f"the roles are in balance: no other split of these GPUs saves {100 * _WORTH_IT:.0f} %. {share}"
    now, then = (f"{s.rollouts} : {s.scorers} : {s.learners}" for s in (split, best))
    return (
        f"change rollouts : scorers : learners from {now} to {then}, which shortens an iteration by about "
        f"{100 * saved:.0f} %. {share}"
    )


def _balanced(split: GpuSplit, busy: dict[str, float], sampling: float, train: float) -> GpuSplit:
    """The split of the same GPUs with the shortest iterations; roles that share GPUs go on to share them."""
    each = split.gpus_per_rollout
    if split.colocated:
        splits = [
            replace(split, rollouts=pairs, scorers=split.gpus - pairs, learners=pairs) for pairs in range(1, split.gpus)
        ]
    else:
        splits = [
            replace(split, rollouts=(split.gpus - scorers - learners) // each, scorers=scorers, learners=learners)
            for learners in range(1, split.gpus - each)
            for scorers in range(1, split.gpus - each - learners + 1)
        ]
    return min(splits or [split], key=lambda other: _rebalanced_s(split, other, busy, sampling, train))


def _rebalanced_s(split: GpuSplit, other: GpuSplit, busy: dict[str, float], sampling: float, train: float) -> float:
    """Seconds of sampling and training with another split: work divides evenly, waiting times stay."""
    slowest = max(busy["rollout"] / split.rollouts, busy["scorer"] / split.scorers)
    after = max(busy["rollout"] / other.rollouts, busy["scorer"] / other.scorers)
    return max(0.0, sampling - slowest) + after + train * split.learners / other.learners
