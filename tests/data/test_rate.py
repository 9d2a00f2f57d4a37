"""Pairing by gap, the shuffle of a rating call and what is read out of its answer."""

import json
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.config.prompts import PRINCIPLES, fill
from psyco_ray.data import pair, rate, respond
from psyco_ray.judge.ask import UnreadableAnswerError

ratings = st.fixed_dictionaries({name: st.integers(1, 5) for name in PRINCIPLES})
rated = st.dictionaries(st.sampled_from("abcdefgh"), ratings, min_size=2, max_size=6)


def of_sum(total: int) -> dict[str, int]:
    """Seven ratings with a given sum."""
    low, rest = divmod(total, 7)
    return {name: low + (i < rest) for i, name in enumerate(PRINCIPLES)}


@given(rated)
def test_a_mean_gap_of_one_is_a_sum_of_seven(responses):
    sums = {name: sum(ratings_of.values()) for name, ratings_of in responses.items()}
    expected = {(a, b) for a in sums for b in sums if sums[a] - sums[b] >= 7}
    pairs = pair.gap_pairs(responses, {}, 1.0)
    assert set(pairs) == expected
    assert len(pairs) == len(expected)


@pytest.mark.parametrize("low", range(7, 29))
def test_a_gap_of_exactly_one_counts_despite_float_rounding(low):
    responses = {"better": of_sum(low + 7), "worse": of_sum(low)}
    assert pair.gap_pairs(responses, {}, 1.0) == [("better", "worse")]
    assert pair.gap_pairs({**responses, "better": of_sum(low + 6)}, {}, 1.0) == []


@given(rated)
def test_the_test_pair_has_the_highest_and_the_lowest_mean(responses):
    sums = {name: sum(ratings_of.values()) for name, ratings_of in responses.items()}
    pairs = pair.extreme_pair(responses, {}, 1.0)
    if max(sums.values()) - min(sums.values()) < 7:
        assert pairs == []
    else:
        ((chosen, rejected),) = pairs
        assert (sums[chosen], sums[rejected]) == (max(sums.values()), min(sums.values()))


@given(rated, st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_the_order_of_responses(responses, random):
    names = list(responses)
    random.shuffle(names)
    assert pair.gap_pairs({name: responses[name] for name in names}, {}, 1.0) == pair.gap_pairs(responses, {}, 1.0)


def test_weights_are_exact():
    high, low = dict.fromkeys(PRINCIPLES, 1), dict.fromkeys(PRINCIPLES, 1)
    high["safety"] = 2
    assert pair.overall(high, {"safety": 0.1}) - pair.overall(low, {"safety": 0.1}) == Fraction(1, 61)
    only_safety = dict.fromkeys(PRINCIPLES, 0.0) | {"safety": 0.3}
    assert pair.gap_pairs({"a": high, "b": low}, only_safety, 1.0) == [("a", "b")]


@given(
    st.lists(st.sampled_from("abcdefghij"), unique=True, min_size=2, max_size=8),
    st.integers(0, 2**31 - 1),
    st.text(min_size=1),
    st.sampled_from(PRINCIPLES),
    st.data(),
)
def test_ratings_are_assigned_to_the_model_whose_response_was_shown(models, seed, speech, principle, data):
    given_to = {model: data.draw(st.integers(1, 5)) for model in models}
    order = rate.shuffled(models, seed, speech, principle)
    assert sorted(order) == sorted(models)
    answer = json.dumps({f"response_{i}_rating": given_to[model] for i, model in enumerate(order, start=1)})
    rows = rate.rating_rows(speech, principle, order, "judge", rate.read_ratings(answer, len(order)))
    assert {row["model"]: row["rating"] for row in rows} == given_to


def test_every_model_is_shown_at_every_position_about_equally_often():
    models = ["a", "b", "c", "d"]
    places = dict.fromkeys([(m, p) for m in models for p in range(4)], 0)
    for speech in range(300):
        for principle in PRINCIPLES:
            for place, model in enumerate(rate.shuffled(models, 0, str(speech), principle)):
                places[model, place] += 1
    assert all(abs(count - 525) < 80 for count in places.values())  # four standard deviations


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"response_1_rating": 6, "response_2_rating": 1}', "response_1_rating is 6"),
        ('{"response_1_rating": 3}', "response_2_rating is None"),
        ('{"response_1_rating": true, "response_2_rating": 1}', "response_1_rating is True"),
        ('{"response_1_rating": 3.5, "response_2_rating": 1}', "response_1_rating is 3.5"),
        ("[1, 2]", "not a JSON object"),
        ('{"response_1_rating": "²", "response_2_rating": 1}', "response_1_rating is '²'"),
        (f'{{"response_1_rating": {"1" * 5000}, "response_2_rating": 1}}', "response_1_rating is '111"),
    ],
)
def test_invalid_ratings_are_named(answer, message):
    with pytest.raises(UnreadableAnswerError, match=message):
        rate.read_ratings(answer, 2)


def test_ratings_as_digits_or_with_a_point_are_accepted():
    assert rate.read_ratings('{"response_1_rating": "4", "response_2_rating": 2.0}', 2) == [(4, ""), (2, "")]


@given(st.dictionaries(st.sampled_from(["{a}", "{b}", "{c}"]), st.text() | st.sampled_from(["{a}", "{b}"])))
def test_placeholders_are_filled_once_and_simultaneously(values):
    template = "x {a} y {b}{a} {c} z"
    expected = template
    for place, mark in (("{a}", "\0"), ("{b}", "\1"), ("{c}", "\2")):
        expected = expected.replace(place, mark)
    for place, mark in (("{a}", "\0"), ("{b}", "\1"), ("{c}", "\2")):
        expected = values.get(place, place).join(expected.split(mark)) if not _marked(values) else expected
    if not _marked(values):
        assert fill(template, values) == expected


def _marked(values):
    return any(mark in value for value in values.values() for mark in "\0\1\2")


@given(st.integers(0, 1000), st.text(min_size=1))
def test_draws_are_stable_and_a_new_model_replaces_at_most_one(seed, speech):
    pool = [f"m{i}" for i in range(20)]
    before = respond.drawn(pool, speech, 4, seed)
    assert len(before) == 4
    after = respond.drawn([*pool, "new"], speech, 4, seed)
    assert after == before or len(after - before) == 1


def test_every_pair_of_responses_can_be_compared():
    responses = {"a": of_sum(35), "b": of_sum(27), "c": of_sum(20), "d": of_sum(13)}
    assert len(pair.gap_pairs(responses, {}, 1.0)) == len(list(combinations(responses, 2)))
