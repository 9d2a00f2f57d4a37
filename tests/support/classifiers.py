"""Tiny random classifiers of texts with named labels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification

from support import families

LABELS = ("neutral", "suicidal", "hostile")


def write_classifier(
    path: Path, problem_type: str | None = None, labels: Sequence[str] = LABELS, positions: int = 512, seed: int = 0
) -> Path:
    """Write a BERT that reads bytes between `<s>` and `</s>`, at most `positions` of them; returns its directory."""
    torch.manual_seed(seed)
    config = BertConfig(
        **{**families.SMALL, "max_position_embeddings": positions},
        vocab_size=families.VOCABULARY,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        problem_type=problem_type,
    )
    BertForSequenceClassification(config).eval().save_pretrained(path)
    tokenizer = families.new_tokenizer("</s>", None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", families.BOS), ("</s>", families.EOS)]
    )
    tokenizer.save_pretrained(path)
    return path
