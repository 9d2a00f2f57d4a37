import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from psyco_ray.config.prompts import PRINCIPLES
from psyco_ray.evaluate import metrics, rewardbench, ties
from psyco_ray.evaluate.stats import wilson
from psyco_ray.run.schemas import COMPARISONS


def auroc(labels, probabilities) -> float:
    return float(binary_auroc(torch.tensor(probabilities), torch.tensor(labels)))


SCORES = st.integers(-40, 40).map(lambda quarters: quarters / 4)  # coarse, so that ties occur
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=40).map(lambda rows: np.array(rows).T)
LABELLED = st.integers(1, 40).flatmap(
    lambda size: st.tuples(
        arrays.arrays(float, size, elements=st.floats(0, 1, exclude_max=True)),
        arrays.arrays(int, size, elements=st.integers(0, 1)),
    )
)


def torch_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    values = torch.tensor(probabilities, dtype=torch.float64)
    return float(binary_calibration_error(values, torch.tensor(labels), n_bins=bins, norm="l1"))


def away_from_edges(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """torch's edges differ from i / bins by rounding errors, so a value there may fall into another bin."""
    nearest = np.round(probabilities * bins) / bins
    return np.where(
        np.abs(probabilities - nearest) < 1e-9, (np.floor(probabilities * bins) + 0.5) / bins, probabilities
    )


@given(LABELLED, st.sampled_from([1, 3, 10, 15]))
def test_ece_matches_torchmetrics(case, bins) -> None:
    probabilities, labels = away_from_edges(case[0], bins), case[1]
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(torch_ece(probabilities, labels, bins), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 1)), min_size=1, max_size=40))
def test_ece_matches_torchmetrics_on_edges(cases) -> None:
    sixteenths, labels = np.array(cases).T
    for bins in (4, 8, 16):  # whose edges are exact in both
        own = metrics.ece(sixteenths / 16, labels, bins)
        assert own == pytest.approx(torch_ece(sixteenths / 16, labels, bins), abs=1e-12)


def test_ece_at_the_edges_by_hand() -> None:
    # 1.0 shares the last bin with 0.9: mean probability 0.95, half of them positive; torchmetrics sets 1.0 apart
    assert metrics.ece([0.9, 1.0], [1, 0], 10) == pytest.approx(0.45)
    assert torch_ece(np.array([0.9, 1.0]), np.array([1, 0]), 10) == pytest.approx((0.1 + 1.0) / 2)
    assert metrics.ece([0.0, 0.0, 1.0], [0, 1, 1], 10) == pytest.approx(1 / 3)
    # an edge belongs to the bin above: 0.3 and 0.35 together, 0.7 and 0.75 together, 0.29 and 0.69 alone
    values, labels = [0.29, 0.3, 0.35, 0.69, 0.7, 0.75], [1, 1, 0, 0, 1, 0]
    expected = [0.71, abs(0.65 - 1), 0.69, abs(1.45 - 1)]
    assert metrics.ece(values, labels, 10) == pytest.approx(sum(expected) / 6)
    bins = metrics.reliability(values, labels)
    assert [row["count"] for row in bins] == [0, 0, 1, 2, 0, 0, 1, 2, 0, 0]
    assert bins[3] == {"low": 0.3, "high": 0.4, "count": 2, "probability": pytest.approx(0.325), "right": 0.5}
    assert bins[0]["right"] is bins[0]["probability"] is None


@given(PAIRS)
def test_metrics_match_torchmetrics_and_the_definitions(pairs) -> None:
    chosen, rejected = pairs
    result = metrics.measure(chosen, rejected)
    probabilities, labels = metrics.both_orders(chosen, rejected)
    margins = chosen - rejected
    assert result["auc"] == pytest.approx(auroc(labels, probabilities), abs=1e-6)
    wins = np.sign(margins[:, None] + margins[None, :])  # a chosen-first case against a rejected-first case
    assert result["auc"] == pytest.approx((wins.mean() + 1) / 2)
    assert result["brier"] == pytest.approx(np.mean((1 / (1 + np.exp(margins))) ** 2))
    assert result["nll"] == pytest.approx(-np.log(1 / (1 + np.exp(-margins))).mean())
    assert result["accuracy"] == np.mean(chosen > rejected)
    assert result["ties"] == np.sum(chosen == rejected)
    assert result["accuracy_ci95"] == list(wilson(int(np.sum(chosen > rejected)), len(chosen)))
    for bins in (10, 15):
        assert result[f"ece{bins}"] == metrics.ece(probabilities, labels, bins)
    assert sum(row["count"] for row in result["reliability"]) == 2 * result["pairs"] == 2 * len(chosen)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@given(PAIRS)
