"""The parts of a network that are not attention: parameters, dropout, norm, embedding, feed-forward, stacks.

Shapes: B rows, L length, D d_model, F d_ff, V vocabulary. Parameters are float32; a product is
computed in the configured dtype. Every layer's parameters live in stacks with a leading `layers` axis.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t0jax import config as cfg
from t0jax.sharding import constrain

Noise = Sequence[jax.Array | None]
"""A block's dropout factors, one array for each thing it drops; all None without dropout."""


def parameter(
    rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float, axes: tuple[str, ...], layers: int = 0
) -> nnx.Param:
    """A float32 parameter drawn from N(0, stddev^2), with the logical name of each of its axes.

    With `layers` > 0 it is a stack of that many, along a leading `layers` axis.
    """
    if layers:
        shape, axes = (layers, *shape), ("layers", *axes)
    value = stddev * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, logical_axes=axes)


def ones(shape: tuple[int, ...], axes: tuple[str, ...], layers: int = 0) -> nnx.Param:
    """A float32 parameter of ones; `layers` as in `parameter`."""
    if layers:
        shape, axes = (layers, *shape), ("layers", *axes)
    return nnx.Param(jnp.ones(shape, jnp.float32), logical_axes=axes)


def zeros(shape: tuple[int, ...], axes: tuple[str, ...], layers: int = 0) -> nnx.Param:
    """A float32 parameter of zeros; `layers` as in `parameter`."""
    if layers:
        shape, axes = (layers, *shape), ("layers", *axes)
    return nnx.Param(jnp.zeros(shape, jnp.float32), logical_axes=axes)


def split_key(key: jax.Array | None, n: int) -> list[jax.Array | None]:
    """`n` keys from one; `n` times None (no dropout) from None."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def dropout_noise(
    key: jax.Array | None, rate: float, lead: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
) -> list[jax.Array | None]:
    """Factors for `dropout`: 0 with probability `rate`, else 1 / (1 - rate), one array [*lead, *size] a size.

    All are cut from a single draw: the random generator is a large part of a small network's compile
    time. None for each size without a key or with rate 0.
    """
    if key is None or rate == 0.0:
        return [None] * len(sizes)
    counts = [math.prod(size) for size in sizes]
    keep = jax.random.bernoulli(key, 1.0 - rate, (*lead, sum(counts))) / (1.0 - rate)
    parts = jnp.split(keep.astype(jnp.float32), np.cumsum(counts)[:-1], axis=-1)
    return [part.reshape(*lead, *size) for part, size in zip(parts, sizes, strict=True)]


def dropout(x: jax.Array, noise: jax.Array | None) -> jax.Array:
    """`x` [B, L, D] times `noise` [B, D] at every position; `x` itself without noise.

    A row's positions share their mask, as in Mesh-TensorFlow's T5 and t5x (`broadcast_dims=(-2,)`): T5 was
    trained that way, and the random numbers cost next to nothing.
    """
    return x if noise is None else x * noise[:, None].astype(x.dtype)


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """`x` with every element zeroed with probability `rate`, the others divided by 1 - rate; `x` without a key."""
    if key is None or rate == 0.0:
        return x
    kept = random_words(key, x.shape) >= np.uint32(round(rate * 2**32))
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Words for dropout of every element, uint32 [*shape]; the same however the array lies over devices.

    Each is a hash of its element's number and the key: the mixing of 32 bits by two shifted products that
    https://nullprogram.com/blog/2018/07/31/ found by search ("lowbias32"), twice, with half of the key before each.
    Good enough to drop by, not to draw weights with, and it fuses into what reads it. JAX's own generator that does
    not depend on the devices took a seventh of a DeBERTa training step on a CPU (`jax.random.bits`; 81 ms where these
    take 3, for 9.4 million elements), and its fast ones (`rbg`) are not the same on 1 and on 8 devices.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    number, step = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        number, step = number + place * np.uint32(step % 2**32), step * shape[axis]
    return _mixed(_mixed(number + first) ^ second)


def _mixed(x: jax.Array) -> jax.Array:
    """A permutation of the 32-bit words in which each bit of `x` turns about half of the others."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum` of two arrays of one dtype, accumulated and returned in float32.

    Its cotangent is cast back to the operands' dtype: JAX's own rule would multiply float32 by
    bfloat16 in the backward pass, which GPUs do many times slower than bfloat16 by bfloat16.
    """
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _einsum_forward(
    spec: str, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum_float32(spec, a, b), (a, b)


def _einsum_backward(
    spec: str, operands: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    _, vjp = jax.vjp(partial(jnp.einsum, spec), a, b)
    return vjp(cotangent.astype(a.dtype))


einsum_float32.defvjp(_einsum_forward, _einsum_backward)


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, L, I] times the float32 `kernel` [I, O] -> [B, L, O], in the dtype of `x`.

    Over flat rows: with two row axes XLA's CPU backend transposes the kernel gradient's operands.
    """
    rows = x.reshape(-1, x.shape[-1])  # [B * L, I]
    return (rows @ kernel.astype(x.dtype)).reshape(*x.shape[:-1], -1)  # [B, L, O]


