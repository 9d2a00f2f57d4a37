"""Whether the nodes of a cluster can hold the actors of a job, and on which nodes the actors go.

Nodes may carry the Ray label ``psyco-ray/role`` with the value rollout, scorer or learner. Actors of a role go to the
nodes with its label, or to nodes without a role's label if none carries it; if no node carries a label, to any node.
Processes that call APIs go to the nodes labelled caller, if there are any.
"""

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
CALLER_LABEL = "caller"
"""Label of the nodes that have keys and may connect to APIs."""
_LABELS = ("rollout", "scorer", "learner")
_SPREAD = ("rollout", "scorer")  # labels of roles whose actors are spread over the nodes
_TOLERANCE = 1e-9  # of sums of CPU and GPU shares


@dataclass(frozen=True)
class Role:
    """The actors of one kind in a phase: their number and the resources of each."""

    name: str
    count: int
    cpus: float
    gpus: float
    label: str | None = None  # of the nodes for these actors; None: any node

    @classmethod
    def from_config(cls, name: str, settings: Actors, groups: int = 1) -> Role:
        """The role of a config section, for a number of groups of actors."""
        return cls(name, settings.actors * groups, settings.cpus, settings.gpus, settings.role)


@dataclass(frozen=True)
class Node:
    """The resources of a machine."""

    name: str
    cpus: float
    gpus: float
    role: str | None = None  # its label
    id: str = ""


def reward_phase(job: Job, groups: int = 1) -> list[Role]:
    """The roles of reward training, for a number of reward models at the same time."""
    return [Role.from_config("reward learner", job.reward.learners, groups), _data(job)]


def iterate_phase(job: Job) -> list[Role]:
    """The roles of iterative DPO; all actors live from its start to its end."""
    scorers, others = Role.from_config("scorer", job.scorers), [_data(job)]
    if job.simulate is not None and job.simulate.client.model is not None:
        others.insert(0, Role.from_config("client", job.simulate.client.rollouts))
    if job.colocated:
        bundle = shared_bundle(job)
        pairs = Role("rollout+learner", job.learners.actors, bundle["CPU"], bundle["GPU"], job.learners.role)
        return [pairs, scorers, *others]
    learners = Role.from_config("learner", job.learners)
    return [Role.from_config("rollout", job.rollouts), scorers, learners, *others]


def shared_bundle(job: Job) -> dict[str, float]:
    """Ray resources of a rollout actor and a learner rank that share a GPU."""
    rollouts, learners = job.rollouts, job.learners
    # Ray counts in ten thousandths
    return {"CPU": round(rollouts.cpus + learners.cpus, 4), "GPU": round(rollouts.gpus + learners.gpus, 4)}


def _data(job: Job) -> Role:
    return Role("ray data", 1, job.data.cpus, 0)


def cluster_nodes() -> list[Node]:
    """The nodes of the Ray cluster, or this machine if Ray is not running."""
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
    """Check that all actors of a phase fit on the nodes at once.

    Raises:
        InputError: names the first actor that does not fit, and the cluster's resources.
    """
    place_actors(phase, roles, nodes)


