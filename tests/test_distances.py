"""Scores by relative distance: both ways to them beside the sum written out, in float64, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t0jax.models import distances


def operands(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States [2, 3, L, 4], a table [2, C, 4] and a cotangent [2, 3, L, L]."""
    random = np.random.default_rng(length)
    shapes = (2, 3, length, 4), (2, 2 * length - 1, 4), (2, 3, length, length)
    return tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


WAYS = {
    "diagonals": (distances.by_diagonals, distances.by_diagonals_transposed),
    "blocks": (distances.by_blocks, distances.by_blocks_transposed),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [1, 2, 5, 8, 9, 24, 27])
def test_scores_and_their_derivatives_are_those_of_the_sum(way, length, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 8)
    forward, transposed = WAYS[way]
    states, table, cotangent = operands(length)
    wide_states, wide_table, wide_cotangent = (
        x.astype(np.float64) for x in (states, table, cotangent)
    )
    own, other = np.indices((length, length))
    by_pair = wide_table[:, other - own + length - 1]  # [H, L, L, K], gathered
    expected = np.einsum("hbik,hijk->hbij", wide_states, by_pair)
    np.testing.assert_allclose(forward(states, table), expected, atol=1e-5)
    by_states, by_table = transposed(states, table, cotangent)
    np.testing.assert_allclose(
        by_states, np.einsum("hbij,hijk->hbik", wide_cotangent, by_pair), atol=1e-5
    )
    summed = np.zeros_like(wide_table)
    each = np.einsum("hbij,hbik->hijk", wide_cotangent, wide_states)
    np.add.at(summed, (slice(None), other - own + length - 1), each)
    np.testing.assert_allclose(by_table, summed, atol=2e-5)


@pytest.mark.parametrize("length", [130])
def test_bfloat16_rounds_each_product_once(length):
    states, table, _ = (jnp.asarray(x, jnp.bfloat16) for x in operands(length))
    exact = distances.by_diagonals(states, table)
    assert exact.dtype == jnp.float32
    assert np.array_equal(
        distances.by_blocks(states, table), exact.astype(jnp.bfloat16).astype(jnp.float32)
    )


def test_the_derivative_is_that_of_the_way_taken_here():
    states, table, cotangent = operands(12)
    scores, pull = jax.vjp(distances.distance_scores, states, table)
    assert np.array_equal(scores, distances.by_diagonals(states, table))
    for found, expected in zip(
        pull(jnp.asarray(cotangent)),
        distances.by_diagonals_transposed(states, table, cotangent),
        strict=True,
    ):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_diagonals_and_their_transpose(length):
    x = np.random.default_rng(0).normal(size=(3, length, 2 * length - 1))
    i, j = np.indices((length, length))
    assert np.array_equal(distances.diagonals(x), x[:, i, j - i + length - 1])
    y = np.random.default_rng(1).normal(size=(3, length, length)).astype(np.float32)
    spread = distances.from_diagonals(y)
    assert spread.shape == x.shape
    assert np.array_equal(distances.diagonals(spread), y)
    assert np.count_nonzero(spread) == y.size