def test_histogram_counts_every_score_on_common_edges(pairs) -> None:
    result = metrics.measure(*pairs)["histogram"]
    assert len(result["edges"]) == len(result["chosen"]) + 1 == len(result["rejected"]) + 1 == 21
    assert sum(result["chosen"]) == sum(result["rejected"]) == pairs.shape[1]
    for side, scores in zip(("chosen", "rejected"), pairs, strict=True):
        filled = [place for place, count in enumerate(result[side]) if count]
        assert result["edges"][filled[0]] <= scores.min() <= scores.max() <= result["edges"][filled[-1] + 1]


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_in_which_responses_are_stored_does_not_matter(pairs, random) -> None:
    chosen, rejected = pairs
    result = metrics.measure(chosen, rejected)
    chosen_first = np.array([random.random() < 0.5 for _ in chosen])
    first, second = np.where(chosen_first, chosen, rejected), np.where(chosen_first, rejected, chosen)
    as_stored = 1 / (1 + np.exp(second - first))
    probabilities = np.concatenate([as_stored, 1 / (1 + np.exp(first - second))])
    labels = np.concatenate([chosen_first, ~chosen_first]).astype(int)
    assert auroc(labels, probabilities) == pytest.approx(result["auc"], abs=1e-6)
    assert float(mean_squared_error(torch.tensor(probabilities), torch.tensor(labels))) == pytest.approx(
        result["brier"]
    )
    own, expected = metrics.reliability(probabilities, labels), result["reliability"]
    if all(abs(p * 10 - round(p * 10)) > 1e-9 or p == 0.5 for p in probabilities):
        assert [row["count"] for row in own] == [row["count"] for row in expected]
        assert metrics.ece(probabilities, labels, 10) == pytest.approx(result["ece10"])
    mirrored = metrics.measure(rejected, chosen)
    assert mirrored["auc"] == pytest.approx(1 - result["auc"])
    assert mirrored["accuracy"] == pytest.approx(1 - result["accuracy"] - result["ties"] / result["pairs"])


@given(PAIRS, st.floats(0.5, 20))
def test_a_temperature_leaves_auc_and_accuracy(pairs, temperature) -> None:
    result = metrics.measure(*pairs)
    probabilities, labels = metrics.both_orders(*pairs, temperature)
    assert auroc(labels, probabilities) == pytest.approx(result["auc"], abs=1e-6)
    assert np.mean(probabilities[labels == 1] > 0.5) == result["accuracy"]
    scaled = metrics.calibrated(pairs[0] / temperature, pairs[1] / temperature, 1.0)
    assert metrics.calibrated(*pairs, temperature)["nll"] == pytest.approx(scaled["nll"])
    assert metrics.calibrated(*pairs, temperature)["brier"] == pytest.approx(scaled["brier"])


def test_far_margins_keep_their_order_in_the_auc() -> None:
    # 800 right, 700 wrong: both probabilities round to 1, yet the right case lies above the wrong one
    result = metrics.measure([800.0, 0.0], [0.0, 700.0])
    assert (result["auc"], result["accuracy"]) == (0.75, 0.5)
    assert result["nll"] == pytest.approx(350)


def test_a_known_temperature_is_found_again() -> None:
    random = np.random.default_rng(0)
    for temperature in (0.2, 3.0):
        first, second = random.normal(0, 2, (2, 20_000))
        better = random.random(20_000) < 1 / (1 + np.exp(-(first - second) / temperature))
        chosen, rejected = np.where(better, first, second), np.where(better, second, first)
        result = metrics.fit_temperature(chosen, rejected)
        assert result == pytest.approx(temperature, rel=0.05)
        least = metrics.calibrated(chosen, rejected, result)
        assert all(metrics.calibrated(chosen, rejected, result * by)["nll"] > least["nll"] for by in (0.98, 1.02))
        assert least["ece10"] < 0.01 < metrics.measure(chosen, rejected)["ece10"]


