"""What a report computes from scored rows: bootstrap intervals and confusion tables.

Everything here is numpy on arrays of grades. A grade is what a row's prediction is worth: 1 or 0, or between them where
the data set grades its choices. A mean grade is an accuracy.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 2_000_000
"""Draws held at a time."""


def resampled_means(
    grades: np.ndarray, name: str = "", resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Mean grade of every prompt in bootstrap samples of a data set's rows.

    A sample draws whole rows, for all prompts together: what makes a row hard is shared by its prompts, so intervals of
    a mean or median over prompts are right. Equal `name`, `seed` and number of rows give equal draws, so that the
    samples of two models on the same rows are paired.

    Args:
        grades: [prompts, rows]; NaN where a prompt does not apply to a row.
        name: of the data set; data sets are drawn independently of each other.
        resamples: samples to draw.
        seed: of the draws.

    Returns:
        [resamples, prompts]; NaN where a sample has no row that the prompt applies to.
    """
    applies = ~np.isnan(grades)
    both = np.concatenate([np.where(applies, grades, 0.0), applies]).T  # [rows, 2 prompts]
    sums = [n @ both for n in resampled_counts(grades.shape[1], name, resamples, seed)]
    total, scored = np.split(np.concatenate(sums), 2, axis=1)
    return np.divide(total, scored, out=np.full_like(total, np.nan), where=scored > 0)


def resampled_counts(
    rows: int, name: str = "", resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
    """How often each row of a data set is drawn in each sample, [some resamples, rows] at a time."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chunk = max(1, _CHUNK // rows)
    for start in range(0, resamples, chunk):
        yield _counts(rng, min(chunk, resamples - start), rows)


def _counts(rng: np.random.Generator, samples: int, rows: int) -> np.ndarray:
    """How often each row is drawn in each sample, [samples, rows] float64."""
    drawn = rng.integers(0, rows, (samples, rows)) + rows * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * rows).reshape(samples, rows).astype(float)


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of bootstrapped values [resamples]; NaN, where a sample had no rows, is left out."""
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def mean_over_prompts(means: np.ndarray) -> np.ndarray:
    """[resamples, prompts] -> [resamples], as a data set's mean is made."""
    return np.nanmean(means, axis=1)


def median_over_prompts(means: np.ndarray) -> np.ndarray:
    """[resamples, prompts] -> [resamples]."""
    return np.nanmedian(means, axis=1)


def confusion(gold: Sequence[int], predicted: Sequence[int], choices: int) -> np.ndarray:
    """Rows by right choice (first axis) and likeliest choice (second), [choices, choices] int."""
    flat = np.asarray(gold, int) * choices + np.asarray(predicted, int)
    return np.bincount(flat, minlength=choices**2).reshape(choices, choices)
