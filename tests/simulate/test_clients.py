"""Prompts of simulated clients, and replies in what models write."""

import json
from pathlib import Path

import pytest

from psyco_ray.config.contexts import Context
from psyco_ray.config.errors import InputError
from psyco_ray.simulate.clients import client_messages, load_client_prompt, reply_of, reply_seed
from psyco_ray.simulate.dialogue import Reply
from psyco_ray.simulate.profiles import Profile

PROFILE = Profile("I cannot sleep.", "sad", "contemplation", "relief", "yes, but", "short")
CONTEXT = Context.of("I cannot sleep.").answered("What keeps you awake?", "My job.")


@pytest.mark.parametrize("entry", ["client", "client-few-shot"])
def test_the_client_is_the_assistant_and_the_therapist_speaks_first_and_last(entry: str) -> None:
    messages = client_messages(load_client_prompt("default", entry), PROFILE, CONTEXT, "What about it?")
    spoken = [message for message in messages if message["role"] != "system"]
    assert [message["role"] for message in spoken] == ["user", "assistant"] * (len(spoken) // 2) + ["user"]
    assert [message["content"] for message in spoken[-4:]] == [
        "I cannot sleep.",
        "What keeps you awake?",
        "My job.",
        "What about it?",
    ]


def test_the_profile_stands_before_the_dialogue() -> None:
    messages = client_messages(load_client_prompt("default", "client"), PROFILE, CONTEXT, "What about it?")
    for text in (
        PROFILE.situation,
        "Mood: sad",
        "change: contemplation",
        "for: relief",
        "back: yes, but",
        "talk: short",
    ):
        assert text in messages[0]["content"]
    assert "{" not in json.dumps([message["content"] for message in messages])


def test_the_prompt_of_a_turn_begins_with_that_of_the_turn_before() -> None:
    prompt = load_client_prompt("default", "client")
    first = client_messages(prompt, PROFILE, Context.of("I cannot sleep."), "What keeps you awake?")
    second = client_messages(prompt, PROFILE, CONTEXT, "What about it?")
    assert second[: len(first)] == first


def test_braces_of_a_speech_stay(tmp_path: Path) -> None:
    profile = Profile("I wrote {mood}.", "sad", "s", "g", "r", "st")
    messages = client_messages(load_client_prompt("default", "client"), profile, Context.of("I wrote {mood}."), "Oh.")
    assert "I wrote {mood}." in messages[0]["content"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{system: Hello.}", "client has no user text"),
        ("{user: 'You are {mood}.'}", r"the texts of client do not contain \{stage\}"),
        ("{user: Hello., examples: [{client: a, response: b}]}", "example 1 of client needs the text reply"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(tmp_path: Path, entry: str, message: str) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text(f"client: {entry}\n")
    with pytest.raises(InputError, match=message):
        load_client_prompt(str(file), "client")


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("I do not know.", "I do not know."),
        ("Client: I do not know.", "I do not know."),
        ("**Client:** I do not know.", "I do not know."),
        ('"I do not know."', "I do not know."),
        ("“I do not know.”", "I do not know."),
        ('"No," I said, "never."', '"No," I said, "never."'),
        ("I do not know.\n\nIt is my job, too.", "I do not know.\n\nIt is my job, too."),
        ("I do not know.\n\nTherapist: What do you feel?\n\nClient: Nothing.", "I do not know."),
        ("I do not know.\n**Therapist**: What do you feel?", "I do not know."),
        ("Client: I do not know.\nClient: Really.", "I do not know."),
        ("My therapist: she left.", "My therapist: she left."),
        ("I just want it to *end*.", "I just want it to *end*."),
        ("I wait for it. [the end of it] is near.", "I wait for it. [the end of it] is near."),
        ("She says [leaves] are like us.\nI agree.", "She says [leaves] are like us.\nI agree."),
        ("I wrote [END] under the letter and kept it.", "I wrote [END] under the letter and kept it."),
        ("Client (crying): I do not know.", "I do not know."),
        ("**Client** (crying): I do not know.", "I do not know."),
        ("I do not know.\nDoctor: What do you feel?", "I do not know."),
        ("I do not know.\nTherapist (softly): What do you feel?", "I do not know."),
        ("My doctor (a woman): she left.", "My doctor (a woman): she left."),
        ("Therapist: How are you?\n\nClient: Bad.\n\nTherapist: Why?", "Bad."),
    ],
)
def test_a_reply_is_what_the_client_says(text: str, reply: str) -> None:
    assert reply_of(text) == Reply(reply, ended=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("This leads nowhere. [END]", "This leads nowhere."),
        ("Thank you. [end]\n\nTherapist: Goodbye.", "Thank you."),
        ("Thank you. [End of session]", "Thank you."),
        ("I am done. (leaves the session)", "I am done."),
        ("I am done. *leaves*", "I am done."),
        ("This leads nowhere. [END]. *leaves*", "This leads nowhere."),
        ("I am done.\n**[END]**\nThe client was sad.", "I am done."),
        ("[END]", ""),
    ],
)
def test_a_client_who_leaves_ends_the_dialogue(text: str, said: str) -> None:
    assert reply_of(text) == Reply(said, ended=True)


@pytest.mark.parametrize("text", ["", "  \n", "Therapist: How are you?", "You (softly): I hear you.", '""'])
def test_an_answer_without_a_word_of_the_client_is_no_turn_and_no_leaving(text: str) -> None:
    assert reply_of(text) is None
    assert reply_of(text, finished=False) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I do not know. It is just", "I do not know."),
        ("It is just that I", "It is just that I"),
        ("I do not know.\nTherapist: What is", "I do not know."),
        ("He left at 7.30 and I", "He left at 7.30 and I"),
    ],
)
def test_a_sentence_that_was_cut_is_left_out_after_another(text: str, said: str) -> None:
    assert reply_of(text, finished=False) == Reply(said, ended=False)


def test_seed_dialogue_and_turn_decide_the_seed_of_a_reply() -> None:
    seeds = {
        reply_seed(seed, dialogue, turn, attempt)
        for seed in (0, 1)
        for dialogue in ("3f:0", "3f:1", "4a:0")
        for turn in (1, 2)
        for attempt in (1, 2, 3)
    }
    assert len(seeds) == 36
    assert reply_seed(0, "3f:0", 1) == reply_seed(0, "3f:0", 1)
