"""The random words of dropout: uniform, and without a trace of neighbours, of other keys and of devices."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from t0jax import config, sharding
from t0jax.models.layers import drop, random_words

SHAPE = (4, 4, 64, 96)
KEYS = [jax.random.key(seed) for seed in range(3)] + list(jax.random.split(jax.random.key(0), 3))
UNLIKELY = 1e-4
"""Probability under which a deviation is taken for a fault; the words below are always the same ones."""


def words(key: jax.Array) -> np.ndarray:
    return np.asarray(random_words(key, SHAPE))


@pytest.mark.parametrize("index", range(len(KEYS)))
def test_each_byte_of_the_words_is_uniform(index):
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words(KEYS[index]).ravel() >> shift) & 0xFF, minlength=256)
        assert stats.chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("index", range(len(KEYS)))
def test_what_is_dropped_says_nothing_of_its_neighbours(index):
    """Along every axis and two places on: pairs fall together as often as chance has it."""
    dropped = words(KEYS[index]) < 0.1 * 2**32
    for axis in range(dropped.ndim):
        for lag in (1, 2):
            near = np.moveaxis(dropped, axis, 0)
            table = np.histogram2d(near[lag:].ravel(), near[:-lag].ravel(), bins=2)[0]
            assert stats.chi2_contingency(table).pvalue > UNLIKELY


def test_what_is_dropped_says_nothing_of_what_another_key_drops():
    dropped = [words(key).ravel() < 0.1 * 2**32 for key in KEYS]
    for i, one in enumerate(dropped):
        for other in dropped[:i]:
            table = np.histogram2d(one, other, bins=2)[0]
            assert stats.chi2_contingency(table).pvalue > UNLIKELY


def test_no_word_comes_twice_more_often_than_by_chance():
    """Under one key the words are a permutation of the numbers: not one comes twice."""
    found = words(KEYS[0]).ravel()
    assert len(np.unique(found)) == found.size


def test_the_words_are_the_same_on_one_and_on_eight_devices():
    mesh = sharding.make_mesh(config.Mesh(2, 2, 2))
    where = NamedSharding(mesh, PartitionSpec("model", ("data", "fsdp"), None, None))
    spread = jax.jit(lambda key: random_words(key, SHAPE), out_shardings=where)(KEYS[0])
    assert len({str(shard.index) for shard in spread.addressable_shards}) == 8
    assert np.array_equal(spread, words(KEYS[0]))


def test_kept_elements_are_scaled_and_the_share_is_the_one_asked_for():
    ones = np.ones(SHAPE, np.float32)
    for rate in (0.1, 0.5, 0.9):
        found = np.asarray(drop(ones, rate, KEYS[0]))
        assert set(np.unique(found)) == {np.float32(0), np.float32(1 / (1 - rate))}
        assert stats.binomtest(int((found == 0).sum()), found.size, rate).pvalue > UNLIKELY
