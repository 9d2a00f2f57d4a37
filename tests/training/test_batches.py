"""Batches for the scorers: what is in one does not depend on the order of arrival."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.training.batches import Batches

SIZES = {"a": 4, "b": 5, "c": 3, "d": 20, "e": 2}


def batched(order, absent=(), limit: int = 10) -> list[tuple[str, ...]]:
    batches = Batches[str](limit)
    batches.open([*SIZES])
    made = [batch for key in order for batch in batches.add(key, None if key in absent else key, SIZES[key])]
    return made + batches.rest()


def test_batches_are_the_same_in_every_order_of_arrival() -> None:
    for order in itertools.permutations(SIZES):
        assert batched(order) == [("a", "b"), ("c",), ("d",), ("e",)]
        assert batched(order, absent="c") == [("a", "b"), ("d",), ("e",)]


def test_a_batch_is_complete_before_the_window_is() -> None:
    batches = Batches[str](10)
    batches.open([*SIZES])
    assert batches.add("b", "b", 5) == []
    assert batches.add("a", "a", 4) == []
    assert batches.add("c", "c", 3) == [("a", "b")]


def test_tokens_that_all_begin_with_count_once() -> None:
    batches = Batches[str](tokens=16, common=7)
    batches.open("abcd")
    made = [batch for key in "abcd" for batch in batches.add(key, key, 10)]
    assert made == [("a", "b", "c"), ("d",)]


def test_what_a_dialogue_has_in_common_counts_once() -> None:
    """The contexts of a dialogue, whose prompts begin alike beyond the system message, and one of another."""
    batches = Batches[str](tokens=300, common=20)
    said = tuple(range(1000))
    prompts = {"a": said[:100], "b": said[:160], "c": (*said[:160], -1, -2), "d": (*said[:60], *range(5000, 5090))}
    batches.open([*prompts])
    made = [batch for key, ids in prompts.items() for batch in batches.add(key, key, len(ids) + 40, ids)]
    # 140 tokens, 100 and 42; "d" shares too little with "c"
    assert made == [("a", "b", "c"), ("d",)]


def test_what_has_arrived_in_an_incomplete_window_is_not_lost() -> None:
    assert batched("ebda") == [("a", "b"), ("d",), ("e",)]


@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=4), st.randoms())
def test_windows_do_not_mix_and_every_member_is_in_one_batch(windows, random) -> None:
    batches = Batches[tuple[int, int]](10)
    members = [(w, n) for w, sizes in enumerate(windows) for n in range(len(sizes))]
    for w, sizes in enumerate(windows):
        batches.open([f"{w}-{n}" for n in range(len(sizes))])
    random.shuffle(members)
    made = [batch for w, n in members for batch in batches.add(f"{w}-{n}", (w, n), windows[w][n])]
    assert batches.rest() == []
    assert sorted(member for batch in made for member in batch) == sorted(members)
    for batch in made:
        assert len({w for w, _ in batch}) == 1
        assert sum(windows[w][n] for w, n in batch) <= 10 or len(batch) == 1
