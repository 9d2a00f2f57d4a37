"""Speeches that are nearly the same: MinHash finds the candidates, the exact similarity decides.

The signatures are datasketch's; the buckets are sorted arrays and not its ``MinHashLSH``, whose dictionaries take
several kilobytes a speech.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from datasketch import MinHash

from psyco_ray.data.splits import fold

PERMUTATIONS = 128
_GRAM = 5  # characters
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_FILLER = "\n"  # makes texts shorter than a gram as long as one; not in a plain text otherwise
_SEED = 1
_RECALL = 0.98  # least probability that two speeches right at the threshold share a bucket
_PAIRS = 1 << 18  # pairs of speeches that are looked at together
_DOUBT = 0.13  # the similarity that signatures estimate is off by less than this (three standard deviations)


def grams(text: str) -> set[str]:
    """The runs of five characters of the folded text without its punctuation; a shorter text is its own."""
    plain = _plain(text)
    return {plain[i : i + _GRAM] for i in range(max(1, len(plain) - _GRAM + 1))}


def _plain(text: str) -> str:
    return " ".join(_PUNCTUATION.sub("", fold(text)).split())


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the two texts' grams: 1 for equal ones, 0 where nothing is shared."""
    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """datasketch's MinHash signatures, shape (texts, PERMUTATIONS), uint32; equal on every machine.

    All texts' grams are hashed together, each different one once, and permuted without an object a text.
    """
    signed = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    if not len(texts):
        return signed
    factors, summands = _permutations()
    hashes, ends = _gram_hashes(texts)
    for signature, mine in zip(signed, np.split(hashes, ends[:-1]), strict=True):
        permuted = mine[:, None] * factors  # uint32 wraps around, which is datasketch's modulus
        permuted += summands
        np.minimum.reduce(permuted, axis=0, out=signature)
    return signed


@functools.lru_cache(maxsize=1)
def _permutations() -> np.ndarray:
    return MinHash(num_perm=PERMUTATIONS, seed=_SEED).permutations


def _gram_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mixed hashes of all texts' grams, text after text (repeated ones too), and where each text's end."""
    plain = [_plain(text).ljust(_GRAM, _FILLER) for text in texts]
    joined = "".join(plain)
    codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
    lengths = np.array([len(text) for text in plain])
    starts = np.ones(len(codes), dtype=bool)  # of grams: all places but the last four of each text
    for back in range(1, _GRAM):
        starts[np.cumsum(lengths) - back] = False
    windows = np.lib.stride_tricks.sliding_window_view(codes, _GRAM)[starts[: 1 - _GRAM]]
    kind = pa.binary(windows.itemsize * _GRAM)
    encoded = pa.FixedSizeBinaryArray.from_buffers(
        kind, len(windows), [None, pa.py_buffer(windows)]
    ).dictionary_encode()
    which, places = encoded.indices.to_numpy(), np.empty(len(encoded.dictionary), dtype=np.int64)
    places[which] = np.flatnonzero(starts)  # one of the places where each different gram is
    found = (joined[place : place + _GRAM].rstrip(_FILLER) for place in places.tolist())
    digests = b"".join(hashlib.sha1(gram.encode()).digest()[:4] for gram in found)  # as datasketch's sha1_hash32
    hashed = np.frombuffer(digests, dtype="<u4").astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # MurmurHash3's finalizer, as datasketch has it
        hashed = (hashed ^ (hashed >> np.uint32(shift))) * np.uint32(factor)
    return hashed[which], np.cumsum(lengths - _GRAM + 1)


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
    sketches = signed.astype(np.uint8)  # the hashes' last bytes: never less alike than the hashes, and soon compared
    stays = np.ones(len(signed), dtype=bool)
    found: dict[int, int] = {}
    pairs = place.sum(axis=0, dtype=np.int64) - first.sum(axis=0, dtype=np.int64)
    rows = np.flatnonzero(pairs)
    # rows are looked at in lots of so many pairs, each when it is known which of the rows before the lot stay
    for lot in np.split(rows, np.flatnonzero(np.diff(np.cumsum(pairs[rows]) // _PAIRS)) + 1):
        likely = [np.empty((2, 0), dtype=np.int64)]
        for members, begins, places in zip(order, first[:, lot], place[:, lot], strict=True):
            row, mate = _earlier(members, lot, begins, places)
            row, mate = row[stays[mate]], mate[stays[mate]]
            alike = _equal(sketches, row, mate) > (threshold - _DOUBT) * PERMUTATIONS
            likely.append(np.array([row[alike], mate[alike]]))
        row, mate = np.unique(np.concatenate(likely, axis=1), axis=1)  # sorted by row, then mate
        alike = _equal(signed, row, mate) > (threshold - _DOUBT) * PERMUTATIONS
        for one, other in zip(row[alike].tolist(), mate[alike].tolist(), strict=True):
            if stays[one] and stays[other] and similarity(text(one), text(other)) >= threshold:
                found[one], stays[one] = other, False
    return found


def _earlier(
    members: np.ndarray, rows: np.ndarray, begins: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a row and one that comes before it in its bucket, which lies in `members` from `begins` on."""
    counts = places - begins
    ends = np.cumsum(counts)
    at = np.arange(counts.sum()) + np.repeat(begins - (ends - counts), counts)
    return np.repeat(rows, counts), members[at].astype(np.int64)


def _equal(signed: np.ndarray, rows: np.ndarray, mates: np.ndarray) -> np.ndarray:
    """How many hashes are equal, pair by pair."""
    equal = signed.take(rows, axis=0) == signed.take(mates, axis=0)
    return np.bitwise_count(np.packbits(equal, axis=1).view(np.uint64)).sum(axis=1)


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
        for column in signed[:, band * band_rows : (band + 1) * band_rows].T:
            key = key * np.uint64(0x9E3779B97F4A7C15) + column
        order[band] = np.argsort(key, kind="stable")
        ordered = key[order[band]]
        begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(signed)])
        lengths = np.diff(np.append(begins, len(signed)))
        first[band, order[band]] = np.repeat(begins, lengths)
        place[band, order[band]] = np.arange(len(signed))
    return order, first, place
