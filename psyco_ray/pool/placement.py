"""Ray options of the actors: resources, environment, and the nodes or placement groups where they go."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Actors, Learners, Rollouts
from psyco_ray.config.training import Job
from psyco_ray.pool.fit import CALLER_LABEL, ROLE_LABEL, cluster_nodes, is_home, shared_bundle, used_labels
from psyco_ray.run import storage

PLACEMENT_DEADLINE_S = 120.0
_ONE_NODE_S = 10.0  # for all ranks on one node, before they may go to several


class PlacementTimeoutError(InputError):
    """The cluster did not have the resources in time."""


def label_selector(label: str | None) -> dict[str, str]:
    """Ray's ``label_selector`` for actors of a label.

    The nodes' labels are read once in a run, so that a role whose last node is lost waits for another such node.
    """
    return _selector(label, _labels())


def _labels() -> frozenset[str]:
    context = ray.get_runtime_context()
    return _labels_at_first_use(context.gcs_address, context.get_job_id())


@functools.cache
def _labels_at_first_use(_cluster: str, _driver: str) -> frozenset[str]:
    return used_labels(cluster_nodes())


def _selector(label: str | None, labels: Collection[str]) -> dict[str, str]:
    if label is None or not labels:
        return {}
    return {ROLE_LABEL: label if label in labels else f"!in({','.join(sorted(labels))})"}


def actor_environment(settings: Actors) -> dict[str, str]:
    """Environment variables of an actor's process; none is inherited from the driver."""
    memory = {}
    if settings.gpus and not isinstance(settings, Rollouts):
        # each pass has a shape of its own, and fixed segments would fragment. An engine's sleep mode does without
        memory = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    elif not settings.gpus:
        # packed texts have a new shape each time; bound the caches of kernels by shape (the second is torch's own)
        memory = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
        if not isinstance(settings, Rollouts):
            # keep freed memory: fresh pages at every step cost more than some operations. An engine has few shapes
            # and is no slower if it returns what a weight update took
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
    bundles: PlacementGroup | None = None,
    index: int = 0,
) -> dict[str, Any]:
    """Ray options of an actor of a pool; Ray does not restart it, because it would have outdated weights.

    Args:
        settings: its resources and label.
        extra_environment: further environment variables.
        bundles: placement group that the pool shares with learner ranks; None: spread over the nodes of the label.
        index: of the actor, and of its bundle.
    """
    where = {"scheduling_strategy": "SPREAD", **_on_label(settings)} if bundles is None else _in_bundle(bundles, index)
    return {
        "num_cpus": settings.cpus,
        "num_gpus": settings.gpus,
        "max_restarts": 0,
        **where,
        "runtime_env": {"env_vars": {**actor_environment(settings), **(extra_environment or {})}},
    }


def writer_options(path: Path) -> dict[str, Any]:
    """Ray options of a process that writes below a path: on this node if the path is in this node's cache."""
    return on_this_node() if storage.cache_dir().absolute() in path.absolute().parents else {}


def caller_options(journal: Path) -> dict[str, Any]:
    """Ray options of a process that calls APIs and writes a journal.

    It goes to this node if the journal is in this node's cache, else to the nodes labelled `caller`, which alone have
    the keys, if there are any.
    """
    here = writer_options(journal)
    if here or all(node.role != CALLER_LABEL for node in cluster_nodes()):
        return here
    return {"label_selector": {ROLE_LABEL: CALLER_LABEL}}


def on_this_node() -> dict[str, Any]:
    """Ray options of a process on this process's node."""
    return {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}


def shared_bundles(job: Job) -> PlacementGroup:
    """A placement group with one bundle for each pair of a rollout actor and a learner rank on the same GPU.

    Raises:
        PlacementTimeoutError: the cluster did not have the resources in time.
    """
    return _reserve(shared_bundle(job), job.learners.actors, job.learners.role, PLACEMENT_DEADLINE_S)


def learner_options(
    settings: Learners, count: int, timeout_s: float, bundles: PlacementGroup | None = None
) -> tuple[Callable[[int], dict[str, Any]], PlacementGroup | None]:
    """Ray options of each learner rank: all on one node if possible, else on as few as possible.

    Args:
        settings: resources of a rank.
        count: number of ranks.
        timeout_s: seconds within which the cluster must have the resources.
        bundles: placement group that the ranks share with rollout actors; None: reserve one.

    Returns:
        The options by rank, and the placement group that was reserved.

    Raises:
        PlacementTimeoutError: the cluster did not have the resources in time.
    """
    bundle = {key: value for key, value in (("CPU", settings.cpus), ("GPU", settings.gpus)) if value}
    reserved = _reserve(bundle, count, settings.role, timeout_s) if bundle and bundles is None else None
    group = bundles if reserved is None else reserved
    # nothing is compiled, but DeepSpeed's unused optimizers would load the compiler
    environment = {**actor_environment(settings), "TORCHDYNAMO_DISABLE": "1"}
    if bundles is not None:
        environment.pop("PYTORCH_ALLOC_CONF", None)  # an engine maps the memory of the rank on its GPU

    def options(rank: int) -> dict[str, Any]:
        return {
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "max_restarts": 0,
            **(_on_label(settings) if group is None else _in_bundle(group, rank)),
            "runtime_env": {"env_vars": environment},
        }

    return options, reserved


def _in_bundle(group: PlacementGroup, index: int) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)}


def _on_label(settings: Actors) -> dict[str, Any]:
    selector = label_selector(settings.role)
    return {"label_selector": selector} if selector else {}


def _reserve(bundle: dict[str, float], count: int, label: str | None, timeout_s: float) -> PlacementGroup:
    """Reserve `count` bundles on the nodes of a label.

    Raises:
        PlacementTimeoutError: after `timeout_s` seconds.
    """
    selector = label_selector(label)
    cpus, gpus = count * bundle.get("CPU", 0.0), count * bundle.get("GPU", 0.0)
    homes = [node for node in cluster_nodes() if is_home(node, label, _labels())]
    one_node_s = min(timeout_s / 2, _ONE_NODE_S) if any(n.cpus >= cpus and n.gpus >= gpus for n in homes) else 0.0
    for strategy, wait_s in (("STRICT_PACK", one_node_s), ("PACK", timeout_s - one_node_s)):
        if not wait_s:
            continue
        group = placement_group(
            [bundle] * count, strategy=strategy, bundle_label_selector=[selector] * count if selector else None
        )
        if group.wait(wait_s):
            return group
        ray.util.remove_placement_group(group)
    raise PlacementTimeoutError(
        f"no room for {count} learner ranks of {bundle} within {timeout_s:g} s; wait until the cluster's other work "
        "ends, or lower learners.actors"
    )
