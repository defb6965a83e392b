"""T5: encoder and decoder stacks between a shared embedding and a head.

The text-to-text transformer of https://arxiv.org/abs/1910.10683 in both its forms: v1.0 (relu, head tied to
the embedding) and v1.1 (gated gelu, head of its own), which LM-adapted T5, T0 and Flan use. Agrees with
Mesh-TensorFlow's and Hugging Face's to float rounding (tests/test_t5.py).

Shapes: B rows, S input length, T target length, D d_model, V vocabulary; in decoding token by token W
hypotheses a row (beams), of up to T tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t0jax import config as cfg
from t0jax.models.attention import Attention, KeysValues, RelativeBias, segment_mask
from t0jax.models.layers import (
    Embedding,
    FeedForward,
    Noise,
    RMSNorm,
    dropout,
    dropout_noise,
    einsum_float32,
    parameter,
    run_layers,
    split_key,
    unstack,
)
from t0jax.sharding import constrain


class Memory(NamedTuple):
    """What a decoder reads for every token while it writes, laid out once before the first."""

    layers: Any
    """Parameters of the blocks and keys and values of their attention to the encoder, [layers, ...] and
    [layers, B, H, S, K]; where layers are not scanned a list of one pair each, as cutting a stack is copying it."""
    mask: jax.Array
    """Inputs that are no padding, bool [B, 1, 1, S]."""
    head: jax.Array | None
    """A tied table the way XLA's CPU backend multiplies with it, [D, V]; None where `logits` needs none."""


Cache = KeysValues | list[KeysValues]
"""Keys and values of the tokens read so far, [layers, B, H, T * W, K]; a list over layers that are not scanned."""


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each normed before and added to its input after."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, layers: int):
        self.widths = (config.num_heads, config.d_model, config.d_ff)
        self.attention_norm = RMSNorm(config, layers)
        self.attention = Attention(config, rngs, layers)
        self.mlp_norm = RMSNorm(config, layers)
        self.mlp = FeedForward(config, rngs, layers)

    def __call__(self, x: jax.Array, noise: Noise, bias: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, D], with `bias` [1, H, S, S] and `mask` [B, 1, S, S]."""
        y = self.attention_norm(x)  # [B, S, D]
        y = self.attention(y, y, bias, mask, noise[0])  # [B, S, D]
        x = x + dropout(y, noise[1])  # [B, S, D]
        y = self.mlp(self.mlp_norm(x), noise[2])  # [B, S, D]
        x = x + dropout(y, noise[3])  # [B, S, D]
        return constrain(x, "batch", "length", "width")

    def noise_sizes(self, x: jax.Array) -> list[tuple[int, ...]]:
        """What `noise` holds for each row of `x`, as `dropout_noise` takes it."""
        h, d, f = self.widths
        return [(x.shape[1], h), (d,), (f,), (d,)]


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the encoder, and feed-forward."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs, layers: int):
        self.widths = (config.num_heads, config.d_model, config.d_ff)
        self.attention_norm = RMSNorm(config, layers)
        self.attention = Attention(config, rngs, layers)
        self.cross_norm = RMSNorm(config, layers)
        self.cross = Attention(config, rngs, layers)
        self.mlp_norm = RMSNorm(config, layers)
        self.mlp = FeedForward(config, rngs, layers)

    def __call__(
        self,
        x: jax.Array,
        noise: Noise,
        bias: jax.Array,
        mask: jax.Array,
        encoded: jax.Array,
        cross_mask: jax.Array,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]: `bias` [1, H, T, T], `mask` [B, 1, T, T], `cross_mask` [B, 1, T, S]."""
        y = self.attention_norm(x)  # [B, T, D]
        y = self.attention(y, y, bias, mask, noise[0])  # [B, T, D]
        x = x + dropout(y, noise[1])  # [B, T, D]
        y = self.cross(self.cross_norm(x), encoded, None, cross_mask, noise[2])  # [B, T, D]
        x = x + dropout(y, noise[3])  # [B, T, D]
        y = self.mlp(self.mlp_norm(x), noise[4])  # [B, T, D]
        x = x + dropout(y, noise[5])  # [B, T, D]
        return constrain(x, "batch", "length", "width")

    def step(
        self,
        x: jax.Array,
        cache: KeysValues,
        cross: KeysValues,
        bias: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array,
        slot: jax.Array,
    ) -> tuple[jax.Array, KeysValues, KeysValues]:
        """One token of each hypothesis: [B, W, D] -> [B, W, D], their keys and values [B, H, W, K], `cache` with them.

        Args:
            cache: [B, H, T * W, K] of earlier tokens; what is at `slot` on is replaced by this token's.
            cross: [B, H, S, K].
            bias: [1, H, 1, T * W].
            mask: [B, 1, W, T * W].
            cross_mask: [B, 1, 1, S].
        """
        y = self.attention_norm(x)  # [B, W, D]
        new = self.attention.keys_values(y)  # [B, H, W, K]
        kept = keep(cache, new, slot)  # [B, H, T * W, K]
        x = x + self.attention.recall(y, kept, bias, mask)  # [B, W, D]
        x = x + self.cross.recall(self.cross_norm(x), cross, None, cross_mask)  # [B, W, D]
        x = x + self.mlp(self.mlp_norm(x), None)  # [B, W, D]
        return constrain(x, "batch", "length", "width"), new, kept

    def noise_sizes(self, x: jax.Array, encoded: jax.Array, *_: jax.Array) -> list[tuple[int, ...]]:
        """What `noise` holds for each row of `x`, as `dropout_noise` takes it."""
        h, d, f = self.widths
        return [(x.shape[1], h), (d,), (encoded.shape[1], h), (d,), (f,), (d,)]


