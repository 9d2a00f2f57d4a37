"""What `plan` says about the memory of GPUs: the three moments, or the one that does not fit and the way out."""

from __future__ import annotations

from collections.abc import Iterator

from psyco_ray.cli.plan import lengths, memory
from psyco_ray.cli.plan.memory import MOMENTS, ROOM, GpuUse
from psyco_ray.config import gpu_sizes
from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Job
from psyco_ray.models.shape import ModelShape, shape_of
from psyco_ray.rollout import kv_cache
from psyco_ray.run import hub

_LEAST_TOKENS = 1024  # of a pass that is proposed


def uses_gpus(job: Job) -> bool:
    """Whether any role computes on GPUs."""
    clients = job.simulate.client.rollouts.gpus if job.simulate else 0
    return any((job.rollouts.gpus, job.scorers.gpus, job.learners.gpus, job.reward.learners.gpus, clients))


def shape_here(model: str) -> ModelShape:
    """The shape of a model that a job names, without a download.

    Raises:
        InputError: it is not known.
    """
    return shape_of(str(hub.on_this_machine(model) or model))


def gpu_here() -> tuple[float, str] | None:
    """Bytes and name of this machine's first GPU; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties(0)
    return gpu.total_memory, gpu.name


def warnings(job: Job) -> list[str]:
    """What a run says before it starts: that this machine's GPUs are too small for it, or its sizes for them."""
    sentences = gpu_sizes.too_small(job)
    if not uses_gpus(job) or (gpu := gpu_here()) is None:
        return sentences
    try:
        short = shortage(memory.uses_of(job, shape_here(job.model), gpu[0]), gpu[0])
    except InputError:  # an unknown size of the model; an engine without room says so itself
        return sentences
    return [*sentences, f"{short}; it may run out of memory, and psyco-ray plan names a change"] if short else sentences


def describe(job: Job, shape: ModelShape, gpu_bytes: float, device: str) -> str:
    """The table of what every GPU has in use, and the sizes that would leave a GPU without work.

    Args:
        job: its settings.
        shape: of the policy.
        gpu_bytes: of each GPU.
        device: name of the GPU.

    Raises:
        InputError: a GPU does not hold its actors at one of the moments.
    """
    uses = memory.uses_of(job, shape, gpu_bytes)
    if short := shortage(uses, gpu_bytes):
        raise InputError(f"{short}; {_way_out(job, shape, gpu_bytes)}")
    width = max(len(use.tenants) for use in uses)
    rows = [f"{'GB of ' + format(gpu_bytes / 1e9, '.1f') + ' in use':<{width}}" + "".join(f"{m:>9}" for m in MOMENTS)]
    for use in uses:
        cells = (f"{use.total(m) / 1e9:>9.1f}" if m in use.parts else f"{'-':>9}" for m in MOMENTS)
        rows.append(f"{use.tenants:<{width}}" + "".join(cells))
    note = (
        f"calculated for {device}; sizes of reward models are read from their directories or names, else the policy's"
    )
    sentences = [*gpu_sizes.too_small(job), *_small_cache(job, shape), *_needless_recomputing(job, shape, gpu_bytes)]
    return "\n".join([*rows, note, *(f"warning: {text}" for text in sentences)])


def shortage(uses: list[GpuUse], gpu_bytes: float) -> str | None:
    """The GPU and moment that take most beyond its memory, with the largest parts; None if all fit."""
    worst = max(uses, key=lambda use: use.total(use.peak))
    needed = worst.total(worst.peak)
    if needed <= ROOM * gpu_bytes:
        return None
    parts = sorted(worst.parts[worst.peak].items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts if size >= 0.05e9)
    return (
        f"a GPU with {worst.tenants} needs {needed / 1e9:.1f} GB at the moment `{worst.peak}` ({listed}), and of its "
        f"{gpu_bytes / 1e9:.1f} GB {ROOM * gpu_bytes / 1e9:.1f} may be used"
    )


