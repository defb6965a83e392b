"""Putting items together into batches of fixed shape: which items, how long the rows, which micro-batch.

`Mixed`: items of any tasks, in the stream's order as far as lengths allow. Each waits in its length's bucket until one
of the buckets fills a batch; an item that has waited for `MOST_WAIT` batches calls its bucket, and shorter items ride
along. `SingleTask`: every micro-batch holds items of one task, drawn by the tasks' rates, and nothing waits.

Row r belongs to micro-batch r % parts, and the rows of an item all lie in one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t0jax.data.mixing import MixtureOrder
from t0jax.data.structured.items import ChunkReader, Drawn, ItemStream, Place, Readers, read_again

MOST_WAIT = 64
"""Batches after which an item that waits for others of its length calls its bucket."""

_LOOKED_AT = 32  # rows that tell how many options a task's questions have

Source = ChunkReader | Readers
OpenSource = Callable[[ItemStream, Place], Source]


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of batches: `rows`, the `lengths` to choose from in rising order, and micro-batches a batch."""

    rows: int
    lengths: tuple[int, ...]
    parts: int

    def bucket(self, length: int) -> int:
        """Number of the shortest length that holds so many tokens."""
        return next(i for i, longest in enumerate(self.lengths) if length <= longest)


@dataclass(frozen=True, slots=True)
class Placed:
    """A batch before it is written: its items with the rows that each takes, and the length of the rows."""

    items: tuple[tuple[Drawn, tuple[int, ...]], ...]
    length: int


class _Bins:
    """The free rows of a batch's micro-batches; an item goes where most is free, all its rows side by side."""

    def __init__(self, layout: Layout, numbers: Iterable[int] | None = None):
        self._layout = layout
        self._size = layout.rows // layout.parts
        self._free = dict.fromkeys(range(layout.parts) if numbers is None else numbers, self._size)

    @property
    def free(self) -> int:
        """Rows still free."""
        return sum(self._free.values())

    def place(self, rows: int) -> tuple[int, ...] | None:
        """Rows of the batch for an item; None where no micro-batch has so many free."""
        number = max(self._free, key=lambda n: (self._free[n], -n))
        if self._free[number] < rows:
            return None
        first = self._size - self._free[number]
        self._free[number] -= rows
        return tuple((first + i) * self._layout.parts + number for i in range(rows))

    def fill(self, drawn: Iterable[Drawn]) -> Iterator[tuple[Drawn, tuple[int, ...]]]:
        """Those of some items that find room, in order."""
        for one in drawn:
            if not self.free:
                return
            places = self.place(len(one.item.rows))
            if places is not None:
                yield one, places


class Mixed:
    """Batches of a mixture's stream; every item of the stream is in exactly one."""

    def __init__(self, stream: ItemStream, layout: Layout, open_source: OpenSource, state: Any):
        """`state` is one that `state` gave, or None for the start."""
        self._layout = layout
        self._next: Place = state["next"] if state else 0
        self._number: int = state["batches"] if state else 0
        self._source = open_source(stream, self._next)
        self._waiting: list[list[tuple[int, Drawn]]] = [[] for _ in layout.lengths]
        """By bucket: the batch it has waited since, and the item; the oldest first."""
        since = dict(state["waiting"]) if state else {}
        for drawn in read_again(stream, list(since)):
            self._wait(since[drawn.place], drawn)

    def state(self) -> dict[str, Any]:
        """Where the stream goes on, the batches so far, and [place, batch] of every item that waits."""
        waiting = [[one.place, since] for bucket in self._waiting for since, one in bucket]
        return {"next": self._next, "batches": self._number, "waiting": sorted(waiting)}

    def next(self) -> Placed:
        """The next batch."""
        called = self._called()
        while (bucket := self._ready(called)) is None:
            found, self._next = self._source.read()
            for drawn in found:
                self._wait(self._number, drawn)
        placed = self._take(bucket)
        self._number += 1
        return placed

    def close(self) -> None:
        self._source.close()

    def _wait(self, since: int, drawn: Drawn) -> None:
        self._waiting[self._layout.bucket(drawn.item.length)].append((since, drawn))

    def _called(self) -> int | None:
        """The bucket of the item that has waited too long."""
        oldest = [
            (waiting[0][0], bucket) for bucket, waiting in enumerate(self._waiting) if waiting
        ]
        since, bucket = min(oldest, default=(self._number, 0))
        return bucket if self._number - since >= MOST_WAIT else None

    def _ready(self, called: int | None) -> int | None:
        """The bucket called, once it and the shorter ones fill a batch; without one, the fullest that does."""
        sizes = [[len(one.item.rows) for _, one in waiting] for waiting in self._waiting]
        if called is None:
            bucket = max(range(len(sizes)), key=lambda n: sum(sizes[n]))
            candidates = sizes[bucket]
        else:
            bucket, candidates = called, [n for some in sizes[: called + 1] for n in some]
        # A few rows more than a batch has leave fewer gaps.
        spare = self._layout.parts * (max(candidates, default=1) - 1)
        return bucket if sum(candidates) >= self._layout.rows + spare else None

    def _take(self, bucket: int) -> Placed:
        """Items of a bucket, the oldest first, then of shorter ones where rows are left."""
        bins, items = _Bins(self._layout), []
        for number in range(bucket, -1, -1):
            waiting = self._waiting[number]
            taken = list(bins.fill(one for _, one in waiting))
            gone = {one.place for one, _ in taken}
            self._waiting[number] = [entry for entry in waiting if entry[1].place not in gone]
            items += taken
        return Placed(tuple(items), self._layout.lengths[bucket])


