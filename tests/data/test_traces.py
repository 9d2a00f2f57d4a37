"""A client's words are found and removed in whatever form files hold them."""

import html
import json

import pytest

from psyco_ray.data.traces import FORGOTTEN, Traces

SPEECH = "My husband left me in May.\n\nIsn't that \"fun\"? & so I don't sleep \u2013 na\u00efve me, 我最近总是睡不着。"
OTHER = "My husband came back in June. Isn't that fun? I sleep, 我最近总是睡得好。"


@pytest.fixture
def traces() -> Traces:
    found = Traces({"0123456789abcdef"})
    found.add_text(SPEECH)
    return found


FORMS = {
    "as it is": SPEECH,
    "JSON": json.dumps(SPEECH),
    "JSON in JSON": json.dumps(json.dumps({"a": SPEECH})),
    "HTML": html.escape(SPEECH),
    "HTML of lines": html.escape(SPEECH).replace("\n", "<br>"),
    "capitals": SPEECH.upper(),
    "one line": " ".join(SPEECH.split()),
    "CSV": SPEECH.replace('"', '""'),
    "Markdown": SPEECH.replace("&", "\\&").replace(".", "\\."),
    "an id": "pair 0123456789abcdef:1",
}


@pytest.mark.parametrize("form", FORMS)
def test_words_are_found_in_every_form_and_nothing_else_goes(traces, form) -> None:
    text = f"before {FORMS[form]} after"
    assert traces.within(text)
    assert traces.may_be_in(text.encode())
    masked = traces.masked(text)
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    assert FORGOTTEN in masked
    assert "husband" not in masked.lower()
    assert "睡" not in masked
    assert not traces.within(masked)


def test_words_in_angle_brackets_are_found_in_a_page() -> None:
    text = "I feel <really really> bad, and nobody sees it."
    found = Traces()
    found.add_text(text)
    for form in (text, html.escape(text), json.dumps(text), "I feel bad, and nobody sees it."):
        assert found.within(form)
        assert found.masked(f"before {form} after").replace('"', "") == f"before {FORGOTTEN}. after"


def test_another_text_of_the_same_words_stays(traces) -> None:
    assert not traces.within(OTHER)
    assert traces.masked(OTHER) == OTHER
    traces.add_text("I cannot sleep.")
    assert not traces.within("I cannot sleep. My cat neither."), "too short to be nobody else's"


def test_entries_of_json_go_whole(traces) -> None:
    value = {
        "rows": [{"speech": SPEECH, "response": "I hear you."}, {"speech": OTHER, "response": "I see."}],
        "by_id": {"0123456789abcdef:0": 1.0, "fedcba9876543210:0": 0.0},
        "note": f"the longest is {SPEECH!r}",
        "count": 2,
    }
    assert traces.removed_from(value) == {
        "rows": [{"speech": OTHER, "response": "I see."}],
        "by_id": {"fedcba9876543210:0": 0.0},
        "note": f"the longest is '{FORGOTTEN}。'",
        "count": 2,
    }
