"""The curves of the over-optimisation study: points, best-of-n without bias, falls, and the fits of Gao et al. 2022.

Shapes: P prompts, S samples of each, n the number chosen from, m points of a curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_mini.core.bootstrap import Estimate, mean_intervals
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import plain, read_json

FORMAT = 1  # of overopt.json
BEST_OF_N = "best of n"  # the title of that curve


@dataclass(frozen=True, kw_only=True)
class Point:
    """A policy, measured as gains over the SFT model on the same prompts."""

    kl: float
    """To the SFT model, in nats per response."""
    proxy: Estimate
    gold: Estimate
    gold_by_prompt: list[float]
    """(P,)"""
    n: int | None = None
    """Of best-of-n."""
    update: int | None = None
    """Of a PPO training: the iteration it is from."""
    tokens: float | None = None
    """Mean length of its responses."""

    def to_json(self) -> dict[str, Any]:
        """The point in overopt.json, which leaves out the single prompts."""
        keys = ("n", "update", "kl", "tokens", "proxy", "gold")
        return {key: plain(value) for key in keys if (value := getattr(self, key)) is not None}


def point_from_json(content: dict[str, Any]) -> Point:
    """A point as it is kept between two runs of the study, with its single prompts."""
    estimates = {key: Estimate(**content[key]) for key in ("proxy", "gold")}
    return Point(**content | estimates)


def summarized(points: Sequence[Point], form: Callable[[np.ndarray], np.ndarray], seed: int) -> dict[str, Any]:
    """A curve as overopt.json has it: its points, the fall from its peak, and the fits of `form`."""
    gold_by_prompt = [point.gold_by_prompt for point in points]
    return {"points": [p.to_json() for p in points], "fall": fall(gold_by_prompt, seed), "fit": fits(points, form)}


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


def fits(points: Sequence[Point], form: Callable[[np.ndarray], np.ndarray]) -> dict[str, dict[str, float]]:
    """Least squares of proxy and gold gains on d = sqrt(KL) (Gao et al. 2022, arXiv 2210.10760, section 3.1).

    Returns:
        By "proxy" and "gold": a, b, rmse, the root mean squared error in units of the gain, and r2, the share of the
        gains' variance that the form explains: near 0 or below, it explains nothing. NaN for fewer than three points.
    """
    points = [point for point in points if point.kl > 1e-3]
    d = np.sqrt([point.kl for point in points])
    found = {}
    for key in ("proxy", "gold"):
        gains = np.array([getattr(point, key).mean for point in points])
        if len(points) < 3:
            found[key] = {"a": math.nan, "b": math.nan, "rmse": math.nan, "r2": math.nan}
            continue
        columns = form(d)
        (a, b), *_ = np.linalg.lstsq(columns, gains, rcond=None)
        error = np.mean((columns @ [a, b] - gains) ** 2)
        r2 = 1 - error / gains.var() if gains.var() > 0 else math.nan
        found[key] = {"a": float(a), "b": float(b), "rmse": math.sqrt(error), "r2": float(r2)}
    return found


# --- overopt.json ----------------------------------------------------------------------------------------------------


def titled(scenario: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Best-of-n and each PPO training of a scenario of overopt.json, with the titles that people see."""
    titles = [f"PPO, kl_coef {c['kl_coef']:g}" + (" (default)" if c["default"] else "") for c in scenario["ppo"]]
    return [(BEST_OF_N, scenario["best_of_n"]), *zip(titles, scenario["ppo"], strict=True)]


def read_study(path: Path) -> dict[str, Any] | None:
    """An overopt.json, None if there is none. UserError if another version wrote it."""
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} was written by another version of this project: run `make overopt`")
    return content