class RMSNorm(nnx.Module):
    """Scales by the root mean square, in float32: no mean, no bias (T5 1.0's `simplified_layer_norm`)."""

    def __init__(self, config: cfg.Model, layers: int = 0):
        self.epsilon = config.layer_norm_epsilon
        self.scale = ones((config.d_model,), ("embed",), layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D], in the dtype of `x`."""
        x32 = x.astype(jnp.float32)  # [B, L, D]
        mean_square = jnp.mean(x32 * x32, axis=-1, keepdims=True)  # [B, L, 1]
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * self.scale[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """The token table; T5's, shared by encoder and decoder, is standard normal at the start (Mesh-TF, t5x, HF)."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, stddev: float = 1.0):
        self.dtype = jnp.dtype(config.dtype)
        shape = (config.vocab_size, config.d_model)
        self.embedding = parameter(rngs, shape, stddev, ("vocab", "embed"))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, L] int32 -> [B, L, D]."""
        # Whole rows, as `fsdp` gathers any weight: else XLA may cut the gradient of all rows another way, whole first.
        table = constrain(self.embedding[...], "vocab", "width")  # [V, D]
        rows = jnp.take(table, tokens, axis=0, mode="clip")  # [B, L, D]
        return constrain(rows.astype(self.dtype), "batch", "length", "width")


class FeedForward(nnx.Module):
    """relu(x wi) wo in T5 v1.0, (gelu(x wi_0) * x wi_1) wo in v1.1 (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, layers: int):
        self.gated = config.feed_forward_proj == "gated-gelu"
        d, f = config.d_model, config.d_ff
        make_wi = partial(parameter, rngs, (d, f), d**-0.5, ("embed", "mlp"), layers)
        if self.gated:
            self.wi_0, self.wi_1 = make_wi(), make_wi()
        else:
            self.wi = make_wi()
        self.wo = parameter(rngs, (f, d), f**-0.5, ("mlp", "embed"), layers)

    def __call__(self, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        """[B, L, D] -> [B, L, D]; `noise` [B, F] drops hidden features."""
        y = self._activate(x)  # [B, L, F]
        y = dropout(constrain(y, "batch", "length", "mlp"), noise)  # [B, L, F]
        return project(y, self.wo[...])  # [B, L, D]

    def _activate(self, x: jax.Array) -> jax.Array:
        if not self.gated:
            return jax.nn.relu(project(x, self.wi[...]))  # [B, L, F]
        gate = jax.nn.gelu(project(x, self.wi_0[...]), approximate=True)  # [B, L, F]
        return gate * project(x, self.wi_1[...])  # [B, L, F]


POLICIES: dict[str, Callable | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}
"""What the backward pass finds saved: results of weight products, or only each layer's input."""


def run_layers(
    block: nnx.Module, config: cfg.Model, x: jax.Array, noise: Any, *shared: jax.Array
) -> jax.Array:
    """Sends `x` [B, L, D] through the stacked layers of `block`, scanned or unrolled.

    `noise` (of dropout: `Noise`, or keys) has a leading layers axis too; what is `shared` goes to every layer.
    """
    graphdef, stacked = nnx.split(block, nnx.Param)

    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
        params, layer_noise = layer
        return nnx.merge(graphdef, params)(x, layer_noise, *shared), None

    if config.remat != "none":
        # Scan keeps a layer's recomputation apart by itself; an unrolled one has to be kept from merging.
        body = jax.checkpoint(
            body, policy=POLICIES[config.remat], prevent_cse=not config.scan_layers
        )
    return over_layers(body, x, (stacked, noise), config.scan_layers)[0]


def over_layers(body: Callable, x: jax.Array, layers: Any, scanned: bool) -> tuple[jax.Array, Any]:
    """`jax.lax.scan` of `body` over the leading axis of `layers`, or the same unrolled."""
    if scanned:
        return jax.lax.scan(body, x, layers)
    found = []
    for layer in unstack(layers):
        x, y = body(x, layer)
        found.append(y)
    return x, jax.tree.map(lambda *ys: jnp.stack(ys), *found)


def unstack(tree: Any) -> list[Any]:
    """A tree for each index of the leaves' first axis.

    By one split of each leaf, whose gradient is one concatenation; that of indexing would be a sum of arrays
    as large as the stack, one a layer.
    """
    leaves, treedef = jax.tree.flatten(tree)
    rows = [jax.lax.split(leaf, [1] * leaf.shape[0]) for leaf in leaves]
    return [
        treedef.unflatten([jnp.squeeze(row, 0) for row in layer])
        for layer in zip(*rows, strict=True)
    ]
