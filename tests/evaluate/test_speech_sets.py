"""Speeches and opponent responses of a policy evaluation."""

import json
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.dialogue_files import dialogue
from support.policy_evaluation import SAMPLE, load, settings, write_lines

from psyco_ray.cli.main import main
from psyco_ray.config.contexts import Context
from psyco_ray.data import splits
from psyco_ray.evaluate import speech_sets, winrates

DEV = 33  # speeches of the packaged sample that are held out


def test_every_held_out_speech_comes_once_with_its_coarse_topic():
    speeches = load()
    assert len({row["speech_id"] for row in speeches}) == len(speeches) == DEV
    assert [row["speech_id"] for row in speeches] == sorted(row["speech_id"] for row in speeches)
    assert {row["topic"] for row in speeches} <= set(winrates.TOPICS)
    assert all(splits.is_dev(row["speech"], 0.1) for row in speeches)


def test_topics_may_be_numbers_or_missing(tmp_path):
    rows = [{"text": f"speech {i}", "split": "dev", "topic": topic} for i, topic in enumerate((7, 7, None))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "numbers.parquet")
    speeches = {row["speech"]: row["topic"] for row in load(file=str(tmp_path / "numbers.parquet"))}
    assert speeches == {"speech 0": "7", "speech 1": "7", "speech 2": None}


def test_speeches_with_signs_of_a_crisis_are_flagged(tmp_path):
    """By the column that `data collect` writes, else by its screen."""
    harmless, grave = "I quarrel with my neighbour about parking.", "I want to kill myself."
    signs = [("flagged by hand", ["violence"]), (f"{grave} But not today.", []), (grave, None), (harmless, None)]
    rows = [{"speech": text, "split": "test", "crisis": kinds} for text, kinds in signs]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "screened.parquet")
    found = {row["speech"]: row["crisis"] for row in load(file=str(tmp_path / "screened.parquet"), split="test")}
    assert list(map(found.get, (text for text, _ in signs))) == [True, False, True, False]
    file = write_lines(tmp_path / "bare.jsonl", [{"speech": text, "split": "test"} for text in (harmless, grave)])
    found = {row["speech"]: row["crisis"] for row in load(file=file, split="test")}
    assert found == {harmless: False, grave: True}
    file = write_lines(tmp_path / "odd.jsonl", [{"speech": grave, "split": "test", "crisis": "yes"}])
    with pytest.raises(
        ValueError, match=r"odd\.jsonl: row 1: crisis is a text of 3 characters, not a list of signs or null"
    ):
        load(file=file, split="test")


def test_a_larger_sample_contains_a_smaller_one_and_the_seed_draws_it():
    few, more, others = ({row["speech_id"] for row in load(seed, limit=n)} for seed, n in ((0, 9), (0, 20), (1, 9)))
    assert len(few) == 9
    assert few < more
    assert few != others


def test_speeches_of_a_data_job_have_its_topics(tmp_path):
    rows = [
        {"speech": row["question"], "split": split, "speech_id": splits.speech_id(row["question"])}
        for row, split in zip(SAMPLE, ("test", "train", "test", "dev"), strict=False)
    ]
    for directory in ("speeches", "topics/set-aside"):
        (tmp_path / directory).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "speeches" / "0.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "speeches" / "1.parquet")
    (tmp_path / "topics" / "settings.json").write_text("{}")
    pq.write_table(pa.table({"speech_id": ["x"], "what": ["topic"]}), tmp_path / "topics" / "set-aside" / "0.parquet")
    labelled = pa.table({"speech_id": [rows[0]["speech_id"]], "coarse_topic": ["Social Issues"]})
    pq.write_table(labelled, tmp_path / "topics" / "0.parquet")
    speeches = load(file=str(tmp_path / "speeches"), split="test", topics=str(tmp_path / "topics"))
    assert {row["speech"]: row["topic"] for row in speeches} == {
        rows[0]["speech"]: "Social Issues",
        rows[2]["speech"]: None,
    }


