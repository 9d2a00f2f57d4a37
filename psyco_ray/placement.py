"""The resource plan: what a job takes, whether the cluster holds it, and where its actors go.

Nodes may carry the Ray label ``psyco-ray/role`` with the value rollout, scorer or learner. Where one does, the actors
of that role go to nodes of their role, and all others to nodes of none; where no node has it, actors go anywhere.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from psyco_ray.config.resources import Actors, Learners, Rollouts
from psyco_ray.config.training import Job
from psyco_ray.run import storage

PLACEMENT_DEADLINE_S = 120.0
ROLE_LABEL = "psyco-ray/role"
_ONE_NODE_S = 10.0  # for all ranks on one node, before they may be on several: what is free by then is free


class NoRoom(ValueError):
    """The cluster had no room in time."""


@dataclass(frozen=True)
class Role:
    """A kind of actor in a phase of the job: how many there are and what each takes."""

    name: str
    count: int
    cpus: float
    gpus: float
    label: str | None = None  # of the nodes that it goes to, where nodes have one; None: to any

    @classmethod
    def of(cls, name: str, settings: Actors, times: int = 1) -> Role:
        """The role that a config section describes."""
        return cls(name, settings.actors * times, settings.cpus, settings.gpus, settings.role)


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has."""

    name: str
    cpus: float
    gpus: float
    role: str | None = None  # its label
    id: str = ""


def reward_phase(job: Job, groups: int = 1) -> list[Role]:
    """The actors of reward training, for that many reward models side by side."""
    return [Role.of("reward learner", job.reward.learners, groups), _data(job)]


def iterate_phase(job: Job) -> list[Role]:
    """The actors of iterative DPO; all live from its beginning to its end."""
    if job.colocated:
        room = _shared_room(job)
        both = Role("rollout+learner", job.learners.actors, room["CPU"], room["GPU"], job.learners.role)
        return [both, Role.of("scorer", job.scorers), _data(job)]
    return [
        Role.of("rollout", job.rollouts),
        Role.of("scorer", job.scorers),
        Role.of("learner", job.learners),
        _data(job),
    ]


def _shared_room(job: Job) -> dict[str, float]:
    """What a rollout and a rank that share a GPU take together."""
    pair = job.rollouts, job.learners
    # Ray counts in ten thousandths
    return {"CPU": round(sum(one.cpus for one in pair), 4), "GPU": round(sum(one.gpus for one in pair), 4)}


def _data(job: Job) -> Role:
    return Role("ray data", 1, job.data.cpus, 0)


