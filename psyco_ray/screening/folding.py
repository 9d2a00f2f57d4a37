"""Texts without differences of case, accents and variants of letters, character by character: offsets stay known."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right

_SAME = {
    **dict.fromkeys("’‘ʼ`´′＇", "'"),
    **dict(zip("ßøłđıæœðþ", "soldiaodt", strict=True)),
    **dict(zip("أإآٱىةؤئ", "اااايهوي", strict=True)),  # Arabic letters that are often written for each other
    "ँ": "ं",
    "।": ".",
    **dict(zip("。！？；，、", ".!?;,,", strict=True)),
}
_DECOMPOSED = (
    (0x00, 0x058F),
    (0x0958, 0x095F),
    (0x1E00, 0x1FFF),
    (0xFB00, 0xFDFF),
    (0xFE70, 0xFFEF),
    (0x1D400, 0x1D7FF),
)
_DECOMPOSED_STARTS = [first for first, _ in _DECOMPOSED]
_MARKS = ((0x0300, 0x036F), (0x0640, 0x0640), (0x064B, 0x065F), (0x0670, 0x0670), (0x093C, 0x093C), (0xFE00, 0xFE0F))


class _Folds(dict[int, str | None]):
    """The folded character by code point, None for one that is dropped: a table for `str.translate`."""

    def __missing__(self, code: int) -> str | None:
        folded = self[code] = _fold(code)
        return folded


def _fold(code: int) -> str | None:
    character = chr(code)
    if unicodedata.category(character) == "Cf" or any(first <= code <= last for first, last in _MARKS):
        return None
    character = character.lower()[0]
    if character in _SAME:
        return _SAME[character]
    place = bisect_right(_DECOMPOSED_STARTS, code) - 1
    if code <= _DECOMPOSED[place][1]:
        character = unicodedata.normalize("NFKD", character).strip()[:1].lower() or " "
        return _SAME.get(character, character)
    return character


_FOLDS = _Folds()


def fold(text: str) -> str:
    """The folded text; never longer than the text."""
    return text.translate(_FOLDS)


def offsets(text: str, folded: str) -> range | list[int]:
    """For each character of the folded text, and for its end, the offset in the text."""
    if len(folded) == len(text):  # folding drops characters and never adds any
        return range(len(text) + 1)
    return [*(n for n, character in enumerate(text) if _FOLDS[ord(character)] is not None), len(text)]
