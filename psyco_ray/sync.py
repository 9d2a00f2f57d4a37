"""Weights from the learner to every rollout actor: version, digest, deadline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    import torch

    from psyco_ray.config import Sync
    from psyco_ray.learner import LearnerGroup
    from psyco_ray.pool import ActorPool
    from psyco_ray.records import Example

Bucket = Mapping[str, tuple[np.ndarray, str]]
"""Parameter name -> (its bits as integers, its dtype's name)."""


def as_array(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    """A CPU tensor as an integer array over the same memory (NumPy knows no bfloat16), and its dtype's name."""
    import torch

    bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).numpy(), str(tensor.dtype).removeprefix("torch.")


def as_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """The inverse of `as_array`, without a copy; the memory may be read-only, so copy out of it."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(getattr(torch, dtype))


def digest(buckets: Iterable[Bucket]) -> str:
    """A digest of names, dtypes, shapes and every byte, in whatever order the parameters come.

    It guards against truncated, mixed-up and damaged transfers, not against an adversary.
    """
    lines = sorted(
        f"{name} {dtype} {array.shape} {xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)}"
        for bucket in buckets
        for name, (array, dtype) in bucket.items()
    )
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


@dataclass(frozen=True)
class SyncReport:
    """What a weight update took."""

    version: int
    bytes: int
    export_s: float  # gathering on the learner and writing to the object store
    load_s: float  # until the last rollout actor had them
    gap: float  # largest difference of a probe's log-probability between learner and engines, nats a token


def push(learner: LearnerGroup, rollouts: ActorPool, version: int, probe: Example, settings: Sync) -> SyncReport:
    """Bring the learner's weights to every rollout actor, and check that they arrived and are in use.

    Each actor checks the digest before it loads anything. Then all of them compute the log-probability of one response:
    an engine that keeps a stale copy of a weight would sample from a policy that nobody trains.

    Args:
        learner: has the weights.
        rollouts: gets them.
        version: what they are called from now on.
        probe: a pair whose chosen response is the probe.
        settings: deadline, sizes, largest gap.

    Raises:
        TimeoutError: an actor did not finish in time.
        ValueError: an actor received something else than was sent.
        RuntimeError: an engine computes with other weights than the learner.
    """
    began = time.monotonic()
    weights = learner.export(version, settings.bucket_mb)
    exported = time.monotonic()
    loaded = rollouts.call_all("load_weights", weights, deadline_s=settings.deadline_s)
    done = time.monotonic()
    stale = [index for index, (found, _) in enumerate(loaded) if found != version]
    assert not stale, f"rollout actors {stale} did not take version {version}"
    expected = learner.values([probe])[0][0]
    found = rollouts.call_all("logprob", probe.prompt_ids, probe.chosen_ids, deadline_s=settings.deadline_s)
    gap = max(abs(value - expected) for value in found) / len(probe.chosen_ids)
    if gap > settings.max_gap:
        values = ", ".join(f"{value:.3f}" for value in found)
        raise RuntimeError(
            f"after the update to version {version} the learner gives the probe {expected:.3f} nats and the rollout "
            f"actors give it {values}: {gap:.3f} a token, more than sync.max_gap {settings.max_gap:g}"
        )
    return SyncReport(version, weights.bytes, exported - began, done - exported, gap)
