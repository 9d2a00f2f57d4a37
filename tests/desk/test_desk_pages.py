"""What people do at a desk, over HTTP: join, judge, go back, edit and approve."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import desks
from support.desk_server import Visitor, serving

from psyco_ray.desk import approvals, judgements, people, queue
from psyco_ray.desk.store import Store

SPEECH, LEFT, RIGHT = "speech 0", "That sounds hard (0).", "Cheer up (0)."


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Iterator[tuple[Store, str]]:
    """A desk without items, and its URL."""
    store = desks.new_desk(tmp_path_factory.mktemp("desks") / "desk", crisis_text="Call 112.", ties=False)
    with serving(store) as url:
        yield store, url


@pytest.fixture
def fresh(desk, tmp_path: Path) -> Iterator[tuple[Store, str]]:
    """A desk of the test's own."""
    store = desks.new_desk(tmp_path / "desk", crisis_text="Call 112.")
    with serving(store) as url:
        yield store, url


def visitor(desk: tuple[Store, str], role: str = "annotator") -> tuple[Visitor, people.Person]:
    person = desks.add_person(desk[0], role)
    return Visitor(desk[1], desk[0], person), person


def fill(**others: str) -> dict[str, str]:
    principles = {f"principle__{name}": "left" for name in desks.PRINCIPLES}
    return {"overall": "left", "confidence": "4", "comment": "", **principles, **others}


def test_an_invitation_leads_to_an_account_and_work(desk) -> None:
    store, url = desk
    token = people.invite(store, "annotator", None)
    with Visitor(url) as anna:
        anna.read(f"/join/{token}")
        answer = anna.submit(f"/join/{token}", name="Anna", passphrase="four words of anna", again="four words of Anna")
        assert answer.status_code == 400
        assert "The two passphrases differ." in answer.text
        answer = anna.submit(f"/join/{token}", name="Anna", passphrase="four words of anna", again="four words of anna")
        assert "Hello, Anna" in answer.text
        anna.read("/")
        assert "Log in" in anna.submit("/logout").text
        assert anna.get("/work").url.path == "/login"
        anna.read("/login")
        assert "wrong" in anna.submit("/login", name="Anna", passphrase="four words of mine").text
        assert "Hello, Anna" in anna.submit("/login", name="anna", passphrase="four words of anna").text
    with Visitor(url) as other:
        assert "has been used" in other.read(f"/join/{token}", 410)


def test_a_pair_is_judged_without_scripts_in_shown_terms(fresh) -> None:
    store, _ = fresh
    store.add_items([desks.pair_item(0)])
    seen = set()
    for _ in range(6):  # the sides are each person's own
        with (window := visitor(fresh))[0] as anna:
            person = window[1]
            page = anna.read("/work")
            answer = anna.submit("/items/p0/save", base_version="0", seconds="3", go="next", overall="left")
            assert "An answer is still missing." in answer.text
            answer = anna.submit("/items/p0/save", base_version="1", seconds="9", go="next", **fill(overall="right"))
            assert "You have answered everything" in answer.text
        assigned = queue.assigned(store, person, "p0")
        assert assigned.complete
        on_the_right = 1 if page.index(LEFT) > page.index(RIGHT) else -1
        assert assigned.answer == desks.pair_answer(-on_the_right, 4) | {"overall": on_the_right}
        seen.add(on_the_right)
    assert seen == {1, -1}


def test_a_script_saves_goes_on_and_is_told_of_conflicts(fresh) -> None:
    store, _ = fresh
    store.add_items([desks.pair_item(0), desks.pair_item(1)])
    anna, person = visitor(fresh)
    with anna:
        item = anna.get("/work").url.path.split("/")[-1]
        assert anna.save(item, {"overall": 1}).json() == {"version": 1, "complete": False}
        assert anna.save(item, desks.pair_answer(-1), 1, 7.5).json() == {"version": 2, "complete": True}
        assert anna.save(item, desks.pair_answer(-1), 1).json() == {"version": 2, "complete": True}
        stale = anna.save(item, desks.pair_answer(1), 1)
        assert (stale.status_code, "another window" in stale.json()["error"]) == (409, True)
        assert anna.save(item, {"overall": 3}, 2).status_code == 422
        assert anna.get("/session").json()["person"] == person.id
        assert anna.get("/work").url.path != f"/items/{item}"
    latest = judgements.latest(store)[0]
    assert (latest.version, latest.seconds) == (2, 7.5)


def test_undo_takes_changes_back_and_then_goes_to_the_item_before(fresh) -> None:
    store, _ = fresh
    store.add_items([desks.pair_item(0), desks.pair_item(1)])
    with visitor(fresh)[0] as anna:
        page = anna.get("/work")
        item = page.url.path
        anna.save(item[7:], desks.pair_answer(1))
        assert checked(anna.read(item), "overall") == ["left"]
        anna.save(item[7:], desks.pair_answer(-1), 1)
        assert checked(anna.read(item), "overall") == ["right"]
        after = anna.read("/work")
        assert checked(after, "overall") == []
        other = anna.get("/work").url.path
        assert anna.submit(f"{other}/undo").url.path == item
        assert checked(anna.submit(f"{item}/undo").text, "overall") == ["left"]
        assert checked(anna.submit(f"{item}/undo").text, "overall") == []


def checked(page: str, name: str) -> list[str]:
    return re.findall(rf'name="{name}" value="(\w+)"[^>]* checked', page)


