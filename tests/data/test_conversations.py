"""Conversations of preference files keep every turn, or are left out by reason."""

import csv
import json
from pathlib import Path

import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.config.training import Data
from psyco_ray.data import mixture, preferences

Messages = list[dict[str, str]]


def said(*contents: str, first: str = "user") -> Messages:
    """Turns that alternate from the first role on."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def shared(messages: Messages) -> Messages:
    """The same in ShareGPT's names."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


def transcript(messages: Messages) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in messages)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path, *rows: dict) -> list[tuple[Messages, str, str]]:
    """Conversation and both responses of each pair."""
    table = preferences.read(write(path / "pairs.jsonl", list(rows))).table
    prompt = {"system": "Be kind.", "user": "Client: {client_speech}"}
    return [
        (preferences.conversation(row["form"], row["asked"], prompt), row["chosen"], row["rejected"])
        for row in table.to_pylist()
    ]


TURNS = said("Hello", "What brings you here?", "We lost our dog.")
WARM, COLD = said("I am so sorry.", first="assistant"), said("Buy another.", first="assistant")
PAIR = (TURNS, "I am so sorry.", "Buy another.")
SYSTEM = {"role": "system", "content": "Answer briefly."}

FORMS = {
    "prompt and whole conversations": {"prompt": "Hello", "chosen": TURNS + WARM, "rejected": TURNS + COLD},
    "last question and whole conversations": {
        "prompt": "We lost our dog.",
        "chosen": TURNS + WARM,
        "rejected": TURNS + COLD,
    },
    "prompt and later turns": {"prompt": "Hello", "chosen": TURNS[1:] + WARM, "rejected": TURNS[1:] + COLD},
    "messages and last turns": {"prompt": TURNS, "chosen": WARM, "rejected": COLD},
    "messages and texts": {"prompt": TURNS, "chosen": "I am so sorry.", "rejected": "Buy another."},
    "messages that the sides repeat": {"prompt": TURNS, "chosen": TURNS + WARM, "rejected": TURNS + COLD},
    "whole conversations": {"chosen": TURNS + WARM, "rejected": TURNS + COLD},
    "the chosen conversation beside them": {
        "messages": TURNS + WARM,
        "chosen": TURNS + WARM,
        "rejected": TURNS + COLD,
    },
    "ShareGPT": {"conversations": shared(TURNS), "chosen": shared(WARM)[0], "rejected": shared(COLD)[0]},
    "ShareGPT, whole": {"chosen": shared(TURNS + WARM), "rejected": shared(TURNS + COLD)},
    "transcripts": {"chosen": transcript(TURNS + WARM), "rejected": transcript(TURNS + COLD)},
    "transcript and texts": {
        "prompt": transcript(TURNS) + "\n\nAssistant:",
        "chosen": "I am so sorry.",
        "rejected": "Buy another.",
    },
    "speakers and texts": {
        side: [
            {"speaker": {"user": "seeker", "assistant": "supporter"}[m["role"]], "text": m["content"]} for m in messages
        ]
        for side, messages in {"chosen": TURNS + WARM, "rejected": TURNS + COLD}.items()
    },
    "lists as Python writes them": {"chosen": str(TURNS + WARM), "rejected": str(TURNS + COLD)},
    "lists as NumPy writes them": {
        side: "\n ".join(map(str, messages)).join("[]")
        for side, messages in {"chosen": TURNS + WARM, "rejected": TURNS + COLD}.items()
    },
    "objects that hold the messages": {"chosen": {"messages": TURNS + WARM}, "rejected": {"messages": TURNS + COLD}},
    "parts": {
        side: [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
        for side, messages in {"chosen": TURNS + WARM, "rejected": TURNS + COLD}.items()
    },
    "lists as JSON texts": {"chosen": json.dumps(TURNS + WARM), "rejected": json.dumps(TURNS + COLD)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_turn_before_the_last_is_the_prompt(tmp_path, form) -> None:
    assert read(tmp_path, FORMS[form]) == [PAIR]


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_system_message(tmp_path, column) -> None:
    responses = {"chosen": "Quatre.", "rejected": "4"}
    asked = said("What is 2 + 2?")
    for row in ({"question": asked[0]["content"]}, {"prompt": asked[0]["content"]}, {"prompt": asked}):
        [(prompt, chosen, _)] = read(tmp_path, {column: SYSTEM["content"], **row, **responses})
        assert prompt == [SYSTEM, *asked]
        assert chosen == "Quatre."
    rows = [{column: text, "question": "What is 2 + 2?", **responses} for text in ("Answer briefly.", "", None)]
    assert [prompt[0]["content"] for prompt, _, _ in read(tmp_path, *rows)] == ["Answer briefly.", *["Be kind."] * 2]
    again = {column: SYSTEM["content"], "chosen": [SYSTEM, *TURNS, *WARM], "rejected": [SYSTEM, *TURNS, *COLD]}
    assert read(tmp_path, again) == [([SYSTEM, *TURNS], *PAIR[1:])]
    with pytest.raises(InputError, match=r"no usable pair \(two different system messages: 1\)"):
        read(tmp_path, again | {column: "Another one."})


def test_a_question_is_in_one_split_whatever_its_system_message(tmp_path) -> None:
    rows = [
        {"system": system, "prompt": said(f"question {i}"), "chosen": "a", "rejected": "b"}
        for i in range(60)
        for system in ("Answer briefly.", "Answer at length.", None)
    ]
    table = preferences.read(write(tmp_path / "systems.jsonl", rows), dev_share=0.3).table.to_pylist()
    splits: dict[str, set[str]] = {}
    for row in table:
        splits.setdefault(json.loads(row["asked"])[-1]["content"], set()).add(row["split"])
    assert len(splits) == 60
    assert {len(of) for of in splits.values()} == {1}
    assert {split for of in splits.values() for split in of} == {"train", "dev"}


def test_a_question_as_text_is_in_one_split_whatever_its_system_message(tmp_path) -> None:
    rows = [
        {"system": system, "question": f"question {i}", "chosen": "a", "rejected": "b"}
        for i in range(60)
        for system in ("Answer briefly.", "", None)
    ]
    table = preferences.read(write(tmp_path / "orca.jsonl", rows), dev_share=0.3).table.to_pylist()
    splits: dict[str, set[str]] = {}
    for row in table:
        asked = json.loads(row["asked"])[-1]["content"] if row["form"] == "messages" else row["asked"]
        splits.setdefault(asked, set()).add(row["split"])
    assert len(splits) == 60
    assert {len(of) for of in splits.values()} == {1}
    assert {split for of in splits.values() for split in of} == {"train", "dev"}


def test_a_speech_has_no_system_message_of_its_own(tmp_path) -> None:
    row = {"speech": "I cannot sleep.", "chosen": "a", "rejected": "b"}
    assert len(read(tmp_path, row | {"system": ""})) == 1
    with pytest.raises(InputError, match=r"pairs\.jsonl: row 1 has a system, which changes what its responses answer"):
        read(tmp_path, row | {"system": "Be a pirate."})


LEFT_OUT = {
    "two different prompts": {"chosen": said("Hi", "A1", "one", "Good."), "rejected": said("Hi", "A2", "two", "Bad.")},
    "the last message is not the assistant's": {
        "chosen": said("Hi", "A1", "Bye"),
        "rejected": said("Hi", "A1", "Shut up"),
    },
    "a conversation without its prompt": {"chosen": said("Other", "A"), "rejected": said("Other", "B")},
    "a message of the role tool": {
        "chosen": [*said("Hi", "A", "B"), {"role": "tool", "content": "{}"}, *WARM],
        "rejected": said("Hi", "B"),
    },
    "a list of messages that cannot be read": {
        "chosen": "[{'role': 'user', 'content': 'Hi'}\n {'role'",
        "rejected": "b",
    },
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_pairs_that_would_lose_their_context_are_left_out_by_reason(tmp_path, caplog, reason) -> None:
    good = {"prompt": "Hi", "chosen": LEFT_OUT[reason]["chosen"], "rejected": LEFT_OUT[reason]["rejected"]}
    with pytest.raises(InputError, match=rf"no usable pair \({reason}: 1\)"):
        read(tmp_path, good)
    assert f"1 of 1 rows are left out ({reason}: 1)" in caplog.text


def test_scores_that_do_not_prefer_the_chosen_response_are_counted(tmp_path) -> None:
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "score_chosen": chosen, "score_rejected": rejected}
        for i, (chosen, rejected) in enumerate([(7.0, 7.0), (3.0, 7.0), (8.0, 2.0), (None, 2.0)])
    ]
    found = preferences.read(write(tmp_path / "scored.jsonl", rows))
    assert found.table["asked"].to_pylist() == ["q2", "q3"]
    assert found.left_out == {
        "score_chosen equals score_rejected": 1,
        "score_chosen is below score_rejected": 1,
    }
    mixed = mixture.mix((), Data(pairs=write(tmp_path / "scored.jsonl", rows * 40), dev_share=0.1), seed=0)
    assert sum(mixed.parts[0]["left_out"].values()) == 80, "the record of a training has them"


@pytest.mark.parametrize(("column", "value"), [("history", [["Hi", "Hello"]]), ("input", "a text"), ("tools", "[]x")])
def test_a_column_that_changes_the_question_is_refused_by_name(tmp_path, column, value) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    empty = type(value)()
    assert len(read(tmp_path, row | {column: empty})) == 1
    with pytest.raises(InputError, match=rf"row 2 has a {column}, which .* not read; put it into prompt as a list"):
        read(tmp_path, row | {column: empty}, row | {column: value})


def test_lists_in_the_cells_of_a_csv_file_are_conversations(tmp_path) -> None:
    with open(tmp_path / "lists.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow(["Hello", str(TURNS + WARM), str(TURNS + COLD)])
    [row] = preferences.read(str(tmp_path / "lists.csv")).table.to_pylist()
    assert (json.loads(row["asked"]), row["chosen"], row["rejected"]) == PAIR


def test_two_columns_of_one_name_are_refused(tmp_path) -> None:
    (tmp_path / "twice.csv").write_text("question,chosen,chosen,rejected\nq,a,other,b\n")
    with pytest.raises(InputError, match=r"twice\.csv has two columns chosen; rename or drop one of them"):
        preferences.read(str(tmp_path / "twice.csv"))
