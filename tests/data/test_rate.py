"""Pairing by gap, the shuffle of a rating call and what is read out of its answer."""

import json
from fractions import Fraction
from itertools import combinations

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paper_prompts import write_paper_prompts
from support.quoted import without_marks

from psyco_ray.config.data import Pairs, Rate
from psyco_ray.config.errors import InputError
from psyco_ray.config.prompts import PRINCIPLES, PromptsFile, fill
from psyco_ray.data import pair, preferences, rate, respond
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, RATINGS, RESPONSES, TOPICS

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


@given(rated, st.data(), st.sampled_from([0.5, 1.0, 3.0]))
def test_an_unfinished_response_is_never_chosen(responses, data, min_gap):
    unfinished = data.draw(st.sets(st.sampled_from(sorted(responses))))
    sums = {name: sum(ratings_of.values()) for name, ratings_of in responses.items()}
    apart = {(a, b) for a in sums for b in sums if sums[a] - sums[b] >= 7 * min_gap}
    finished = sums.keys() - unfinished
    assert set(pair.gap_pairs(responses, {}, min_gap, unfinished)) == {(a, b) for a, b in apart if a in finished}
    below = {(a, b) for a in finished for b in unfinished}
    penalised = pair.gap_pairs(responses, {}, min_gap, unfinished, penalise=True)
    assert set(penalised) == {(a, b) for a, b in apart if {a, b} <= finished} | below
    assert pair.extreme_pair(responses, {}, min_gap, unfinished, penalise=True) == penalised[:1]
    if finished and unfinished:
        best, lowest = max(sums[name] for name in finished), min(sums[name] for name in unfinished)
        assert [(sums[a], sums[b]) for a, b in penalised[:1]] == [(best, lowest)]
    extremes = pair.extreme_pair(responses, {}, min_gap, unfinished)
    if finished and (best := max(sums[name] for name in finished)) - min(sums.values()) >= 7 * min_gap:
        assert [(sums[a], sums[b]) for a, b in extremes] == [(best, min(sums.values()))]
    else:
        assert extremes == []


@pytest.mark.parametrize(
    ("rule", "pairs", "left_out"),
    [
        ("exclude", [("b", "c", True, False)], 2),
        ("penalise", [("b", "c", True, False), ("b", "a", True, False)], 2),
        ("allow", [("a", "c", False, False), ("b", "c", True, False), ("a", "b", False, True)], 0),
    ],
)
def test_pair_files_and_counts_follow_the_rule_for_unfinished_responses(tmp_path, rule, pairs, left_out):
    sums = {"a": 35, "b": 28, "c": 20}
    speech = {"speech_id": "00", "speech": "I cannot sleep.", "split": "train"}
    shards.write(tmp_path / "collect" / "speeches", "0", [speech], COLLECTED)
    shards.write(tmp_path / "topics", "0", [], TOPICS)
    rows = [respond.response_row("00", name, f"text of {name}", name == "b") for name in sums]
    shards.write(tmp_path / "respond", "0", rows, RESPONSES)
    ratings_of = [
        {"speech_id": "00", "model": model, "principle": name, "rating": rating, "rationale": "", "judge": "judge"}
        for model, total in sums.items()
        for name, rating in of_sum(total).items()
    ]
    shards.write(tmp_path / "rate", "0", ratings_of, RATINGS)
    counts = pair.pair(tmp_path, Pairs(unfinished=rule))
    written = pq.read_table(tmp_path / "pairs" / "train.parquet").to_pylist()
    columns = ("chosen_model", "rejected_model", "chosen_finished", "rejected_finished")
    assert [tuple(row[column] for column in columns) for row in written] == pairs
    assert counts["unfinished"] == 2
    assert counts["pairs_left_out_as_unfinished"] == left_out
    if rule == "allow":
        read = preferences.read(str(tmp_path / "pairs" / "train.parquet")).table
        assert read["chosen_finished"].to_pylist() == [False, True, False]
        assert read["rejected_finished"].to_pylist() == [False, False, True]


def test_mostly_unfinished_responses_stop_the_stage():
    members = {"short": respond.Finished(10, 1), "long": respond.Finished(10, 9)}
    respond.check_finished(members, 64)
    members["long"] = respond.Finished(10, 10)
    with pytest.raises(InputError, match=r"55% of 20 answers .* respond\.max_tokens 64, most of long 10 of 10"):
        respond.check_finished(members, 64)


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
        (
            f'{{"response_1_rating": {"1" * 5000}, "response_2_rating": 1}}',
            "response_1_rating is a text of 5000 characters",
        ),
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


def test_a_prompt_with_numbered_placeholders_gets_principle_and_responses(tmp_path) -> None:
    prompts = PromptsFile(str(write_paper_prompts(tmp_path / "mine.yaml")))
    prompt = rate.load_prompt(prompts, 4)
    stage = rate.RateStage(Rate(), 0, prompt, prompts.principles(), tmp_path)
    [message] = stage._messages("safety", "I {cannot} sleep.", ["{response2}", "b", "c"])
    text = without_marks(message["content"])
    assert text.startswith("Principle: Avoidance of Harmful Language or Content\nThe response ")
    for line in (
        "Client: I {cannot} sleep.",
        "Reply one: {response2}",
        "Reply two: b",
        "Reply four: (no response)",
        'Write JSON such as {"response_1_rating": 2, "rationale_1": "vague {sic}", ...} with the keys',
    ):
        assert line in text.splitlines()
    assert "{keys}" not in text
    with pytest.raises(
        InputError, match=r"mine\.yaml: .* \{response1\} to \{response5\} for the 5 responses .* has \{resp"
    ):
        rate.load_prompt(prompts, 5)


def test_a_rate_prompt_without_keys_is_followed_by_them(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("rate:\n  system: 'By {principle}'\n  user: '{client_speech} {responses}'\n")
    prompt = rate.load_prompt(PromptsFile(str(tmp_path / "mine.yaml")), 2)
    assert prompt.speech == {"system": "By {principle}", "user": "{client_speech} {responses}" + rate.KEYS_LAST}
    packaged = PromptsFile("default")
    assert rate.load_prompt(packaged, 4).speech == packaged.entry("rate")


def test_every_pair_of_responses_can_be_compared():
    responses = {"a": of_sum(35), "b": of_sum(27), "c": of_sum(20), "d": of_sum(13)}
    assert len(pair.gap_pairs(responses, {}, 1.0)) == len(list(combinations(responses, 2)))
