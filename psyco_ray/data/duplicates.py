"""Speeches that are nearly the same: MinHash finds the candidates, the exact similarity decides.

The signatures are datasketch's; the buckets are sorted arrays and not its ``MinHashLSH``, whose dictionaries take
several kilobytes a speech.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from datasketch import MinHash

from psyco_ray.data.speeches import fold

PERMUTATIONS = 128
_GRAM = 5  # characters
_SEED = 1
_RECALL = 0.98  # least probability that two speeches right at the threshold share a bucket
_DOUBT = 0.13  # the similarity that signatures estimate is off by less than this (three standard deviations)


def grams(text: str) -> set[str]:
    """The runs of five characters of the folded text without its punctuation; a shorter text is its own."""
    plain = " ".join(re.sub(r"[^\w\s]|_", "", fold(text)).split())
    return {plain[i : i + _GRAM] for i in range(max(1, len(plain) - _GRAM + 1))}


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the two texts' grams: 1 for equal ones, 0 where nothing is shared."""
    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures, shape (texts, PERMUTATIONS), uint32; equal on every machine."""
    encoded = ([gram.encode() for gram in grams(text)] for text in texts)
    found = [m.hashvalues for m in MinHash.generator(encoded, num_perm=PERMUTATIONS, seed=_SEED)]
    return np.array(found, dtype=np.uint32).reshape(len(texts), PERMUTATIONS)


def near(signed: np.ndarray, text: Callable[[int], str], threshold: float) -> dict[int, int]:
    """Speeches that resemble an earlier one that stays, each with the first such.

    No two of those that stay resemble one another, and the order of the rows alone decides which do.

    Args:
        signed: the signatures, in the order of the speeches' rank, shape (speeches, PERMUTATIONS).
        text: gives the text of a row; asked only for candidates.
        threshold: similarity from which two speeches are nearly the same, above 0.

    Returns:
        row that goes -> row that it resembles.
    """
    order, first, place = _buckets(signed, _band_rows(threshold))
    stays = np.ones(len(signed), dtype=bool)
    found: dict[int, int] = {}
    for row in np.flatnonzero((place > first).any(axis=0)).tolist():
        runs = zip(order, first[:, row], place[:, row], strict=True)
        mates = np.unique(np.concatenate([members[start:end] for members, start, end in runs]))
        mates = mates[stays[mates]]
        mates = mates[(signed[mates] == signed[row]).mean(axis=1) > threshold - _DOUBT]
        for mate in mates.tolist():
            if similarity(text(row), text(mate)) >= threshold:
                found[row], stays[row] = mate, False
                break
    return found


def _band_rows(threshold: float) -> int:
    """How many hashes a band may join before speeches at the threshold are missed too often."""
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) >= _RECALL and rows < 8:
        rows += 1
    return rows


def _buckets(signed: np.ndarray, band_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Speeches with equal hashes in a band, side by side.

    Returns:
        Three arrays of shape (bands, speeches), int32: the rows sorted by bucket and then by number; of each row,
        where its bucket begins in that order; and where the row itself is.
    """
    bands = PERMUTATIONS // band_rows
    order, first, place = np.empty((3, bands, len(signed)), dtype=np.int32)
    for band in range(bands):
        key = np.zeros(len(signed), dtype=np.uint64)
        for column in range(band * band_rows, (band + 1) * band_rows):
            key = key * np.uint64(0x9E3779B97F4A7C15) + signed[:, column]
        order[band] = np.argsort(key, kind="stable")
        ordered = key[order[band]]
        begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(signed)])
        lengths = np.diff(np.append(begins, len(signed)))
        first[band, order[band]] = np.repeat(begins, lengths)
        place[band, order[band]] = np.arange(len(signed))
    return order, first, place
