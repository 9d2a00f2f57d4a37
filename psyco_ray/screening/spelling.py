"""Words of a lexicon in the spelling of a text: typos, letters replaced or masked, letters with spaces in between."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from itertools import pairwise

from rapidfuzz.distance import OSA

_SIGNS = r"\s!-/:-@\[-`{-~\x00-\x1f\u00a0-\u00a9\u00ab-\u00b1\u00b4-\u00b8\u00bb-\u00bf\u060c\u061b\u061f\u06d4"
_SIGNS += r"\u0964\u0965\u2000-\u2bff\u3000-\u303f\ufe00-\ufe0f\uff00-\uff0f\U0001f000-\U0001faff"
_WORD = f"[^{_SIGNS}]+"  # vowel signs of Devanagari are no word characters for `re`
TOKEN = re.compile(rf"[$@]?{_WORD}(?:['*@$!#|.\-_]{{1,4}}{_WORD})*|[.!?;:\n]+")
_PARTS = re.compile(_WORD)
_PLAIN = re.compile(r"[^\W\d_]+")
_RUN = re.compile(r"(.)\1{2,}")
_LEET = [str.maketrans("013457@$!|", f"o{one}east" + f"as{one}l") for one in "il"]
_SPELLED = re.compile(r" [^ .] [^ .] [^ .] ")
_MASKS = "*#_.-@$!|"

_TYPO_LETTERS = 6  # words from this length may have one typo
_TWO_TYPOS_LETTERS = 8  # from this length, two typos that one deletion in either word undoes
_SPELLED_LETTERS = 3  # from this length, a word may have spaces between its letters
_SWAP_LETTERS = 4  # from this length, two neighbouring letters may have changed places


class Speller:
    """Finds the word of a vocabulary that a token stands for.

    Example:
        >>> Speller({"suicide", "kill"}, {}).words("s*icide")
        ('suicide',)
    """

    def __init__(self, words: Collection[str], spellings: dict[str, str], real: Collection[str] = ()) -> None:
        """Index the vocabulary.

        Args:
            words: the vocabulary.
            spellings: word of the vocabulary by another spelling.
            real: words of the language that are near to one of the vocabulary, and no typos.
        """
        self._words, self._spellings, self._real = frozenset(words), spellings, frozenset(real)
        self._deletions: dict[str, list[str]] = {}
        for word in sorted(words):
            if len(word) >= _TYPO_LETTERS:
                for shorter in _deletions(word):
                    self._deletions.setdefault(shorter, []).append(word)
            elif len(word) >= _SWAP_LETTERS:
                for swapped in _swaps(word) - self._words - self._real:
                    self._spellings.setdefault(swapped, word)
        long_words = [word for word in words if len(word) >= _TYPO_LETTERS]
        self._split = {(word[:end], word[end:]) for word in long_words for end in range(2, len(word) - 1)}
        self.words = functools.lru_cache(maxsize=100_000)(self._find)

    def joined(self, words: list[str]) -> tuple[list[str], list[int]]:
        """The words with those put together that were written with spaces: `d i e`, `sui cide`.

        Returns:
            The words, and of how many each was made.
        """
        counts = [1] * len(words)
        starts = []
        if not self._split.isdisjoint(pairwise(words)):
            starts = [n for n, split in enumerate(pairwise(words)) if split in self._split]
        if _SPELLED.search(f" {' '.join(words)} "):
            starts = sorted({*starts, *(n for n, word in enumerate(words) if len(word) == 1)})
        if not starts:
            return words, counts
        merged, end = list(words), 0
        for at in starts:
            if at < end:
                continue
            count, merged[at] = self._join(words, at)
            end = at + count
            counts[at], counts[at + 1 : end] = count, [0] * (count - 1)
        return [w for w, n in zip(merged, counts, strict=True) if n], [n for n in counts if n]

    def _join(self, words: list[str], at: int) -> tuple[int, str]:
        """How many words from a place make one of the vocabulary, and which."""
        word = words[at]
        if len(word) == 1:
            end = at + 1
            while end < len(words) and len(words[end]) == 1 and words[end] != ".":
                end += 1
            for last in range(end, at + _SPELLED_LETTERS - 1, -1):
                whole = "".join(words[at:last])
                if whole in self._words or self._spellings.get(whole):
                    return last - at, self._spellings.get(whole, whole)
        elif word not in self._words or words[at + 1] not in self._words:
            return 2, word + words[at + 1]
        return 1, word

    def _find(self, token: str) -> tuple[str, ...]:
        """The words of a token of `TOKEN`, corrected where it is no word of the vocabulary; `.` ends a sentence."""
        if token[0] in ".!?;:\n":
            return (".",)
        token = token.replace("'", "")
        if token.isdigit():
            return (token,)
        if _PLAIN.fullmatch(token):
            return (self._corrected(token),)
        unmasked = self._unmasked(token)
        if unmasked is not None:
            return (unmasked,)
        return tuple(self._corrected(part) for part in _PARTS.findall(token))

    def _corrected(self, word: str) -> str:
        if word in self._spellings:
            return self._spellings[word]
        if word in self._words or word in self._real:
            return word
        if _RUN.search(word):
            for shorter in (_RUN.sub(r"\1", word), _RUN.sub(r"\1\1", word)):
                if shorter in self._words or shorter in self._spellings:
                    return self._spellings.get(shorter, shorter)
        if len(word) < _TYPO_LETTERS - 1:
            return word
        near = {w for shorter in _deletions(word) for w in self._deletions.get(shorter, ())}
        near = {w for w in near if w[0] == word[0] and OSA.distance(w, word) <= _typos(w)}
        return min(near, key=lambda w: (OSA.distance(w, word), w), default=word)

    def _unmasked(self, token: str) -> str | None:
        """The word of the vocabulary in a token with digits or signs between its letters; None: it is none."""
        candidates = [token.translate(leet) for leet in _LEET]
        candidates += ["".join(_PARTS.findall(candidate)) for candidate in [token, *candidates]]
        for candidate in candidates:
            corrected = self._corrected(candidate)
            if corrected in self._words:
                return corrected
        if sum(character.isalpha() for character in token) < 2 or not any(mask in token for mask in _MASKS):
            return None
        pattern = re.compile("".join("." if character in _MASKS else re.escape(character) for character in token))
        return min((w for w in self._words if len(w) == len(token) and pattern.fullmatch(w)), default=None)


def _typos(word: str) -> int:
    return 1 if len(word) < _TWO_TYPOS_LETTERS else 2


def _deletions(word: str) -> set[str]:
    return {word, *(word[:n] + word[n + 1 :] for n in range(len(word)))}


def _swaps(word: str) -> set[str]:
    """Neighbouring letters changed, but for the first one."""
    return {word[:n] + word[n + 1] + word[n] + word[n + 2 :] for n in range(1, len(word) - 1)} - {word}
