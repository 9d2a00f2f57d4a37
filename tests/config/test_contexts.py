"""Contexts as texts: a speech is itself, a conversation survives the way there and back."""

import json

import pytest

from psyco_ray.config import prompts
from psyco_ray.config.contexts import Context, ContextError
from psyco_ray.data import splits

SLEEP = Context.of("I cannot sleep.").answered("What keeps you awake?", 'My "job".\nAnd {"messages": [')


def test_a_speech_is_its_own_text():
    for text in ("I cannot sleep.", '{"messages": []}', "[1]", ""):
        assert Context.of(text).turns == (text,)
        assert Context.of(text).text == text
        assert Context.of(text).transcript == text
        assert not Context.of(text).is_conversation


def test_a_conversation_is_read_as_it_was_written():
    assert Context.of(SLEEP.text) == SLEEP
    assert json.loads(SLEEP.text)["messages"] == SLEEP.messages
    assert (SLEEP.turn, SLEEP.opening, SLEEP.last) == (2, "I cannot sleep.", 'My "job".\nAnd {"messages": [')
    assert SLEEP.client_turns == (SLEEP.opening, SLEEP.last)
    assert SLEEP.therapist_turns == ("What keeps you awake?",)
    assert SLEEP.transcript.startswith("Client: I cannot sleep.\n\nTherapist: What keeps you awake?\n\nClient: My")
    assert SLEEP.map(str.upper).opening == "I CANNOT SLEEP."


@pytest.mark.parametrize(
    "text",
    [
        SLEEP.text[:-3],
        SLEEP.text.replace('"role": "assistant"', '"role": "user"'),
        SLEEP.text.replace('"content": "My', '"said": "My'),
    ],
)
def test_a_text_that_only_begins_as_a_conversation(text):
    assert Context.of(text).turns == (text,)


def test_a_conversation_with_escapes_of_its_own_is_read():
    context = Context.of("Ich schlafe schlecht. \u263a").answered("Warum?", "Arbeit.")
    assert Context.of(json.dumps({"messages": context.messages})) == context


def test_the_turns_in_a_transcript():
    for context in (SLEEP, Context.of("I cannot sleep.")):
        ends = [context.transcript[place:] for place in context.places]
        assert all(end.startswith(turn) for end, turn in zip(ends, context.turns, strict=True))


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("", "no messages"),
        ("ua", "the last message is not the client's"),
        ("au", "message 1 is not the client's"),
        ("uu", "message 2 is not the therapist's"),
    ],
)
def test_messages_that_are_no_context(roles, reason):
    messages = [{"role": {"u": "user", "a": "assistant"}[role], "content": "secret"} for role in roles]
    with pytest.raises(ContextError, match=reason) as refused:
        Context.from_messages(messages)
    assert "secret" not in str(refused.value)


def test_an_empty_message_is_no_context():
    with pytest.raises(ContextError, match="message 2 is empty"):
        Context.from_messages(
            [{**message, "content": " "} if place == 1 else message for place, message in enumerate(SLEEP.messages)]
        )


def test_the_prompt_of_a_turn_begins_with_the_prompt_of_the_turn_before():
    entry = {"system": "Be kind.", "user": "Client: {client_speech}", "examples": [{"client": "a", "response": "b"}]}
    first = prompts.prompt_messages(entry, SLEEP.opening)
    second = prompts.prompt_messages(entry, SLEEP.text)
    assert [message["content"] for message in first] == ["Be kind.", "Client: a", "b", "Client: I cannot sleep."]
    assert second[: len(first)] == first
    assert second[len(first) :] == SLEEP.messages[1:]


def test_later_turns_stand_in_their_own_text():
    entry = {"user": "{client_speech}", "later": "{client_speech} (12 words)"}
    assert prompts.prompt_messages(entry, SLEEP.text)[-1]["content"] == f"{SLEEP.last} (12 words)"


def test_all_contexts_of_a_conversation_are_in_one_split():
    for opening in map(str, range(50)):
        context = Context.of(opening).answered("Go on.", "No.")
        assert splits.is_dev(context.text, 0.5) == splits.is_dev(opening, 0.5)
        assert splits.half(context.text) == splits.half(opening)
        assert splits.speech_id(context.text) != splits.speech_id(opening)
