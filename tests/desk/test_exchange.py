"""Items and judgements go to Argilla and Label Studio and come back."""

import json
from pathlib import Path

import pytest
from support.desks import (
    add_person,
    answer_all,
    draft_answer,
    draft_item,
    new_desk,
    pair_answer,
    pair_item,
    scores_answer,
    scores_item,
)

from psyco_ray.config.errors import InputError
from psyco_ray.data import preferences
from psyco_ray.desk import exchange, judgements
from psyco_ray.desk.store import Store

TOOLS = ("argilla", "label-studio")
FILES = {"argilla": "records.json", "label-studio": "tasks.json"}
ITEMS = [*(pair_item(number) for number in range(8)), scores_item(8), draft_item(9)]


@pytest.fixture
def desk(tmp_path) -> Store:
    store = new_desk(tmp_path / "desk", ITEMS)
    said = {
        item.id: pair_answer(1 if number % 2 else -1, comment="response 2 is curt")
        for number, item in enumerate(ITEMS[:8])
    }
    said |= {"r8": scores_answer(5, 2), "d9": draft_answer("edit", "I hear you, and I stay.", "too short", "curt")}
    answer_all(store, add_person(store, name="Dr. Okafor"), said)
    answer_all(
        store,
        add_person(store),
        {**dict.fromkeys((item.id for item in ITEMS[:8]), pair_answer(1)), "r8": scores_answer(3, 3)},
    )
    return store


def answers(store: Store) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for one in judgements.latest(store):
        found.setdefault(one.item_id, []).append(one.answer)
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_another_desk_gets_all_items_and_judgements(desk, tmp_path, tool) -> None:
    exchange.write(desk, tool)
    other = new_desk(tmp_path / "other")
    for kind in ("pair", "scores", "draft"):
        exchange.read(other, desk.directory / f"export-{tool}" / kind, tool)
    by_texts = {(item.speech, frozenset(item.responses)): item for item in other.items()}
    assert len(by_texts) == len(ITEMS)
    for item in ITEMS:
        there = by_texts[item.speech, frozenset(item.responses)]
        assert there.kind == item.kind
        turned = there.responses != item.responses
        own = [judgements.unswapped(answer, turned) for answer in answers(other)[there.id]]
        key = lambda answer: json.dumps(answer, sort_keys=True)  # noqa: E731
        assert sorted(own, key=key) == sorted(answers(desk)[item.id], key=key)


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_desk_gave_out_comes_back_once(desk, tool) -> None:
    exchange.write(desk, tool)
    before = answers(desk)
    told = exchange.read(desk, desk.directory / f"export-{tool}" / "pair", tool)
    assert "8 records, 0 new items, 0 new judgements; 16 were known already" in told
    assert answers(desk) == before


@pytest.mark.parametrize("tool", TOOLS)
def test_a_judgement_made_elsewhere_is_added_in_the_desks_terms(desk, tool) -> None:
    exchange.write(desk, tool)
    path = desk.directory / f"export-{tool}" / "pair" / FILES[tool]
    entries = json.loads(path.read_text())
    first_shown: dict[str, str] = {}
    for entry in entries:  # somebody there always prefers what is shown first
        if tool == "argilla":
            entry["responses"] = {"overall": [{"value": "response-1", "user_id": "u-7", "status": "submitted"}]}
            first_shown[entry["id"]] = entry["fields"]["response-1"]
        else:
            choice = {"from_name": "overall", "to_name": "response_1,response_2", "type": "pairwise"}
            choice["value"] = {"selected": "left"}
            skipped = {"completed_by": 9, "was_cancelled": True, "result": [choice]}
            entry["annotations"] = [{"completed_by": 7, "lead_time": 3.5, "result": [choice]}, skipped]
            first_shown[entry["data"]["item"]] = entry["data"]["response_1"]
    path.write_text(json.dumps(entries))
    assert "8 new judgements" in exchange.read(desk, path, tool)
    items = {item.id: item for item in ITEMS}
    assert len({items[key].responses.index(text) for key, text in first_shown.items()}) == 2, "sides are shuffled"
    for key, text in first_shown.items():
        assert answers(desk)[key][-1]["overall"] == (1 if items[key].responses[0] == text else -1)
    row = desk.read().execute("SELECT * FROM people ORDER BY id DESC").fetchone()
    assert (row["name"], row["active"], row["role"]) == (f"{tool}-{'u-7' if tool == 'argilla' else 7}", 0, "annotator")


