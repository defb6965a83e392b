"""Scores for rank classification: how likely is each choice of an example?

One scorer serves every view. It takes (inputs, targets) pairs, encodes each distinct input of an example once and
lays that input's targets side by side as segments of one decoder row. Rows of similar length share one compiled
shape. Nothing here reads data: examples come tokenised, so neither TensorFlow nor seqio is needed.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import jax
import numpy as np

from t0jax import config as config_lib
from t0jax import models, processes, sharding
from t0jax.models import Network, Params
from t0jax.objectives import text_to_text

TARGET_COST = 2
"""A decoder position costs about as much as two encoder positions (cross-attention and the vocabulary head);
used only to choose how many rows fill a micro-batch."""
ACCELERATOR_TOKENS = 32768
"""Padded positions of a device's micro-batch, on anything but a CPU."""


@dataclass(frozen=True)
class RankExample:
    """One prompted example with tokenised choices.

    Attributes:
        index: row of the data set.
        pairs: K (inputs, targets) int arrays, one a choice; targets end with EOS. The direct view repeats the
            same inputs K times, flipped and channel views have K different ones.
        correct: indices of the right choices; several may be right.
        task: number of the task in an evaluation of several.
        grades: what each choice is worth; empty where the right ones are worth 1 and the others nothing.
        cut: its texts were longer than what is here.
    """

    index: int
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    correct: tuple[int, ...]
    task: int = 0
    grades: tuple[float, ...] = ()
    cut: bool = False


@dataclass
class _Pending:
    """An example some of whose rows are still to be scored."""

    example: RankExample
    scores: np.ndarray
    missing: int = 0


@dataclass
class _Row:
    """One input with the distinct targets that follow it: what one row of a micro-batch computes."""

    owner: _Pending
    inputs: np.ndarray
    targets: list[np.ndarray] = field(default_factory=list)
    choices: list[list[int]] = field(default_factory=list)
    """For each target, the choices it is the text of (more than one when choices repeat)."""

    @property
    def target_length(self) -> int:
        return sum(map(len, self.targets))


