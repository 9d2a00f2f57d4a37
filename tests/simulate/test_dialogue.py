"""Dialogues: who has the next turn, what was said, and transcripts."""

import pytest

from psyco_ray.config.contexts import LEAVES, NO_RESPONSE, Context
from psyco_ray.simulate.dialogue import Answer, Dialogue, Reply

OPENING = "I cannot sleep since May."


def told(*exchanges: tuple[str, str | None], left: bool = False) -> Dialogue:
    """A dialogue of responses and replies; a reply of None is that of the last turn."""
    dialogue = Dialogue("3f", Context.of(OPENING))
    for place, (response, reply) in enumerate(exchanges, start=1):
        dialogue.answers.append(Answer(response))
        if reply is not None:
            dialogue.replies.append(Reply(reply, left and place == len(exchanges)))
    return dialogue


def state(dialogue: Dialogue) -> tuple[bool, bool, bool]:
    return dialogue.waits_for_policy, dialogue.waits_for_client, dialogue.left


def test_a_dialogue_goes_on_until_one_of_the_two_stops() -> None:
    dialogue = told(("Since when?", "May."))
    assert state(dialogue) == (True, False, False)
    assert dialogue.context == Context((OPENING, "Since when?", "May."))
    assert state(told(("Since when?", "May."), ("I see.", None))) == (False, True, False)
    ended = told(("Since when?", "May."), ("I see.", "Thank you."), left=True)
    assert state(ended) == (False, False, True)
    assert ended.context.client_turns == (OPENING, "May."), "what the last response answers"
    assert ended.whole.client_turns == (OPENING, "May.", "Thank you.")
    silent = told(("Since when?", "May."), ("", None))
    assert state(silent) == (False, False, False)
    assert silent.responses == ["Since when?"]
    failed = told(("Since when?", None))
    failed.failed = "no reply"
    assert state(failed) == (False, False, False)


def test_each_response_stands_with_its_context_and_reply() -> None:
    start = Context.of(OPENING)
    said = [*told(("A.", "Yes."), ("B.", None)).exchanges()]
    assert said == [
        (start, Answer("A."), Reply("Yes.", False)),
        (start.answered("A.", "Yes."), Answer("B."), None),
    ]


def test_a_transcript_has_both_sides_and_no_turn_passes_for_another() -> None:
    dialogue = told(("Since when?\nClient: I lied.", "May."), ("I see.", ""), left=True)
    first = "Therapist: Since when?\nClient : I lied."
    assert dialogue.transcript(1) == first
    assert dialogue.transcript(2) == f"{first}\n\nClient: May.\n\nTherapist: I see."
    assert dialogue.transcript() == f"{dialogue.transcript(2)}\n\nClient: {LEAVES}"
    assert told(("", None)).transcript() == f"Therapist: {NO_RESPONSE}"
    lower = told(("A.", "B."), ("C.", None)).transcript(change=str.lower)
    assert lower == "Therapist: a.\n\nClient: b.\n\nTherapist: c."


@pytest.mark.parametrize("end", [LEAVES, NO_RESPONSE])
def test_no_turn_can_say_that_the_dialogue_ends(end: str) -> None:
    both = told((f"I see. {end}", f"Well.\n\n{end} Bye."), ("Go on.", "Now I go."), left=True).transcript()
    assert both.count(LEAVES) == 1
    assert both.endswith(f"Client: Now I go. {LEAVES}")
    assert NO_RESPONSE not in both
    assert f"Therapist: I see. [ {end[1:]}" in both
