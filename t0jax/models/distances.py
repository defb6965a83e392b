"""Products of every position with an embedding of its distance to every other, without a gather.

Two ways to the same numbers. A product with all 2 L - 1 distances, read along its diagonals, is best where memory is
flat (CPUs, GPUs). A TPU keeps arrays in tiles of 8 x 128, and shifting each row by its own number of places there is
all copies: by its compiler's word they take 25 times as long as the rest of the attention at L = 512. So there the
shift is one more product, with zeros and ones, and the attention six times faster (figures in the README, under plan).
That product grows with the cube of L: the longer the rows, the smaller the gain.

Shapes: H heads, B rows, L length, K d_kv, C = 2 L - 1 distances, T positions of a block.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from t0jax.models.layers import einsum_float32

BLOCK = 128
"""Positions that share one pattern of shifts: a TPU's tile and the width of its matrix units."""


@jax.custom_vjp
def distance_scores(states: jax.Array, table: jax.Array) -> jax.Array:
    """Products of each position with the embedding of its distance to every other, float32.

    Args:
        states: [H, B, L, K].
        table: [H, C, K], column c for other position - own position = c - L + 1.

    Returns:
        [H, B, L, L], own position first. On TPUs the products are rounded to the dtype of `states`, as torch's are.
    """
    return jax.lax.platform_dependent(states, table, tpu=by_blocks, default=by_diagonals)


def _forward(states: jax.Array, table: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return distance_scores(states, table), (states, table)


def _backward(
    operands: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    states, table = operands
    return jax.lax.platform_dependent(
        states,
        table,
        cotangent.astype(states.dtype),
        tpu=by_blocks_transposed,
        default=by_diagonals_transposed,
    )


distance_scores.defvjp(_forward, _backward)


# ---------------------------------------------------------------------------------------------------------------------
# Along diagonals


def diagonals(x: jax.Array) -> jax.Array:
    """[..., L, C] -> [..., L, L]: entry (i, j) is `x[..., i, j - i + L - 1]`.

    In flat memory the next row begins one place later than the diagonal wants, so rows cut one shorter follow it.
    """
    *lead, length, width = x.shape
    flat = x.reshape(*lead, length * width)  # [..., L * C]
    cut = flat[..., length - 1 : length - 1 + length * (width - 1)]  # [..., L * (C - 1)]
    return cut.reshape(*lead, length, width - 1)[..., :length] if length > 1 else x  # [..., L, L]


def from_diagonals(x: jax.Array) -> jax.Array:
    """The transpose of `diagonals`: [..., L, L] -> [..., L, C] with zeros where it does not read.

    Padded first and then cut: a fused chain of pads divides by a row's length at every element.
    """
    *lead, length, _ = x.shape
    sides, width = length - 1, 2 * length - 1
    wide = jnp.pad(x, [*[(0, 0)] * len(lead), (0, 1), (sides, sides)])  # [..., L + 1, C + L - 1]
    flat = wide.reshape(*lead, -1)[..., : length * (width + length)]  # [..., L * (C + L)]
    return flat.reshape(*lead, length, width + length)[..., :width]  # [..., L, C]


def by_diagonals(states: jax.Array, table: jax.Array) -> jax.Array:
    """`distance_scores` where memory is flat."""
    return diagonals(einsum_float32("hbik,hck->hbic", states, table))


def by_diagonals_transposed(
    states: jax.Array, table: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Derivatives by `states` and `table` for a `cotangent` [H, B, L, L] in their dtype.

    They are JAX's own but for one thing: the table's is a product with `states`, and not with the C / K times larger
    diagonals, turned (scripts.bench multitask: those copies took a tenth of a training step on a CPU).
    """
    by_distance = from_diagonals(cotangent)  # [H, B, L, C]
    by_states = jnp.einsum("hbic,hck->hbik", by_distance, table)  # [H, B, L, K]
    by_table = jnp.einsum("hbik,hbic->hkc", states, by_distance)  # [H, K, C]
    return by_states, by_table.swapaxes(1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# By products with zeros and ones


def by_blocks(states: jax.Array, table: jax.Array) -> jax.Array:
    """`distance_scores` for a TPU.

    A block of T positions meets L + T - 1 distances, its window of the table. Position t of it finds the one to j in
    column j - t + T - 1 of its products with the window: a product with T matrices of zeros and ones, the same for
    all blocks, puts it there. Each output has one term, so that nothing is rounded a second time.
    """
    rows = []
    for block, window in _blocks(states, table):
        by_distance = jnp.einsum("hbtk,hwk->thbw", block, window)  # [T, H, B, W]
        shift = _shifts(block, window)  # [T, W, L]
        rows.append(jnp.einsum("thbw,twj->hbtj", by_distance, shift, precision=_exact(shift)))
    return jnp.concatenate(rows, axis=2).astype(jnp.float32)


def by_blocks_transposed(
    states: jax.Array, table: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `by_diagonals_transposed`."""
    by_states, by_table, begin = [], jnp.zeros(table.shape, jnp.float32), 0
    for block, window in _blocks(states, table):
        count, first = block.shape[2], states.shape[2] - begin - block.shape[2]
        part = cotangent[:, :, begin : begin + count]  # [H, B, T, L]
        shift = _shifts(block, window)  # [T, W, L]
        by_distance = jnp.einsum("hbtj,twj->thbw", part, shift, precision=_exact(shift))
        by_states.append(jnp.einsum("thbw,hwk->hbtk", by_distance, window))  # [H, B, T, K]
        by_window = einsum_float32("thbw,hbtk->hwk", by_distance, block)  # [H, W, K]
        by_table = by_table.at[:, first : first + window.shape[1]].add(by_window)
        begin += count
    return jnp.concatenate(by_states, axis=2), by_table.astype(table.dtype)


def _blocks(states: jax.Array, table: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Blocks of positions [H, B, T, K] and for each the distances that it meets, [H, W, K] with W = L + T - 1."""
    length = states.shape[2]
    for begin in range(0, length, BLOCK):
        end = min(begin + BLOCK, length)
        yield states[:, :, begin:end], table[:, length - end : 2 * length - 1 - begin]


def _shifts(block: jax.Array, window: jax.Array) -> jax.Array:
    """Ones where w = j - t + T - 1, [T, W, L] in the dtype of `block`."""
    count, width = block.shape[2], window.shape[1]
    shape = (count, width, width - count + 1)
    t, w, j = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(3))
    return (w == j - t + count - 1).astype(block.dtype)


def _exact(x: jax.Array) -> jax.lax.Precision | None:
    """What keeps a product with ones from rounding: a TPU multiplies float32 as bfloat16 unless told otherwise."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
