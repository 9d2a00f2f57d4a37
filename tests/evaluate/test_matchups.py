"""Results, tables and pages of matchups with known verdicts."""

import dataclasses
import json

import pytest
from support.pages import self_contained
from support.policy_evaluation import (
    ODD,
    decided,
    load,
    local,
    parsed,
    questions,
    settings,
    write_verdicts,
)

from psyco_ray.config.evaluate_policy import PolicyEvaluationJob
from psyco_ray.evaluate import matchups, winrates
from psyco_ray.evaluate.checkpoints import Candidate, Checkpoint
from psyco_ray.report import policies as report

GOOD = Candidate("good", Checkpoint("runs/good/iteration-002/checkpoint", "runs/good", iteration=2, steps=200))
BAD = Candidate("bad", Checkpoint("x/y"))
POLICIES = [GOOD, BAD]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[PolicyEvaluationJob, list[matchups.Matchup], list[dict], dict[str, dict]]:
    """Two policies on twenty speeches under both variants with two judges.

    The first judge takes `good` in 15, `bad` in 5; its verdict on the 20th speech is unreadable, and the 19th has no
    response. The second judge takes ours where it is shown first.
    """
    root = tmp_path_factory.mktemp("evaluated")
    judges = [{"name": name, "endpoint": local("http://127.0.0.1:1", name)} for name in ("sure", "led")]
    job = parsed(
        settings(root / "demo", policies=[{"name": n, "model": "x/y"} for n in ("good", "bad")], judges=judges)
    )
    answered = [row | {"crisis": n < 4} for n, row in enumerate(load(limit=20))]
    opponent_responses = {
        row["speech_id"]: {"response": "word " * 9 + ODD, "finished": n > 0} for n, row in enumerate(answered)
    }
    played = []
    for variant in job.variants:
        for name, wins in (("good", 15), ("bad", 5)):
            responses = {
                row["speech_id"]: {"response": f"{name} " * 28, "finished": n > 2} for n, row in enumerate(answered)
            }
            del responses[answered[18]["speech_id"]]
            pairs = matchups.pairs(responses, answered, opponent_responses)
            keys = [row["speech_id"] for row in answered]
            sure = {key: [(n % 2 == 0, n < wins)] for n, key in enumerate(keys[:19])}
            led = {key: [(n % 2 == 0, n % 2 == 0)] for n, key in enumerate(keys)}
            by_judge = {
                judge: decided(root / variant / name / judge, pairs, chosen)
                for judge, chosen in (("sure", sure), ("led", led))
            }
            played.append(matchups.Matchup(name, variant, responses, by_judge))
    return job, played, answered, opponent_responses


def test_results_by_hand(evaluated):
    job, played, answered, opponent_responses = evaluated
    result = matchups.results(job, POLICIES, played, answered, opponent_responses, silent=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["speeches"], result["opponent_silent"], result["opponent"]) == (20, 2, "other")
    assert [policy["name"] for policy in result["policies"]] == ["good", "bad"]
    good = result["policies"][0]["variants"]["matched"]
    assert (good["overall"]["rate"], good["overall"]["unreadable"], good["unanswered"]) == (0.75, 1, 1)
    assert good["overall"] == winrates.win_rate([1.0] * 15 + [0.0] * 4 + [None], 0)
    assert sum(topic["speeches"] for topic in good["topics"].values()) == 20
    assert winrates.OVERALL not in good["topics"]
    theirs_words = 9 + len(ODD.split())
    assert (good["mean_words"], good["opponent_mean_words"]) == (28, theirs_words)
    assert good["length_ratio"] == pytest.approx(28 / theirs_words)
    assert good["lc"] == winrates.length_controlled([1.0] * 15 + [0.0] * 3 + [None], [28 - theirs_words] * 19)
    assert good["lc"]["rate"] == pytest.approx(15 / 19)
    assert (good["cut"], good["finished_share"]) == (3, 16 / 20)
    assert good["crisis"] == winrates.win_rate([1.0] * 4, 0)
    assert result["crisis_speeches"] == 4
    assert result["opponent_finished_share"] == 19 / 20
    origins = [
        {key: row[key] for key in ("model", "run", "iteration", "steps", "series")} for row in result["policies"]
    ]
    assert origins == [
        {"model": None, "run": "runs/good", "iteration": 2, "steps": 200, "series": None},
        {"model": "x/y", "run": None, "iteration": None, "steps": None, "series": None},
    ]
    assert good["by_judge"]["led"]["first_chosen"] == 1
    assert good["by_judge"]["led"]["overall"]["unreadable"] == 0
    for variant in ("free", "matched"):
        assert result["mcnemar"][variant] == [
            {"a": "good", "b": "bad", "a_only": 10, "b_only": 0, "p": pytest.approx(2 / 2**10)}
        ]
    assert len(result["agreement"]) == 4
    first = result["agreement"][0]
    assert (first["judges"], first["policy"], first["percent"]["items"]) == (["sure", "led"], "good", 18)
    agreed = sum((n < 15) == (n % 2 == 0) for n in range(18))
    assert first["percent"]["value"] == pytest.approx(agreed / 18)


