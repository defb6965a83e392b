"""DeBERTa's attention: content with content, and content with relative distance in both directions.

With Q, K the projected states and PQ, PK the same projections of the embedding of the bucket that i - j is in,

    score[i, j] = (Q_i . K_j + Q_i . PK[i - j] + K_j . PQ[i - j]) / sqrt(3 K)

(https://arxiv.org/abs/2006.03654, as DeBERTa-v3 has it: `pos_att_type` c2p|p2c, shared keys, log buckets). Nothing
is gathered by position (`models.distances`).

Shapes: B rows, L length, D d_model, H heads, K d_kv, U rows of the relative table, C = 2 L - 1 distances.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t0jax import config as cfg
from t0jax.models.attention import MASKED
from t0jax.models.distances import distance_scores
from t0jax.models.layers import drop, einsum_float32, parameter, project, split_key, zeros
from t0jax.sharding import constrain


def log_buckets(distance: np.ndarray, buckets: int, limit: int) -> np.ndarray:
    """Row of the relative table for each `distance` (query position - key position), int32 of the same shape.

    Up to half of `buckets` every distance has a row of its own; beyond, rows grow logarithmically until `limit` - 1
    (DeBERTa's `make_log_bucket_position`). The table has 2 * `buckets` rows, the middle one for distance 0.
    """
    half = buckets // 2
    size = np.maximum(np.abs(distance), half).astype(np.float32)
    ratio = np.log(size / np.float32(half)) / np.float32(math.log((limit - 1) / half))
    far = np.sign(distance) * (np.ceil(ratio * np.float32(half - 1)) + half)
    bucket = np.where(np.abs(distance) <= half, distance, far)
    return np.clip(bucket + buckets, 0, 2 * buckets - 1).astype(np.int32)


def table_rows(length: int, buckets: int, limit: int) -> tuple[int, int, np.ndarray]:
    """Which rows of the relative table rows of `length` need, and where each distance's row is among them.

    Returns:
        The first row and the number of rows, and int32 [C]: of the distances L - 1, ..., 0, ..., 1 - L their row,
        counted from the first.
    """
    rows = log_buckets(np.arange(length - 1, -length, -1), buckets, limit)  # [C]
    first = int(rows.min())
    return first, int(rows.max()) - first + 1, rows - first


class DisentangledAttention(nnx.Module):
    """Projections with biases, attention over content and distance, output projection."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, layers: int):
        self.heads, self.rate = config.num_heads, config.dropout_rate
        shape, inward = (config.d_model, config.d_model), ("embed", "heads")
        self.query = parameter(rngs, shape, 0.02, inward, layers)
        self.key = parameter(rngs, shape, 0.02, inward, layers)
        self.value = parameter(rngs, shape, 0.02, inward, layers)
        self.out = parameter(rngs, shape, 0.02, ("heads", "embed"), layers)
        self.query_bias = zeros((config.d_model,), ("heads",), layers)
        self.key_bias = zeros((config.d_model,), ("heads",), layers)
        self.value_bias = zeros((config.d_model,), ("heads",), layers)
        self.out_bias = zeros((config.d_model,), ("embed",), layers)

    def __call__(
        self,
        x: jax.Array,
        relative: jax.Array,
        places: np.ndarray,
        visible: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D].

        Args:
            relative: the rows of the relative table that occur, [U, D].
            places: int [C], of the distances L - 1, ..., 1 - L their row in `relative`.
            visible: bool [B, L], False on padding.
            key: of dropout on `relative` and on the attention weights; none without.
        """
        relative_key, weights_key = split_key(key, 2)
        relative = drop(relative, self.rate, relative_key)[None]  # [1, U, D]
        scale = (3 * x.shape[-1] // self.heads) ** -0.5
        q = self._split(x, self.query, self.query_bias) * jnp.asarray(scale, x.dtype)
        k = self._split(x, self.key, self.key_bias)  # [H, B, L, K], as q and v
        v = self._split(x, self.value, self.value_bias)
        pk = self._split(relative, self.key, self.key_bias)[:, 0][:, places]  # [H, C, K]
        pq = self._split(relative, self.query, self.query_bias)[:, 0][:, places[::-1]]
        pq = pq * jnp.asarray(scale, x.dtype)  # [H, C, K], for distances 1 - L, ..., L - 1
        scores = einsum_float32("hbik,hbjk->hbij", q, k)  # [H, B, L, L]
        scores += distance_scores(q, pk) + distance_scores(k, pq).swapaxes(-1, -2)
        y = self._mix(scores, v, visible, weights_key)  # [H, B, L, K]
        y = y.transpose(1, 2, 0, 3).reshape(x.shape)  # [B, L, D]
        y = constrain(y, "batch", "length", "heads")
        return project(y, self.out[...]) + self.out_bias[...].astype(x.dtype)  # [B, L, D]

    def _split(self, x: jax.Array, kernel: nnx.Param, bias: nnx.Param) -> jax.Array:
        """[B, L, D] -> its projection with heads first, [H, B, L, K]."""
        y = project(x, kernel[...]) + bias[...].astype(x.dtype)  # [B, L, D]
        y = y.reshape(*x.shape[:2], self.heads, -1).transpose(2, 0, 1, 3)  # [H, B, L, K]
        return constrain(y, "heads", "batch" if len(x) > 1 else None, "length", None)

    def _mix(
        self, scores: jax.Array, v: jax.Array, visible: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Values [H, B, L, K] weighted by the softmax of scores [H, B, L, L] in float32."""
        scores = jnp.where(visible[None, :, None, :], scores, MASKED)  # [H, B, L, L]
        peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))  # [H, B, L, 1]
        weights = jnp.exp(scores - peak)  # [H, B, L, L]
        # Dividing the sum of values by the sum of weights, not each weight, saves passes over [H, B, L, L].
        total = weights.sum(axis=-1, keepdims=True)  # [H, B, L, 1]
        weights = drop(weights, self.rate, key).astype(v.dtype)  # [H, B, L, L]
        summed = einsum_float32("hbij,hbjk->hbik", weights, v)  # [H, B, L, K]
        return (summed / total).astype(v.dtype)
