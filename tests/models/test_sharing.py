"""Texts that begin alike are one forest, in which each token is computed once."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.models import sharing
from psyco_ray.models.sharing import families, join, plan_trees

COMPUTED = ("packed", "shared", "plain")


def ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 40000) for _ in range(count)]


def dialogue(turns: int, seed: int = 0) -> list:
    """The contexts of a dialogue with four responses to each; every turn adds 100 tokens."""
    rng = random.Random(seed)
    said = ids(rng, 100 * turns)
    return [(said[: 100 * turn], [ids(rng, 40) for _ in range(4)]) for turn in range(1, turns + 1)]


@pytest.mark.parametrize("computed", COMPUTED)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), min_size=1, max_size=9),
            st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 3),
    st.none() | st.integers(1, 30),
)
def test_every_conversation_is_a_path_and_no_token_is_there_twice(computed, trees, least: int, limit) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "LEAST", least)
        joined = join(trees, computed)
        found = families(trees, computed, limit)
        whole = families(trees, computed)
    forest = joined.forest
    for prompt, responses in trees:
        for response in responses:
            path = forest.path(joined.leaves[tuple(prompt), tuple(response)])
            tokens = [joined.ids[forest.starts[s] + place] for s in path for place in range(forest.tokens[s])]
            assert tokens == [*prompt, *response]
            assert sum(forest.tokens[s] for s in path[:-1]) == len(prompt)
    assert sum(forest.tokens) == len(joined.ids)
    assert len(set(joined.leaves.values())) == len({(tuple(p), tuple(r)) for p, rs in trees for r in rs})
    assert all(parent < segment for segment, parent in enumerate(forest.parents))
    assert sorted(number for family in found for number in family.members) == list(range(len(trees)))
    assert limit is None or all(family.tokens <= limit or len(family.members) == 1 for family in found)
    if computed != "shared":  # of which a pass computes the start once
        assert sum(family.tokens for family in whole) == len(joined.ids)


def test_trees_that_share_no_beginning_stay_in_their_order() -> None:
    rng = random.Random(1)
    start = ids(rng, 30)
    trees = [(start + ids(rng, 50), [ids(rng, 20), ids(rng, 9)]) for _ in range(5)]
    for computed in COMPUTED:
        shared = 30 if computed == "shared" else 0
        joined = join(trees, computed)
        apart = [token for prompt, responses in trees for part in (prompt[shared:], *responses) for token in part]
        assert joined.ids == start[:shared] + apart
        assert [family.members for family in families(trees, computed)] == [[0], [1], [2], [3], [4]]


def test_a_dialogue_is_one_family_and_a_short_common_beginning_makes_none() -> None:
    trees = dialogue(6)
    other = ([1] * 80, [[2]])
    for computed in ("packed", "shared"):
        family, alone = families([*trees, *trees, other], computed)
        assert (family.members, alone.members) == (list(range(12)), [12])
        assert family.tokens == len(join(trees, computed).ids) == 600 + 6 * 4 * 40
    first, *_ = families(trees, "shared")
    assert first.members == [0], "all begin with the first prompt"
    assert len(families(trees, "plain")) == 6
    two = [(ids(random.Random(0), 63) + ids(random.Random(seed), 80), [[1]]) for seed in (1, 2, 3)]
    two[2] = ([5, *two[2][0]], [[1]])
    assert [len(families(two, computed)) for computed in COMPUTED] == [3, 3, 3]


def test_a_row_takes_no_more_than_it_pays_for() -> None:
    """Of many speeches with one system prompt a row would attend to all, and a short one saves what it costs."""
    rng = random.Random(2)
    system = ids(rng, 200)
    trees = [(system + ids(rng, 80), [ids(rng, 60), ids(rng, 60)]) for _ in range(40)]
    sizes = [family.tokens for family in families(trees, "packed")]
    assert 200 + 200 < max(sizes) < 2000
    assert sum(sizes) < 0.7 * 40 * 400


def test_trees_of_a_family_share_a_pass() -> None:
    trees = [*dialogue(3, seed=1), *dialogue(3, seed=2)]
    mixed = [trees[number] for number in (0, 3, 1, 4, 2, 5)]
    assert plan_trees(mixed, 800, "shared") == [[0, 2, 4], [1, 3, 5]]
    assert plan_trees(mixed, 2000, "shared") == [[0, 2, 4, 1, 3, 5]]
    passes = plan_trees(mixed, 500, "shared")
    assert sorted(number for row in passes for number in row) == list(range(6))
    assert all(len(join([mixed[number] for number in row], "shared").ids) <= 500 for row in passes)
