"""Rows of similar length computed together: what every way of scoring shares.

A stream takes examples, cuts them into rows, and computes the rows of a bucket (one compiled shape) a micro-batch at a
time. Examples come back in their order. The shape in which a row is computed depends on the row and on the machine,
never on `batch_size` or on its neighbours, so scores do not depend on them either.
"""

import abc
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar

import jax
import numpy as np

from t0jax import processes, sharding
from t0jax.models import Network, Params

ACCELERATOR_TOKENS = 32768
"""Padded positions of a device's micro-batch, on anything but a CPU."""

Example = TypeVar("Example")
Scores = TypeVar("Scores")


@dataclass
class Pending(Generic[Example, Scores]):
    """An example some of whose rows are still to be scored."""

    example: Example
    scores: Scores
    missing: int = 0


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


def bucket_of(length: int, grid: Sequence[int]) -> int:
    return grid[int(np.searchsorted(grid, length))]


class RowStream(abc.ABC, Generic[Example, Scores]):
    """Scores a stream of examples, with one compiled program a bucket of rows.

    Attributes:
        buckets: of all shapes there are, in an order that is the same on all processes.
        compiled: the buckets that were computed so far.
    """

    CPU_TOKENS: ClassVar[int] = 2048
    """Padded positions of a micro-batch on CPU, where more brings nothing."""

    buckets: Sequence[Any]

    def __init__(
        self, network: Network, mesh: jax.sharding.Mesh, batch_size: int, row_tokens: int | None
    ):
        """Prepares; nothing is compiled before the first example of a bucket.

        Args:
            network: the architecture.
            mesh: (data, fsdp, model) devices that hold the parameters.
            batch_size: examples read at a time, over all processes.
            row_tokens: padded positions a micro-batch has on each device that holds rows of its own; by default
                `CPU_TOKENS` on CPU and 32,768 on an accelerator.
        """
        self.network, self.mesh = network, mesh
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.row_tokens = row_tokens or (self.CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS)
        self.slice, self.slices = sharding.process_slice(mesh)
        self.window = max(1, 8 * batch_size // self.slices)
        self.compiled: set[Hashable] = set()

    def score(
        self, params: Params, examples: Iterable[Example]
    ) -> Iterator[tuple[Example, Scores]]:
        """Streams (example, its scores) in the order of `examples`.

        In a multi-process run each process passes its own slice of the rows, and all must drain the iterator.
        """
        for window in self.windows(params, examples):
            yield from window

    def windows(
        self, params: Params, examples: Iterable[Example]
    ) -> Iterator[list[tuple[Example, Scores]]]:
        """`score` in lists; every process gets the same number of them, so collectives may run in between.

        Full micro-batches are launched a window of examples at a time and read back after the next window was
        prepared, so that the host works while the device does. Partly filled ones wait for one more window.
        """
        params = self.shard(params)
        source = iter(examples)
        waiting: dict[Any, deque[Any]] = {bucket: deque() for bucket in self.buckets}
        order: deque[Pending[Example, Scores]] = deque()
        flying: list[tuple[list[Any], jax.Array]] = []
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

    def _plan(
        self, waiting: Mapping[Any, deque[Any]], stale: set, exhausted: bool
    ) -> tuple[dict[Any, int], bool]:
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
        self, params: Params, bucket: Any, queue: deque[Any]
    ) -> tuple[list[Any], jax.Array]:
        """Starts one micro-batch with up to its number of rows from `queue`."""
        size = self.rows(bucket) // self.slices
        rows = [queue.popleft() for _ in range(min(size, len(queue)))]
        self.compiled.add(bucket)
        batch = sharding.place(self._pack(bucket, rows, size), self.mesh)
        with jax.set_mesh(self.mesh):
            return rows, self._compute(bucket, params, batch)

    @abc.abstractmethod
    def rows(self, bucket: Any) -> int:
        """Rows of a bucket's micro-batch over all processes."""

    @abc.abstractmethod
    def _enqueue(
        self, example: Example, waiting: Mapping[Any, deque[Any]]
    ) -> Pending[Example, Scores]:
        """Cuts an example into rows and puts each where rows of its bucket wait."""

    @abc.abstractmethod
    def _pack(self, bucket: Any, rows: Sequence[Any], size: int) -> dict[str, np.ndarray]:
        """A micro-batch of `size` rows, the first of which are `rows`."""

    @abc.abstractmethod
    def _compute(self, bucket: Any, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Starts one micro-batch; what is found comes back as [rows, ...]."""

    @abc.abstractmethod
    def _land(self, flying: Iterable[tuple[list[Any], jax.Array]]) -> None:
        """Waits for launched micro-batches and hands what was found to the examples it belongs to."""


def local_rows(sums: jax.Array) -> np.ndarray:
    """The rows that this process fed, in its own order."""
    if sums.is_fully_addressable:
        return np.asarray(sums)
    shards = {shard.index[0].start or 0: shard.data for shard in sums.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _finished(
    order: deque[Pending[Example, Scores]],
) -> Iterator[tuple[Example, Scores]]:
    while order and not order[0].missing:
        pending = order.popleft()
        yield pending.example, pending.scores
