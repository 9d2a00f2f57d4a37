"""Near-duplicate speeches: MinHash finds candidates, the exact similarity decides.

The signatures are those of datasketch, computed in bulk. The buckets are sorted arrays: the dictionaries of its
``MinHashLSH`` take several kilobytes per speech.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from datasketch import MinHash

from psyco_ray.data.splits import fold

PERMUTATIONS = 128
_GRAM = 5  # characters
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_FILLER = "\n"  # pads texts shorter than a gram; never part of a plain text
_SEED = 1
_SIGNED_TEXTS = 1000  # texts whose grams are in memory together
_RECALL = 0.98  # minimum probability that two speeches at the threshold share a bucket
_BLOCK_PAIRS = 1 << 18  # pairs of speeches per block of comparisons
_MARGIN = 0.13  # three standard deviations of the similarity estimated by signatures


def grams(text: str) -> set[str]:
    """The 5-grams of characters of the folded text without punctuation; a shorter text is its only gram."""
    folded = plain(text)
    return {folded[i : i + _GRAM] for i in range(max(1, len(folded) - _GRAM + 1))}


def plain(text: str) -> str:
    """The folded text without punctuation, as grams are taken from it."""
    return " ".join(_PUNCTUATION.sub("", fold(text)).split())


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the grams of two texts."""
    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures as by datasketch, shape (texts, PERMUTATIONS), uint32; equal on every machine.

    The distinct grams of a thousand texts are hashed once; no Python object is created per text.
    """
    signed = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    factors, summands = _permutations()
    for start in range(0, len(texts), _SIGNED_TEXTS):
        part = slice(start, start + _SIGNED_TEXTS)
        hashes, ends = _gram_hashes(texts[part])
        for signature, text_hashes in zip(signed[part], np.split(hashes, ends[:-1]), strict=True):
            permuted = text_hashes[:, None] * factors  # uint32 overflow is datasketch's modulus
            permuted += summands
            np.minimum.reduce(permuted, axis=0, out=signature)
    return signed


@functools.lru_cache(maxsize=1)
def _permutations() -> np.ndarray:
    return MinHash(num_perm=PERMUTATIONS, seed=_SEED).permutations


def _gram_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all grams, text by text and with repetitions, and the end of each text in them."""
    padded = [plain(text).ljust(_GRAM, _FILLER) for text in texts]
    joined = "".join(padded)
    codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
    lengths = np.array([len(text) for text in padded])
    starts = np.ones(len(codes), dtype=bool)  # of grams: all positions but the last four of each text
    for back in range(1, _GRAM):
        starts[np.cumsum(lengths) - back] = False
    windows = np.lib.stride_tricks.sliding_window_view(codes, _GRAM)[starts[: 1 - _GRAM]]
    kind = pa.binary(windows.itemsize * _GRAM)
    encoded = pa.FixedSizeBinaryArray.from_buffers(
        kind, len(windows), [None, pa.py_buffer(windows)]
    ).dictionary_encode()
    indices, positions = encoded.indices.to_numpy(), np.empty(len(encoded.dictionary), dtype=np.int64)
    positions[indices] = np.flatnonzero(starts)  # one position of each distinct gram
    distinct = (joined[position : position + _GRAM].rstrip(_FILLER) for position in positions.tolist())
    digests = b"".join(hashlib.sha1(gram.encode()).digest()[:4] for gram in distinct)  # as datasketch's sha1_hash32
    hashed = np.frombuffer(digests, dtype="<u4").astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # MurmurHash3's finalizer, as datasketch has it
        hashed = (hashed ^ (hashed >> np.uint32(shift))) * np.uint32(factor)
    return hashed[indices], np.cumsum(lengths - _GRAM + 1)


def near(signed: np.ndarray, text: Callable[[int], str], threshold: float) -> dict[int, int]:
    """Maps each near duplicate to the first earlier row that it resembles and that is kept.

    No two kept rows are near duplicates of each other (up to missed candidates); only the order of the rows decides
    which one is kept.

    Args:
        signed: the signatures in rank order, shape (speeches, PERMUTATIONS).
        text: returns the text of a row; called only for candidates.
        threshold: similarity of near duplicates, above 0.

    Returns:
        dropped row -> kept row that it resembles.
    """
    order, first, place = _buckets(signed, _band_rows(threshold))
    kept = np.ones(len(signed), dtype=bool)
    near_duplicates: dict[int, int] = {}
    for later, earlier in _candidates(signed, order, first, place, threshold, kept):
        if kept[later] and kept[earlier] and similarity(text(later), text(earlier)) >= threshold:
            near_duplicates[later], kept[later] = earlier, False
    return near_duplicates


