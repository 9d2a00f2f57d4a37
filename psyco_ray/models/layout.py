"""Which texts share a pass, and where the tokens of packed trees stand: in rows, or by segments with their keys."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROW_MULTIPLE = 128
"""Rows are as wide as a multiple of this: kernels take few shapes, and none copies a mask to align it."""


@dataclass(frozen=True)
class Forest:
    """Segments of packed trees, numbered in the order of their tokens.

    A segment attends to itself and to the one that it follows, to what this one follows, and so on. It comes after all
    of them, and what follows a segment stands together.
    """

    tokens: tuple[int, ...]  # of each segment
    parents: tuple[int, ...]  # the segment that each follows; -1: none

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Tokens that each segment follows."""
        before: list[int] = []
        for parent in self.parents:
            before.append(0 if parent < 0 else before[parent] + self.tokens[parent])
        return tuple(before)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Each segment's first token, counted over all of them."""
        return tuple(itertools.accumulate(self.tokens, initial=0))[:-1]

    def path(self, segment: int) -> list[int]:
        """Return what a segment attends to, first token first."""
        path = []
        while segment >= 0:
            path.append(segment)
            segment = self.parents[segment]
        return path[::-1]


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many first tokens two texts share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all prompts share; of one prompt none."""
    if len(prompts) == 1:
        return 0
    ordered = [tuple(prompt) for prompt in prompts]
    return common(min(ordered), max(ordered))  # what these two share, all in between share too


def in_rows(forest: Forest) -> tuple[np.ndarray, np.ndarray]:
    """Lay trees out in rows; return `cells` and `ends` of `Packed`."""
    roots = [segment for segment, parent in enumerate(forest.parents) if parent < 0]
    totals = [sum(forest.tokens[root:end]) for root, end in itertools.pairwise([*roots, len(forest.parents)])]
    places, rows, width = _place(totals)
    last = [start + own for start, own in zip(forest.starts, forest.tokens, strict=True)]
    for segment in range(len(last) - 1, -1, -1):
        if (parent := forest.parents[segment]) >= 0:
            last[parent] = max(last[parent], last[segment])
    seen = np.repeat(np.array(last, np.int32), forest.tokens)
    ends = np.full((rows, width), width, np.int32)
    cells = []
    for root, total, (row, column) in zip(roots, totals, places, strict=True):
        first = forest.starts[root]
        ends[row, column : column + total] = seen[first : first + total] - first + column
        cells.append(np.arange(row * width + column, row * width + column + total))
    return np.concatenate(cells), ends


def in_segments(forest: Forest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each segment the keys before it and its own; return `keys`, `query_ends` and `key_ends` of `Packed`."""
    keys: list[np.ndarray] = []
    for parent, start, own in zip(forest.parents, forest.starts, forest.tokens, strict=True):
        tokens = np.arange(start, start + own)
        keys.append(tokens if parent < 0 else np.concatenate((keys[parent], tokens)))
    return np.concatenate(keys), _ends(forest.tokens), _ends([len(own) for own in keys])


def _ends(counts: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *counts], dtype=np.int32)


def _place(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], int, int]:
    """Place trees by first fit, longest first; return row and first column of each, number of rows, and width."""
    width = -(-max(sizes) // ROW_MULTIPLE) * ROW_MULTIPLE
    filled: list[int] = []
    places = [(0, 0)] * len(sizes)
    for tree in sorted(range(len(sizes)), key=lambda tree: -sizes[tree]):
        row = next((r for r, used in enumerate(filled) if used + sizes[tree] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        places[tree] = (row, filled[row])
        filled[row] += sizes[tree]
    return places, len(filled), width


def plan_rows(lengths: Sequence[int], budget: int, padded: bool = False) -> list[list[int]]:
    """Sort texts into rows by length, shortest first.

    Args:
        lengths: tokens of each text.
        budget: tokens of a row; a longer text has a row of its own.
        padded: count every text of a row as long as the row's longest.

    Returns:
        The indices of each row's texts.
    """
    rows: list[list[int]] = []
    filled = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        size = lengths[index] * (len(rows[-1]) + 1) if padded and rows else filled + lengths[index]
        if rows and size <= budget:
            rows[-1].append(index)
            filled = size
        else:
            rows.append([index])
            filled = lengths[index]
    return rows
