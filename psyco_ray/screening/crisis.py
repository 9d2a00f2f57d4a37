"""Screening for speeches that may mention self-harm, violence, abuse or an eating disorder.

This is triage, never diagnosis: the lexicon favours recall, so many flagged speeches are harmless. A negation ("I would
never kill myself") and the crisis of a friend are flagged as well. Texts in a language without a lexicon
are not screened.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from psyco_ray.config.contexts import Context
from psyco_ray.config.data import CrisisKind
from psyco_ray.screening.folding import fold, offsets
from psyco_ray.screening.languages import UNKNOWN, language_of, script_of, scripts_in
from psyco_ray.screening.patterns import Phrases
from psyco_ray.screening.spelling import TOKEN, Speller

KINDS: tuple[str, ...] = get_args(CrisisKind)
"""The kinds that the screen distinguishes."""

LANGUAGES = ("en", "es", "de", "fr", "pt", "zh", "ar", "hi", "ru")
"""The languages with a lexicon; English is looked for in texts of all of them."""

_OTHERS = (
    "others"  # a lexicon of unmistakable phrases of more languages; a text in them is not screened without a match
)

_LATIN = ("en", "es", "de", "fr", "pt")
_BY_SCRIPT = {"latin": _LATIN, "han": ("zh",), "arabic": ("ar",), "devanagari": ("hi",), "cyrillic": ("ru",)}
_CHARACTER = re.compile(r"[^\W_]|[.!?;]")
_FRAMED_WORDS = 6  # so many words may be between a frame and a match that it hides
_LEXICON = Path(__file__).with_name("lexicon")


@dataclass(frozen=True)
class Flag:
    """One place of a text that a phrase of the lexicon matches.

    Attributes:
        kind: one of KINDS.
        start: offset of its first character.
        end: offset behind its last character.
    """

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Screened:
    """What the screen says of a text.

    Attributes:
        language: of the text, by `languages.language_of`.
        flags: by kind, then by place.
        kinds: of the flags, in the order of KINDS. None where the text is not screened: its language has no lexicon,
            and the English one finds nothing. An empty tuple means that a lexicon of its language finds nothing.
    """

    language: str
    flags: tuple[Flag, ...]
    kinds: tuple[str, ...] | None


def screen(text: str) -> Screened:
    """The signs of a crisis in a text; favours recall over precision.

    A text is screened with the lexicon of its language and the English one. One too short for its language to be known
    is screened with all lexicons of its script. Of a conversation every turn of the client is screened, and the places
    are those in its transcript.
    """
    context = Context.of(text)
    language, _ = language_of(context.client_words)
    own, screened = _lexicons(language, context.client_words)
    flags = {
        Flag(flag.kind, place + flag.start, place + flag.end)
        for place, turn in zip(context.places[::2], context.client_turns, strict=True)
        for code in own
        for flag in _lexicon(code).flags(turn)
    }
    ordered = tuple(sorted(flags, key=lambda flag: (KINDS.index(flag.kind), flag.start, flag.end)))
    kinds = tuple(kind for kind in KINDS if any(flag.kind == kind for flag in ordered))
    return Screened(language, ordered, kinds if kinds or screened else None)


def signs(text: str) -> list[str] | None:
    """The KINDS that a text may mention, in their order; None: it is not screened."""
    kinds = screen(text).kinds
    return None if kinds is None else list(kinds)


def _lexicons(language: str, text: str) -> tuple[Sequence[str], bool]:
    """The lexicons that a text is compared with, and whether one of its own language is among them."""
    if language == "en" and text.isascii():
        return ("en",), True
    script = script_of(text) if language == UNKNOWN else None
    codes: dict[str, None] = dict.fromkeys(("en", *_BY_SCRIPT.get(script or "", ())))
    screened = script in _BY_SCRIPT and script in ("latin", "han")
    if language in LANGUAGES:
        codes[language], screened = None, True
    if not screened or script is not None:
        codes[_OTHERS] = None
    for found in scripts_in(text):
        codes.update(dict.fromkeys(_BY_SCRIPT.get(found, ())))
    return tuple(codes), screened


class _Lexicon:
    def __init__(self, code: str, settings: dict[str, Any]) -> None:
        names, self._spaced = settings.get("words", {}), settings.get("spaced", True)
        self._phrases = Phrases({kind: _lines(settings[kind]) for kind in KINDS}, names, self._spaced)
        self._idioms, self._frames = (
            Phrases({"": _lines(settings.get(part, ""))}, names, self._spaced) for part in ("idioms", "frames")
        )
        self._first_person = re.compile(f" (?:{settings.get('first person', '(?!)')}) ")
        self._variants = str.maketrans(settings.get("variants", {}))
        words: set[str] = set()
        for phrases in (self._phrases, self._idioms, self._frames):
            words |= phrases.words
            words |= {stem + ending for stem in phrases.stems for ending in settings.get("endings", [""])}
        spellings = {
            fold(other): word for word, others in settings.get("spellings", {}).items() for other in others.split()
        }
        self._speller = Speller(words, spellings, {fold(word) for word in settings.get("real words", "").split()})

    def flags(self, text: str) -> list[Flag]:
        """All places that a phrase matches, but for those in an idiom, or of others in a framed sentence."""
        folded = fold(text).translate(self._variants)
        words, counts = self._words(folded)
        joined = " ".join(words) + " " if self._spaced else "".join(words)
        found = self._phrases.find(words, joined)
        if not found:
            return []
        frames = self._frames.find(words, joined)
        if idioms := self._idioms.find(words, joined):
            for _, start, end in idioms:
                joined = joined[:start] + re.sub(r"[^ ]", "_", joined[start:end]) + joined[end:]
            words = joined[:-1].split(" ") if self._spaced else words
            found = self._phrases.find(words, joined)
        if frames:
            found = self._of_the_person(found, joined, [(start, end) for _, start, end in frames])
        spans, places = self._spans(folded, counts), offsets(text, folded)
        flags = []
        for kind, start, end in found:
            first, last = self._numbers(joined, start, end)
            while last > first and words[last] == ".":
                last -= 1
            flags.append(Flag(kind, places[spans[first][0]], places[spans[last][1] - 1] + 1))
        return flags

    def _of_the_person(
        self, found: list[tuple[str, int, int]], joined: str, frames: Sequence[tuple[int, int]]
    ) -> list[tuple[str, int, int]]:
        """The matches but for those soon behind a frame in its sentence, no word of the first person in or before them.

        The frame and the word before it do not count: "I read a book" says nothing of the reader.
        """
        outside = joined
        for start, end in frames:
            start = joined.rfind(" ", 0, max(0, start - 1)) + 1
            outside = outside[:start] + re.sub(r"[^ .]", "_", outside[start:end]) + outside[end:]
        kept = []
        for kind, start, end in found:
            begin = joined.rfind(".", 0, start) + 1
            framed = any(
                begin <= frame[0] <= start and joined.count(" ", frame[1], start) <= _FRAMED_WORDS for frame in frames
            )
            if not framed or self._first_person.search(" " + outside[begin:end].lstrip()):
                kept.append((kind, start, end))
        return kept

    def _numbers(self, joined: str, start: int, end: int) -> tuple[int, int]:
        """The numbers of the first and the last word of a part."""
        if not self._spaced:
            return start, end - 1
        first = joined.count(" ", 0, start)
        return first, first + joined.count(" ", start, end) - 1

    def _words(self, folded: str) -> tuple[list[str], list[int]]:
        """The corrected words, and how many pieces of tokens each is made of.

        Without spaces between words: the characters that are letters, digits or ends of sentences.
        """
        if not self._spaced:
            characters = _CHARACTER.findall(folded)
            return characters, [1] * len(characters)
        pieces = [*itertools.chain.from_iterable(map(self._speller.words, TOKEN.findall(folded))), "."]
        return self._speller.joined(pieces)

    def _spans(self, folded: str, counts: list[int]) -> list[tuple[int, int]]:
        """Where each word is in the folded text."""
        if not self._spaced:
            return [match.span() for match in _CHARACTER.finditer(folded)]
        pieces = [match.span() for match in TOKEN.finditer(folded) for _ in self._speller.words(match[0])]
        pieces.append((len(folded), len(folded)))
        ends = list(itertools.accumulate(counts))
        return [(pieces[end - count][0], pieces[end - 1][1]) for count, end in zip(counts, ends, strict=True)]


def _lines(block: str) -> list[str]:
    """The phrases in a block of lines, which may hold comments."""
    lines = [line.strip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("# ")]


@functools.cache
def _lexicon(code: str) -> _Lexicon:
    return _Lexicon(code, yaml.safe_load((_LEXICON / f"{code}.yaml").read_text("utf-8")))
