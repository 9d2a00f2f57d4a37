"""Whether a cluster's nodes can hold the actors of a job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import ray

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Actors
from psyco_ray.config.training import Job

ROLE_LABEL = "psyco-ray/role"


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
        InputError: naming the first role that finds no room, and what is free.
    """
    places(phase, roles, nodes)


def places(phase: str, roles: Sequence[Role], nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Where the actors of a phase go: ranks to as few machines as possible, others spread, on those of their label.

    Returns:
        The machine of each actor, by role.

    Raises:
        InputError: naming the first role that finds no room, and what is free.
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
                raise InputError(_no_room(phase, roles, nodes, role, placed))
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


def _labels(nodes: Sequence[Node]) -> frozenset[str]:
    return frozenset(node.role for node in nodes if node.role in ("rollout", "scorer", "learner"))


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
        InputError: naming the first role that finds no room, and what is free.
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
