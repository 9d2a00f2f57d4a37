"""Monitors, alarms, roll-back decisions, and pairs that are worth training on."""

import numpy as np
import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.config.guards import Guards
from psyco_ray.config.training import Job, Sampling
from psyco_ray.run.ledger import Ledger, stage
from psyco_ray.run.types import Group, Prompt, Response
from psyco_ray.training import guards, pairs
from psyco_ray.training.run_state import RunState


def length_effect(groups, unfinished: str) -> guards.LengthEffect:
    return guards.length_effect(map(guards.Outcome.of, groups), unfinished)


def evaluation(scores: list[float], tokens: list[int], heldout: list[float], **more) -> dict:
    keys = [f"s{i}" for i in range(len(scores))]
    facts = {"mean_tokens": float(np.mean(tokens)), "distinct_2": 0.9, "finished_share": 1.0, "speeches": len(keys)}
    for model, values in (("reward", scores), ("heldout", heldout)):
        facts[model] = {"reward": float(np.mean(values)), "scores": dict(zip(keys, [[v] for v in values], strict=True))}
    return facts | more


def group(
    scores: list[float],
    lengths: list[int],
    safety: list[float] | None = None,
    finished: list[bool] | None = None,
    speech: str = "s",
) -> Group:
    ends = finished or [True] * len(lengths)
    responses = tuple(Response(f"text {i}", tuple(range(n)), ends[i]) for i, n in enumerate(lengths))
    given = {"reward": tuple(scores)} | ({"safety": tuple(safety)} if safety else {})
    return Group(Prompt(speech, (5,), 0), responses, 0, given)


def lengths_of(pair) -> tuple[int, int]:
    return len(pair.chosen_ids), len(pair.rejected_ids)


def test_distinct_counts_different_word_pairs() -> None:
    assert guards.distinct(["a b a b", "A b"]) == 2 / 4
    assert guards.distinct(["one"]) == 1.0


def test_the_length_effect_is_least_squares_within_speeches() -> None:
    rng = np.random.default_rng(0)
    groups, tokens, rewards = [], [], []
    for number in range(50):
        lengths = rng.integers(10, 90, 4) + number
        scores = 0.05 * lengths + rng.normal(0, 1, 4) - 0.5 * number
        groups.append(group(scores.tolist(), lengths.tolist(), speech=f"s{number}"))
        tokens += (lengths - lengths.mean()).tolist()
        rewards += (scores - scores.mean()).tolist()
    effect = length_effect(groups, "exclude")
    assert effect.slope == pytest.approx(np.polyfit(tokens, rewards, 1)[0])
    assert effect.slope == pytest.approx(0.05, abs=0.01)
    assert effect.share == pytest.approx(np.corrcoef(tokens, rewards)[0, 1] ** 2)
    assert effect.deviation == pytest.approx((np.square(rewards).sum() / 150) ** 0.5)
    assert length_effect(groups[::-1], "exclude") == effect, "the order of arrival does not matter"


def test_the_length_effect_without_variation() -> None:
    same = [group([1.0, 1.0, 1.0], [1, 2, 3])]
    assert length_effect(same, "exclude") == guards.LengthEffect(0.0, 0.0, 0.0)
    even = length_effect([group([1.0, 3.0], [5, 5])], "exclude")
    assert (even.slope, even.share, even.deviation) == (0.0, 0.0, pytest.approx(2**0.5))
    assert length_effect([], "exclude") == guards.LengthEffect(0.0, 0.0, 0.0)


def test_the_length_of_a_cut_response_says_nothing() -> None:
    cut = group([1.0, 2.0, 9.0], [10, 20, 30], finished=[True, True, False])
    assert length_effect([cut], "exclude").slope == pytest.approx(0.1)
    assert length_effect([cut], "penalise").slope == pytest.approx(0.1)
    assert length_effect([cut], "allow").slope == pytest.approx(0.4)


def test_debiased_pairs_do_not_follow_length() -> None:
    scores, lengths = [1.0, 2.5, 3.0], [10, 20, 40]
    assert lengths_of(pairs.pair_of(group(scores, lengths))) == (40, 10)
    assert lengths_of(pairs.pair_of(group(scores, lengths), slope=0.1)) == (20, 40)
    assert pairs.pair_of(group(scores, lengths), min_margin=2.5) is None
    assert pairs.pair_of(group([1.0, 2.0, 4.0], lengths), slope=0.1, min_margin=0.5) is None