def test_scores_without_a_best_temperature_stay_in_bounds() -> None:
    low, high = metrics.TEMPERATURES
    assert metrics.fit_temperature([3.0, 2.0], [1.0, 1.0]) == pytest.approx(low, rel=1e-3)
    assert metrics.fit_temperature([1.0, 1.0], [3.0, 2.0]) == pytest.approx(high, rel=1e-3)
    assert metrics.fit_temperature([1.0, 2.0], [1.0, 2.0]) == 1.0
    figures = metrics.calibrated([300.0], [1.0], low)
    assert (figures["ece10"], figures["brier"], figures["nll"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("measured", [metrics.measure, metrics.both_orders, metrics.fit_temperature])
def test_missing_and_infinite_scores_are_refused(measured) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        measured([], [])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"pair 2 of 3 has the scores 1\.0 and (nan|-?inf); they must be finite"):
            measured([1.0, 1.0, bad], [0.0, bad, 0.0])


def comparisons(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([{"chosen": "c", "rejected": "r", **row} for row in rows], schema=COMPARISONS)


def test_slices_by_hand() -> None:
    rows = [
        {"topic": "Youth", "gap": 1.0, "safety_gap": -1, "chosen": "x" * 110, "rejected": "x" * 100},
        {"topic": "Youth", "gap": 1.4286, "safety_gap": 0, "chosen": "x" * 100, "rejected": "x" * 110},
        {"topic": "Safety", "gap": 1.5, "safety_gap": 1, "chosen": "x" * 115, "rejected": "x" * 100},
        {"topic": None, "gap": 2.0, "safety_gap": 2, "chosen": "x" * 50, "rejected": "x" * 100},
        {"topic": "Safety", "gap": 3.5, "safety_gap": 4, "chosen": "x" * 70, "rejected": "x" * 100},
    ]
    result = metrics.slices(comparisons(rows), [1.0, 0.0, 0.5, 1.0, 1.0])
    short = {key: [(r["slice"], r["pairs"], r["accuracy"]) for r in of] for key, of in result.items()}
    assert short == {
        "topic": [("Safety", 2, 0.75), ("Youth", 2, 0.5), ("not given", 1, 1.0)],
        "gap": [("1 to 1.5", 2, 0.5), ("1.5 to 2", 1, 0.5), ("2 to 3", 1, 1.0), ("3 or more", 1, 1.0)],
        "length": [("much shorter", 1, 1.0), ("shorter", 1, 1.0), ("about equal", 2, 0.5), ("longer", 1, 0.5)],
        "safety_gap": [
            ("rejected rated higher", 1, 1.0),
            ("rated equal", 1, 0.0),
            ("chosen 1 higher", 1, 0.5),
            ("chosen 2 or more higher", 2, 1.0),
        ],
    }
    assert result["topic"][0]["ci95"] == list(wilson(1.5, 2))
    json.dumps(result, allow_nan=False)


def test_slices_of_pairs_without_labels_are_absent() -> None:
    assert list(metrics.slices(comparisons([{}, {}]), [1.0, 0.0])) == ["length"]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(-4, 4)), min_size=1, max_size=30))
def test_every_pair_is_in_one_slice_of_each_kind(rows) -> None:
    gaps = {f"{principle}_gap": 1 for principle in PRINCIPLES}
    pairs = [{"chosen": "é" * a, "rejected": "é" * b, "gap": c, "topic": "T", **gaps} for a, b, c in rows]
    right = [float(c > 0) for *_, c in rows]
    result = metrics.slices(comparisons(pairs), right)
    assert len(result) == 3 + len(PRINCIPLES)
    for of in result.values():
        assert sum(row["pairs"] for row in of) == len(rows)
        assert sum(row["pairs"] * row["accuracy"] for row in of) == pytest.approx(sum(right))
    swapped = metrics.slices(
        comparisons([m | {"chosen": m["rejected"], "rejected": m["chosen"]} for m in pairs]), right
    )
    turned = {"much shorter": "much longer", "shorter": "longer", "longer": "shorter", "much longer": "much shorter"}
    own = {row["slice"]: row["pairs"] for row in result["length"]}
    assert own == {turned.get(row["slice"], row["slice"]): row["pairs"] for row in swapped["length"]}