def cluster_nodes() -> list[Node]:
    """The machines of the Ray cluster, or this machine where Ray is not running."""
    if not ray.is_initialized():
        import torch

        return [Node("this machine", float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))]
    return [
        Node(
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["Labels"].get(ROLE_LABEL),
            node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def check(phase: str, roles: Sequence[Role], nodes: Sequence[Node]) -> None:
    """Make sure that all actors of a phase fit on the machines at once.

    Raises:
        ValueError: naming the first role that finds no room, and what is free.
    """
    places(phase, roles, nodes)


def places(phase: str, roles: Sequence[Role], nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Where the actors of a phase go: ranks to as few machines as possible, others spread, on those of their label.

    Returns:
        The machine of each actor, by role.

    Raises:
        ValueError: naming the first role that finds no room, and what is free.
    """
    cpus = [node.cpus for node in nodes]
    gpus = [[1.0] * int(node.gpus) for node in nodes]  # what is free of each
    labels = _labels(nodes)
    found: dict[str, list[Node]] = {}
    for role in sorted(roles, key=lambda r: (-r.gpus, -r.cpus)):
        taken: Counter[int] = Counter()
        homes = [i for i, node in enumerate(nodes) if _is_home(node, role.label, labels)]
        if role.label == "learner":  # first of all to a machine that holds all of them
            homes.sort(key=lambda i: cpus[i] < role.count * role.cpus or sum(gpus[i]) < role.count * role.gpus)
        for placed in range(role.count):
            room = [i for i in homes if cpus[i] + 1e-9 >= role.cpus and _without(gpus[i], role.gpus) is not None]
            if not room:
                raise ValueError(_no_room(phase, roles, nodes, role, placed))
            chosen = min(room, key=lambda i: taken[i]) if role.label in ("rollout", "scorer") else room[0]
            cpus[chosen] -= role.cpus
            gpus[chosen] = _without(gpus[chosen], role.gpus) or []
            taken[chosen] += 1
            found.setdefault(role.name, []).append(nodes[chosen])
    return found


def _without(free: list[float], wanted: float) -> list[float] | None:
    """What stays free of GPUs when so many are taken, a part always of one GPU; None where they are not to be had."""
    left = sorted(free)
    for share in [1.0] * int(wanted) + [wanted % 1] * (wanted % 1 > 0):
        fitting = next((i for i, one in enumerate(left) if one + 1e-9 >= share), None)
        if fitting is None:
            return None
        left[fitting] -= share
    return left


def _no_room(phase: str, roles: Sequence[Role], nodes: Sequence[Node], role: Role, placed: int) -> str:
    total = _total(roles)
    have = f"{sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs"
    return (
        f"the cluster cannot hold {phase}: it needs {total[0]:g} CPUs and {total[1]:g} GPUs, "
        f"{len(nodes)} node(s) have {have}, and {role.name} {placed + 1} of {role.count} "
        f"({role.cpus:g} CPUs, {role.gpus:g} GPUs each) finds no room{_homes_in_words(role, nodes)}; "
        "lower its number or add nodes"
    )


def _homes_in_words(role: Role, nodes: Sequence[Node]) -> str:
    labels = _labels(nodes)
    if role.label is None or not labels:
        return ""
    if role.label in labels:
        return f" on nodes labelled {ROLE_LABEL}={role.label}"
    return f" on nodes without a role, for none is labelled {ROLE_LABEL}={role.label}"


def selector(label: str | None) -> dict[str, str]:
    """The nodes that actors of a label go to, as Ray's ``label_selector``.

    What labels there are is looked at once in a run: a role whose last node goes away waits for another such node.
    """
    return _selector(label, _first_labels())


def _first_labels() -> frozenset[str]:
    context = ray.get_runtime_context()
    return _look_once(context.gcs_address, context.get_job_id())


@functools.cache
def _look_once(_cluster: str, _driver: str) -> frozenset[str]:
    return _labels(cluster_nodes())


def _labels(nodes: Sequence[Node]) -> frozenset[str]:
    return frozenset(node.role for node in nodes if node.role in ("rollout", "scorer", "learner"))


def _selector(label: str | None, labels: Collection[str]) -> dict[str, str]:
    if label is None or not labels:
        return {}
    return {ROLE_LABEL: label if label in labels else f"!in({','.join(sorted(labels))})"}


def _is_home(node: Node, label: str | None, labels: Collection[str]) -> bool:
    if label is None or not labels:
        return True
    return node.role == label if label in labels else node.role not in labels


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
    have = ", ".join(f"{n.name}{_role_of(n)}: {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes)
    return "\n".join([*lines, f"cluster: {have}"])


def describe_places(phase: str, roles: Sequence[Role], nodes: Sequence[Node]) -> str:
    """Where the actors of a phase go, a line for each role.

    Raises:
        ValueError: naming the first role that finds no room, and what is free.
    """
    lines = []
    for name, found in places(phase, roles, nodes).items():
        role = next(r for r in roles if r.name == name)
        where = ", ".join(f"{count} on {node.name}{_role_of(node)}" for node, count in Counter(found).items())
        if role.label is None:
            where = f"{role.cpus:g} CPUs of any node"
        elif _labels(nodes) and role.label not in _labels(nodes):
            where += f" (no node is labelled {ROLE_LABEL}={role.label})"
        lines.append(f"{phase:<18}{name:<18}{where}")
    return "\n".join(lines)


def _role_of(node: Node) -> str:
    return f" ({node.role})" if node.role else ""


def _total(roles: Sequence[Role]) -> tuple[float, float]:
    return sum(r.count * r.cpus for r in roles), sum(r.count * r.gpus for r in roles)


def actor_environment(settings: Actors) -> dict[str, str]:
    """Environment of an actor's process; nothing of the driver's is passed on."""
    memory = {}
    if not settings.gpus:
        # packed texts have another shape each time, and kernels for a thousand shapes would be kept for all of them
        memory = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}  # the second is torch's own
        if not isinstance(settings, Rollouts):
            # freed memory is kept: to be given fresh pages at every step costs more than some operations. An engine
            # has the same few shapes all the time, and is no slower for giving back what an update of weights took
            memory |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    return {
        **memory,
        "OMP_NUM_THREADS": str(settings.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def pool_options(
    settings: Actors,
    extra_environment: dict[str, str] | None = None,
    rooms: PlacementGroup | None = None,
    index: int = 0,
) -> dict[str, Any]:
    """Ray options of one pool member; it never restarts by itself, for it would come back with the wrong weights.

    Where members share rooms with learner ranks, each goes to the room of its index.
    """
    where = {"scheduling_strategy": "SPREAD", **_selecting(settings)} if rooms is None else _in_room(rooms, index)
    return {
        "num_cpus": settings.cpus,
        "num_gpus": settings.gpus,
        "max_restarts": 0,
        **where,
        "runtime_env": {"env_vars": {**actor_environment(settings), **(extra_environment or {})}},
    }


def writer_options(place: Path) -> dict[str, Any]:
    """Ray options of whoever writes below a path: what lies in the cache is this node's alone, so they run here."""
    if storage.cache_dir().absolute() not in place.absolute().parents:
        return {}
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def shared_rooms(job: Job) -> PlacementGroup:
    """Room for pairs of one rollout and one learner rank, each pair on a GPU of its own.

    Raises:
        NoRoom: the cluster did not have it in time.
    """
    return _group(_shared_room(job), job.learners.actors, job.learners.role, PLACEMENT_DEADLINE_S)


def learner_options(
    settings: Learners, count: int, room_s: float, rooms: PlacementGroup | None = None
) -> tuple[Callable[[int], dict[str, Any]], PlacementGroup | None]:
    """Ray options of each of `count` learner ranks, all on one node where that can be, else on as few as possible.

    Args:
        settings: what each takes.
        count: of ranks.
        room_s: seconds within which the cluster must have room.
        rooms: where they share them with rollouts; None: they get their own.

    Returns:
        The options by rank, and the group that was made for them.

    Raises:
        NoRoom: the cluster did not have room in time.
    """
    bundle = {key: value for key, value in (("CPU", settings.cpus), ("GPU", settings.gpus)) if value}
    own = _group(bundle, count, settings.role, room_s) if bundle and rooms is None else None
    group = rooms if own is None else own

    def options(rank: int) -> dict[str, Any]:
        return {
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "max_restarts": 0,
            **(_selecting(settings) if group is None else _in_room(group, rank)),
            # nothing is compiled; DeepSpeed's optimizers that none of ours is would load the compiler all the same
            "runtime_env": {"env_vars": {**actor_environment(settings), "TORCHDYNAMO_DISABLE": "1"}},
        }

    return options, own


def _in_room(group: PlacementGroup, index: int) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)}


def _selecting(settings: Actors) -> dict[str, Any]:
    found = selector(settings.role)
    return {"label_selector": found} if found else {}


def _group(bundle: dict[str, float], count: int, label: str | None, room_s: float) -> PlacementGroup:
    """Room for `count` bundles on nodes of a label.

    Raises:
        NoRoom: there was none within `room_s` seconds.
    """
    found = selector(label)
    cpus, gpus = count * bundle.get("CPU", 0.0), count * bundle.get("GPU", 0.0)
    homes = [node for node in cluster_nodes() if _is_home(node, label, _first_labels())]
    together_s = min(room_s / 2, _ONE_NODE_S) if any(n.cpus >= cpus and n.gpus >= gpus for n in homes) else 0.0
    for strategy, wait_s in (("STRICT_PACK", together_s), ("PACK", room_s - together_s)):
        if not wait_s:
            continue
        group = placement_group(
            [bundle] * count, strategy=strategy, bundle_label_selector=[found] * count if found else None
        )
        if group.wait(wait_s):
            return group
        ray.util.remove_placement_group(group)
    raise NoRoom(
        f"no room for {count} learner ranks of {bundle} within {room_s:g} s; something else has it: wait for that, or "
        "ask for less"
    )
