"""Writing: greedy, sampled and beam search, with a cache, as compiled programs.

`Generator` takes token ids and gives token ids, so neither TensorFlow nor seqio is needed. Rows of similar length
share one compiled shape, and a row's output depends neither on its neighbours nor on how many there are.

Greedy and beam search choose as `transformers` 5.23's `generate` does with the same settings (tests/test_generate.py).
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from t0jax import config as config_lib
from t0jax import models, processes, sharding
from t0jax.config import ConfigError
from t0jax.generate.strategies import Settings, Task, strategy
from t0jax.models import Network, Params
from t0jax.scoring import input_parts, length_grid

IN_FLIGHT = 2
"""Micro-batches that are started before the first is waited for."""

WINDOW = 16
"""Full micro-batches' worth of rows that are sorted by length together: partly filled ones are few then."""


@dataclass(frozen=True)
class Generated:
    """What was written for one input.

    Attributes:
        tokens: int32, up to and including EOS, or `max_new_tokens` without.
        score: the model's log-probability of the tokens in nats, divided by their number ** `length_penalty`.
    """

    tokens: np.ndarray
    score: float


Part = tuple[jax.Array, jax.Array, jax.Array]
"""Rows encoded together: hidden states [C, S, D], segment ids [C, S], numbers of the rows [C]."""


@functools.lru_cache(maxsize=8)
def _encoder(config: config_lib.Model, mesh: jax.sharding.Mesh) -> Callable[..., Part]:
    """(parameters, inputs [C, L] and what comes with them, S) -> `Part`; kept for generators to come."""
    network = models.build(config)

    def encode(params: Params, batch: Mapping[str, jax.Array], room: int) -> Part:
        segments = batch["segment_ids"]  # [C, L]
        encoded = network.bind(params).encode(batch["tokens"], segments)  # [C, L, D]
        more = (0, room - segments.shape[1])
        encoded = jnp.pad(encoded, ((0, 0), more, (0, 0)))  # [C, S, D]
        return encoded, jnp.pad(segments, ((0, 0), more)), batch["numbers"]

    return jax.jit(encode, static_argnums=2, out_shardings=sharding.batch_sharding(mesh))