def test_an_unsafe_response_is_never_chosen() -> None:
    found = pairs.pair_of(group([1.0, 2.0, 3.0], [10, 20, 30], safety=[0.5, 0.9, 0.1]))
    assert lengths_of(found) == (20, 10)
    assert pairs.pair_of(group([1.0, 2.0], [10, 20], safety=[0.5, 0.1])) is None


def test_monitors_tell_a_policy_that_games_its_reward() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(40, 60, 50)
    base = evaluation(tokens * 0.1, tokens, rng.normal(0, 1, 50))
    longer = tokens * 3
    gamed = evaluation(longer * 0.1, longer, [v[0] - 1 for v in base["heldout"]["scores"].values()])
    gamed["distinct_2"] = 0.3
    found = guards.monitors(gamed | {"kl": 150.0}, base, base, length_share=0.99)
    assert found["length_ratio"] == pytest.approx(3)
    assert found["length_share"] == 0.99
    assert found["distinct_ratio"] == pytest.approx(1 / 3)
    assert found["reward_gap"] > 2
    heard = guards.alarms(found, Guards())
    assert len(heard) == 6
    assert heard[0] == "answers are 3.00 times as long as the base model's"
    assert guards.alarms(guards.monitors(base, base, base, None), Guards()) == []
    assert guards.alarms({"finished_share": 0.79}, Guards()) == ["only 79% of the answers are finished"]
    assert guards.alarms({"finished_share": 0.8}, Guards()) == []
    noisy = [v[0] - 1 + e for v, e in zip(base["heldout"]["scores"].values(), rng.normal(0, 0.5, 50), strict=True)]
    fallen = guards.monitors(evaluation(longer, longer, noisy), base, base, None)
    assert fallen["fall"] > 3
    assert "kl" not in fallen


def test_the_robust_preset_can_be_changed() -> None:
    robust = Guards(preset="robust", min_margin=0.3)
    assert (robust.length_debias, robust.min_margin, robust.roll_back) == (True, 0.3, True)
    paper = Guards()
    assert (paper.length_debias, paper.min_margin, paper.roll_back) == (False, 0.0, False)


@pytest.fixture
def run_state(tmp_path):
    def make(records: list[dict], judge: dict | None = None, pairs_from: str = "policy", **settings) -> RunState:
        job = Job(
            pairs_from=pairs_from,
            evaluation={"judge": judge},
            run_dir=str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}"),
            iterations=4,
            scorers={"reward_model": "a/b", "heldout_model": "a/c"},
            guards={"preset": "robust", **settings},
        )
        ledger = Ledger(job, resume=True)
        for k, found in enumerate(records):
            if k:
                ledger.finish(stage(k, "pairs"), 0.0, **({} if pairs_from == "file" else {"length_share": 0.25}))
                ledger.finish(stage(k, "train"), 0.0, steps=[])
            ledger.finish(stage(k, "evaluate"), 0.0, **found)
        ledger.close()
        return RunState(job, ledger)

    return make


def test_an_alarm_vetoes_a_checkpoint_only_with_roll_back(run_state) -> None:
    even = {"scores": [0.0] * 3, "tokens": [9] * 3}
    records = [
        evaluation(**even, heldout=[0.0] * 3),
        evaluation(**even, heldout=[2.0] * 3, alarms=[], going_on_from=1),
        evaluation(**even, heldout=[9.0] * 3, alarms=["long"], going_on_from=1),
        evaluation(**even, heldout=[1.0] * 3, alarms=[], going_on_from=3),
    ]
    found = run_state(records)
    assert [found.best(k) for k in range(4)] == [0, 1, 1, 1]
    assert [found.resume_iteration(k) for k in range(4)] == [0, 1, 1, 3]
    assert (found.last_trained(), found.last_evaluated(), found.ended()) == (3, 3, False)
    paper = run_state(records, preset="paper")
    assert [paper.best(k) for k in range(4)] == [0, 1, 2, 2], "the best held-out reward, whatever the alarms"


