"""Phrases of a lexicon, compared with the words of a text.

A phrase is written with words and

- `kill*`: words that begin with kill,
- `(kill|hurt my) self`: one of several,
- `really?`, `(my|own)?`: may be absent; not the first word,
- `...`: up to three words in between,
- `!PERSON`, `!(he|she)`: one word at which none of these begins; not the first word,
- `#`: a number; `(#)` at the beginning of a line, as `# ` begins a comment there,
- `.`: the end of a sentence,
- `SELF`: one of the words under that name.

Words are matched in folded text in which a space follows each of them; a text of a language without spaces is matched
as it is.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from psyco_ray.screening.folding import fold

_ITEMS = re.compile(r"\.\.\.|[()|?]|[^\s()|?]+")
_GAP = "..."
_GAP_WORDS = 3
_GAP_PATTERN = rf"(?:[^ .]+ ){{0,{_GAP_WORDS}}}"
_ENDING = "[^ .]* "
_NUMBER = r"\d+ "


class Phrases:
    """Phrases of several kinds, found by their first word and one that follows: few are compared at a place of a text.

    Attributes:
        words: in the phrases, without an ending `*`.
        stems: words before a `*`.
    """

    def __init__(self, lines: Mapping[str, Iterable[str]], names: Mapping[str, str], spaced: bool = True) -> None:
        """Read phrases.

        Args:
            lines: the phrases by kind.
            names: for each name in capitals, its alternatives.
            spaced: whether the language puts spaces between words.

        Raises:
            ValueError: a phrase is not written as above.
        """
        parser = _Parser(names, spaced)
        self._spaced = spaced
        self._starts: dict[str, list[_Rest]] = {}  # what follows a first word, by its pattern
        for kind, phrases in lines.items():
            for line in phrases:
                for first, rest in parser.phrase(line):
                    self._starts.setdefault(first, []).append(_Rest(kind, rest))
        self.words, self.stems = frozenset(parser.words), frozenset(parser.stems)
        self._kinds = list(lines)
        rests = [rest for found in self._starts.values() for rest in found]
        self._heads = frozenset(head for rest in rests for head in (*rest.near, *rest.far))
        self._of = functools.lru_cache(maxsize=100_000)(self._word)
        self._start = functools.cache(self._merged)
        self._matched = functools.cache(_Matched)

    def find(self, words: Sequence[str], joined: str) -> list[tuple[str, int, int]]:
        """Kind, beginning and end of phrases in the joined words; none overlaps another one of its kind.

        Args:
            words: of the text; characters, if the language has no spaces.
            joined: the words, put together, a space behind each of them if the language has spaces.
        """
        if not self._spaced:
            return [(kind, *m.span()) for kind, whole in self._whole.items() for m in whole.finditer(joined)]
        found, last = [], dict.fromkeys(self._kinds, 0)
        for kind, start, following, end in self._matches(words, joined):
            if following > last[kind]:
                last[kind] = end
                found.append((kind, start, end))
        return found

    def _matches(self, words: Sequence[str], joined: str) -> Iterator[tuple[str, int, int, int]]:
        """Kind, beginning, beginning of the second word and end; per kind the first phrase that begins at a word."""
        starts, matched = zip(*map(self._of, words), (None, self._matched(())), strict=True)
        ends: list[int] = []
        for at, start in enumerate(starts, 1):
            if start is None:
                continue
            rests = start.near[matched[at]]
            if (far := start.far) is not None:
                for following in matched[at : at + start.reach]:
                    if more := far[following]:
                        rests = rests + more
            if rests:
                ends = ends or [*itertools.accumulate(map(len, words))]
                position = ends[at - 1] + at
                done: tuple[str, ...] = ()
                for rest in rests:
                    if rest.kind not in done and (match := rest.match(joined, position)):
                        done = (*done, rest.kind)
                        yield rest.kind, position - len(words[at - 1]) - 1, position, match.end()

    @functools.cached_property
    def _whole(self) -> dict[str, re.Pattern[str]]:
        """All phrases of a language without spaces, by kind; compiling those of one with spaces takes seconds."""
        return {kind: re.compile(self._alternatives(kind) or "(?!)") for kind in self._kinds}

    def _alternatives(self, kind: str) -> str:
        found = []
        for first, start in self._starts.items():
            rests = [rest.pattern for rest in start if rest.kind == kind]
            if rests:
                found.append(f"{first}(?:{'|'.join(rests)})")
        return "|".join(found)

    def _word(self, word: str) -> tuple[_Start | None, _Matched]:
        """What may follow a word, None if no phrase begins with it, and the patterns of following words it matches."""
        stems = (re.escape(word[:end]) + _ENDING for end in range(1, len(word) + 1))
        patterns = [re.escape(word) + " ", *stems, *([_NUMBER] if word.isdigit() else [])]
        starts = tuple(pattern for pattern in patterns if pattern in self._starts)
        matched = self._matched(tuple(pattern for pattern in patterns if pattern in self._heads))
        return (self._start(starts) if starts else None), matched

    def _merged(self, firsts: tuple[str, ...]) -> _Start:
        return _Start([rest for first in firsts for rest in self._starts[first]])


@dataclass(frozen=True, eq=False)
class _Matched:
    """The patterns that a word matches; equal ones are one object, which is a faster key than they are."""

    patterns: tuple[str, ...]


class _Rest:
    """What follows the first word of a phrase.

    Attributes:
        kind: of the phrase.
        pattern: of all of it.
        near: patterns of the second word.
        far: patterns of a word that follows a gap.
        reach: how many words behind the first one such a word may be.
        always: whether no word must follow, so that `near` and `far` do not tell where to compare.
    """

    def __init__(self, kind: str, nodes: Sequence[_Node]) -> None:
        self.kind, self.pattern = kind, _pattern(nodes)
        self.near, self.far, gaps, complete = _heads(nodes)
        self.reach, self.always = gaps * _GAP_WORDS + 1, not complete

    @functools.cached_property
    def match(self) -> Callable[[str, int], re.Match[str] | None]:
        return _compiled(self.pattern).match


class _Start:
    """What may follow a word, by the next word and by one of the words that come next."""

    def __init__(self, rests: Sequence[_Rest]) -> None:
        always = [rest for rest in rests if rest.always]
        checked = [rest for rest in rests if not rest.always]
        self.near = _ByWord([(rest, rest.near) for rest in checked], always)
        far = [(rest, rest.far) for rest in checked if rest.far]
        self.far = _ByWord(far, []) if far else None
        self.reach = max((rest.reach for rest, _ in far), default=0)


class _ByWord(dict[_Matched, list[_Rest]]):
    def __init__(self, rests: Sequence[tuple[_Rest, Collection[str]]], always: list[_Rest]) -> None:
        self._always = always
        self._rests: dict[str, list[_Rest]] = {}
        for rest, patterns in rests:
            for pattern in patterns:
                self._rests.setdefault(pattern, []).append(rest)

    def __missing__(self, word: _Matched) -> list[_Rest]:
        rests = dict.fromkeys(rest for pattern in word.patterns for rest in self._rests.get(pattern, ()))
        self[word] = found = [*self._always, *rests]
        return found


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@dataclass(frozen=True, eq=False)
class _Node:
    """A part of a phrase.

    Attributes:
        pattern: of it.
        inner: the alternatives of a group.
        optional: whether it may be absent.
        unlisted: whether it matches words that cannot be listed.
    """

    pattern: str
    inner: Sequence[Sequence[_Node]] | None = None
    optional: bool = False
    unlisted: bool = False


def _pattern(nodes: Sequence[_Node]) -> str:
    return "".join(node.pattern for node in nodes)


def _heads(nodes: Sequence[_Node]) -> tuple[set[str], set[str], int, bool]:
    """Patterns of the words that must follow.

    Returns:
        Those of the next word, those of a word behind a gap, how many gaps are before it, and whether one of them must
        be there.
    """
    near: set[str] = set()
    far: set[str] = set()
    gaps = 0
    for node in nodes:
        if node.unlisted:
            gaps += 1
            complete = False
        elif node.inner is None:
            (far if gaps else near).add(node.pattern)
            complete = True
        else:
            inner = [_heads(alternative) for alternative in node.inner]
            complete = all(part[3] for part in inner)
            for inner_near, inner_far, _, _ in inner:
                (far if gaps else near).update(inner_near)
                far |= inner_far
            gaps += max(part[2] for part in inner)
        if complete and not node.optional:
            return near, far, gaps, True
    return near, far, gaps, False


class _Parser:
    def __init__(self, names: Mapping[str, str], spaced: bool) -> None:
        self._names, self._spaced = names, spaced
        self.words: set[str] = set()
        self.stems: set[str] = set()
        self._line = ""
        self._items: list[str] = []

    def phrase(self, line: str) -> list[tuple[str, Sequence[_Node]]]:
        """For each first word of a phrase its pattern and what follows."""
        self._line, self._items = line, _ITEMS.findall(line)[::-1]
        sequences = self._alternatives()
        if self._items:
            raise ValueError(f"the phrase {line!r} has a bracket too many")
        found = []
        for sequence in sequences:
            found += self._started(sequence)
        if any(first.startswith("(?") for first, _ in found):
            raise ValueError(f"the phrase {line!r} begins with a gap or with a word that may be absent")
        return found

    def _alternatives(self) -> list[list[_Node]]:
        """Sequences of parts, up to a closing bracket or the end."""
        sequences: list[list[_Node]] = [[]]
        while self._items and self._items[-1] != ")":
            item = self._items.pop()
            if item == "|":
                sequences.append([])
                continue
            node = self._node(item)
            if self._items and self._items[-1] == "?":
                self._items.pop()
                node = _Node(f"(?:{node.pattern})?", [[node]], optional=True)
            sequences[-1].append(node)
        if not all(sequences):
            raise ValueError(f"the phrase {self._line!r} has an empty alternative")
        return sequences

    def _node(self, item: str) -> _Node:
        if item == _GAP:
            return _Node(_GAP_PATTERN if self._spaced else r"[^.!?\s]{0,6}", unlisted=True)
        if item.startswith("!"):
            listed = self._node(item[1:] or self._items.pop())
            return _Node(f"(?!{listed.pattern})[^ .]+ ", unlisted=True)
        return self._group(item) if item == "(" or item in self._names else _Node(self._word(item))

    def _group(self, item: str) -> _Node:
        if item == "(":
            inner = self._alternatives()
            if not self._items:
                raise ValueError(f"the phrase {self._line!r} has a bracket that is not closed")
            self._items.pop()
        else:
            outer, self._items = self._items, _ITEMS.findall(self._names[item])[::-1]
            inner = self._alternatives()
            self._items = outer
        return _Node(f"(?:{'|'.join(map(_pattern, inner))})", inner)

    def _started(self, sequence: Sequence[_Node]) -> list[tuple[str, Sequence[_Node]]]:
        first, rest = sequence[0], sequence[1:]
        if first.inner is None or first.optional:
            return [(first.pattern, rest)]
        return [(start, [*more, *rest]) for inner in first.inner for start, more in self._started(inner)]

    def _word(self, item: str) -> str:
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
