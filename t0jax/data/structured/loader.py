"""Batches of structured tasks, and what a run has to know about them: heads, records, texts.

Every process puts the same batches together and keeps its own rows of them: an item's rows may then lie on several
processes, the row length follows from the items themselves, and nothing depends on the number of processes. The
price is that each reads all texts; `data.workers` reader processes share that work, of `data.batching: mixed`.
`data.shards`, `pack`, `pack_rows` and `target_length` play no part.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t0jax import config
from t0jax.data.iterators import GO_BACK, Loader, differences, digest
from t0jax.data.missing import report
from t0jax.data.reading import Batch
from t0jax.data.registry import find_tasks
from t0jax.data.rows import DataError, DataUnavailable
from t0jax.data.shares import weight
from t0jax.data.structured.assembly import Layout, Mixed, Placed, SingleTask, Source
from t0jax.data.structured.encoding import rows_to_batch
from t0jax.data.structured.items import (
    ChunkReader,
    Drawn,
    ItemStream,
    Place,
    Readers,
    StructuredTask,
    lists_all,
    read_texts,
)
from t0jax.data.structured.pieces import PairPieces
from t0jax.data.structured.records import RecordError
from t0jax.data.structured.rows import StructuredRows

log = logging.getLogger("t0jax")

ORDER_VERSION = 3
"""Raised with every change of the code after which the same settings give other batches."""

PROBED = 50
"""Rows of a task, from all over, that are read when it is opened."""

MOST_BARREN = 2_000
"""Rows of a task, all without an example, after which it is refused."""

_SHOWN = 10


class MultitaskLoader(Loader):
    """Reads a stream of structured items; batches as `encoding.rows_to_batch` says, of one of `data.length_buckets`."""

    def __init__(
        self,
        stream: ItemStream,
        *,
        process_index: int = 0,
        process_count: int = 1,
        parts: int = 1,
    ):
        """`parts` micro-batches a batch: row r is of micro-batch r % parts, and an item's rows all lie in one.

        Raises:
          config.ConfigError: sizes that do not divide, or a micro-batch too small for a question's options.
        """
        data = stream.data
        self.heads = tuple(task.rows.record.head() for task in stream.tasks)
        _check_layout(data, self.heads, process_count, parts)
        self._stream = stream
        self._layout = Layout(data.batch_size, data.length_buckets or (data.input_length,), parts)
        own = data.batch_size // process_count
        self._own = slice(process_index * own, (process_index + 1) * own)
        self._fingerprint = fingerprint(stream)
        self._assembler: Mixed | SingleTask | None = None
        self._place: dict[str, Any] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Ids of the tasks that are read, in the order of their numbers."""
        return tuple(task.name for task in self._stream.tasks)

    def __next__(self) -> Batch:
        try:
            self._assembler = self._assembler or self._start()
            placed = self._assembler.next()
        except BaseException:
            self.close()  # the next call starts again from the last place returned
            raise
        self._place = self._assembler.state()
        return self._batch(placed)

    def counts(self, batch: Batch) -> tuple[float, dict[str, float]]:
        tokens = float(np.count_nonzero(batch["encoder_segment_ids"]))
        examples = int(np.count_nonzero(batch["loss_weights"]))
        return tokens, self._cut_share(examples)

    def state(self) -> dict[str, Any]:
        return {"stream": self._fingerprint, "items": self._place}

    def restore(self, state: Mapping[str, Any]) -> None:
        found = list(_changes(state.get("stream", {}), self._fingerprint))
        if found:
            raise config.ConfigError(
                f"the saved data position is of another stream: {'; '.join(found)}. {GO_BACK} (or state, which keeps "
                "the optimizer and the step too)"
            )
        self.close()
        self._place = state["items"]

    def close(self) -> None:
        if self._assembler is not None:
            self._assembler.close()
            self._assembler = None

    def _start(self) -> Mixed | SingleTask:
        if self._stream.data.batching == "single_task":
            return SingleTask(self._stream, self._layout, ChunkReader, self._place)
        return Mixed(self._stream, self._layout, self._open, self._place)

    def _open(self, stream: ItemStream, start: Place) -> Source:
        workers = stream.data.workers
        return Readers(stream, start, workers) if workers else ChunkReader(stream, start)

    def _batch(self, placed: Placed) -> Batch:
        """This process's rows; counts the items with their label here that were cut."""
        items = [(one.task, one.item, rows) for one, rows in placed.items]
        whole = rows_to_batch(items, self.heads, self._layout.rows, placed.length)
        here = range(self._own.start, self._own.stop)
        self.cut_examples = sum(
            one.item.cut and self._labelled(one, rows) in here for one, rows in placed.items
        )
        return {name: array[self._own] for name, array in whole.items()}

    def _labelled(self, drawn: Drawn, rows: tuple[int, ...]) -> int:
        choice = self.heads[drawn.task].kind == "multiple_choice"
        return rows[drawn.item.label] if choice else rows[0]


