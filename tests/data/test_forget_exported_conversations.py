"""A client whose conversation is forgotten leaves no context of it, and the others leave nothing."""

import html
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.dialogue_files import contexts_of, dialogue
from support.raw_speeches import speech

from psyco_ray.cli.main import main
from psyco_ray.config.contexts import Context
from psyco_ray.config.data import DataJob, Source
from psyco_ray.data import collect_rows, forget_tables, pair
from psyco_ray.data.splits import speech_id
from psyco_ray.data.traces import Traces
from psyco_ray.evaluate import annotation, experts
from psyco_ray.evaluate.dialogues import DIALOGUES
from psyco_ray.judge.calls import Answer
from psyco_ray.judge.journal import Journal
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED_DIALOGUES, COMPARISONS, RESPONSES

GONE, STAYS = dialogue(1, turns=4), dialogue(2, turns=4)
LATER = Context(GONE.turns[2:])  # of a limit of three turns: without the opening
CONTEXTS = {"gone": [*contexts_of(GONE)[:3], LATER], "stays": contexts_of(STAYS)}
ALL = [*CONTEXTS["gone"], *CONTEXTS["stays"]]
IDS = [speech_id(context.text) for context in CONTEXTS["gone"]]


def reply_to(context: Context) -> str:
    return f"I hear how much that is, the {context.turn}. time, and I wonder what {context.opening[-30:]} means."


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """What a dataset, an evaluation and exports leave of two conversations."""
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "run"
    rows = [
        {"speech_id": speech_id(context.text), "speech": context.text, "split": "train", "source": "clinic"}
        | {"source_row": row, "dialogue": f"{row:08x}" * 2, "turn": turn}
        for row, contexts in enumerate(CONTEXTS.values(), start=1)
        for turn, context in enumerate(contexts, start=1)
    ]
    shards.write(root / "collect" / "speeches", "0", rows, COLLECTED_DIALOGUES)
    answers = [
        {
            "speech_id": row["speech_id"],
            "model": "kind",
            "response": reply_to(Context.of(row["speech"])),
            "finished": True,
        }
        for row in rows
    ]
    shards.write(root / "respond", "0", answers, RESPONSES)
    journal = Journal(root / "journal", "writer")
    for context in ALL:
        key = speech_id(context.text)
        journal.add(key, key * 4, Answer(f"an answer to {context.last}", True, 9, 9))
    journal.close()
    spoken = [
        {
            "dialogue": speech_id(whole.opening),
            "model": "dpo",
            "client": "c",
            "turn": context.turn,
            "speech": context.text,
        }
        | {"response": reply_to(context), "reply": context.last}
        for whole in (GONE, STAYS)
        for context in contexts_of(whole)
    ]
    (root / "dialogues").mkdir()
    pq.write_table(pa.Table.from_pylist(spoken, schema=DIALOGUES), root / "dialogues" / "dpo.parquet")
    shown = [f"<p><b>Client</b> {html.escape(turn)}</p>" for whole in (GONE, STAYS) for turn in whole.turns]
    (root / "report.html").write_text("<!doctype html><html><body>" + "\n".join(shown) + "</body></html>")
    return root


def pairs_of(context: Context, number: int) -> dict:
    sides = {"chosen": f"{reply_to(context)} {number}", "rejected": f"No: {reply_to(context)} {number}"}
    return {"ID": speech_id(context.text), "prefID": f"p{number}", "question": context.text, "split": "train", **sides}


def write_exports(root: Path) -> None:
    """Pairs without the ids of contexts, and experts' sheets."""
    (root / "pairs").mkdir(parents=True)
    rows = [pairs_of(context, number) for number, context in enumerate(ALL)]
    pq.write_table(pa.Table.from_pylist(rows, schema=pair.SCHEMA), root / "pairs" / "train.parquet")
    asked = [
        {"pair_id": f"{number:08x}ffffffff", "form": "speech", "asked": row["question"], "chosen": row["chosen"]}
        for number, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(asked, schema=COMPARISONS), root / "comparisons.parquet")
    bare = "".join(json.dumps({"question": row["question"], "n": row["prefID"]}) + "\n" for row in rows)
    (root / "pairs.jsonl").write_text(bare)
    annotation.export([row | {"chosen_model": "a"} for row in rows], root / "annotation", count=len(rows))
    for name in ("policy", "opponent"):
        said = [{"speech": context.text, "response": f"{name} {reply_to(context)}"} for context in ALL]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    experts.export({"free": str(root / "policy.jsonl")}, str(root / "opponent.jsonl"), root / "experts", len(ALL))


def left_in(root: Path, of: Context, ids: list[str]) -> list[str]:
    """Files with a turn of a conversation or the id of a context, in any form."""
    traces = Traces(set(ids))
    for turn in of.turns:
        traces.add_text(turn)
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != "forgotten.jsonl"):
        if path.suffix == ".parquet":
            content = [list(row.values()) for row in pq.read_table(path).to_pylist()]
        else:
            content = path.read_bytes().decode("utf-8", "ignore")
        if traces.within(content):
            found.append(path.relative_to(root).as_posix())
    return found


