"""Reading structured tasks by index: the endless stream of encoded items of a mixture, here or in reader processes.

A stream is read in chunks of neighbouring draws (`mixing.MixtureOrder`); a chunk is named by the place of its first
draw, an item by the place of its own, so any item can be read again. Nothing here imports TensorFlow, seqio or JAX.
"""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from t0jax import config
from t0jax.data.mixing import BLOCK, Draws, MixtureOrder
from t0jax.data.reading import ReaderProcess, ReadError
from t0jax.data.structured.encoding import Item, encode_items
from t0jax.data.structured.pieces import PairPieces
from t0jax.data.structured.records import Example
from t0jax.data.structured.rows import StructuredRows

CHUNK = 64
"""Draws read and tokenised at a time."""

_BLOCK_BITS = 20
_AHEAD = 8

Place = int
"""Of a draw: its block and its number in it."""


def draw_number(place: Place) -> int:
    """How many draws of its stream stand before a place, give or take one a task: blocks are of about one size."""
    return (place >> _BLOCK_BITS) * BLOCK + (place & ((1 << _BLOCK_BITS) - 1))


def lists_all(data: config.Data) -> str:
    """The way to all rows that cannot be read, for messages that name one."""
    declared = "" if data.modules else "register the record in a module (`add_task`), and "
    given = ["--mixture", data.mixture, "--module", ",".join(data.modules) or "MODULE"]
    given += ["--local_dir", data.local_dir] if data.local_dir else []
    given += ["--split", data.split] if data.split != config.Data.split else []
    return f"{declared}`python -m scripts.records check {shlex.join(given)}` lists all such rows"


@dataclass(frozen=True)
class StructuredTask:
    """One task of a mixture; picklable.

    Attributes:
      length: rows it has, or is cut down to.
      rate: its share of the mixture's examples, in any unit.
      chosen: int32 numbers of the rows it is cut down to, by `where` or to a few; it reads all when None.
      identity: what else its examples depend on (record, data), ready for JSON.
    """

    rows: StructuredRows
    length: int
    rate: float
    chosen: np.ndarray | None = None
    identity: tuple[object, ...] = ()

    @property
    def name(self) -> str:
        return self.rows.record.name


@dataclass(frozen=True, slots=True)
class Drawn:
    """An item of a stream, where it stands, and its task's number."""

    place: Place
    task: int
    item: Item


@dataclass(frozen=True)
class ItemStream:
    """An endless stream of items: a pure function of its fields.

    `only` is the number of the one task it has items of; None: all, by their rates.
    """

    tasks: tuple[StructuredTask, ...]
    pieces: PairPieces
    data: config.Data
    only: int | None = None

    def numbers(self) -> Sequence[int]:
        """The tasks it has items of."""
        return range(len(self.tasks)) if self.only is None else [self.only]

    def order(self) -> MixtureOrder:
        tasks = [self.tasks[number] for number in self.numbers()]
        names = [task.name for task in tasks]
        rates = [task.rate for task in tasks]
        lengths = [task.length for task in tasks]
        return MixtureOrder(names, lengths, rates, self.data.seed, in_turn=True)

    def read(self, places: Sequence[Place], draws: Draws) -> list[Drawn]:
        """The items of some draws; those without an example are left out.

        Raises:
          ReadError: names the task and the row that cannot be read.
        """
        numbers = self.numbers()
        tasks = [numbers[task] for task in draws.task.tolist()]
        found = [
            self.example(task, row) for task, row in zip(tasks, draws.row.tolist(), strict=True)
        ]
        there = [i for i, example in enumerate(found) if example is not None]
        examples = [example for example in found if example is not None]
        items = encode_items(examples, self.pieces, self.data.input_length)
        return [Drawn(places[i], tasks[i], item) for i, item in zip(there, items, strict=True)]

    def example(self, task: int, row: int) -> Example | None:
        """What one row of a task says. Raises ReadError."""
        chosen = self.tasks[task].chosen
        try:
            return self.tasks[task].rows[row if chosen is None else int(chosen[row])]
        except config.UserError as error:
            raise ReadError(f"{error}; {lists_all(self.data)}") from error


class ChunkReader:
    """The chunks of a stream from a place on; of several readers side by side, every `step`-th.

    The same class runs in the training process and in reader processes.
    """

    def __init__(self, stream: ItemStream, start: Place, offset: int = 0, step: int = 1):
        self._stream = stream
        self._order = stream.order()
        self._chunks = itertools.islice(_chunks(self._order, start), offset, None, step)

    def read(self) -> tuple[list[Drawn], Place]:
        """The next chunk's items, and the place after it."""
        place, draws = next(self._chunks)
        return self._stream.read(range(place, place + len(draws)), draws), place + len(draws)

    def close(self) -> None:
        """Nothing to let go of; for symmetry with `Readers`."""


def _chunks(order: MixtureOrder, start: Place) -> Iterator[tuple[Place, Draws]]:
    block, offset = start >> _BLOCK_BITS, start & ((1 << _BLOCK_BITS) - 1)
    for number in itertools.count(block):
        draws = order.block(number)
        for first in range(offset, len(draws), CHUNK):
            yield (number << _BLOCK_BITS) | first, draws[first : first + CHUNK]
        offset = 0


def read_again(stream: ItemStream, places: Sequence[Place]) -> list[Drawn]:
    """The items at some places, in order of place."""
    order, found = stream.order(), []
    for block, group in itertools.groupby(sorted(places), lambda place: place >> _BLOCK_BITS):
        numbers = list(group)
        offsets = [place & ((1 << _BLOCK_BITS) - 1) for place in numbers]
        draws = order.block(block)
        chosen = Draws(draws.task[offsets], draws.row[offsets], draws.epoch[offsets])
        found += stream.read(numbers, chosen)
    return found


def read_texts(stream: ItemStream) -> Iterator[str]:
    """The texts of as many draws of a stream as its tasks have rows; each once an example."""
    order, rows = stream.order(), sum(stream.tasks[number].length for number in stream.numbers())
    draws = (draw for _, chunk in _chunks(order, 0) for draw in _pairs_of(chunk))
    for task, row in itertools.islice(draws, rows):
        example = stream.example(stream.numbers()[task], row)
        if example is not None:
            texts = (text for pair in example.texts for text in pair if text)
            yield from dict.fromkeys([*texts, " ".join(example.words)] if example.words else texts)


def _pairs_of(draws: Draws) -> Iterator[tuple[int, int]]:
    return zip(draws.task.tolist(), draws.row.tolist(), strict=True)


# ----------------------------------------------------------------------------------- reader processes


@dataclass(frozen=True)
class ChunkJob:
    """What a reader process is told: the arguments of its `ChunkReader`."""

    stream: ItemStream
    start: Place
    offset: int
    step: int
    ahead: int = _AHEAD
    """Chunks that may wait to be taken."""

    def open(self) -> ChunkReader:
        return ChunkReader(self.stream, self.start, self.offset, self.step)


class Readers:
    """Reader processes that take turns at the chunks of a stream."""

    def __init__(self, stream: ItemStream, start: Place, workers: int):
        self._processes: list[ReaderProcess] = []
        try:
            for number in range(workers):
                self._processes.append(ReaderProcess(ChunkJob(stream, start, number, workers)))
            for process in self._processes:
                process.start()
        except BaseException:
            self.close()
            raise
        self._turns = itertools.cycle(self._processes)

    def read(self) -> tuple[list[Drawn], Place]:
        """As `ChunkReader.read`."""
        return next(self._turns).read()

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.close()