class SingleTask:
    """Batches whose micro-batches hold one task each, as long as their longest row needs."""

    def __init__(self, stream: ItemStream, layout: Layout, open_source: OpenSource, state: Any):
        """`state` is one that `state` gave, or None for the start."""
        self._stream, self._layout, self._open = stream, layout, open_source
        self._turn: int = state["turn"] if state else 0
        self._next: dict[int, Place] = (
            {int(t): p for t, p in state["next"].items()} if state else {}
        )
        self._sources: dict[int, Source] = {}
        self._waiting: dict[int, list[Drawn]] = {}
        names = [task.name for task in stream.tasks]
        # As many micro-batches of a task as its examples need: those of questions hold fewer.
        rates = [task.rate * rows for task, rows in zip(stream.tasks, self._widths(), strict=True)]
        self._turns = MixtureOrder(names, [1] * len(names), rates, stream.data.seed)

    def state(self) -> dict[str, Any]:
        """Whose turn it is, and by task, where its next item stands."""
        first = {task: ones[0].place for task, ones in self._waiting.items() if ones}
        return {"turn": self._turn, "next": {str(t): p for t, p in (self._next | first).items()}}

    def next(self) -> Placed:
        """The next batch."""
        items = []
        for part in range(self._layout.parts):
            items += self._take(self._draw_task(), part)
        longest = max(one.item.length for one, _ in items)
        return Placed(tuple(items), self._layout.lengths[self._layout.bucket(longest)])

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    def _task(self, number: int) -> ItemStream:
        return replace(self._stream, only=number)

    def _widths(self) -> Iterator[float]:
        """Rows of an example of each task, as its first ones have them."""
        for number, task in enumerate(self._stream.tasks):
            found = [
                self._stream.example(number, row) for row in range(min(_LOOKED_AT, task.length))
            ]
            sizes = [len(example.texts) or 1 for example in found if example is not None]
            yield sum(sizes) / len(sizes) if sizes else 1.0

    def _draw_task(self) -> int:
        """Whose turn it is; a block's turns, about 4,096, are in proportion to the rates."""
        block, offset = self._turn >> 20, self._turn & ((1 << 20) - 1)
        tasks = self._turns.block(block).task
        if offset >= len(tasks):
            block, offset = block + 1, 0
            tasks = self._turns.block(block).task
        self._turn = (block << 20) | (offset + 1)
        return int(tasks[offset])

    def _take(self, task: int, part: int) -> Sequence[tuple[Drawn, tuple[int, ...]]]:
        bins, taken = _Bins(self._layout, [part]), []
        while bins.free:
            if not self._waiting.get(task):
                self._read(task)
                continue
            places = bins.place(len(self._waiting[task][0].item.rows))
            if places is None:  # the next question does not fit into what is left
                break
            taken.append((self._waiting[task].pop(0), places))
        return taken

    def _read(self, task: int) -> None:
        if task not in self._sources:
            self._sources[task] = self._open(self._task(task), self._next.get(task, 0))
        self._waiting[task], self._next[task] = self._sources[task].read()
