"""The language of a text: the script first, then py3langid among the languages of that script."""

from __future__ import annotations

import functools
import re
from typing import Any

UNKNOWN = "und"
"""Too short, or several languages are about as likely."""

_SAMPLE = 200  # characters that are looked at
_LETTERS = 12  # fewer letters of an alphabet are no evidence
_SYLLABLES = 2  # likewise for Chinese characters, kana and Hangul
_WORDS = 8  # from so many words, a text is English with
_FUNCTION_WORDS, _SHARE = 3, 0.25  # so many English function words, and this share of them
_ENGLISH = re.compile(
    r"\b(?:the|and|my|to|of|that|was|have|with|not|this|you|for|but|it|its|i'?m|i've|don'?t|can'?t|am|are|what|he|she|they"
    r"|from|when|who|would|could|should|because|about|just|been|being|feel|feeling|i|how|know|like|if|there|their|him|his"
    r"|her|your|get|want|think|time|more|why|did|does|had|has|really|people|very|into|than|then|our|never|always|is|we)\b"
)
_TOKEN = re.compile(r"\w+(?:'\w+)*")
_SURE = 0.6  # least probability; the ones of py3langid are normalised over the languages of the script

_LATIN = (
    *("en", "es", "de", "fr", "pt", "it", "nl", "sv", "da", "no", "fi", "pl", "cs", "sk", "hu", "ro", "tr", "id"),
    *("vi", "sw", "tl", "hr", "sl", "et", "lv", "lt", "ca", "sq", "is", "cy", "so"),
)

# Scripts with the characters that show them, and the languages that are written in them. Of several, py3langid decides.
# Han comes after kana: a Japanese text has both. Languages that are close to one of the list and rare in such data are
# absent (Galician, Afrikaans, ...): they would only take texts from it.
_SCRIPTS = {
    "kana": ("぀-ヿ", ("ja",)),
    "hangul": ("ᄀ-ᇿ가-힯", ("ko",)),
    "han": ("㐀-䶿一-鿿豈-﫿", ("zh",)),
    "arabic": ("؀-ۿݐ-ݿﭐ-﷿ﹰ-﻿", ("ar", "fa", "ur", "ps", "ku")),
    "devanagari": ("ऀ-ॿ", ("hi", "mr", "ne")),
    "cyrillic": ("Ѐ-ԯ", ("ru", "uk", "bg", "be", "sr", "mk", "kk")),
    "greek": ("Ͱ-Ͽἀ-῿", ("el",)),
    "hebrew": ("֐-׿", ("he",)),
    "armenian": ("԰-֏", ("hy",)),
    "georgian": ("Ⴀ-ჿ", ("ka",)),
    "ethiopic": ("ሀ-፿", ("am",)),
    "bengali": ("ঀ-৿", ("bn",)),
    "gurmukhi": ("਀-੿", ("pa",)),
    "gujarati": ("઀-૿", ("gu",)),
    "tamil": ("஀-௿", ("ta",)),
    "telugu": ("ఀ-౿", ("te",)),
    "kannada": ("ಀ-೿", ("kn",)),
    "malayalam": ("ഀ-ൿ", ("ml",)),
    "thai": ("฀-๿", ("th",)),
    "khmer": ("ក-៿", ("km",)),
    "burmese": ("က-႟", ("my",)),
    "latin": ("A-Za-zÀ-ɏḀ-ỿ", _LATIN),
}
_DENSE = ("kana", "hangul", "han")  # one character says about as much as a word
_BEYOND_ENGLISH = re.compile("[À-῿Ⰰ-퟿豈-�]")  # letters that are no English ones
_BEYOND_LATIN = re.compile("[Ͱ-῿Ⰰ-퟿豈-�]")  # letters of all scripts but the Latin one; no quotation marks
_PATTERNS = {name: re.compile(f"[{characters}]") for name, (characters, _) in _SCRIPTS.items()}


def script_of(text: str) -> str | None:
    """The script of most letters of a text, such as `latin`, `cyrillic` or `han`; None without a letter of a known one.

    A character of Chinese, kana or Hangul counts as four letters. A fifth of kana makes a text Japanese.
    """
    sample = text[:_SAMPLE]
    if not _BEYOND_LATIN.search(sample):
        return "latin" if _PATTERNS["latin"].search(sample) else None
    counts = {name: len(pattern.findall(sample)) * (4 if name in _DENSE else 1) for name, pattern in _PATTERNS.items()}
    if counts["kana"] * 4 >= counts["han"]:
        counts["kana"] += counts["han"]
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None


def scripts_in(text: str) -> set[str]:
    """The scripts of which a text has four letters, or four of whose characters it has, but for the Latin one."""
    if not _BEYOND_LATIN.search(text):
        return set()
    return {name for name, pattern in _PATTERNS.items() if name != "latin" and len(pattern.findall(text)) >= 4}


def language_of(text: str) -> tuple[str, float]:
    """The language of a text as its ISO 639-1 code, and the probability.

    Returns:
        `und` with the probability of the likeliest language where the text is too short (12 letters, or 2 characters of
        Chinese, Japanese or Korean) or no language has a probability of 0.6.
    """
    sample = text[:_SAMPLE]
    if not _BEYOND_ENGLISH.search(sample):  # most texts of most users, at a tenth of the time
        words = len(sample.split())
        tokens = _TOKEN.findall(sample.lower().replace("’", "'"))
        if words >= _WORDS and sum(map(_english_words, tokens)) >= max(_FUNCTION_WORDS, _SHARE * words):
            return "en", 1.0
    script = script_of(sample)
    if script is None:
        return UNKNOWN, 0.0
    _, languages = _SCRIPTS[script]
    if len(_PATTERNS[script].findall(sample)) < (_SYLLABLES if script in _DENSE else _LETTERS):
        return UNKNOWN, 0.0
    if len(languages) == 1:
        return languages[0], 1.0
    language, confidence = _identifier(script).classify(sample)
    return (language if confidence >= _SURE else UNKNOWN), float(confidence)


@functools.lru_cache(maxsize=50_000)
def _english_words(token: str) -> int:
    return len(_ENGLISH.findall(token))


@functools.cache
def _identifier(script: str) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_SCRIPTS[script][1])
    return identifier
