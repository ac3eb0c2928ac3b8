"""Bootstrap intervals against closed forms and SciPy."""

import numpy as np
import pytest
import scipy.stats

from rlhf_mini.core.bootstrap import Estimate, divide, interval, mean_intervals, resampled_ratios


def test_a_constant_has_no_spread() -> None:
    assert mean_intervals(np.full((5, 1), 0.25)) == [Estimate(0.25, 0.25, 0.25)]


def test_interval_of_a_coin_is_the_normal_one() -> None:
    coin = np.repeat([0.0, 1.0], 200)[:, None]  # (400, 1): standard error sqrt(1/4 / 400) = 0.025
    (estimate,) = mean_intervals(coin)
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert estimate.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    assert mean_intervals(coin) == [estimate]


def test_a_missing_value_is_left_out() -> None:
    estimates = mean_intervals(np.array([[1.0, np.nan, np.nan], [0.0, 3.0, np.nan]]))
    assert [estimate.mean for estimate in estimates[:2]] == [0.5, 3.0]
    assert (estimates[1].low, estimates[1].high) == (3.0, 3.0)
    assert np.isnan([estimates[2].mean, estimates[2].low, estimates[2].high]).all()


def test_resamples_weigh_prompts_by_their_pairs() -> None:
    right, pairs = np.array([[1.0], [0.0]]), np.array([[1.0], [3.0]])
    ratios = resampled_ratios(right, pairs, resamples=100)
    assert set(ratios[:, 0]) == {1.0, 0.25, 0.0}  # twice the first prompt, both, twice the second


def test_columns_share_their_resamples() -> None:
    values = np.random.default_rng(0).normal(size=(50, 1))
    ratios = resampled_ratios(np.hstack([values, values + 1]), np.ones((50, 2)))
    low, high = interval(ratios[:, 1:] - ratios[:, :1])
    assert low[0] == pytest.approx(1.0) and high[0] == pytest.approx(1.0)


def test_against_scipy() -> None:
    values = np.random.default_rng(0).random(200)
    (estimate,) = mean_intervals(values[:, None])
    peer = scipy.stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    assert [estimate.low, estimate.high] == pytest.approx([peer.low, peer.high], abs=0.004)


def test_nothing_to_divide_by() -> None:
    assert np.isnan(divide(np.array([0.0]), np.array([0.0]))).all()
