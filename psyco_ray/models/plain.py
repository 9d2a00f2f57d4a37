"""Response log-probabilities and scores by transformers' own forward: its attention, its state, its output layer.

Right for every causal model, because later tokens, padding among them, cannot change earlier ones. Slower than
`packing`: a prompt is computed again for each response, and short conversations are padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from psyco_ray.models.layout import Forest

Span = tuple[int, int]
"""First column of a response in its padded row, and the column behind its last token."""

Texts = tuple[Forest, Sequence[int]]
"""Segments of packed trees, and which of them are the responses."""


def attention_name(body: Any) -> str:
    """Return transformers' implementation of attention that computes a decoder body as it was trained."""
    # the sdpa kernels leave the bound of the scores out
    bounded = getattr(body.config, "attn_logit_softcapping", None) is not None
    return "sdpa" if body._supports_sdpa and not bounded else "eager"


def padded(input_ids: Tensor, texts: Texts, pad: int) -> tuple[Tensor, list[Span]]:
    """Lay each response of packed trees out behind its prompt, padded at the right.

    Returns:
        Token ids, shape [responses, longest], and each response's span.
    """
    forest, leaves = texts
    parts = input_ids[0].split(forest.tokens)
    rows = [torch.cat([parts[segment] for segment in forest.path(leaf)]) for leaf in leaves]
    spans = [(forest.before[leaf], forest.before[leaf] + forest.tokens[leaf]) for leaf in leaves]
    return pad_sequence(rows, batch_first=True, padding_value=pad), spans


def response_logprobs(model: Any, input_ids: Tensor, texts: Texts, context: Sequence[int], logit_rows: int) -> Tensor:
    """Log-probability of each response under a causal language model.

    Args:
        model: of transformers.
        input_ids: prompts and responses as `pack` concatenates them, shape [1, N].
        texts: their segments.
        context: of each response, its first tokens that do not count, see `pack`.
        logit_rows: rows of logits that are in float32 at a time.

    Returns:
        Nats, summed over a response's tokens that count, float32, a value for each response.
    """
    ids, spans = padded(input_ids, texts, _text_token(input_ids))
    spans = [(start + skipped, end) for (start, end), skipped in zip(spans, context, strict=True)]
    first = min(start for start, _ in spans) - 1
    logits = _logits(model, ids, first)
    values = []
    for row, targets, (start, end) in zip(logits, ids, spans, strict=True):
        chunks = zip(
            row[start - 1 - first : end - 1 - first].split(logit_rows),
            targets[start:end].to(row.device).split(logit_rows),
            strict=True,
        )
        # recomputed in the backward pass, so that one chunk exists in float32 at a time
        values.append(torch.stack([checkpoint(_logprob, *chunk, use_reentrant=False) for chunk in chunks]).sum())
    return torch.stack(values)


def response_scores(model: Any, input_ids: Tensor, texts: Texts, token: int | None) -> Tensor:
    """Score of each conversation, read at its response's last token.

    Args:
        model: a sequence classifier with one label, or a causal language model.
        input_ids: as `pack` concatenates them, shape [1, N]; no conversation of a classifier ends with its pad token.
        texts: their segments.
        token: whose logit of a causal language model is the score; None: the model is a classifier.

    Returns:
        Float32, a value for each response.
    """
    if token is not None:
        ids, spans = padded(input_ids, texts, _text_token(input_ids))
        first = min(end for _, end in spans) - 1
        logits = _logits(model, ids, first)
        return torch.stack([row[end - 1 - first, token] for row, (_, end) in zip(logits, spans, strict=True)]).float()
    pad = model.config.get_text_config().pad_token_id
    ids, spans = padded(input_ids, texts, pad=pad or 0)
    # transformers finds the last token by the pad token; without one it takes one conversation at a time
    batches = [ids] if pad is not None else [row[None, :end] for row, (_, end) in zip(ids, spans, strict=True)]
    return torch.cat([model(input_ids=batch, use_cache=False).logits[:, 0] for batch in batches]).float()


def _text_token(input_ids: Tensor) -> int:
    """Return a token to pad with where a model does not look at it; another one might stand for an image."""
    return int(input_ids[0, -1])


def _logits(model: Any, ids: Tensor, first: int) -> Tensor:
    """Return the model's logits from column `first` on, in its dtype, shape [rows, columns, vocabulary]."""
    parameters = inspect.signature(model.forward).parameters
    kept = ids.shape[1] - first
    options: dict[str, Any] = {"logits_to_keep": kept} if "logits_to_keep" in parameters else {}
    # a multimodal model tells its text tokens by them, and some want them in training
    if model.config.get_text_config() is not model.config:  # GPT-2 would add an embedding
        options |= {
            name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids") if name in parameters
        }
    return model(input_ids=ids, use_cache=False, **options).logits[:, -kept:]


def _logprob(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(1, targets[:, None]).sum()
