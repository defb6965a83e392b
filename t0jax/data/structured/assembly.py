"""Putting items together into batches of fixed shape: which items, how long the rows, which micro-batch.

`Mixed`: items of any tasks, in the stream's order as far as lengths allow. Each waits in its length's bucket until one
of the buckets fills a batch; an item that has waited for long (`patience`) rides in the next batch, whatever the
length of the others. `SingleTask`: every micro-batch holds items of one task, drawn by the tasks' rates; nothing waits.

Row r belongs to micro-batch r % parts, and the rows of an item all lie in one.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t0jax.data.mixing import MixtureOrder
from t0jax.data.structured.items import (
    ChunkReader,
    Drawn,
    ItemStream,
    Place,
    Readers,
    draw_number,
    read_again,
)

MOST_WAIT = 64
"""Batches whose rows are the most draws that an item waits for others of its length."""

_WAITS_AN_EPOCH = 2
"""Of little data an item waits for no more than half an epoch."""

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

    @classmethod
    def of(cls, layout: Layout, items: Sequence[tuple[Drawn, tuple[int, ...]]]) -> "Placed":
        """With rows as long as the items need."""
        bucket = max(layout.bucket(one.item.length) for one, _ in items)
        return cls(tuple(items), layout.lengths[bucket])


def patience(stream: ItemStream, layout: Layout) -> int:
    """Draws after which an item that waits for others of its length goes before them.

    At most half an epoch: so after the steps of k epochs every row was trained on k times, give or take one.
    """
    epoch = sum(stream.tasks[number].length for number in stream.numbers())
    return min(MOST_WAIT * layout.rows, epoch // _WAITS_AN_EPOCH)


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
    """Batches of a mixture's stream; every item of the stream is in exactly one.

    No more is read ahead than fills a batch of every length and a chunk of draws. Where an item is one row, none is in
    a batch while another waits that stands `patience` draws or more before it; questions may be a batch later.
    """

    def __init__(self, stream: ItemStream, layout: Layout, open_source: OpenSource, state: Any):
        """`state` is one that `state` gave, or None for the start."""
        self._layout = layout
        self._patience = patience(stream, layout)
        self._next: Place = state["next"] if state else 0
        self._source = open_source(stream, self._next)
        self._waiting: list[list[Drawn]] = [[] for _ in layout.lengths]
        """By bucket, in the stream's order."""
        self._rows = [0] * len(layout.lengths)
        """By bucket: rows of the items that wait."""
        self._wait(read_again(stream, state["waiting"]) if state else ())

    def state(self) -> dict[str, Any]:
        """Where the stream goes on, and the places of the items that wait."""
        return {"next": self._next, "waiting": sorted(one.place for one in self._all_waiting())}

    def next(self) -> Placed:
        """The next batch."""
        while (fullest := self._fullest()) is None:
            found, self._next = self._source.read()
            self._wait(found)
        return self._take(fullest)

    def close(self) -> None:
        self._source.close()

    def _all_waiting(self) -> Iterator[Drawn]:
        return itertools.chain.from_iterable(self._waiting)

    def _wait(self, found: Iterable[Drawn]) -> None:
        for drawn in found:
            bucket = self._layout.bucket(drawn.item.length)
            self._waiting[bucket].append(drawn)
            self._rows[bucket] += len(drawn.item.rows)

    def _fullest(self) -> int | None:
        """The bucket with most rows, once they fill a batch."""
        bucket = max(range(len(self._rows)), key=self._rows.__getitem__)
        if self._rows[bucket] < self._layout.rows:
            return None
        # A few rows more than a batch has leave fewer gaps.
        widest = max(len(one.item.rows) for one in self._waiting[bucket])
        spare = self._layout.parts * (widest - 1)
        return bucket if self._rows[bucket] >= self._layout.rows + spare else None

    def _take(self, fullest: int) -> Placed:
        """Items that have waited too long, the oldest first, then those of the bucket, then shorter ones.

        The bucket is the fullest, or that of a longer item that has waited too long: it needs the shorter ones, where
        a shorter item rides in any batch.
        """
        bins = _Bins(self._layout)
        items = list(bins.fill(self._overdue()))
        bucket = max([fullest, *(self._layout.bucket(one.item.length) for one, _ in items)])
        gone = {one.place for one, _ in items}
        for number in range(bucket, -1, -1):
            left = (one for one in self._waiting[number] if one.place not in gone)
            items += bins.fill(left)
        self._remove(one for one, _ in items)
        return Placed.of(self._layout, items)

    def _overdue(self) -> list[Drawn]:
        """Items that have waited for `patience` draws, the oldest first."""
        last = draw_number(self._next) - self._patience
        overdue = (one for one in self._all_waiting() if draw_number(one.place) <= last)
        return sorted(overdue, key=lambda one: one.place)

    def _remove(self, items: Iterable[Drawn]) -> None:
        gone = {one.place for one in items}
        for number, waiting in enumerate(self._waiting):
            self._waiting[number] = [one for one in waiting if one.place not in gone]
            self._rows[number] = sum(len(one.item.rows) for one in self._waiting[number])


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
        return Placed.of(self._layout, items)

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
