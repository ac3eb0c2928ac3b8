"""Ratings and length-controlled win rates, against numbers worked out by hand or drawn from known ones."""

import numpy as np
import pytest

from rlhf_mini.core.bootstrap import mean_intervals, resample_weights
from rlhf_mini.evaluation.ratings import bradley_terry, length_controlled, outcomes, pearson


def test_outcomes_by_hand() -> None:
    ranks = np.array([[1, 3, 1], [2, 1, np.nan]])
    first, second = outcomes(ranks)
    assert first.tolist() == [[0.5, 1, 0.5], [0, 0.5, 0], [0.5, 1, 0.5]]
    assert second[0, 1] == 0 and second[1, 0] == 1
    assert np.isnan(second[2]).all() and np.isnan(second[:, 2]).all()


def test_two_players_are_rated_by_their_odds() -> None:
    wins = np.array([[0, 25.0], [75, 0]])  # and a drawn game beforehand: 75.5 to 25.5
    assert bradley_terry(wins) == pytest.approx([0, 400 * np.log10(75.5 / 25.5)])


def test_known_strengths_are_found() -> None:
    strength = np.array([1.0, 10, 30, 0.1])
    wins = 1e7 * strength[:, None] / (strength[:, None] + strength)
    both = bradley_terry(np.stack([wins, wins.T]))
    assert both[0] == pytest.approx(400 * np.log10(strength), abs=0.01)
    assert both[1] == pytest.approx(-400 * np.log10(strength), abs=0.01)


def test_lopsided_resamples_agree_with_newtons_method() -> None:
    """All resamples are fitted at once; each must be as accurate as if it were fitted alone, to 0.01 Elo points."""
    rng, players, prompts, resamples = np.random.default_rng(0), 13, 600, 50
    strength = np.append(0, rng.normal(4, 1.5, players - 1))  # nats
    chance = 1 / (1 + np.exp(strength - strength[:, None]))  # (K, K)
    first_won = np.triu(rng.random((prompts, players, players)) < chance, 1)
    wins = first_won + np.triu(~first_won, 1).swapaxes(1, 2)  # (n, K, K)
    weights = rng.multinomial(prompts, np.full(prompts, 1 / prompts), resamples)  # (S, n)
    resampled = (weights @ wins.reshape(prompts, -1)).reshape(resamples, players, players).astype(float)
    assert np.abs(bradley_terry(resampled) - [newton(of_resample) for of_resample in resampled]).max() < 0.01


@pytest.mark.parametrize("games", [1, 100, 5_000, 100_000])
def test_a_shutout_is_rated_by_its_odds(games: int) -> None:
    wins = np.array([[0, 0.0], [games, 0]])
    assert bradley_terry(wins) == pytest.approx([0, 400 * np.log10((games + 0.5) / 0.5)], abs=0.1)


def newton(wins: np.ndarray) -> np.ndarray:
    """Ratings (K,) by Newton's method with halved steps, from wins (K, K)."""
    players = len(wins)
    games, ratings = (wins + 0.5) * (1 - np.eye(players)), np.zeros(players)

    def loss(ratings: np.ndarray) -> float:
        return float((games * np.log1p(np.exp(ratings - ratings[:, None]))).sum())

    for _ in range(100):
        p = 1 / (1 + np.exp(ratings - ratings[:, None]))  # (K, K): row beats column
        surprise, curvature = games * (1 - p), (games + games.T) * p * (1 - p)
        gradient = surprise.sum(0) - surprise.sum(1)
        step = np.append(0, np.linalg.solve((np.diag(curvature.sum(1)) - curvature)[1:, 1:], gradient[1:]))
        while loss(ratings - step) > loss(ratings) + 1e-9:
            step = step / 2
        ratings = ratings - step
        if np.abs(step).max() < 1e-12:
            break
    return 400 / np.log(10) * ratings


def test_who_never_won_is_rated_and_last() -> None:
    ratings = bradley_terry(np.array([[0, 10, 10], [0, 0, 10.0], [0, 0, 0]]))
    assert ratings[0] == 0 > ratings[1] > ratings[2] > -2000


def test_a_win_rate_that_is_length_alone_comes_out_even() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(8, 6, 40_000)  # nearly always longer than its rival
    for liking, quality in ((1.5, 0.0), (1.5, 0.7), (0.0, 0.7), (-1.5, 0.7)):
        chance = 1 / (1 + np.exp(-(quality + liking * np.tanh(longer / longer.std()))))
        wins = (rng.random(len(longer)) < chance).astype(float)
        (rate,) = length_controlled(wins, longer, np.ones((1, len(longer))))
        assert rate == pytest.approx(1 / (1 + np.exp(-quality)), abs=0.03)
        assert abs(wins.mean() - rate) > 0.1 or liking == 0.0


def test_weights_and_unknown_outcomes() -> None:
    wins, longer = np.array([1.0, 0.0, np.nan, 1.0, 0.0]), np.array([3.0, -3.0, 90.0, 3.0, -3.0])
    once, twice = length_controlled(wins, longer, np.array([[1, 1, 5, 1, 1], [2, 2, 0, 2, 2.0]]))
    assert once == pytest.approx(0.5) and twice == pytest.approx(0.5)
    assert np.isnan(length_controlled(np.full(3, np.nan), np.zeros(3), np.ones((2, 3)))).all()  # nobody judged
    assert np.isnan(bradley_terry(np.zeros((2, 3, 3)))).all()
    (everything,) = length_controlled(np.ones(50), np.zeros(50), np.ones((1, 50)))
    assert 0.99 < everything <= 1.0


def test_correlation_by_hand() -> None:
    first, second = np.array([1.0, 2, 3, np.nan, 9]), np.array([1.0, 3, 2, 7, np.nan])
    # deviations -1, 0, 1 and -1, 1, 0: a covariance of 1 over variances of 2; then the third counts as two do
    weights = np.array([[1.0, 1, 1, 5, 5], [1, 1, 2, 0, 0], [0, 2, 0, 1, 1]])
    once, twice, constant = pearson(first, second, weights)
    assert once == pytest.approx(1 / 2)
    assert twice == pytest.approx(np.corrcoef([1, 2, 3, 3], [1, 3, 2, 2])[0, 1])
    assert np.isnan(constant)  # one pair alone does not vary
    assert np.isnan(pearson(np.ones(5), second, weights)).all()
    assert np.isnan(pearson(first, second, np.zeros((1, 5)))).all()


def test_runs_are_drawn_as_wholes_and_share_their_prompts() -> None:
    weights = resample_weights(prompts=4, runs=3, resamples=200)
    assert weights.shape == (200, 12)
    by_run = weights.reshape(200, 3, 4)
    assert (by_run.sum((1, 2)) == 12).all()
    of_run = by_run.sum(2) / 4  # how often each run was drawn
    assert set(np.unique(of_run)) == {0, 1, 2, 3}
    prompts = by_run.sum(1, keepdims=True) / 3
    np.testing.assert_allclose(by_run, of_run[:, :, None] * prompts)


def test_intervals_over_runs_are_wider_where_runs_differ() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((3, 300)) < np.array([[0.2], [0.5], [0.8]])).astype(float).reshape(-1, 1)
    (alone,), (over_runs,) = mean_intervals(values), mean_intervals(values, runs=3)
    assert alone.mean == over_runs.mean
    assert alone.high - alone.low < 0.08 and over_runs.low < 0.3 and over_runs.high > 0.7