def test_an_item_that_was_given_back_counts_again_once_it_is_judged_elsewhere(desk) -> None:
    exchange.write(desk, "argilla")
    path = desk.directory / "export-argilla" / "pair" / FILES["argilla"]
    entry = json.loads(path.read_text())[0]
    entry["responses"] = {"overall": [{"value": "response-1", "user_id": "u-7", "status": "submitted"}]}
    path.write_text(json.dumps([entry]))
    exchange.read(desk, path, "argilla")
    with desk.transaction() as db:
        db.execute("DELETE FROM judgements WHERE person_id = 3")
        db.execute("UPDATE assignments SET released_at = 1 WHERE person_id = 3")
    exchange.read(desk, path, "argilla")
    assert desk.read().execute("SELECT released_at FROM assignments WHERE person_id = 3").fetchall()[0][0] is None


@pytest.mark.parametrize("tool", TOOLS)
def test_an_export_is_blind_nameless_and_read_as_pairs(desk, tool) -> None:
    exchange.write(desk, tool)
    directory = desk.directory / f"export-{tool}"
    written = "".join(path.read_text() for path in directory.rglob("*") if path.is_file())
    assert "Okafor" not in written
    assert '"labels"' not in written  # nor what a judge said
    read = preferences.read(str(directory / "pair" / FILES[tool])).table.to_pylist()
    agreed = {item.responses[0] for number, item in enumerate(ITEMS[:8]) if number % 2}
    assert {row["chosen"] for row in read} == agreed  # principles and comments cast no vote


def test_records_of_other_projects_become_items(tmp_path) -> None:
    store = new_desk(tmp_path / "desk")
    records = [
        {"id": "1", "fields": {"question": "I am tired.", "answer_a": "Rest.", "answer_b": "Of what?"}, "responses": [
            {"user_id": "u1", "status": "submitted", "values": {"best": {"value": "answer_b"}}},
            {"user_id": "u2", "status": "draft", "values": {"best": {"value": "answer_a"}}},
        ]},
        {"id": "2", "fields": {"question": "I am lost.", "answer_a": "Same.", "answer_b": "Same."}, "responses": []},
    ]  # fmt: skip
    (tmp_path / "records.json").write_text(json.dumps(records))
    told = exchange.read(store, tmp_path / "records.json", "argilla")
    assert "2 records, 1 new items, 1 new judgements" in told
    assert "1 left out" in told
    [item] = store.items()
    assert (item.speech, item.responses, item.facts["split"]) == ("I am tired.", ("Rest.", "Of what?"), "train")
    assert [answer["overall"] for answer in answers(store)[item.id]] == [-1]


def test_changed_texts_and_other_files_are_refused_without_a_word_of_theirs(desk, tmp_path, caplog) -> None:
    exchange.write(desk, "argilla")
    path = desk.directory / "export-argilla" / "pair" / "records.json"
    entries = json.loads(path.read_text())
    for entry in entries:
        entry["fields"]["response-1"] = "An improved answer."
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match="8 responses that are not the item's"):
        exchange.read(desk, path, "argilla")
    (tmp_path / "rows.json").write_text('[{"speech": "A secret."}]')
    with pytest.raises(InputError, match="1 no task of Label Studio with data") as error:
        exchange.read(desk, tmp_path / "rows.json", "label-studio")
    assert "secret" not in str(error.value) + caplog.text


def test_ties_are_left_out_where_the_desk_knows_none(tmp_path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0)])
    fields = {"prompt": "speech 0", "response-1": "That sounds hard (0).", "response-2": "Cheer up (0)."}
    record = {"id": "p0", "fields": fields, "responses": {"overall": [{"value": "tie", "user_id": "u"}]}}
    (tmp_path / "records.json").write_text(json.dumps([record]))
    assert "0 new judgements" in exchange.read(store, tmp_path / "records.json", "argilla")
    assert answers(store) == {}


def test_label_studios_configuration_names_what_its_tasks_hold(desk) -> None:
    exchange.write(desk, "label-studio")
    for kind in ("pair", "scores", "draft"):
        directory: Path = desk.directory / "export-label-studio" / kind
        config = (directory / "config.xml").read_text()
        [first, *_] = json.loads((directory / "tasks.json").read_text())
        for result in (result for annotation in first["annotations"] for result in annotation["result"]):
            assert f'name="{result["from_name"]}"' in config
        assert all(f"${name}" in config for name in first["data"] if name.startswith(("speech", "response")))
