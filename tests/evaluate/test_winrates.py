"""Win rates against oracles, by hand, and as judges with a bias for one place would make them."""

import math

import hypothesis
import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from psyco_ray.data import topics
from psyco_ray.evaluate import winrates

OUTCOMES = st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=1, max_size=60)


def test_a_win_rate_by_hand() -> None:
    result = winrates.win_rate([1, 1, 0.5, 0, None], seed=0)
    assert result["rate"] == pytest.approx(2.5 / 5)
    assert {key: result[key] for key in ("speeches", "wins", "ties", "unreadable")} == {
        "speeches": 5, "wins": 2, "ties": 1, "unreadable": 1,
    }  # fmt: skip
    assert result["decided"] == pytest.approx(2 / 3), "neither the tie nor the unreadable verdict decides"
    with pytest.raises(ValueError, match="no outcome"):
        winrates.win_rate([], seed=0)


def test_the_interval_is_wilsons_and_the_seed_decides_the_bootstrap() -> None:
    outcomes = [1.0] * 29 + [0.0] * 71
    result = winrates.win_rate(outcomes, seed=1)
    assert result["wilson95"] == pytest.approx(list(binomtest(29, 100).proportion_ci(method="wilson")))
    assert result["bootstrap95"] == winrates.win_rate(outcomes, seed=1)["bootstrap95"]
    assert result["bootstrap95"] != winrates.win_rate(outcomes, seed=2)["bootstrap95"]
    half = 1.96 * math.sqrt(0.29 * 0.71 / 100)
    assert result["bootstrap95"] == pytest.approx([0.29 - half, 0.29 + half], abs=0.015)


@given(OUTCOMES)
def test_swapping_the_sides_mirrors_the_rate_but_for_unreadable_verdicts(outcomes) -> None:
    swapped = [None if outcome is None else 1 - outcome for outcome in outcomes]
    ours, theirs = winrates.win_rate(outcomes, 0), winrates.win_rate(swapped, 0)
    assert ours["rate"] + theirs["rate"] == pytest.approx(1 - ours["unreadable"] / len(outcomes))
    for result in (ours, theirs):
        for key in ("wilson95", "bootstrap95"):
            low, high = result[key]
            assert 0 <= low <= result["rate"] + 1e-12
            assert result["rate"] - 1e-12 <= high <= 1


def test_topics_are_table_3s_and_those_of_the_labels() -> None:
    assert set(winrates.TOPICS) == set(topics.coarse_of().values())
    paper = winrates.TOPICS.values()
    assert list(paper) == [
        "Mental Issues", "Emotional Well-being", "Relationships", "Life Changes", "Social Issues", "Youth", "Safety",
        "Special Topics",
    ]  # fmt: skip


def test_topics_come_in_order_then_unknown_ones_and_overall_last() -> None:
    of = [None, "Work", "Crisis and Safety Concerns", "Mental Issues", "Core Mental Health Issues", "Aside"]
    result = winrates.by_topic([1, 0, 1, 1, 0, None], of, seed=0)
    assert list(result) == ["Mental Issues", "Safety", "Aside", "Work", winrates.NO_TOPIC, winrates.OVERALL]
    assert (result["Mental Issues"]["rate"], result["Mental Issues"]["speeches"]) == (0.5, 2)
    assert (result["Aside"]["unreadable"], result["Aside"]["rate"]) == (1, 0)
    assert result[winrates.OVERALL] == winrates.win_rate([1, 0, 1, 1, 0, None], seed=0)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, None]), st.sampled_from(["a", "b", None])), min_size=1))
def test_topics_weighted_by_their_speeches_give_the_overall_rate(rows) -> None:
    result = winrates.by_topic([outcome for outcome, _ in rows], [topic for _, topic in rows], seed=0)
    overall = result.pop(winrates.OVERALL)
    assert sum(of["rate"] * of["speeches"] for of in result.values()) / len(rows) == pytest.approx(overall["rate"])
    assert sum(of["speeches"] for of in result.values()) == len(rows)


