"""Attention for packed sequences, which alone knows what a token may look at.

A GPU's kernels want rows: they are laid out for them and filled up. On a CPU every response attends to its prompt and
to itself in turn, and nothing is computed that is then masked away. Importing this registers it with transformers as
`packed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from psyco_ray.config.errors import InputError

NAME = "packed"
BLOCK = 256  # queries at a time: later ones of a long response are not looked at by earlier ones


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    cells: Tensor,
    sizes: Sequence[Sequence[int]],
    **more: Any,
) -> tuple[Tensor, None]:
    """What a layer of a decoder calls.

    Args:
        module: the layer's attention.
        query: shape [1, heads, tokens, size].
        key: of as many heads, or of fewer that are shared; so is `value`.
        value: its size may be another.
        attention_mask: of the rows: bool, [rows, 1, width, width], true where a token may look. Or what `added` gives.
        scaling: of the scores; None: by the root of the size.
        softcap: bound of the scores (Gemma 2), which wants an added mask.
        cells: place of each token in the rows, flattened, shape [tokens].
        sizes: tokens of each tree's prompt, then of its responses.
        more: what other kinds of attention take.

    Raises:
        InputError: the model has attention sinks.
    """
    if more.get("s_aux") is not None:
        raise InputError(f"{type(module).__name__} has attention sinks, which are not supported; choose another model")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask.dtype != torch.bool:
        return _by_branches(query * scaling, key, value, attention_mask, softcap, sizes), None
    assert softcap is None, "scores with a bound want an added mask"
    rows, _, width, _ = attention_mask.shape

    def laid_out(flat: Tensor) -> Tensor:
        _, heads, _, size = flat.shape
        spread = flat.new_zeros(rows * width, heads, size).index_copy(0, cells, flat[0].transpose(0, 1))
        return spread.view(rows, width, heads, size).transpose(1, 2)

    # torch's memory-efficient kernel takes a mask, but no heads that share keys: those would go to the slow one
    each = query.shape[1] // key.shape[1]
    keys, values = (laid_out(shared).repeat_interleave(each, 1) for shared in (key, value))
    found = scaled_dot_product_attention(laid_out(query), keys, values, attn_mask=attention_mask, scale=scaling)
    return found.transpose(1, 2).flatten(0, 1)[cells][None], None


def adds_mask(config: Any, device: torch.device) -> bool:
    """Whether the mask is to be added to the scores: on a CPU that is faster than torch's kernels."""
    return device.type == "cpu" or getattr(config, "attn_logit_softcapping", None) is not None


def added(sizes: Sequence[Sequence[int]], window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of all blocks, one behind another, shape [1, 1, 1, scores].

    Args:
        sizes: tokens of each tree's prompt, then of its responses.
        window: how many tokens, itself among them, a token may look back at; None: at all.
        dtype: of the scores.
        device: where they are.
    """
    found = []
    for tree in sizes:
        for queries, keys in _tree_blocks(tree):
            back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
            hidden = back < 0 if window is None else (back < 0) | (back >= window)
            block = torch.zeros(queries, keys, dtype=dtype, device=device)
            found.append(block.masked_fill_(hidden, torch.finfo(dtype).min).flatten())
    return torch.cat(found).view(1, 1, 1, -1)


def _blocks(before: int, own: int) -> Iterator[tuple[int, int]]:
    """Queries and keys of each block of a sequence whose last `own` tokens look at it."""
    for start in range(0, own, BLOCK):
        stop = min(start + BLOCK, own)
        yield stop - start, before + stop


def _by_branches(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float | None, sizes: Sequence[Sequence[int]]
) -> Tensor:
    """Attention of each prompt to itself, and of each response to its prompt and itself, [1, tokens, heads, size]."""
    lengths = [tokens for tree in sizes for tokens in tree]
    segments = zip(*(whole[0].split(lengths, dim=1) for whole in (query, key, value)), strict=True)
    masks = iter(mask.flatten().split([q * k for tree in sizes for q, k in _tree_blocks(tree)]))
    found = []
    for tree in sizes:
        shared: tuple[Tensor, Tensor] | None = None
        for _ in tree:
            asking, keys, values = next(segments)
            if shared is None:
                shared = keys, values
            else:
                keys, values = torch.cat((shared[0], keys), 1), torch.cat((shared[1], values), 1)
            blocks = _blocks(keys.shape[1] - asking.shape[1], asking.shape[1])
            for part, (_, seen) in zip(asking.split(BLOCK, dim=1), blocks, strict=True):
                found.append(_block(part, keys[:, :seen], values[:, :seen], next(masks), softcap))
    return torch.cat(found, dim=1).transpose(0, 1)[None]


def _tree_blocks(tree: Sequence[int]) -> Iterator[tuple[int, int]]:
    prompt, *responses = tree
    yield from _blocks(0, prompt)
    for own in responses:
        yield from _blocks(prompt, own)


def _block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float | None) -> Tensor:
    """Attention of a few queries in few passes over the scores; heads that share a key share its product."""
    heads, queries, size = query.shape
    shared, keys, _ = key.shape
    scores = query.reshape(shared, heads // shared * queries, size) @ key.transpose(1, 2)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    # torch's softmax computes in float32 whatever the dtype
    weights = scores.view(heads, queries, keys).add_(mask.view(queries, keys)).softmax(-1)
    return (weights.view(shared, -1, keys) @ value).view(heads, queries, -1)


AttentionInterface.register(NAME, attention)
