"""Attention against JAX's own, and what the fused kind needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t0jax.models.attention import attend_xla, segment_mask


@pytest.fixture(scope="module")
def arrays():
    rows, queries, keys, heads, width = 3, 6, 10, 2, 8
    shapes = [(rows, queries, heads, width), *[(rows, keys, heads, width)] * 2]
    shapes.append((1, heads, queries, keys))
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("biased", [True, False])
def test_plain_attention_and_its_gradients_are_those_of_jax(arrays, biased):
    segments = jnp.asarray(np.random.default_rng(0).integers(1, 3, (3, 10)))
    mask = segment_mask(segments[:, :6], segments)
    weights = jax.random.normal(jax.random.key(9), arrays[0].shape)

    def ours(q, k, v, bias):
        return jnp.sum(weights * attend_xla(q, k, v, bias if biased else None, mask))

    def theirs(q, k, v, bias):
        bias = bias if biased else None
        y = jax.nn.dot_product_attention(q, k, v, bias, mask, scale=1.0, implementation="xla")
        return jnp.sum(weights * y)

    found, expected = (jax.value_and_grad(f, argnums=(0, 1, 2, 3))(*arrays) for f in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
