"""Reading a mixture by index: from (task, row) to packed rows of a virtual shard, in this process or in a reader process.

A `Stream` says everything that the batches depend on. It is cut into `data.shards` virtual shards, each read and
packed on its own by a `ShardReader`, whose place is two integers. A `PartReader` reads some shards side by side. The
same classes run in the training process (`workers: 0`) and in reader processes (`serve`), which is why neither this
module nor anything it reaches may import TensorFlow, seqio or JAX.
"""

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np

from t0jax import config
from t0jax.data import packing, views
from t0jax.data.mixing import MixtureOrder

READ_AHEAD = 64
"""Draws that are rendered and tokenised at a time."""

MAX_SKIPPED = 100_000
"""Draws in a row that may give no example before reading stops with an error."""

PREFETCH = 2
"""Parts that a reader process holds ready."""

_BLOCK_BITS = 20

Batch = dict[str, np.ndarray]
Place = tuple[int, int]
"""Of a shard: where its group starts in its stream, and how many rows of the group are handed out."""


class ReadError(RuntimeError):
    """An example could not be read, rendered or tokenised, or a reader process died; says which and why."""


class RandomAccess(Protocol):
    """What a task reads from: `rows[i]` is a `templates.Rendered`, or None where the prompt does not apply."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Encoder(Protocol):
    """What tokenises: ids of each text, without EOS."""

    eos_id: int

    def encode_batch(self, texts: list[str]) -> Sequence[Sequence[int]]: ...


@dataclass(frozen=True)
class Task:
    """One task of a mixture; picklable.

    Attributes:
      rate: its share of the mixture, in any unit.
      view: how a rendered example becomes an (inputs, targets) pair.
    """

    name: str
    rows: RandomAccess
    rate: float
    view: views.View = views.VIEWS["direct"]


@dataclass(frozen=True)
class Stream:
    """An endless stream of tokenised examples: a pure function of its fields."""

    tasks: tuple[Task, ...]
    encoder: Encoder
    data: config.Data

    def order(self) -> MixtureOrder:
        names = [task.name for task in self.tasks]
        lengths = [len(task.rows) for task in self.tasks]
        return MixtureOrder(names, lengths, [task.rate for task in self.tasks], self.data.seed)


def read_texts(stream: Stream) -> Iterator[tuple[str, str]]:
    """(inputs, targets) of the stream's examples in order, not tokenised, for ever."""
    reader = _DrawReader(stream, stream.order(), 0, 1, 0)
    while True:
        yield from (texts for _, texts in reader.read())


class _DrawReader:
    """Renders the draws of one shard, in order, from a place on."""

    def __init__(self, stream: Stream, order: MixtureOrder, shard: int, shards: int, place: int):
        self._tasks, self._order = stream.tasks, order
        self._shard, self._shards = shard, shards
        self._block, self._offset = place >> _BLOCK_BITS, place & ((1 << _BLOCK_BITS) - 1)
        self._draws = order.shard(self._block, shard, shards)
        self._skipped = 0

    @property
    def place(self) -> int:
        """The next draw."""
        return (self._block << _BLOCK_BITS) | self._offset

    def read(self) -> list[tuple[int, tuple[str, str]]]:
        """The examples among the next draws of one block: each one's place and its (inputs, targets).

        Draws that give no example (prompt does not apply, empty input or target) are left out.
        """
        while self._offset >= len(self._draws):
            self._block, self._offset = self._block + 1, 0
            self._draws = self._order.shard(self._block, self._shard, self._shards)
        chosen = slice(self._offset, self._offset + READ_AHEAD)
        tasks, rows = self._draws.task[chosen].tolist(), self._draws.row[chosen].tolist()
        first, self._offset = self.place, self._offset + len(tasks)
        texts = [render(self._tasks[task], row) for task, row in zip(tasks, rows, strict=True)]
        examples = [(first + i, pair) for i, pair in enumerate(texts) if pair]
        self._skipped = 0 if examples else self._skipped + len(tasks)
        if self._skipped > MAX_SKIPPED:
            names = sorted({self._tasks[task].name for task in tasks})
            raise ReadError(
                f"no example in {self._skipped:,} draws in a row; the last were of {', '.join(names)}"
            )
        return examples


def render(task: Task, row: int) -> tuple[str, str] | None:
    """(inputs, targets) of one row, or None where the row gives no training example.

    Raises:
      ReadError: names the task and the row.
    """
    try:
        rendered = task.rows[row]
        pair = None if rendered is None else task.view.gold(rendered)
    except Exception as error:
        raise ReadError(
            f"task '{task.name}', row {row}: {type(error).__name__}: {error}"
        ) from error
    return (pair.inputs, pair.targets) if pair and pair.inputs and pair.targets else None


