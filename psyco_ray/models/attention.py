"""Attention over packed sequences, registered with transformers as `packed` on import.

Four kernels compute the same. `branches`, on a CPU: each response attends to its prompt and to itself in turn, so that
no masked score is computed. `sdpa`: torch's kernel over padded rows with a mask. `flex`: torch's compiled kernel over
the same rows, which skips masked blocks. `varlen`: torch's flash kernel, in which each segment has its own queries and
keys, without padding or a mask.

Hand-written, with `packing` and `lm_head`: together they train 2.3 times TRL's pairs per second in the project's
benchmark (benchmarks/learner.py), and no kernel of transformers shares a prompt between responses.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Attention
from psyco_ray.models import branches
from psyco_ray.models.layout import Forest

NAME = "packed"

Kernel = Literal["branches", "sdpa", "flex", "varlen"]
Segments = tuple[Tensor, Tensor, Tensor]
"""`keys`, `query_ends` and `key_ends` of packed tokens."""

# Of the kernels that take a mask, torch prefers cuDNN's on Hopper and later GPUs. It plans every new shape anew, which
# takes tens of milliseconds a direction, and keeps all plans in host memory; packed passes have many shapes.
torch.backends.cuda.enable_cudnn_sdp(False)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    *,
    kernel: Kernel | None = None,
    cells: Tensor | None = None,
    forest: Forest | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that a transformers decoder layer calls.

    Args:
        module: the layer's attention.
        query: shape [1, heads, tokens, head size].
        key: shape [1, key heads, tokens, head size]; fewer heads are shared between queries.
        value: shape [1, key heads, tokens, value size].
        attention_mask: `branches.mask`, `row_mask` or `block_mask`, as the kernel needs; None for `varlen`.
        scaling: factor of the scores; None: 1 / sqrt(head size).
        softcap: bound of the scores (Gemma 2), by branches only.
        dropout: probability that an attention weight is dropped.
        kernel: see `kernel_of`.
        cells: cell of each token in the flattened rows, shape [tokens].
        forest: of the packed trees.
        segments: queries and keys of each segment.
        **kwargs: arguments of other attention functions.

    Returns:
        Attention output, shape [1, tokens, heads, value size], and no attention weights.

    Raises:
        TypeError: the layer does not pass the places of packed tokens on.
        InputError: the kernel has no dropout.
    """
    if kernel is None or cells is None or forest is None or segments is None:
        raise TypeError(f"{type(module).__name__} does not pass the places of packed tokens on")
    assert kwargs.get("s_aux") is None, "a model with attention sinks is not packed"
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kernel == "branches":
        options = softcap, dropout
        return branches.attention(query * scaling, key, value, attention_mask, options, forest), None
    assert softcap is None, "bounded scores are computed by branches"
    if dropout and kernel != "sdpa":
        raise InputError(f"attention: {kernel} has no dropout; choose sdpa, or set optimizer.dropout: false")
    if kernel == "varlen":
        return _by_segments(query, key, value, segments, _longest(forest), scaling), None
    if kernel == "flex":
        return _by_rows(query, key, value, cells, attention_mask.shape, _flex, (attention_mask, scaling)), None
    return _by_rows(query, key, value, cells, attention_mask.shape, _sdpa, (attention_mask, dropout, scaling)), None


def kernel_of(backend: Attention, config: Any, windows: Iterable[int | None], device: torch.device) -> Kernel:
    """Return the kernel that computes a decoder's attention.

    Args:
        backend: of the job.
        config: of the decoder.
        windows: of its layers, tokens; None: a layer attends to all tokens before.
        device: of the packed tokens.

    Raises:
        InputError: the backend does not compute this model, or not on this device.
    """
    bounded = getattr(config, "attn_logit_softcapping", None) is not None
    if backend == "auto":
        # on a CPU faster than torch's kernels, which have no bound of the scores
        return "branches" if device.type == "cpu" or bounded else "sdpa"
    reason = ""
    if bounded:
        reason = f"does not bound scores, as {config.model_type} does (attn_logit_softcapping)"
    elif backend == "varlen" and device.type != "cuda":
        reason = "runs on GPUs alone"
    elif backend == "varlen" and any(window is not None for window in windows):
        reason = f"does not compute the sliding attention of {config.model_type}"
    elif backend == "varlen" and "window_size" not in _flash_options():
        reason = f"needs a newer torch than {torch.__version__}"
    if reason:
        raise InputError(f"attention: {backend} {reason}; leave attention out, or choose another")
    return backend


def shares_start(kernel: Kernel) -> bool:
    """Whether all trees of a pass can be one for a kernel; a row of them would be too long."""
    return kernel in ("branches", "varlen")


