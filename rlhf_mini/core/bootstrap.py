"""Bootstrap intervals over prompts, and over runs with different seeds.

Every mean here is a ratio of two sums over prompts: wins / prompts, or correctly ordered pairs / pairs. Results for the
same prompt are not independent, so prompts are drawn with replacement, not single responses or pairs. With several
runs, whole runs are drawn with replacement, too: each resample gives its own set of prompts to its own set of runs.

Shapes: n prompts, r runs, m measures, S resamples. The rows of several runs are concatenated: the n rows of the first
run, then those of the second, and so on.
"""

from dataclasses import dataclass

import numpy as np

from rlhf_mini.core.files import Number

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; NaN where there is nothing to average."""

    mean: Number
    low: Number
    high: Number


def resample_weights(prompts: int, runs: int = 1, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each row counts in each resample: (S, r * n). All runs in a resample get the same prompts."""
    rng = np.random.default_rng(seed)
    weights = _times_drawn(rng, prompts, resamples)  # (S, n)
    if runs == 1:
        return weights
    run_weights = _times_drawn(rng, runs, resamples)  # (S, r)
    both: np.ndarray = run_weights[:, :, None] * weights[:, None, :]  # (S, r, n)
    return both.reshape(resamples, runs * prompts)


def _times_drawn(rng: np.random.Generator, number: int, resamples: int) -> np.ndarray:
    """How often each of `number` items comes up in `number` draws with replacement: (S, number)."""
    drawn = rng.integers(number, size=(resamples, number))  # (S, number)
    places = drawn + number * np.arange(resamples)[:, None]  # item i of resample s is s * number + i
    times = np.bincount(places.ravel(), minlength=resamples * number)
    return times.reshape(resamples, number).astype(float)


def resampled_ratios(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, runs: int = 1
) -> np.ndarray:
    """The ratio sum(numerators) / sum(denominators) in each of S resamples of the prompts and the runs.

    Args:
        numerators, denominators: (r * n, m), one row per run and prompt. All measures share the resamples, so the
            difference of two columns of the result is a paired difference.

    Returns:
        (S, m); NaN where the sum of the denominators is 0.
    """
    weights = resample_weights(len(numerators) // runs, runs, resamples, seed)  # (S, r * n)
    return divide(weights @ numerators, weights @ denominators)


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of each column of `samples`, ignoring NaN.

    Args:
        samples: (S, m).

    Returns:
        low (m,) and high (m,); NaN for a column that is all NaN.
    """
    columns = [column[~np.isnan(column)] for column in samples.T]
    low, high = np.array(
        [np.quantile(column, [0.025, 0.975]) if column.size else (np.nan, np.nan) for column in columns]
    ).T
    return low, high


def mean_intervals(values: np.ndarray, seed: int = 0, runs: int = 1) -> list[Estimate]:
    """Mean and 95 % interval of each column of `values`, ignoring NaN.

    Args:
        values: (r * n, m), one row per run and prompt.

    Returns:
        m estimates.
    """
    known = ~np.isnan(values)  # (r * n, m)
    filled = np.where(known, values, 0.0)
    means = divide(filled.sum(0), known.sum(0))  # (m,)
    low, high = interval(resampled_ratios(filled, known.astype(float), seed=seed, runs=runs))
    return [Estimate(*map(float, three)) for three in zip(means, low, high, strict=True)]


def divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """numerators / denominators, elementwise; NaN where a denominator is 0."""
    ratios = np.full(np.shape(numerators), np.nan)
    np.divide(numerators, denominators, out=ratios, where=denominators > 0)
    return ratios
