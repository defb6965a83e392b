"""Reading a mixture by index: from (task, row) to packed rows of a virtual shard, here or in a reader process.

A `Stream` says everything that the batches depend on. It is cut into `data.shards` virtual shards, each read and
packed on its own by a `ShardReader`, whose place is two integers. A `PartReader` reads some shards side by side. All
runs in the training process (`workers: 0`) or in reader processes (`serve`): no import of TensorFlow, seqio or JAX.
"""

import contextlib
import functools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from t0jax import config
from t0jax.data import packing, views
from t0jax.data.encoding import Encoded, PairEncoder, Tokeniser
from t0jax.data.mixing import MixtureOrder
from t0jax.data.targets import TargetWatch
from t0jax.data.templates import Rendered

READ_AHEAD = 64
"""Draws that are rendered and tokenised at a time."""

MAX_BARREN = 2_000
"""Draws of a task, all without an example, after which reading stops with an error."""

_BLOCK_BITS = 20
_ENDING_S = 5.0

Batch = dict[str, np.ndarray]
Place = tuple[int, int]
"""Of a shard: where its group starts in its stream, and how many rows of the group are handed out."""


class ReadError(config.UserError, RuntimeError):
    """An example could not be read or rendered (says which), or a reader process failed; says why."""


class RandomAccess(Protocol):
    """What a task reads from: `rows[i]` is a `templates.Rendered`, or None where the prompt does not apply."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Task:
    """One task of a mixture; picklable.

    Attributes:
      length: rows it has; told, so that a reader process opens only what it reads.
      rate: its share of the mixture, in any unit.
      view: how a rendered example becomes an (inputs, targets) pair.
      chosen: numbers of the rows it is cut down to, `length` of them; it reads all when empty.
      identity: what else the examples depend on (prompt, seed, data), ready for JSON; saved with positions.
    """

    name: str
    rows: RandomAccess
    length: int
    rate: float
    view: views.View = views.VIEWS["direct"]
    identity: tuple[Any, ...] = ()
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stream:
    """An endless stream of tokenised examples: a pure function of its fields."""

    tasks: tuple[Task, ...]
    encoder: Tokeniser
    data: config.Data

    def pair_encoder(self) -> PairEncoder:
        """An example and its wrong twins share a row, each with as much room as the others."""
        data, share = self.data, 1 + self.data.num_negatives
        return PairEncoder(
            self.encoder,
            data.input_length // share,
            data.target_length // share,
            data.input_eos,
            data.truncation,
        )

    def order(self) -> MixtureOrder:
        names = [task.name for task in self.tasks]
        lengths = [task.length for task in self.tasks]
        return MixtureOrder(names, lengths, [task.rate for task in self.tasks], self.data.seed)


def read_texts(stream: Stream) -> Iterator[list[str]]:
    """The texts that each of the stream's examples is made of, in order, not tokenised, for ever."""
    reader = _DrawReader(stream, Cursor(stream), 0, 1, 0)
    while True:
        for _, lesson in reader.read():
            yield [
                part.text
                for side in lesson.right.sides
                for part in views.parts_of(side)
                if part.text
            ]


class Cursor:
    """What the shards that are read together share: the order, and which tasks have given no example yet."""

    def __init__(self, stream: Stream, warns: bool = False):
        """`warns` of tasks many of whose rows have no target, which one of the readers of a stream should do."""
        self.order = stream.order()
        self._tasks = stream.tasks
        self._barren: dict[int, int] = dict.fromkeys(range(len(stream.tasks)), 0)
        self.targets = TargetWatch(stream.tasks if warns else ())

    def watch(self, tasks: Sequence[int], found: Sequence[object]) -> None:
        """Takes note of which draws gave an example.

        Raises:
          ReadError: names a task that has given none in `MAX_BARREN` draws; it would be read for ever.
        """
        if not self._barren:
            return
        for task, example in zip(tasks, found, strict=True):
            if example is not None:
                self._barren.pop(task, None)
            elif task in self._barren:
                self._barren[task] += 1
                if self._barren[task] >= MAX_BARREN:
                    raise ReadError(
                        f"task '{self._tasks[task].name}' gave no example in {MAX_BARREN:,} draws: its prompt does "
                        "not apply to these rows, or leaves inputs or targets empty, of text or of pieces (columns "
                        "renamed? labels hidden, or outside the answer choices?)"
                    )


