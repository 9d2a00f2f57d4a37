"""Attention for packed sequences: it alone lays them into rows, so that nothing else computes what fills rows up.

Importing this registers it with transformers as `packed`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "packed"


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
    **more: Any,
) -> tuple[Tensor, None]:
    """What a layer of a decoder calls.

    Args:
        module: the layer's attention.
        query: shape [1, heads, tokens, size].
        key: of as many heads, or of fewer that are shared; so is `value`.
        value: its size may be another.
        attention_mask: [rows, 1, width, width]; bool, true where a token may look, or what is added to its scores.
        scaling: of the scores; None: by the root of the size.
        softcap: bound of the scores (Gemma 2), which wants an added mask.
        cells: place of each token in the rows, flattened, shape [tokens].
        more: what other kinds of attention take.

    Raises:
        ValueError: the model has attention sinks.
    """
    if more.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__} has attention sinks, which are not supported; choose another model")
    rows, _, width, _ = attention_mask.shape

    def laid_out(flat: Tensor) -> Tensor:
        _, heads, _, size = flat.shape
        spread = flat.new_zeros(rows * width, heads, size).index_copy(0, cells, flat[0].transpose(0, 1))
        return spread.view(rows, width, heads, size).transpose(1, 2)

    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    laid = laid_out(query), laid_out(key), laid_out(value)
    if attention_mask.dtype == torch.bool:
        assert softcap is None, "scores with a bound want an added mask"
        found = scaled_dot_product_attention(*laid, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
    else:
        found = _plain(*laid, attention_mask, scaling, softcap)
    return found.transpose(1, 2).flatten(0, 1)[cells][None], None


def adds_mask(config: Any, device: torch.device) -> bool:
    """Whether the mask is to be added to the scores: on a CPU that is faster than torch's kernels."""
    return device.type == "cpu" or getattr(config, "attn_logit_softcapping", None) is not None


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added, out of one that is true where a token may look."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Attention in as few passes over the scores as there can be; heads that share a key share its product."""
    rows, heads, width, size = query.shape
    shared = key.shape[1]
    together = (query * scaling).reshape(rows, shared, heads // shared * width, size)
    scores = together @ key.transpose(2, 3)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    # torch's softmax computes in float32 whatever the dtype
    weights = scores.view(rows, shared, -1, width, width).add_(mask[:, :, None]).softmax(-1)
    return (weights.view(rows, shared, -1, width) @ value).view(rows, heads, width, -1)


AttentionInterface.register(NAME, attention)
