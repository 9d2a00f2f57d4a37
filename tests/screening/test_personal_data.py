import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.screening import personal_data
from psyco_ray.screening.personal_data import CRISIS_LINES

PIECES = ("I am 12 years old", "call me at", "555-0123", "(212) 555-0123", "988", "Thanks,", "Maria", "\n", "-", ".")
PIECES += ("My name is", "a@b.org", "@ana_b", "https://x.org/y?z=1.", "+44 20 7946 0958", "1-800-273-8255", "24/7")


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Write to ana.b+1@mail.example.co.uk, please.", "Write to [EMAIL], please."),
        ("It is ana (at) mail (dot) com now", "It is [EMAIL] now"),
        ("I found https://forum.example.org/t/12?x=1. It helped.", "I found [LINK]. It helped."),
        ("see www.example.com/a-b, or example.org!", "see [LINK], or [LINK]!"),
        ("I post as @sad_ana99 there", "I post as [LINK] there"),
        ("Call me at (212) 555-0123.", "Call me at [PHONE]."),
        ("My cell is 212.555.0123, or +44 20 7946 0958", "My cell is [PHONE], or [PHONE]"),
        ("Ring 07911 123456 or 06 12 34 56 78 or 2125550123", "Ring [PHONE] or [PHONE] or [PHONE]"),
        ("My number is 555-0123, any time", "My number is [PHONE], any time"),
        ("My name is Ana Maria Lopez and I am 15.", "My name is [NAME] and I am 15."),
        ("Hi, I'm Ana. I am lost.", "Hi, I'm [NAME]. I am lost."),
        ("I need help. Thanks, Maria", "I need help. Thanks, [NAME]"),
        ("I need help.\nKind regards\nMaria K. Lopez.", "I need help.\nKind regards\n[NAME]."),
        ("What should I do?\n- John Doe", "What should I do?\n- [NAME]"),
        ("What should I do? – John", "What should I do? – [NAME]"),
    ],
)
def test_personal_data_is_replaced(text: str, scrubbed: str) -> None:
    assert personal_data.scrub(text) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "I am 15, he is 47, and we met in 2010-2015.",
        "She takes 20 mg, then 100-200 mg, and 1000-2000 calories a day.",
        "It goes on 24/7 and we share 50/50, 100%.",
        "Since 03/12/2019, 2019-12-03 and 09-11-2001 I have slept 3.5 hours.",
        "We owe $1,250,000.00 and £200 300 4000, with pi at 3.14159265358.",
        "I told him.He said no at 10:30 p.m.",
        "My name is not important. My name is on the lease.",
        "I'm Muslim and bipolar. I am American.",
        "The one I love, Maria, has left. Thanks, God",
        "We are a well-known couple - John and I - in town.",
        "Thanks in advance, everyone",
    ],
)
def test_other_numbers_and_words_are_kept(text: str) -> None:
    assert personal_data.scrub(text) == text


@pytest.mark.parametrize("number", CRISIS_LINES)
def test_numbers_of_crisis_lines_are_kept(number: str) -> None:
    for text in (f"I called {number} last night.", f"Their number is {number}", f"text {number}, he said"):
        assert personal_data.scrub(text) == text


def test_crisis_lines_are_kept_with_a_country_code_and_similar_numbers_are_not() -> None:
    for text in ("Call 1-800-273-8255 now", "Call +1 (800) 273-8255 now", "Call +44 116 123 now", "Call 18002738255"):
        assert personal_data.scrub(text) == text
    assert personal_data.scrub("Call 1-800-273-8254 now") == "Call [PHONE] now"
    assert personal_data.scrub("Call 988, or me: 212-555-0988") == "Call 988, or me: [PHONE]"


@given(st.lists(st.sampled_from(PIECES)).map(" ".join) | st.text())
def test_scrubbing_is_idempotent(text: str) -> None:
    once = personal_data.scrub(text)
    assert personal_data.scrub(once) == once


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="the extra is installed")
def test_presidio_without_its_extra_is_an_input_error() -> None:
    with pytest.raises(ValueError, match=r"psyco-ray\[presidio\]"):
        personal_data.scrub("Ana lives in Lisbon.", presidio=True)


def test_presidio_finds_persons_and_places(tmp_path, monkeypatch) -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the presidio extra")
    import spacy

    with pytest.raises(ValueError, match="spacy download no_such_model"):
        personal_data.analyzer("no_such_model")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Ana"}, {"label": "GPE", "pattern": "Lisbon"}]
    )
    pipeline.to_disk(tmp_path / "model")
    analyzer = personal_data.analyzer(str(tmp_path / "model"))
    monkeypatch.setattr(personal_data, "analyzer", lambda: analyzer)
    text = "My name is Ana and Ana moved to Lisbon."
    assert personal_data.scrub(text, presidio=True) == "My name is [NAME] and [NAME] moved to [PLACE]."
