"""What a lead sees of a desk: progress, figures that follow the data, disagreements, unfinished items, the log."""

import threading

from support.desks import add_person, draft_item, new_desk, pair_answer, pair_item, scores_answer, scores_item

from psyco_ray.desk import judgements, overview, queue, rater_agreement
from psyco_ray.desk.people import Person
from psyco_ray.desk.store import Store


def judge(store: Store, person: Person, choose, limit: int = 99) -> None:
    """A person answers what they get; `choose` says what of an item's id."""
    for _ in range(limit):
        if (assigned := queue.next_item(store, person)) is None:
            return
        answer = scores_answer(choose(assigned.item.id), 2) if assigned.item.kind == "scores" else None
        answer = answer or pair_answer(choose(assigned.item.id))
        judgements.save(store, person, assigned.item.id, answer, assigned.version, 30.0)


def test_the_figures_follow_the_data_and_are_computed_once_for_each_state(tmp_path, monkeypatch) -> None:
    store = new_desk(tmp_path / "desk", [pair_item(n) for n in range(6)])
    ana, ben = add_person(store, name="Ana"), add_person(store, name="Ben")
    figures = overview.Figures(store)
    assert figures.current()["between"] == {"pair": None, "scores": None}
    judge(store, ana, lambda item: 1)
    judge(store, ben, lambda item: -1 if item in ("p0", "p1") else 1)
    counted = []
    compute = overview.figures
    monkeypatch.setattr(overview, "figures", lambda store: counted.append(1) or compute(store))
    threads = [threading.Thread(target=figures.current) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = figures.current()
    assert counted == [1]
    assert found["between"]["pair"] == rater_agreement.between(judgements.latest(store, "pair"), "pair", seed=0)
    assert found["between"]["pair"]["overall"]["percent"]["value"] == 4 / 6
    assert found["with_labels"]["the source"]["people"]["Ben"]["overall"]["equal"] == 4
    assert list(found["drift"]) == list(found["sides"]) == ["Ana", "Ben"]
    judgements.undo(store, ben, "p0")
    assert figures.current()["between"]["pair"]["overall"]["items"] == 5


def test_sides_are_those_that_people_saw(tmp_path) -> None:
    """Whoever always takes the left is seen, though the stored choices are even."""
    store = new_desk(tmp_path / "desk", [pair_item(n) for n in range(40)])
    ana = add_person(store, name="Ana")
    while (assigned := queue.next_item(store, ana)) is not None:
        judgements.save(store, ana, assigned.item.id, pair_answer(-1 if assigned.sides else 1), 0, 10.0)
    sides = overview.figures(store)["sides"]["Ana"]
    assert (sides["choices"], sides["left"], sides["one_sided"]) == (40, 40, True)
    assert 5 < sum(one.answer["overall"] > 0 for one in judgements.latest(store)) < 35


def test_progress_counts_people_and_items_by_the_overlap(tmp_path) -> None:
    items = [*(pair_item(n) for n in range(4)), scores_item(1), draft_item(1)]
    store = new_desk(tmp_path / "desk", items, overlap=2)
    ana, ben, _ = (add_person(store, name=name) for name in ("Ana", "Ben", "Cleo"))
    lead = add_person(store, "lead", "Lena")
    for _ in range(3):
        assigned = queue.next_item(store, ana)
        answers = {"pair": pair_answer(), "scores": scores_answer(4, 2), "draft": {"decision": "approve"}}
        judgements.save(store, ana, assigned.item.id, answers[assigned.item.kind], 0, 60.0)
    waiting = queue.next_item(store, ben)
    found = overview.progress(store)
    by_name = {row["name"]: row for row in found["people"]}
    assert (by_name["Ana"]["done"], by_name["Ben"]["open"], by_name[lead.name]["left"]) == (3, 1, 0)
    assert by_name["Ana"]["per_hour"] is not None
    assert by_name["Ana"]["hours"] == by_name["Ana"]["left"] / by_name["Ana"]["per_hour"]
    totals = {kind: count["total"] for kind, count in found["items"].items()}
    assert totals == {"pair": 4, "scores": 1, "draft": 1}
    assert sum(count["done"] + count["begun"] for count in found["items"].values()) == 3
    assert [(one.item_id, one.name) for one in overview.unfinished(store)] == [(waiting.item.id, "Ben")]
    queue.release(store, waiting.item.id, ben.id, lead)
    assert overview.unfinished(store) == []
    assert [(line["name"], line["action"]) for line in overview.audit_lines(store, 1)] == [("Lena", "release")]


def test_disagreements_are_pairs_without_a_decision_crises_first(tmp_path) -> None:
    store = new_desk(tmp_path / "desk", [*(pair_item(n) for n in range(4)), pair_item(9, crisis=True), scores_item(1)])
    ana, ben = add_person(store, name="Ana"), add_person(store, name="Ben")
    judge(store, ana, lambda item: 1)
    judge(store, ben, lambda item: -1 if item in ("p1", "p9") else 1)
    found = overview.disagreements(store)
    assert [one.item.id for one in found] == ["p9", "p1"]
    assert [(vote.person, vote.answer["overall"]) for vote in found[0].votes] == [("Ana", 1), ("Ben", -1)]
    judgements.adjudicate(store, add_person(store, "lead"), "p9", {"overall": -1})
    assert [one.item.id for one in overview.disagreements(store)] == ["p1"]
