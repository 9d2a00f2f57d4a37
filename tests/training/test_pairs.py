"""Preference pairs from scored responses."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.run.types import Group, Prompt, Response
from psyco_ray.training import pairs


def group(scores: list[float], finished: list[bool] | None = None, safety: list[float] | None = None) -> Group:
    ends = finished or [True] * len(scores)
    responses = tuple(Response(f"text {i}", (i,), end) for i, end in enumerate(ends))
    given = {"reward": tuple(scores)} | ({"safety": tuple(safety)} if safety else {})
    return Group(Prompt("s", (5,), 0), responses, 0, given)


def ends_of(pair) -> tuple[int, int] | None:
    """Positions of the chosen and the rejected response."""
    return None if pair is None else (pair.chosen_ids[0], pair.rejected_ids[0])


SCORES = st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=2, max_size=8)


@given(SCORES)
def test_the_best_and_the_worst_form_the_pair(scores: list[float]) -> None:
    ends = ends_of(pairs.pair_of(group(scores)))
    if len(set(scores)) == 1:
        assert ends is None
    else:
        assert ends == (scores.index(max(scores)), scores.index(min(scores)))


@given(SCORES, st.data(), st.sampled_from(["exclude", "penalise"]), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_an_unfinished_response_is_never_chosen(scores, data, unfinished: str, vetoed: bool, min_margin: float) -> None:
    finished = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    safety = data.draw(st.lists(st.floats(0, 1), min_size=len(scores), max_size=len(scores))) if vetoed else None
    pair = pairs.pair_of(group(scores, finished, safety), unfinished, slope=0.01, min_margin=min_margin)
    if not any(finished):
        assert pair is None
    if pair is not None:
        chosen, rejected = ends_of(pair)
        assert finished[chosen]
        if unfinished == "penalise" and not all(finished):
            assert not finished[rejected]
        else:
            assert scores[chosen] >= scores[rejected]
        assert safety is None or safety[chosen] >= safety[rejected]


def test_what_becomes_of_a_cut_response() -> None:
    """The cut response has the highest score, then the second-lowest, then the lowest."""
    cut = [True, False, True]
    assert ends_of(pairs.pair_of(group([1.0, 9.0, 2.0], cut), "exclude")) == (2, 0)
    assert ends_of(pairs.pair_of(group([1.0, 9.0, 2.0], cut), "penalise", min_margin=50.0)) == (2, 1)
    assert ends_of(pairs.pair_of(group([1.0, 9.0, 2.0], cut), "allow")) == (1, 0)
    assert ends_of(pairs.pair_of(group([1.0, 0.0, 2.0], cut), "exclude")) == (2, 1)
    assert pairs.pair_of(group([1.0, 9.0, 8.0], [True, False, False]), "exclude") is None, "none is worse"
    assert ends_of(pairs.pair_of(group([1.0, 9.0, 8.0], [True, False, False]), "penalise")) == (0, 2)


def test_a_thinking_models_pair_is_trained_on_its_answers() -> None:
    responses = (
        Response("Oh.", (1, 2, 3, 4), True, reasoning="<think>a</think>", reasoning_tokens=3),
        Response("Why?", (1, 5, 6), True, reasoning="<think>", reasoning_tokens=1),
        Response("", (1, 7), False, reasoning="<think>b", reasoning_tokens=2),
    )
    thinking = Group(Prompt("s", (5,), 0), responses, 0, {"reward": (1.0, 0.5, 0.0)})
    pair, whole = pairs.pair_of(thinking), pairs.pair_of(thinking, trained="all")
    assert (pair.chosen_ids, pair.rejected_ids) == ((1, 2, 3, 4), (1, 5, 6)), "the third has nothing to train on"
    assert (pair.context, pair.trained_tokens, pair.tokens) == ((3, 1), (1, 2), 8)
    assert (whole.rejected_ids, whole.context, whole.trained_tokens) == ((1, 7), (0, 0), (4, 2))
    only = Group(thinking.prompt, responses[2:], 0, {"reward": (0.0,)})
    assert pairs.pair_of(only, "allow") is None

    row = pairs.with_reference(pairs.row_of(pair, thinking), (-1.0, -2.0))
    assert pairs.example_of(row) == replace(pair, reference=(-1.0, -2.0))
    old = {name: value for name, value in row.items() if not name.endswith("_context")}
    assert pairs.example_of(old).context == (0, 0)


def test_equal_texts_make_no_pair() -> None:
    same = Response("a", (1,), True)
    group = Group(Prompt("s", (5,), 0), (same, same), 0, {"reward": (1.0, 0.0)})
    assert pairs.pair_of(group) is None
    other = Group(Prompt("s", (5,), 0), (same, Response("b", (2,), True)), 0, {"reward": (0.0, 1.0)})
    pair = pairs.pair_of(other)
    assert (pair.chosen_ids, pair.rejected_ids, pair.prompt_ids) == ((2,), (1,), (5,))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (" a  b", "a b\n", True),
        ("x" * 40 + " y " + "z" * 40, "x" * 40 + "\ty\n" + "z" * 40 + " ", True),
        ("", " ", True),
        ("x" * 40, "x" * 41, False),
        ("a b c", "a d c", False),
        ("a b", "a c", False),
    ],
)
def test_texts_that_differ_in_white_space_alone_make_no_pair(a: str, b: str, same: bool) -> None:
    group = Group(Prompt("s", (5,), 0), (Response(a, (1,), True), Response(b, (2,), True)), 0, {"reward": (1.0, 0.0)})
    assert (pairs.pair_of(group) is None) == same
