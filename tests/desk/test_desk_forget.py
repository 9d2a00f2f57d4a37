"""A client is removed from a desk, down to the bytes of its database."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.desks import add_person, answer_all, draft_answer, new_desk, pair_answer
from support.dialogue_files import contexts_of, dialogue
from support.raw_speeches import speech

from psyco_ray.cli.main import main
from psyco_ray.config.contexts import Context
from psyco_ray.data.splits import speech_id
from psyco_ray.desk import approvals, exchange, judgements
from psyco_ray.desk.export import export
from psyco_ray.desk.sources import item_id
from psyco_ray.desk.store import Item, Store
from psyco_ray.run.directory import RunDirectory

GONE, STAYS = speech(1), speech(2)
REPLY = "It sounds as if these nights are long. What goes through your mind then, when all is quiet?"
EDIT = "These nights sound long and lonely. I would like to hear what goes through your mind at that hour."


def item(kind: str, said: str, *responses: str) -> Item:
    facts = {"split": "train", "form": "text", "asked": said}
    return Item(item_id(kind, said, responses), kind, "run", speech_id(said), said, responses, (), facts)


ITEMS = [
    item("pair", GONE, REPLY, "Cheer up, it will pass."),
    item("draft", GONE, REPLY),
    item("pair", STAYS, "I hear you, and that is a lot.", "Cheer up."),
]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    store = new_desk(tmp_path / "desk", ITEMS)
    quoted = pair_answer(1, comment=f"As before: {GONE} Not this one.")
    answer_all(
        store,
        add_person(store),
        {ITEMS[0].id: pair_answer(1), ITEMS[1].id: draft_answer("edit", EDIT), ITEMS[2].id: quoted},
    )
    reviewer, lead = add_person(store, "reviewer"), add_person(store, "lead")
    approvals.decide(store, reviewer, ITEMS[1].id, EDIT, True, "")
    judgements.adjudicate(store, lead, ITEMS[0].id, pair_answer(-1, comment=f"She says: {GONE}"))
    export(store)
    for tool in exchange.FORMATS:
        exchange.write(store, tool)
    return store


def holding(root: Path, *texts: str) -> list[str]:
    """The files with the bytes of a text, as it is or as JSON writes it."""
    forms = [form.encode() for text in texts for form in (text, json.dumps(text)[1:-1])]
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [path.relative_to(root).as_posix() for path in files if any(form in path.read_bytes() for form in forms)]


@pytest.mark.parametrize("by", ["words", "id"])
def test_no_byte_of_a_client_stays_on_a_desk(desk, tmp_path, capsys, by) -> None:
    traces = (GONE, GONE[:40], REPLY[:40], EDIT[:40], speech_id(GONE), ITEMS[0].id, ITEMS[1].id)
    assert len(holding(desk.directory, *traces)) >= 6
    if by == "words":
        (tmp_path / "words.txt").write_text(GONE)
        assert main(["forget", str(desk.directory), "--text-file", str(tmp_path / "words.txt")]) == 0
    else:
        assert main(["forget", str(desk.directory), "--speech-id", speech_id(GONE)]) == 0
    assert holding(desk.directory, *traces) == []
    assert [path.name for path in desk.directory.glob("desk.db-wal") if path.stat().st_size] == []
    told = capsys.readouterr().out
    assert "files cleaned" in told
    assert "still hold traces" not in told


def test_the_other_clients_and_the_audit_stay(desk) -> None:
    lines = desk.read().execute("SELECT count(*) FROM audit").fetchone()[0]
    assert main(["forget", str(desk.directory), "--speech-id", speech_id(GONE)]) == 0
    store = Store.open(desk.directory)
    assert [(one.id, one.speech) for one in store.items()] == [(ITEMS[2].id, STAYS)]
    [left] = judgements.latest(store)
    assert left.answer["comment"] == "As before: [forgotten]. Not this one."
    assert left.answer["overall"] == 1
    audit = store.read().execute("SELECT * FROM audit ORDER BY id").fetchall()
    assert len(audit) == lines + 1
    assert (audit[-1]["action"], audit[-1]["person_id"]) == ("forget", None)
    assert "items=2" in audit[-1]["detail"]
    assert store.read().execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert export(store)["counts"]["pairs"] == 1
    assert main(["forget", str(desk.directory), "--speech-id", speech_id(GONE)]) == 2  # nothing is left of the client


def test_all_turns_of_a_conversation_leave_a_desk_and_no_others(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PSYCO_RAY_CACHE", str(tmp_path / "cache"))
    gone, stays = ([*contexts_of(dialogue(seed, 3)), Context(dialogue(seed, 3).turns[2:])] for seed in (1, 2))
    items = [item("pair", context.text, f"{REPLY} {context.turn}", "Cheer up.") for context in (*gone, *stays)]
    items = [replace(one, facts={"split": "train"}) for one in items]
    store = new_desk(tmp_path / "desk", items)
    answer_all(store, add_person(store), {one.id: pair_answer(1) for one in items})
    export(store)
    for tool in exchange.FORMATS:
        exchange.write(store, tool)
    (tmp_path / "words.txt").write_text(dialogue(1, 3).turns[2])
    assert main(["forget", str(tmp_path / "desk"), "--text-file", str(tmp_path / "words.txt")]) == 0
    assert [one.speech for one in Store.open(tmp_path / "desk").items()] == [context.text for context in stays]
    assert holding(tmp_path / "desk", *dialogue(1, 3).turns, *(speech_id(context.text) for context in gone)) == []
    assert len(holding(tmp_path / "desk", dialogue(2, 3).opening)) >= 3
    [records] = (tmp_path / "desk" / "export-argilla").rglob("records.json")
    assert len(json.loads(records.read_text())) == len(stays)


def test_a_desk_that_is_served_is_not_changed_under_its_server(desk, capsys) -> None:
    server = RunDirectory(str(desk.directory))
    try:
        assert main(["forget", str(desk.directory), "--speech-id", speech_id(GONE)]) == 2
    finally:
        server.close()
    assert "is in use by process" in capsys.readouterr().err
    assert len(desk.items()) == 3
