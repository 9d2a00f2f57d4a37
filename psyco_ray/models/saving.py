"""Checkpoints: model directories that replace their base in transformers, vLLM and psyco_ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.models import loading, stop_tokens
from psyco_ray.models.weight_files import WeightFiles, persistent_tensors
from psyco_ray.run import storage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAX_SHARD = "4GB"  # of a safetensors file: object stores copy at most 5 GB at once
_KEPT = (
    "*processor*.json",
    "chat_template.*",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
"""Files of a base that a checkpoint keeps, unless the tokenizer writes them anew."""


def save(
    target: str | Path, files: WeightFiles, tokenizer: PreTrainedTokenizerBase, state: Mapping[str, torch.Tensor]
) -> None:
    """Write a model directory atomically: safetensors, configurations, tokenizer, chat template, processors.

    The directory has the tensors and files of the base; a reward model has its own head instead of the base's. The
    generation config lists all stop tokens, so that servers end a turn where rollouts do.

    Args:
        target: directory or URI.
        files: of the model.
        tokenizer: of the model.
        state: whole tensors under the files' names, on the host.

    Raises:
        InputError: the directory cannot be written.
    """
    from huggingface_hub import save_torch_state_dict

    config: Any = files.model.config if files.has_head else loading.load_config(files.base)
    config.dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    with storage.atomic_dir(target) as staging:
        for pattern in _KEPT:
            for file in files.base.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, staging / file.name)
        tokenizer.save_pretrained(staging)
        config.save_pretrained(staging)
        if not files.has_head:
            settings = _generation_config(files.base, config, tokenizer)
            (staging / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        whole = {**dict(files.untouched()), **state}
        save_torch_state_dict(whole, staging, max_shard_size=_MAX_SHARD, metadata={"format": "pt"})


def save_loaded(target: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: Path) -> None:
    """As `save`, of a model of this process.

    Args:
        target: directory or URI.
        model: loaded from `base`, without adapters.
        tokenizer: of the model.
        base: directory of the base model.

    Raises:
        InputError: the model does not fit the base's files, or the directory cannot be written.
    """
    files = WeightFiles(model, base)
    save(target, files, tokenizer, {name: t.detach().clone() for name, t in files.converted(persistent_tensors(model))})


def _generation_config(base: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The base's generation config with all stop tokens."""
    from transformers import GenerationConfig

    file = base / "generation_config.json"
    kept = loading.read_json(file) if file.is_file() else GenerationConfig.from_model_config(config).to_diff_dict()
    return {**kept, "eos_token_id": list(stop_tokens.stop_tokens(tokenizer))}
