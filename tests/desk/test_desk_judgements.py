"""Answers of a desk: what is accepted, versions, conflicts, undo, adjudication, and what the audit log holds."""

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.desks import (
    add_person,
    draft_answer,
    draft_item,
    new_desk,
    pair_answer,
    pair_item,
    scores_answer,
    scores_item,
)

from psyco_ray.config.desk import Desk
from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.desk import audit, judgements, queue
from psyco_ray.desk.judgements import ConflictError, InvalidAnswerError, unswapped, validate
from psyco_ray.desk.people import Person
from psyco_ray.desk.queue import NotYoursError
from psyco_ray.desk.store import Store


@pytest.fixture
def desk(tmp_path: Path) -> tuple[Store, Person]:
    """A desk with one pair, and the annotator who has it."""
    store = new_desk(tmp_path / "desk", [pair_item(0)])
    anna = add_person(store)
    assert queue.next_item(store, anna) is not None
    return store, anna


COMPLETE = [
    ("pair", pair_answer(), {}),
    ("pair", pair_answer(-1, comment="grüße 🙂\r\nline\ttab"), {}),
    ("pair", pair_answer(0), {"ties": True}),
    ("pair", {"overall": 1}, {"principles": False, "confidence": False}),
    ("scores", scores_answer(1, 5), {}),
    ("scores", scores_answer(3), {}),
    ("draft", draft_answer("approve"), {}),
    ("draft", draft_answer("edit", "Better."), {}),
    ("draft", draft_answer("reject", None, "unsafe"), {}),
]
INCOMPLETE = [
    ("pair", {}, {}),
    ("pair", {"overall": None, "principles": None, "confidence": None}, {}),
    ("pair", pair_answer(confidence=None), {}),  # type: ignore[arg-type]
    ("pair", pair_answer(principles={"empathy": 1}), {}),
    ("pair", pair_answer(principles=dict.fromkeys(PRINCIPLES)), {}),
    ("scores", {"scores": [{}, {"safety": 5}]}, {}),
    ("scores", {"scores": [scores_answer(3)["scores"][0], {}]}, {}),
    ("draft", {}, {}),
    ("draft", draft_answer("edit"), {}),
    ("draft", draft_answer("edit", " \n "), {}),
    ("draft", draft_answer("reject"), {}),
    ("draft", draft_answer("reject", None, "  "), {}),
]
INVALID = [
    ("pair", None, {}),
    ("pair", [], {}),
    ("pair", {"other": 1}, {}),
    ("pair", pair_answer(0), {}),
    ("pair", pair_answer(2), {}),
    ("pair", {"overall": True}, {}),
    ("pair", {"overall": 1.0}, {}),
    ("pair", {"overall": "1"}, {}),
    ("pair", {"overall": [1]}, {}),
    ("pair", pair_answer(confidence=6), {}),
    ("pair", pair_answer(), {"principles": False}),
    ("pair", {"overall": 1, "confidence": 3}, {"confidence": False}),
    ("pair", pair_answer(principles={"kindness": 1}), {}),
    ("pair", pair_answer(principles={"empathy": 0}), {}),
    ("pair", pair_answer(principles=[1]), {}),
    ("pair", pair_answer(comment="x" * 10_001), {}),
    ("pair", pair_answer(comment="\ud800"), {}),
    ("pair", pair_answer(comment="a\x00b"), {}),
    ("pair", pair_answer(comment=3), {}),
    ("scores", {}, {}),
    ("scores", {"scores": []}, {}),
    ("scores", {"scores": [{}, {}, {}]}, {}),
    ("scores", {"scores": [{"safety": 0}]}, {}),
    ("scores", {"scores": [{"safety": 6}]}, {}),
    ("scores", {"scores": [3]}, {}),
    ("draft", draft_answer("publish"), {}),
    ("draft", {"decision": ["approve"]}, {}),
    ("draft", draft_answer("edit", "x" * 50_001), {}),
    ("draft", {"decision": "reject", "reasons": "unsafe"}, {}),
    ("draft", {"decision": "reject", "reasons": [1]}, {}),
    ("draft", draft_answer("reject", None, *["no"] * 21), {}),
]


@pytest.mark.parametrize(("kind", "answer", "chosen"), COMPLETE)
def test_complete_answers(kind: str, answer: Any, chosen: dict[str, Any]) -> None:
    assert validate(kind, answer, Desk(**chosen)) is True


@pytest.mark.parametrize(("kind", "answer", "chosen"), INCOMPLETE)
def test_incomplete_answers(kind: str, answer: Any, chosen: dict[str, Any]) -> None:
    assert validate(kind, answer, Desk(**chosen)) is False


