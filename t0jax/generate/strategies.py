"""How one micro-batch is written: greedily, by sampling, or by beam search.

A strategy is a pure function (`Task`, `Settings`) -> (int32 sequences [B, T], padded after EOS, float32 scores [B]),
one `jax.lax.while_loop` around `T5.step` that ends when all rows are done.

Shapes: B rows, W beams, T `max_new_tokens`, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from t0jax import sharding
from t0jax.config import ConfigError
from t0jax.models.t5 import T5, Cache, Memory

FAR = -1e9
"""Log-probability of what may not be chosen; finite, as sums of it are compared."""

BLOCK = 128
"""Tokens whose largest value is looked for together."""


@dataclass(frozen=True)
class Settings:
    """How to write; the names are those of transformers' `GenerationConfig`."""

    num_beams: int = 1
    """1 takes the likeliest token each time, or samples; more search for the likeliest text."""
    max_new_tokens: int = 64
    """Tokens at most, end of sequence included."""
    length_penalty: float = 1.0
    """Beam search compares log-probability / length ** this; above 0 it favours longer texts."""
    early_stopping: bool | Literal["never"] = False
    """Beam search ends with `num_beams` finished texts (True), when the best running one is no better than these
    (False), or when it cannot become so at any length ("never")."""
    temperature: float | None = None
    """Samples from probabilities ** (1 / temperature); 0 takes the likeliest token. None is 1 with `top_k` or `top_p`,
    else 0."""
    top_k: int = 0
    """Samples from so many likeliest tokens; 0 from all."""
    top_p: float = 1.0
    """Samples from the fewest likeliest tokens that together have this probability."""
    seed: int = 0
    """Of sampling. A row's text is a function of this and the row's number."""
    max_input_length: int = 1024
    """Longer inputs lose their right end."""

    def __post_init__(self) -> None:
        """Decides on a temperature; raises ConfigError for settings that cannot be followed."""
        temperature = self.temperature
        if temperature is None:
            temperature = 1.0 if self.top_k > 0 or self.top_p < 1 else 0.0
            object.__setattr__(self, "temperature", temperature)
        wrong = [
            *((getattr(self, name) < 1, name, "at least 1") for name in _COUNTS),
            (
                self.early_stopping not in (False, True, "never"),
                "early_stopping",
                "a bool or 'never'",
            ),
            (self.top_k < 0, "top_k", "at least 0"),
            (not 0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (not 0 <= temperature < float("inf"), "temperature", "a number of at least 0"),
            (self.num_beams > 1 and self.top_k > 0, "top_k", "0 with beams"),
            (self.num_beams > 1 and self.top_p < 1, "top_p", "1 with beams"),
            (self.num_beams > 1 and temperature > 0, "temperature", "0 with beams"),
            (self.num_beams == 1 and self.length_penalty != 1, "length_penalty", "1 without beams"),
        ]
        for bad, name, rule in wrong:
            if bad:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {rule}")


_COUNTS = ("num_beams", "max_new_tokens", "max_input_length")


class Task(NamedTuple):
    """What a strategy works on."""

    model: T5
    memory: Memory
    real: jax.Array
    """bool [B]; other rows fill up the batch."""
    numbers: jax.Array
    """Number of each row, int32 [B]."""
    key: jax.Array
    """Of `Settings.seed`, as `jax.random.key_data` gives it."""


Choose = Callable[[jax.Array, jax.Array], jax.Array]
"""(logits [B, V], position) -> tokens [B]."""


class _Line(NamedTuple):
    """The state of writing one text a row."""

    position: jax.Array
    tokens: jax.Array  # [B], the last ones
    sequences: jax.Array  # [B, T]
    log_probs: jax.Array  # [B]
    counts: jax.Array  # [B], tokens written
    done: jax.Array  # [B]
    cache: Cache


def write_line(task: Task, settings: Settings, choose: Choose) -> tuple[jax.Array, jax.Array]:
    """One text a row, each token by `choose`: int32 [B, T], padded after EOS, and scores [B]."""
    model, config, length = task.model, task.model.config, settings.max_new_tokens
    rows = len(task.real)

    def go_on(line: _Line) -> jax.Array:
        return (line.position < length) & ~line.done.all()

    def advance(line: _Line) -> _Line:
        position = line.position
        tokens = line.tokens[:, None]  # [B, 1]
        hidden, cache = model.step(tokens, position, task.memory, line.cache)
        logits = model.logits(hidden, task.memory.head)[:, 0]  # [B, V]
        tokens = jnp.where(line.done, config.pad_token_id, choose(logits, position))  # [B]
        chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]  # [B]
        gained = chosen - jax.nn.logsumexp(logits, axis=-1)  # [B]
        return _Line(
            position + 1,
            tokens,
            line.sequences.at[:, position].set(tokens),
            line.log_probs + jnp.where(line.done, 0.0, gained),
            line.counts + ~line.done,
            line.done | (tokens == config.eos_token_id),
            cache,
        )

    first = jnp.full(rows, config.decoder_start_token_id, jnp.int32)
    empty = jnp.full((rows, length), config.pad_token_id, jnp.int32)
    cache = model.new_cache(rows, 1, length)
    zeros = jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.int32)
    line = _Line(jnp.int32(0), first, empty, *zeros, ~task.real, cache)
    line = jax.lax.while_loop(go_on, advance, line)
    return line.sequences, line.log_probs / length_norm(settings, line.counts)