def _check_settings(data: config.Data) -> None:
    """Raises ConfigError for settings that structured tasks do not follow."""
    for name in (
        "cache_dir",
        "view",
        "num_negatives",
        "instruction_split",
        "truncation",
        "input_eos",
    ):
        value = getattr(data, name)
        if value != getattr(config.Data, name):
            raise config.ConfigError(
                f"data.{name}={value} is only for tasks of texts to texts, not for the structured ones of "
                f"{data.mixture!r}; leave it out"
            )


def _check_layout(
    data: config.Data, heads: tuple[config.Head, ...], process_count: int, parts: int
) -> None:
    for count, what in ((process_count, "processes"), (parts, "micro-batches a step")):
        if data.batch_size < 1 or data.batch_size % count:
            raise config.ConfigError(
                f"data.batch_size={data.batch_size} must be a multiple of the {count} {what}"
            )
    asks = any(head.kind == "multiple_choice" for head in heads)
    if asks and data.batch_size // parts < data.max_choices:
        raise config.ConfigError(
            f"a micro-batch of {data.batch_size // parts} rows (data.batch_size={data.batch_size} over {parts}) cannot "
            f"hold a question with data.max_choices={data.max_choices} options; "
            f"{'lower train.grad_accumulation' if parts > 1 else 'raise data.batch_size'} or lower data.max_choices"
        )


def fingerprint(stream: ItemStream) -> dict[str, Any]:
    """What a position is only valid with: settings, and digests of each task (record and data) and the vocabulary."""
    names = ("seed", "input_length", "max_choices", "num_shots", "batching")
    return {f"data.{name}": getattr(stream.data, name) for name in names} | {
        "structured order": ORDER_VERSION,
        "tasks": {
            task.name: digest(json.dumps([task.length, task.rate, *task.identity]))
            for task in stream.tasks
        },
        "vocabulary": digest(stream.pieces.path.read_bytes()),
    }


