"""The wire format of weights in Ray's object store: integer views, digests, and deltas between two versions.

A bucket maps parameter names to their bits as an integer array and the dtype's name, because NumPy has no bfloat16. A
delta holds, for each parameter, the flat positions that changed and their new bits: at the learning rates of preference
learning few bfloat16 weights change (0.3 % in a step at 5e-7), so a delta is cheaper to send over a network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import ray
import xxhash

from psyco_ray.run.types import DeltaRef

if TYPE_CHECKING:
    import torch

Bucket = Mapping[str, tuple[np.ndarray, str]]
"""Parameter name -> (its bits as integers, its dtype's name)."""

Delta = dict[str, tuple[np.ndarray, np.ndarray]]
"""Parameter name -> (uint32 positions in the flat parameter, the new bits there)."""

_MAX_DELTA = 0.5  # share of the weights' bytes; above it the weights themselves are sent


def as_array(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    """Return a CPU tensor as an integer array over the same memory, and its dtype's name."""
    import torch

    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).numpy(), str(tensor.dtype).removeprefix("torch.")


def as_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """Invert `as_array` without a copy; the memory may be read-only."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).view(getattr(torch, dtype))


def digest(buckets: Iterable[Bucket]) -> str:
    """Return a digest of names, dtypes, shapes and every byte, independent of the order of parameters.

    It detects truncated, mixed-up and damaged transfers, not an adversary.
    """
    return digest_of(digest_line(name, *packed) for bucket in buckets for name, packed in bucket.items())


def digest_line(name: str, array: np.ndarray, dtype: str) -> str:
    """Return what a digest depends on of a parameter."""
    return f"{name} {dtype} {array.shape} {xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)}"


def digest_of(lines: Iterable[str]) -> str:
    """Return the digest of parameters' lines."""
    return xxhash.xxh3_128_hexdigest("\n".join(sorted(lines)).encode())


def in_buckets(
    parameters: Iterable[tuple[str, tuple[np.ndarray, str]]], size_limit: int, first_limit: int | None = None
) -> Iterator[Bucket]:
    """Yield parameters in buckets of at most so many bytes; a larger parameter is a bucket by itself.

    Args:
        parameters: names and arrays.
        size_limit: bytes.
        first_limit: of the first bucket, bytes; each one after it may have twice as many as that before. None: all have
            the same limit.
    """
    bucket: dict[str, tuple[np.ndarray, str]] = {}
    filled, limit = 0, min(size_limit, first_limit or size_limit)
    for name, (array, dtype) in parameters:
        if bucket and filled + array.nbytes > limit:
            yield bucket
            bucket, filled, limit = {}, 0, min(size_limit, 2 * limit)
        bucket[name] = (array, dtype)
        filled += array.nbytes
    if bucket:
        yield bucket


def stored(buckets: Iterable[Bucket], refs: list[ray.ObjectRef]) -> Iterator[Bucket]:
    """Yield buckets and put each into Ray's object store meanwhile, while the next one is made.

    Args:
        buckets: must not change afterwards.
        refs: takes a reference to each, in order.
    """
    with ThreadPoolExecutor(1, "store") as storing:
        last: list[Future[ray.ObjectRef]] = []  # one at a time, so that memory holds two buckets at most
        for bucket in buckets:
            refs += [future.result() for future in last]
            last = [storing.submit(ray.put, bucket)]
            yield bucket
        refs += [future.result() for future in last]


class DeltaTracker:
    """Keeps the last exported weights, as they lie in Ray's object store, to compute deltas from them."""

    def __init__(self) -> None:
        self._last: tuple[str, list[Bucket]] = "", []

    def update(self, digest: str, weights: list[Bucket]) -> DeltaRef | None:
        """Put the delta from the last weights into the object store and keep the new ones.

        Returns:
            The delta; None for the first weights, and if it is too large to pay.
        """
        (since, old), self._last = self._last, (digest, weights)
        delta = diff(old, weights)
        return None if delta is None else DeltaRef(since, ray.put(delta), size(delta))


def diff(old: Sequence[Bucket], new: Sequence[Bucket]) -> Delta | None:
    """Return the delta from `old` to `new`; None if it is too large to pay, or if names, shapes or dtypes differ."""
    before = {name: packed for bucket in old for name, packed in bucket.items()}
    after = {name: packed for bucket in new for name, packed in bucket.items()}
    if _shapes(before) != _shapes(after):
        return None
    budget = _MAX_DELTA * sum(array.nbytes for array, _ in after.values())
    delta: Delta = {}
    for name, (array, _) in after.items():
        assert array.size < 2**32, "a position has 32 bits"
        flat = array.reshape(-1)
        positions = np.flatnonzero(before[name][0].reshape(-1) != flat).astype(np.uint32)
        if len(positions):
            delta[name] = positions, flat[positions]
            budget -= size({name: delta[name]})
        if budget < 0:
            return None
    return delta


def size(delta: Delta) -> int:
    """Return the bytes of a delta's arrays."""
    return sum(positions.nbytes + values.nbytes for positions, values in delta.values())


def apply(delta: Delta, weights: dict[str, tuple[np.ndarray, str]]) -> None:
    """Update writable weights in place to the delta's version."""
    for name, (positions, values) in delta.items():
        weights[name][0].reshape(-1)[positions] = values


def _shapes(weights: Bucket) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, dtype) for name, (array, dtype) in weights.items()}
