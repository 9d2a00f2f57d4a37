"""Log-probabilities of target tokens out of hidden states: an output layer whose logits exist a chunk at a time."""

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
        bias: of it, shape [vocabulary].
        targets: token ids, shape [S].
        logit_rows: rows whose logits exist at a time.

    Returns:
        Nats, float32, shape [S].
    """
    found: Tensor = _ChunkedLogprobs.apply(rows, weight, bias, targets, logit_rows)
    return found


class _ChunkedLogprobs(torch.autograd.Function):
    """One chunk's probabilities are kept for the backward pass and turned into gradients in place.

    Those of the others are made again, so that never more than a chunk exists; a pass on a CPU seldom has a second.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_rows: int
    ) -> Tensor:
        found = []
        for part, wanted in zip(rows.split(logit_rows), targets.split(logit_rows), strict=True):
            ctx.last = None  # before the next one takes its place
            logprobs, *ctx.last = _chunk(part, weight, bias, wanted)
            found.append(logprobs)
        ctx.save_for_backward(rows, weight, bias, targets)
        ctx.logit_rows = logit_rows
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad[:3]
        row_grad = torch.empty_like(rows) if of_rows else None
        weight_grad: Tensor | None = None
        bias_grad = torch.zeros_like(bias) if of_bias else None
        assert ctx.last is not None, "its chunk was used up by the first backward pass"
        # from the last one on, which is there
        for start in reversed(range(0, len(rows), ctx.logit_rows)):
            chunk = slice(start, start + ctx.logit_rows)
            ahead, total = ctx.last or _chunk(rows[chunk], weight, bias, targets[chunk])[1:]
            ctx.last = None
            grad = ahead.mul_((-slopes[chunk, None] / total).to(ahead.dtype))
            if row_grad is not None:
                torch.mm(grad, weight, out=row_grad[chunk])
            if of_weight and weight_grad is None:
                weight_grad = grad.t() @ rows[chunk]
            elif weight_grad is not None:
                weight_grad.addmm_(grad.t(), rows[chunk])
            if bias_grad is not None:
                bias_grad += grad.sum(0)
        return row_grad, weight_grad, bias_grad, None, None


def _chunk(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the targets, and what their gradients are made of.

    Returns:
        Nats, float32, [S]; by how much a probability is ahead of what is wanted, [S, vocabulary], and what it is to be
        divided by, float32, [S, 1].
    """
    logits = linear(rows, weight, bias).float()
    highest = logits.amax(1, keepdim=True)
    wanted = logits.gather(1, targets[:, None]) - highest
    powers = logits.sub_(highest).exp_()
    total = powers.sum(1, keepdim=True)
    # taken off before it is rounded to the layer's dtype: a sure token's gradient is the small rest
    powers.scatter_add_(1, targets[:, None], -total)
    return (wanted - total.log()).squeeze(1), powers.to(rows.dtype), total
