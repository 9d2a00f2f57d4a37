"""Log-probabilities of target tokens from hidden states, with the logits of one chunk of rows in memory at a time.

Hand-written, with packed rows and their attention: together they train 2.3 times TRL's pairs per second in the
project's benchmark (benchmarks/learner.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def chunked_logprobs(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_rows: int) -> Tensor:
    """Log-probability of each target token under ``softmax(rows @ weight.T + bias)``.

    Args:
        rows: hidden states, shape [S, hidden].
        weight: of the output layer, shape [vocabulary, hidden].
        bias: of the output layer, shape [vocabulary].
        targets: token ids, shape [S].
        logit_rows: rows of a chunk.

    Returns:
        Nats, float32, shape [S].
    """
    logprobs: Tensor = _ChunkedLogprobs.apply(rows, weight, bias, targets, logit_rows)
    return logprobs


class _ChunkedLogprobs(torch.autograd.Function):
    """Keeps the last chunk's probabilities for the backward pass, which turns them into gradients in place.

    Earlier chunks are recomputed, so that one chunk exists at a time; on a CPU most passes have a single chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_rows: int
    ) -> Tensor:
        logprobs = []
        for chunk_rows, chunk_targets in zip(rows.split(logit_rows), targets.split(logit_rows), strict=True):
            ctx.last = None  # frees a chunk before the next one is allocated
            chunk_logprobs, *ctx.last = _chunk(chunk_rows, weight, bias, chunk_targets)
            logprobs.append(chunk_logprobs)
        ctx.save_for_backward(rows, weight, bias, targets)
        ctx.logit_rows = logit_rows
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets = ctx.saved_tensors
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        row_grad = torch.empty_like(rows) if needs_rows else None
        weight_grad: Tensor | None = None
        bias_grad = torch.zeros_like(bias) if needs_bias else None
        assert ctx.last is not None, "a second backward pass: the first one consumed the kept chunk"
        for start in reversed(range(0, len(rows), ctx.logit_rows)):  # the kept chunk is the last one
            chunk = slice(start, start + ctx.logit_rows)
            residual, total = ctx.last or _chunk(rows[chunk], weight, bias, targets[chunk])[1:]
            ctx.last = None
            grad = residual.mul_((-grad_output[chunk, None] / total).to(residual.dtype))
            if row_grad is not None:
                torch.mm(grad, weight, out=row_grad[chunk])
            if needs_weight and weight_grad is None:
                weight_grad = grad.t() @ rows[chunk]
            elif weight_grad is not None:
                weight_grad.addmm_(grad.t(), rows[chunk])
            if bias_grad is not None:
                bias_grad += grad.sum(0)
            del grad, residual  # before the next chunk is computed
        return row_grad, weight_grad, bias_grad, None, None


def _chunk(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a chunk's log-probabilities and what its gradients are made of.

    Returns:
        Log-probabilities of the targets in nats, float32, shape [S]; softmax minus one-hot target, unnormalised, shape
        [S, vocabulary]; its normaliser, float32, shape [S, 1].
    """
    logits = linear(rows, weight, bias).float()
    highest = logits.amax(1, keepdim=True)
    target_logits = logits.gather(1, targets[:, None]) - highest
    exponentials = logits.sub_(highest).exp_()
    total = exponentials.sum(1, keepdim=True)
    # subtracted before rounding to the layer's dtype: the gradient of a confident token is the small remainder
    exponentials.scatter_add_(1, targets[:, None], -total)
    return (target_logits - total.log()).squeeze(1), exponentials.to(rows.dtype), total