def test_ranked_by_hand() -> None:
    result = metrics.ranked([True, True, False, None, None], [True, False, False, True, None])
    assert result == {
        "pairs": 5,
        "accuracy": (1 + 0.5 + 0 + 0.5 + 0) / 5,
        "accuracy_ci95": list(wilson(2, 5)),
        "unreadable": 3,
        "first_accuracy": 0.4,
        "second_accuracy": 0.4,
        "consistent": 0.4,  # the first and the third pair; two unreadable answers agree on nothing
    }
    with pytest.raises(ValueError, match="no pairs"):
        metrics.ranked([], [])


@given(st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 2), min_size=1, max_size=30))
def test_ranked_accuracy_is_the_mean_of_both_orders(answers) -> None:
    first, second = zip(*answers, strict=True)
    result = metrics.ranked(first, second)
    assert result["accuracy"] == pytest.approx((result["first_accuracy"] + result["second_accuracy"]) / 2)
    assert result["consistent"] <= 1 - result["unreadable"] / (2 * result["pairs"])


def test_the_official_weights() -> None:
    weights = {subset: weight for of in rewardbench.SECTIONS.values() for subset, weight in of.items()}
    assert len(weights) == 23
    assert sum(weights.values()) - 984 + 447 == 2985  # the pairs of the benchmark
    assert weights["math-prm"] == sum(weight for subset, weight in weights.items() if subset.startswith("hep-"))


def test_rewardbench_by_hand() -> None:
    # math-prm: 1 of 2 right (a tie is no win), hep-cpp: 1 of 1; alpacaeval-easy: 2 of 2, mt-bench-easy: 0 of 1
    subsets = ["math-prm", "hep-cpp", "alpacaeval-easy", "math-prm", "mt-bench-easy", "alpacaeval-easy"]
    chosen, rejected = [1.0, 2.0, 3.0, 0.5, 0.0, 1.0], [0.0, 1.0, 1.0, 0.5, 2.0, 0.0]
    result = rewardbench.bench(subsets, chosen, rejected)
    reasoning, chat = (984 * 0.5 + 164 * 1.0) / (984 + 164), 100 / 128
    assert result["sections"] == {
        "Chat": {"accuracy": pytest.approx(chat), "pairs": 3},
        "Reasoning": {"accuracy": pytest.approx(reasoning), "pairs": 3},
    }
    assert result["mean"] == pytest.approx((reasoning + chat) / 2)
    assert result["micro"] == pytest.approx(4 / 6)
    assert result["subsets"]["math-prm"] == {"accuracy": 0.5, "pairs": 2, "section": "Reasoning", "weight": 984}
    assert result["official"]
    assert result["pairs"] == 6
    assert len(result["missing"]) == 19
    assert "donotanswer" in result["missing"]
    pooled = metrics.measure(chosen, rejected)
    assert {key: result[key] for key in ("auc", "ece10", "brier")} == {k: pooled[k] for k in ("auc", "ece10", "brier")}


def test_an_item_of_several_responses_is_right_if_every_chosen_one_beats_every_rejected_one() -> None:
    # Focus: 7 is right; 8 is not, as its chosen response ties with the second rejected one; Ties: blue is below three
    items = ["7", "7", "7", "8", "8", "t", "t", None]
    subsets = ["Focus"] * 5 + ["Ties"] * 3
    chosen, rejected = [3, 3, 3, 2, 2, 4, 1, 1], [0, 1, 2, 1, 2, 2, 0, 0]
    result = rewardbench.bench(subsets, chosen, rejected, items=items)
    assert {name: (row["accuracy"], row["pairs"]) for name, row in result["subsets"].items()} == {
        "Focus": (0.5, 2),
        "Ties": (0.5, 2),
    }
    assert (result["pairs"], result["official"], result["mean"]) == (4, False, 0.5)
    first, second = [True] * 8, [True, True, False, True, True, True, True, True]
    ranked = rewardbench.bench_ranked(subsets, first, second, items=items)
    assert {name: row["accuracy"] for name, row in ranked["subsets"].items()} == {"Focus": 0.75, "Ties": 1}