class ShardReader:
    """Packed rows of one virtual shard, in order, from a place on."""

    def __init__(self, stream: Stream, order: MixtureOrder, shard: int, place: Place):
        self._stream, self._data = stream, stream.data
        self._draws = _DrawReader(stream, order, shard, stream.data.shards, place[0])
        self._waiting: list[
            tuple[int, packing.Example]
        ] = []  # read, not packed yet, with their places
        self._start, self._given = place
        self._group: Batch | None = None
        self._next_start = place[0]

    @property
    def place(self) -> Place:
        return self._start, self._given

    def take(self, rows: int) -> Batch:
        """The next `rows` rows."""
        parts = []
        while rows:
            group = self._current_group()
            part = {name: array[self._given : self._given + rows] for name, array in group.items()}
            got = len(part["encoder_input_tokens"])
            parts.append(part)
            self._given += got
            rows -= got
            if self._given == self._data.pack_rows:
                self._start, self._given, self._group = self._next_start, 0, None
        return concatenate(parts)

    def _current_group(self) -> Batch:
        if self._group is None:
            self._fill()
            examples = [example for _, example in self._waiting]
            data = self._data
            self._group, used = packing.pack_group(
                examples, data.pack_rows, data.input_length, data.target_length, pack=data.pack
            )
            self._waiting = self._waiting[used:]
            self._next_start = self._waiting[0][0] if self._waiting else self._draws.place
        return self._group

    def _fill(self) -> None:
        """Reads until a group is sure to be full."""
        data = self._data
        counts = packing.token_counts([example for _, example in self._waiting]).sum(axis=0)
        size = (data.pack_rows, data.input_length, data.target_length)
        while not packing.enough(*counts.tolist(), len(self._waiting), size, data.pack):
            new = self._tokenise(self._draws.read())
            self._waiting += new
            counts = counts + packing.token_counts([example for _, example in new]).sum(axis=0)

    def _tokenise(
        self, texts: list[tuple[int, tuple[str, str]]]
    ) -> list[tuple[int, packing.Example]]:
        ids = self._stream.encoder.encode_batch([text for _, pair in texts for text in pair])
        eos, data = [self._stream.encoder.eos_id], self._data
        examples = []
        for (place, _), inputs, targets in zip(texts, ids[::2], ids[1::2], strict=True):
            inputs = list(inputs[: data.input_length]) + (eos if data.input_eos else [])
            targets = list(targets[: data.target_length]) + eos
            example = packing.Example(np.array(inputs, np.int32), np.array(targets, np.int32))
            if inputs:
                examples.append(
                    (place, packing.trim(example, data.input_length, data.target_length))
                )
        return examples


class PartReader:
    """The same number of rows from each of some virtual shards: a part of every batch, shard after shard."""

    def __init__(self, stream: Stream, rows: int, places: Mapping[int, Place]):
        """`rows` are taken per shard; `places` names the shards and where each starts."""
        order = stream.order()
        self._rows = rows
        self._readers = {
            shard: ShardReader(stream, order, shard, place) for shard, place in places.items()
        }

    def read(self) -> tuple[Batch, dict[int, Place]]:
        """The next part and every shard's place after it."""
        batch = concatenate([reader.take(self._rows) for reader in self._readers.values()])
        return batch, {shard: reader.place for shard, reader in self._readers.items()}

    def close(self) -> None:
        """Nothing to let go of; for symmetry with a reader process."""


def concatenate(parts: Sequence[Batch]) -> Batch:
    """Batches below one another; one part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Job:
    """What a reader process is told: the arguments of its `PartReader`."""

    stream: Stream
    rows: int
    places: Mapping[int, Place]


@dataclass(frozen=True)
class Failure:
    """What a reader process says when it cannot go on."""

    message: str
    details: str


@dataclass
class _Outbox:
    """Sends from its own thread, so that the next part is made while the last one travels."""

    pipe: BinaryIO
    waiting: queue.Queue = field(default_factory=lambda: queue.Queue(PREFETCH))

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._send, daemon=True)
        thread.start()
        return thread

    def _send(self) -> None:
        while (message := self.waiting.get()) is not None:
            pickle.dump(message, self.pipe, pickle.HIGHEST_PROTOCOL)
            self.pipe.flush()


def serve() -> None:
    """The main function of a reader process: a `sys.path` and a `Job` come in on stdin, parts go out on stdout.

    The process ends when stdin closes, that is when its parent closes it or dies. Signals meant for the run (Ctrl-C,
    a scheduler's SIGTERM to everyone) are left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not land among the parts
    sys.path[:] = pickle.load(sys.stdin.buffer)
    outbox = _Outbox(pipe)
    sender = outbox.start()
    for message in _messages(sys.stdin.buffer):
        outbox.waiting.put(message)
    outbox.waiting.put(None)
    sender.join()


def _messages(stdin: BinaryIO) -> Iterable[tuple[Batch, dict[int, Place]] | Failure]:
    try:
        job = pickle.load(stdin)
        threading.Thread(target=_die_with_parent, args=(stdin,), daemon=True).start()
        reader = PartReader(job.stream, job.rows, job.places)
        while True:
            yield reader.read()
    except Exception as error:
        message = str(error) if isinstance(error, ReadError) else f"{type(error).__name__}: {error}"
        yield Failure(message, traceback.format_exc())


def _die_with_parent(stdin: BinaryIO) -> None:
    stdin.read()
    os._exit(0)
