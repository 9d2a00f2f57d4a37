"""What a desk hands on: pairs in the released columns, judgements and approved drafts."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
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

from psyco_ray.cli.main import main
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.data import preferences
from psyco_ray.desk import approvals, judgements, sources
from psyco_ray.desk.export import decide, export, pairs_of
from psyco_ray.desk.store import Item, Store
from psyco_ray.evaluate.expert_csv import original

RATINGS = [dict.fromkeys(PRINCIPLES, 5), dict.fromkeys(PRINCIPLES, 2)]


def pairs(store: Store) -> dict[str, dict]:
    rows = pq.read_table(store.directory / "export" / "pairs.parquet").to_pylist()
    return {row["prefID"]: row for row in rows}


def with_facts(item: Item, **facts) -> Item:
    return Item(item.id, item.kind, item.source, item.speech_id, item.speech, item.responses, item.crisis, facts)


def judged(tmp_path: Path, *votes: list[int], **settings) -> Store:
    """A desk whose people, a list each, judge pairs in the order of their ids: 1 the first response, -1 the second."""
    facts = {"split": "train", "models": ["a", "b"], "ratings": RATINGS, "finished": [True, False], "topic": "Sleep"}
    items = [with_facts(pair_item(number), **facts) for number in range(len(votes[0]))]
    store = new_desk(tmp_path / "desk", items, **settings)
    for own in votes:
        answers = {f"p{number}": pair_answer(vote, confidence=4) for number, vote in enumerate(own)}
        answer_all(store, add_person(store), answers)
    return store


def test_pairs_have_the_choice_of_most_people_and_its_weight(tmp_path) -> None:
    store = judged(tmp_path, [1, -1, 1], [1, -1, -1], [1, 1, -1], [1, -1, 1])
    record = export(store)
    found = pairs(store)
    assert record["counts"]["pairs"] == 2
    assert record["counts"]["undecided"] == 1
    assert set(found) == {"p0", "p1"}
    agreed, split = found["p0"], found["p1"]
    assert (agreed["chosen"], agreed["rejected"]) == ("That sounds hard (0).", "Cheer up (0).")
    assert (agreed["weight"], agreed["agreement"], agreed["annotators"], agreed["confidence"]) == (1.0, 1.0, 4, 4.0)
    assert (split["chosen"], split["rejected"]) == ("Cheer up (1).", "That sounds hard (1).")
    assert (split["weight"], split["agreement"], split["origin"]) == (0.5, 0.75, "comparison")
    assert (split["chosen_model"], split["rejected_model"], split["chosen_finished"]) == ("b", "a", False)
    assert agreed["chosen_empathy_rating"] == 5
    assert split["chosen_empathy_rating"] is None  # the judge's ratings contradict the people
    assert (agreed["split"], agreed["topic"], agreed["question"]) == ("train", "Sleep", "speech 0")


def test_an_adjudication_decides_and_ties_have_no_pair(tmp_path) -> None:
    store = judged(tmp_path, [1, 0, -1], [-1, 0, -1], ties=True)
    lead = add_person(store, "lead")
    judgements.adjudicate(store, lead, "p0", pair_answer(-1))
    judgements.adjudicate(store, lead, "p2", pair_answer(0))
    export(store)
    found = pairs(store)
    assert set(found) == {"p0"}
    assert (found["p0"]["chosen"], found["p0"]["weight"], found["p0"]["agreement"]) == ("Cheer up (0).", 1.0, 0.5)


@pytest.mark.parametrize(
    ("votes", "weight", "choice", "agreement"),
    [([1], 1.0, 1, 1.0), ([1, 1, -1], 1 / 3, 1, 2 / 3), ([1, 0], 0.5, 1, 0.5), ([1, -1], 0.0, 0, 0.0)],
)
def test_the_weight_is_the_balance_of_the_votes(votes, weight, choice, agreement) -> None:
    decision = decide([{"overall": vote} for vote in votes])
    assert (decision.weight, decision.choice, decision.agreement) == (weight, choice, agreement)
    assert decision.confidence is None


def test_exported_pairs_are_read_as_preferences_and_keep_their_split(tmp_path) -> None:
    items = sources.read("sample", sources.Request(count=12))
    store = new_desk(tmp_path / "desk", items)
    answer_all(store, add_person(store), {item.id: pair_answer(1) for item in items})
    export(store)
    read = preferences.read(str(pairs_of(store.directory))).table.to_pylist()
    splits = {row["chosen"]: row["split"] for row in read}
    assert splits == {item.responses[0]: item.facts["split"] for item in items}
    assert {row["form"] for row in read} == {"speech"}
    assert {row["asked"] for row in read} == {item.speech for item in items}


def test_a_conversation_stays_a_conversation(tmp_path) -> None:
    turns = [
        {"role": "user", "content": "No."},
        {"role": "assistant", "content": "Why?"},
        {"role": "user", "content": "X"},
    ]
    rows = [
        {"prompt": turns, "chosen": "a b", "rejected": "c d"},
        {"prompt": "Plain.", "chosen": "e f", "rejected": "g"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = sources.read(str(tmp_path / "pairs.jsonl"), sources.Request())
    store = new_desk(tmp_path / "desk", items)
    answer_all(store, add_person(store), {item.id: pair_answer(1) for item in items})
    export(store)
    read = {row["chosen"]: row for row in preferences.read(str(pairs_of(store.directory))).table.to_pylist()}
    prompt = {"user": "{client_speech}"}
    talk, plain = (preferences.conversation(read[key]["form"], read[key]["asked"], prompt) for key in ("a b", "e f"))
    assert talk == turns
    assert plain == [{"role": "user", "content": "Plain."}]


def test_only_approved_texts_leave_the_desk(tmp_path) -> None:
    items = [with_facts(draft_item(n, text=f"Draft {n}."), split="train", models=["m"]) for n in range(5)]
    store = new_desk(tmp_path / "desk", items)
    said = {
        "d0": draft_answer("edit", "A secret edit that is approved."),
        "d1": draft_answer("edit", "A secret edit that waits."),
        "d2": draft_answer("edit", "A secret edit that is refused."),
        "d3": draft_answer("reject", None, "harmful"),
        "d4": draft_answer("approve"),
    }
    answer_all(store, add_person(store), said)
    reviewer = add_person(store, "reviewer")
    approvals.decide(store, reviewer, "d0", "A secret edit that is approved.", True, "")
    approvals.decide(store, reviewer, "d2", "A secret edit that is refused.", False, "too long")
    approvals.decide(store, reviewer, "d4", "Draft 4.", True, "")
    record = export(store)
    drafts = [json.loads(line) for line in (store.directory / "export" / "drafts.jsonl").read_text().splitlines()]
    assert {row["response"] for row in drafts} == {"A secret edit that is approved.", "Draft 4."}
    [edit] = pairs(store).values()
    assert (edit["chosen"], edit["rejected"], edit["origin"]) == ("A secret edit that is approved.", "Draft 0.", "edit")
    assert (edit["weight"], edit["annotators"], edit["split"]) == (1.0, 1, "train")
    assert (record["counts"]["drafts"], record["counts"]["edits"]) == (2, 1)
    written = b"".join(path.read_bytes() for path in (store.directory / "export").iterdir())
    for text in (b"edit that waits", b"edit that is refused", b"Draft 3."):
        assert text not in written


def test_the_sheet_has_no_names_and_no_formulas(tmp_path) -> None:
    items = [pair_item(0), scores_item(1), draft_item(2)]
    store = new_desk(tmp_path / "desk", items)
    said = {
        "p0": pair_answer(-1, comment="=HYPERLINK(1)"),
        "r1": scores_answer(4, 2),
        "d2": draft_answer("reject", None, "@SUM(A1)", "curt"),
    }
    answer_all(store, add_person(store, name="Dr. Okafor"), said)
    answer_all(store, add_person(store, name="Dr. Lindqvist"), {"p0": pair_answer(1), "r1": scores_answer(1, 1)})
    export(store)
    content = (store.directory / "export" / "judgements.csv").read_text("utf-8-sig")
    assert "Okafor" not in content
    assert "Lindqvist" not in content
    rows = list(csv.DictReader(io.StringIO(content)))
    assert {row["annotator"] for row in rows} == {"annotator-1", "annotator-2"}
    by_item = {row["item"]: row for row in rows if row["annotator"] == "annotator-1"}
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    assert original(by_item["p0"]["comment"]) == "=HYPERLINK(1)"
    assert [by_item["p0"][name] for name in ("overall", "empathy preference", "label")] == ["second", "second", "first"]
    assert (by_item["r1"]["safety first"], by_item["r1"]["safety second"]) == ("4", "2")
    assert by_item["d2"]["decision"] == "reject"


def test_an_export_replaces_the_one_before_and_says_what_it_holds(tmp_path) -> None:
    store = judged(tmp_path, [1])
    (store.directory / "export").mkdir()
    (store.directory / "export" / "old.txt").write_text("from before")
    export(store)
    record = json.loads((store.directory / "export" / "record.json").read_text())
    assert not (store.directory / "export" / "old.txt").exists()
    assert set(record["files"]) == {"pairs.parquet", "judgements.csv", "drafts.jsonl"}
    assert record["settings"]["seed"] == 0
    assert (record["counts"]["judgements"], record["counts"]["annotators"]) == (1, 1)
    assert (store.directory / "export" / "pairs.parquet").stat().st_mode & 0o077 == 0


def test_without_a_decision_there_are_no_pairs(tmp_path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0)])
    with pytest.raises(InputError, match=r"has no export yet; run psyco-ray desk export"):
        pairs_of(store.directory)
    assert export(store)["counts"]["pair_items"] == 1
    with pytest.raises(InputError, match="has no export yet"):
        pairs_of(store.directory)


def test_a_desk_that_nobody_has_used_is_exported(tmp_path, capsys) -> None:
    new_desk(tmp_path / "desk", [pair_item(0)])
    assert main(["desk", "export", str(tmp_path / "desk")]) == 0
    assert "0 pairs, 0 pairs of edits, 0 approved drafts, 0 judgements of 0 people" in capsys.readouterr().out