def length_grid(longest: int, shortest: int, parts: Callable[[int], int]) -> tuple[int, ...]:
    """Bucket lengths up to `longest`: powers of two, the way from `size` to the next in `parts(size)` equal steps."""
    grid, size = [], shortest
    while size < longest:
        grid += [size + size * part // parts(size) for part in range(parts(size))]
        size *= 2
    return (*(length for length in grid if length < longest), longest)


def input_parts(size: int) -> int:
    """Long inputs are most of the work, so their padding is kept below a quarter, a fifth from 256 on."""
    return 1 if size < 64 else 2 if size < 256 else 4


def target_parts(size: int) -> int:
    return 1 if size < 16 else 2


def _bucket(length: int, grid: Sequence[int]) -> int:
    return grid[int(np.searchsorted(grid, length))]


def _group(pending: _Pending, settings: config_lib.Evaluate, eos: int, longest: int) -> list[_Row]:
    """Cuts an example into rows: one a distinct input, more only if its targets exceed the longest row."""
    rows: dict[bytes, _Row] = {}
    done: list[_Row] = []
    known: dict[tuple[bytes, bytes], list[int]] = {}
    for choice, (inputs, targets) in enumerate(pending.example.pairs):
        inputs = np.asarray(inputs, np.int32)[: settings.max_input_length]
        # An empty input would leave nothing to attend to.
        inputs = inputs if len(inputs) else np.array([eos], np.int32)
        targets = np.asarray(targets, np.int32)[: settings.max_target_length]
        source, text = inputs.tobytes(), targets.tobytes()
        if (source, text) in known:
            known[source, text].append(choice)
            continue
        row = rows.setdefault(source, _Row(pending, inputs))
        if row.targets and row.target_length + len(targets) > longest:
            done.append(row)
            row = rows[source] = _Row(pending, inputs)
        known[source, text] = [choice]
        row.targets.append(targets)
        row.choices.append(known[source, text])
    return [*done, *rows.values()]


@functools.lru_cache(maxsize=8)
def program(config: config_lib.Model, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """(parameters, micro-batch) -> sums [rows, T]; scorers of one model and mesh share what was compiled."""
    network = models.build(config)

    def sums(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        # As many columns as positions: the number of choices then needs no compiled shape of its own.
        columns = batch["decoder_target_tokens"].shape[1]
        return text_to_text.rank_sums(network, params, batch, columns)[0]

    return jax.jit(sums, out_shardings=sharding.batch_sharding(mesh))


class Scorer:
    """Sums of target log-probabilities, with one compiled program a (input, target) bucket.

    The shape in which a row is computed depends on that row's own lengths and on the machine, never on
    `batch_size` or on its neighbours, so scores do not depend on them either.
    """

    def __init__(
        self,
        network: Network,
        mesh: jax.sharding.Mesh,
        settings: config_lib.Evaluate,
        *,
        row_tokens: int | None = None,
    ):
        """Prepares; nothing is compiled before the first example of a bucket.

        Args:
            network: the architecture.
            mesh: (data, fsdp, model) devices that hold the parameters.
            settings: lengths and options.
            row_tokens: padded positions a micro-batch has on each device that holds rows of its own; by default
                2,048 on CPU, where more brings nothing, and 32,768 on an accelerator.
        """
        self.network, self.mesh, self.settings = network, mesh, settings
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.row_tokens = row_tokens or (2048 if on_cpu else ACCELERATOR_TOKENS)
        self.slice, self.slices = sharding.process_slice(mesh)
        self.window = max(1, 8 * settings.batch_size // self.slices)
        self.input_lengths = length_grid(settings.max_input_length, 32, input_parts)
        longest = max(1024, settings.max_target_length)
        self.target_lengths = length_grid(longest, 8, target_parts)
        self.buckets = [(s, t) for s in self.input_lengths for t in self.target_lengths]
        self.compiled: set[tuple[int, int]] = set()
        self._sums = program(network.config, mesh)

    def score(
        self, params: Params, examples: Iterable[RankExample]
    ) -> Iterator[tuple[RankExample, np.ndarray]]:
        """Streams (example, scores [K] float32 in nats) in the order of `examples`.

        In a multi-process run each process passes its own slice of the rows, and all must drain the iterator.
        """
        for window in self.windows(params, examples):
            yield from window

    def windows(
        self, params: Params, examples: Iterable[RankExample]
    ) -> Iterator[list[tuple[RankExample, np.ndarray]]]:
        """`score` in lists; every process gets the same number of them, so collectives may run in between.

        Full micro-batches are launched a window of examples at a time and read back after the next window was
        prepared, so that the host works while the device does. Partly filled ones wait for one more window.
        """
        params = self.shard(params)
        source = iter(examples)
        waiting: dict[tuple[int, int], deque[_Row]] = {bucket: deque() for bucket in self.buckets}
        order: deque[_Pending] = deque()
        flying: list[tuple[list[_Row], jax.Array]] = []
        last = False
        while not last:
            stale = {bucket for bucket, rows in waiting.items() if rows}
            drawn = list(islice(source, self.window))
            for example in drawn:
                order.append(self._enqueue(example, waiting))
            plan, last = self._plan(waiting, stale, exhausted=len(drawn) < self.window)
            launched = [
                self._launch(params, bucket, waiting[bucket])
                for bucket, count in plan.items()
                for _ in range(count)
            ]
            self._land(flying)
            flying = launched
            if last:
                self._land(flying)
            yield list(_finished(order))

    def shard(self, params: Params) -> Params:
        """Parameters on this scorer's mesh; costs nothing when they already are."""
        shardings = sharding.param_shardings(self.network.axes, self.network.shapes, self.mesh)
        return jax.device_put(params, shardings)

    def rows(self, bucket: tuple[int, int]) -> int:
        """Rows of a bucket's micro-batch over all processes."""
        inputs, targets = bucket
        each = max(1, self.row_tokens // (inputs + TARGET_COST * targets))
        return each * sharding.row_ways(self.mesh)

    def _enqueue(
        self, example: RankExample, waiting: Mapping[tuple[int, int], deque[_Row]]
    ) -> _Pending:
        pending = _Pending(example, np.zeros(len(example.pairs), np.float32))
        longest = self.target_lengths[-1]
        for row in _group(pending, self.settings, self.network.config.eos_token_id, longest):
            pending.missing += 1
            shape = len(row.inputs), row.target_length
            waiting[
                _bucket(shape[0], self.input_lengths), _bucket(shape[1], self.target_lengths)
            ].append(row)
        return pending

    def _plan(
        self, waiting: Mapping[tuple[int, int], deque[_Row]], stale: set, exhausted: bool
    ) -> tuple[dict[tuple[int, int], int], bool]:
        """How many micro-batches of each bucket to launch now, the same on every process, and whether that is all.

        A process with fewer rows than another launches padding.
        """
        size = {bucket: self.rows(bucket) // self.slices for bucket in waiting}
        full = [
            -(-len(rows) // size[b]) if b in stale else len(rows) // size[b]
            for b, rows in waiting.items()
        ]
        everything = [-(-len(rows) // size[b]) for b, rows in waiting.items()]
        votes = np.array([[int(not exhausted), *full], [0, *everything]], np.int32)
        votes = processes.gather(votes, "scoring").max(axis=0)
        last = not votes[0, 0]
        counts = votes[int(last), 1:]
        return {bucket: int(n) for bucket, n in zip(waiting, counts, strict=True) if n}, last

    def _launch(
        self, params: Params, bucket: tuple[int, int], queue: deque[_Row]
    ) -> tuple[list[_Row], jax.Array]:
        """Starts one micro-batch with up to its number of rows from `queue`; sums come back as [rows, T]."""
        size = self.rows(bucket) // self.slices
        rows = [queue.popleft() for _ in range(min(size, len(queue)))]
        batch = pack_rows(rows, size, *bucket, self.network.config.decoder_start_token_id)
        self.compiled.add(bucket)
        with jax.set_mesh(self.mesh):
            return rows, self._sums(params, sharding.place(batch, self.mesh))

    def _land(self, flying: Iterable[tuple[list[_Row], jax.Array]]) -> None:
        """Waits for launched micro-batches and hands each sum to the choices it belongs to."""
        for rows, sums in flying:
            local = _local_rows(sums)
            for row, values in zip(rows, local, strict=False):
                for target, choices, value in zip(row.targets, row.choices, values, strict=False):
                    length = (
                        np.float32(len(target)) if self.settings.length_normalize else np.float32(1)
                    )
                    row.owner.scores[choices] = value / length
                row.owner.missing -= 1


def pack_rows(
    rows: Sequence[_Row], size: int, input_length: int, target_length: int, start: int
) -> dict[str, np.ndarray]:
    """A micro-batch [size, input_length] and [size, target_length]; rows beyond `rows` are padding (id 0)."""
    inputs = np.zeros((2, size, input_length), np.int32)
    decoder = np.zeros((3, size, target_length), np.int32)
    for i, row in enumerate(rows):
        inputs[0, i, : len(row.inputs)] = row.inputs
        inputs[1, i, : len(row.inputs)] = 1
        at = 0
        for segment, target in enumerate(row.targets, start=1):
            end = at + len(target)
            decoder[0, i, at:end] = [start, *target[:-1]]
            decoder[1, i, at:end] = target
            decoder[2, i, at:end] = segment
            at = end
    return {
        "encoder_input_tokens": inputs[0],
        "encoder_segment_ids": inputs[1],
        "decoder_input_tokens": decoder[0],
        "decoder_target_tokens": decoder[1],
        "decoder_segment_ids": decoder[2],
        "decoder_loss_weights": (decoder[2] > 0).astype(np.float32),
    }


def _local_rows(sums: jax.Array) -> np.ndarray:
    """The rows that this process fed, in its own order."""
    if sums.is_fully_addressable:
        return np.asarray(sums)
    shards = {shard.index[0].start or 0: shard.data for shard in sums.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _finished(order: deque[_Pending]) -> Iterator[tuple[RankExample, np.ndarray]]:
    while order and not order[0].missing:
        pending = order.popleft()
        yield pending.example, pending.scores