def resembling(signed: np.ndarray, known: int, text: Callable[[int], str], threshold: float) -> dict[int, int]:
    """Maps each row that is a near duplicate of one of the first `known` rows to the first such row.

    Args:
        signed: the signatures, shape (texts, PERMUTATIONS).
        known: number of rows that the rows after them are compared with; rows are not compared within either part.
        text: returns the text of a row; called only for candidates.
        threshold: similarity of near duplicates, above 0.
    """
    order, first, place = _buckets(signed, _band_rows(threshold))
    # a bucket lists its known rows first, so they end where their number is added to its beginning
    before = np.pad(np.cumsum(order < known, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    bands = np.arange(len(order))[:, None]
    last = first + before[bands, place] - before[bands, first]
    last[:, :known] = first[:, :known]
    found: dict[int, int] = {}
    for row, mate in _candidates(signed, order, first, last, threshold, np.ones(len(signed), dtype=bool)):
        if row not in found and similarity(text(row), text(mate)) >= threshold:
            found[row] = mate
    return found


def _candidates(
    signed: np.ndarray, order: np.ndarray, first: np.ndarray, last: np.ndarray, threshold: float, kept: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Rows and mates in a common bucket whose signatures are alike, by row, then by mate.

    Args:
        signed: the signatures, shape (texts, PERMUTATIONS).
        order: rows by bucket, as `_buckets` returns them.
        first: where each row's mates begin in the order, shape (bands, texts).
        last: where they end.
        threshold: similarity of near duplicates.
        kept: whether a row may be a mate; read anew for each block of rows, so the caller may change it.
    """
    sketches = signed.astype(np.uint8)  # last bytes of the hashes: equal where the hashes are, and fast to compare
    pairs = last.sum(axis=0, dtype=np.int64) - first.sum(axis=0, dtype=np.int64)
    rows = np.flatnonzero(pairs)
    for block in np.split(rows, np.flatnonzero(np.diff(np.cumsum(pairs[rows]) // _BLOCK_PAIRS)) + 1):
        candidates = [np.empty((2, 0), dtype=np.int64)]
        for members, begins, ends in zip(order, first[:, block], last[:, block], strict=True):
            row, mate = _mates(members, block, begins, ends)
            row, mate = row[kept[mate]], mate[kept[mate]]
            alike = _equal(sketches, row, mate) > (threshold - _MARGIN) * PERMUTATIONS
            candidates.append(np.array([row[alike], mate[alike]]))
        row, mate = np.unique(np.concatenate(candidates, axis=1), axis=1)  # sorted by row, then mate
        alike = _equal(signed, row, mate) > (threshold - _MARGIN) * PERMUTATIONS
        yield from zip(row[alike].tolist(), mate[alike].tolist(), strict=True)


def _mates(
    members: np.ndarray, rows: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a row and a member between its beginning and its end."""
    counts = ends - begins
    passed = np.cumsum(counts)
    at = np.arange(counts.sum()) + np.repeat(begins - (passed - counts), counts)
    return np.repeat(rows, counts), members[at].astype(np.int64)


def _equal(signed: np.ndarray, rows: np.ndarray, mates: np.ndarray) -> np.ndarray:
    """Number of equal hashes of each pair."""
    equal = signed.take(rows, axis=0) == signed.take(mates, axis=0)
    return np.bitwise_count(np.packbits(equal, axis=1).view(np.uint64)).sum(axis=1)


def _band_rows(threshold: float) -> int:
    """The largest number of hashes per band that still finds speeches at the threshold with probability _RECALL."""
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) >= _RECALL and rows < 8:
        rows += 1
    return rows


def _buckets(signed: np.ndarray, band_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups the speeches of each band by their hashes.

    Returns:
        Three arrays of shape (bands, speeches), int32: the rows sorted by bucket, then by number; per row, the position
        in that order where its bucket begins; and the position of the row itself.
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
