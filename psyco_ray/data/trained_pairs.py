"""The pairs that a reward model was trained on, kept with the model, so that two models can be compared.

A digest stands for a pair: the file tells whether a pair was trained on, but nothing of what a client said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from psyco_ray.config.errors import InputError
from psyco_ray.data import splits
from psyco_ray.run import storage

FILE = "trained_pairs.json"


@dataclass(frozen=True)
class TrainedPairs:
    """The pairs of a reward model."""

    digests: frozenset[str]  # of the distinct pairs
    pairs: int  # number of training pairs


def dump(train: pa.Table) -> str:
    """The content of a model's `FILE`, for the COMPARISONS that it was trained on."""
    rows = train.select(["asked", "chosen", "rejected"]).to_pylist()
    digests = sorted({_digest(row["asked"], row["chosen"], row["rejected"]) for row in rows})
    return json.dumps({"pairs": len(rows), "digests": digests}) + "\n"


def read(model: str) -> TrainedPairs | None:
    """The training pairs of a reward model; None for a model of the hub or of another program.

    Args:
        model: its directory, URI or hub id.

    Raises:
        InputError: the file is damaged, or the directory cannot be reached.
    """
    data = storage.read_file(model, FILE)
    if data is None:
        return None
    try:
        content = json.loads(data)
        return TrainedPairs(frozenset(content["digests"]), int(content["pairs"]))
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{storage.join(model, FILE)} is damaged; copy the model again, or remove this file and nothing is known "
            "of its training pairs"
        ) from None


def _digest(*texts: Sequence[str]) -> str:
    return splits.text_hash("pair", json.dumps(texts))[:12]