class Stack(nnx.Module):
    """Blocks of one kind with their relative bias and the norm after the last."""

    def __init__(
        self,
        block: type[EncoderBlock | DecoderBlock],
        config: cfg.Model,
        rngs: nnx.Rngs,
        layers: int,
    ):
        self.config, self.depth = config, layers
        self.relative_bias = RelativeBias(config, rngs, causal=block is DecoderBlock)
        self.layers = block(config, rngs, layers)
        self.final_norm = RMSNorm(config)

    def __call__(
        self, x: jax.Array, key: jax.Array | None, mask: jax.Array, *cross: jax.Array
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D]; `cross` is what a decoder block takes besides `mask`."""
        rate, (rows, length, width) = self.config.dropout_rate, x.shape
        ends_key, layers_key = split_key(key, 2)
        before, after = dropout_noise(ends_key, rate, (rows,), [(width,), (width,)])
        lead, sizes = (self.depth, rows), self.layers.noise_sizes(x, *cross)
        noise = dropout_noise(layers_key, rate, lead, sizes)  # [layers, B, ...] each
        bias = self.relative_bias(length, length)  # [1, H, L, L]
        x = run_layers(self.layers, self.config, dropout(x, before), noise, bias, mask, *cross)
        return dropout(self.final_norm(x), after)  # [B, L, D]


class DecoderStack(Stack):
    """A decoder, which can also go on token by token."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        super().__init__(DecoderBlock, config, rngs, config.decoder_layers)

    def remember(self, encoded: jax.Array) -> Any:
        """`Memory.layers` for the inputs [B, S, D]."""
        graphdef, stacked = nnx.split(self.layers, nnx.Param)

        def cross(params: nnx.State) -> KeysValues:
            return nnx.merge(graphdef, params).cross.keys_values(encoded)

        if self.config.scan_layers:
            return stacked, jax.lax.map(cross, stacked)
        return [(params, cross(params)) for params in unstack(stacked)]

    def step(
        self, x: jax.Array, position: jax.Array, memory: Memory, cache: Cache, mask: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """[B, W, D] -> [B, W, D] and the cache with this position's keys and values."""
        width = x.shape[1]
        bias = self.relative_bias.row(position, mask.shape[-1] // width)  # [1, H, 1, T]
        bias = jnp.repeat(bias, width, axis=-1)  # [1, H, 1, T * W]
        graphdef, slot = nnx.graphdef(self.layers), position * width

        def read(x: jax.Array, layer: tuple) -> tuple[jax.Array, KeysValues, KeysValues]:
            (params, cross), own = layer
            block = nnx.merge(graphdef, params)
            return block.step(x, own, cross, bias, mask, memory.mask, slot)

        if self.config.scan_layers:
            # A scan's results are new arrays: the new part alone, written into the cache afterwards, is the least.
            x, new = jax.lax.scan(lambda *at: _first_two(read(*at)), x, (memory.layers, cache))
            return self.final_norm(x), keep(cache, new, slot)
        after = []
        for layer in zip(memory.layers, cache, strict=True):
            x, _, kept = read(x, layer)
            after.append(kept)
        return self.final_norm(x), after


def _first_two(results: tuple) -> tuple:
    return results[:2]


def keep(cache: KeysValues, new: KeysValues, slot: jax.Array) -> KeysValues:
    """`cache` with `new` written at `slot` of its positions."""
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.tree.map(lambda old, x: write(old, x, slot, axis=old.ndim - 2), cache, new)


class T5(nnx.Module):
    """The network; see `models.build` for its parameters as a plain tree."""

    def __init__(self, config: cfg.Model, rngs: nnx.Rngs):
        self.config = config
        self.shared = Embedding(config, rngs)
        self.encoder = Stack(EncoderBlock, config, rngs, config.num_layers)
        self.decoder = DecoderStack(config, rngs)
        if not config.tie_word_embeddings:
            # 1 / sqrt(D) as in Mesh-TF and t5x. HF draws with 1, which starts at a loss in the hundreds.
            shape, stddev = (config.d_model, config.vocab_size), config.d_model**-0.5
            self.lm_head = parameter(rngs, shape, stddev, ("embed", "vocab"))

    def encode(
        self, tokens: jax.Array, segment_ids: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Reads the inputs.

        Args:
            tokens: int32 [B, S].
            segment_ids: int32 [B, S]; 0 is padding, packed examples do not see each other.
            key: of dropout; none without.

        Returns:
            [B, S, D] in the compute dtype.
        """
        mask = segment_mask(segment_ids, segment_ids)  # [B, 1, S, S]
        return self.encoder(self.shared(tokens), key, mask)  # [B, S, D]

    def decode(
        self,
        encoded: jax.Array,
        encoder_segment_ids: jax.Array,
        tokens: jax.Array,
        segment_ids: jax.Array,
        *,
        cross_segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Reads the targets, shifted right within each segment, beside the encoded inputs.

        Args:
            encoded: [B, S, D] from `encode`.
            encoder_segment_ids: int32 [B, S].
            tokens: int32 [B, T].
            segment_ids: int32 [B, T]; a token sees earlier ones of its own segment.
            cross_segment_ids: int32 [B, T], the encoder segment each token reads; its own when None.
                With 1 for all, several targets of one input lie side by side in one row.
            key: of dropout; none without.

        Returns:
            Hidden states [B, T, D] in the compute dtype.
        """
        reads = segment_ids if cross_segment_ids is None else cross_segment_ids  # [B, T]
        mask = segment_mask(segment_ids, segment_ids, causal=True)  # [B, 1, T, T]
        cross_mask = segment_mask(reads, encoder_segment_ids)  # [B, 1, T, S]
        return self.decoder(self.shared(tokens), key, mask, encoded, cross_mask)  # [B, T, D]

    def remember(self, encoded: jax.Array, segment_ids: jax.Array) -> Memory:
        """What `step` reads of the inputs: `encoded` [B, S, D] from `encode`, one example a row; padding has id 0."""
        mask, head = (segment_ids > 0)[:, None, None], None  # [B, 1, 1, S]
        if self.config.tie_word_embeddings and not self.config.scan_layers:
            head = self.shared.embedding[...].astype(encoded.dtype).T  # [D, V]
        return Memory(self.decoder.remember(encoded), mask, head)

    def new_cache(self, rows: int, width: int, length: int) -> Cache:
        """Room for `length` tokens of `width` hypotheses a row, in the compute dtype."""
        config = self.config
        shape = (rows, config.num_heads, length * width, config.d_kv)
        axes = ("batch", "heads", "length", None)
        if config.scan_layers:
            empty = jnp.zeros((config.decoder_layers, *shape), config.dtype)
            empty = constrain(empty, "layers", *axes)  # [layers, B, H, T * W, K]
            return KeysValues(empty, empty)
        empty = constrain(jnp.zeros(shape, config.dtype), *axes)  # [B, H, T * W, K]
        return [KeysValues(empty, empty)] * config.decoder_layers

    def step(
        self,
        tokens: jax.Array,
        position: jax.Array,
        memory: Memory,
        cache: Cache,
        origins: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Reads one more token of each hypothesis; the hidden states are `decode`'s at that position.

        Hypotheses that part and end need no copies of the cache: it stays as it was written, and `origins` says
        where each of them has its past.

        Args:
            tokens: int32 [B, W], the token at `position` of each hypothesis.
            position: int32 scalar, the same for all rows; positions are read in order from 0.
            memory: from `remember`.
            cache: from `new_cache` or the step before.
            origins: int32 [B, W, T], the hypothesis whose token each position of a hypothesis is: at `position`
                itself its own number. Their own at all positions when None.

        Returns:
            Hidden states [B, W, D] in the compute dtype, and the cache to go on with.
        """
        width = tokens.shape[1]
        length = jax.tree.leaves(cache)[0].shape[-2] // width
        own = jnp.arange(width)  # [W]
        if origins is None:
            origins = jnp.broadcast_to(own[:, None], (1, width, length))  # [1, W, T]
        mask = origins[..., None] == own  # [B, W, T, W]
        mask &= (jnp.arange(length) <= position)[:, None]  # [B, W, T, W]
        mask = mask.reshape(len(mask), 1, width, -1)  # [B, 1, W, T * W]
        return self.decoder.step(self.shared(tokens), position, memory, cache, mask)

    def logits(self, hidden: jax.Array, head: jax.Array | None = None) -> jax.Array:
        """Hidden states [B, T, D] -> float32 logits [B, T, V]; `head` is `Memory.head` while writing."""
        dtype = hidden.dtype
        if self.config.tie_word_embeddings:
            scaled = hidden * jnp.asarray(self.config.d_model**-0.5, dtype)  # [B, T, D]
            rows = scaled.reshape(-1, scaled.shape[-1])  # [B * T, D], flat as in `project`
            if head is None:
                table = self.shared.embedding[...].astype(dtype)  # [V, D]
                logits = einsum_float32("rd,vd->rv", rows, table)  # [B * T, V]
            else:
                logits = einsum_float32("rd,dv->rv", rows, head)  # [B * T, V]
        else:
            rows = hidden.reshape(-1, hidden.shape[-1])  # [B * T, D]
            logits = einsum_float32("rd,dv->rv", rows, self.lm_head[...].astype(dtype))
        logits = logits.reshape(*hidden.shape[:-1], -1)  # [B, T, V]
        return constrain(logits, "batch", "length", "vocab")

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """A batch under seqio's feature names -> float32 logits [B, T, V]; dropout with a key only."""
        encode_key, decode_key = split_key(key, 2)
        segments = batch["encoder_segment_ids"]  # [B, S]
        encoded = self.encode(batch["encoder_input_tokens"], segments, key=encode_key)
        hidden = self.decode(
            encoded,
            segments,
            batch["decoder_input_tokens"],
            batch["decoder_segment_ids"],
            key=decode_key,
        )  # [B, T, D]
        return self.logits(hidden)  # [B, T, V]
