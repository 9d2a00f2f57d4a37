"""Preference pairs from scored responses."""

from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.run.types import Group, Prompt, Response
from psyco_ray.training import pairs


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=2, max_size=8))
def test_best_and_worst(scores: list[float]) -> None:
    extremes = pairs.best_and_worst(scores)
    if len(set(scores)) == 1:
        assert extremes is None
    else:
        best, worst = extremes
        assert (scores[best], scores[worst]) == (max(scores), min(scores))
        assert best == scores.index(max(scores))


def test_equal_texts_make_no_pair() -> None:
    same = Response("a", (1,), True)
    group = Group(Prompt("s", (5,), 0), (same, same), 0, {"reward": (1.0, 0.0)})
    assert pairs.pair_of(group) is None
    other = Group(Prompt("s", (5,), 0), (same, Response("b", (2,), True)), 0, {"reward": (0.0, 1.0)})
    pair = pairs.pair_of(other)
    assert (pair.chosen_ids, pair.rejected_ids, pair.prompt_ids) == ((2,), (1,), (5,))
