"""The roles of a run: actors, their resources, and the transport of weights from learner to rollouts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from psyco_ray.config.job_file import Count, NotNegative, Positive, Section

Transport = Literal["object_store", "nccl", "ipc", "gloo", "shared_memory"]
Attention = Literal["auto", "sdpa", "flex", "varlen"]
T = TypeVar("T")


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU has bfloat16 instructions; on one without, float32 is several times faster."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpuinfo.read_text().split())


def fast_dtype(settings: dict[str, Any]) -> Literal["bfloat16", "float32"]:
    """The default compute dtype of a role with these settings."""
    return "bfloat16" if settings.get("gpus") or cpu_has_bfloat16() else "float32"


def by_device(on_cpu: T, on_gpu: T) -> Callable[[dict[str, Any]], T]:
    """The factory of a default that depends on whether the role computes on GPUs."""
    return lambda settings: on_gpu if settings.get("gpus") else on_cpu


class Actors(Section):
    """The actors of a role and the resources of each."""

    role: ClassVar[str | None] = None
    """Value of the node label that the actors are placed by, where nodes have it."""
    actors: Count = 1
    """Number of actors."""
    cpus: NotNegative = 1.0
    """Logical CPUs that Ray reserves for each."""
    gpus: NotNegative = 0.0
    """GPUs of each; 0: the role computes on the CPU."""
    threads: Count = 1
    """Compute threads of each on the CPU."""


class Autoscale(Section):
    """Bounds of a pool that grows while it has work and requests nodes from the cluster's autoscaler."""

    min: Count = 1
    """Actors between phases."""
    max: Count
    """Actors while there is work."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"autoscale.min {self.min} is above autoscale.max {self.max}")
        return self


class PoolConfig(Actors):
    """Actors whose number may change during a run, which starts with `actors`."""

    autoscale: Autoscale | None = None
    """Bounds of the number of actors; null: `actors`, or what `psyco-ray scale` requests."""

    @property
    def groups_together(self) -> int:
        """Groups in a result of an engine, and rows in a call of a scorer, at most: 1, on GPUs 16.

        A call and its result cost the driver about half a millisecond, which is little beside a group on a CPU, and
        much beside one of a thousand GPUs.
        """
        return 16 if self.gpus else 1


class Learners(Actors):
    """The DeepSpeed ranks."""

    role: ClassVar[str | None] = "learner"
    dtype: Literal["bfloat16", "float32"] = Field(default_factory=fast_dtype)
    """Compute dtype; master weights are float32. Default: bfloat16, or float32 on a CPU without bfloat16."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: 1 partitions the optimizer's states, 2 also gradients, 3 also weights."""
    micro_batch_tokens: Count = Field(default_factory=by_device(4096, 8192))
    """Tokens of one forward and backward pass, per rank. Default: 4096, on GPUs 8192."""
    logit_rows: Count = 1024
    """Response positions whose logits are in memory at a time."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    attention: Attention = "auto"
    """Kernel of attention. auto: on a CPU the project's own; on a GPU sdpa, over padded rows with a mask. flex skips
    masked blocks and is compiled at first use; varlen is flash attention without padding, for models without sliding
    windows, in bfloat16. flex and varlen need GPUs and have no dropout."""

    @model_validator(mode="after")
    def _attention_runs(self) -> Self:
        if self.attention == "flex" and not self.gpus:
            raise ValueError("learners.attention flex has no gradients on a CPU; leave it out, or set learners.gpus")
        _check_varlen("learners", self.attention, self.gpus, self.dtype)
        return self


class Rollouts(PoolConfig):
    """The vLLM engines that sample responses."""

    role: ClassVar[str | None] = "rollout"
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default_factory=fast_dtype)
    """Compute dtype. Default: as a learner's."""
    max_model_len: Count = 2048
    """Tokens of prompt and response."""
    max_num_seqs: Count = Field(default_factory=by_device(128, 256))
    """Sequences that are decoded together. Default: 128, on GPUs 256."""
    kv_cache_gb: Positive | None = Field(default_factory=by_device(1.0, None))
    """KV cache of each engine, GiB; of several GPUs, on each of them. Default: 1, on GPUs null: what weights and
    working memory leave of the engine's part of the GPU, less a tenth; see `rollout.kv_cache`. On a CPU prompts wait
    for room in it."""
    block_size: Count | None = None
    """Tokens of a KV cache block; null: 32 on the CPU, the engine's default on a GPU."""
    enforce_eager: bool = Field(default_factory=by_device(True, False))
    """Skip compilation and CUDA graphs: faster start, slower decoding on GPUs. Default: true, on GPUs false."""
    tensor_parallel: Count = 1
    """GPUs of one engine."""
    speeches_per_item: Count = Field(default_factory=by_device(16, 32))
    """Speeches of one work item of an engine. Default: 16, on GPUs 32."""
    feed: Literal["continuous", "items"] = Field(default_factory=by_device("items", "continuous"))
    """continuous: an engine gets the next items while it samples, so that it does not wait for the longest response,
    and keeps cached prefixes until the weights change, for the next turns of a dialogue; items: one at a time, each
    with an empty cache, so that a resumed run samples bitwise the same. Default: items, on GPUs continuous."""

    @model_validator(mode="after")
    def _cache_has_a_size(self) -> Self:
        if self.kv_cache_gb is None and not self.gpus:
            raise ValueError("rollouts.kv_cache_gb null is for engines on GPUs; give its GiB, or leave it out")
        return self


