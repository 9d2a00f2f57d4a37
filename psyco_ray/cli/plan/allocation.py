"""The best split of GPUs over the roles: the one with the shortest iteration among those that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

from psyco_ray.cli.plan.cost_model import GpuSplit, ModelShape, Profile, Scenario, forecast, reward_models
from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Job

_USABLE = 0.9  # share of a GPU's memory that a plan may use


def learner_bytes(job: Job, shape: ModelShape, ranks: int, zero_stage: int) -> float:
    """Bytes of one rank: bfloat16 weights and gradients, float32 weights and both moments, activations, logits."""
    # bytes per parameter: on every rank, and partitioned over all ranks
    replicated, partitioned = {0: (16, 0), 1: (4, 12), 2: (2, 14), 3: (0, 16)}[zero_stage]
    settings = job.learners
    # checkpointing keeps only each layer's input, else about 34 bytes per hidden unit (Korthikanti et al. 2022)
    activations = (
        settings.micro_batch_tokens * shape.layers * shape.hidden * (2 if settings.gradient_checkpointing else 34)
    )
    logits = settings.logit_rows * shape.vocabulary * 4 * 2
    return shape.parameters * (replicated + partitioned / ranks) + activations + logits


def allocate(job: Job, shape: ModelShape, profile: Profile, gpus: int, response_tokens: float) -> GpuSplit:
    """The split of `gpus` GPUs with the shortest iteration; it uses all of them and every role fits its memory.

    The job's ZeRO stage is kept if the learner fits with it on any number of ranks, else the next stage that fits.

    Raises:
        InputError: the GPUs do not hold the roles, or the profile is not of a GPU.
    """
    if profile.kind != "gpu" or profile.memory_gb is None:
        raise InputError(f"the profile of {profile.device} is not of a GPU; name another with --device")
    room = profile.memory_gb * 1e9 * _USABLE
    engine = 2 * shape.parameters + job.rollouts.kv_cache_gb * 2**30
    each = max(1, math.ceil(job.rollouts.gpus), 2 ** math.ceil(math.log2(engine / room)))
    models = len(reward_models(job)) + (job.dpo.reference == "base")
    scorer = 2 * shape.parameters * models
    if scorer > room:
        raise InputError(
            f"a scorer needs {scorer / 1e9:.0f} GB for {models} models of the size of {shape.name}, and a GPU of "
            f"{profile.device} offers {room / 1e9:.0f}; set dpo.reference=previous or name smaller reward models"
        )
    max_ranks = min(gpus - each - 1, job.dpo.optimizer.batch_size)
    for stage in range(job.learners.zero_stage, 4):
        fitting = [ranks for ranks in range(1, max_ranks + 1) if learner_bytes(job, shape, ranks, stage) <= room]
        splits = list(_splits(gpus, each, fitting, stage))
        if splits:
            return min(splits, key=lambda s: forecast(Scenario(job, shape, profile, s, response_tokens)).seconds)
    ranks = max(max_ranks, 1)
    least = f"{learner_bytes(job, shape, ranks, 3) / 1e9:.0f} GB on each of {ranks} ranks"
    raise InputError(
        f"{gpus} GPUs do not hold {shape.name}: beside one engine (GPUs: {each}) and one scorer the learner needs "
        f"{least}, and a GPU of {profile.device} offers {room / 1e9:.0f}; use more GPUs, or set "
        "learners.gradient_checkpointing=true or a smaller learners.micro_batch_tokens"
    )


def _splits(gpus: int, each: int, fitting: list[int], stage: int) -> Iterator[GpuSplit]:
    """All splits that use every GPU."""
    for learners in fitting:
        for scorers in range(1, gpus - learners - each + 1):
            rollouts, unused = divmod(gpus - learners - scorers, each)
            if not unused:
                yield GpuSplit(rollouts, scorers, learners, each, stage)
