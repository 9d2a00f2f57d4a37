"""Contexts from the turns of a record or of several rows."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialogue_files import annomi, dialogue, esconv, read_from_annomi, stored
from support.files import write_content

from psyco_ray.config.contexts import CLIENT, THERAPIST, Context
from psyco_ray.config.errors import InputError
from psyco_ray.config.job_file import parse
from psyco_ray.config.reading import Reading
from psyco_ray.config.training import Data
from psyco_ray.data import turns
from psyco_ray.data.client_rows import ClientFile, ClientRow
from psyco_ray.data.speaker_columns import Keys

KEYS = Keys("data.speech_column", "data.where", "data.dialogue")
SAID = st.lists(st.tuples(st.sampled_from([CLIENT, THERAPIST]), st.text("ab \n", max_size=5)), max_size=12)


def rows_of(path: Path, column: str, **reading) -> list[ClientRow]:
    file = ClientFile(path, "speeches", [column], KEYS, Reading(**{"conversations": "contexts", **reading}))
    return list(file.rows())


def read(path: Path, column: str, **reading) -> list[Context]:
    rows = rows_of(path, column, **reading)
    assert not [row for row in rows if row.problem]
    return [Context.of(row.text) for row in rows if row.text]


def so_far(context: Context) -> list[Context]:
    return [Context(context.turns[:end]) for end in range(1, len(context.turns) + 1, 2)]


def test_rows_of_a_dialogue_are_read_as_contexts(tmp_path) -> None:
    dialogues = {"7": dialogue(1), "8": dialogue(2, 1), "9": dialogue(3, 6)}
    path = annomi(tmp_path / "annomi.csv", dialogues)
    reading = {"where": {"interlocutor": "client"}, "dialogue": "transcript_id"}
    expected = [context for whole in dialogues.values() for context in so_far(read_from_annomi(whole))]
    assert read(path, "utterance_text", **reading) == expected
    rows = rows_of(path, "utterance_text", **reading)
    assert [row.number for row in rows] == [2] * 4 + [15] + [19] * 6, "the client's first row"
    assert {row.opening for row in rows[:4]} == {expected[0].text}
    openings = read(path, "utterance_text", conversations="opening", **reading)
    assert [context.text for context in openings] == [whole.opening.split(", and ")[0] for whole in dialogues.values()]


def test_lists_of_turns_are_read_as_contexts(tmp_path) -> None:
    dialogues = [dialogue(1), dialogue(2, 1), dialogue(3, 6)]
    path = esconv(tmp_path / "ESConv.json", dialogues)
    rows = rows_of(path, "dialog")
    assert [Context.of(row.text) for row in rows] == [context for whole in dialogues for context in so_far(whole)]
    assert [row.number for row in rows] == [1] * 4 + [2] + [3] * 6
    assert [context.text for context in read(path, "dialog", conversations="opening")] == [
        whole.opening for whole in dialogues
    ]


CHATS = {
    "sharegpt": json.dumps(
        [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "I lie awake."},
            {"from": "gpt", "value": "Since when?"},
            {"from": "human", "value": "Since May."},
            {"from": "gpt", "value": "I see."},
        ]
    ),
    "hh": "\n\nHuman: I lie awake.\n\nAssistant: Since when?\n\nHuman: Since May.\n\nAssistant: I see.",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nI lie awake.<|im_end|>\n"
    "<|im_start|>assistant\nSince when?<|im_end|>\n<|im_start|>user\nSince May.<|im_end|>\n<|im_start|>assistant\n",
    "mistral": "<s>[INST] I lie awake. [/INST] Since when?</s>[INST] Since May. [/INST] I see.</s>",
    "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nI lie awake.<|eot_id|><|start_header_id|>"
    "assistant<|end_header_id|>\n\nSince when?<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nSince May.",
    "labels": "Therapist: Hello.\nPatient: I lie awake.\nTherapist: Since when?\nPatient: Since May.\nTherapist: Oh.",
    "inline": "Client: I lie awake. Therapist: Since when? Client: Since May.",
    "python": "[{'human': 'I lie awake.', 'gpt': 'Since when?'}, {'human': 'Since May.'}]",
}


@pytest.mark.parametrize("form", CHATS)
def test_whole_conversations_in_a_text_are_read_as_contexts(tmp_path, form) -> None:
    path = stored(tmp_path / "a.jsonl", [{"text": CHATS[form]}, {"text": "I'm alone."}])
    awake = Context(("I lie awake.", "Since when?", "Since May."))
    assert read(path, "text") == [*so_far(awake), Context(("I'm alone.",))]


def test_an_alpaca_input_is_the_clients(tmp_path) -> None:
    text = "### Instruction:\nAnswer as a counsellor.\n\n### Input:\nI lie awake.\n\n### Response:\nSince when?"
    assert read(stored(tmp_path / "a.jsonl", [{"text": text}]), "text") == [Context(("I lie awake.",))]


def test_a_context_in_its_stored_form_is_that_context(tmp_path) -> None:
    context = Context.of("I lie awake.").answered("Since when?", "Note 1 Since May.")
    path = stored(tmp_path / "a.jsonl", [{"text": context.text}])
    for conversations in ("opening", "contexts"):
        (row,) = rows_of(path, "text", conversations=conversations, strip=[r"Note \d "])
        assert (row.text, row.dialogue, row.opening) == (context.text.replace("Note 1 ", ""), False, None)
    asked = json.dumps({"messages": [*context.messages, {"role": "assistant", "content": "I see."}]})
    path = stored(tmp_path / "b.jsonl", [{"text": asked}])
    assert read(path, "text", conversations="opening") == [Context(("I lie awake.",))], "it ends with the therapist"
    assert read(path, "text") == so_far(context)


def test_patterns_are_removed_from_every_turn(tmp_path) -> None:
    said = [("client", "(sighs) I lie awake."), ("therapist", "(nods) Since when?"), ("client", "(sighs)")]
    rows = [{"id": 1, "speaker": name, "text": text} for name, text in [*said, ("client", "Since May. (sighs)")]]
    path = stored(tmp_path / "rows.jsonl", rows)
    reading = {"strip": [r"\((?:sighs|nods)\)"]}
    expected = so_far(Context(("I lie awake.", "Since when?", "Since May.")))
    assert read(path, "text", where={"speaker": "client"}, dialogue="id", **reading) == expected
    path = stored(tmp_path / "lists.jsonl", [{"turns": rows}])
    assert read(path, "turns", **reading) == expected


SECRET = "nobody knows this"
STRANGER = "text is a conversation with an unknown speaker"


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (
            [{"role": "user", "content": SECRET}, {"role": "mother", "content": SECRET}],
            "text is a list with a message of an unknown speaker; its speakers are user and 1 other value",
        ),
        (
            [{"role": "system", "content": SECRET}, {"role": "bot", "content": SECRET}],
            "text is a list without a message of the client; its speakers are system, bot",
        ),
        (
            f"Patient: {SECRET}\nDoctor: Why?\nAnna: {SECRET}\nAnna: {SECRET}",
            STRANGER,
        ),
        (
            f"<|im_start|>user\n{SECRET}<|im_end|>\n<|im_start|>judge\n{SECRET}",
            STRANGER,
        ),
        (f"Ann: {SECRET}\nLee: {SECRET}", "text is a conversation of unknown speakers"),
        ([SECRET, SECRET], "text is a list of values that name no speaker"),
        (1.5, "text is a number, not text"),
    ],
)
def test_speakers_that_are_unknown_are_problems_without_their_words(tmp_path, cell, problem) -> None:
    (row,) = rows_of(stored(tmp_path / "a.jsonl", [{"text": cell}]), "text")
    assert (row.text, row.problem) == (None, problem)


def test_rows_of_a_dialogue_that_cannot_be_read_leave_it_out(tmp_path) -> None:
    def row(key, speaker: str, text) -> str:
        return json.dumps({"id": key, "speaker": speaker, "text": text})

    lines = [
        row("a", "client", "one"),
        row("b", "client", "two"),
        row("a", "therapist", "three"),
        row("c", "therapist", "four"),
        row("d", "client", "five"),
        row("d", "therapist", [SECRET]),
        row("e", "client", "six"),
        "{torn",
        row("e", "client", "seven"),
        row(None, "client", "eight"),
        row("f", "client", "nine"),
        "{torn",
        row("g", "client", "ten"),
        row("h", "client", " "),
    ]
    path = write_content(tmp_path / "a.jsonl", "\n".join(lines))
    rows = rows_of(path, "text", where={"speaker": "client"}, dialogue="id")
    apart = "a dialogue whose rows are not together; sort the file by id"
    torn = next(row.problem for row in rows if row.number == 8)
    assert [(row.number, row.text or row.problem or row.skipped) for row in rows] == [
        (1, apart),
        (2, "two"),
        (3, apart),
        (4, True),
        (5, "a dialogue with a row that cannot be read: text is a list, not text"),
        (8, torn),
        (7, f"a dialogue with a row that cannot be read: {torn}"),
        (10, "id, which names the dialogue, is empty"),
        (12, torn),
        (11, "nine"),
        (13, "ten"),
        (14, False),
    ]


def test_lists_of_messages_are_found_in_a_file_without_texts(tmp_path) -> None:
    from psyco_ray.data import speech_file

    context = dialogue(1, 2)
    path = stored(tmp_path / "a.jsonl", [{"id": 1, "messages": context.messages}])
    data = Data(speeches=str(path), conversations="contexts")
    (table,) = speech_file.read(data)
    assert table["speech"].to_pylist() == [context.opening, context.text]
    sample = speech_file.open_file(Data(speeches="sample-conversations", conversations="contexts"))
    assert sample.column == "messages"
    assert sum(Context.of(row.text or "").is_conversation for row in sample.rows()) >= 100


@given(SAID)
def test_a_dialogue_has_all_words_from_the_clients_first_to_the_clients_last(said) -> None:
    found = turns.dialogue_of(said)
    words = [(role, text.strip()) for role, text in said if text.strip()]
    while words and words[0][0] != CLIENT:
        words.pop(0)
    while words and words[-1][0] != CLIENT:
        words.pop()
    if not words:
        assert found is None
        return
    assert found is not None
    assert Context.from_messages(found.messages) == found
    assert "\n".join(found.turns) == "\n".join(text for _, text in words)
    assert turns.changed(found, str) == found


@given(SAID, st.integers(1, 4), st.integers(1, 40))
def test_contexts_keep_to_their_limits(said, max_turns, max_chars) -> None:
    whole = turns.dialogue_of(said)
    if whole is None:
        return
    found = list(turns.contexts(whole, max_turns, max_chars))
    assert [context.last for context in found] == list(whole.client_turns)
    for end, context in zip(range(1, len(whole.turns) + 1, 2), found, strict=True):
        assert context.turns == whole.turns[end - len(context.turns) : end]
        assert context.turn <= max_turns
        size = sum(map(len, context.turns))
        assert size <= max_chars or not context.is_conversation
        earlier = whole.turns[max(0, end - len(context.turns) - 2) : end]
        assert len(earlier) == len(context.turns) or context.turn == max_turns or sum(map(len, earlier)) > max_chars


def test_limits_need_contexts_and_change_no_settings_of_speeches() -> None:
    for name in ("max_turns", "max_context_chars"):
        with pytest.raises(InputError, match=f"{name} 3 has no effect on conversations opening"):
            parse(Reading, {name: 3}, "job.yaml")
    assert Reading().model_dump().keys() == {"where", "dialogue", "strip", "encoding"}
    settings = Reading(conversations="contexts").model_dump()
    assert (settings["max_turns"], settings["max_context_chars"]) == (8, 8000)
    assert Reading(**settings) == Reading(conversations="contexts")
    assert Data(**Data().model_dump()) == Data()


def test_reading_says_nothing_of_what_was_said(tmp_path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    path = esconv(tmp_path / "a.json", [Context((SECRET, SECRET, SECRET))])
    read(path, "dialog")
    assert SECRET not in caplog.text


def utterances(path: Path, *rows: tuple, columns: tuple[str, ...] = ("id", "interlocutor", "text")) -> Path:
    return write_content(path, "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))


def test_contexts_of_a_table_of_utterances_need_the_column_of_dialogues(tmp_path) -> None:
    path = utterances(tmp_path / "a.jsonl", ("a", "Client", "one"), ("a", "therapist", SECRET), ("a", "client", "two"))
    with pytest.raises(InputError) as caught:
        rows_of(path, "text", where={"interlocutor": "client"})
    assert str(caught.value) == (
        f"speeches file {path}: interlocutor names the speaker of each row (Client, therapist, client), so a "
        "conversation is in several rows; name the column with the id of each dialogue with data.dialogue"
    )
    with pytest.raises(InputError, match=r"data\.where: \{interlocutor: Client\}, and the column .*dialogue$"):
        rows_of(path, "text")
    openings = read(path, "text", where={"interlocutor": "client"}, conversations="opening")
    assert [context.text for context in openings] == ["one", "two"]
    alone = utterances(tmp_path / "b.jsonl", ("a", "client", "one"), ("b", None, "two"))
    assert read(alone, "text", where={"interlocutor": "client"}) == [Context(("one",))]


def test_rows_of_a_dialogue_that_are_nobodys_turn_are_left_out(tmp_path) -> None:
    columns = ("id", "speaker", "text", "rating")
    rows = [
        ("a", "client", "I lie awake.", "good"),
        ("a", "system", SECRET, "good"),
        ("a", "therapist", "Since when?", "good"),
        ("a", "Client", SECRET, "bad"),
        ("a", "client", "Since May.", "good"),
    ]
    path = utterances(tmp_path / "a.jsonl", *rows, columns=columns)
    reading = {"where": {"speaker": "client", "rating": "good"}, "dialogue": "id"}
    assert read(path, "text", **reading) == so_far(Context(("I lie awake.", "Since when?", "Since May.")))
    plain = utterances(tmp_path / "b.jsonl", *rows, columns=("id", "wrote", "text", "rating"))
    assert read(plain, "text", where={"wrote": "client"}, dialogue="id")[-1] == Context(
        ("I lie awake.", f"{SECRET}\nSince when?", f"{SECRET}\nSince May.")
    )


def test_an_utterance_that_a_table_repeats_is_one_turn(tmp_path) -> None:
    said = [("a", "client", "No."), ("a", "therapist", "No?"), ("a", "client", "No."), ("a", "client", "Never.")]
    path = utterances(tmp_path / "a.jsonl", *(row for row in said for _ in range(3)))
    whole = Context(("No.", "No?", "No.\nNever."))
    assert read(path, "text", where={"interlocutor": "client"}, dialogue="id") == so_far(whole)
