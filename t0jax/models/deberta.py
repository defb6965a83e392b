"""DeBERTa-v3 with many heads: one encoder, a learned vector a task, and a bank of all tasks' output weights.

The encoder of https://arxiv.org/abs/2111.09543 as Hugging Face's DebertaV2 computes it (tests/test_deberta.py):
post-norm layers, biases everywhere, disentangled attention, exact gelu. The multitask parts are tasknet's: the task's
vector is added to the first token's embedding before its norm, and one pooler serves all heads.

Shapes: R rows, L length, D d_model, F d_ff, T tasks, N outputs of the widest sequence head, M of the widest token head.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t0jax import config as cfg
from t0jax.models.disentangled import DisentangledAttention, table_rows
from t0jax.models.heads import layout
from t0jax.models.layers import (
    Embedding,
    drop,
    einsum_float32,
    ones,
    parameter,
    project,
    run_layers,
    split_key,
    zeros,
)
from t0jax.sharding import constrain

ABSENT = -1e9
"""Logit of an output that a task does not have; finite, so that nothing made of it is NaN."""


class LayerNorm(nnx.Module):
    """Subtracts the mean, divides by the standard deviation, scales and shifts, in float32."""

    def __init__(self, config: cfg.Model, layers: int = 0):
        self.epsilon = config.layer_norm_epsilon
        self.scale = ones((config.d_model,), ("embed",), layers)
        self.bias = zeros((config.d_model,), ("embed",), layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], in the dtype of `x`."""
        x32 = x.astype(jnp.float32)  # [..., D]
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)  # [..., D]
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)  # [..., 1]
        y = centred * jax.lax.rsqrt(variance + self.epsilon)  # [..., D]
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) with the exact error function, element-wise; its derivative keeps `x` alone.

    In float32 inside, as torch computes it: in bfloat16 1 + erf(x) loses all of the left tail.
    """
    x32 = x.astype(jnp.float32)
    return (x32 * _phi(x32)).astype(x.dtype)


def _phi(x: jax.Array) -> jax.Array:
    """Share of a standard normal below `x`, float32."""
    return 0.5 * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    x32 = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * x32 * x32) * np.float32(np.sqrt(0.5 / np.pi))
    slope = _phi(x32) + x32 * density
    return ((cotangent.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Mlp(nnx.Module):
    """gelu(x wi + b) wo + b."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, layers: int):
        d, f = config.d_model, config.d_ff
        self.wi = parameter(rngs, (d, f), 0.02, ("embed", "mlp"), layers)
        self.wi_bias = zeros((f,), ("mlp",), layers)
        self.wo = parameter(rngs, (f, d), 0.02, ("mlp", "embed"), layers)
        self.wo_bias = zeros((d,), ("embed",), layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[R, L, D] -> [R, L, D]."""
        y = gelu(project(x, self.wi[...]) + self.wi_bias[...].astype(x.dtype))  # [R, L, F]
        y = constrain(y, "batch", "length", "mlp")
        return project(y, self.wo[...]) + self.wo_bias[...].astype(x.dtype)  # [R, L, D]


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and normed after."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, layers: int):
        self.rate = config.dropout_rate
        self.attention = DisentangledAttention(config, rngs, layers)
        self.attention_norm = LayerNorm(config, layers)
        self.mlp = Mlp(config, rngs, layers)
        self.mlp_norm = LayerNorm(config, layers)

    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None,
        relative: jax.Array,
        places: np.ndarray,
        visible: jax.Array,
    ) -> jax.Array:
        """[R, L, D] -> [R, L, D]; `key` is a layer's key data, the rest as `DisentangledAttention` takes it."""
        layer_key = None if key is None else jax.random.wrap_key_data(key)
        attention_key, *keys = split_key(layer_key, 3)
        y = self.attention(x, relative, places, visible, attention_key)  # [R, L, D]
        x = self.attention_norm(x + drop(y, self.rate, keys[0]))  # [R, L, D]
        x = self.mlp_norm(x + drop(self.mlp(x), self.rate, keys[1]))  # [R, L, D]
        return constrain(x, "batch", "length", "width")


class Relative(nnx.Module):
    """The embeddings of relative distances, one table for all layers."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        self.buckets, self.limit = config.position_buckets, config.max_relative_positions
        shape = (2 * config.position_buckets, config.d_model)
        self.embedding = parameter(rngs, shape, 0.02, ("relpos_buckets", "embed"))

    def __call__(self, length: int) -> tuple[jax.Array, np.ndarray]:
        """The rows that occur at `length`, [U, D] float32, and of every distance its row (see `table_rows`)."""
        first, size, places = table_rows(length, self.buckets, self.limit)
        return jax.lax.slice_in_dim(self.embedding[...], first, first + size), places


class Pooler(nnx.Module):
    """gelu(h_0 kernel + bias) of the first token's state."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        shape = (config.d_model, config.d_model)
        self.kernel = parameter(rngs, shape, 0.02, ("embed", "width"))
        self.bias = zeros((config.d_model,), ("width",))

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[R, L, D] -> [R, D]."""
        first = hidden[:, 0]  # [R, D]
        return gelu(project(first, self.kernel[...]) + self.bias[...].astype(first.dtype))


class HeadBank(nnx.Module):
    """The output weights of all tasks; `models.heads.layout` says which columns are whose."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        self.layout = nnx.static(layout(config.heads))
        d = config.d_model
        columns, biases, _ = self.layout.sequence
        if columns:
            self.sequence = parameter(rngs, (d, columns), 0.02, ("embed", "labels"))
            self.sequence_bias = zeros((biases,), ("labels",))
        columns, biases, _ = self.layout.tokens
        if columns:
            self.tokens = parameter(rngs, (d, columns), 0.02, ("embed", "labels"))
            self.tokens_bias = zeros((biases,), ("labels",))

    def of_rows(self, pooled: jax.Array, task_ids: jax.Array) -> jax.Array:
        """[R, D] -> float32 [R, N]: the outputs of each row's own task, `ABSENT` past its last."""
        widest = self.layout.sequence[2]
        return self._own(pooled, self.sequence, self.sequence_bias, task_ids, widest)

    def of_tokens(self, hidden: jax.Array, task_ids: jax.Array) -> jax.Array:
        """[R, L, D] -> float32 [R, L, M], as `of_rows`."""
        widest = self.layout.tokens[2]
        return self._own(hidden, self.tokens, self.tokens_bias, task_ids, widest)

    def _own(
        self, x: jax.Array, kernel: nnx.Param, bias: nnx.Param, task_ids: jax.Array, widest: int
    ) -> jax.Array:
        """The product with all columns, and of each row those of its task: one program whatever the tasks."""
        flat = x.reshape(-1, x.shape[-1])  # [R * L, D]
        every = einsum_float32("rd,dc->rc", flat, kernel[...].astype(x.dtype))  # [R * L, C]
        # With room at the end no window is ever moved back to fit.
        every = jnp.pad(every, ((0, 0), (0, widest))).reshape(*x.shape[:-1], -1)
        columns, biases, sizes = (
            jnp.asarray(table)[task_ids]
            for table in (self.layout.columns, self.layout.biases, self.layout.sizes)
        )  # [R] each
        own = jax.vmap(lambda y, at: jax.lax.dynamic_slice_in_dim(y, at, widest, axis=-1))
        room = jnp.pad(bias[...], (0, widest))  # [Cb + N]
        biases = own(jnp.broadcast_to(room, (len(x), *room.shape)), biases)  # [R, N]
        present = jnp.arange(widest) < sizes[:, None]  # [R, N]
        ends = (len(x), *[1] * (x.ndim - 2), widest)
        logits = own(every, columns) + biases.reshape(ends)  # [R, N] or [R, L, N]
        return jnp.where(present.reshape(ends), logits, ABSENT)


class MultitaskEncoder(nnx.Module):
    """The network; see `models.build` for its parameters as a plain tree."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config, rngs, 0.02)
        self.embedding_norm = LayerNorm(config)
        banks = layout(config.heads)
        if config.task_embedding and config.heads:
            self.task_embedding = zeros((len(config.heads), config.d_model), ("tasks", "embed"))
        self.relative = Relative(config, rngs)
        self.relative_norm = LayerNorm(config)
        self.layers = Block(config, rngs, config.num_layers)
        if banks.sequence[0]:
            self.pooler = Pooler(config, rngs)
        if config.heads:
            self.heads = HeadBank(config, rngs)

    def encode(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        task_ids: jax.Array | None = None,
        keep: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Reads the rows.

        Args:
            tokens: int32 [R, L].
            segment_ids: int32 [R, L]; 0 is padding, which no token sees. A row is one text or pair.
            task_ids: int32 [R], whose embedding to add; none is added without.
            keep: float or bool [R], 0 for rows that go without their task's embedding.
            key: of dropout; none without.

        Returns:
            [R, L, D] in the compute dtype; meaningless on padding.
        """
        ends_key, layers_key = split_key(key, 2)
        visible = segment_ids > 0  # [R, L]
        x = self.embedding(tokens)  # [R, L, D]
        if task_ids is not None and "task_embedding" in vars(self):
            x = x + self._task_vectors(task_ids, keep, x)
        x = self.embedding_norm(x) * visible[..., None].astype(x.dtype)  # [R, L, D]
        x = constrain(drop(x, self.config.dropout_rate, ends_key), "batch", "length", "width")
        rows, places = self.relative(tokens.shape[1])  # [U, D]
        relative = self.relative_norm(rows).astype(x.dtype)  # [U, D]
        keys = None
        if layers_key is not None:
            keys = jax.random.key_data(jax.random.split(layers_key, self.config.num_layers))
        return run_layers(self.layers, self.config, x, keys, relative, places, visible)

    def pool(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """What sequence heads read, [R, L, D] -> [R, D]; needs a sequence head."""
        return drop(self.pooler(hidden), self.config.dropout_rate, key)  # [R, D]

    def sequence_logits(self, pooled: jax.Array, task_ids: jax.Array) -> jax.Array:
        """[R, D] from `pool`, tasks [R] -> float32 [R, N], `ABSENT` past the outputs of a row's task.

        Of a row whose task has a token head they are another task's outputs, which nothing should read.
        """
        return self.heads.of_rows(pooled, task_ids)  # [R, N]

    def token_logits(
        self, hidden: jax.Array, task_ids: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[R, L, D] from `encode` -> float32 [R, L, M], as `sequence_logits`; needs a token head."""
        hidden = drop(hidden, self.config.dropout_rate, key)  # [R, L, D]
        return self.heads.of_tokens(hidden, task_ids)  # [R, L, M]

    def _task_vectors(self, task_ids: jax.Array, keep: jax.Array | None, x: jax.Array) -> jax.Array:
        """What is added to `x` [R, L, D]: of each row its task's vector, at the first token alone."""
        # Whole rows, as in `Embedding`.
        table = constrain(self.task_embedding[...], "tasks", "width")  # [T, D]
        vectors = constrain(table[task_ids].astype(x.dtype), "batch", "width")  # [R, D]
        if keep is not None:
            vectors = vectors * keep[:, None].astype(x.dtype)  # [R, D]
        return jnp.pad(vectors[:, None], ((0, 0), (0, x.shape[1] - 1), (0, 0)))  # [R, L, D]
