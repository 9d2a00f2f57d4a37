"""How two texts compare: two responses side by side with equal parts in line, and an edit beside its draft."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rapidfuzz.distance import LCSseq

SAME_WORDS = 4
"""Equal runs of fewer words are not marked; they are chance."""

MOST_TOKENS = 8000
"""Longer texts differ as a whole: the time and memory of a comparison grow with the product of the lengths."""

ANCHOR_SHARE = 0.4
"""Two parts stand in line if this share of the shorter one's words is equal."""

SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+")


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: the stretch.
        kind: `same`, `only`, or in a difference `equal`, `insert`, `delete`.
    """

    text: str
    kind: str


Paragraph = tuple[Piece, ...]
Cell = tuple[Paragraph, ...]


@dataclass(frozen=True)
class Part:
    """A paragraph or a sentence of one text: the numbers of its words and of the paragraph it stands in."""

    words: range
    paragraph: int


def side_by_side(left: str, right: str) -> list[tuple[Cell, Cell]]:
    """Two texts as rows of a left and a right cell; parts that are mostly equal share a row.

    Parts are paragraphs, or sentences if a text has one paragraph only. A cell is a sequence of paragraphs, each a
    sequence of pieces; runs of at least `SAME_WORDS` equal words are pieces of the kind `same`. The pieces of a side,
    put together, are the words of its text.

    Example:
        >>> side_by_side("I hear you.", "I hear you.")[0][0][0][0]
        Piece(text='I hear you.', kind='only')
    """
    sides = [_paragraphs(left), _paragraphs(right)]
    by_sentence = min(map(len, sides)) == 1
    words = [[word for paragraph in side for sentence in paragraph for word in sentence] for side in sides]
    parts = [_parts(side, by_sentence) for side in sides]
    bare = [[_bare(word) for word in side] for side in words]
    same: list[set[int]] = [set(), set()]
    for kind, a, to_a, b, to_b in _opcodes(*bare):
        if kind == "equal" and to_a - a >= SAME_WORDS:
            same[0].update(range(a, to_a))
            same[1].update(range(b, to_b))
    pairs = list(zip(*map(sorted, same), strict=True))
    rows = _rows(parts[0], parts[1], _anchors(parts[0], parts[1], pairs))
    return [(_cell(one, words[0], same[0]), _cell(other, words[1], same[1])) for one, other in rows]


def _paragraphs(text: str) -> list[list[list[str]]]:
    """The words of each sentence of each paragraph."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [[sentence.split() for sentence in SENTENCE_END.split(line) if sentence.strip()] for line in lines] or [[[]]]


def _parts(paragraphs: Sequence[Sequence[Sequence[str]]], by_sentence: bool) -> list[Part]:
    parts, start = [], 0
    for number, sentences in enumerate(paragraphs):
        for length in map(len, sentences) if by_sentence else [sum(map(len, sentences))]:
            parts.append(Part(range(start, start + length), number))
            start += length
    return parts


def _bare(word: str) -> str:
    return word.strip(".,;:!?…\"'“”‘’()*_").lower() or word


def _anchors(left: Sequence[Part], right: Sequence[Part], pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Numbers of parts that stand in line, rising on both sides."""
    part_of = [[number for number, part in enumerate(side) for _ in part.words] for side in (left, right)]
    equal = Counter((part_of[0][a], part_of[1][b]) for a, b in pairs)
    anchors: list[tuple[int, int]] = []
    for (a, b), count in sorted(equal.items()):
        shorter = min(len(left[a].words), len(right[b].words))
        if count >= max(ANCHOR_SHARE * shorter, 2) and (not anchors or (a > anchors[-1][0] and b > anchors[-1][1])):
            anchors.append((a, b))
    return anchors


def _rows(
    left: Sequence[Part], right: Sequence[Part], anchors: Iterable[tuple[int, int]]
) -> list[tuple[Sequence[Part], Sequence[Part]]]:
    """The parts between two anchors share a row too."""
    rows, a, b = [], 0, 0
    for to_a, to_b in [*anchors, (len(left), len(right))]:
        rows += [(left[a:to_a], right[b:to_b]), (left[to_a : to_a + 1], right[to_b : to_b + 1])]
        a, b = to_a + 1, to_b + 1
    return [row for row in rows if row[0] or row[1]]


def _cell(parts: Iterable[Part], words: Sequence[str], same: set[int]) -> Cell:
    numbers = [(part.paragraph, word) for part in parts for word in part.words]
    return tuple(
        tuple(
            Piece(" ".join(words[number] for _, number in run), "same" if is_same else "only")
            for is_same, run in groupby(paragraph, key=lambda place: place[1] in same)
        )
        for _, paragraph in groupby(numbers, key=lambda place: place[0])
    )


def difference(draft: str, edit: str) -> list[Piece]:
    """An edit beside its draft, word by word, with the line breaks.

    The `equal` and `delete` pieces put together are the draft, the `equal` and `insert` pieces the edit.
    """
    before, after = (re.findall(r"\s+|\S+", text) for text in (draft, edit))
    pieces: list[Piece] = []
    for is_equal, run in groupby(_opcodes(before, after), key=lambda opcode: _is_equal(opcode, before)):
        opcodes = list(run)
        (_, a, _, b, _), (_, _, to_a, _, to_b) = opcodes[0], opcodes[-1]
        old, new = "".join(before[a:to_a]), "".join(after[b:to_b])
        changes = [Piece(old, "equal")] if is_equal else [Piece(old, "delete"), Piece(new, "insert")]
        pieces += [piece for piece in changes if piece.text]
    return pieces


Opcode = tuple[str, int, int, int, int]


def _opcodes(before: Sequence[str], after: Sequence[str]) -> list[Opcode]:
    """How one sequence becomes the other, as `difflib` says it; difflib itself takes minutes for repeating texts."""
    if max(len(before), len(after)) > MOST_TOKENS:
        equal = before == after
        return [("equal" if equal else "replace", 0, len(before), 0, len(after))]
    opcodes = LCSseq.opcodes(before, after)
    return [(each.tag, each.src_start, each.src_end, each.dest_start, each.dest_end) for each in opcodes]


def _is_equal(opcode: Opcode, before: Sequence[str]) -> bool:
    """Whether a stretch is shown as unchanged; a space between two changes is part of the change."""
    kind, start, end, *_ = opcode
    return kind == "equal" and not "".join(before[start:end]).isspace()
