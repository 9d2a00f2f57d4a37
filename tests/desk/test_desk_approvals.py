"""Which texts may be used: those that a second person approved exactly as they are."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.desks import add_person, draft_answer, draft_item, new_desk, pair_answer, pair_item

from psyco_ray.desk import approvals, judgements, queue
from psyco_ray.desk.approvals import NotAllowedError
from psyco_ray.desk.judgements import ConflictError, InvalidAnswerError
from psyco_ray.desk.people import Person
from psyco_ray.desk.store import Store

DRAFT = "I hear you."


def propose(store: Store, person: Person, *answer: str | None, item_id: str = "d0") -> None:
    """Save a person's decision about a draft."""
    if store.read().execute("SELECT 1 FROM assignments WHERE item_id=?", (item_id,)).fetchone() is None:
        queue.next_item(store, person)
    base = queue.assigned(store, person, item_id).version
    judgements.save(store, person, item_id, draft_answer(*answer), base, 1.0)  # type: ignore[arg-type]


def texts(store: Store) -> list[str]:
    return [usable.text for usable in approvals.approved(store)]


@pytest.fixture
def desk(tmp_path: Path) -> tuple[Store, Person, Person]:
    store = new_desk(tmp_path / "desk", [draft_item(0, text=DRAFT)])
    return store, add_person(store), add_person(store, "reviewer")