class _DrawReader:
    """Renders the draws of one shard, in order, from a place on."""

    def __init__(self, stream: Stream, cursor: Cursor, shard: int, shards: int, place: int):
        self._tasks, self._cursor, self._data = stream.tasks, cursor, stream.data
        self._shard, self._shards = shard, shards
        self._block, self._offset = place >> _BLOCK_BITS, place & ((1 << _BLOCK_BITS) - 1)
        self._draws = cursor.order.shard(self._block, shard, shards)

    @property
    def place(self) -> int:
        """The next draw."""
        return (self._block << _BLOCK_BITS) | self._offset

    def read(
        self, finish: Callable[[list[views.Lesson]], Sequence[Any]] = list
    ) -> list[tuple[int, Any]]:
        """The examples among the next draws of one block: each one's place and what `finish` makes of it.

        Draws that give no example (prompt does not apply, empty input or target, None from `finish`) are left out.

        Args:
          finish: gives an example or None for each lesson.
        """
        while self._offset >= len(self._draws):
            self._block, self._offset = self._block + 1, 0
            self._draws = self._cursor.order.shard(self._block, self._shard, self._shards)
        draws = self._draws[self._offset : self._offset + READ_AHEAD]
        tasks = draws.task.tolist()
        lessons = [
            render(
                self._tasks[task],
                row,
                epoch,
                self._data,
                functools.partial(self._cursor.targets.see, task),
            )
            for task, row, epoch in zip(
                tasks, draws.row.tolist(), draws.epoch.tolist(), strict=True
            )
        ]
        finished = iter(finish([lesson for lesson in lessons if lesson]))
        examples = [next(finished) if lesson else None for lesson in lessons]
        self._cursor.watch(tasks, examples)
        first, self._offset = self.place, self._offset + len(tasks)
        return [(first + i, example) for i, example in enumerate(examples) if example is not None]


def render(
    task: Task,
    row: int,
    epoch: int,
    data: config.Data,
    see: Callable[[Rendered | None], None] = lambda _: None,
) -> views.Lesson | None:
    """What one row teaches, or None where it gives no training example.

    The wrong choices are drawn anew in every epoch, by `data.seed`.

    Args:
      row: its number in the data set, or among the rows that the task is cut down to.
      see: is shown what the prompt makes of it.

    Raises:
      ReadError: names the task and the row.
    """
    row = task.chosen[row] if task.chosen else row
    try:
        rendered = task.rows[row]
        see(rendered)
        if rendered is None:
            return None
        draw = f"{data.seed}:{task.name}:{row}:{epoch}"
        return views.lesson(task.view, rendered, data.num_negatives, draw)
    except Exception as error:
        raise ReadError(
            f"task '{task.name}', row {row}: {type(error).__name__}: {error}"
        ) from error


class ShardReader:
    """Packed rows of one virtual shard, in order, from a place on."""

    def __init__(self, stream: Stream, cursor: Cursor, shard: int, place: Place):
        self._data, self._encoder = stream.data, stream.pair_encoder()
        self._draws = _DrawReader(stream, cursor, shard, stream.data.shards, place[0])
        # Read but not packed yet, with their places.
        self._waiting: list[tuple[int, packing.Example]] = []
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
                examples,
                data.pack_rows,
                data.input_length,
                data.target_length,
                pack=data.pack,
                wrong=data.num_negatives > 0,
            )
            self._waiting = self._waiting[used:]
            self._next_start = self._waiting[0][0] if self._waiting else self._draws.place
        return self._group

    def _fill(self) -> None:
        """Reads until a group is sure to be full."""
        data = self._data
        counts = packing.token_counts([example for _, example in self._waiting]).sum(axis=0)
        size = (data.pack_rows, data.input_length, data.target_length)
        while not packing.enough(counts[0], counts[1], len(self._waiting), size, data.pack):
            new = self._draws.read(self._tokenise)
            self._waiting += new
            counts = counts + packing.token_counts([example for _, example in new]).sum(axis=0)

    def _tokenise(self, lessons: list[views.Lesson]) -> list[packing.Example | None]:
        pairs = [(lesson.right, *lesson.wrong) for lesson in lessons]
        apart = self._data.truncation != "official"
        encoded = self._encoder.encode(pairs, [lesson.peers for lesson in lessons])
        return [_example(pairs, apart) for pairs in encoded]


def _example(pairs: Sequence[Encoded], apart: bool) -> packing.Example | None:
    """The right pair with its wrong ones; None for inputs without a piece.

    A wrong pair that came out the same as the right one (an answer cut short) would have it both ways: `apart` leaves
    it out.
    """
    right, *wrong = pairs
    if not len(right.inputs):
        return None
    others = [pair for pair in wrong if len(pair.inputs) and not (apart and _same(pair, right))]
    segments = tuple(packing.Segment(pair.inputs, pair.targets) for pair in (right, *others))
    return packing.Example(segments[0], segments[1:], any(pair.cut for pair in pairs))


def _same(one: Encoded, other: Encoded) -> bool:
    return np.array_equal(one.inputs, other.inputs) and np.array_equal(one.targets, other.targets)


