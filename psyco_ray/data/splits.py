"""Splits and ids by a hash of the text."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Any

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.data import turns
from psyco_ray.files.cells import described

_GREETING = 40
"""Characters of a greeting at most. No setting, as the splits of speeches, pairs and evaluations are to agree."""


@functools.lru_cache(maxsize=1)  # id, split and screening fold the same text in a row
def fold(text: str) -> str:
    """A text without differences of case and white space: equal speeches have equal folded texts."""
    return " ".join(text.casefold().split())


def text_hash(purpose: str, text: str) -> str:
    """A hash of a folded text, 64 hex digits: equal on every machine, independent between purposes."""
    return hashlib.sha256(f"{purpose}:{fold(text)}".encode()).hexdigest()


def unit(purpose: str, text: str) -> float:
    """A number in [0, 1) by the hash of a text: stable when data is added.

    Of a conversation its beginning is hashed, so that all contexts of one conversation get the same number.
    """
    return share_of(purpose, begins(Context.of(text)))


def begins(context: Context) -> str:
    """How the client begins a conversation, by which it is known: the first turns that are more than a greeting.

    If the client has said no more than a greeting, it is the first turn. Such a context does not know the conversation
    that it is a part of; of what is read as whole conversations, the whole is asked for.
    """
    return turns.beginning(context, _GREETING) or context.opening


def conversation_of(text: str, dialogue: str | None = None) -> str:
    """The id of the conversation that a context is a part of: of a speech its own id, of other contexts one for all.

    Args:
        text: of the context, or how its conversation begins.
        dialogue: id of the conversation, where it is known; None: contexts that begin alike are of one.
    """
    return dialogue or speech_id(begins(Context.of(text)))


def dialogue_in(cell: Any) -> str | None:
    """The id of a dialogue as `data build` writes it; None for whatever else a column `dialogue` holds."""
    return cell if isinstance(cell, str) and re.fullmatch(r"[0-9a-f]{16}", cell) else None


def share_of(purpose: str, words: str) -> float:
    """A number in [0, 1) by the hash of words."""
    return int(text_hash(purpose, words)[:13], 16) / 16**13


def speech_id(text: str) -> str:
    """The id of a speech: 16 hex digits of its hash."""
    return text_hash("speech", text)[:16]


def is_dev(text: str, dev_share: float) -> bool:
    """Whether a speech is held out, by a hash of its text (paper §3.3 draws at random; a hash never moves a speech)."""
    return unit("split", text) < dev_share


def split_of(row: dict[str, Any], text: str, dev_share: float) -> str:
    """The split that a row names (train, dev or test), else the split by the hash of its speech.

    Raises:
        InputError: the row names an unknown split.
    """
    split = row.get("split")
    if split not in (None, "train", "dev", "test"):
        raise InputError(f"the split is {described(split)}; train, dev and test are known")
    return split or ("dev" if is_dev(text, dev_share) else "train")


def half(text: str, dialogue: str | None = None) -> str:
    """The half, `a` or `b`, that the pairs of a speech, or of a dialogue, belong to.

    Args:
        text: of the context.
        dialogue: hash of the dialogue, of which a context may lack the beginning; None: not known.
    """
    return "a" if unit("half", dialogue or text) < 0.5 else "b"
