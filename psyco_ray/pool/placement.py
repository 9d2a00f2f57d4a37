"""The resource plan: what a job takes, whether the cluster holds it, and where its actors go.

Nodes may carry the Ray label ``psyco-ray/role`` with the value rollout, scorer or learner. Where one does, the actors
of that role go to nodes of their role, and all others to nodes of none; where no node has it, actors go anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Actors, Learners, Rollouts
from psyco_ray.config.training import Job
from psyco_ray.pool.fit import ROLE_LABEL, _is_home, _labels, _shared_room, cluster_nodes
from psyco_ray.run import storage

PLACEMENT_DEADLINE_S = 120.0
_ONE_NODE_S = 10.0  # for all ranks on one node, before they may be on several: what is free by then is free


class PlacementTimeoutError(InputError):
    """The cluster had no room in time."""


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


def _selector(label: str | None, labels: Collection[str]) -> dict[str, str]:
    if label is None or not labels:
        return {}
    return {ROLE_LABEL: label if label in labels else f"!in({','.join(sorted(labels))})"}


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
        PlacementTimeoutError: the cluster did not have it in time.
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
        PlacementTimeoutError: the cluster did not have room in time.
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
        PlacementTimeoutError: there was none within `room_s` seconds.
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
    raise PlacementTimeoutError(
        f"no room for {count} learner ranks of {bundle} within {room_s:g} s; something else has it: wait for that, or "
        "ask for less"
    )
