"""Maximum likelihood of targets given inputs on packed rows, and scores for rank classification."""

from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from t0jax.models import Network, Params
from t0jax.objectives import losses

Normalization = Literal["tokens", "constant", "examples"]


def loss_sums(
    network: Network,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    *,
    z_loss: float = 0.0,
    normalization: Normalization = "tokens",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Summed loss of a (micro-)batch and the sum it is to be divided by.

    Both are sums, so micro-batches of unequal content accumulate exactly: add the gradients of
    the first value and the `normalizer`s, then divide once.

    Args:
      network: the architecture `params` belong to.
      params: its float32 parameters.
      batch: packed rows under the names of seqio's EncDecFeatureConverter, [B, S] and [B, T].
      key: for dropout; None trains without.
      z_loss: weight of log(Z)^2 a token.
      normalization: `tokens` divides by the summed loss weights; `constant` by B * T whatever they
        hold (Mesh-TensorFlow's loss denominator); `examples` averages over each segment's tokens,
        then over segments.

    Returns:
      The float32 scalar to differentiate, and float32 scalar sums: `normalizer`, `nll`, `z_loss`
      (squared log Z over tokens, before `z_loss`), `target_tokens`, `correct`, `examples`.

    Raises:
      ValueError: `normalization` is none of the three.
    """
    targets = batch["decoder_target_tokens"]
    logits = network.bind(params)(batch, key=key)  # [B,T,V]
    nll, log_z = losses.token_nll(logits, targets)  # [B,T] each
    weights = batch["decoder_loss_weights"].astype(jnp.float32)  # [B,T]
    share, normalizer = _normalized(weights, batch["decoder_segment_ids"], normalization)
    penalty = losses.z_penalty(log_z)
    aux = {
        "normalizer": normalizer,
        "nll": jnp.sum(weights * nll),
        "z_loss": jnp.sum(weights * penalty),
        "target_tokens": jnp.sum(weights),
        "correct": jnp.sum(weights * losses.top_token_hits(logits, targets)),
        "examples": _count_segments(batch["decoder_segment_ids"]),
    }
    token_loss = nll + z_loss * penalty if z_loss else nll
    return jnp.sum(share * token_loss), jax.lax.stop_gradient(aux)


def _normalized(
    weights: jax.Array, segment_ids: jax.Array, normalization: Normalization
) -> tuple[jax.Array, jax.Array]:
    """Per-token weights [B, T] of the summed loss, and its normaliser."""
    if normalization == "tokens":
        return weights, jnp.sum(weights)
    if normalization == "constant":
        return weights, jnp.float32(weights.size)
    if normalization == "examples":
        share = losses.example_mean_weights(weights, segment_ids)
        return share, jnp.sum(share)
    choices = ", ".join(get_args(Normalization))
    raise ValueError(f"unknown loss normalization {normalization!r}; it is one of {choices}")


def _count_segments(segment_ids: jax.Array) -> jax.Array:
    """Examples in packed rows [B, T]: places where a new segment starts."""
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    return jnp.sum((segment_ids != before) & (segment_ids > 0), dtype=jnp.float32)


def rank_sums(
    network: Network, params: Params, batch: Mapping[str, jax.Array], num_segments: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each choice of each row.

    An encoder row holds one input; the choices lie side by side as segments 1..K of the decoder row
    and all read the whole input.

    Args:
      network: the architecture `params` belong to.
      params: its float32 parameters.
      batch: as in `loss_sums`; `decoder_loss_weights` says which target tokens count.
      num_segments: the largest K.

    Returns:
      `log_prob_sums` [B, num_segments] in nats and `lengths` [B, num_segments], the tokens
      counted, float32; segment k + 1 is in column k, an absent one has length 0.
    """
    model = network.bind(params)
    segments = batch["decoder_segment_ids"]  # [B,T]
    input_segments = batch["encoder_segment_ids"]  # [B,S]
    encoded = model.encode(batch["encoder_input_tokens"], input_segments)  # [B,S,D]
    hidden = model.decode(
        encoded,
        input_segments,
        batch["decoder_input_tokens"],
        segments,
        cross_segment_ids=(segments > 0).astype(segments.dtype),
    )  # [B,T,D]
    nll, _ = losses.token_nll(model.logits(hidden), batch["decoder_target_tokens"])  # [B,T]
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    sums = losses.segment_sums(-nll * weights, segments, num_segments)
    return sums, losses.segment_sums(weights, segments, num_segments)
