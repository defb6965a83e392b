"""Multi-head attention as T5 has it: unscaled dot products, one learned relative bias a stack, segment masks.

Shapes: B rows, T queries, S keys, H heads, K d_kv, D d_model. A token's segment id says which of the
examples packed in its row it belongs to; 0 is padding.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t0jax import config as cfg
from t0jax.models.layers import einsum_float32, parameter, project
from t0jax.sharding import constrain

MASKED = -1e30
"""Logit of a key that may not be seen; finite, so that a row without any visible key stays free of NaN."""


def segment_mask(queries: jax.Array, keys: jax.Array, *, causal: bool = False) -> jax.Array:
    """Which keys a query may see: those of its own segment and, if causal, not after it.

    Args:
        queries: segment ids [B, T].
        keys: segment ids [B, S].

    Returns:
        bool [B, 1, T, S]. Padding sees padding, which nothing reads.
    """
    mask = queries[:, :, None] == keys[:, None, :]  # [B, T, S]
    if causal:
        mask &= np.tri(queries.shape[1], keys.shape[1], dtype=bool)  # [T, S]
    return mask[:, None]  # [B, 1, T, S]


def relative_buckets(distance: np.ndarray, causal: bool, buckets: int, limit: int) -> np.ndarray:
    """T5's bucket of each `distance` (key position - query position), int32 of the same shape.

    Half of the buckets hold one small distance each, the other half grow logarithmically up to `limit`,
    where the last one takes the rest; without `causal`, keys after the query have buckets of their own.
    Float32 logarithms as in Mesh-TensorFlow and PyTorch: float64 would move some edges.
    """
    offset = np.zeros_like(distance)
    if causal:
        distance = np.maximum(-distance, 0)
    else:
        buckets //= 2
        offset = (distance > 0) * buckets
        distance = np.abs(distance)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    log_bucket = exact + (ratio / np.float32(math.log(limit / exact)) * (buckets - exact)).astype(
        int
    )
    bucket = np.where(distance < exact, distance, np.minimum(log_bucket, buckets - 1))
    return (offset + bucket).astype(np.int32)


class RelativeBias(nnx.Module):
    """A learned bias a bucket of relative distance and head, shared by all layers of a stack."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, *, causal: bool):
        self.causal = causal
        self.buckets = config.relative_attention_num_buckets
        self.limit = config.relative_attention_max_distance
        shape, stddev = (self.buckets, config.num_heads), config.d_model**-0.5
        self.embedding = parameter(rngs, shape, stddev, ("relpos_buckets", "heads"))

    def __call__(self, queries: int, keys: int) -> jax.Array:
        """The bias of every query and key position, [1, H, T, S] float32.

        It depends on the distance alone: one value for each of the T + S - 1 distances is looked up, and
        the rows of the [T, S] table are windows into them. Cutting these from a repeated line makes the
        gradient a sum instead of a scatter of T * S rows.
        """
        return windows(self._line(queries, keys), queries, keys)[None]  # [1, H, T, S]

    def row(self, position: jax.Array, keys: int) -> jax.Array:
        """The bias of the query at `position` (a scalar below `keys`) alone, [1, H, 1, S]."""
        line = self._line(keys, keys)  # [H, 2 S - 1]
        start = keys - 1 - position
        return jax.lax.dynamic_slice_in_dim(line, start, keys, axis=1)[None, :, None]

    def _line(self, queries: int, keys: int) -> jax.Array:
        """The bias of every distance from 1 - `queries` to `keys` - 1."""
        distances = np.arange(1 - queries, keys)  # [T + S - 1]
        bucket = relative_buckets(distances, self.causal, self.buckets, self.limit)
        one_hot = np.eye(self.buckets, dtype=np.float32)[bucket]  # [T + S - 1, buckets]
        return jnp.dot(one_hot, self.embedding[...], precision="highest").T  # [H, T + S - 1]


