"""The tokens that end a policy's turn, the same in sampling, in training and in a saved checkpoint."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyco_ray.config.errors import InputError
from psyco_ray.models import loading, templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of the tokens that end a turn, in ascending order.

    They are those of the generation config beside the tokenizer (without one, of the model's configuration), the
    tokenizer's end of text, and the token with which the chat template ends an answer. No one of the three is complete:
    Phi-3.5 names its end of turn in the generation config alone, some fine-tuned models in their template alone.

    Args:
        tokenizer: with a chat template, loaded from a model's directory.

    Raises:
        InputError: generation_config.json is invalid.
    """
    return _stop_tokens(tokenizer, str(tokenizer.chat_template), tokenizer.eos_token_id)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that a finished turn ends with where the chat template writes none after a last answer.

    It is what the template writes before the client's next turn, if that is a stop token (GLM-4); else the end of text.
    """
    return _end_of_turn(tokenizer, str(tokenizer.chat_template))


@functools.lru_cache(maxsize=16)
def _stop_tokens(tokenizer: PreTrainedTokenizerBase, template: str, eos: int | None) -> tuple[int, ...]:
    """As `stop_tokens`; what may change in a tokenizer is part of the cache's key."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    written = (token for token in _ids(tokenizer, templates.after_answer(tokenizer)) if token in special)
    ends = {*_configured(Path(tokenizer.name_or_path)), eos, next(written, None)}
    return tuple(sorted(token for token in ends if token is not None))


@functools.lru_cache(maxsize=16)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """As `end_of_turn`; `template` is part of the cache's key."""
    stops = stop_tokens(tokenizer)
    following = _ids(tokenizer, templates.after_answer(tokenizer, continued=True))
    return next((token for token in following if token in stops), tokenizer.eos_token_id)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _configured(directory: Path) -> list[int]:
    """The stop tokens that a model's files configure."""
    file = directory / "generation_config.json"
    if not file.is_file():
        file = directory / "config.json"
    if not file.is_file():
        return []
    settings: dict[str, Any] = loading.read_json(file)
    ends = settings.get("eos_token_id", (settings.get("text_config") or {}).get("eos_token_id"))
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(isinstance(token, int) for token in ends):
        raise InputError(f"{file} has the eos_token_id {ends}; give token ids")
    return ends
