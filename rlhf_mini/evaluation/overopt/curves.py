"""The curves of the over-optimisation study: points, best-of-n without bias, falls, and the fits of Gao et al. 2022.

Shapes: P prompts, S samples of each, n the number chosen from, m points of a curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rlhf_mini.core.bootstrap import Estimate, mean_intervals
from rlhf_mini.evaluation.schema import Curve, Fit, Point, Scenario

N = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # how many are chosen from
BEST_OF_N = "best of n"  # the title of that curve
Form = Callable[[np.ndarray], np.ndarray]
"""What a and b multiply in a form R(d) of Gao et al.: (m,) -> (m, 2)."""


def summarized(points: Sequence[Point], form: Form, seed: int) -> Curve:
    """A curve as overopt.json has it, without the single prompts of its points."""
    found = fall([point.gold_by_prompt or [] for point in points], seed)
    return Curve(points=[replace(point, gold_by_prompt=None) for point in points], fall=found, fit=fits(points, form))


def distance(point: Point) -> float:
    """d, the square root of the KL to the SFT model; an estimate of a KL near 0 may be below 0."""
    return math.sqrt(max(point.kl, 0.0))


def peak(curve: Curve) -> Point:
    """The point with the highest gold."""
    return max(curve.points, key=lambda point: point.gold.mean)


def fall(gold_by_prompt: Sequence[Sequence[float]], seed: int) -> Estimate:
    """How much lower gold is at the end of a curve than at its peak; above 0, it fell.

    The peak is located on every other prompt and the difference is read on the others, because the highest of many
    noisy points is too high by chance. The curve begins at the SFT model, where all gains are 0.

    Args:
        gold_by_prompt: gains of each point of the curve, (P,) each.
    """
    gains = np.array(gold_by_prompt)  # (m, P)
    gains = np.concatenate([np.zeros((1, gains.shape[1])), gains])  # (1 + m, P)
    peak = gains[:, ::2].mean(1).argmax()
    return mean_intervals((gains[peak] - gains[-1])[1::2, None], seed)[0]


def best_of(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """The expected value of the response with the highest proxy among n, without bias, for each prompt: (P,).

    Over all choices of n among the S samples of a prompt (Nakano et al. 2021, arXiv 2112.09332, appendix I): the one
    that is i-th from below is the best of its n in C(i - 1, n - 1) of C(S, n) choices. Equal proxies share their value.

    Args:
        proxy, values: (P, S).
    """
    samples = proxy.shape[1]
    logs = [
        math.lgamma(i) - math.lgamma(n) - math.lgamma(i - n + 1) if i >= n else -math.inf for i in range(1, samples + 1)
    ]
    total = math.lgamma(samples + 1) - math.lgamma(n + 1) - math.lgamma(samples - n + 1)
    chances = np.exp(np.array(logs) - total)  # (S,): C(i - 1, n - 1) / C(S, n)
    expected = []
    for of_prompt, worth in zip(proxy, values, strict=True):
        order = np.argsort(of_prompt, kind="stable")
        _, place, count = np.unique(of_prompt[order], return_inverse=True, return_counts=True)
        level = np.bincount(place, weights=chances) / count  # responses that tie have an equal chance each
        expected.append(float((level[place] * worth[order]).sum()))
    return np.array(expected)


# --- fits ------------------------------------------------------------------------------------------------------------


def best_of_n_form(d: np.ndarray) -> np.ndarray:
    """R(d) = d (a - b d): the columns that a and b multiply, (m, 2)."""
    return np.stack([d, -d * d], axis=1)


def rl_form(d: np.ndarray) -> np.ndarray:
    """R(d) = d (a - b log d): the columns that a and b multiply, (m, 2)."""
    return np.stack([d, -d * np.log(d)], axis=1)


def fits(points: Sequence[Point], form: Form) -> dict[str, Fit]:
    """Least squares of "proxy" and "gold" gains on d (Gao et al. 2022, arXiv 2210.10760, section 3.1)."""
    points = [point for point in points if point.kl > 1e-3]
    d = np.sqrt([point.kl for point in points])
    found = {}
    for key in ("proxy", "gold"):
        gains = np.array([getattr(point, key).mean for point in points])
        if len(points) < 3:
            found[key] = Fit(math.nan, math.nan, math.nan, math.nan)
            continue
        columns = form(d)
        (a, b), *_ = np.linalg.lstsq(columns, gains, rcond=None)
        error = np.mean((columns @ [a, b] - gains) ** 2)
        r2 = 1 - error / gains.var() if gains.var() > 0 else math.nan
        found[key] = Fit(float(a), float(b), math.sqrt(error), float(r2))
    return found


def titled(scenario: Scenario) -> list[tuple[str, Curve]]:
    """Best-of-n and each PPO training of a scenario, with the titles that people see."""
    titles = [f"PPO, kl_coef {curve.kl_coef:g}" + (" (default)" if curve.default else "") for curve in scenario.ppo]
    return [(BEST_OF_N, scenario.best_of_n), *zip(titles, scenario.ppo, strict=True)]