def test_the_page_holds_all_and_loads_nothing(evaluated, tmp_path):
    job, played, answered, opponent_responses = evaluated
    shown = matchups.cases(job, played, answered, opponent_responses)
    results = matchups.results(job, POLICIES, played, answered, opponent_responses, silent=2)
    report.write_report(results, shown, tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    page = self_contained(text)
    for words in (
        "good (w/o Length Constraint) does best", "75.0 %", "2 more speeches take no part", "Llama3-8B (paper)",
        "95.0 % of other's responses are finished",
        "A screen found signs of a crisis in 4 speeches", "cut at the token limit", "Checkpoints",
        "Agreement between judges", "Models against each other", "sure prefers", f"because of {ODD}",
    ):  # fmt: skip
        assert words in page.text, words
    good = ["good", "w/o Length Constraint"]
    assert [*good, "4", "100.0", "51.0 to 100.0", "0"] in page.rows, "the row of crisis speeches"
    assert ["good", "runs/good", "2", "200"] in page.rows
    assert [row[-1] for row in page.rows if row[:2] == good and len(row) == 9] == ["80.0"], (
        "the share of finished answers"
    )
    assert len(shown) == matchups.CASES
    for case in shown:
        assert case["speech"] in page.text
        assert [(answer["policy"], answer["variant"]) for answer in case["answers"]] == [
            ("good", "free"), ("bad", "free"), ("good", "matched"), ("bad", "matched"),
        ]  # fmt: skip
    assert matchups.cases(job, played, answered, opponent_responses) == shown
    other = matchups.cases(job.model_copy(update={"seed": 1}), played, answered, opponent_responses)
    assert [case["speech"] for case in other] != [case["speech"] for case in shown]


def test_table_3_cell_by_cell(evaluated):
    job, played, answered, opponent_responses = evaluated
    results = matchups.results(job, POLICIES, played, answered, opponent_responses, silent=0)
    text = report.markdown(results)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n\n")[2].splitlines()]
    assert lines[0] == ["Model", *winrates.TOPICS.values(), "Overall"]
    assert [line[0] for line in lines[2:]] == [
        line
        for setting in ("**w/o Length Constraint**", "**w/ Length Constraint**")
        for line in [
            setting,
            "good",
            "bad",
            *(f"Llama3-{size}{more} (paper)" for size in ("3B", "8B") for more in ("", " + DPO", " + DPO-Iter")),
        ]
    ]
    assert len({len(line) for line in lines}) == 1
    good = results["policies"][0]["variants"]["free"]
    rates = [good["topics"].get(title, {}).get("rate") for title in winrates.TOPICS.values()]
    assert lines[3][1:] == [*("–" if rate is None else f"{100 * rate:.1f}" for rate in rates), "75.0"]
    by_name = {(n > 10, line[0]): line for n, line in enumerate(lines)}
    iterated = "86.3 88.2 87.1 87.0 91.4 87.0 90.8 84.3 87.0"
    assert by_name[False, "Llama3-8B + DPO-Iter (paper)"][1:] == iterated.split()
    base = "15.1 15.5 15.0 15.7 13.6 13.7 9.2 15.3 15.0"
    assert by_name[True, "Llama3-3B (paper)"][1:] == base.split()
    assert "<b>" not in text


def test_one_variant_and_one_judge_leave_the_other_tables_out(evaluated):
    job, played, answered, opponent_responses = evaluated
    alone = job.model_copy(update={"variants": ["free"], "judges": job.judges[:1]})
    text = report.markdown(matchups.results(alone, [GOOD], played[:1], answered, opponent_responses, silent=0))
    assert "w/ Length Constraint" not in text
    assert "Agreement" not in text
    assert "against each other" not in text


def test_two_policies_meet_the_opponent_in_the_same_order(evaluated, tmp_path):
    """Otherwise a judge that prefers a position adds noise to McNemar's test."""
    _, played, answered, opponent_responses = evaluated
    orders = []
    for matchup in played[:2]:
        pairs = matchups.pairs(matchup.responses, answered, opponent_responses)
        asked = questions(write_verdicts(tmp_path / matchup.policy, pairs))
        orders.append({question.what: question.about["ours_first"] for question in asked})
    good, bad = orders
    assert len(good) == 19
    assert good == bad
    assert set(good.values()) == {True, False}


def test_answers_that_are_not_finished_are_warned_of(evaluated):
    job, played, answered, opponent_responses = evaluated
    half = {row["speech_id"]: {"response": "x", "finished": n % 2 == 0} for n, row in enumerate(answered)}
    ours = {key: half[key] for key in played[0].responses}  # without the 19th, which is missing
    few = matchups.Matchup("good", "free", ours, played[0].verdicts)
    assert report.warnings(matchups.results(job, [GOOD], [played[0]], answered, opponent_responses, silent=0)) == []
    results = matchups.results(job, [GOOD], [few], answered, half, silent=0)
    assert [warning.partition(" of the answers")[0] for warning in report.warnings(results)] == [
        "other: only 50.0 %",
        "good, w/o Length Constraint: only 45.0 %",
    ]
    assert "**Warning:** other" in report.markdown(results)
    unknown = {key: {**row, "finished": None} for key, row in opponent_responses.items()}
    assert matchups.results(job, [GOOD], [few], answered, unknown, silent=0)["opponent_finished_share"] is None


def test_checkpoints_of_runs_are_tested_at_one_iteration_and_drawn_as_curves(evaluated, tmp_path):
    job, played, answered, opponent_responses = evaluated
    series = [
        Candidate(f"{name} iteration {k}", Checkpoint("x/y", f"runs/{name}", k, 100 * k), name)
        for name in ("offline", "online")
        for k in range(2)
    ]
    entrants = [*series, GOOD]
    met = [dataclasses.replace(played[n % 2], policy=policy.name) for n, policy in enumerate(entrants)]
    results = matchups.results(job, entrants, met, answered, opponent_responses, silent=0)
    assert [(test["a"], test["b"]) for test in results["mcnemar"]["free"]] == [
        ("offline iteration 0", "online iteration 0"),
        ("offline iteration 0", "good"),
        ("offline iteration 1", "online iteration 1"),
        ("offline iteration 1", "good"),
        ("online iteration 0", "good"),
        ("online iteration 1", "good"),
    ]
    report.write_report(results, [], tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count("<svg") == 2, "the curves, and the policy that is no checkpoint of a series"
    assert "offline: from 75.0 to 25.0; online: from 75.0 to 25.0" in text
    assert "The highest win rate of many checkpoints is biased upwards." in text