@pytest.mark.parametrize(("kind", "answer", "chosen"), INVALID)
def test_invalid_answers(kind: str, answer: Any, chosen: dict[str, Any]) -> None:
    with pytest.raises(InvalidAnswerError):
        validate(kind, answer, Desk(**chosen))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 7) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "overall",
                    "principles",
                    "confidence",
                    "comment",
                    "scores",
                    "decision",
                    "edit",
                    "reasons",
                    "empathy",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(kind=st.sampled_from(["pair", "scores", "draft"]), answer=JSON)
@settings(max_examples=100, deadline=None)
def test_whatever_a_browser_sends_is_valid_or_refused_with_a_sentence(kind: str, answer: Any) -> None:
    assert unswapped(unswapped(answer, True), True) == answer
    try:
        complete = validate(kind, unswapped(answer, True), Desk())
    except InvalidAnswerError:
        with pytest.raises(InvalidAnswerError, match=" "):
            validate(kind, answer, Desk())
    else:
        assert validate(kind, answer, Desk()) == complete


def test_sides_turn_every_preference_and_score() -> None:
    assert unswapped(pair_answer(1, comment="left"), True) == pair_answer(-1, comment="left")
    assert unswapped(scores_answer(1, 5), True) == scores_answer(5, 1)
    assert unswapped(pair_answer(1), False) == pair_answer(1)
    assert unswapped(draft_answer("approve"), True) == draft_answer("approve")


def test_versions_go_up_and_the_same_answer_is_none(desk: tuple[Store, Person]) -> None:
    store, anna = desk
    assert judgements.save(store, anna, "p0", {"overall": 1}, 0, 3.0) == 1
    assert judgements.save(store, anna, "p0", {"overall": 1}, 0, 4.0) == 1  # sent again, its reply was lost
    assert judgements.save(store, anna, "p0", pair_answer(comment="so\r\nso"), 1, 9.5) == 2
    assert judgements.save(store, anna, "p0", pair_answer(comment="so\nso"), 1, 9.5) == 2
    (latest,) = judgements.latest(store)
    assert (latest.item_id, latest.person_id, latest.version, latest.seconds) == ("p0", anna.id, 2, 9.5)
    assert latest.answer == pair_answer(comment="so\nso")
    assert store.read().execute("SELECT count(*) FROM judgements").fetchone()[0] == 2


def test_an_answer_from_an_older_page_conflicts(desk: tuple[Store, Person]) -> None:
    store, anna = desk
    judgements.save(store, anna, "p0", pair_answer(1), 0, 1.0)
    for base in (0, 2, -1):
        with pytest.raises(ConflictError) as conflict:
            judgements.save(store, anna, "p0", pair_answer(-1), base, 1.0)
        assert conflict.value.version == 1
    assert judgements.latest(store)[0].answer == pair_answer(1)


def test_of_two_windows_at_once_one_conflicts(desk: tuple[Store, Person]) -> None:
    store, anna = desk
    outcomes: list[Any] = []

    def answer(level: int) -> None:
        try:
            outcomes.append(judgements.save(store, anna, "p0", pair_answer(confidence=level), 0, 1.0))
        except ConflictError:
            outcomes.append("conflict")

    threads = [threading.Thread(target=answer, args=(level,)) for level in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["1", "conflict", "conflict", "conflict"]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "3", None])
def test_a_time_that_is_none_is_refused(desk: tuple[Store, Person], seconds: Any) -> None:
    with pytest.raises(InvalidAnswerError, match="time"):
        judgements.save(*desk, "p0", pair_answer(), 0, seconds)


def test_undo_walks_back_and_a_new_answer_goes_on_from_there(desk: tuple[Store, Person]) -> None:
    store, anna = desk
    a, b, c, d = (pair_answer(confidence=level) for level in (1, 2, 3, 4))
    for number, answer in enumerate((a, b, c)):
        judgements.save(store, anna, "p0", answer, number, 5.0)
    assert judgements.undo(store, anna, "p0").answer == b
    back = judgements.undo(store, anna, "p0")
    assert (back.answer, back.version, back.complete) == (a, 5, True)
    assert judgements.save(store, anna, "p0", d, 5, 6.0) == 6
    assert judgements.undo(store, anna, "p0").answer == a
    empty = judgements.undo(store, anna, "p0")
    assert (empty.answer, empty.version, empty.complete) == (None, 8, False)
    assert judgements.undo(store, anna, "p0") == empty
    assert judgements.latest(store) == judgements.latest(store, complete=False) == []
    assert judgements.save(store, anna, "p0", a, 8, 7.0) == 9
    assert judgements.undo(store, anna, "p0").answer is None
    rows = store.read().execute("SELECT count(*), max(version) FROM judgements").fetchone()
    assert tuple(rows) == (10, 10)  # nothing is overwritten


