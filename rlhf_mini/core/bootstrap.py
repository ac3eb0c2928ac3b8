"""Bootstrap intervals over prompts, and over runs of different seeds.

Whatever is averaged here is a ratio of two sums over prompts: wins / prompts, or pairs in the right order / pairs. What
one prompt gave belongs together, so prompts are drawn with replacement, not single responses or pairs. Of several runs,
whole runs are drawn, too: each resample is another lot of prompts given to another lot of seeds.

Shapes: n prompts, r runs, m figures, S resamples. Rows of several runs lie end to end, run by run.
"""

import numpy as np

RESAMPLES = 2000


def resample_weights(prompts: int, runs: int = 1, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each row counts in each resample: (S, r * n). All runs of a resample get the same prompts."""
    rng = np.random.default_rng(seed)
    weights = _times_drawn(rng, prompts, resamples)  # (S, n)
    if runs == 1:
        return weights
    of_run = _times_drawn(rng, runs, resamples)  # (S, r)
    return (of_run[:, :, None] * weights[:, None]).reshape(resamples, runs * prompts)


def _times_drawn(rng: np.random.Generator, number: int, resamples: int) -> np.ndarray:
    """How often each of `number` things comes up in `number` draws with replacement: (S, number)."""
    drawn = rng.integers(number, size=(resamples, number))  # (S, number)
    places = drawn + number * np.arange(resamples)[:, None]  # thing i of resample s as s * number + i
    times = np.bincount(places.ravel(), minlength=resamples * number)
    return times.reshape(resamples, number).astype(float)


def resampled_ratios(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, runs: int = 1
) -> np.ndarray:
    """The ratio sum(numerators) / sum(denominators) in each of S resamples of the prompts, and of the runs.

    Args:
        numerators, denominators: (r * n, m), one row a prompt and run. All figures see the same resamples, so the
            difference of two columns of the result is a resampled paired difference.

    Returns:
        (S, m); NaN where a resample has nothing to divide by.
    """
    weights = resample_weights(len(numerators) // runs, runs, resamples, seed)  # (S, r * n)
    return divide(weights @ numerators, weights @ denominators)


def interval(samples: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of each column of `samples` (S, m): low (m,) and high (m,), NaN where all are NaN."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    nothing = np.full(2, np.nan)
    columns = [column[~np.isnan(column)] for column in samples.T]
    low, high = np.array([np.quantile(column, tails) if column.size else nothing for column in columns]).T
    return low, high


def mean_intervals(values: np.ndarray, seed: int = 0, runs: int = 1) -> list[dict[str, float]]:
    """Mean and 95 % interval of each column of `values` (r * n, m), one row a prompt and run; a NaN is left out."""
    there = ~np.isnan(values)  # (r * n, m)
    filled = np.where(there, values, 0.0)
    means = divide(filled.sum(0), there.sum(0))  # (m,)
    low, high = interval(resampled_ratios(filled, there.astype(float), seed=seed, runs=runs))
    return [as_dict(*figures) for figures in zip(means, low, high, strict=True)]


def as_dict(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """numerators / denominators, NaN where the denominator is 0."""
    return np.divide(numerators, denominators, out=np.full(np.shape(numerators), np.nan), where=denominators > 0)