def test_with_a_judge_the_best_is_by_its_win_rate(run_state) -> None:
    even = {"scores": [0.0] * 3, "tokens": [9] * 3}
    records = [
        evaluation(**even, heldout=[0.0] * 3),
        evaluation(**even, heldout=[2.0] * 3, alarms=[], going_on_from=1, judge={"win_rate_vs_base": 0.4}),
        evaluation(**even, heldout=[1.0] * 3, alarms=[], going_on_from=2, judge={"win_rate_vs_base": 0.7}),
    ]
    assert [run_state(records, judge={"model": "a"}).best(k) for k in range(3)] == [0, 0, 2]
    assert [run_state(records).best(k) for k in range(3)] == [0, 1, 1]


def test_a_run_ends_after_so_many_roll_backs(run_state) -> None:
    even = {"scores": [0.0] * 3, "tokens": [9] * 3, "heldout": [0.0] * 3}
    back = evaluation(**even, alarms=["long"], going_on_from=0)
    assert not run_state([evaluation(**even), back]).ended()
    assert run_state([evaluation(**even), back, back]).ended()
    assert not run_state([evaluation(**even), back, back], patience=3).ended()


def test_what_is_watched_decides_where_the_run_goes_on(run_state) -> None:
    tokens, rng = list(range(40, 60)), np.random.default_rng(0)
    base = evaluation(rng.normal(0, 1, 20), tokens, rng.normal(0, 1, 20))
    found = run_state([base, base | {"alarms": [], "going_on_from": 1}])
    longer = evaluation(rng.normal(0, 1, 20), [3 * n for n in tokens], rng.normal(0, 1, 20))
    watched = found.check_guards(1, longer)
    assert watched["going_on_from"] == 0
    assert any("3.00 times as long" in alarm for alarm in watched["alarms"])
    assert found.check_guards(1, base)["going_on_from"] == 1


def test_a_speech_that_was_set_aside_in_one_evaluation_is_not_compared() -> None:
    base = evaluation([1.0, 2.0, 3.0], [9, 9, 9], [0.0, 0.0, 0.0])
    now = evaluation([1.0, 2.0, 3.0], [9, 9, 9], [1.0, 1.0, 5.0])
    del base["heldout"]["scores"]["s0"], now["heldout"]["scores"]["s1"]
    assert guards.gain(now, base, "heldout").tolist() == [5.0]


def test_the_divergence_and_the_effect_of_length_are_watched_where_they_are_known(run_state) -> None:
    base = evaluation([0.0, 1.0, 2.0], [40, 50, 60], [0.0, 1.0, 2.0])
    records = [base, base | {"alarms": [], "going_on_from": 1}]
    found = run_state(records).check_guards(1, base | {"kl": 120.0})
    assert (found["monitors"]["kl"], found["monitors"]["length_share"]) == (120.0, 0.25)
    assert found["alarms"] == ["the policy is 120 nats a response away from the base model"]
    offline = run_state(records, pairs_from="file").check_guards(1, base)
    assert not {"kl", "length_share"} & offline["monitors"].keys()


def test_answers_that_are_cut_raise_an_alarm(run_state) -> None:
    base = evaluation([0.0, 1.0, 2.0], [40, 50, 60], [0.0, 1.0, 2.0])
    records = [base, base | {"alarms": [], "going_on_from": 1}]
    assert run_state(records).check_guards(1, base | {"finished_share": 0.7})["going_on_from"] == 0
    assert run_state(records).check_guards(1, base)["alarms"] == []
    lenient = run_state(records, min_finished_share=0.6)
    assert lenient.check_guards(1, base | {"finished_share": 0.7})["alarms"] == []


@pytest.mark.parametrize("unfinished", ["exclude", "penalise", "allow"])
def test_a_stage_of_mostly_cut_answers_stops_and_names_the_limit(unfinished) -> None:
    settings = Sampling(max_tokens=64, unfinished=unfinished)
    guards.require_finished(0.5, "the answers", settings)
    if unfinished == "allow":
        guards.require_finished(0.0, "the answers", settings)
    else:
        with pytest.raises(InputError, match=r"^75% of the answers were cut at sampling\.max_tokens 64 or are empty; "):
            guards.require_finished(0.25, "the answers", settings)