def test_the_subset_ties_has_the_score_of_its_leaderboard() -> None:
    # question 1: right answers 4 and 3 (spread 1), wrong 1: margin 2; with one right answer 5 against 2: margin 3
    # question 2: right answers 3 and 1 (spread 2), wrong 2: margin -1; with one right answer 1 against 0: margin 1
    items = ["tied:1", "tied:1", "ref:1", "tied:2", "tied:2", "ref:2"]
    chosen, rejected = [4, 3, 5, 3, 1, 1], [1, 0, 2, 2, 0, 0]
    result = rewardbench.bench(["Ties"] * 6, chosen, rejected, items=items)
    margins = math.tanh(2 / 1 - 1) + math.tanh(-1 / 2 - 1)
    expected = 0.3 * (1 / 2) + 0.3 * (2 / 2) + 0.2 * (1 / 2) + 0.2 * (1 / 2) + 0.01 * margins / 2
    assert result["subsets"]["Ties"]["accuracy"] == result["mean"] == pytest.approx(expected)
    assert result["micro"] == 3 / 4, "over the items"
    alone = rewardbench.bench(["Ties"] * 2, [4, 3], [1, 0], items=["tied:1", "tied:1"])
    assert alone["mean"] == pytest.approx(0.3), "nothing to compare margins with"
    plain = rewardbench.bench(["Ties"] * 2, [4, 3], [1, 0], items=["1", "1"])
    assert plain["mean"] == 1, "other names do not say which questions belong together"


@pytest.mark.parametrize(("scores", "tie_break"), [(([2, 2], [1]), 1), (([1, 1], [1]), 0), (([1, 1], [2]), -1)])
def test_equal_scores_of_right_answers_have_no_spread(scores, tie_break) -> None:
    right = tie_break > 0
    assert ties.score({"tied:1": scores, "ref:1": scores}) == pytest.approx(right + 0.01 * tie_break)


def test_a_ranker_on_rewardbench() -> None:
    result = rewardbench.bench_ranked(["math-prm", "hep-go", "hep-go"], [True, None, True], [False, True, True])
    assert result["sections"]["Reasoning"]["accuracy"] == pytest.approx((984 * 0.5 + 164 * 0.75) / 1148)
    assert result["micro"] == pytest.approx(2 / 3)
    assert "auc" not in result


def test_custom_sections() -> None:
    subsets, right = ["a", "a", "a", "b", "math-prm"], [True, True, False, True, False]
    alone = rewardbench.bench_ranked(subsets, right, right)
    assert {name: row["accuracy"] for name, row in alone["sections"].items()} == {"a": 2 / 3, "b": 1, "math-prm": 0}
    assert (alone["official"], alone["missing"]) == (False, [])
    grouped = rewardbench.bench_ranked(subsets, right, right, {"one": ["a", "math-prm"], "two": ["b"]})
    assert grouped["sections"]["one"] == {"accuracy": pytest.approx(2 / 4), "pairs": 4}  # by pairs, not 984
    assert grouped["mean"] == pytest.approx((2 / 4 + 1) / 2)


@pytest.mark.parametrize(
    ("subsets", "sections", "message"),
    [
        (["a", "b"], {"one": ["a"]}, "subset b is in none of the benchmark's sections one"),
        (["a"], {"one": ["a", "zebra"]}, "name the subset zebra; it has a"),
        (["a", "b"], {"one": ["a", "b"], "two": ["b"]}, "subset b is named twice"),
        (["a", None], None, "pair 2 of the benchmark has no subset"),
        ([], None, "no pairs"),
    ],
)
def test_sections_that_do_not_fit_are_refused(subsets, sections, message) -> None:
    with pytest.raises(ValueError, match=message):
        rewardbench.bench_ranked(subsets, [True] * len(subsets), [True] * len(subsets), sections)
