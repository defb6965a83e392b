"""Losses on logits: pure float32 functions of arrays, without a model or a batch."""

import jax
import jax.numpy as jnp


def token_nll(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each target token, in nats.

    Args:
      logits: [..., V] of any float type; computed in float32.
      targets: [...] integer ids below V.

    Returns:
      `nll` [...] and `log_z` [...] = logsumexp of the logits (what z-loss squares), both float32.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - chosen, log_z


def z_penalty(log_z: jax.Array) -> jax.Array:
    """log(Z)^2, which holds the softmax normaliser near 1 (Mesh-TensorFlow). [...] -> [...]."""
    return jnp.square(log_z)


def top_token_hits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """1.0 where the target has the highest logit, else 0.0. [..., V], [...] -> [...] float32."""
    return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)


def segment_sums(values: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """Sum of `values` over each segment of packed rows.

    Args:
      values: [B, T] float.
      segment_ids: [B, T] int; 0 is padding, ids above `num_segments` are left out.
      num_segments: how many segments to sum.

    Returns:
      [B, num_segments] float32; segment k + 1 is in column k, an absent segment gives 0.
    """
    columns = jnp.arange(1, num_segments + 1)
    member = segment_ids[:, None, :] == columns[None, :, None]
    # Not a matrix product: those may run in TF32 or bfloat16 passes on accelerators.
    return jnp.sum(jnp.where(member, values.astype(jnp.float32)[:, None, :], 0.0), axis=-1)


def example_mean_weights(weights: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Token weights rescaled to sum to 1 over each segment, so that every example counts the same.

    Args:
      weights: [B, T] float, not negative.
      segment_ids: [B, T] int, 0 on padding.

    Returns:
      [B, T] float32; a segment whose weights are all 0 (and padding) stays 0.
    """
    weights = jnp.where(segment_ids > 0, weights, 0.0).astype(jnp.float32)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    total = jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=-1)
    return weights / jnp.where(total > 0, total, 1.0)