@functools.lru_cache(maxsize=8)
def _writer(config: config_lib.Model, mesh: jax.sharding.Mesh, settings: Settings) -> Callable:
    """(parameters, parts, seed's key) -> sequences [C, parts, T] and scores [C, parts]; kept as `_encoder`."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    # A scanned layer's parameters are cut out of their stacks for every token, which on a CPU is a copy.
    network = models.build(replace(config, scan_layers=config.scan_layers and not on_cpu))
    write = strategy(settings)

    def run(params: Params, parts: Sequence[Part], key: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Parts beside each other within a row's device: nothing moves between devices.
        joined = (jnp.stack(arrays, axis=1) for arrays in zip(*parts, strict=True))
        encoded, segments, numbers = (x.reshape(-1, *x.shape[2:]) for x in joined)  # [B, ...]
        encoded = sharding.constrain(encoded, "batch", "length", "width")  # [B, S, D]
        model = network.bind(params)
        memory = model.remember(encoded, segments)
        task = Task(model, memory, segments[:, 0] > 0, numbers, key)
        texts, scores = (x.reshape(-1, len(parts), *x.shape[1:]) for x in write(task, settings))
        return texts, scores

    return jax.jit(run, out_shardings=sharding.batch_sharding(mesh))


class Generator:
    """Writes texts for many inputs: a compiled encoder for each bucket of their lengths, a writer for each room.

    Each token costs a pass over the parameters, however few rows read it. So rows are encoded in parts of similar
    length, and parts of several lengths written together, in the room for the longest of them. The shapes in which a
    row is computed depend on its own length and on the machine, so its output does not depend on the others.
    """

    def __init__(
        self,
        network: Network,
        mesh: jax.sharding.Mesh,
        settings: Settings,
        *,
        row_tokens: int | None = None,
    ):
        """Prepares; nothing is compiled before the first input of a bucket.

        Args:
            network: the architecture.
            mesh: (data, fsdp, model) devices that hold the parameters. What is cut along `fsdp` is gathered for every
                token; where a device cannot hold the parameters, `model` is faster here.
            settings: how to write.
            row_tokens: positions that are kept in memory on each device that holds rows of its own, inputs and
                beams x `max_new_tokens` together; by default 8,192 on CPU, where more than 32 rows or 64 beams
                bring nothing, and 16,384 on an accelerator.

        Raises:
            ConfigError: more beams than the vocabulary has continuations for.
        """
        if 2 * settings.num_beams > network.config.vocab_size:
            half = network.config.vocab_size // 2
            raise ConfigError(f"num_beams is {settings.num_beams}; it must be at most {half} here")
        self.network, self.mesh, self.settings = network, mesh, settings
        self.on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.row_tokens = row_tokens or (8192 if self.on_cpu else 16384)
        self.slice, self.slices = sharding.process_slice(mesh)
        self.input_lengths = length_grid(settings.max_input_length, 32, input_parts)
        self.rooms = length_grid(settings.max_input_length, 128, lambda size: 1)
        self._encode = _encoder(network.config, mesh)
        # A new seed is an argument, no new program.
        self._write = _writer(network.config, mesh, replace(settings, seed=0))
        self._key = np.asarray(jax.random.key_data(jax.random.key(settings.seed)))

    def __call__(
        self,
        params: Params,
        inputs: Iterable[Sequence[int] | np.ndarray],
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Generated]:
        """Streams what is written for each input, in order.

        In a multi-process run each process passes its own rows, every `slices`-th from row `slice` on, and all must
        drain the iterator.

        Args:
            params: float32 parameters, or what `shard` made of them: who keeps that alone has them in memory once.
            inputs: token ids of each, with EOS where the model was trained with it.
            progress: is told of the rows done so far.
        """
        params = self.shard(params)
        source, done, last = iter(inputs), 0, False
        window = WINDOW * math.prod(self._shape(self.rooms[0]))
        while not last:
            rows = [self._row(ids) for ids in islice(source, window)]
            batches, last = self._plan(rows, exhausted=len(rows) < window)
            written: dict[int, Generated] = {}
            flying: deque[tuple[Any, ...]] = deque()
            while batches or flying:
                while batches and len(flying) < IN_FLIGHT:
                    flying.append(self._launch(params, rows, done, batches.pop(0)))
                written |= self._land(*flying.popleft())
                progress(done + len(written))
            yield from (written[i] for i in range(len(rows)))
            done += len(rows)

    def shard(self, params: Params) -> Params:
        """Parameters on this generator's mesh, matrices in the compute dtype: each token reads them all once.

        Costs nothing when they already are.
        """
        network = self.network
        shardings = sharding.param_shardings(network.axes, network.shapes, self.mesh)
        params = jax.device_put(params, shardings)
        dtype = jnp.dtype(network.config.dtype)
        if dtype == jnp.float32:
            return params

        def cast(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
            product = len(set(axes) - {"layers"}) > 1 and "relpos_buckets" not in axes
            return x.astype(dtype) if product else x

        return jax.tree.map(cast, params, network.axes)

    def _room(self, length: int) -> int:
        """Positions for inputs of the bucket `length` while texts are written."""
        return self.rooms[np.searchsorted(self.rooms, length)]

    def _shape(self, room: int) -> tuple[int, int]:
        """This process's rows of a part, and parts of a micro-batch in `room`."""
        beams = self.settings.num_beams
        rows = self.row_tokens // (room + beams * self.settings.max_new_tokens)
        if self.on_cpu:
            # As many as keep its matrix products busy: with more, more are empty at the end.
            rows = min(rows, 32 if beams == 1 else max(1, 64 // beams))
        each = max(1, min(rows // 4, 4) if self.on_cpu else rows // 4)
        return each * sharding.row_ways(self.mesh) // self.slices, max(1, rows // each)

    def _row(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        row = np.asarray(ids, np.int32)[: self.settings.max_input_length]
        # An empty input would leave nothing to attend to.
        return row if len(row) else np.array([self.network.config.eos_token_id], np.int32)

    def _plan(
        self, rows: Sequence[np.ndarray], exhausted: bool
    ) -> tuple[list[list[tuple[int, list[int]]]], bool]:
        """Micro-batches, each a list of parts (bucket, rows by number), and whether all is read.

        The same buckets on every process; those with fewer rows pass empty ones.
        """
        groups: dict[int, list[int]] = {length: [] for length in self.input_lengths}
        for i, row in enumerate(rows):
            groups[self.input_lengths[np.searchsorted(self.input_lengths, len(row))]].append(i)
        each = {length: self._shape(self._room(length))[0] for length in groups}
        counts = [-(-len(group) // each[length]) for length, group in groups.items()]
        votes = np.array([int(not exhausted), *counts], np.int32)
        votes = processes.gather(votes, "writing").max(axis=0)
        parts: dict[int, list[tuple[int, list[int]]]] = {room: [] for room in self.rooms}
        for (length, group), count in zip(groups.items(), votes[1:], strict=True):
            cuts = range(0, count * each[length], each[length])
            cut = [(length, group[start : start + each[length]]) for start in cuts]
            parts[self._room(length)] += cut
        batches = [
            some[start : start + self._shape(room)[1]]
            for room, some in parts.items()
            for start in range(0, len(some), self._shape(room)[1])
        ]
        return batches, not votes[0]

    def _launch(
        self,
        params: Params,
        rows: Sequence[np.ndarray],
        done: int,
        batch: Sequence[tuple[int, list[int]]],
    ) -> tuple[Any, ...]:
        """Starts one micro-batch: (numbers of its rows by part, sequences, scores)."""
        room = self._room(batch[0][0])
        with jax.set_mesh(self.mesh):
            parts = [self._encode(params, self._inputs(rows, done, *part), room) for part in batch]
            parts += [self._nothing(room)] * (self._shape(room)[1] - len(parts))
            return [members for _, members in batch], *self._write(params, parts, self._key)

    def _inputs(
        self, rows: Sequence[np.ndarray], done: int, length: int, members: Sequence[int]
    ) -> dict[str, jax.Array]:
        """What the encoder takes of one part."""
        each = self._shape(self._room(length))[0]
        inputs, numbers = np.zeros((2, each, length), np.int32), np.zeros(each, np.int32)
        for at, i in enumerate(members):
            inputs[0, at, : len(rows[i])] = rows[i]
            inputs[1, at, : len(rows[i])] = 1
            numbers[at] = (done + i) * self.slices + self.slice
        batch = {"tokens": inputs[0], "segment_ids": inputs[1], "numbers": numbers}
        return sharding.place(batch, self.mesh)

    def _nothing(self, room: int) -> Part:
        """A part without rows."""
        each, config = self._shape(room)[0], self.network.config
        encoded = np.zeros((each, room, config.d_model), jnp.dtype(config.dtype))
        segments, numbers = np.zeros((each, room), np.int32), np.zeros(each, np.int32)
        arrays = {"0": encoded, "1": segments, "2": numbers}
        states, ids, rows = sharding.place(arrays, self.mesh).values()
        return states, ids, rows

    def _land(
        self, parts: Sequence[Sequence[int]], sequences: jax.Array, scores: jax.Array
    ) -> Iterator[tuple[int, Generated]]:
        """Waits for a micro-batch; this process's rows of it by number."""
        spec = sharding.batch_sharding(self.mesh).spec
        local = multihost_utils.global_array_to_host_local_array
        texts, sums = (np.asarray(local(x, self.mesh, spec)) for x in (sequences, scores))
        eos = self.network.config.eos_token_id
        for part, members in enumerate(parts):
            for at, i in enumerate(members):
                tokens = texts[at, part]
                ends = np.flatnonzero(tokens == eos)
                tokens = tokens[: ends[0] + 1] if len(ends) else tokens
                yield i, Generated(tokens, float(sums[at, part]))
