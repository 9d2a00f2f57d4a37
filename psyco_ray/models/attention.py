"""Attention over packed sequences, registered with transformers as `packed` on import.

On a GPU the tokens are laid out in padded rows for torch's kernels. On a CPU each response attends to its prompt and to
itself in turn, so that no masked score is computed.

Hand-written, with `packing` and `lm_head`: together they train 2.3 times TRL's pairs per second in the project's
benchmark (benchmarks/learner.py), and no kernel of transformers shares a prompt between responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "packed"
BLOCK = 256  # queries of a block on a CPU, which skips the keys behind it

Sizes = Sequence[Sequence[int]]
"""Tokens of each tree's prompt, then of its responses."""


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    *,
    cells: Tensor | None = None,
    sizes: Sizes | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that a transformers decoder layer calls.

    Args:
        module: the layer's attention.
        query: shape [1, heads, tokens, head size].
        key: shape [1, key heads, tokens, head size]; fewer heads are shared between queries.
        value: shape [1, key heads, tokens, value size].
        attention_mask: bool of the rows, [rows, 1, width, width], true where a cell attends; or the `additive_mask`.
        scaling: factor of the scores; None: 1 / sqrt(head size).
        softcap: bound of the scores (Gemma 2); needs an additive mask.
        dropout: probability that an attention weight is dropped.
        cells: cell of each token in the flattened rows, shape [tokens].
        sizes: of the packed trees.
        **kwargs: arguments of other attention functions.

    Returns:
        Attention output, shape [1, tokens, heads, value size], and no attention weights.

    Raises:
        TypeError: the layer does not pass `cells` and `sizes` on.
    """
    if cells is None or sizes is None:
        raise TypeError(f"{type(module).__name__} does not pass the places of packed tokens on")
    assert kwargs.get("s_aux") is None, "a model with attention sinks is not packed"
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask.dtype != torch.bool:
        return _by_branches(query * scaling, key, value, attention_mask, softcap, dropout, sizes), None
    assert softcap is None, "bounded scores need an additive mask"
    rows, _, width, _ = attention_mask.shape

    def in_rows(flat: Tensor) -> Tensor:
        _, heads, _, size = flat.shape
        laid_out = flat.new_zeros(rows * width, heads, size).index_copy(0, cells, flat[0].transpose(0, 1))
        return laid_out.view(rows, width, heads, size).transpose(1, 2)

    # torch's memory-efficient kernel takes a mask but no grouped heads; grouped heads would use the slow kernel
    group = query.shape[1] // key.shape[1]
    keys, values = (in_rows(shared).repeat_interleave(group, 1) for shared in (key, value))
    output = scaled_dot_product_attention(in_rows(query), keys, values, attention_mask, dropout, scale=scaling)
    return output.transpose(1, 2).flatten(0, 1)[cells][None], None


def uses_additive_mask(config: Any, device: torch.device) -> bool:
    """Whether the mask is added to the scores, which on a CPU is faster than torch's kernels."""
    return device.type == "cpu" or getattr(config, "attn_logit_softcapping", None) is not None


def additive_mask(sizes: Sizes, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the masks of all blocks, flattened and concatenated, shape [1, 1, 1, scores].

    Args:
        sizes: of the packed trees.
        window: tokens that a token attends to, itself included; None: all before it.
        dtype: of the scores.
        device: of the scores.
    """
    blocks = []
    for tree in sizes:
        for queries, keys in _tree_blocks(tree):
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


def _tree_blocks(tree: Sequence[int]) -> Iterator[tuple[int, int]]:
    prompt, *responses = tree
    yield from _blocks(0, prompt)
    for own in responses:
        yield from _blocks(prompt, own)


def _by_branches(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float | None, dropout: float, sizes: Sizes
) -> Tensor:
    """Attention of each prompt to itself, and of each response to its prompt and itself, [1, tokens, heads, size]."""
    lengths = [tokens for tree in sizes for tokens in tree]
    segments = zip(*(whole[0].split(lengths, dim=1) for whole in (query, key, value)), strict=True)
    masks = iter(mask.flatten().split([q * k for tree in sizes for q, k in _tree_blocks(tree)]))
    outputs = []
    for tree in sizes:
        prompt: tuple[Tensor, Tensor] | None = None
        for _ in tree:
            queries, keys, values = next(segments)
            if prompt is None:
                prompt = keys, values
            else:
                keys, values = torch.cat((prompt[0], keys), 1), torch.cat((prompt[1], values), 1)
            blocks = _blocks(keys.shape[1] - queries.shape[1], queries.shape[1])
            for part, (_, visible) in zip(queries.split(BLOCK, dim=1), blocks, strict=True):
                outputs.append(_block(part, keys[:, :visible], values[:, :visible], next(masks), softcap, dropout))
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


AttentionInterface.register(NAME, attention)
