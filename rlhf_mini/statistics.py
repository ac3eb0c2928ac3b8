"""Bootstrap intervals over prompts.

Whatever is averaged here is a ratio of two sums over prompts: wins / prompts, or pairs in the right order / pairs. What
one prompt gave belongs together, so prompts are drawn with replacement, not single responses or pairs.

Shapes: n prompts, m figures, S resamples.
"""

import numpy as np

RESAMPLES = 2000


def resampled_ratios(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """The ratio sum(numerators) / sum(denominators) in each of S resamples of the prompts.

    Args:
        numerators, denominators: (n, m), one row a prompt. All figures see the same resamples, so the difference of two
            columns of the result is a resampled paired difference.

    Returns:
        (S, m); NaN where a resample has nothing to divide by.
    """
    prompts = len(numerators)
    drawn = np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))  # (S, n)
    places = drawn + prompts * np.arange(resamples)[:, None]  # (S, n): prompt i of resample s as s * n + i
    times = np.bincount(places.ravel(), minlength=resamples * prompts)  # (S * n,): how often each was drawn
    weights = times.reshape(resamples, prompts).astype(float)  # (S, n)
    return divide(weights @ numerators, weights @ denominators)


def interval(samples: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of each column of `samples` (S, m): low (m,) and high (m,), NaN where all are NaN."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    nothing = np.full(2, np.nan)
    columns = [column[~np.isnan(column)] for column in samples.T]
    low, high = np.array([np.quantile(column, tails) if column.size else nothing for column in columns]).T
    return low, high


def mean_intervals(values: np.ndarray, seed: int = 0) -> list[dict[str, float]]:
    """Mean and 95 % interval of each column of `values` (n, m), one row a prompt; a NaN is left out."""
    there = ~np.isnan(values)  # (n, m)
    filled = np.where(there, values, 0.0)
    means = divide(filled.sum(0), there.sum(0))  # (m,)
    low, high = interval(resampled_ratios(filled, there.astype(float), seed=seed))
    return [as_dict(*figures) for figures in zip(means, low, high, strict=True)]


def as_dict(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """numerators / denominators, NaN where the denominator is 0."""
    return np.divide(numerators, denominators, out=np.full(np.shape(numerators), np.nan), where=denominators > 0)
