"""The report's statistics against scipy, scikit-learn and closed forms; its plots' scales."""

import zlib

import numpy as np
import pytest

from t0jax import results
from t0jax.report import plots, statistics


def grades(seed=0, prompts=5, rows=40, partly=True):
    rng = np.random.default_rng(seed)
    values = (rng.random((prompts, rows)) < 0.6).astype(float)
    if partly:
        values[1, ::2] = np.nan
    return values


def scipy_interval(statistic, rows, name, resamples=400):
    """scipy's percentile bootstrap of row numbers, with the draws of `resampled_means`."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng([0, zlib.crc32(name.encode())])
    found = stats.bootstrap(
        (np.arange(rows),), statistic, n_resamples=resamples, method="percentile", rng=rng, vectorized=False
    )  # fmt: skip
    return found.confidence_interval


@pytest.mark.parametrize("reduce", [np.nanmean, np.nanmedian])
def test_intervals_over_prompts_are_scipys(reduce):
    """Rows are drawn for all prompts together; a prompt that applies to half of them counts those."""
    values = grades()
    wanted = scipy_interval(
        lambda rows: reduce(np.nanmean(values[:, rows], axis=1)), values.shape[1], "d"
    )
    means = statistics.resampled_means(values, "d", resamples=400)
    over = {np.nanmean: statistics.mean_over_prompts, np.nanmedian: statistics.median_over_prompts}
    assert statistics.interval(over[reduce](means)) == pytest.approx(tuple(wanted), abs=1e-12)


def test_the_interval_of_one_prompt_is_scipys():
    values = grades()
    wanted = scipy_interval(lambda rows: np.nanmean(values[1, rows]), values.shape[1], "d")
    means = statistics.resampled_means(values, "d", resamples=400)
    assert statistics.interval(means[:, 1]) == pytest.approx(tuple(wanted), abs=1e-12)


def test_the_interval_of_an_accuracy_is_near_the_binomials():
    """A bootstrapped accuracy is binomial / n: the closed form of the percentile interval."""
    stats = pytest.importorskip("scipy.stats")
    rows, right = 500, 350
    values = (np.arange(rows) < right)[None].astype(float)
    low, high = statistics.interval(statistics.resampled_means(values, resamples=8000)[:, 0])
    wanted = stats.binom.ppf([0.025, 0.975], rows, right / rows) / rows
    assert (low, high) == pytest.approx(tuple(wanted), abs=0.004)


def test_draws_depend_on_the_data_sets_name_and_not_on_how_many_are_held(monkeypatch):
    values = grades()
    means = statistics.resampled_means(values, "a")
    assert not np.array_equal(means, statistics.resampled_means(values, "b"))
    monkeypatch.setattr(statistics, "_CHUNK", 130)
    np.testing.assert_array_equal(means, statistics.resampled_means(values, "a"))


def test_a_sample_without_rows_of_a_prompt_is_left_out():
    values = np.full((2, 6), np.nan)
    values[0], values[1, 0] = 1.0, 1.0
    means = statistics.resampled_means(values, resamples=200)
    assert np.isnan(means[:, 1]).any()
    assert statistics.interval(means[:, 1]) == (1.0, 1.0)
    assert statistics.interval(statistics.mean_over_prompts(means)) == (1.0, 1.0)


def test_confusion_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    gold, predicted = np.random.default_rng(0).integers(0, 4, (2, 200))
    wanted = metrics.confusion_matrix(gold, predicted, labels=range(4))
    np.testing.assert_array_equal(statistics.confusion(gold, predicted, 4), wanted)


def test_the_hardest_rows():
    rows_by_task = {
        "a": [(0, False), (1, False), (2, True), (7, False)],
        "b": [(0, False), (1, True), (2, True)],
        "c": [(0, False), (1, False), (2, True)],
    }
    assert results.hardest(rows_by_task) == [(0, 3, 3), (1, 2, 3), (7, 1, 1)]
    assert results.hardest(rows_by_task, limit=1) == [(0, 3, 3)]
    ties = {"a": [(row, False) for row in (9, 3, 5)]}
    assert [row for row, *_ in results.hardest(ties, limit=2)] == [3, 5]
    assert results.hardest({}) == []


# Plots


@pytest.mark.parametrize("seed", range(5))
def test_axes_hold_their_values(seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=20) * 10.0 ** rng.integers(-6, 6)).tolist()
    axis = plots.number_axis(values)
    assert axis.low <= min(values)
    assert axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 8
    narrow = plots.accuracy_axis(rng.random(3).tolist())
    assert narrow.ticks[0] >= 0
    assert narrow.ticks[-1] <= 1


def test_a_thinned_curve_keeps_its_mean():
    values = np.random.default_rng(0).normal(size=1200)
    line = plots._thinned(plots.Line("loss", list(range(1200)), list(values), ""))
    assert len(line.values) == 300
    assert np.mean(line.values) == pytest.approx(values.mean())
