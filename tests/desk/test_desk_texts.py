"""Two texts side by side, and an edit beside its draft."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.desk import texts
from psyco_ray.desk.texts import Piece

WORDS = st.lists(st.sampled_from(["I", "hear", "you.", "What", "now?", "a\n\nb", "x\ny"]), max_size=30).map(" ".join)


def words_of(cells) -> list[str]:
    return [word for cell in cells for paragraph in cell for piece in paragraph for word in piece.text.split()]


def test_equal_paragraphs_share_a_row_and_equal_words_are_marked() -> None:
    left = "First of all, thank you.\n\nWhat would help you the most right now?"
    right = "It sounds painful.\n\nHere is a list:\n1. Walk.\n\nWhat would help you the most right now? Tell me."
    rows = texts.side_by_side(left, right)
    assert [[len(cell) for cell in row] for row in rows] == [[1, 3], [1, 1]]
    assert rows[1][0] == ((Piece("What would help you the most right now?", "same"),),)
    assert rows[1][1][0][0] == Piece("What would help you the most right now?", "same")
    assert rows[1][1][0][1] == Piece("Tell me.", "only")


def test_sentences_are_in_line_where_there_are_no_paragraphs() -> None:
    rows = texts.side_by_side("Hello there. I hear how hard this is. Bye.", "I hear how hard this is. And now?")
    assert [[bool(cell) for cell in row] for row in rows] == [[True, False], [True, True], [True, True]]


def test_texts_without_a_common_part_are_one_row() -> None:
    assert len(texts.side_by_side("One thing.\n\nTwo.", "Quite another.\n\nAnd more.\n\nYes.")) == 1


@given(WORDS, WORDS)
def test_no_word_is_lost(left: str, right: str) -> None:
    rows = texts.side_by_side(left, right)
    assert words_of(row[0] for row in rows) == left.split()
    assert words_of(row[1] for row in rows) == right.split()


@given(WORDS, WORDS)
def test_a_difference_holds_both_texts(draft: str, edit: str) -> None:
    pieces = texts.difference(draft, edit)
    assert "".join(piece.text for piece in pieces if piece.kind != "insert") == draft
    assert "".join(piece.text for piece in pieces if piece.kind != "delete") == edit


def test_a_difference_is_by_words() -> None:
    assert texts.difference("I hear you.\n\nGo on.", "I see you.\n\nGo on.")[1:3] == [
        Piece("hear", "delete"),
        Piece("see", "insert"),
    ]


def test_long_and_repeating_texts_take_no_long_time() -> None:
    start = time.monotonic()
    texts.difference("a b " * 12_000, "b a c " * 8_000)
    texts.side_by_side("I am here. " * 700, "I am not here. " * 700)
    assert time.monotonic() - start < 3
    assert re.match(r"\S", texts.difference("", "x")[0].text)
