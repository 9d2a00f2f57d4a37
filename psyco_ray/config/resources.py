"""The roles of a run: how many actors each has, what each takes, how weights get from learner to rollouts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config.job_file import Count, NotNegative, Positive, Section

Transport = Literal["object_store", "nccl", "ipc"]


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 itself; where it does not, float32 is several times as fast."""
    told = Path("/proc/cpuinfo")
    return told.exists() and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(told.read_text().split())


def fast_dtype(given: dict[str, Any]) -> Literal["bfloat16", "float32"]:
    """The dtype that a role with these settings multiplies matrices in, unless told otherwise."""
    return "bfloat16" if given.get("gpus") or cpu_has_bfloat16() else "float32"


class Actors(Section):
    """How many actors a role has and what each of them takes."""

    role: ClassVar[str | None] = None  # label of the nodes that they go to, where nodes have one
    actors: Count = 1
    cpus: NotNegative = 1.0  # logical CPUs that Ray reserves for each
    gpus: NotNegative = 0.0  # 0: this role computes on the CPU
    threads: Count = 1  # compute threads of each on the CPU


class Autoscale(Section):
    """Bounds of a pool that grows while it has work; the cluster's autoscaler is asked for the nodes."""

    min: Count = 1  # between the phases
    max: Count

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"autoscale.min {self.min} is above autoscale.max {self.max}")
        return self


class PoolConfig(Actors):
    """Actors whose number may change while a run goes on; `actors` is the number it begins with."""

    autoscale: Autoscale | None = None  # None: as many as `actors`, or as `psyco-ray scale` asks for


class Learners(Actors):
    """The DeepSpeed ranks; `actors` is their number."""

    role: ClassVar[str | None] = "learner"
    # of the compute; master weights are float32. Default: bfloat16, but float32 on a CPU that has no bfloat16
    dtype: Literal["bfloat16", "float32"] = Field(default_factory=fast_dtype)
    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch_tokens: Count = 4096  # tokens that one forward and backward pass holds, each rank
    logit_rows: Count = 1024  # response positions whose logits exist at a time
    gradient_checkpointing: bool = False


class Rollouts(PoolConfig):
    """The vLLM engines that sample responses."""

    role: ClassVar[str | None] = "rollout"
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default_factory=fast_dtype)  # as a learner's
    max_model_len: Count = 2048  # tokens of prompt and response
    max_num_seqs: Count = 128  # sequences decoded together
    kv_cache_gb: Positive = 1.0  # of each engine
    block_size: Count | None = None  # tokens of a KV block; None: 32 on the CPU, the engine's default on a GPU
    enforce_eager: bool = True
    tensor_parallel: Count = 1  # GPUs of one engine
    speeches_per_item: Count = 16  # speeches an engine takes at a time


class Scorers(PoolConfig):
    """The frozen models that turn texts into numbers: rewards and reference log-probabilities."""

    role: ClassVar[str | None] = "scorer"
    dtype: Literal["bfloat16", "float16", "float32"] = Field(default_factory=fast_dtype)  # as a learner's
    row_tokens: Count = 1024  # that one forward pass holds; a GPU likes 8192
    reward_model: str | None = None  # ranks the responses that train the policy
    heldout_model: str | None = None  # only judges; never used for training
    safety_model: str | None = None  # vetoes: a response that it puts below the worst is never the chosen one


class Sync(Section):
    """Weights from the learner to the rollouts."""

    transport: Transport | None = None  # None: ipc where they share GPUs, else object_store
    deadline_s: Positive = 300.0
    bucket_mb: Count = 1024  # largest piece that weights are moved in, MiB
    deltas: bool = False  # send only what changed; every engine holds a copy of the weights in host memory for it
    max_gap: Positive = 0.1  # nats a token that engine and learner may differ by (bf16 differs by about 0.02)


def transport_of(colocated: bool, sync: Sync) -> Transport:
    """How weights get from the learner to the rollouts: as asked for, else by what needs no other setting.

    NCCL is the fast way between GPUs of several machines, and has not been measured there yet: it is asked for by name.
    """
    return sync.transport or ("ipc" if colocated else "object_store")


def check_sharing(colocated: bool, rollouts: Rollouts, learners: Learners, sync: Sync) -> None:
    """Make sure that rollouts and ranks can share GPUs where they shall, and that the transport connects them.

    Raises:
        ValueError: naming the keys that do not go together, and the way out.
    """
    if sync.deltas and transport_of(colocated, sync) != "object_store":
        raise ValueError("sync.deltas goes with sync.transport object_store; take that, or leave sync.deltas out")
    if not colocated:
        if 0 < learners.gpus < 1:
            raise ValueError(f"learners.gpus is {learners.gpus}; a rank needs whole GPUs, unless it is colocated")
        if sync.transport == "ipc":
            raise ValueError("sync.transport ipc hands memory over within a GPU; it needs colocated: true")
        if sync.transport == "nccl" and min(rollouts.gpus, learners.gpus) < 1:
            raise ValueError(
                "sync.transport nccl connects processes that each have whole GPUs, not "
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
            f"colocated puts one engine and one rank on each GPU: make rollouts.actors ({rollouts.actors}) and "
            f"learners.actors ({learners.actors}) equal"
        )
    for key, wrong, instead in (
        ("rollouts.tensor_parallel", rollouts.tensor_parallel > 1, "1, for an engine has the GPU of its rank alone"),
        ("rollouts.autoscale", rollouts.autoscale is not None, "none, for there are as many engines as ranks"),
        ("learners.zero_stage", learners.zero_stage == 0, "1, 2 or 3, whose states can leave the GPU for the engine"),
    ):
        if wrong:
            raise ValueError(f"colocated needs {key} {instead}")
