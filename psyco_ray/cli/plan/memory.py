"""The memory of a job's GPUs at three moments: while it trains, while weights are sent, and while it samples.

A GPU has one actor, or several that share it. What each takes is calculated (`learner.memory`, `rollout.kv_cache`),
never measured; `ROOM` leaves the rest for fragmentation.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from psyco_ray.cli.plan.cost_model import client_shape, reward_models
from psyco_ray.config.resources import Learners
from psyco_ray.config.training import Job
from psyco_ray.learner.memory import rank_memory
from psyco_ray.models.shape import SHAPES, ModelShape, shape_of, value_bytes
from psyco_ray.rollout import kv_cache

MOMENTS = ("train", "sync", "sample")
ROOM = 0.95  # share of a GPU's memory that calculated sizes may take
CONTEXT_BYTES = 0.6e9  # of a process on a GPU: CUDA, its libraries' workspaces
_LOGIT_ROWS = 1024  # of the reference policy
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)

Parts = dict[str, float]
"""Bytes by what takes them."""


@dataclass(frozen=True)
class Tenants:
    """The actors on one GPU."""

    rollouts: int = 0
    ranks: int = 0
    scorers: int = 0
    clients: int = 0

    def __str__(self) -> str:
        counts = {"rollout": self.rollouts, "learner rank": self.ranks}
        counts |= {"scorer": self.scorers, "client": self.clients}
        return " + ".join(name if count == 1 else f"{count} {name}s" for name, count in counts.items() if count)


@dataclass(frozen=True)
class GpuUse:
    """What the actors on one GPU take, by moment."""

    tenants: str
    parts: dict[str, Parts]

    def total(self, moment: str) -> float:
        """Bytes at a moment."""
        return sum(self.parts[moment].values())

    @property
    def peak(self) -> str:
        """The moment that takes most."""
        return max(self.parts, key=self.total)


def uses_of(job: Job, shape: ModelShape, memory: float) -> list[GpuUse]:
    """What a job takes of each kind of its GPUs, in policy training and in the training of its reward models.

    Args:
        job: its settings.
        shape: of the policy.
        memory: bytes of a GPU.

    Raises:
        InputError: an engine's part of a GPU has no room for a KV cache.
    """
    uses = [_use(job, shape, tenants, memory) for tenants in shared_gpus(job)]
    if job.reward.learners.gpus:
        training = _training(shape, job.reward.learners, job.reward.max_tokens)
        uses.append(GpuUse("reward learner rank", {"train": {**training, "CUDA contexts": CONTEXT_BYTES}}))
    return uses


def shared_gpus(job: Job) -> list[Tenants]:
    """The fullest combinations of actors that one GPU may get; Ray puts any that fit together."""
    rollouts, scorers, learners = job.rollouts, job.scorers, job.learners
    clients = job.simulate.client.rollouts if job.simulate and job.simulate.client.model else None
    pools = (rollouts, scorers, *([clients] if clients else []))
    largest = {role: role.autoscale.max if role.autoscale else role.actors for role in pools}
    pair = rollouts.gpus + learners.gpus
    kinds = [
        (Tenants(rollouts=1, ranks=1), pair, rollouts.actors)
        if job.colocated
        else (Tenants(1), rollouts.gpus, largest[rollouts]),
        (Tenants(scorers=1), scorers.gpus, largest[scorers]),
        *([] if job.colocated else [(Tenants(ranks=1), learners.gpus, learners.actors)]),
        *([(Tenants(clients=1), clients.gpus, largest[clients])] if clients else []),
    ]
    apart = [tenants for tenants, gpus, _ in kinds if gpus >= 1]
    kinds = [kind for kind in kinds if 0 < kind[1] < 1]
    counts = [
        count
        for count in itertools.product(*(range(min(most, int(1 / gpus + 1e-9)) + 1) for _, gpus, most in kinds))
        if sum(n * gpus for n, (_, gpus, _) in zip(count, kinds, strict=True)) <= 1 + 1e-9
    ]
    full = [
        c
        for c in counts
        if any(c) and not any(o != c and all(a <= b for a, b in zip(c, o, strict=True)) for o in counts)
    ]
    return [*apart, *(_sum(count, [tenants for tenants, _, _ in kinds]) for count in full)]


def _sum(counts: tuple[int, ...], kinds: list[Tenants]) -> Tenants:
    pairs = list(zip(counts, kinds, strict=True))
    return Tenants(
        sum(n * kind.rollouts for n, kind in pairs),
        sum(n * kind.ranks for n, kind in pairs),
        sum(n * kind.scorers for n, kind in pairs),
        sum(n * kind.clients for n, kind in pairs),
    )


def _use(job: Job, shape: ModelShape, tenants: Tenants, memory: float) -> GpuUse:
    scorer = scorer_parts(job, shape)
    resident = tenants.scorers * (scorer["scorer models"] + CONTEXT_BYTES)
    free = memory - resident - CONTEXT_BYTES * (tenants.rollouts + tenants.ranks + tenants.clients)
    client = _client(job, free, memory) if tenants.clients else {}
    parts: dict[str, Parts] = {}
    for moment in MOMENTS:
        of_roles: list[tuple[int, Parts]] = [(tenants.scorers, scorer)]
        if tenants.ranks:
            of_roles.append((tenants.ranks, _rank(job, shape, moment)))
        if tenants.rollouts:
            of_roles.append((tenants.rollouts, _engine(job, shape, moment, free, memory)))
        of_roles.append((tenants.clients, client))
        contexts = CONTEXT_BYTES * (tenants.rollouts + tenants.ranks + tenants.scorers + tenants.clients)
        taken = {name: n * size for n, role in of_roles if n for name, size in role.items()}
        parts[moment] = {**taken, "CUDA contexts": contexts}
    return GpuUse(str(tenants), parts)


def _training(shape: ModelShape, settings: Learners, longest: int) -> Parts:
    memory = rank_memory(shape, settings, longest)
    return {"learner states": memory.states, "pass and buffers": memory.training - memory.states}


def _rank(job: Job, shape: ModelShape, moment: str) -> Parts:
    longest = longest_pair(job)
    if moment == "train":
        return _training(shape, job.learners, longest)
    memory = rank_memory(shape, job.learners, longest)
    chunk = max(job.sync.bucket_mb * 2**20, memory.gathered)
    whole = 2 * memory.gathered  # and its copy
    gathered: Parts = {"gathered parameter": whole} if job.learners.zero_stage == 3 else {}
    if not job.colocated:
        buffer: Parts = {"chunk sent": chunk} if job.transport == "nccl" else {}
        return {"learner states": memory.states, **(gathered | buffer if moment == "sync" else {})}
    return {"learner weights": memory.weights, **gathered, "chunk sent": chunk} if moment == "sync" else {}


def _engine(job: Job, shape: ModelShape, moment: str, free: float, memory: float) -> Parts:
    settings = job.rollouts
    graphs = {"CUDA graphs": kv_cache.graph_bytes(settings)}
    if job.colocated and moment == "train":
        return graphs  # vLLM keeps them while an engine sleeps
    weights = {"engine weights": kv_cache.weight_bytes(shape, settings), **graphs}
    largest = 2.0 * shape.vocabulary * shape.hidden
    chunk = (2 if job.transport == "nccl" else 1) * max(job.sync.bucket_mb * 2**20, largest)
    received = {"chunk received": chunk} if moment == "sync" else {}
    if job.colocated and moment == "sync":
        return weights | received
    return {
        **weights,
        **received,
        "KV cache": kv_cache.cache_bytes(shape, settings, free, memory, job.colocated),
        "engine activations": kv_cache.working_bytes(shape, settings),
    }


def _client(job: Job, free: float, memory: float) -> Parts:
    """What an engine of a simulated client takes at any moment; its weights never change."""
    shape = client_shape(job)
    assert shape is not None, "clients are on engines"
    assert job.simulate is not None, "the job has clients"
    settings = job.simulate.client.rollouts
    return {
        "client weights": kv_cache.weight_bytes(shape, settings),
        "client's CUDA graphs": kv_cache.graph_bytes(settings),
        "client's KV cache": kv_cache.cache_bytes(shape, settings, free, memory, False),
        "client's activations": kv_cache.working_bytes(shape, settings),
    }


def longest_pair(job: Job) -> int:
    """Tokens of the longest prompt with two responses."""
    return job.rollouts.max_model_len + job.sampling.max_tokens


def scorer_parts(job: Job, shape: ModelShape) -> Parts:
    """What a scorer takes: its models, and activations that its allocator keeps."""
    shapes = [reward_model_shape(name, shape) for name in reward_models(job)]
    if job.dpo.reference == "base":
        shapes.append(shape)
    value = value_bytes(job.scorers.dtype)
    widest = max(shapes, key=lambda each: each.hidden)
    layer = job.scorers.row_tokens * (3 * widest.intermediate + 10 * widest.hidden) * value
    logits = _LOGIT_ROWS * shape.vocabulary * (value + 4) if job.dpo.reference == "base" else 0
    return {"scorer models": value * sum(each.parameters for each in shapes), "scorer activations": layer + logits}


def reward_model_shape(name: str, policy: ModelShape) -> ModelShape:
    """The shape of a reward model: as its directory says, else as its name does ("reward-3b"), else the policy's."""
    if (Path(name) / "config.json").is_file():
        return shape_of(name)
    sizes = [float(size) for size in _SIZE_IN_NAME.findall(name)]
    named = [each for each in SHAPES.values() if sizes and round(each.parameters / 1e9) == round(sizes[-1])]
    return named[0] if named else policy