def _way_out(job: Job, shape: ModelShape, gpu_bytes: float) -> str:
    """The first change after which the job fits."""
    for text, changed in _changes(job):
        try:
            uses = memory.uses_of(changed, shape, gpu_bytes)
        except InputError:  # no room for a cache either
            continue
        if shortage(uses, gpu_bytes) is None:
            return f"set {text}"
    return "use more learner ranks (learners.actors with learners.zero_stage=3), larger GPUs or a smaller model"


def _changes(job: Job) -> Iterator[tuple[str, Job]]:
    """Changes of a job in the order in which they cost least, alone and each with those before."""
    together, texts = job, list[str]()
    for text, changed in _single_changes(job):
        yield text, changed(job)
    for text, changed in _single_changes(job):
        together, texts = changed(together), [*texts, text]
        if len(texts) > 1:
            yield " ".join(texts), together


def _single_changes(job: Job) -> Iterator[tuple[str, _Change]]:
    if job.rollouts.gpus and job.rollouts.kv_cache_gb is not None:
        yield "rollouts.kv_cache_gb=null", _Change("rollouts", kv_cache_gb=None)
    for section, learners in (("learners", job.learners), ("reward.learners", job.reward.learners)):
        if learners.gpus:
            yield from _of_learners(section, learners)
    if 0 < job.scorers.gpus < 1:
        yield "scorers.gpus=1", _Change("scorers", gpus=1.0)


def _of_learners(section: str, learners: Learners) -> Iterator[tuple[str, _Change]]:
    if not learners.gradient_checkpointing:
        yield f"{section}.gradient_checkpointing=true", _Change(section, gradient_checkpointing=True)
    if (tokens := learners.micro_batch_tokens // 2) >= _LEAST_TOKENS:
        yield f"{section}.micro_batch_tokens={tokens}", _Change(section, micro_batch_tokens=tokens)
    if learners.zero_stage < 3 and learners.actors > 1:
        yield f"{section}.zero_stage=3", _Change(section, zero_stage=3)


class _Change:
    """Sets keys of a section of a job."""

    def __init__(self, section: str, **values: object) -> None:
        self._section, self._values = section, values

    def __call__(self, job: Job) -> Job:
        parent, _, name = self._section.rpartition(".")
        owner = getattr(job, parent) if parent else job
        changed = owner.model_copy(update={name: getattr(owner, name).model_copy(update=self._values)})
        return job.model_copy(update={parent: changed}) if parent else changed


def _needless_recomputing(job: Job, shape: ModelShape, gpu_bytes: float) -> list[str]:
    """Sentences about gradient checkpointing that the memory does without."""
    return [
        f"without {section}.gradient_checkpointing, which takes a quarter of the time of training, the memory is enough"
        for section, learners in (("learners", job.learners), ("reward.learners", job.reward.learners))
        if learners.gpus
        and learners.gradient_checkpointing
        and not shortage(
            memory.uses_of(_Change(section, gradient_checkpointing=False)(job), shape, gpu_bytes), gpu_bytes
        )
    ]


def _small_cache(job: Job, shape: ModelShape) -> list[str]:
    """Sentences about a cache that holds fewer sequences than the engine decodes."""
    settings = job.rollouts
    if not settings.gpus or settings.kv_cache_gb is None:
        return []
    tokens = settings.kv_cache_gb * 2**30 / kv_cache.token_bytes(shape, settings)
    typical = lengths.prompt_tokens(job.prompts, job.data) + min(job.sampling.max_tokens, lengths.RESPONSE_TOKENS)
    if tokens >= settings.max_num_seqs * typical:
        return []
    return [
        f"rollouts.kv_cache_gb {settings.kv_cache_gb:g} holds about {tokens / typical:.0f} sequences of {typical:.0f} "
        f"tokens, and rollouts.max_num_seqs is {settings.max_num_seqs}: the GPU waits; leave kv_cache_gb out"
    ]