def windows(line: jax.Array, queries: int, keys: int) -> jax.Array:
    """Row i of the result is `line[:, T - 1 - i : T - 1 - i + S]`: [H, T + S - 1] -> [H, T, S]."""
    heads, length = line.shape
    repeated = jnp.tile(jnp.pad(line, ((0, 0), (0, 1))), (1, queries))  # [H, T * (T + S)]
    cut = repeated[:, queries - 1 : queries - 1 + queries * length]  # [H, T * (T + S - 1)]
    # Rows one shorter than the period drift back by one position each: that is the diagonal.
    return cut.reshape(heads, queries, length)[:, :, :keys]  # [H, T, S]


class KeysValues(NamedTuple):
    """What decoding keeps of the positions it has read, [..., B, H, S, K] each.

    Heads come before positions: the products of a query or a few then need no transposed copy.
    """

    keys: jax.Array
    values: jax.Array


class Attention(nnx.Module):
    """Projections of queries, keys and values, attention, output projection."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, layers: int):
        self.heads, self.kind = config.num_heads, config.attention
        d, hk = config.d_model, config.num_heads * config.d_kv
        # The missing 1 / sqrt(d_kv) of the dot product is in the query's initial scale (Mesh-TF, t5x, HF).
        query_stddev = (d * config.d_kv) ** -0.5
        self.query = parameter(rngs, (d, hk), query_stddev, ("embed", "heads"), layers)
        self.key = parameter(rngs, (d, hk), d**-0.5, ("embed", "heads"), layers)
        self.value = parameter(rngs, (d, hk), d**-0.5, ("embed", "heads"), layers)
        self.out = parameter(rngs, (hk, d), hk**-0.5, ("heads", "embed"), layers)

    def __call__(
        self,
        x: jax.Array,
        source: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array,
        noise: jax.Array | None,
    ) -> jax.Array:
        """Queries from `x` [B, T, D], keys and values from `source` [B, S, D] -> [B, T, D].

        Args:
            bias: added to the logits, [1, H, T, S] float32 or None.
            mask: True where a query may see a key, [B, 1, T, S].
            noise: [B, S, H] drops attention weights. T5 drops a key for all queries of a row at once
                (`dropout`), which is the same as dropping its value.
        """
        q, k, v = (
            self._heads(y, w[...])
            for y, w in ((x, self.query), (source, self.key), (source, self.value))
        )  # [B, T, H, K], [B, S, H, K] twice
        if noise is not None:
            v = v * noise[..., None].astype(v.dtype)  # [B, S, H, K]
        y = ATTENTION[self.kind](q, k, v, bias, mask)  # [B, T, H, K]
        y = constrain(y.reshape(*x.shape[:2], -1), "batch", "length", "heads")  # [B, T, H * K]
        return project(y, self.out[...])  # [B, T, D]

    def keys_values(self, source: jax.Array) -> KeysValues:
        """Keys and values of `source` [B, S, D], to be kept: [B, H, S, K]."""
        kept = (self._heads(source, w[...]).swapaxes(1, 2) for w in (self.key, self.value))
        return KeysValues(*(constrain(y, "batch", "heads", "length", None) for y in kept))

    def recall(
        self, x: jax.Array, kept: KeysValues, bias: jax.Array | None, mask: jax.Array
    ) -> jax.Array:
        """`__call__` with keys and values that are there already: `x` [B, T, D] -> [B, T, D].

        In plain XLA whatever `model.attention`: with a query or a few there is nothing to fuse.
        """
        q = self._heads(x, self.query[...]).swapaxes(1, 2)  # [B, H, T, K]
        y = attend_kept(q, kept, bias, mask).swapaxes(1, 2)  # [B, T, H, K]
        y = constrain(y.reshape(*x.shape[:2], -1), "batch", "length", "heads")  # [B, T, H * K]
        return project(y, self.out[...])  # [B, T, D]

    def _heads(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = project(x, kernel).reshape(*x.shape[:2], self.heads, -1)  # [B, L, H, K]
        return constrain(y, "batch", "length", "heads", None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def over_rows(bias: jax.Array, rows: int) -> jax.Array:
    """The same bias for every row, [1, H, T, S] -> [B, H, T, S], with a gradient that is fast on a CPU."""
    return jnp.broadcast_to(bias, (rows, *bias.shape[1:]))


def _over_rows_forward(bias: jax.Array, rows: int) -> tuple[jax.Array, None]:
    return over_rows(bias, rows), None


def _over_rows_backward(rows: int, _: None, grad: jax.Array) -> tuple[jax.Array]:
    if jax.default_backend() != "cpu":
        return (grad.sum(axis=0, keepdims=True),)
    # XLA's CPU backend sums over a leading axis at a fraction of the speed of its matrix products
    # (scripts/bench train: attention's backward pass takes half the time).
    ones = jnp.ones((1, rows), grad.dtype)
    return (jnp.einsum("ob,bhts->ohts", ones, grad, precision="highest"),)


over_rows.defvjp(_over_rows_forward, _over_rows_backward)


def attend_xla(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array
) -> jax.Array:
    """Attention in plain XLA, softmax in float32: q [B, T, H, K], k and v [B, S, H, K] -> [B, T, H, K]."""
    logits = einsum_float32("bthk,bshk->bhts", q, k)  # [B, H, T, S]
    if bias is not None:
        logits += over_rows(bias, q.shape[0])  # [B, H, T, S]
    weights = _weights(logits, mask)  # [B, H, T, S]
    # Dividing the sum of values by the sum of weights, not each weight, saves passes over [B, H, T, S].
    total = jnp.einsum("bhts->bth", weights)[..., None]  # [B, T, H, 1]
    summed = einsum_float32("bhts,bshk->bthk", weights.astype(v.dtype), v)  # [B, T, H, K]
    return (summed / total).astype(v.dtype)  # [B, T, H, K]


def _weights(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention weights before they are divided by their sum, [B, H, T, S]."""
    logits = jnp.where(mask, logits, MASKED)  # [B, H, T, S]
    peak = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))  # [B, H, T, 1]
    return jnp.exp(logits - peak)  # [B, H, T, S]