def place_actors(phase: str, roles: Sequence[Role], nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """The node of each actor of a phase, by role: learner ranks packed on few nodes, rollouts and scorers spread.

    Raises:
        InputError: names the first actor that does not fit, and the cluster's resources.
    """
    free_cpus = [node.cpus for node in nodes]
    free_gpus = [[1.0] * int(node.gpus) for node in nodes]  # of each GPU
    labels = used_labels(nodes)
    placed: dict[str, list[Node]] = {}
    for role in sorted(roles, key=lambda r: (-r.gpus, -r.cpus)):
        count: Counter[int] = Counter()
        homes = [i for i, node in enumerate(nodes) if is_home(node, role.label, labels)]
        if role.label == "learner":  # nodes that hold all ranks first
            cpus, gpus = role.count * role.cpus, role.count * role.gpus
            homes.sort(key=lambda i: free_cpus[i] < cpus or sum(free_gpus[i]) < gpus)
        for index in range(role.count):
            fitting = [
                i
                for i in homes
                if free_cpus[i] + _TOLERANCE >= role.cpus and take_gpus(free_gpus[i], role.gpus) is not None
            ]
            if not fitting:
                raise InputError(_misfit(phase, roles, nodes, role, index))
            chosen = min(fitting, key=lambda i: count[i]) if role.label in _SPREAD else fitting[0]
            free_cpus[chosen] -= role.cpus
            free_gpus[chosen] = take_gpus(free_gpus[chosen], role.gpus) or []
            count[chosen] += 1
            placed.setdefault(role.name, []).append(nodes[chosen])
    return placed


def take_gpus(free: Sequence[float], gpus: float) -> list[float] | None:
    """The free shares of a node's GPUs after an actor took `gpus`; None if they are not free.

    A fraction is taken from one GPU, and from the one with the least free share that fits.
    """
    left = sorted(free)
    for share in [1.0] * int(gpus) + [gpus % 1] * (gpus % 1 > 0):
        gpu = next((i for i, free_share in enumerate(left) if free_share + _TOLERANCE >= share), None)
        if gpu is None:
            return None
        left[gpu] -= share
    return left


def used_labels(nodes: Sequence[Node]) -> frozenset[str]:
    """The role labels that some node carries."""
    return frozenset(node.role for node in nodes if node.role in _LABELS)


def is_home(node: Node, label: str | None, labels: Collection[str]) -> bool:
    """Whether actors of a label go to a node, where `labels` are those of all nodes."""
    if label is None or not labels:
        return True
    return node.role == label if label in labels else node.role not in labels


def describe(phases: dict[str, list[Role]], nodes: Sequence[Node]) -> str:
    """The resources of each role and of the cluster, as a plain table."""
    lines = [f"{'phase':<18}{'role':<18}{'actors':>7}{'CPUs each':>11}{'GPUs each':>11}{'CPUs':>8}{'GPUs':>8}"]
    for phase, roles in phases.items():
        for role in roles:
            lines.append(
                f"{phase:<18}{role.name:<18}{role.count:>7}{role.cpus:>11g}{role.gpus:>11g}"
                f"{role.count * role.cpus:>8g}{role.count * role.gpus:>8g}"
            )
        cpus, gpus = _total(roles)
        lines.append(f"{phase:<18}{'all':<18}{'':>7}{'':>11}{'':>11}{cpus:>8g}{gpus:>8g}")
    cluster = ", ".join(f"{_label(node)}: {node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in nodes)
    return "\n".join([*lines, f"cluster: {cluster}"])


def describe_placement(phase: str, roles: Sequence[Role], nodes: Sequence[Node]) -> str:
    """The nodes of each role's actors, one line for each role.

    Raises:
        InputError: names the first actor that does not fit, and the cluster's resources.
    """
    by_name = {role.name: role for role in roles}
    labels = used_labels(nodes)
    lines = []
    for name, placed in place_actors(phase, roles, nodes).items():
        role = by_name[name]
        where = ", ".join(f"{count} on {_label(node)}" for node, count in Counter(placed).items())
        if role.label is None:
            where = f"{role.cpus:g} CPUs of any node"
        elif labels and role.label not in labels:
            where += f" (no node is labelled {ROLE_LABEL}={role.label})"
        lines.append(f"{phase:<18}{name:<18}{where}")
    return "\n".join(lines)


def _misfit(phase: str, roles: Sequence[Role], nodes: Sequence[Node], role: Role, index: int) -> str:
    cpus, gpus = _total(roles)
    labels, where = used_labels(nodes), ""
    if role.label in labels:
        where = f" on nodes labelled {ROLE_LABEL}={role.label}"
    elif role.label is not None and labels:
        where = f" on nodes without a role, because none is labelled {ROLE_LABEL}={role.label}"
    return (
        f"the cluster cannot hold {phase}: it needs {cpus:g} CPUs and {gpus:g} GPUs, {len(nodes)} node(s) have "
        f"{sum(n.cpus for n in nodes):g} CPUs and {sum(n.gpus for n in nodes):g} GPUs, "
        f"and {role.name} {index + 1} of {role.count} ({role.cpus:g} CPUs, {role.gpus:g} GPUs each) finds "
        f"no room{where}; lower its number or add nodes"
    )


def _label(node: Node) -> str:
    return node.name + (f" ({node.role})" if node.role else "")


def _total(roles: Sequence[Role]) -> tuple[float, float]:
    return sum(r.count * r.cpus for r in roles), sum(r.count * r.gpus for r in roles)
