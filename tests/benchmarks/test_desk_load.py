"""The desk's load in small, without its times: nothing is lost, doubled or given to two people."""

import copy

import pytest

from benchmarks import desk
from psyco_ray.desk.judgements import latest


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A desk after eight people have saved for five seconds, often twice or with cut connections, and what they saw."""
    directory = tmp_path_factory.mktemp("load") / "desk"
    check, kept = desk.check, []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AGAIN", "CUT", "FOREIGN"):
            patch.setattr(desk, name, 0.2)
        patch.setattr(desk, "check", lambda store, seen: check(store, kept.append(seen) or seen))
        found = desk.measure(desk.Load(annotators=8, rate=40, seconds=5), directory)
    return desk.Store.open(directory), found, kept[0]


def test_nothing_is_lost_doubled_or_given_to_two_people(loaded) -> None:
    store, found, _ = loaded
    assert found["faults"] == []
    assert found["saves"] >= 60
    assert min(found["again"], found["cut"], found["refused"]) > 0
    assert len(latest(store)) == found["saves"] / desk.STEPS


def test_the_check_sees_a_lost_a_doubled_and_a_shared_item(loaded) -> None:
    store, _, seen = loaded
    key = (item, person) = min(seen.acknowledged)
    for change, count in ((lambda answers: answers.append(answers[-1]), 6), (lambda answers: answers.pop(), 4)):
        changed = copy.deepcopy(seen)
        change(changed.acknowledged[key])
        assert desk.check(store, changed) == [f"item {item}: 5 versions are stored, {count} acknowledged"]
    other = next(other for _, other in seen.acknowledged if other != person)
    with store.transaction() as db:
        db.execute("INSERT INTO assignments VALUES(?,?,0,999,0,NULL)", (item, other))
    assert desk.check(store, seen) == ["the store has an item that two people got"]
