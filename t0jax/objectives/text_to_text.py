"""Likelihood (and unlikelihood) of targets given inputs on packed rows, and scores for rank classification."""

from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from t0jax.config import Config
from t0jax.models import Network, Params
from t0jax.objectives import Objective, Sums, losses

Normalization = Literal["tokens", "constant", "examples"]


def objective(config: Config, network: Network, step: jax.Array | int) -> Objective:
    """`loss_sums` as `config.train` sets it."""

    def loss(params, batch, key):
        return loss_sums(
            network,
            params,
            batch,
            key if config.model.dropout_rate else None,
            z_loss=config.train.z_loss,
            normalization=config.train.loss_normalization,
            ul_weight=_ul_weight(config, step),
            ul_eps=config.train.ul_eps,
        )

    return loss


def _ul_weight(config: Config, step: jax.Array | int) -> jax.Array | float:
    """`train.ul_weight`, reached in equal steps at step `ul_ramp_steps - 1`; steps count from 0."""
    weight, ramp = config.train.ul_weight, config.train.ul_ramp_steps
    return weight * jnp.minimum(1.0, (step + 1) / ramp) if ramp > 0 else weight


def report(sums: Sums) -> Sums:
    """Means a target token of right segments, and of wrong ones where there are any; numbers of both."""
    tokens = jnp.maximum(sums["target_tokens"], 1.0)
    told = {
        "nll": sums["nll"] / tokens,
        "accuracy": sums["correct"] / tokens,
        "target_tokens": sums["target_tokens"],
        "examples": sums["examples"],
    }
    if "unlikelihood" in sums:
        told["ul"] = sums["unlikelihood"] / jnp.maximum(sums["wrong_tokens"], 1e-9)
    return told


def loss_sums(
    network: Network,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    *,
    z_loss: float = 0.0,
    normalization: Normalization = "tokens",
    ul_weight: jax.Array | float = 3.0,
    ul_eps: float = 0.01,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Summed loss of a (micro-)batch and the sum it is to be divided by.

        sum(w_l * NLL) + ul_weight * sum(w_u * UL)

    over right targets (w_l, `decoder_loss_weights`) and, where the batch has `decoder_unlikelihood_weights`, over
    targets given a wrong choice (w_u), which share rows and forward pass. With one wrong choice an example, weight 3,
    eps 0.01 and `examples` it is the loss of FLIPPED (https://arxiv.org/abs/2210.02969).

    Loss and normalizer are sums, so micro-batches of unequal content accumulate exactly: add the gradients of
    the first value and the `normalizer`s, then divide once.

    Args:
      network: the architecture `params` belong to.
      params: its float32 parameters.
      batch: packed rows under the names of seqio's EncDecFeatureConverter, [B, S] and [B, T]. A wrong segment has
        no loss weight and an unlikelihood weight on every target token.
      key: for dropout; None trains without.
      z_loss: weight of log(Z)^2 a token of right segments.
      normalization: `tokens` divides by the summed loss weights; `constant` by B * T whatever they
        hold (Mesh-TensorFlow's loss denominator); `examples` averages over each segment's tokens,
        then over right segments (w_u then weighs each wrong segment's mean).
      ul_weight: of the unlikelihood; may be traced.
      ul_eps: see `losses.unlikelihood`.

    Returns:
      The float32 scalar to differentiate, and float32 scalar sums over right segments: `normalizer`, `nll`, `z_loss`
      (squared log Z over tokens, before `z_loss`), `target_tokens`, `correct`, `examples`. With unlikelihood weights
      also `unlikelihood` (weighted by w_u, before `ul_weight`) and `wrong_tokens` (the sum of w_u).

    Raises:
      ValueError: `normalization` is none of the three.
    """
    targets, segments = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
    logits = network.bind(params)(batch, key=key)  # [B,T,V]
    margin, log_z, hits = losses.target_margins(logits, targets)  # [B,T] each
    weights = batch["decoder_loss_weights"].astype(jnp.float32)  # [B,T]
    share, normalizer = _normalized(weights, segments, normalization)
    nll, penalty = losses.negative_log_likelihood(margin), losses.z_penalty(log_z)
    loss = _weighted_sum(share, nll + z_loss * penalty if z_loss else nll)
    aux = {
        "normalizer": normalizer,
        "nll": _weighted_sum(weights, nll),
        "z_loss": _weighted_sum(weights, penalty),
        "target_tokens": jnp.sum(weights),
        "correct": _weighted_sum(weights, hits),
    }
    if "decoder_unlikelihood_weights" in batch:
        wrong = batch["decoder_unlikelihood_weights"].astype(jnp.float32)  # [B,T]
        unlikelihood = losses.unlikelihood(margin, ul_eps)  # [B,T]
        means = normalization == "examples"
        share = wrong * losses.example_mean_weights(wrong > 0, segments) if means else wrong
        loss += ul_weight * _weighted_sum(share, unlikelihood)
        aux["unlikelihood"] = _weighted_sum(wrong, unlikelihood)
        aux["wrong_tokens"] = jnp.sum(wrong)
        segments = jnp.where(wrong > 0, 0, segments)
    aux["examples"] = _count_segments(segments)
    return loss, jax.lax.stop_gradient(aux)


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


def _weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Sum of weights * values, both [B, T], without what has no weight, whatever its value."""
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0))


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
    margin, _, _ = losses.target_margins(model.logits(hidden), batch["decoder_target_tokens"])
    log_probs = -losses.negative_log_likelihood(margin)  # [B,T]
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    sums = losses.segment_sums(log_probs * weights, segments, num_segments)
    return sums, losses.segment_sums(weights, segments, num_segments)
