"""Spans of a text, and the form of a text that the patterns of personal data read."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple


class Span(NamedTuple):
    """A part of a text that holds personal data."""

    start: int
    end: int
    kind: str
    """What it is, in capitals: the placeholder without its brackets."""


LETTER = r"[^\W\d_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter of a script that separates words."""
WORD = r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter of such a script, a digit or an underscore. Chinese characters may be joined to a number."""

_SAME_LENGTH = {n: str(unicodedata.digit(chr(n))) for n in range(128, 0x10000) if chr(n).isdecimal()}
_SAME_LENGTH |= {n: chr(n - 0xFEE0) for n in range(0xFF01, 0xFF5F) if not chr(n).isdecimal()}  # full-width forms
_SAME_LENGTH |= dict.fromkeys(map(ord, "‘’ʼ´`"), "'") | dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_SAME_LENGTH |= dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f\u3000"), " ") | {ord("。"): "."}


def normalised(text: str) -> str:
    """The text with ASCII digits, quotes, hyphens and spaces, each character at its place."""
    return text if text.isascii() else text.translate(_SAME_LENGTH)
