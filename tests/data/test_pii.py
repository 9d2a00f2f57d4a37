import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.data import crisis, pii
from psyco_ray.data.pii import CRISIS_LINES

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
    assert pii.scrub(text) == scrubbed


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
    assert pii.scrub(text) == text


@pytest.mark.parametrize("number", CRISIS_LINES)
def test_numbers_of_crisis_lines_are_kept(number: str) -> None:
    for text in (f"I called {number} last night.", f"Their number is {number}", f"text {number}, he said"):
        assert pii.scrub(text) == text


def test_crisis_lines_are_kept_with_a_country_code_and_similar_numbers_are_not() -> None:
    for text in ("Call 1-800-273-8255 now", "Call +1 (800) 273-8255 now", "Call +44 116 123 now", "Call 18002738255"):
        assert pii.scrub(text) == text
    assert pii.scrub("Call 1-800-273-8254 now") == "Call [PHONE] now"
    assert pii.scrub("Call 988, or me: 212-555-0988") == "Call 988, or me: [PHONE]"


@given(st.lists(st.sampled_from(PIECES)).map(" ".join) | st.text())
def test_scrubbing_is_idempotent(text: str) -> None:
    once = pii.scrub(text)
    assert pii.scrub(once) == once


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="the extra is installed")
def test_presidio_without_its_extra_is_an_input_error() -> None:
    with pytest.raises(ValueError, match=r"psyco-ray\[presidio\]"):
        pii.scrub("Ana lives in Lisbon.", presidio=True)


def test_presidio_finds_persons_and_places(tmp_path, monkeypatch) -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the presidio extra")
    import spacy

    with pytest.raises(ValueError, match="spacy download no_such_model"):
        pii.analyzer("no_such_model")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Ana"}, {"label": "GPE", "pattern": "Lisbon"}]
    )
    pipeline.to_disk(tmp_path / "model")
    analyzer = pii.analyzer(str(tmp_path / "model"))
    monkeypatch.setattr(pii, "analyzer", lambda: analyzer)
    text = "My name is Ana and Ana moved to Lisbon."
    assert pii.scrub(text, presidio=True) == "My name is [NAME] and [NAME] moved to [PLACE]."


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I have thought about suicide.", "self-harm"),
        ("I would NEVER kill myself, but I think of it", "self-harm"),
        ("I don’t want to live like this", "self-harm"),
        ("Sometimes I wish I had never been born.", "self-harm"),
        ("They'd all be better off without me", "self-harm"),
        ("i just want it all to end. i want to die", "self-harm"),
        ("there is no reason left to go on", "self-harm"),
        ("I can't do this anymore, I don't want to be here anymore", "self-harm"),
        ("I started cutting my arms again, self harm is my relief", "self-harm"),
        ("My friend says he took a bottle of pills", "self-harm"),
        ("I have urges to hurt people", "violence"),
        ("Some days I could kill him", "violence"),
        ("I am afraid that I will harm my baby", "violence"),
        ("Last night I hit my wife and I am ashamed", "violence"),
        ("He brought a gun to school", "violence"),
        ("My boyfriend hits me when he drinks", "abuse"),
        ("My mother used to beat me", "abuse"),
        ("I was raped when I was nine", "abuse"),
        ("he put his hands on me", "abuse"),
        ("My uncle touched me when I was small", "abuse"),
        ("I do not feel safe at home, he threatened to kill me", "abuse"),
        ("She won't let me leave the house", "abuse"),
    ],
)
def test_signs_of_danger_are_flagged(text: str, kind: str) -> None:
    assert kind in crisis.signs(text)


@pytest.mark.parametrize(
    "text",
    [
        "This homework is killing me.",
        "I am dying to see her again.",
        "I nearly died of embarrassment; we were killing time.",
        "I beat myself up over small things and shot myself in the foot at work.",
        "My feet are killing me and my skills are poor.",
        "I feel anxious at work and cannot sleep. What can I do to relax?",
        "It hit me that I cut down on sugar for nothing.",
    ],
)
def test_figures_of_speech_are_not_flagged(text: str) -> None:
    assert crisis.signs(text) == []


def test_each_kind_is_listed_once_and_in_order() -> None:
    text = "He hits me, he abuses me. I want to die, suicide. I could kill him."
    assert crisis.signs(text) == list(crisis.KINDS) == ["self-harm", "violence", "abuse"]
