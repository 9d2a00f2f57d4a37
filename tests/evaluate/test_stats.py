"""Intervals and win shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from psyco_ray.evaluate import stats


@given(st.integers(1, 60), st.data())
def test_wilson_is_scipys(total: int, data) -> None:
    wins = data.draw(st.integers(0, total))
    expected = binomtest(wins, total).proportion_ci(method="wilson")
    assert stats.wilson(wins, total) == pytest.approx((expected.low, expected.high))


def test_intervals_of_no_and_of_one_value() -> None:
    assert stats.wilson(0, 0) == (0.0, 1.0)
    assert stats.bootstrap_mean([2.5], seed=0) == (2.5, 2.5)
    assert stats.bootstrap_mean([2.5, 2.5], seed=0) == (2.5, 2.5)


def test_bootstrap_is_that_of_resampled_means_and_reproducible() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 200).tolist()
    low, high = stats.bootstrap_mean(values, seed=1)
    picks = np.random.default_rng(1).integers(0, 200, (2000, 200))
    assert (low, high) == pytest.approx(np.quantile(np.array(values)[picks].mean(axis=1), [0.025, 0.975]))
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 200**0.5, rel=0.15)
    assert stats.bootstrap_mean(values, seed=1) == (low, high)


def test_win_share_counts_ties_as_half() -> None:
    assert stats.win_share([1.0], [1.0]) == 0.5
    assert stats.win_share([2.0, 0.0], [1.0, 1.0]) == 0.5
    assert stats.win_share([2.0, 3.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)


def test_clusters_of_one_value_are_plain_values() -> None:
    values = [float(n % 7) for n in range(50)]
    plain = stats.bootstrap_mean(values, 0, draws=20_000)
    assert stats.bootstrap_clusters([[value] for value in values], 0, draws=20_000) == pytest.approx(plain, abs=0.03)
    assert stats.bootstrap_clusters([[1.0, 3.0]], 0) == (2.0, 2.0)