class Scorers(PoolConfig):
    """The frozen models that compute rewards and reference log-probabilities."""

    role: ClassVar[str | None] = "scorer"
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default_factory=fast_dtype)
    """Compute dtype. Default: as a learner's."""
    row_tokens: Count = Field(default_factory=by_device(1024, 8192))
    """Tokens of one forward pass. Default: 1024, on GPUs 8192."""
    attention: Attention = "auto"
    """Kernel of attention, as a learner's; flex runs on a CPU too, slowly."""
    reward_model: str | None = None
    """Reward model that ranks the responses for training: a directory, its URI or a hub id (owner/name,
    or owner/name@revision)."""
    heldout_model: str | None = None
    """Reward model that only judges checkpoints and never takes part in training."""
    safety_model: str | None = None
    """Reward model with a veto: a response that it scores below the worst one is never chosen."""

    @model_validator(mode="after")
    def _attention_runs(self) -> Self:
        if self.attention == "flex" and self.gpus > 1:
            raise ValueError(
                "scorers.attention flex keeps its mask on one GPU; leave it out where scorers.gpus is more"
            )
        _check_varlen("scorers", self.attention, self.gpus, self.dtype)
        return self


def _check_varlen(role: str, attention: Attention, gpus: float, dtype: str) -> None:
    """Check that flash attention runs.

    Raises:
        ValueError: naming the keys, and the way out.
    """
    if attention == "varlen" and not gpus:
        raise ValueError(f"{role}.attention varlen runs on GPUs alone; leave it out, or set {role}.gpus")
    if attention == "varlen" and dtype == "float32":
        raise ValueError(f"{role}.attention varlen has no float32; choose {role}.dtype bfloat16, or leave it out")


class Sync(Section):
    """Weight transfer from the learner to the rollouts."""

    transport: Transport | None = None
    """null: ipc where engines and ranks share GPUs, else object_store. nccl needs whole GPUs for both. gloo and
    shared_memory are nccl and ipc for roles on CPUs; shared_memory needs both on one node."""
    deadline_s: Positive = 300.0
    """Seconds that one weight update may take."""
    bucket_mb: Count = 1024
    """Largest chunk of weights in a transfer, MiB."""
    deltas: bool = False
    """Send only changed weights; every engine keeps a copy of the weights in host memory for it."""
    max_gap: Positive = 0.1
    """Largest difference of engine and learner on a probe, nats per token (bfloat16 differs by about 0.02)."""


def transport_of(colocated: bool, sync: Sync) -> Transport:
    """The transport of weights: the job's, else one that needs no other setting.

    NCCL is the fast transport between GPUs of several machines, but not yet measured there: it has to be set by name.
    """
    return sync.transport or ("ipc" if colocated else "object_store")


def check_sharing(colocated: bool, rollouts: Rollouts, learners: Learners, sync: Sync) -> None:
    """Check that rollouts and ranks can share GPUs where they are colocated, and that the transport connects them.

    Raises:
        ValueError: naming the keys that contradict each other, and the way out.
    """
    if sync.deltas and transport_of(colocated, sync) != "object_store":
        raise ValueError("sync.deltas needs sync.transport object_store; set that, or leave sync.deltas out")
    if sync.transport in ("gloo", "shared_memory") and (rollouts.gpus or learners.gpus):
        raise ValueError(
            f"sync.transport {sync.transport} connects processes on CPUs, not rollouts.gpus {rollouts.gpus:g} and "
            f"learners.gpus {learners.gpus:g}; leave it out"
        )
    if not colocated:
        if 0 < learners.gpus < 1:
            raise ValueError(f"learners.gpus is {learners.gpus}; a rank needs whole GPUs, unless it is colocated")
        if sync.transport == "ipc":
            raise ValueError("sync.transport ipc shares memory within a GPU; it needs colocated: true")
        if sync.transport == "nccl" and min(rollouts.gpus, learners.gpus) < 1:
            raise ValueError(
                "sync.transport nccl connects processes that have whole GPUs, not "
                f"rollouts.gpus {rollouts.gpus:g} and learners.gpus {learners.gpus:g}; leave it out"
            )
        return
    if sync.transport == "nccl":
        raise ValueError("sync.transport nccl cannot connect two processes on one GPU; leave it out where colocated")
    share = rollouts.gpus + learners.gpus
    if not (rollouts.gpus and learners.gpus and 0.5 < share <= 1):
        raise ValueError(
            "colocated needs rollouts.gpus and learners.gpus that together are more than half a GPU and at most one, "
            f"such as 0.5 each, not {rollouts.gpus:g} and {learners.gpus:g}"
        )
    if rollouts.actors != learners.actors:
        raise ValueError(
            f"colocated puts one engine and one rank on each GPU; make rollouts.actors ({rollouts.actors}) and "
            f"learners.actors ({learners.actors}) equal"
        )
    for key, invalid, needed in (
        ("rollouts.tensor_parallel", rollouts.tensor_parallel > 1, "1, because an engine has only its rank's GPU"),
        ("rollouts.autoscale", rollouts.autoscale is not None, "null, because there are as many engines as ranks"),
        ("learners.zero_stage", learners.zero_stage == 0, "1, 2 or 3, whose states can leave the GPU for the engine"),
    ):
        if invalid:
            raise ValueError(f"colocated needs {key} {needed}")


def check_engine(rollouts: Rollouts, max_tokens: int) -> None:
    """Check that an engine has its GPUs and room for prompts beside responses of `max_tokens`.

    Raises:
        ValueError: naming the keys that contradict each other.
    """
    if rollouts.tensor_parallel > max(1, rollouts.gpus):
        raise ValueError(
            f"rollouts.tensor_parallel {rollouts.tensor_parallel} needs as many rollouts.gpus, not {rollouts.gpus:g}"
        )
    if max_tokens >= rollouts.max_model_len:
        raise ValueError(
            f"sampling.max_tokens {max_tokens} leaves no room for a prompt in rollouts.max_model_len "
            f"{rollouts.max_model_len}"
        )
