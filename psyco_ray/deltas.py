"""What training changed in the weights: places and new bits, parameter by parameter.

At the learning rates of preference learning few weights move by as much as bfloat16 can tell (0.3 % in a step at 5e-7),
so whoever has the last version needs only those. It is worth it where weights cross a network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ray

from psyco_ray.run.types import Changed
from psyco_ray.sync import Bucket

Delta = dict[str, tuple[np.ndarray, np.ndarray]]
"""Parameter name -> (places in the flat parameter, uint32; the bits there now)."""

LARGEST = 0.5  # of the weights' bytes; with more than this the weights themselves go


class Exports:
    """Remembers the weights that were exported last, as they lie in Ray's object store."""

    def __init__(self) -> None:
        self._last: tuple[str, list[Bucket]] = "", []

    def changed(self, digest: str, weights: list[Bucket]) -> Changed | None:
        """What is new in these weights, put into the object store; None for the first, or where it is much."""
        (since, old), self._last = self._last, (digest, weights)
        delta = between(old, weights)
        return None if delta is None else Changed(since, ray.put(delta), size(delta))


def between(old: Sequence[Bucket], new: Sequence[Bucket]) -> Delta | None:
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