@dataclass(frozen=True)
class Rows:
    """What decides which cells of packed rows attend to each other; B rows of T cells, on the device."""

    ends: Tensor  # [B, T], the column behind the last one that attends to each cell
    positions: Tensor  # [B, T], the position of each cell's token in its conversation
    window: int | None  # tokens that a token attends to, itself included; None: all before it


def row_mask(rows: Rows, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores of rows, shape [B, 1, T, T].

    In the scores' dtype, because torch would make a copy of a bool mask for each layer, and keep all of them for the
    backward pass. Padding attends to padding, so that every cell attends to one.
    """
    columns = torch.arange(rows.ends.shape[1], device=rows.ends.device)
    seen = (columns[:, None] >= columns) & (columns[:, None] < rows.ends[:, None, :])
    if rows.window is not None:
        seen &= rows.positions[:, :, None] - rows.positions[:, None, :] < rows.window
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


def block_mask(rows: Rows) -> BlockMask:
    """Return the blocks of rows that flex attention computes, and which of their scores count."""

    def seen(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (query >= key) & (query < rows.ends[row, key])
        if rows.window is None:
            return own
        return own & (rows.positions[row, query] - rows.positions[row, key] < rows.window)

    count, width = rows.ends.shape
    return create_block_mask(seen, count, None, width, width, device=rows.ends.device)


def _by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cells: Tensor,
    shape: Sequence[int],
    compute: Callable[..., Tensor],
    options: tuple[Any, ...],
) -> Tensor:
    """Lay tokens out in the rows of a mask of this shape, compute them, and return [1, tokens, heads, size]."""
    rows, _, width, _ = shape

    def laid_out(flat: Tensor) -> Tensor:
        _, heads, _, size = flat.shape
        row = flat.new_zeros(rows * width, heads, size).index_copy(0, cells, flat[0].transpose(0, 1))
        return row.view(rows, width, heads, size).transpose(1, 2)

    output = compute(laid_out(query), laid_out(key), laid_out(value), *options)
    return output.transpose(1, 2).flatten(0, 1).index_select(0, cells)[None]


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float) -> Tensor:
    """Attention of rows, [rows, heads, width, size]."""
    # torch's memory-efficient kernel takes a mask but no grouped heads; grouped heads would use the slow kernel
    key, value = _repeated(key, query.shape[1]), _repeated(value, query.shape[1])
    return scaled_dot_product_attention(query, key, value, mask.to(query.dtype), dropout, scale=scaling)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float) -> Tensor:
    """Attention of rows, [rows, heads, width, size]; on a CPU not compiled, which needs no C++ compiler."""
    compute: Any = _compiled_flex() if query.is_cuda else flex_attention
    heads = query.shape[1]
    grouped = heads & (heads - 1) == 0  # the compiled kernel groups a power of two
    if not grouped:
        key, value = _repeated(key, heads), _repeated(value, heads)
    output: Tensor = compute(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return output


@functools.cache
def _flash_options() -> frozenset[str]:
    """Names of the arguments that torch's variable-length attention takes, which differ by version."""
    from torch.nn.attention import varlen

    return frozenset(inspect.signature(varlen.varlen_attn).parameters)


def _longest(forest: Forest) -> tuple[int, int]:
    """Return the most queries and the most keys of a segment."""
    return max(forest.tokens), max(map(sum, zip(forest.before, forest.tokens, strict=True)))


def _by_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, longest: tuple[int, int], scaling: float
) -> Tensor:
    """Attention of each segment to what is before it and to itself, [1, tokens, heads, size].

    A segment's queries are the last of its keys, as the flash kernel's causal mask has it. `longest` are the most
    queries and the most keys of a segment.
    """
    from torch.nn.attention import varlen

    places, query_ends, key_ends = segments
    queries, keys, values = (whole[0].transpose(0, 1) for whole in (query, key, value))
    keys, values = keys.index_select(0, places), values.index_select(0, places)
    grouped = "enable_gqa" in _flash_options()
    if not grouped:
        keys, values = _repeated(keys, queries.shape[1]), _repeated(values, queries.shape[1])
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)} | ({"enable_gqa": True} if grouped else {})
    output = varlen.varlen_attn(queries, keys, values, query_ends, key_ends, *longest, **options)
    assert isinstance(output, Tensor), "no other result was asked for"
    return output[None]


def _repeated(shared: Tensor, heads: int) -> Tensor:
    """Repeat each key or value head, which are dimension 1, for the query heads that share it."""
    return shared.repeat_interleave(heads // shared.shape[1], 1)


AttentionInterface.register(NAME, attention)