def _changes(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What a saved fingerprint has otherwise than the one here, tasks by name."""
    yield from differences(saved, {name: here[name] for name in here if name != "tasks"})
    before, now = saved.get("tasks"), here["tasks"]
    if not isinstance(before, Mapping):
        return  # of an older order, which differs anyway
    both = before.keys() & now.keys()
    for names, what in (
        (before.keys() - now.keys(), "no longer read"),
        (now.keys() - before.keys(), "new"),
        ({name for name in both if before[name] != now[name]}, "changed (record, share or data)"),
    ):
        shown = ", ".join(sorted(names)[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        if names:
            yield f"{len(names)} {'task is' if len(names) == 1 else 'tasks are'} {what}: {shown}"


# ------------------------------------------------------------------------------------- opening tasks


def make_multitask_loader(
    data: config.Data, pieces: PairPieces, *, process_index: int, process_count: int, parts: int
) -> MultitaskLoader:
    """The loader of a mixture of structured tasks.

    Raises:
      config.ConfigError, DataUnavailable, RecordError: as `open_tasks`, or as `MultitaskLoader`.
    """
    _check_settings(data)
    if data.workers and data.batching == "single_task":
        log.warning("data.workers %d plays no part in data.batching single_task", data.workers)
    _ = pieces.size  # a missing or unfit vocabulary is an error now
    stream = ItemStream(tuple(open_tasks(data)), pieces, data)
    return MultitaskLoader(
        stream, process_index=process_index, process_count=process_count, parts=parts
    )


def structured_heads(data: config.Data) -> tuple[config.Head, ...]:
    """Heads of the tasks of `data.mixture` that can be had, in the order of their numbers: sorted by id.

    Raises:
      config.ConfigError, DataUnavailable, RecordError: as `open_tasks`.
    """
    return tuple(task.rows.record.head() for task in open_tasks(data))


def structured_texts(data: config.Data) -> Iterator[str]:
    """The texts of the mixture in reading order, of as many examples as it has rows; needs no vocabulary."""
    return read_texts(ItemStream(tuple(open_tasks(data)), PairPieces(""), data))


def open_tasks(data: config.Data) -> list[StructuredTask]:
    """The tasks of `data.mixture` with their training data opened and a few rows read, sorted by id.

    Raises:
      DataUnavailable: some data sets cannot be had, or their files are broken or empty (unless `data.available_only`);
        the text is a table of all.
      config.ConfigError: none can.
      RecordError: a record reads a column that is not there, a row that was tried is wrong, or none gives an example.
    """
    rates = find_tasks(data)
    opened, wrong, missing = [], [], defaultdict(list)
    for name, source in _sources(rates):
        try:
            opened.append(_make_task(_open_rows(source, data), rates[name], data))
        except DataUnavailable as error:
            missing[error.dataset, error.reason, error.way_out].append(source.record.name)
        except RecordError as error:
            wrong.append(error)
    report(data, missing, len(rates))
    if wrong:
        raise _told_together(wrong, data)
    return sorted(opened, key=lambda task: task.name)


def _sources(names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    import seqio

    for name in names:
        yield name, seqio.TaskRegistry.get(name).source


def _open_rows(source: Any, data: config.Data) -> StructuredRows:
    """Raises DataUnavailable, for files that are there but broken or empty too, and RecordError."""
    rows = source.rows(
        data.split, local_dir=data.local_dir, seed=data.seed, max_choices=data.max_choices
    )
    try:
        rows.open()
    except DataError as error:
        raise DataUnavailable(rows.spec.name, str(error)) from error
    if not len(rows):  # of a part of a split
        raise DataUnavailable(rows.spec.name, f"split {data.split!r} is empty")
    return rows


def _told_together(wrong: Sequence[RecordError], data: config.Data) -> RecordError:
    first, *others = wrong
    names = ", ".join(repr(error.task) for error in others[:_SHOWN]) + ", ..." * (
        len(others) > _SHOWN
    )
    also = f"; {len(others)} more cannot be read: {names}" if others else ""
    return RecordError(first.task, first.row, f"{first.reason}{also}; {lists_all(data)}")


def check_rows(
    data: config.Data, read: dict[str, int] | None = None
) -> Iterator[tuple[str, int | None, str]]:
    """(task, row in the data, what is wrong) of all that stops training on `data.mixture`; reads every row.

    The row is None for what holds of the whole task. Tasks whose data cannot be had are told too, unless
    `data.available_only`. `read` is filled with the number of rows of every task that was read.

    Raises:
      config.ConfigError: no such mixture.
    """
    for _, source in _sources(find_tasks(data)):
        task = source.record.name
        try:
            rows = _open_rows(source, data)
        except DataUnavailable as error:
            if not data.available_only:
                yield task, None, str(error)
        except config.UserError as error:
            yield task, None, getattr(error, "reason", str(error))
        else:
            yield from ((task, row, reason) for row, reason in _check_task(rows))
            if read is not None:
                read[task] = len(rows)


def _check_task(rows: StructuredRows) -> Iterator[tuple[int | None, str]]:
    examples = wrong = 0
    for number in range(len(rows)):
        try:
            examples += rows[number] is not None
        except config.UserError as error:
            wrong += 1
            yield getattr(error, "row", number), getattr(error, "reason", str(error))
    if not examples and not wrong:
        yield None, _barren(len(rows))


def _barren(count: int) -> str:
    return f"none of the {count:,} rows looked at gives an example: they tell no label; look for a split that does"


def _make_task(rows: StructuredRows, rate: float, data: config.Data) -> StructuredTask:
    chosen = rows.chosen(data.num_shots)
    length = len(rows) if chosen is None else len(chosen)
    _try_rows(rows, np.arange(length) if chosen is None else chosen)
    rate = weight(data, rate, length)
    identity = (rows.split_in_data, *rows.record.identity, *rows.data_sizes())
    return StructuredTask(rows, length, rate, chosen, identity)


def _try_rows(rows: StructuredRows, numbers: np.ndarray) -> None:
    """Reads some rows from all over, and where none gives an example the first ones too.

    Raises:
      RecordError: one of them is wrong, or none gives an example.
    """
    spread = numbers[np.linspace(0, len(numbers) - 1, min(PROBED, len(numbers))).astype(int)]
    examples = [rows[number] for number in spread.tolist()]
    if any(example is not None for example in examples):
        return
    first = numbers[:MOST_BARREN].tolist()
    if all(rows[number] is None for number in first):
        raise RecordError(rows.record.name, None, _barren(len(first)))
