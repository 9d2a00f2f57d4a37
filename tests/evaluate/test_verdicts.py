"""Verdicts of a judge on pairs of responses."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.policy_evaluation import PAIRS, counts, decided, local, questions, write_verdicts
from support.quoted import without_marks

from psyco_ray.config.endpoint import Endpoint, Judging
from psyco_ray.config.privacy import Privacy, ScrubSent
from psyco_ray.evaluate import verdicts
from psyco_ray.judge.ask import UnreadableAnswerError
from psyco_ray.judge.outgoing import Outgoing
from psyco_ray.run.progress import Progress


@pytest.mark.parametrize(
    ("answer", "better"),
    [
        ('{"rationale": "warmer", "better": "A"}', ("A", "warmer")),
        ('Well: {"better": " response b "}', ("B", "")),
        ('{"better": "b", "rationale": null}', ("B", "None")),
        ('"A"', ("A", "")),
    ],
)
def test_verdicts_are_read_with_tolerance(answer, better):
    assert verdicts.read_verdict(answer) == better


@pytest.mark.parametrize("answer", ['{"better": "C"}', '{"better": 1}', "{}", '{"better": "both"}', "A", "", "[]"])
def test_an_answer_without_a_verdict_is_unreadable(answer):
    with pytest.raises(UnreadableAnswerError, match=r"better is|holds no JSON"):
        verdicts.read_verdict(answer)


@pytest.mark.parametrize("order", ["seeded", "strict"])
def test_a_verdict_counts_for_the_response_that_was_shown_there(order, tmp_path):
    judged = write_verdicts(tmp_path, PAIRS, order=order)
    asked = questions(judged)
    by_key = {pair["key"]: pair for pair in PAIRS}
    assert Counter(question.what for question in asked) == dict.fromkeys(by_key, 2 if order == "strict" else 1)
    for question in asked:
        pair, text = by_key[question.what], without_marks(question.call.messages[-1]["content"])
        assert pair["speech"] in text
        assert "Facilitation of Self-Exploration" in text
        ours_first = f"Response A: {pair['ours']}\n" in text
        first, second = ("ours", "theirs") if ours_first else ("theirs", "ours")
        assert f"Response A: {pair[first]}\n" in text
        assert f"Response B: {pair[second]}\n" in text
        for letter, side in (("A", first), ("B", second)):
            [row] = judged.calls.stage.rows(question, (letter, "why"), True)
            assert (row["ours"], row["ours_first"], row["rationale"]) == (side == "ours", ours_first, "why")
    shown_first = sum(
        f"Response A: {by_key[question.what]['ours']}\n" in without_marks(question.call.messages[-1]["content"])
        for question in asked
    )
    assert 0.3 < shown_first / len(asked) < 0.7


@given(st.integers(0, 10**6))
def test_the_order_depends_on_seed_speech_and_policy_alone(seed):
    pair = PAIRS[seed % len(PAIRS)]
    assert verdicts.orders("seeded", seed, pair) == verdicts.orders("seeded", seed, {**pair, "ours": "x"})
    assert verdicts.orders("strict", seed, pair) == [True, False]
    assert verdicts.orders("seeded", seed, {**pair, "theirs": pair["ours"]}) == []


def test_each_side_is_shown_first_for_about_half_of_the_speeches():
    first = [verdicts.orders("seeded", 3, {**PAIRS[0], "key": f"mine:{number}"})[0] for number in range(2000)]
    assert sum(first) / 2000 == pytest.approx(0.5, abs=0.045)
    other = [verdicts.orders("seeded", 3, {**PAIRS[0], "key": f"yours:{number}"})[0] for number in range(2000)]
    assert sum(a == b for a, b in zip(first, other, strict=True)) / 2000 == pytest.approx(0.5, abs=0.045)


def test_outcomes_of_both_orders_and_of_the_same_response(tmp_path):
    chosen = {
        "mine:0": [(True, True), (False, True)],
        "mine:1": [(True, False), (False, False)],
        "mine:2": [(True, True), (False, False)],
        "mine:3": [(True, True)],
        "mine:5": [],
    }
    pairs = [*PAIRS[:4], {**PAIRS[4], "theirs": PAIRS[4]["ours"]}, PAIRS[5]]
    outcomes = decided(tmp_path, pairs, chosen, order="strict").outcomes()
    assert outcomes == {"mine:0": 1, "mine:1": 0, "mine:2": 0.5, "mine:3": None, "mine:4": 0.5, "mine:5": None}
    once = {"mine:0": [(False, True)], "mine:1": [(True, False)]}
    assert decided(tmp_path, PAIRS[:3], once).outcomes() == {"mine:0": 1, "mine:1": 0, "mine:2": None}


def test_an_empty_response_loses_without_a_question(tmp_path):
    texts = [("I hear you.", " \n"), ("", "I hear you."), ("", " "), ("I hear you.", "Tell me more.")]
    pairs = [{**PAIRS[n], "ours": ours, "theirs": theirs} for n, (ours, theirs) in enumerate(texts)]
    for order, count in (("seeded", 1), ("strict", 2)):
        judged = decided(tmp_path / order, pairs, {}, order=order)
        assert [question.what for question in questions(judged)] == ["mine:3"] * count
        assert judged.outcomes() == {"mine:0": 1.0, "mine:1": 0.0, "mine:2": 0.5, "mine:3": None}


def judge_all(pairs: list[dict], url: str, root: Path, model: str = "judge", **judging) -> dict:
    endpoint = Endpoint(**local(url, model, **judging.pop("endpoint", {})))
    return verdicts.judge(
        pairs, verdicts.JudgeSetup(endpoint, Judging(**judging), Outgoing(ScrubSent(), Privacy())), root, Progress()
    )


@pytest.mark.long
def test_strict_mode_asks_both_orders_and_nothing_twice(local_ray, tmp_path, url):
    pairs = [*PAIRS[:20], {**PAIRS[20], "theirs": PAIRS[20]["ours"]}]
    before = counts(url)["served"]
    once = judge_all(pairs, url, tmp_path)
    assert counts(url)["served"] - before == 20
    assert set(once.values()) == {0.0, 0.5, 1.0}
    assert once["mine:20"] == 0.5
    both = judge_all(pairs, url, tmp_path, order="strict")
    assert counts(url)["served"] - before == 40, "half of the questions were asked before"
    for key, outcome in both.items():
        assert outcome in (0.5, once[key]), "a strict win or loss is what the one order said"
    assert Counter(both.values())[0.5] > 1
    assert judge_all(pairs[:5], url, tmp_path, order="strict") == {p["key"]: both[p["key"]] for p in pairs[:5]}
    assert judge_all(pairs, url, tmp_path, order="strict") == both
    assert counts(url)["served"] - before == 40
    mumbled = judge_all(pairs, url, tmp_path, "mumbler", endpoint={"structured": "text"}, attempts=2)
    assert mumbled == {pair["key"]: 0.5 if pair["key"] == "mine:20" else None for pair in pairs}
    assert counts(url)["served"] - before == 40 + 2 * 20