def lengths(seed: int, count: int, slope: float, at_equal: float, tied: float) -> tuple[list, list]:
    """Differences in words, and outcomes that depend on them as the regression assumes."""
    random = np.random.default_rng(seed)
    differences = random.normal(40, 60, count).round()
    chance = 1 / (1 + np.exp(-(at_equal + slope * winrates.length_covariate(differences))))
    outcomes = (random.random(count) < chance).astype(float)
    outcomes[random.random(count) < tied] = 0.5
    return outcomes.tolist(), differences.tolist()


@hypothesis.settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(30, 400), st.floats(-2, 2), st.floats(-1, 1), st.sampled_from([0.0, 0.2]))
def test_the_length_controlled_rate_is_that_of_the_binomial_glm(seed, count, slope, at_equal, tied) -> None:
    outcomes, differences = lengths(seed, count, slope, at_equal, tied)
    result = winrates.length_controlled(outcomes, differences)
    hypothesis.assume(not result["separable"])
    design = sm.add_constant(winrates.length_covariate(differences))
    fit = sm.GLM(outcomes, design, family=sm.families.Binomial()).fit(tol=1e-12)
    assert math.log(result["rate"] / (1 - result["rate"])) == pytest.approx(fit.params[0], abs=1e-6)
    assert result["slope"] == pytest.approx(fit.params[1], abs=1e-6)
    assert result["ci95"] == pytest.approx(1 / (1 + np.exp(-fit.conf_int()[0])), abs=1e-6)


def test_lengths_are_scaled_by_their_root_mean_square_and_equal_stays_equal() -> None:
    result = winrates.length_covariate([30, -40, 0, 50])
    scale = math.sqrt((900 + 1600 + 2500) / 4)
    assert result.tolist() == pytest.approx([math.tanh(d / scale) for d in (30, -40, 0, 50)])
    assert np.ptp(winrates.length_covariate([90, 100, 110])) > 0.05, "an advantage of one kind stays on the slope"


def test_the_length_controlled_rate_takes_the_advantage_of_length_away() -> None:
    outcomes, differences = lengths(0, 4000, slope=2.0, at_equal=0.0, tied=0.0)
    plain, controlled = winrates.win_rate(outcomes, 0), winrates.length_controlled(outcomes, differences)
    assert plain["rate"] > 0.6
    low, high = controlled["ci95"]
    assert low < 0.5 < high
    assert high - low < 0.1


def test_without_variation_in_length_the_rate_is_the_plain_one() -> None:
    outcomes = [1.0] * 30 + [0.0] * 20 + [None] * 10
    for difference in (0, 25):
        result = winrates.length_controlled(outcomes, [difference] * 60)
        assert result["rate"] == pytest.approx(0.5)
        assert result["slope"] is None
        assert not result["separable"]
        spread = 1.959964 / math.sqrt(60 * 0.25)
        assert result["ci95"] == pytest.approx([1 / (1 + math.exp(spread)), 1 / (1 + math.exp(-spread))])


@pytest.mark.parametrize(
    ("outcomes", "differences", "low", "high"),
    [
        ([1.0] * 40, list(range(40)), 0.9, 1.0),
        ([0.0] * 40, [3] * 40, 0.0, 0.03),
        ([0.0] * 20 + [1.0] * 20, list(range(-20, 20)), 0.4, 0.6),
        ([1.0] * 20 + [0.0] * 20, list(range(-20, 20)), 0.4, 0.6),
        ([0.0] * 20 + [1.0] * 20, [-5] * 19 + [0, 0] + [5] * 19, 0.4, 0.6),
        ([1.0], [7], 0.5, 1.0),
    ],
    ids=["only wins", "only losses", "longer wins", "shorter wins", "all but separated", "one speech"],
)
def test_separable_data_has_a_finite_answer(outcomes, differences, low, high) -> None:
    result = winrates.length_controlled(outcomes, differences)
    assert result["separable"]
    assert low <= result["rate"] <= high
    assert result["ci95"][0] < result["rate"] < result["ci95"][1]
    assert all(math.isfinite(bound) for bound in result["ci95"])


