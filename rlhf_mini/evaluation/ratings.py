"""Who is better, from who beat whom: Bradley-Terry ratings, and win rates at equal length.

Shapes: K players, n prompts, S resamples.
"""

import numpy as np

ELO = 400 / np.log(10)  # points a nat of log-strength: 400 points are odds of 10 to 1, as in chess


def outcomes(ranks: np.ndarray) -> np.ndarray:
    """What ranks (n, K), 1 = best, say of each pair: (n, K, K), [i, j] 1 if i beat j, 1/2 for a tie, NaN unknown."""
    difference = ranks[:, None, :] - ranks[:, :, None]  # (n, K, K): above 0 where the row's player has the better rank
    return np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1) / 2)


def bradley_terry(wins: np.ndarray, steps: int = 1000, tolerance: float = 1e-7) -> np.ndarray:
    """Ratings (..., K) in Elo points with player 0 at 0, from wins (..., K, K): [i, j] counts i's wins over j.

    P(i beats j) = s_i / (s_i + s_j) (Bradley and Terry 1952), fitted by Hunter's MM algorithm (2004, Annals of
    Statistics 32). Each pair is given one drawn game beforehand, so that who never won has a rating, too. NaN for all
    where nobody played.
    """
    players = wins.shape[-1]
    played = wins.sum((-1, -2), keepdims=True)[..., 0] > 0  # (..., 1)
    others = 1 - np.eye(players)
    wins = (wins + 0.5) * others
    games = wins + wins.swapaxes(-1, -2)  # (..., K, K)
    strength = np.ones(wins.shape[:-1])  # (..., K)
    for _ in range(steps):
        expected = (games / (strength[..., :, None] + strength[..., None, :])).sum(-1)  # (..., K)
        updated = wins.sum(-1) / expected
        updated = updated / updated[..., :1]
        change = np.abs(np.log(updated / strength)).max()
        strength = updated
        if change < tolerance:
            break
    return np.where(played, ELO * np.log(strength), np.nan)


def length_controlled(wins: np.ndarray, longer: np.ndarray, weights: np.ndarray, steps: int = 12) -> np.ndarray:
    """The win rate that would be if both sides were of the same length: one for each resample, (S,).

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
    for _ in range(steps):  # Newton's method, in all resamples at once
        p = 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * x)))  # (S, n)
        error, curvature = weights * (wins - p), weights * p * (1 - p)  # (S, n) each
        g0, g1 = error.sum(1) - ridge * intercept, error @ x - ridge * slope
        h00, h01, h11 = curvature.sum(1) + ridge, curvature @ x, curvature @ (x * x) + ridge
        determinant = h00 * h11 - h01 * h01
        intercept = intercept + (h11 * g0 - h01 * g1) / determinant
        slope = slope + (h00 * g1 - h01 * g0) / determinant
    return np.where(weights.sum(1) > 0, 1 / (1 + np.exp(-intercept)), np.nan)