@given(steps=st.lists(st.sampled_from(["undo", 1, 2, 3, 4, 5]), max_size=14))
@settings(max_examples=20, deadline=None)
def test_undo_is_that_of_an_editor(steps: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    store = new_desk(tmp_path_factory.mktemp("desks") / "desk", [pair_item(0)])
    anna = add_person(store)
    held = queue.next_item(store, anna)
    assert held is not None
    stack: list[Any] = [None]
    for step in steps:
        if step == "undo":
            stack = stack[:-1] or [None]
            held = judgements.undo(store, anna, "p0")
        else:
            answer = pair_answer(confidence=step)
            stack += [answer] if stack[-1] != answer else []
            judgements.save(store, anna, "p0", answer, held.version, 1.0)
            held = queue.assigned(store, anna, "p0")
        assert held.answer == stack[-1]


def test_scores_are_as_many_as_responses(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [scores_item(0, responses=1)])
    anna = add_person(store)
    queue.next_item(store, anna)
    with pytest.raises(InvalidAnswerError, match="has 1 responses"):
        judgements.save(store, anna, "r0", scores_answer(3, 3), 0, 1.0)
    assert judgements.save(store, anna, "r0", scores_answer(3), 0, 1.0) == 1


def test_an_edit_is_complete_when_it_changes_the_draft(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [draft_item(0, text="I hear you.\r\nGo on.")])
    anna = add_person(store)
    queue.next_item(store, anna)
    judgements.save(store, anna, "d0", draft_answer("edit", "I hear you.\nGo on. "), 0, 1.0)
    assert not queue.assigned(store, anna, "d0").complete
    judgements.save(store, anna, "d0", draft_answer("edit", "I hear you."), 1, 1.0)
    assert queue.assigned(store, anna, "d0").complete


def test_latest_is_by_kind_and_item(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0), pair_item(1), scores_item(2)])
    crew = [add_person(store) for _ in range(2)]
    for person in crew:
        while (got := queue.next_item(store, person)) is not None:
            judgements.save(
                store, person, got.item.id, pair_answer() if got.item.kind == "pair" else scores_answer(2, 4), 0, 1.0
            )
    assert [(one.item_id, one.person_id) for one in judgements.latest(store, "pair")] == [
        (item, person.id) for item in ("p0", "p1") for person in crew
    ]
    assert {one.item_id for one in judgements.latest(store, item_id="r2")} == {"r2"}
    assert len(judgements.latest(store)) == 6
    judgements.save(store, crew[0], "p0", pair_answer(confidence=None), 1, 1.0)  # type: ignore[arg-type]
    assert len(judgements.latest(store)) == 5
    assert len(judgements.latest(store, complete=False)) == 6


def test_a_lead_adjudicates(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0), draft_item(1)])
    lead, anna = add_person(store, "lead"), add_person(store)
    judgements.adjudicate(store, lead, "p0", {"overall": -1})
    judgements.adjudicate(store, lead, "p0", {"overall": 1})
    row = store.read().execute("SELECT * FROM adjudications").fetchone()
    assert (row["item_id"], row["person_id"], row["answer"]) == ("p0", lead.id, '{"overall":1}')
    for person, item_id in ((anna, "p0"), (lead, "none")):
        with pytest.raises(NotYoursError):
            judgements.adjudicate(store, person, item_id, {"overall": 1})
    for item_id, answer in (("p0", {}), ("p0", {"overall": 0}), ("d1", draft_answer("approve"))):
        with pytest.raises(InvalidAnswerError):
            judgements.adjudicate(store, lead, item_id, answer)


def test_the_audit_log_has_who_and_what_but_no_words(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0), draft_item(1)])
    anna, lead = add_person(store, name="Xanthippe"), add_person(store, "lead")
    while (got := queue.next_item(store, anna)) is not None:
        answers = {
            "pair": pair_answer(comment="secret words"),
            "draft": draft_answer("edit", "secret words", "secret words"),
        }
        judgements.save(store, anna, got.item.id, answers[got.item.kind], 0, 1.0)
    judgements.undo(store, anna, "p0")
    judgements.adjudicate(store, lead, "p0", pair_answer(comment="secret words"))
    rows = [tuple(row)[2:] for row in store.read().execute("SELECT * FROM audit ORDER BY id")]
    assert (anna.id, "save", "p0", "version=1 complete=1") in rows
    assert (anna.id, "undo", "p0", "version=2 complete=0") in rows
    assert (lead.id, "adjudicate", "p0", "") in rows
    for word in ("secret", "speech", "hear", "Cheer", "Xanthippe"):
        assert not any(word in str(row) for row in rows)


@pytest.mark.parametrize("detail", ["I cannot sleep", "comment=I cannot", "word", "a=b\n", "größe=1", "a=" + "1" * 200])
def test_the_audit_log_takes_facts_alone(tmp_path: Path, detail: str) -> None:
    store = new_desk(tmp_path / "desk")
    with pytest.raises(AssertionError), store.transaction() as db:
        audit.record(db, None, "save", None, detail)