class PartReader:
    """The same number of rows from each of some virtual shards: a part of every batch, shard after shard."""

    def __init__(self, stream: Stream, rows: int, places: Mapping[int, Place]):
        """`rows` are taken per shard; `places` names the shards and where each starts."""
        cursor = Cursor(stream, warns=0 in places)
        self._rows = rows
        self._readers = {
            shard: ShardReader(stream, cursor, shard, place) for shard, place in places.items()
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


# ----------------------------------------------------------------------------------- reader processes


@dataclass(frozen=True)
class Job:
    """What a reader process is told: the arguments of its `PartReader`."""

    stream: Stream
    rows: int
    places: Mapping[int, Place]

    @property
    def ahead(self) -> int:
        """Parts that may wait: shards run out of rows at about the same time, a group's worth evens that out."""
        return 2 + self.stream.data.pack_rows // self.rows

    def open(self) -> PartReader:
        return PartReader(self.stream, self.rows, self.places)


@dataclass(frozen=True)
class Failure:
    """What a reader process says when it cannot go on."""

    message: str
    details: str


class ReaderProcess:
    """A `PartReader` in a process of its own: a fresh interpreter that imports neither TensorFlow nor JAX.

    Not `multiprocessing`, whose spawned children import the parent's main module first. The process gets its own
    session, so Ctrl-C reaches the parent alone, and it ends as soon as its stdin closes, however the parent ends.
    """

    def __init__(self, job: Any):
        """Starts the process; `start` tells it its job, a `Job` or another with `ahead` and `open()`."""
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from t0jax.data.reading import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._stop = weakref.finalize(self, _stop_process, self._process)
        self._job = job

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Sends the job; apart from the constructor so that several processes come up at the same time."""
        with self._died():
            self._process.stdin.write(pickle.dumps(self._job))
            self._process.stdin.flush()

    def read(self) -> tuple[Any, Any]:
        """The next part and the places after it; waits for the process if need be."""
        with self._died():
            message = pickle.load(self._process.stdout)
        if isinstance(message, Failure):
            error = ReadError(message.message)
            error.add_note(f"In the reader process:\n{message.details}")
            raise error
        return message

    def close(self) -> None:
        """Ends the process at once."""
        self._stop()

    @contextlib.contextmanager
    def _died(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            code = self._end()
            raise ReadError(
                f"a reader process died with exit code {code} (-9: killed, perhaps for want of memory)"
            ) from error

    def _end(self) -> int:
        """Exit code of a process that has closed its pipe or sent nonsense; one that lingers is killed."""
        try:
            return self._process.wait(timeout=_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _stop_process(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):  # what it never read is of no use now
        process.stdin.close()


class _Outbox:
    """Sends from its own thread, so that the next parts are made while one travels."""

    def __init__(self, pipe: BinaryIO):
        self._pipe = pipe
        self._waiting: queue.Queue = queue.Queue(2)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def hold(self, parts: int) -> None:
        """How many parts may wait."""
        self._waiting.maxsize = parts

    def put(self, message: tuple[Any, Any] | Failure) -> None:
        """Waits while there are too many."""
        self._waiting.put(message)

    def finish(self) -> None:
        """Waits until all is sent."""
        self._waiting.put(None)
        self._thread.join()

    def _send(self) -> None:
        try:
            while (message := self._waiting.get()) is not None:
                pickle.dump(message, self._pipe, pickle.HIGHEST_PROTOCOL)
                self._pipe.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(0)
        except BaseException:  # the parent would wait for ever for what cannot be sent
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def serve() -> None:
    """The main function of a reader process: a `Job` comes in on stdin, parts go out on stdout.

    The process ends when stdin closes, that is when its parent closes it or dies. Signals meant for the run (Ctrl-C,
    a scheduler's SIGTERM to everyone) are left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    outbox = _Outbox(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # a stray print must not land among the parts
    try:
        _read_for_ever(sys.stdin.buffer, outbox)
    except Exception as error:
        message = str(error) if isinstance(error, ReadError) else f"{type(error).__name__}: {error}"
        outbox.put(Failure(message, traceback.format_exc()))
    outbox.finish()
    os._exit(0)  # a thread still waits on stdin, which an orderly exit would trip over


def _read_for_ever(stdin: BinaryIO, outbox: _Outbox) -> None:
    job = pickle.load(stdin)
    threading.Thread(target=_die_with_parent, args=(stdin,), daemon=True).start()
    outbox.hold(job.ahead)
    reader = job.open()
    while True:
        outbox.put(reader.read())


def _die_with_parent(stdin: BinaryIO) -> None:
    stdin.read()
    os._exit(0)
