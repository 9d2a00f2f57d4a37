import itertools
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import cohen_kappa_score
from support.paths import SHARED_DATA

from psyco_ray.evaluate.agreement import Estimate, Level, cohen_kappa, krippendorff_alpha, percent

NAN = math.nan
LEVELS: list[Level] = ["nominal", "ordinal", "interval"]
MENTAL_ALIGN = SHARED_DATA / "mentalalign_ratings.parquet"


def figure(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


def ratings(raters: int, missing: float = 0.0):
    values = st.integers(1, 5).map(float)
    elements = values if not missing else st.one_of(values, values, st.just(NAN))
    return arrays.arrays(float, st.tuples(st.integers(3, 30), st.just(raters)), elements=elements)


def test_percent_and_kappa_by_hand() -> None:
    # 20 both yes, 15 both no, 5 only the second, 10 only the first: 35 of 50; by chance 25 x 30 and 25 x 20 of 50
    pairs = [(1, 1)] * 20 + [(0, 0)] * 15 + [(0, 1)] * 5 + [(1, 0)] * 10
    assert figure(percent(pairs)) == pytest.approx(0.7)
    assert figure(cohen_kappa(pairs)) == pytest.approx((0.7 - 0.5) / (1 - 0.5))


def test_quadratic_weights_by_hand() -> None:
    # differences 0, 0, 1, 4 in the data; marginals {1: 2, 2: 1, 3: 1} and {1: 2, 3: 1, 2: 1} by chance
    rated = cohen_kappa([(1, 1), (2, 2), (3, 2), (1, 3)], weights="quadratic")
    seen = (1 + 4) / 4
    chance = sum((a - b) ** 2 for a in (1, 2, 3, 1) for b in (1, 2, 2, 3)) / 16
    assert figure(rated) == pytest.approx(1 - seen / chance)


def test_alpha_by_hand() -> None:
    # three items rated (1, 1), (1, 2), (2, 2): coincidences 1-1: 2, 1-2: 2 (both ways), 2-2: 2; 3 ratings of each value
    rated = [(1, 1), (1, 2), (2, 2)]
    nominal = 1 - (2 / 6) / (2 * 3 * 3 / (6 * 5))
    assert figure(krippendorff_alpha(rated, "nominal")) == pytest.approx(nominal)
    assert figure(krippendorff_alpha(rated, "interval")) == pytest.approx(nominal)  # two values are one step apart
    wider = [(1, 1), (1, 3), (3, 3), (2, 2)]  # one disagreement, of two steps; 3, 2 and 3 ratings of 1, 2 and 3
    chance = 2 * (3 * 2 * 1 + 2 * 3 * 1 + 3 * 3 * 4) / (8 * 7)
    assert figure(krippendorff_alpha(wider, "interval")) == pytest.approx(1 - (2 * 4 / 8) / chance)


def test_missing_ratings_and_lone_ratings_do_not_count() -> None:
    full = [(1, 1, NAN), (1, 2, 2), (NAN, 2, 2), (3, NAN, 3)]
    lone = [(5, NAN, NAN), (NAN, NAN, NAN)]
    for measure in (percent, lambda r: krippendorff_alpha(r, "ordinal")):
        assert measure([*full, *lone]) == measure(full)
    assert percent(full).items == 4
    assert figure(percent(full)) == pytest.approx((1 + 1 + 1 + 1) / (1 + 3 + 1 + 1))
    assert cohen_kappa([(1, 1), (1, 0), (NAN, 1), (0, NAN)]).items == 2


def test_what_the_data_does_not_determine_is_none() -> None:
    nothing = Estimate(None, None, None, 0)
    for none in (np.empty((0, 2)), [(1, NAN), (NAN, 2)]):
        assert percent(none) == cohen_kappa(none) == krippendorff_alpha(none, "nominal") == nothing
    assert cohen_kappa([(1, 1)] * 4) == krippendorff_alpha([(1, 1)] * 4, "interval") == Estimate(None, None, None, 4)
    assert percent([(1, 1)] * 4) == Estimate(1.0, 1.0, 1.0, 4)


@given(ratings(2))
def test_kappa_equals_scikit_learn(given_ratings: np.ndarray) -> None:
    assume(len(np.unique(given_ratings)) > 1)
    for weights in (None, "quadratic"):
        oracle = cohen_kappa_score(*given_ratings.T, labels=range(1, 6), weights=weights)
        assert figure(cohen_kappa(given_ratings, weights, draws=2)) == pytest.approx(oracle)


def test_quadratic_weights_are_of_the_values_not_of_their_ranks() -> None:
    spread = [(1, 1), (2, 2), (9, 2), (1, 9)]
    chance = sum((a - b) ** 2 for a, _ in spread for _, b in spread) / 16
    assert figure(cohen_kappa(spread, weights="quadratic")) == pytest.approx(1 - (49 + 64) / 4 / chance)


def test_alpha_of_the_published_examples() -> None:
    """The data and results of Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", examples A, B and C."""

    def items(*raters: str) -> list[tuple[float, ...]]:
        return [tuple(NAN if value == "." else ord(value) for value in item) for item in zip(*raters, strict=True)]

    assert figure(krippendorff_alpha(items("0100000010", "1110010000"), "nominal")) == pytest.approx(0.095, abs=5e-4)
    letters = items("aabbdcccedda", "babbbccceddd")
    assert figure(krippendorff_alpha(letters, "nominal")) == pytest.approx(0.692, abs=5e-4)
    ranks = items("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    for level, published in {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849}.items():
        assert figure(krippendorff_alpha(ranks, level)) == pytest.approx(published, abs=5e-4)


def alpha_by_definition(rated: np.ndarray, level: Level) -> float:
    """Krippendorff's alpha from all pairs of ratings, one by one."""
    items = [[value for value in item if not math.isnan(value)] for item in rated.tolist()]
    items = [item for item in items if len(item) > 1]
    number = Counter(value for item in items for value in item)

    def disagreement(one: float, other: float) -> float:
        if level == "nominal":
            return one != other
        if level == "interval":
            return (one - other) ** 2
        between = sum(count for value, count in number.items() if min(one, other) <= value <= max(one, other))
        return (between - (number[one] + number[other]) / 2) ** 2

    seen = sum(disagreement(a, b) / (len(item) - 1) for item in items for a, b in itertools.permutations(item, 2))
    pairs = itertools.permutations(number, 2)
    chance = sum(number[a] * number[b] * disagreement(a, b) for a, b in pairs) / (number.total() - 1)
    return 1 - seen / chance


@given(ratings(4, missing=0.3))
def test_alpha_is_that_of_its_definition(given_ratings: np.ndarray) -> None:
    rated = given_ratings[(~np.isnan(given_ratings)).sum(axis=1) >= 2]
    assume(len(np.unique(rated[~np.isnan(rated)])) > 1)
    for level in LEVELS:
        oracle = alpha_by_definition(given_ratings, level)
        assert figure(krippendorff_alpha(given_ratings, level, draws=2)) == pytest.approx(oracle)


@given(ratings(3, missing=0.3), st.permutations(range(3)), st.randoms(use_true_random=False))
def test_neither_the_order_of_items_nor_of_raters_matters(rated: np.ndarray, raters: list[int], random) -> None:
    items = list(range(len(rated)))
    random.shuffle(items)
    shuffled = rated[items][:, raters]
    for level in LEVELS:
        ours, theirs = (krippendorff_alpha(r, level, draws=2).value for r in (rated, shuffled))
        assert (ours is None) == (theirs is None)
        assert ours is None or ours == pytest.approx(theirs)


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(5)
    first = generator.integers(1, 6, 150)
    second = np.where(generator.random(150) < 0.6, first, generator.integers(1, 6, 150))
    rated = np.stack([first, second], axis=1).astype(float)
    plain = {"percent": [], "kappa": [], "alpha": []}
    for _ in range(1500):
        drawn = rated[generator.integers(0, len(rated), len(rated))]
        plain["percent"].append(figure(percent(drawn, draws=1)))
        plain["kappa"].append(figure(cohen_kappa(drawn, draws=1)))
        plain["alpha"].append(figure(krippendorff_alpha(drawn, "interval", draws=1)))
    ours = {
        "percent": percent(rated),
        "kappa": cohen_kappa(rated),
        "alpha": krippendorff_alpha(rated, "interval"),
    }
    for name, estimate in ours.items():
        assert (estimate.low, estimate.high) == pytest.approx(np.quantile(plain[name], [0.025, 0.975]), abs=0.015)


def test_intervals_over_conversations_are_those_of_a_plain_bootstrap_of_conversations() -> None:
    generator = np.random.default_rng(6)
    of = generator.integers(0, 25, 150).tolist()
    first = generator.integers(1, 6, 150)
    kept = (generator.random(25) < 0.6)[of]  # the two agree on whole conversations
    rated = np.stack([first, np.where(kept, first, first % 5 + 1)], axis=1).astype(float)
    rows = [rated[[place for place, other in enumerate(of) if other == one]] for one in range(25)]
    measures = {
        "percent": lambda r, **more: percent(r, **more),
        "kappa": lambda r, **more: cohen_kappa(r, **more),
        "alpha": lambda r, **more: krippendorff_alpha(r, "ordinal", **more),
    }
    for measure in measures.values():
        plain = [
            figure(measure(np.concatenate([rows[one] for one in generator.integers(0, 25, 25)]), draws=1))
            for _ in range(600)
        ]
        ours, alone = measure(rated, clusters=of), measure(rated)
        assert (ours.low, ours.high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.03)
        assert ours.value == alone.value
        assert ours.low < alone.low < alone.high < ours.high
        assert measure(rated, clusters=range(150)) == alone, "conversations of one item change nothing"


def test_one_conversation_has_no_interval() -> None:
    rated = [(1, 1), (1, 2), (2, 2), (NAN, 1)]
    assert percent(rated, clusters=["a", "a", "a", "b"]) == Estimate(percent(rated).value, None, None, 3)


def test_the_seed_alone_decides_the_interval() -> None:
    rated = np.random.default_rng(1).integers(1, 6, (40, 2)).astype(float)
    assert krippendorff_alpha(rated, "ordinal", seed=3) == krippendorff_alpha(rated, "ordinal", seed=3)
    assert krippendorff_alpha(rated, "ordinal", seed=3).low != krippendorff_alpha(rated, "ordinal", seed=4).low


@pytest.mark.skipif(not MENTAL_ALIGN.exists(), reason="the ratings are not in this checkout")
def test_alpha_of_many_real_ratings() -> None:
    table = pd.read_parquet(MENTAL_ALIGN)
    for attribute in ("Guidance", "Safety", "Empathy"):
        rated = table.pivot(index=["conv_id", "model"], columns="judge", values=attribute).to_numpy()
        estimate = krippendorff_alpha(rated, "ordinal", draws=100)
        assert figure(estimate) == pytest.approx(alpha_by_definition(rated, "ordinal"))
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < figure(estimate) < estimate.high < estimate.low + 0.1
        assert estimate.items > 9000
