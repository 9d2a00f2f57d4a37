"""Which texts share a pass, and where the tokens of packed trees stand: in rows, or by segments with their keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROW_MULTIPLE = 128
"""Rows are as wide as a multiple of this: kernels take few shapes, and none copies a mask to align it."""

Sizes = Sequence[Sequence[int]]
"""Tokens of each tree's prompt, then of its responses."""


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all prompts share, so that each keeps a token of its own; of one prompt none."""
    if len(prompts) == 1:
        return 0
    ordered = [tuple(prompt) for prompt in prompts]
    first, last = min(ordered), max(ordered)  # what these two share, all in between share too
    most = min(map(len, prompts)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


def in_rows(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay trees out in rows; return `cells`, `segments` and `prompts` of `Packed`, which are empty without trees."""
    if not sizes:
        none = np.zeros((0, 0), np.int32)
        return np.zeros(0, np.int64), none, none
    totals = [sum(tree) for tree in sizes]
    places, rows, width = _place(totals)
    segments = np.full((rows, width), -1, np.int32)
    prompts = segments.copy()
    cells = []
    number = 0
    for tree, total, (row, start) in zip(sizes, totals, places, strict=True):
        own = slice(start, start + total)
        segments[row, own] = np.repeat(np.arange(number, number + len(tree), dtype=np.int32), tree)
        prompts[row, own] = number
        cells.append(np.arange(row * width + start, row * width + start + total))
        number += len(tree)
    return np.concatenate(cells), segments, prompts


def in_segments(sizes: Sizes, shared: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each segment the keys before it and its own; return `keys`, `query_ends` and `key_ends` of `Packed`."""
    start = np.arange(shared)
    keys: list[np.ndarray] = [start] if shared else []
    end = shared
    for prompt, *responses in sizes:
        before = np.arange(end, end + prompt)
        keys.append(np.concatenate((start, before)))
        end += prompt
        for own in responses:
            keys.append(np.concatenate((start, before, np.arange(end, end + own))))
            end += own
    queries = [*([shared] if shared else []), *(tokens for tree in sizes for tokens in tree)]
    return np.concatenate(keys), _ends(queries), _ends([len(own) for own in keys])


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
