"""Speeches that hold most of another one, such as a post and its longer version.

Their similarity is far below that of near duplicates, and MinHash does not find them. Hashes of 20-character passages
do: one of eight is a mark, by the hash itself, so equal passages of two texts have equal marks. Texts that share marks
are compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from psyco_ray.data.duplicates import grams, plain

SHARE = 0.8
"""Share of the 5-grams of the shorter text that the longer one has."""

_PASSAGE = 20  # characters
_EVERY = 8  # passages per mark
_LEAST_CHARS = 60  # of a text that another one may hold; shorter ones are phrases
_LEAST_SHARED = 0.15  # share of the marks of a text that its holder has, with a change every 25 characters
_MOST_TEXTS = 16  # that share a mark; a passage of more is a common phrase
_PASS_MARKS = 1 << 20  # that are sorted at once
_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def marks(text: str) -> np.ndarray:
    """The marks of a text, distinct, uint64; none of a text below 60 characters."""
    folded = plain(text)
    if len(folded) < _LEAST_CHARS:
        return np.empty(0, np.uint64)
    codes = np.frombuffer(folded.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    hashes, length, factor = codes, 1, _PRIME
    for times in (5, 2, 2):  # passages of 5, 10 and 20 characters; overflow is the modulus
        joined, end = hashes[: len(hashes) - (times - 1) * length], length
        for _ in range(times - 1):
            joined = joined * factor + hashes[end : end + len(joined)]
            end += length
        hashes, length, factor = joined, length * times, factor**times
    assert length == _PASSAGE
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _MIX
    hashes ^= hashes >> np.uint64(32)
    return np.unique(hashes[hashes % np.uint64(_EVERY) == 0])


Parts = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Iterates the marks of all texts in parts, each with the rows of the texts that have them; called several times."""


def held(parts: Parts, count: int, text: Callable[[int], str]) -> dict[int, int]:
    """Maps rows to an earlier row of which they are or have `SHARE`, and that stays.

    Args:
        parts: the marks.
        count: number of texts.
        text: returns the text of a row; called only for candidates.

    Returns:
        dropped row -> kept row.
    """
    dropped: dict[int, int] = {}
    for later, earlier in _candidates(parts, count):
        if later not in dropped and earlier not in dropped and share_of(text(later), text(earlier)) >= SHARE:
            dropped[later] = earlier
    return dropped


def holders(
    known: Sequence[np.ndarray], others: Sequence[np.ndarray], share: Callable[[int, int], float]
) -> dict[int, int]:
    """Maps each other text that is or has `SHARE` of a known one to the first such known text.

    Other texts are not compared with each other, so that the result for each does not depend on the rest.

    Args:
        known: the marks of each known text.
        others: the marks of each other text.
        share: the share of a known and another text, by their numbers; called only for candidates.
    """
    lengths = np.array([len(found) for found in known], dtype=np.int64)
    values = np.concatenate([np.empty(0, np.uint64), *known])
    rows = np.repeat(np.arange(len(known)), lengths)
    order = np.argsort(values, kind="stable")
    values, rows = values[order], rows[order]
    found: dict[int, int] = {}
    for number, own in enumerate(others):
        begins, ends = (np.searchsorted(values, own, side=side) for side in ("left", "right"))
        alike = (begins < ends) & (ends <= begins + _MOST_TEXTS)
        if not alike.any():
            continue
        mates = [rows[begin:end] for begin, end in zip(begins[alike], ends[alike], strict=True)]
        candidates, shared = np.unique(np.concatenate(mates), return_counts=True)
        likely = candidates[shared >= _LEAST_SHARED * np.minimum(lengths[candidates], len(own))]
        mate = next((mate for mate in likely.tolist() if share(mate, number) >= SHARE), None)
        if mate is not None:
            found[number] = mate
    return found


def share_of(first: str, second: str) -> float:
    """Share of the 5-grams of the shorter text that the longer one has."""
    a, b = grams(first), grams(second)
    return len(a & b) / min(len(a), len(b))


def _candidates(parts: Parts, count: int) -> Iterator[tuple[int, int]]:
    """Pairs of a later and an earlier row that share enough marks, by row, then by mate."""
    counts = np.zeros(count, np.int64)
    for _, rows in parts():
        counts += np.bincount(rows, minlength=count)
    passes = max(1, math.ceil(counts.sum() / _PASS_MARKS))
    keys, shared = np.empty((2, 0), np.int64)
    for number in range(passes):
        pairs = _pairs(*_inside(parts, number, passes), count)
        found, times = np.unique(pairs, return_counts=True)
        keys, where = np.unique(np.concatenate([keys, found]), return_inverse=True)
        shared = np.bincount(where, np.concatenate([shared, times]), len(keys)).astype(np.int64)
    later, earlier = np.divmod(keys, max(1, count))
    enough = shared >= _LEAST_SHARED * np.minimum(counts[later], counts[earlier])
    yield from zip(later[enough].tolist(), earlier[enough].tolist(), strict=True)


def _inside(parts: Parts, number: int, passes: int) -> tuple[np.ndarray, np.ndarray]:
    """The marks of one of several passes, by their first digits, and their rows."""
    values, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part, of in parts():
        inside = ((part >> np.uint64(32)) * np.uint64(passes)) >> np.uint64(32) == number
        values.append(part[inside])
        rows.append(of[inside])
    return np.concatenate(values), np.concatenate(rows)


def _pairs(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """All pairs of rows with the same mark, as later row × count + earlier row."""
    order = np.lexsort((rows, values))
    values, rows = values[order], rows[order].astype(np.int64)
    begins = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    sizes = np.diff(np.append(begins, len(values)))
    pairs = []
    for back in range(1, _MOST_TEXTS):  # the row and that many places before it in the same group
        groups = (sizes > back) & (sizes <= _MOST_TEXTS)
        starts, lengths = begins[groups] + back, sizes[groups] - back
        if not len(starts):
            break
        passed = np.cumsum(lengths)
        at = np.arange(passed[-1]) + np.repeat(starts - (passed - lengths), lengths)
        pairs.append(rows[at] * count + rows[at - back])
    return np.concatenate(pairs) if pairs else np.empty(0, np.int64)