def test_only_losses_at_one_length_give_what_the_prior_says() -> None:
    assert winrates.length_controlled([0.0] * 40, [3] * 40)["rate"] == pytest.approx(0.5 / 41)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from([0.0, 1.0, None])), max_size=80))
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_speeches(pairs) -> None:
    ours_a, ours_b = [a for a, _ in pairs], [b for _, b in pairs]
    result = winrates.mcnemar(ours_a, ours_b)
    table = np.zeros((2, 2))
    for a, b in pairs:
        table[int(a or 0), int(b or 0)] += 1
    assert (result["a_only"], result["b_only"]) == (table[1, 0], table[0, 1])
    discordant = result["a_only"] + result["b_only"]
    assert result["p"] == pytest.approx(binomtest(result["a_only"], discordant).pvalue if discordant else 1.0)


def test_mcnemar_counts_a_tie_as_between_a_win_and_a_loss() -> None:
    assert winrates.mcnemar([1, 0.5, 0.5, 0], [0.5, 0, 1, 0]) == {"a_only": 2, "b_only": 1, "p": 1.0}


def test_strict_wins_need_both_orders() -> None:
    assert winrates.strict(True, True) == 1
    assert winrates.strict(False, False) == 0
    assert winrates.strict(True, False) == winrates.strict(False, True) == 0.5
    assert winrates.strict(None, True) is winrates.strict(False, None) is winrates.strict(None, None) is None


def judged(random: np.random.Generator, count: int, better: float, led: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether ours is chosen where it is shown first, and where second, by a judge of a known kind.

    Of a share `led` of the speeches it takes whatever stands first; of the others it prefers ours with probability
    `better`, wherever it stands.
    """
    by_place = random.random(count) < led
    prefers = random.random(count) < better
    return by_place | prefers, ~by_place & prefers


def test_strict_order_recovers_the_truth_and_a_fixed_order_does_not() -> None:
    better, led, count, runs = 0.62, 0.3, 200, 150
    truth = (1 - led) * better + led / 2  # a speech that is decided by the place alone is half won
    covered = dict.fromkeys(("wilson95", "bootstrap95", "decided", "fixed"), 0)
    means: dict[str, list[float]] = {"strict": [], "seeded": [], "fixed": []}
    for run in range(runs):
        random = np.random.default_rng(run)
        first, second = judged(random, count, better, led)
        result = winrates.win_rate([winrates.strict(a, b) for a, b in zip(first, second, strict=True)], run)
        fixed = winrates.win_rate(first.astype(float).tolist(), run)
        seeded = np.where(random.random(count) < 0.5, first, second)
        for name in ("wilson95", "bootstrap95"):
            low, high = result[name]
            covered[name] += low <= truth <= high
        low, high = proportion_confint(result["wins"], count - result["ties"], method="wilson")
        assert result["decided"] == result["wins"] / (count - result["ties"])
        covered["decided"] += low <= better <= high
        low, high = fixed["wilson95"]
        covered["fixed"] += low <= truth <= high
        means["strict"].append(result["rate"])
        means["seeded"].append(float(seeded.mean()))
        means["fixed"].append(fixed["rate"])
    for name in ("wilson95", "bootstrap95", "decided"):
        assert covered[name] / runs > 0.9, name
    assert covered["bootstrap95"] / runs < 1, "an interval that always holds the truth is too wide"
    assert covered["fixed"] / runs < 0.1
    error = math.sqrt(0.25 / count / runs)
    assert np.mean(means["strict"]) == pytest.approx(truth, abs=4 * error)
    assert np.mean(means["seeded"]) == pytest.approx(truth, abs=4 * error)
    assert np.mean(means["fixed"]) == pytest.approx(truth + led / 2, abs=4 * error)
    assert np.std(means["seeded"]) > np.std(means["strict"]), "the second question buys certainty"


def test_length_facts_by_hand() -> None:
    assert winrates.length_facts([0, 30, 60], [20, 20, 20]) == {
        "mean_words": 30, "opponent_mean_words": 20, "length_ratio": 1.5,
    }  # fmt: skip
