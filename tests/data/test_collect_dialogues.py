"""From raw files of conversations to contexts."""

from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.dialogue_files import annomi, dialogue, esconv, stored
from support.raw_speeches import speech

from psyco_ray.config.contexts import Context
from psyco_ray.config.data import DataJob, Source
from psyco_ray.data import splits
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED_DIALOGUES
from psyco_ray.run.types import Row

ANNOMI = {"where": {"interlocutor": "client"}, "dialogue": "transcript_id", "text": "utterance_text"}


def like(context: Context) -> Context:
    """A conversation that says nearly the same."""
    return context.map(lambda turn: turn.replace("I miss", "I do miss"))


def crisis_dialogue() -> Context:
    first, asked, last = dialogue(80, 2).turns
    return Context((f"I'm Sarah. {first}", f"Thank you, Sarah. {asked}", f"{last} I want to die."))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """40 conversations in two sources, with one of each thing that is dropped."""
    root = tmp_path_factory.mktemp("dialogues")
    annomi(root / "annomi.csv", {str(n): dialogue(n, 1 + n % 5) for n in range(20)})
    told = [dialogue(n, 1 + n % 5) for n in range(20, 40)]
    told.append(like(dialogue(21, 2)))  # near duplicate, 2 contexts
    told.append(dialogue(22, 3))  # exact duplicate, 3 contexts
    told.append(Context(dialogue(24, 5).turns[6:]))  # is held by another one, 2 contexts
    greeted = dialogue(70, 3)
    told.append(Context(("Hi.", "Hello.", *greeted.turns)))  # its first turn is too short
    told.append(Context((dialogue(71, 1).opening, "Go on.", speech(1) + "x" * 1000, "And?", dialogue(72, 1).opening)))
    told.append(crisis_dialogue())
    esconv(root / "esconv.json", told)
    return root


def job_of(files: Path, blocks: int | None = None, reading: Row | None = None, **more) -> DataJob:
    reading = {"conversations": "contexts", **(reading or {})}
    sources = [
        Source(name="annomi", path=str(files / "annomi.csv"), **ANNOMI, **reading),
        Source(name="esconv", path=str(files / "esconv.json"), **reading),
    ]
    return DataJob(sources=sources, collect={"blocks": blocks}, **more)


def collected(job: DataJob, out: Path) -> tuple[dict, list[Row], list[Row]]:
    from psyco_ray.data.collect import collect

    facts = collect(job, out)
    parts = shards.list_shards(out / "speeches")
    rows = [row for part in parts for row in shards.read(out / "speeches", part)]
    return dict(facts), rows, pq.read_table(out / "dropped.parquet").to_pylist()


def test_conversations_become_contexts_of_one_split_without_duplicates(files, tmp_path, local_ray) -> None:
    facts, kept, dropped = collected(job_of(files), tmp_path / "one")
    assert all(pq.read_schema(path) == COLLECTED_DIALOGUES for path in (tmp_path / "one" / "speeches").iterdir())
    assert facts["rows"] == len(kept) + len(dropped) == 120 + 2 + 3 + 2 + 4 + 3 + 2
    assert facts["dropped"] == Counter(row["reason"] for row in dropped)
    assert facts["dropped"] == {
        "exact duplicate": 3,
        "contained duplicate": 2,
        "near duplicate": 2,
        "too long": 2,
        "too short": 1,
    }
    assert {row["detail"] for row in dropped if row["reason"] == "too short"} == {"turn 1: 3 characters"}
    own = [row for row in kept if row["source"] == "esconv" and row["source_row"] in (21, 22, 23)]
    assert own == [], "a dialogue that resembles another one goes with all its contexts"
    by_dialogue = defaultdict(list)
    for row in kept:
        by_dialogue[row["dialogue"]].append(row)
        assert row["speech_id"] == splits.speech_id(row["speech"])
    assert len(by_dialogue) == 43
    for rows in by_dialogue.values():
        assert len({row["split"] for row in rows}) == len({(row["source"], row["source_row"]) for row in rows}) == 1
    whole = dialogue(39, 5)
    found = sorted(by_dialogue[splits.speech_id(whole.text)], key=lambda row: row["turn"])
    assert [(row["turn"], row["speech"]) for row in found] == [
        (turn, Context(whole.turns[: 2 * turn - 1]).text) for turn in range(1, 6)
    ]
    conversations = [rows for rows in by_dialogue.values() if max(row["turn"] for row in rows) > 1]
    assert facts["conversations"] == {
        "conversations": len(conversations),
        "contexts": sum(map(len, conversations)),
        "most turns": 5,
    }
    again = collected(job_of(files, blocks=3), tmp_path / "two")
    assert again == (facts, kept, dropped), "whatever the blocks"


def test_windows_are_of_one_split_screened_in_every_turn_and_without_names(files, tmp_path, local_ray) -> None:
    job = job_of(files, reading={"max_turns": 2}, scrub={"enabled": True})
    facts, kept, _ = collected(job, tmp_path / "out")
    assert max(Context.of(row["speech"]).turn for row in kept) == 2
    assert facts["conversations"]["most turns"] == 5
    of_dialogue = defaultdict(set)
    for row in kept:
        of_dialogue[row["dialogue"]].add(row["split"])
    assert {len(found) for found in of_dialogue.values()} == {1}
    assert len(set().union(*of_dialogue.values())) > 1
    grave = [row for row in kept if (row["source"], row["source_row"]) == ("esconv", 26)]
    first, last = sorted(grave, key=lambda row: row["turn"])
    assert ("self-harm" in first["crisis"], "self-harm" in last["crisis"]) == (False, True)
    (flag,) = (flag for flag in last["crisis_flags"] if flag["kind"] == "self-harm")
    shown = Context.of(last["speech"]).transcript
    assert shown[flag["start"] : flag["end"]] == "want to die"
    assert shown.startswith("Client: I'm [NAME].")
    assert "Therapist: Thank you, [NAME]." in shown


def test_contexts_in_their_stored_form_are_collected_as_they_are(tmp_path, local_ray) -> None:
    wholes = [dialogue(1, 4), dialogue(2, 3)]
    contexts = [Context(whole.turns[:end]) for whole in wholes for end in (1, 3, 5)]
    rows = [{"text": context.text} for context in [*contexts, contexts[1], like(contexts[5])]]
    path = stored(tmp_path / "a.jsonl", rows)
    facts, kept, dropped = collected(DataJob(sources=[Source(name="a", path=str(path))]), tmp_path / "out")
    assert {row["speech"] for row in kept} == {context.text for context in contexts}
    assert [(row["source_row"], row["reason"]) for row in dropped] == [(7, "exact duplicate"), (8, "near duplicate")]
    assert Counter(row["dialogue"] for row in kept) == {splits.speech_id(whole.opening): 3 for whole in wholes}
    assert facts["conversations"]["contexts"] == 6
