"""Phrases of a lexicon as one regular expression over words.

A phrase is written with words and

- `kill*`: words that begin with kill,
- `(kill|hurt my) self`: one of several,
- `really?`, `(my|own)?`: may be absent; not the first word,
- `...`: up to three words in between,
- `#`: a number,
- `.`: the end of a sentence,
- `SELF`: one of the words under that name.

Words are matched in folded text in which a space follows each of them; a text of a language without spaces is matched
as it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from psyco_ray.screening.folding import fold

_ITEMS = re.compile(r"\.\.\.|[()|?]|[^\s()|?]+")
_GAP = "..."
_ENDING = "[^ .]* "
_NUMBER = r"\d+ "


class Phrases:
    """Phrases of one kind, found by their first word: few places of a text are compared with few of them.

    Attributes:
        words: in the phrases, without an ending `*`.
        stems: words before a `*`.
    """

    def __init__(self, lines: Iterable[str], names: Mapping[str, str], spaced: bool = True) -> None:
        """Read phrases.

        Args:
            lines: the phrases.
            names: for each name in capitals, its alternatives.
            spaced: whether the language puts spaces between words.

        Raises:
            ValueError: a phrase is not written as above.
        """
        parser = _Parser(names, spaced)
        self._spaced = spaced
        self._rests: dict[str, list[str]] = {}  # what follows a first word, by its pattern
        for line in lines:
            for first, rest in parser.phrase(line):
                self._rests.setdefault(first, []).append(rest)
        self.words, self.stems = frozenset(parser.words), frozenset(parser.stems)
        self._following = functools.lru_cache(maxsize=100_000)(self._compile)

    def find(self, words: Sequence[str], joined: str) -> list[tuple[int, int]]:
        """Where phrases begin and end in the joined words; none overlaps another one.

        Args:
            words: each followed by a space, if the language has spaces.
            joined: the words, put together.
        """
        if not self._spaced:
            return [match.span() for match in self._whole.finditer(joined)]
        found, position, last = [], 0, 0
        following = self._following
        for word in words:
            position += len(word)
            match_rest = following(word)
            if match_rest is not None and position > last and (match := match_rest(joined, position)):
                last = match.end()
                found.append((position - len(word), last))
        return found

    @functools.cached_property
    def _whole(self) -> re.Pattern[str]:
        """All phrases of a language without spaces; compiling those of a language with spaces takes seconds."""
        return re.compile("|".join(f"{first}(?:{'|'.join(rests)})" for first, rests in self._rests.items()) or "(?!)")

    def _compile(self, word: str) -> Callable[[str, int], re.Match[str] | None] | None:
        """Matches what may follow a word with its space; None: no phrase begins with it."""
        stems = (re.escape(word[:end]) + _ENDING for end in range(1, len(word)))
        firsts = [re.escape(word[:-1]) + " ", *stems, *([_NUMBER] if word[:-1].isdigit() else [])]
        rests = dict.fromkeys(rest for first in firsts for rest in self._rests.get(first, ()))
        return re.compile("|".join(rests)).match if rests else None


class _Parser:
    def __init__(self, names: Mapping[str, str], spaced: bool) -> None:
        self._names, self._spaced = names, spaced
        self.words: set[str] = set()
        self.stems: set[str] = set()
        self._line = ""
        self._items: list[str] = []

    def phrase(self, line: str) -> list[tuple[str, str]]:
        """For each first word of a phrase its pattern and the pattern of what follows."""
        self._line, self._items = line, _ITEMS.findall(line)[::-1]
        sequences = self._alternatives()
        if self._items:
            raise ValueError(f"the phrase {line!r} has a bracket too many")
        found = []
        for sequence in sequences:
            found += self._started(sequence)
        if any(not first or first.startswith("(?") for first, _ in found):
            raise ValueError(f"the phrase {line!r} begins with a gap or with a word that may be absent")
        return found

    def _alternatives(self) -> list[list[tuple[str, list[list[tuple]] | None]]]:
        """Sequences of (pattern, alternatives of a group or None), up to a closing bracket or the end."""
        sequences: list[list[tuple]] = [[]]
        while self._items and self._items[-1] != ")":
            item = self._items.pop()
            if item == "|":
                sequences.append([])
                continue
            node = self._group(item) if item == "(" or item in self._names else (self._word(item), None)
            if self._items and self._items[-1] == "?":
                self._items.pop()
                node = (f"(?:{node[0]})?", None)
            sequences[-1].append(node)
        if not all(sequences):
            raise ValueError(f"the phrase {self._line!r} has an empty alternative")
        return sequences

    def _group(self, item: str) -> tuple:
        if item == "(":
            inner = self._alternatives()
            if not self._items:
                raise ValueError(f"the phrase {self._line!r} has a bracket that is not closed")
            self._items.pop()
        else:
            outer, self._items = self._items, _ITEMS.findall(self._names[item])[::-1]
            inner = self._alternatives()
            self._items = outer
        return f"(?:{'|'.join(''.join(p for p, _ in sequence) for sequence in inner)})", inner

    def _started(self, sequence: list[tuple]) -> list[tuple[str, str]]:
        (pattern, inner), rest = sequence[0], "".join(p for p, _ in sequence[1:])
        if inner is None:
            return [(pattern, rest)]
        return [(first, more + rest) for alternative in inner for first, more in self._started(alternative)]

    def _word(self, item: str) -> str:
        if item == _GAP:
            return r"(?:[^ .]+ ){0,3}" if self._spaced else r"[^.!?\s]{0,6}"
        word = fold(item)
        if not self._spaced:
            return re.escape(word)
        if word == "#":
            return _NUMBER
        if word == ".":
            return r"\. "
        stem = word.rstrip("*").replace("'", "")
        assert stem
        assert "*" not in stem
        (self.stems if word.endswith("*") else self.words).add(stem)
        return re.escape(stem) + (_ENDING if word.endswith("*") else " ")
