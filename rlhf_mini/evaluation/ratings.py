"""The fits behind the comparisons of players and of judges: Bradley-Terry ratings, length control, correlation.

Shapes: K players, n prompts, S resamples.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

ELO = 400 / np.log(10)  # points a nat of log-strength: 400 points are odds of 10 to 1, as in chess


def outcomes(ranks: np.ndarray) -> np.ndarray:
    """Who beat whom by ranks (n, K), 1 = best: (n, K, K), [i, j] is 1 if i beat j, 1/2 for a tie, NaN if unknown."""
    difference = ranks[:, None, :] - ranks[:, :, None]  # (n, K, K): above 0 where the row's player has the better rank
    return np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1) / 2)


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """Ratings (..., K) in Elo points with player 0 at 0, from wins (..., K, K): [i, j] counts i's wins over j.

    P(i beats j) = sigmoid(r_i - r_j) (Bradley and Terry 1952), fitted by maximum likelihood. Each pair is given one
    drawn game more than was played, so that a player who never won has a rating, too. NaN for all if nobody played.
    """
    players = wins.shape[-1]
    played = wins.sum((-1, -2)) > 0  # (...,)
    games = (wins + 0.5) * (1 - np.eye(players))
    games = (games / games.sum((-1, -2), keepdims=True)).reshape(-1, players, players)  # (M, K, K), M problems at once

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        ratings = np.pad(free.reshape(len(games), players - 1), ((0, 0), (1, 0)))  # (M, K)
        difference = ratings[:, :, None] - ratings[:, None, :]  # (M, K, K)
        surprise = games * expit(-difference)  # (M, K, K)
        gradient = surprise.sum(1) - surprise.sum(2)  # (M, K)
        return -(games * log_expit(difference)).sum(), gradient[:, 1:].ravel()

    start = np.zeros(len(games) * (players - 1))
    # The loss is flat where games are lopsided: default tolerances stop several Elo points short of the optimum.
    limits = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 0, "gtol": 1e-10}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=limits)
    ratings = np.pad(found.x.reshape(len(games), players - 1), ((0, 0), (1, 0))).reshape(wins.shape[:-1])
    return np.where(played[..., None], ELO * ratings, np.nan)


def length_controlled(wins: np.ndarray, longer: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The win rate that would result if both sides had the same length: one for each resample, (S,).

    A logistic regression of wins on tanh(difference of lengths / its standard deviation), read at a difference of 0
    (Dubois et al. 2024, arXiv 2404.04475, without their term for a prompt's difficulty: there is one pair of models).

    Args:
        wins: (n,) in [0, 1]; a NaN is left out.
        longer: (n,) length of the response less that of its rival's.
        weights: (S, n), how often each prompt counts.
    """
    there = ~np.isnan(wins)
    wins, longer, weights = wins[there], longer[there], weights[:, there]
    x = np.tanh(longer / ((longer.std() if longer.size else 0.0) or 1.0))  # (n,)
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))  # (S,) each
    ridge = 1e-2  # keeps the fit finite where one side wins everything
    for _ in range(12):  # steps of Newton's method, in all resamples at once
        p = 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * x)))  # (S, n)
        error, curvature = weights * (wins - p), weights * p * (1 - p)  # (S, n) each
        g0, g1 = error.sum(1) - ridge * intercept, error @ x - ridge * slope
        h00, h01, h11 = curvature.sum(1) + ridge, curvature @ x, curvature @ (x * x) + ridge
        determinant = h00 * h11 - h01 * h01
        intercept = intercept + (h11 * g0 - h01 * g1) / determinant
        slope = slope + (h00 * g1 - h01 * g0) / determinant
    return np.where(weights.sum(1) > 0, 1 / (1 + np.exp(-intercept)), np.nan)


def pearson(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation in each resample: (S,); NaN where one side does not vary.

    Args:
        first, second: (n,); a pair with a NaN is left out.
        weights: (S, n), how often each pair counts.
    """
    there = ~np.isnan(first + second)
    x, y, weights = first[there], second[there], weights[:, there]
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = weights / weights.sum(1, keepdims=True)  # (S, n)
        dx, dy = (values - (weights @ values)[:, None] for values in (x, y))  # (S, n) each
        varied = np.sqrt((weights * dx**2).sum(1) * (weights * dy**2).sum(1))  # (S,)
        return np.where(varied > 1e-12, (weights * dx * dy).sum(1) / varied, np.nan)
