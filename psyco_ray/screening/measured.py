"""How many of the packaged phrases the crisis screen flags, by language and kind."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from psyco_ray.screening import crisis

BENIGN = "benign"
"""In place of a kind: harmless phrases that use the same words."""

WRITTEN_LATER = ("unseen", "fresh")
"""English phrases that were written after the lexicons, the oldest first; only `fresh` is younger than the frames."""

PARTS = ("dev", "kept", *WRITTEN_LATER)
"""The half whose misses improve the lexicons, the half that only measures, and phrases written after the lexicons."""

NAMES = {
    "en": "English",
    "es": "Spanish",
    "de": "German",
    "fr": "French",
    "pt": "Portuguese",
    "zh": "Chinese",
    "ar": "Arabic",
    "hi": "Hindi",
    "ru": "Russian",
}
"""The languages of the screen by code."""

_PHRASES = Path(__file__).with_name("phrases")


@dataclass(frozen=True)
class Phrase:
    """A packaged phrase.

    Attributes:
        language: its code.
        kind: one of `crisis.KINDS`, or BENIGN.
        text: the phrase.
        later: of WRITTEN_LATER, where it was written after the lexicons.
    """

    language: str
    kind: str
    text: str
    later: str | None = None

    @property
    def part(self) -> str:
        """One of PARTS."""
        return self.later or ("dev", "kept")[hashlib.sha256(self.text.encode()).digest()[0] % 2]


def phrases() -> Iterator[Phrase]:
    """All packaged phrases, by language and kind."""
    for language, later in [
        *((language, None) for language in crisis.LANGUAGES),
        *(("en", part) for part in WRITTEN_LATER),
    ]:
        of_language = yaml.safe_load((_PHRASES / f"{later or language}.yaml").read_text("utf-8"))
        for kind in (*crisis.KINDS, BENIGN):
            yield from (Phrase(language, kind, text, later) for text in of_language[kind])


@functools.cache
def measure() -> dict[str, Any]:
    """Phrases and flagged ones.

    Returns:
        `languages`: by the language's name and by kind, [flagged, phrases]; phrases of WRITTEN_LATER have rows of their
        own. For each of PARTS the shares of flagged phrases, `recall` of those that state danger and `false_alarms` of
        harmless ones. A phrase is flagged with any kind.
    """
    languages: dict[str, dict[str, list[int]]] = {}
    parts: dict[tuple[str, bool], list[int]] = {}
    for phrase in phrases():
        flagged = bool(crisis.signs(phrase.text))
        row = NAMES[phrase.language] + (f" ({phrase.later})" if phrase.later else "")
        cell = languages.setdefault(row, {}).setdefault(phrase.kind, [0, 0])
        for counts in (cell, parts.setdefault((phrase.part, phrase.kind == BENIGN), [0, 0])):
            counts[0] += flagged
            counts[1] += 1
    shares = {key: flagged / count for key, (flagged, count) in parts.items()}
    named = {part: {"recall": shares[part, False], "false_alarms": shares[part, True]} for part in PARTS}
    return {"languages": languages, **named}
