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
    assert stats.wilson(wins, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_bootstrap_covers_the_mean_and_is_reproducible() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 200).tolist()
    low, high = stats.bootstrap_mean(values, seed=1)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / 200**0.5, rel=0.15)
    assert stats.bootstrap_mean(values, seed=1) == (low, high)


def test_win_share_counts_ties_as_half() -> None:
    assert stats.win_share([1.0], [1.0]) == 0.5
    assert stats.win_share([2.0, 0.0], [1.0, 1.0]) == 0.5
    assert stats.win_share([2.0, 3.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)
