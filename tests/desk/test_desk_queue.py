"""Who gets which item, in which order, on which sides."""

import tempfile
import threading
from collections import defaultdict
from pathlib import Path

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

from psyco_ray.desk import judgements, queue
from psyco_ray.desk.people import Person
from psyco_ray.desk.queue import NotYoursError
from psyco_ray.desk.store import Item, Store

ANSWERS = {"pair": pair_answer(), "draft": draft_answer("approve")}


def finish(store: Store, person: Person, item: Item) -> None:
    answer = ANSWERS.get(item.kind) or scores_answer(*[3] * len(item.responses))
    judgements.save(store, person, item.id, answer, 0, 10.0)


def drain(store: Store, person: Person) -> list[queue.Assigned]:
    """All that a person gets, finished."""
    got = []
    while (given := queue.next_item(store, person)) is not None:
        got.append(given)
        finish(store, person, given.item)
    return got


def make(kind: str, number: int, crisis: bool) -> Item:
    return {"pair": pair_item, "scores": scores_item, "draft": draft_item}[kind](number, crisis=crisis)


@given(
    kinds=st.lists(st.tuples(st.sampled_from(["pair", "pair", "scores", "draft"]), st.booleans()), max_size=12),
    overlap=st.sampled_from([1, 2, 3, "all"]),
    annotators=st.integers(1, 4),
    turns=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30),
    seed=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_each_item_goes_to_as_many_people_as_the_overlap_says(
    kinds: list[tuple[str, bool]], overlap: int | str, annotators: int, turns: list[tuple[int, bool]], seed: int
) -> None:
    items = {item.id: item for item in (make(kind, number, crisis) for number, (kind, crisis) in enumerate(kinds))}
    most = {
        id: 1 if item.kind == "draft" else annotators if overlap == "all" else overlap for id, item in items.items()
    }
    with tempfile.TemporaryDirectory() as directory:
        store = new_desk(Path(directory) / "desk", list(items.values()), overlap=overlap, seed=seed)
        crew = [add_person(store) for _ in range(annotators)]
        have: dict[str, set[int]] = defaultdict(set)

        def take(person: Person, finishes: bool) -> bool:
            """One turn of a person; whether there was something to do."""
            got = queue.next_item(store, person)
            free = {id for id in items if person.id not in have[id] and len(have[id]) < most[id]}
            if got is None:
                assert not free
                return False
            if person.id not in have[got.item.id]:
                assert got.item.id in free
                assert got.item.crisis or not any(items[id].crisis for id in free), "those with flags come first"
                have[got.item.id].add(person.id)
            if finishes:
                finish(store, person, got.item)
            return True

        for number, finishes in turns:
            take(crew[number % annotators], finishes)
        for person in crew:
            while take(person, True):
                pass
        assert {id: len(have[id]) for id in items} == {id: min(most[id], annotators) for id in items}
        rows = store.read().execute("SELECT item_id, person_id FROM assignments").fetchall()
        assert {(row[0], row[1]) for row in rows} == {(id, person) for id in items for person in have[id]}
        for person in crew:
            assert queue.counts(store, person).left == queue.counts(store, person).open == 0


def test_order_and_sides_are_the_persons_own_and_the_seeds(tmp_path: Path) -> None:
    items = [pair_item(number) for number in range(60)]

    def orders(name: str, seed: int) -> list[list[tuple[str, bool]]]:
        store = new_desk(tmp_path / name, items, seed=seed)
        crew = [add_person(store) for _ in range(2)]
        return [[(got.item.id, got.sides) for got in drain(store, person)] for person in crew]

    first, second = orders("a", 1)
    assert orders("b", 1) == [first, second]
    other = orders("c", 2)[0]
    as_added = [item.id for item in items]
    places = [as_added, *([id for id, _ in order] for order in (first, second, other, first[::-1]))]
    for number, one in enumerate(places):
        assert sorted(one) == sorted(as_added)
        for another in places[number + 1 :]:
            assert sum(a == b for a, b in zip(one, another, strict=True)) < 10  # 1 is expected of random orders
    sides = [[side for _, side in order] for order in (first, second, other)]
    assert len({tuple(one) for one in sides}) == 3
    for one in sides:
        assert sum(one) == 30
        for length in range(1, 61):
            assert abs(sum(one[:length]) - length / 2) <= 1
        assert len({tuple(one[start : start + 4]) for start in range(0, 60, 4)}) > 3


def test_sides_are_balanced_among_items_that_have_two(tmp_path: Path) -> None:
    items = [make(kind, number, False) for kind in ("draft", "pair") for number in range(8)]
    items += [scores_item(number, responses=1) for number in range(8)]
    store = new_desk(tmp_path / "desk", items)
    got = drain(store, add_person(store))
    assert sum(one.sides for one in got) == 4
    assert all(one.item.kind == "pair" for one in got if one.sides)
    turned = next(one for one in got if one.sides)
    assert queue.shown(turned.item, True) == turned.item.responses[::-1]
    assert queue.shown(turned.item, False) == turned.item.responses