def length_norm(settings: Settings, tokens: jax.Array) -> jax.Array:
    """What the log-probability of so many `tokens` (at least 1) is divided by, float32."""
    lengths = np.arange(1, settings.max_new_tokens + 1, dtype=np.float64)
    return jnp.asarray(lengths**settings.length_penalty, jnp.float32)[tokens - 1]


def greedy(task: Task, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """The likeliest token each time. Results as of `write_line`."""
    return write_line(task, settings, lambda logits, position: largest(logits))


def largest(logits: jax.Array) -> jax.Array:
    """`jnp.argmax` over the last axis, in two passes that XLA vectorises on a CPU: [..., V] -> [...]."""
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)  # [V]
    peak = logits.max(axis=-1, keepdims=True)  # [..., 1]
    return jnp.where(logits == peak, places, places[-1]).min(axis=-1)


def sample(task: Task, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Each token drawn anew from what the model expects. Results as of `write_line`."""
    base = jax.random.wrap_key_data(task.key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(base, task.numbers)  # [B]

    def choose(logits: jax.Array, position: jax.Array) -> jax.Array:
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, position)  # [B]
        return jax.vmap(jax.random.categorical)(now, likely(logits, settings)).astype(jnp.int32)

    return write_line(task, settings, choose)


def likely(logits: jax.Array, settings: Settings) -> jax.Array:
    """Logits [..., V] at the settings' temperature, -inf for tokens outside `top_k` or `top_p`.

    Nucleus sampling (`top_p`) is of https://arxiv.org/abs/1904.09751; it is applied to what `top_k` leaves.
    """
    assert settings.temperature  # or nothing is drawn
    logits = logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, settings.top_k)[0][..., -1:]  # [..., 1]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if settings.top_p < 1.0:
        falling = jnp.sort(logits, descending=True)  # [..., V]
        probabilities = jax.nn.softmax(falling)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # [..., V], of likelier ones
        inside = jnp.where(before < settings.top_p, falling, jnp.inf)
        logits = jnp.where(logits < inside.min(axis=-1, keepdims=True), -jnp.inf, logits)
    return logits


class _Finished(NamedTuple):
    """The best finished texts of each row, best first."""

    sequences: jax.Array  # [B, W, T]
    scores: jax.Array  # [B, W]; FAR in places that are still empty
    filled: jax.Array  # [B, W]


class _Beams(NamedTuple):
    """The state of beam search."""

    position: jax.Array
    tokens: jax.Array  # [B, W], the last ones
    sequences: jax.Array  # [B, W, T] of running texts
    origins: jax.Array  # [B, W, T], see `T5.step`
    log_probs: jax.Array  # [B, W], falling
    finished: _Finished
    done: jax.Array  # [B]
    cache: Cache


def beam(task: Task, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """The best text that beam search finds: int32 [B, T], padded after EOS, and scores [B].

    In each step a row has the 2 W likeliest continuations of its W running texts. Those among the best W that end
    are finished; the best W that do not end run on, and there are always so many. A row is done when
    `settings.early_stopping` says so; the texts that reach the last position are finished there.
    """
    config, length = task.model.config, settings.max_new_tokens

    def go_on(beams: _Beams) -> jax.Array:
        return (beams.position < length) & ~beams.done.all()

    def advance(beams: _Beams) -> _Beams:
        log_probs, cache = _continuations(task, beams)  # [B, W, V]
        log_probs, parents, tokens = best_of_all(log_probs, 2 * settings.num_beams)  # [B, 2 W]
        ends = (tokens == config.eos_token_id) | (beams.position + 1 >= length)  # [B, 2 W]
        candidates = _take(beams.sequences, parents)  # [B, 2 W, T]
        candidates = candidates.at[..., beams.position].set(tokens)  # [B, 2 W, T]
        finished = _finish(beams, settings, candidates, log_probs, ends)
        log_probs += ends * FAR  # [B, 2 W]
        kept = _largest(log_probs, settings.num_beams)  # [B, W]
        parents, tokens = _take(parents, kept), _take(tokens, kept)  # [B, W]
        after = _Beams(
            position=beams.position + 1,
            tokens=tokens,
            sequences=_take(candidates, kept),
            origins=_follow(beams, parents),
            log_probs=_take(log_probs, kept),
            finished=finished,
            done=beams.done,
            cache=cache,
        )
        return after._replace(done=beams.done | _is_done(after, settings))

    beams = jax.lax.while_loop(go_on, advance, _first_beams(task, settings))
    return beams.finished.sequences[:, 0], beams.finished.scores[:, 0]


def _first_beams(task: Task, settings: Settings) -> _Beams:
    """One running text, the empty one: the others are too unlikely to be chosen."""
    config, rows = task.model.config, len(task.real)
    width, length = settings.num_beams, settings.max_new_tokens
    own = jnp.arange(width, dtype=jnp.int32)  # [W]
    empty = jnp.full((rows, width, length), config.pad_token_id, jnp.int32)
    nothing = jnp.full((rows, width), FAR, jnp.float32)
    return _Beams(
        position=jnp.int32(0),
        tokens=jnp.full((rows, width), config.decoder_start_token_id, jnp.int32),
        sequences=empty,
        origins=jnp.broadcast_to(own[:, None], empty.shape),
        log_probs=nothing.at[:, 0].set(0.0),
        finished=_Finished(empty, nothing, jnp.zeros((rows, width), bool)),
        done=~task.real,
        cache=task.model.new_cache(rows, width, length),
    )


def _continuations(task: Task, beams: _Beams) -> tuple[jax.Array, Cache]:
    """Log-probabilities of every running text with every next token, [B, W, V], and the cache."""
    hidden, cache = task.model.step(
        beams.tokens, beams.position, task.memory, beams.cache, beams.origins
    )  # [B, W, D]
    log_probs = jax.nn.log_softmax(task.model.logits(hidden, task.memory.head))  # [B, W, V]
    return log_probs + beams.log_probs[..., None], cache


def best_of_all(log_probs: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `count` largest of [B, W, V], falling, with their places in W and V; [B, count] each.

    First of each beam and each device's part of the vocabulary, then of these.
    """
    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or mesh.size == 1
    split = () if whole else sharding.spec(("batch", None, "vocab"), log_probs.shape, mesh)
    parts = [axis for axis in split[2:] if axis]  # of the mesh, along V

    def of_part(log_probs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        here = log_probs.shape[-1]
        values, tokens = top_k(log_probs, min(count, here))  # [b, W, n]
        for axis in parts:
            tokens += here * jax.lax.axis_index(axis)
            values, tokens = (
                jax.lax.all_gather(x, axis, axis=2, tiled=True) for x in (values, tokens)
            )  # [b, W, N]
        rows, _, each = values.shape
        values, places = jax.lax.top_k(values.reshape(rows, -1), count)  # [b, count]
        return values, places // each, _take(tokens.reshape(rows, -1), places)

    if whole:
        return of_part(log_probs)
    # On its own XLA's partitioner brings all rows to every device for a `top_k`.
    results = (PartitionSpec(*split[:1]),) * 3
    return jax.shard_map(of_part, in_specs=split, out_specs=results, check_vma=False)(log_probs)


def top_k(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` with equal values in its order, [..., V] -> [..., count]; that looks at each value several times.

    The largest values are in the `count` blocks with the largest maxima; all else is passed over.
    """
    blocks = -(-values.shape[-1] // BLOCK)
    if blocks < 4 * count:
        return jax.lax.top_k(values, count)
    unused = [(0, 0)] * (values.ndim - 1) + [(0, blocks * BLOCK - values.shape[-1])]
    values = jnp.pad(values, unused, constant_values=-jnp.inf)
    values = values.reshape(*values.shape[:-1], blocks, BLOCK)  # [..., blocks, BLOCK]
    # In the order of the vocabulary, so that the first of equal values stays the first.
    best = jnp.sort(jax.lax.top_k(values.max(axis=-1), count)[1])  # [..., count]
    inside = jnp.take_along_axis(values, best[..., None], axis=-2)  # [..., count, BLOCK]
    found, places = jax.lax.top_k(inside.reshape(*best.shape[:-1], -1), count)  # [..., count]
    block = jnp.take_along_axis(best, places // BLOCK, axis=-1)  # [..., count]
    return found, block * BLOCK + places % BLOCK


def _largest(scores: jax.Array, count: int) -> jax.Array:
    """Places of the `count` largest of a few, [B, N] -> [B, count]; a sort, for it leaves rows where they are."""
    return jnp.argsort(scores, axis=1, descending=True)[:, :count]


def _take(array: jax.Array, places: jax.Array) -> jax.Array:
    """[B, N, ...] and places [B, M] in N -> [B, M, ...]."""
    return jax.vmap(lambda row, at: row[at])(array, places)


def _follow(beams: _Beams, parents: jax.Array) -> jax.Array:
    """Origins of the texts that run on; from the next position on their own."""
    own = jnp.arange(parents.shape[1], dtype=jnp.int32)[:, None]  # [W, 1]
    past = jnp.arange(beams.origins.shape[2]) <= beams.position  # [T]
    return jnp.where(past, _take(beams.origins, parents), own)  # [B, W, T]


def _finish(
    beams: _Beams, settings: Settings, candidates: jax.Array, log_probs: jax.Array, ends: jax.Array
) -> _Finished:
    """The best W of those finished before and of the first W candidates that end, unless the row is done."""
    width, old = settings.num_beams, beams.finished
    norm = length_norm(settings, beams.position + 1)
    new = ends[:, :width] & ~beams.done[:, None]  # [B, W]
    scores = jnp.where(new, log_probs[:, :width] / norm, FAR)  # [B, W]
    scores = jnp.concatenate([old.scores, scores], axis=1)  # [B, 2 W]
    sequences = jnp.concatenate([old.sequences, candidates[:, :width]], axis=1)  # [B, 2 W, T]
    filled = jnp.concatenate([old.filled, new], axis=1)  # [B, 2 W]
    return _Finished(*(_take(x, _largest(scores, width)) for x in (sequences, scores, filled)))


def _is_done(beams: _Beams, settings: Settings) -> jax.Array:
    """Rows whose finished texts are enough, bool [B]."""
    full = beams.finished.filled.all(axis=1)  # [B]
    never = settings.early_stopping == "never"
    if settings.early_stopping and not never:
        return full
    reach = beams.position
    if never and settings.length_penalty > 0:
        reach = jnp.int32(settings.max_new_tokens)
    best_running = beams.log_probs[:, 0] / length_norm(settings, reach)  # [B]
    return full & (best_running <= beams.finished.scores[:, -1])


def strategy(settings: Settings) -> Callable[[Task, Settings], tuple[jax.Array, jax.Array]]:
    """What the settings ask for."""
    if settings.num_beams > 1:
        return beam
    return sample if settings.temperature else greedy