def test_conversations_are_contexts_of_one_split_with_signs_of_any_turn(tmp_path):
    whole = dialogue(1, 3)
    grave = Context((*whole.turns[:2], f"{whole.turns[2]} I want to die.", *whole.turns[3:]))
    rows = [{"messages": context.messages, "topic": "sleep"} for context in (grave, dialogue(2, 2))]
    file = write_lines(tmp_path / "a.jsonl", rows)
    speeches = load(file=file, split="all", conversations="contexts", max_turns=2)
    found = {row["speech"]: row["crisis"] for row in speeches}
    assert found == {
        grave.opening: False,
        Context(grave.turns[:3]).text: True,
        Context(grave.turns[2:]).text: True,
        dialogue(2, 2).opening: False,
        dialogue(2, 2).text: False,
    }
    dev = load(file=file, split="dev", conversations="contexts", dev_share=0.999)
    assert {row["speech_id"] for row in dev} >= {splits.speech_id(grave.text)}
    openings = load(file=file, split="all")
    assert {row["speech"] for row in openings} == {grave.opening, dialogue(2, 2).opening}


def test_responses_answer_contexts(tmp_path):
    whole = dialogue(1, 2)
    speeches = [{"speech_id": splits.speech_id(text), "speech": text} for text in (whole.text, whole.opening)]
    answered = {speeches[0]["speech_id"]: "I see.", speeches[1]["speech_id"]: "Go on."}
    ended = [*whole.messages, {"role": "assistant", "content": "(nods)"}]
    for form in (whole.text, whole.messages, {"messages": ended}, str(whole.messages), whole.transcript):
        rows = [{"question": form, "response": "I see."}, {"question": whole.opening, "response": "Go on."}]
        file = write_lines(tmp_path / "responses.jsonl", rows)
        assert speech_sets.load_responses(file, speeches) == answered
    file = write_lines(tmp_path / "lists.jsonl", [{"messages": whole.messages, "response": "I see."}])
    assert [row[1] for row in speech_sets.read_responses(file, conversations=True)] == [whole.text]
    file = write_lines(tmp_path / "first.jsonl", [{"question": whole.messages, "response": "I see."}])
    assert speech_sets.load_responses(file, speeches[1:]) == {speeches[1]["speech_id"]: "I see."}


def test_a_text_in_place_of_a_topic_is_no_topic(tmp_path):
    words = "My husband left me in May and I cannot sleep"
    rows = [{"speech": f"speech {n}", "split": "test", "topic": topic} for n, topic in enumerate(("Grief", words))]
    found = load(file=write_lines(tmp_path / "a.jsonl", rows), split="test")
    assert {row["speech"]: row["topic"] for row in found} == {"speech 0": "Grief", "speech 1": None}
    topics = [{"speech_id": row["speech_id"], "coarse_topic": words} for row in found]
    topics = write_lines(tmp_path / "topics.jsonl", topics)
    found = load(file=str(tmp_path / "a.jsonl"), split="test", topics=topics)
    assert [row["topic"] for row in found] == [None, None]
    topics = write_lines(tmp_path / "odd.jsonl", [{"speech_id": "a", words: 1}])
    with pytest.raises(ValueError, match=r"has no column coarse_topic; it has speech_id, \(a text of 44 characters\)"):
        load(topics=topics)


def test_invalid_speeches_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no speech of the split test \(it has dev: 33, train: 261\)"):
        load(split="test")
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        load(file=str(tmp_path / "none.jsonl"))
    for rows, message in (
        (
            [{"text": ""}, {"text": " "}],
            r"no speech of the split dev \(it has none\) \(left out: 2 with an empty text\)",
        ),
        ([{"client": "a"}], "no column question or speech or text; it has client"),
        ([{"text": "a", "split": "eval"}], "row 1: the split is a text of 4 characters"),
    ):
        with pytest.raises(ValueError, match=message):
            load(file=write_lines(tmp_path / "speeches.jsonl", rows))
    with pytest.raises(ValueError, match="has no column coarse_topic"):
        load(topics=write_lines(tmp_path / "topics.jsonl", [{"speech_id": "a", "topic": "Anxiety"}]))


def test_rows_without_the_clients_words_are_left_out_by_reason(tmp_path, caplog):
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "I cannot sleep."}]
    rows = [{"text": said}, {"text": "I am sad."}, {"text": ""}, {"text": None}, {"text": said[:1]}, {"text": True}]
    file = write_lines(tmp_path / "mixed.jsonl", rows)
    assert {row["speech"] for row in load(file=file, split="all")} == {"I cannot sleep.", "I am sad."}
    assert f"speeches file {file}: left out 2 with an empty text, 1 text is " in caplog.text