def test_an_unfinished_item_comes_back_and_numbers_go_on(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(number) for number in range(3)])
    anna = add_person(store)
    first = queue.next_item(store, anna)
    assert first is not None
    assert (first.number, first.answer, first.version, first.complete) == (1, None, 0, False)
    assert queue.next_item(store, anna) == first
    judgements.save(store, anna, first.item.id, {"overall": 1}, 0, 2.0)
    again = queue.next_item(store, anna)
    assert again is not None
    assert (again.item, again.answer, again.version, again.complete) == (first.item, {"overall": 1}, 1, False)
    judgements.save(store, anna, first.item.id, pair_answer(), 1, 20.0)
    second = queue.next_item(store, anna)
    assert second is not None
    assert (second.number, second.item != first.item) == (2, True)
    assert queue.assigned(store, anna, first.item.id).complete
    assert queue.counts(store, anna) == queue.Counts(done=1, open=1, left=1, per_hour=None)


def test_new_items_with_flags_come_next(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(number) for number in range(10)])
    anna = add_person(store)
    first = queue.next_item(store, anna)
    assert first is not None
    store.add_items([pair_item(99, crisis=True)])
    finish(store, anna, first.item)
    got = queue.next_item(store, anna)
    assert got is not None
    assert got.item.id == "p99"


def test_roles_get_what_they_judge(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0), scores_item(1), draft_item(2), draft_item(3)])
    reviewer, lead = add_person(store, "reviewer"), add_person(store, "lead")
    assert queue.next_item(store, lead) is None
    assert {got.item.kind for got in drain(store, reviewer)} == {"draft"}
    assert [got.item.kind for got in drain(store, add_person(store))] in (["pair", "scores"], ["scores", "pair"])


def test_nobody_reaches_an_item_of_another(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0), pair_item(1)], overlap=1)
    anna, berta = add_person(store), add_person(store)
    hers = queue.next_item(store, anna)
    assert hers is not None
    for person, item_id in ((berta, hers.item.id), (anna, "none"), (add_person(store, "lead"), hers.item.id)):
        with pytest.raises(NotYoursError):
            queue.assigned(store, person, item_id)
        with pytest.raises(NotYoursError):
            judgements.save(store, person, item_id, pair_answer(), 0, 1.0)
        with pytest.raises(NotYoursError):
            judgements.undo(store, person, item_id)
    assert judgements.latest(store, complete=False) == []


def test_a_released_item_goes_to_somebody_else(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(0)], overlap=1)
    anna, berta, lead = add_person(store), add_person(store), add_person(store, "lead")
    assert queue.next_item(store, anna) is not None
    judgements.save(store, anna, "p0", {"overall": 1}, 0, 1.0)
    assert queue.next_item(store, berta) is None
    queue.release(store, "p0", anna.id, lead)
    with pytest.raises(NotYoursError):
        judgements.save(store, anna, "p0", pair_answer(), 1, 1.0)
    assert queue.next_item(store, anna) is None
    assert len(drain(store, berta)) == 1
    for person in (anna, berta):  # not hers any more, and finished
        with pytest.raises(NotYoursError):
            queue.release(store, "p0", person.id, lead)
    row = store.read().execute("SELECT * FROM audit WHERE action='release'").fetchone()
    assert (row["person_id"], row["item_id"], row["detail"]) == (lead.id, "p0", f"person={anna.id}")


def test_the_pace_is_of_the_newest_finished_items(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(number) for number in range(30)])
    anna = add_person(store)
    for number in range(25):
        got = queue.next_item(store, anna)
        assert got is not None
        judgements.save(store, anna, got.item.id, pair_answer(), 0, 1000.0 if number < 5 else 36.0)
        if number == 1:
            assert queue.counts(store, anna).per_hour is None
    counts = queue.counts(store, anna)
    assert (counts.done, counts.open, counts.left) == (25, 0, 5)
    assert counts.per_hour == pytest.approx(100.0)


def test_threads_share_no_item_and_leave_none(tmp_path: Path) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(number) for number in range(40)], overlap=2)
    crew = [add_person(store) for _ in range(4)]
    threads = [threading.Thread(target=drain, args=(store, person)) for person in crew for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = judgements.latest(store)
    assert len(done) == 80
    assert len({(one.item_id, one.person_id) for one in done}) == 80
    assert {one.version for one in done} == {1}
    assert {id: sum(one.item_id == id for one in done) for id in {one.item_id for one in done}} == {
        f"p{number}": 2 for number in range(40)
    }