def test_nothing_may_be_used_without_an_approval(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    propose(store, anna, "edit", "I hear you. Go on.", "too short")
    assert texts(store) == []
    (waiting,) = approvals.waiting(store, reviewer)
    assert (waiting.text, waiting.edited, waiting.by) == ("I hear you. Go on.", True, (anna.id,))
    assert (waiting.item.id, waiting.reasons, waiting.comments) == ("d0", ("too short",), ())
    assert approvals.waiting(store, anna) == []
    with pytest.raises(NotAllowedError, match="reviewer or lead"):
        approvals.decide(store, anna, "d0", waiting.text, True, "")
    approvals.decide(store, reviewer, "d0", waiting.text, True, "")
    (usable,) = approvals.approved(store)
    assert (usable.item.id, usable.text, usable.edited, usable.by) == ("d0", waiting.text, True, (reviewer.id,))
    assert approvals.waiting(store, reviewer) == []


def test_a_draft_is_approved_as_it_is(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    propose(store, anna, "approve")
    (waiting,) = approvals.waiting(store, reviewer)
    assert (waiting.text, waiting.edited) == (DRAFT, False)
    approvals.decide(store, reviewer, "d0", DRAFT, True, "")
    assert texts(store) == [DRAFT]


def test_an_approval_covers_exactly_the_approved_text(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    propose(store, anna, "edit", "One.")
    approvals.decide(store, reviewer, "d0", "One.", True, "")
    propose(store, anna, "edit", "One!")
    assert texts(store) == []
    assert [waiting.text for waiting in approvals.waiting(store, reviewer)] == ["One!"]
    with pytest.raises(ConflictError):  # from a page of before the change
        approvals.decide(store, reviewer, "d0", "One.", True, "")
    propose(store, anna, "edit", "One.")
    assert texts(store) == ["One."]
    propose(store, anna, "approve")
    assert texts(store) == []
    judgements.undo(store, anna, "d0")
    assert texts(store) == ["One."]


def test_line_ends_of_a_form_are_the_same_text(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [draft_item(0, text="One.\r\nTwo.")])
    anna, reviewer = add_person(store), add_person(store, "reviewer")
    propose(store, anna, "approve")
    approvals.decide(store, reviewer, "d0", "One.\r\nTwo.", True, "")
    assert texts(store) == ["One.\nTwo."]


def test_a_rejected_draft_is_never_usable(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    propose(store, anna, "approve")
    approvals.decide(store, reviewer, "d0", DRAFT, True, "")
    propose(store, anna, "reject", None, "unsafe")
    assert texts(store) == []
    assert approvals.waiting(store, reviewer) == []
    with pytest.raises(ConflictError):
        approvals.decide(store, reviewer, "d0", DRAFT, True, "")


def test_one_refusal_outweighs_approvals_and_has_a_reason(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    lead = add_person(store, "lead")
    propose(store, anna, "approve")
    approvals.decide(store, reviewer, "d0", DRAFT, True, "")
    with pytest.raises(InvalidAnswerError, match="needs a reason"):
        approvals.decide(store, lead, "d0", DRAFT, False, " ")
    approvals.decide(store, lead, "d0", DRAFT, False, "it promises too much")
    assert texts(store) == []
    approvals.decide(store, lead, "d0", DRAFT, True, "")  # who refused may think again
    assert texts(store) == [DRAFT]


def test_an_own_edit_needs_a_second_person(tmp_path: Path) -> None:
    for approve_own in (False, True):
        store = new_desk(tmp_path / str(approve_own), [draft_item(0, text=DRAFT)], approve_own=approve_own)
        reviewer, lead = add_person(store, "reviewer"), add_person(store, "lead")
        propose(store, reviewer, "edit", "Mine.")
        assert len(approvals.waiting(store, reviewer)) == approve_own
        assert len(approvals.waiting(store, lead)) == 1
        if approve_own:
            approvals.decide(store, reviewer, "d0", "Mine.", True, "")
        else:
            with pytest.raises(NotAllowedError, match="a second person"):
                approvals.decide(store, reviewer, "d0", "Mine.", True, "")
            assert texts(store) == []
            approvals.decide(store, lead, "d0", "Mine.", True, "")
        assert texts(store) == ["Mine."]


def also(store: Store, person: Person) -> None:
    """Give a draft that somebody has to one more person."""
    with store.transaction() as db:
        db.execute("INSERT INTO assignments VALUES('d0', ?, 0, 0, 0, NULL)", (person.id,))


def test_one_who_rejects_a_draft_outweighs_those_who_propose_it(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    propose(store, anna, "approve")
    approvals.decide(store, reviewer, "d0", DRAFT, True, "")
    also(store, reviewer)
    propose(store, reviewer, "reject", None, "unsafe")
    assert texts(store) == []
    propose(store, anna, "edit", "Better.")
    approvals.decide(store, reviewer, "d0", "Better.", True, "")
    assert texts(store) == ["Better."]


def test_an_approval_ends_when_its_text_becomes_the_approvers_own_edit(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    propose(store, anna, "edit", "Better.")
    approvals.decide(store, reviewer, "d0", "Better.", True, "")
    also(store, reviewer)
    propose(store, reviewer, "edit", "Better.")
    assert texts(store) == ["Better."]  # two propose it
    propose(store, anna, "approve")
    assert texts(store) == []


def test_an_incomplete_decision_proposes_nothing(desk: tuple[Store, Person, Person]) -> None:
    store, anna, reviewer = desk
    propose(store, anna, "edit", DRAFT)
    assert approvals.waiting(store, reviewer) == []
    propose(store, anna, "reject")
    assert approvals.waiting(store, reviewer) == []


def test_flagged_drafts_wait_first_and_other_items_cannot_be_decided(tmp_path: Path) -> None:
    drafts = [draft_item(number, crisis=number == 2) for number in range(3)]
    store = new_desk(tmp_path / "desk", [*drafts, pair_item(9)])
    anna, reviewer = add_person(store), add_person(store, "reviewer")
    while (got := queue.next_item(store, anna)) is not None:
        answer = pair_answer() if got.item.kind == "pair" else draft_answer("approve")
        judgements.save(store, anna, got.item.id, answer, 0, 1.0)
    waiting = [waiting.item.id for waiting in approvals.waiting(store, reviewer)]
    assert waiting == ["d2", "d0", "d1"]
    for item_id in ("p9", "none"):
        with pytest.raises(ConflictError):
            approvals.decide(store, reviewer, item_id, DRAFT, True, "")


TEXTS = (DRAFT, "One.", "Two.")
STEP = st.tuples(st.integers(0, 3), st.sampled_from(["propose", "reject", "approve", "refuse"]), st.sampled_from(TEXTS))


@given(steps=st.lists(STEP, max_size=14), approve_own=st.booleans())
@settings(max_examples=25, deadline=None)
def test_whatever_people_do_only_approved_proposals_may_be_used(
    steps: list[tuple[int, str, str]], approve_own: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = new_desk(Path(directory) / "desk", [draft_item(0, text=DRAFT)], approve_own=approve_own)
        crew = [add_person(store, role) for role in ("annotator", "reviewer", "reviewer", "lead")]
        with store.transaction() as db:  # more people than the queue gives a draft to
            db.executemany("INSERT INTO assignments VALUES('d0', ?, 0, 0, 0, NULL)", [(one.id,) for one in crew[:3]])
        proposed: dict[int, str | None] = {}
        decided: dict[tuple[int, str], bool] = {}
        for number, action, text in steps:
            person = crew[number]
            if action in ("propose", "reject") and person.role != "lead":
                answer = ("reject", None, "no") if action == "reject" else ("edit", text)
                propose(store, person, *(("approve",) if action == "propose" and text == DRAFT else answer))
                proposed[person.id] = text if action == "propose" else None
            elif action in ("approve", "refuse"):
                try:
                    approvals.decide(store, person, "d0", text, action == "approve", "why")
                    decided[person.id, text] = action == "approve"
                except (NotAllowedError, ConflictError):
                    pass

        def usable(text: str) -> bool:
            by = {person for person, one in proposed.items() if one == text}
            about = {person: yes for (person, one), yes in decided.items() if one == text}
            others = about if text == DRAFT or approve_own else [person for person in about if by != {person}]
            return bool(by and others) and all(about.values()) and not (text == DRAFT and None in proposed.values())

        assert sorted(texts(store)) == sorted(text for text in TEXTS if usable(text))
        assert not any(person == crew[0].id for person, _ in decided), "an annotator decides nothing"
        for reviewer in crew[1:]:
            for waiting in approvals.waiting(store, reviewer):
                approvals.decide(store, reviewer, "d0", waiting.text, True, "")
                assert waiting.text in texts(store)