def attend_kept(
    q: jax.Array, kept: KeysValues, bias: jax.Array | None, mask: jax.Array
) -> jax.Array:
    """`attend_xla` with heads before positions: q [B, H, T, K], kept [B, H, S, K] -> [B, H, T, K]."""
    logits = einsum_float32("bhtk,bhsk->bhts", q, kept.keys)  # [B, H, T, S]
    if bias is not None:
        logits += bias  # [B, H, T, S]
    weights = _weights(logits, mask)  # [B, H, T, S]
    total = weights.sum(axis=-1, keepdims=True)  # [B, H, T, 1]
    summed = einsum_float32("bhts,bhsk->bhtk", weights.astype(q.dtype), kept.values)
    return (summed / total).astype(q.dtype)  # [B, H, T, K]


def attend_cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array
) -> jax.Array:
    """cuDNN's fused attention, arguments as in `attend_xla`.

    Raises:
        ConfigError: without an NVIDIA GPU, with float32 activations, or with odd lengths, whose bias gradient
            cuDNN lacks.
    """
    platform, lengths = jax.default_backend(), (q.shape[1], k.shape[1])
    if platform != "gpu" or q.dtype != jnp.bfloat16 or any(length % 2 for length in lengths):
        raise cfg.ConfigError(
            "model.attention 'cudnn' needs an NVIDIA GPU, model.dtype 'bfloat16' and even lengths, not "
            f"{platform!r}, {q.dtype.name!r} and {lengths}; set model.attention to 'xla'"
        )
    # A mask alone is refused when it has broadcast axes (https://github.com/jax-ml/jax/issues/28974), so it
    # goes in as a full additive bias, which is what cuDNN makes of it anyway.
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    added = jnp.where(mask, 0.0 if bias is None else bias, -1e9).astype(q.dtype)
    added = jnp.broadcast_to(added, shape)  # [B, H, T, S]
    return jax.nn.dot_product_attention(q, k, v, bias=added, scale=1.0, implementation="cudnn")


ATTENTION = {"xla": attend_xla, "cudnn": attend_cudnn}