def test_scores_of_two_responses_follow_the_sides(fresh) -> None:
    store, _ = fresh
    store.add_items([desks.scores_item(0)])
    with (window := visitor(fresh))[0] as anna:
        page = anna.read("/work")
        fields = {f"score__{side}__{name}": "52"[side] for side in (0, 1) for name in desks.PRINCIPLES}
        anna.submit("/items/r0/save", base_version="0", seconds="1", comment="two", **fields)
        stored = queue.assigned(store, window[1], "r0").answer
    left_is_first = page.index("response a to 0") < page.index("response b to 0")
    assert stored == desks.scores_answer(*((5, 2) if left_is_first else (2, 5))) | {"comment": "two"}


def test_crisis_items_come_after_a_warning_once_a_session_and_show_the_local_numbers(fresh) -> None:
    store, _ = fresh
    store.add_items([desks.pair_item(0), desks.pair_item(1, crisis=True), desks.pair_item(2, crisis=True)])
    with (window := visitor(fresh))[0] as anna:
        warning = anna.read("/work")
        assert store.settings.content_warning in warning
        assert "speech" not in warning
        first = re.search(r'name="item" value="(p[12])"', warning)[1]
        page = anna.submit("/warning", item=first).text
        assert "speech" in page
        assert "Call 112." in page
        anna.save(first, desks.pair_answer())
        assert "Call 112." in anna.read("/work"), "the second crisis item needs no warning"
    with Visitor(fresh[1], store, window[1]) as again:
        assert store.settings.content_warning in again.read(f"/items/{first}")


def test_an_edit_is_compared_proposed_and_approved_by_somebody_else(fresh) -> None:
    store, _ = fresh
    store.add_items([desks.draft_item(0, text="I hear you.\nGo on.")])
    with visitor(fresh)[0] as anna, visitor(fresh, "reviewer")[0] as rita:
        anna.read("/work")
        pieces = anna.submit("/items/d0/difference", edit="I see you.\nGo on.").json()["pieces"]
        assert pieces[1:3] == [["delete", "hear"], ["insert", "see"]]
        answer = {"decision": "edit", "edit": "I see you.\r\nGo on.", "reasons": ["clarity"], "comment": "clearer"}
        anna.submit("/items/d0/save", base_version="0", seconds="1", **answer)
        page = rita.read("/review")
        assert re.search(r"<del>.*?hear</del>.*?<ins>.*?see</ins>", page)
        assert "clearer" in page
        text = re.search(r'name="text" value="(\w+)"', page)[1]
        assert rita.submit("/review/d0", text="0" * 64, decision="approve").status_code == 409
        assert rita.submit("/review/d0", text=text, decision="refuse").status_code == 422, "a refusal has a reason"
        assert "Nothing waits for you" in rita.submit("/review/d0", text=text, decision="approve").text
    assert [(each.text, each.edited) for each in approvals.approved(store)] == [("I see you.\nGo on.", True)]


def test_an_edit_without_a_change_is_saved_and_incomplete(fresh) -> None:
    fresh[0].add_items([desks.draft_item(0, text="I hear you.\nGo on.")])
    with visitor(fresh)[0] as anna:
        anna.read("/work")
        answer = desks.draft_answer("edit", "I hear you.\r\nGo on. ")
        assert anna.save("d0", answer).json() == {"version": 1, "complete": False}
        answer["edit"] = "I see you."
        assert anna.save("d0", answer, base_version=1).json() == {"version": 2, "complete": True}


def test_a_rejection_needs_a_reason(fresh) -> None:
    store, _ = fresh
    store.add_items([desks.draft_item(0)])
    with (window := visitor(fresh))[0] as anna:
        anna.read("/work")
        answer = anna.submit("/items/d0/save", base_version="0", seconds="1", decision="reject", comment="")
        assert "An answer is still missing." in answer.text
        anna.submit(
            "/items/d0/save", base_version="1", seconds="1", decision="reject", comment="", reasons=["unsafe", "other"]
        )
        assert queue.assigned(store, window[1], "d0").answer == desks.draft_answer("reject", None, "unsafe", "other")


def test_pages_say_nothing_of_labels_models_and_other_people(fresh) -> None:
    store, _ = fresh
    facts = {"labels": {"overall": 1}, "judge": "JUDGENAME", "models": ["MODELNAME"], "pair_id": "PAIRID"}
    items = [desks.pair_item(0), desks.scores_item(0), desks.draft_item(0)]
    store.add_items([item.__class__(**{**item.__dict__, "facts": facts, "source": "SOURCENAME"}) for item in items])
    with (window := visitor(fresh))[0] as other:
        for _ in items:
            item = other.get("/work").url.path[7:]
            answer = {
                "p0": desks.pair_answer(comment="SECRET"),
                "r0": desks.scores_answer(3, 3),
                "d0": desks.draft_answer("approve"),
            }
            assert other.save(item, answer[item] | {"comment": "SECRET"}).json()["complete"]
    assert window[1].name == "annotator 1"
    with visitor(fresh)[0] as anna:
        for _ in items[:2]:
            page = anna.get("/work")
            for word in ("JUDGENAME", "MODELNAME", "PAIRID", "SOURCENAME", "SECRET", "annotator 1"):
                assert word not in page.text
            item = page.url.path[7:]
            anna.save(item, desks.pair_answer() if item == "p0" else desks.scores_answer(1, 1))
        assert "SECRET" not in anna.read("/")
