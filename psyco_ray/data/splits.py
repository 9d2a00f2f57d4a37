"""Splits and ids by a hash of the text."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from psyco_ray.config.errors import InputError


@functools.lru_cache(maxsize=1)  # id, split and screen ask for the same text one after another
def fold(text: str) -> str:
    """A text without case and white-space differences, by which equal speeches are recognised."""
    return " ".join(text.casefold().split())


def text_hash(purpose: str, text: str) -> str:
    """A hash of a folded text, as 64 hex digits; equal on every machine, independent between purposes."""
    return hashlib.sha256(f"{purpose}:{fold(text)}".encode()).hexdigest()


def unit(purpose: str, text: str) -> float:
    """A number in [0, 1) that belongs to a text: stable however much data is added."""
    return int(text_hash(purpose, text)[:13], 16) / 16**13


def speech_id(text: str) -> str:
    """The name of a speech: 16 hex digits of its hash."""
    return text_hash("speech", text)[:16]


def is_dev(text: str, dev_share: float) -> bool:
    """Whether a speech is held out; decided by its text alone (paper §3.3 draws; a hash never moves a speech)."""
    return unit("split", text) < dev_share


def split_of(row: dict[str, Any], text: str, dev_share: float) -> str:
    """The split that a row names (train, dev or test), or that its speech's hash gives.

    Raises:
        InputError: the row names another one.
    """
    given = row.get("split")
    if given not in (None, "train", "dev", "test"):
        raise InputError(f"the split is {given!r}; train, dev and test are known")
    return given or ("dev" if is_dev(text, dev_share) else "train")


def half(text: str) -> str:
    """The half of the pairs, a or b, that a speech's pairs belong to."""
    return "a" if unit("half", text) < 0.5 else "b"