def held_of(root: Path, of: Context) -> dict[str, int]:
    """How often each file has each turn of a conversation."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != "forgotten.jsonl"):
        content = (
            path.read_text("utf-8", "ignore")
            if path.suffix != ".parquet"
            else json.dumps(pq.read_table(path).to_pylist())
        )
        forms = [{turn, html.escape(turn), json.dumps(turn)[1:-1]} for turn in of.turns]
        if count := sum(content.count(form) for own in forms for form in own):
            found[path.relative_to(root).as_posix()] = count
    return found


def named(by: str, tmp_path: Path) -> list[str]:
    texts = {"opening": GONE.opening, "a later turn": GONE.turns[4], "the last turn": GONE.last}
    texts |= {"a transcript": GONE.transcript, "messages": json.dumps({"messages": GONE.messages}, indent=1)}
    texts |= {"its text": contexts_of(GONE)[1].text}
    if by == "an id":
        return ["--speech-id", IDS[1]]
    (tmp_path / "words.txt").write_text(texts[by] + "\n")
    return ["--text-file", str(tmp_path / "words.txt")]


WAYS = ("opening", "a later turn", "the last turn", "a transcript", "messages", "its text", "an id")


@pytest.mark.parametrize("by", WAYS)
def test_every_context_of_the_conversation_goes_and_no_other(run, tmp_path, capsys, by) -> None:
    write_exports(run / "exported")
    before = held_of(run, STAYS)
    assert len(left_in(run, GONE, IDS)) >= 12
    assert main(["forget", str(run), *named(by, tmp_path)]) == 0
    assert left_in(run, GONE, IDS) == []
    assert held_of(run, STAYS) == before
    assert len(shards.read(run / "collect" / "speeches", "0")) == len(shards.read(run / "respond", "0")) == 4
    assert "still hold traces" not in capsys.readouterr().out
    assert main(["forget", str(run), *named(by, tmp_path)]) == 2, "nothing is left of the client"


@pytest.mark.parametrize("by", ["opening", "the last turn", "a transcript"])
def test_exports_alone_lose_the_contexts_with_the_words_of_the_conversation(tmp_path, monkeypatch, by) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "exported"
    write_exports(root)
    before = held_of(root, STAYS)
    assert main(["forget", str(root), *named(by, tmp_path)]) == 0
    assert left_in(root, GONE, IDS) == [], "also those that have neither the words that were named nor the opening"
    assert held_of(root, STAYS) == before


def forgotten(tmp_path: Path, monkeypatch, contexts: list[Context], words: str) -> list[str]:
    """What stays of contexts in a table without ids when a client is forgotten."""
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    rows = [pairs_of(context, number) for number, context in enumerate(contexts)]
    pq.write_table(pa.Table.from_pylist(rows, schema=pair.SCHEMA), tmp_path / "run" / "pairs.parquet")
    (tmp_path / "words.txt").write_text(words)
    assert main(["forget", str(tmp_path / "run"), "--text-file", str(tmp_path / "words.txt")]) == 0
    return pq.read_table(tmp_path / "run" / "pairs.parquet")["question"].to_pylist()


def test_a_short_opening_that_two_clients_share_leaves_the_other_one(tmp_path, monkeypatch) -> None:
    first, second = (
        Context(("Hello there.", "Hello, what brings you?", speech(n), "I see.", speech(n + 9))) for n in (1, 2)
    )
    left = forgotten(tmp_path, monkeypatch, [*contexts_of(first), *second.earlier[1:], second], first.turns[2])
    assert left == ["Hello there.", *(context.text for context in (*second.earlier[1:], second))]


def test_clients_who_say_the_same_later_are_not_forgotten_with_one_another(tmp_path, monkeypatch) -> None:
    same = "I do not know what else I could say about it, really, I am so tired of all of this."
    first, second = (Context((speech(n), f"Tell me more, {n}.", same, "Since when?", speech(n + 9))) for n in (1, 2))
    left = forgotten(tmp_path, monkeypatch, [*contexts_of(first), *contexts_of(second)], first.opening)
    assert left == [context.text for context in contexts_of(second)]


def test_words_that_two_conversations_hold_are_found_in_both(tmp_path, monkeypatch) -> None:
    same = "I do not know what else I could say about it, really, I am so tired of all of this."
    first, second = (Context((speech(n), f"Tell me more, {n}.", same)) for n in (1, 2))
    assert forgotten(tmp_path, monkeypatch, [*contexts_of(first), *contexts_of(second), STAYS], same) == [STAYS.text]


def test_a_greeting_that_clients_share_ties_no_stored_contexts_together(tmp_path) -> None:
    """A dataset of contexts in their stored form knows a conversation by how it begins."""
    gone, stays = ([Context(("Hi", "Hello.", *dialogue(n, 2).turns)), Context(("Hi",))] for n in (1, 2))
    later = Context((*gone[0].turns, "And then?", "Nothing."))
    contexts = [gone[0], later, stays[0]]
    raw = [{"source": 0, "row": n, "text": c.text, "dialogue": False} for n, c in enumerate(contexts, 1)]
    job = DataJob(sources=[Source(name="a", path="a.json")], collect={"max_chars": 2000})
    table = collect_rows.clean_batch(pa.Table.from_pylist(raw, schema=collect_rows.RAW), job)
    rows = [
        {"speech_id": speech_id(row["speech"]), "speech": row["speech"], "dialogue": f"{row['dialogue']:016x}"}
        for row in table.to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    traces = Traces()
    traces.add_context(gone[0].text)
    forget_tables.learn(tmp_path / "0.parquet", traces)
    assert {row["speech_id"] in traces.ids for row in rows[:2]} == {True}
    assert forget_tables.remove(tmp_path / "0.parquet", traces, Traces()) == 2
    assert pq.read_table(tmp_path / "0.parquet")["speech"].to_pylist() == [stays[0].text]
