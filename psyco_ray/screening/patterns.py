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

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from psyco_ray.screening.folding import fold

_ITEMS = re.compile(r"\.\.\.|[()|?]|[^\s()|?]+")
_GAP = "..."


@dataclass(frozen=True)
class Phrases:
    """Phrases of one kind.

    Attributes:
        pattern: matches each of them.
        words: in them, without an ending `*`.
        stems: words before a `*`.
    """

    pattern: re.Pattern[str]
    words: frozenset[str]
    stems: frozenset[str]


def compile_phrases(lines: Iterable[str], names: Mapping[str, str], spaced: bool = True) -> Phrases:
    """All phrases as one pattern, grouped by their first word so that each place of a text is compared with few.

    Args:
        lines: the phrases.
        names: for each name in capitals, its alternatives.
        spaced: whether the language puts spaces between words.

    Raises:
        ValueError: a phrase is not written as above.
    """
    parser = _Parser(names, spaced)
    by_letter: dict[str, list[str]] = {}
    for line in lines:
        ends: dict[tuple[str, str], list[str]] = {}  # of first words, by their first letter and what follows them
        for first, rest in parser.phrase(line):
            ends.setdefault((first[0], rest), []).append(first[1:])
        for (letter, rest), firsts in ends.items():
            by_letter.setdefault(letter, []).append(f"(?:{'|'.join(dict.fromkeys(firsts))}){rest}")
    branches = [f"{re.escape(letter)}(?:{'|'.join(phrases)})" for letter, phrases in by_letter.items()]
    start = r"(?<!\S)" if spaced else ""
    return Phrases(
        re.compile(f"{start}(?:{'|'.join(branches) or '(?!)'})"), frozenset(parser.words), frozenset(parser.stems)
    )


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
            return r"\d+ "
        if word == ".":
            return r"\. "
        stem = word.rstrip("*").replace("'", "")
        assert stem
        assert "*" not in stem
        (self.stems if word.endswith("*") else self.words).add(stem)
        return re.escape(stem) + (r"[^ .]* " if word.endswith("*") else " ")
