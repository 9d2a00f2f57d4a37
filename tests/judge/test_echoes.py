"""Server messages are shown without the words that were sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.judge.echoes import masked

SPEECH = "My husband left me in May.\n\nSince then I do not sleep, and nobody knows."


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"invalid: {SPEECH!r}, too long", "invalid: '[…].', too long"),
        ("got MY  HUSBAND left\\nme", "got […]"),
        ("maximum context length is 8192 tokens", "maximum context length is 8192 tokens"),
        ("two: since then I do not | and nobody knows.", "two: […] | […]."),
        ("", ""),
    ],
)
def test_what_repeats_the_texts_is_left_out(message, shown) -> None:
    assert masked(message, ["Rate this.", SPEECH]) == shown


@pytest.mark.parametrize(
    ("message", "sent", "shown"),
    [
        ("flagged: I want to die.", "I want to die.", "flagged: […]."),
        ("flagged: 想死", "想死", "flagged: […]"),
        ("flagged: 'help me'", "Rate the answer.\n\nClient: Help me!\nTherapist: Why?", "flagged: '[…]'"),
        ("flagged: help me", "Rate this: \n<q-0a1b2c>Help me</q-0a1b2c>", "flagged: […]"),
        ("no answer, sorry", "Rate it.\nAnswer:\nNo", "no answer, sorry"),
    ],
)
def test_whole_short_turns_are_left_out(message, sent, shown) -> None:
    assert masked(message, [sent]) == shown


def test_scripts_without_spaces_are_recognised() -> None:
    assert masked("flagged: 总是睡不着 (self-harm)", ["我最近总是睡不着，也不想活了。"]) == "flagged: […] (self-harm)"


@given(st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_any_text_is_masked_without_an_error(message, sent) -> None:
    assert masked(message, []) == message
    assert len(masked(message + sent, [sent])) <= 2 * (len(message) + len(sent)) + 3