def test_a_column_of_speakers_needs_a_filter(tmp_path):
    (tmp_path / "session.csv").write_text("interlocutor;text\nclient;I am sad.\ntherapist;Since when?\n")
    file = str(tmp_path / "session.csv")
    with pytest.raises(
        ValueError, match=r"interlocutor names who speaks .* with speeches\.where: \{interlocutor: client\}"
    ):
        load(file=file, split="all")
    [row] = load(file=file, split="all", where={"interlocutor": "client"})
    assert row["speech"] == "I am sad."


@pytest.mark.parametrize(
    ("speeches", "responses", "message"),
    [
        (
            "client\na\n",
            "speech,response\na,b\n",
            "speeches.csv has no column question or speech or text; it has client",
        ),
        ("text\na\n", "speech,answer\na,b\n", "responses.csv has no column response; it has speech, answer"),
    ],
)
def test_errors_of_files_come_before_ray(tmp_path, capsys, speeches, responses, message):
    (tmp_path / "speeches.csv").write_text(speeches)
    (tmp_path / "responses.csv").write_text(responses)
    job = settings(tmp_path / "run", speeches={"file": str(tmp_path / "speeches.csv")})
    job["opponent"]["responses"] = str(tmp_path / "responses.csv")
    job["privacy"] = {"send_unscrubbed": True}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    with patch("ray.init", side_effect=AssertionError("Ray starts")):
        assert main(["evaluate-policy", str(tmp_path / "job.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_a_blank_crisis_cell_of_a_csv_file_is_screened_here(tmp_path):
    (tmp_path / "screened.csv").write_text("text,crisis\nI want to kill myself.,\n")
    assert [row["crisis"] for row in load(file=str(tmp_path / "screened.csv"), split="all")] == [True]


def test_an_opponents_responses_are_matched_by_the_speech_whatever_its_case(responses, tmp_path):
    rows = load()
    assert speech_sets.load_responses(responses, rows).keys() == {row["speech_id"] for row in rows}
    loud = [{"speech": row["speech"].upper(), "response": "Mm."} for row in rows]
    speeches = speech_sets.load_responses(write_lines(tmp_path / "loud.jsonl", loud), rows)
    assert speeches == {row["speech_id"]: "Mm." for row in rows}


def test_an_incomplete_opponents_file_is_named(tmp_path):
    rows = load(limit=3)
    full = [{"speech": row["speech"], "response": "Mm."} for row in rows]
    for file_rows, message in (
        (full[:2], f"no response to 1 of the 3 speeches, the first of them by its id {rows[2]['speech_id']};"),
        ([*full, {**full[0], "response": "No."}], "row 4 answers a speech that an earlier row answers otherwise"),
        ([{**full[0], "response": ""}], "row 1 has an empty response"),
        ([{**full[0], "response": ["Mm."]}], "row 1 has a list instead of a text"),
        ([{**full[0], "speech": None}], "row 1 has an empty speech"),
        ([{"speech": "a", "answer": "b"}], "no column response; it has speech, answer"),
    ):
        with pytest.raises(ValueError, match=message):
            speech_sets.load_responses(write_lines(tmp_path / "some.jsonl", file_rows), rows)
    again = write_lines(tmp_path / "again.jsonl", [*full, full[0]])
    assert len(speech_sets.load_responses(again, rows)) == 3


def test_conversations_that_only_greet_alike_are_of_their_own(tmp_path):
    wholes = [Context(("Hi", "Go on.", f"This is the story number {n} that I tell.", "And?", "Yes.")) for n in range(9)]
    contexts = [Context(whole.turns[:end]) for whole in wholes for end in (3, 5)]
    lists = write_lines(tmp_path / "lists.jsonl", [{"messages": whole.messages} for whole in wholes])
    held = write_lines(tmp_path / "stored.jsonl", [{"text": context.text} for context in contexts])
    for file, reading in ((lists, {"conversations": "contexts"}), (held, {})):
        rows = {row["speech"]: row for row in load(file=file, split="all", **reading)}
        found = [{rows[context.text]["conversation"] for context in contexts[n : n + 2]} for n in range(0, 18, 2)]
        assert {len(names) for names in found} == {1}
        assert len(set().union(*found)) == len(wholes)
        dev = load(file=file, split="dev", dev_share=0.5, **reading)
        assert 0 < len(dev) < len(rows), "and they are in splits of their own"
