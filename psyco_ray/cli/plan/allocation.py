"""The best split of GPUs over the roles: the one with the shortest iteration among those that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from psyco_ray.cli.plan import memory
from psyco_ray.cli.plan.cost_model import GpuSplit, Scenario, forecast
from psyco_ray.cli.plan.devices import Profile
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job
from psyco_ray.learner.memory import rank_memory
from psyco_ray.models.shape import ModelShape
from psyco_ray.rollout import kv_cache


def learner_bytes(job: Job, shape: ModelShape, ranks: int, zero_stage: int) -> float:
    """Bytes of one rank at the peak of its training; see `learner.memory`."""
    settings = job.learners.model_copy(update={"zero_stage": zero_stage, "gpus": max(1.0, job.learners.gpus)})
    return rank_memory(shape, settings, memory.longest_pair(job), ranks).training + memory.CONTEXT_BYTES


def allocate(job: Job, shape: ModelShape, profile: Profile, gpus: int, response_tokens: float) -> GpuSplit:
    """The split of `gpus` GPUs with the shortest iteration; it uses all of them and every role fits its memory.

    Simulated clients keep the GPUs that the job gives them; the split is of the others.

    Engines and ranks have GPUs of their own, or share them in turn where the job's other settings allow it. The job's
    ZeRO stage is kept if the learner fits with it on any number of ranks, else the next stage that fits.

    Raises:
        InputError: the GPUs do not hold the roles, or the profile is not of a GPU.
    """
    gpus -= clients_gpus(job)
    room = memory.ROOM * profile.memory_bytes
    cache = 2**30 * (job.rollouts.kv_cache_gb or 0)
    engine = kv_cache.weight_bytes(shape, job.rollouts) + kv_cache.working_bytes(shape, job.rollouts) + cache
    each = max(1, math.ceil(job.rollouts.gpus), 2 ** math.ceil(math.log2(engine / room)))
    scorer = sum(memory.scorer_parts(job, shape).values())
    if scorer > room:
        raise InputError(
            f"a scorer needs {scorer / 1e9:.0f} GB for its reward models and the reference, and a GPU of "
            f"{profile.device} offers {room / 1e9:.0f}; set dpo.reference=previous or name smaller reward models"
        )
    max_ranks = min(gpus - each - 1, job.dpo.optimizer.batch_size)
    for stage in range(job.learners.zero_stage, 4):
        fitting = [ranks for ranks in range(1, max_ranks + 1) if learner_bytes(job, shape, ranks, stage) <= room]
        splits = [*_apart(gpus, each, fitting, stage), *_in_turn(job, shape, profile, gpus, stage)]
        if splits:
            return min(splits, key=lambda s: forecast(Scenario(job, shape, profile, s, response_tokens)).seconds)
    ranks = max(max_ranks, 1)
    others = f", without the {clients} of simulated clients," if (clients := clients_gpus(job)) else ""
    least = f"{learner_bytes(job, shape, ranks, 3) / 1e9:.0f} GB on each of {ranks} ranks"
    raise InputError(
        f"{max(gpus, 0)} GPUs{others} do not hold {shape.name}: beside one engine (GPUs: {each}) and one scorer the "
        f"learner needs {least}, and a GPU of {profile.device} offers {room / 1e9:.0f}; use more GPUs, or set "
        "learners.gradient_checkpointing=true or a smaller learners.micro_batch_tokens"
    )


def clients_gpus(job: Job) -> int:
    """GPUs of the engines of simulated clients."""
    if job.simulate is None or job.simulate.client.model is None:
        return 0
    return math.ceil(job.simulate.client.rollouts.actors * job.simulate.client.rollouts.gpus)


def settings_of(split: GpuSplit) -> dict[str, Any]:
    """A split in a job's own keys."""
    share = 0.5 if split.colocated else 1
    keys: dict[str, Any] = {"colocated": True} if split.colocated else {}
    return keys | {
        "rollouts.actors": split.rollouts,
        "rollouts.gpus": 0.5 if split.colocated else split.gpus_per_rollout,
        "rollouts.tensor_parallel": split.gpus_per_rollout,
        "scorers.actors": split.scorers,
        "scorers.gpus": 1,
        "learners.actors": split.learners,
        "learners.gpus": share,
        "learners.zero_stage": split.zero_stage,
    }


def placed(job: Job, split: GpuSplit) -> Job:
    """The job with the actors of a split.

    Raises:
        ValueError: the job's other settings contradict the split.
    """
    settings = job.model_dump(exclude_unset=True)
    for key, value in settings_of(split).items():
        section, _, name = key.rpartition(".")
        (settings.setdefault(section, {}) if section else settings)[name] = value
    return Job.model_validate(settings)


def _apart(gpus: int, each: int, fitting: list[int], stage: int) -> Iterator[GpuSplit]:
    """All splits that use every GPU, without two actors on one."""
    for learners in fitting:
        for scorers in range(1, gpus - learners - each + 1):
            rollouts, unused = divmod(gpus - learners - scorers, each)
            if not unused:
                yield GpuSplit(rollouts, scorers, learners, each, stage)


def _in_turn(job: Job, shape: ModelShape, profile: Profile, gpus: int, stage: int) -> Iterator[GpuSplit]:
    """All splits that fit with an engine and a rank on each GPU that has no scorer."""
    for pairs in range(1, min(gpus - 1, job.dpo.optimizer.batch_size) + 1):
        split = GpuSplit(pairs, gpus - pairs, pairs, 1, stage, colocated=True)
        try:
            uses = memory.uses_of(placed(job, split), shape, profile.memory_bytes)
        except ValueError:  # pools that grow, several GPUs an engine, NCCL, or no room for a KV cache
            continue
        shared = [use for use in uses if "rollout" in use.tenants]
        if all(use.total(use.peak) <= memory.ROOM * profile.memory_bytes for use in shared):
            yield split
