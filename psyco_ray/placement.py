"""The resource plan: what a job takes, whether the cluster holds it, and where its actors go."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from psyco_ray.config import Actors, Job, Learners

PLACEMENT_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Role:
    """A kind of actor in a phase of the job: how many there are and what each takes."""

    name: str
    count: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, name: str, settings: Actors, times: int = 1) -> Role:
        """The role that a config section describes."""
        return cls(name, settings.actors * times, settings.cpus, settings.gpus)


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has."""

    name: str
    cpus: float
    gpus: float


def reward_phase(job: Job, groups: int = 1) -> list[Role]:
    """The actors of reward training, for that many reward models side by side."""
    return [Role.of("reward learner", job.reward.learners, groups), _data(job)]


def iterate_phase(job: Job) -> list[Role]:
    """The actors of iterative DPO; all live from its beginning to its end."""
    return [
        Role.of("rollout", job.rollouts),
        Role.of("scorer", job.scorers),
        Role.of("learner", job.learners),
        _data(job),
    ]


def _data(job: Job) -> Role:
    return Role("ray data", 1, job.data.cpus, 0)


def cluster_nodes() -> list[Node]:
    """The machines of the Ray cluster, or this machine where Ray is not running."""
    if not ray.is_initialized():
        import torch

        return [Node("this machine", float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))]
    return [
        Node(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def check(phase: str, roles: Sequence[Role], nodes: Sequence[Node]) -> None:
    """Make sure that all actors of a phase fit on the machines at once.

    Raises:
        ValueError: naming the first role that finds no room, and what is free.
    """
    free = [[node.cpus, node.gpus] for node in nodes]
    for role in sorted(roles, key=lambda r: (-r.gpus, -r.cpus)):
        for placed in range(role.count):
            room = next((f for f in free if f[0] + 1e-9 >= role.cpus and f[1] + 1e-9 >= role.gpus), None)
            if room is None:
                total = _total(roles)
                have = f"{sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs"
                raise ValueError(
                    f"the cluster cannot hold {phase}: it needs {total[0]:g} CPUs and {total[1]:g} GPUs, "
                    f"{len(nodes)} node(s) have {have}, and {role.name} {placed + 1} of {role.count} "
                    f"({role.cpus:g} CPUs, {role.gpus:g} GPUs each) finds no room; lower its number or add nodes"
                )
            room[0] -= role.cpus
            room[1] -= role.gpus


def describe(phases: dict[str, list[Role]], nodes: Sequence[Node]) -> str:
    """The plan as a plain table."""
    lines = [f"{'phase':<18}{'role':<18}{'actors':>7}{'CPUs each':>11}{'GPUs each':>11}{'CPUs':>8}{'GPUs':>8}"]
    for phase, roles in phases.items():
        for role in roles:
            lines.append(
                f"{phase:<18}{role.name:<18}{role.count:>7}{role.cpus:>11g}{role.gpus:>11g}"
                f"{role.count * role.cpus:>8g}{role.count * role.gpus:>8g}"
            )
        cpus, gpus = _total(roles)
        lines.append(f"{phase:<18}{'all':<18}{'':>7}{'':>11}{'':>11}{cpus:>8g}{gpus:>8g}")
    have = ", ".join(f"{n.name}: {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes)
    return "\n".join([*lines, f"cluster: {have}"])


def _total(roles: Sequence[Role]) -> tuple[float, float]:
    return sum(r.count * r.cpus for r in roles), sum(r.count * r.gpus for r in roles)


def actor_environment(settings: Actors) -> dict[str, str]:
    """Environment of an actor's process; nothing of the driver's is passed on."""
    # on the CPU freed memory is kept: to be given fresh pages at every step costs more than some operations
    memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)} if not settings.gpus else {}
    return {
        **memory,
        "OMP_NUM_THREADS": str(settings.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def pool_options(settings: Actors, extra_environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Ray options of one pool member; it never restarts by itself, for it would come back with the wrong weights."""
    return {
        "num_cpus": settings.cpus,
        "num_gpus": settings.gpus,
        "max_restarts": 0,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": {**actor_environment(settings), **(extra_environment or {})}},
    }


def learner_options(settings: Learners) -> tuple[Callable[[int], dict[str, Any]], PlacementGroup | None]:
    """Ray options of each learner rank, in bundles that are packed on as few nodes as possible.

    Raises:
        TimeoutError: the cluster did not have room in time.
    """
    bundle = {key: value for key, value in (("CPU", settings.cpus), ("GPU", settings.gpus)) if value}
    group = placement_group([bundle] * settings.actors, strategy="PACK") if bundle else None
    if group is not None and not group.wait(PLACEMENT_DEADLINE_S):
        ray.util.remove_placement_group(group)
        raise TimeoutError(f"no room for {settings.actors} learner ranks of {bundle} within {PLACEMENT_DEADLINE_S:g} s")

    def options(rank: int) -> dict[str, Any]:
        chosen = {
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": actor_environment(settings)},
        }
        if group is not None:
            chosen["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        return chosen

    return options, group
