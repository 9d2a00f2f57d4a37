"""Attention by branches: each segment of packed trees attends to what is before it and to itself in turn.

No masked score is computed. On a CPU this is faster than torch's kernels over padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from psyco_ray.models.layout import Forest

BLOCK = 256  # queries of a block, which skips the keys behind it


def mask(forest: Forest, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what is added to the scores of all blocks, flattened and concatenated, shape [1, 1, 1, scores].

    Args:
        forest: of the packed trees.
        window: tokens that a token attends to, itself included; None: all before it.
        dtype: of the scores.
        device: of the scores.
    """
    blocks = []
    for queries, keys in _all_blocks(forest):
        distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        block = torch.zeros(queries, keys, dtype=dtype, device=device)
        blocks.append(block.masked_fill_(hidden, torch.finfo(dtype).min).flatten())
    return torch.cat(blocks).view(1, 1, 1, -1)


def _blocks(prefix: int, own: int) -> Iterator[tuple[int, int]]:
    """Yield queries and keys of each block of a sequence whose last `own` tokens attend."""
    for start in range(0, own, BLOCK):
        stop = min(start + BLOCK, own)
        yield stop - start, prefix + stop


def _all_blocks(forest: Forest) -> Iterator[tuple[int, int]]:
    for prefix, own in zip(forest.before, forest.tokens, strict=True):
        yield from _blocks(prefix, own)


Heads = tuple[Tensor, Tensor]
"""Keys and values of some tokens, each of shape [key heads, tokens, size]."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: tuple[float | None, float], forest: Forest
) -> Tensor:
    """Attention of each segment to what is before it and to itself, [1, tokens, heads, size].

    `options` are the bound of the scores and the dropout.
    """
    segments = zip(*(whole[0].split(forest.tokens, dim=1) for whole in (query, key, value)), strict=True)
    masks = iter(mask.flatten().split([queries * keys for queries, keys in _all_blocks(forest)]))
    outputs: list[Tensor] = []
    path: list[tuple[int, Heads]] = []  # segments up to the last one, with all tokens up to their ends
    for segment, (queries, keys, values) in enumerate(segments):
        while path and path[-1][0] != forest.parents[segment]:
            path.pop()
        if path:
            _, (before, values_before) = path[-1]
            keys, values = torch.cat((before, keys), 1), torch.cat((values_before, values), 1)
        path.append((segment, (keys, values)))
        blocks = _blocks(forest.before[segment], forest.tokens[segment])
        for part, (_, visible) in zip(queries.split(BLOCK, dim=1), blocks, strict=True):
            outputs.append(_block(part, keys[:, :visible], values[:, :visible], next(masks), *options))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None]


def _block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float | None, dropout: float) -> Tensor:
    """Attention of one block; query heads that share a key head are one matrix product, [heads, queries, size]."""
    heads, queries, size = query.shape
    key_heads, keys, _ = key.shape
    scores = query.reshape(key_heads, heads // key_heads * queries, size) @ key.transpose(1, 2)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    # torch's softmax computes in float32 for every dtype
    weights = scores.view(heads, queries, keys).add_(mask.view(queries, keys)).softmax(-1)
    if dropout:
        weights = torch.dropout(weights, dropout, train=True)
    return (weights.view(key_heads, -1, keys) @ value).view(heads, queries, -1)
