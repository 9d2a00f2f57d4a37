"""Batches of texts of similar lengths, padded at their right, for models that take no packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from psyco_ray.models import layout

if TYPE_CHECKING:
    import torch

Inputs = dict[str, list[int]]
"""A model's inputs for one text: `input_ids`, `attention_mask`, perhaps `token_type_ids`."""


def logits_of(
    model: Any, texts: Sequence[Inputs], pad: int | None, row_tokens: int, device: torch.device
) -> list[list[float]]:
    """The logits of a sequence classifier for each text, in float32, computed in padded batches.

    Args:
        model: the classifier.
        texts: its inputs.
        pad: id of the pad token; None: the model has none, and takes one text at a time.
        row_tokens: tokens of a batch, padding included.
        device: of the inputs.

    Returns:
        For each text a value per label.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    logits: list[list[float]] = [[] for _ in texts]
    for row in layout.plan_rows(
        [len(text["input_ids"]) for text in texts], 0 if pad is None else row_tokens, padded=True
    ):
        batch = {
            name: pad_sequence(
                [torch.tensor(texts[index][name]) for index in row],
                batch_first=True,
                padding_value=pad if name == "input_ids" and pad is not None else 0,
            ).to(device)
            for name in texts[row[0]]
        }
        for index, values in zip(row, model(**batch).logits.float().tolist(), strict=True):
            logits[index] = values
    return logits
