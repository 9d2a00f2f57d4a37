"""Weights as they travel: integer views, digests, and deltas between two versions.

A bucket maps parameter names to their bits as an integer array and the dtype's name, because NumPy has no bfloat16. A
delta holds, for each parameter, the flat positions that changed and their new bits: at the learning rates of preference
learning few weights change in bfloat16 (0.3 % in a step at 5e-7), which pays where weights cross a network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import ray
import xxhash

from psyco_ray.run.types import DeltaRef

if TYPE_CHECKING:
    import torch

Bucket = Mapping[str, tuple[np.ndarray, str]]
"""Parameter name -> (its bits as integers, its dtype's name)."""


def as_array(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    """A CPU tensor as an integer array over the same memory (NumPy knows no bfloat16), and its dtype's name."""
    import torch

    bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).numpy(), str(tensor.dtype).removeprefix("torch.")


def as_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """The inverse of `as_array`, without a copy; the memory may be read-only, so copy out of it."""
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


Delta = dict[str, tuple[np.ndarray, np.ndarray]]
"""Parameter name -> (places in the flat parameter, uint32; the bits there now)."""


LARGEST = 0.5  # of the weights' bytes; with more than this the weights themselves go


class DeltaTracker:
    """Remembers the weights that were exported last, as they lie in Ray's object store."""

    def __init__(self) -> None:
        self._last: tuple[str, list[Bucket]] = "", []

    def changed(self, digest: str, weights: list[Bucket]) -> DeltaRef | None:
        """What is new in these weights, put into the object store; None for the first, or where it is much."""
        (since, old), self._last = self._last, (digest, weights)
        delta = diff(old, weights)
        return None if delta is None else DeltaRef(since, ray.put(delta), size(delta))


def diff(old: Sequence[Bucket], new: Sequence[Bucket]) -> Delta | None:
    """The delta that makes `new` of `old`; None where it is too large to pay, or they are not of one model."""
    before = {name: packed for bucket in old for name, packed in bucket.items()}
    after = {name: packed for bucket in new for name, packed in bucket.items()}
    if _shapes(before) != _shapes(after):
        return None
    room = LARGEST * sum(array.nbytes for array, _ in after.values())
    delta: Delta = {}
    for name, (array, _) in after.items():
        assert array.size < 2**32, "a place has 32 bits"
        flat = array.reshape(-1)
        places = np.flatnonzero(before[name][0].reshape(-1) != flat).astype(np.uint32)
        if len(places):
            delta[name] = places, flat[places]
            room -= size({name: delta[name]})
        if room < 0:
            return None
    return delta


def size(delta: Delta) -> int:
    """Bytes of a delta's arrays."""
    return sum(places.nbytes + values.nbytes for places, values in delta.values())


def apply(delta: Delta, held: dict[str, tuple[np.ndarray, str]]) -> None:
    """Bring held weights, which can be written to, to the delta's version."""
    for name, (places, values) in delta.items():
        held[name][0].reshape(-1)[places] = values


def _shapes(weights: Bucket) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, dtype) for name, (array, dtype) in weights.items()}
