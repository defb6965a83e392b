"""From a mixture's name to the loader that reads it.

`make_loader` looks the mixture up in seqio's registry. When all its tasks read by index (`sources.PromptSource`), it
is read by index: hundreds of tasks start in seconds, batches are a pure function of (config, seed, data), whatever
the number of processes and of reader processes, and the position is two integers a virtual shard. Any other mixture
goes through `seqio.get_dataset`, one seqio shard a process, and so does one that is read from `data.cache_dir`.
"""

import functools
import hashlib
import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t0jax import config
from t0jax.data.iterators import IndexLoader, Loader, SeqioLoader, check_layout
from t0jax.data.mixing import shuffled
from t0jax.data.reading import Stream, Task, read_texts, render
from t0jax.data.registry import find_tasks, find_vocabulary, reads_by_index
from t0jax.data.rows import DataUnavailable, PromptedRows
from t0jax.data.views import find_view
from t0jax.data.vocabulary import Pieces

log = logging.getLogger("t0jax")


def make_loader(data: config.Data, *, process_index: int = 0, process_count: int = 1) -> Loader:
    """The loader of `data.mixture` for one process.

    Raises:
      config.ConfigError: unknown mixture, sizes that do not divide, or no task left to read.
      DataUnavailable: data sets cannot be had, all of them in one table (unless `data.available_only`).
    """
    rates = find_tasks(data)
    other = next((name for name in rates if not reads_by_index(name)), None)
    if data.cache_dir:
        return SeqioLoader(data, process_index=process_index, process_count=process_count)
    if other is not None:
        log.warning("%r goes through seqio: its task %r is not read by index", data.mixture, other)
        return SeqioLoader(data, process_index=process_index, process_count=process_count)
    check_layout(data, process_count)
    pieces = Pieces(find_vocabulary(data))
    pieces.encode("")  # a missing or broken vocabulary is an error now, not in a reader process
    stream = make_stream(data, rates, pieces)
    return IndexLoader(stream, process_index=process_index, process_count=process_count)


def mixture_texts(data: config.Data) -> Iterator[str]:
    """Inputs and targets of a by-index mixture in reading order, as many as it has rows; needs no vocabulary.

    For training a vocabulary on a mixture's text.

    Raises:
      config.ConfigError: a task is not read by index; and as `make_stream`.
    """
    rates = find_tasks(data)
    other = next((name for name in rates if not reads_by_index(name)), None)
    if other is not None:
        raise config.ConfigError(
            f"no vocabulary can be trained on {data.mixture!r}: its task {other!r} is not read by index"
        )
    stream = make_stream(data, rates, Pieces(""))
    rows = sum(task.length for task in stream.tasks)
    for texts in itertools.islice(read_texts(stream), rows):
        yield from texts


def make_stream(data: config.Data, rates: Mapping[str, float], pieces: Pieces) -> Stream:
    """The stream of by-index tasks whose data can be had.

    Raises:
      DataUnavailable: some cannot (unless `data.available_only`); its text is a table of all of them.
      config.ConfigError: none can, or no prompt of those that can gives an example.
    """
    opened, missing = _open_tasks(data, rates)
    if missing:
        _report(data, missing, len(rates))
    if not opened:
        raise config.ConfigError(
            f"none of the data sets of {data.mixture!r} can be had; {_data_dir()}"
        )
    with_words = [task for task in opened if _has_words(task)]
    _tell_left_out(opened, with_words, "their prompts have no words to generate")
    if not with_words:
        raise config.ConfigError(
            f"no prompt of {data.mixture!r} has words of its own, which view flipped learns; set data.view to channel "
            "or direct"
        )
    return Stream(tuple(_with_examples(with_words, data)), pieces, data)


def _open_tasks(
    data: config.Data, rates: Mapping[str, float]
) -> tuple[list[Task], dict[tuple[str, str, str], list[str]]]:
    """The tasks that can be read, and the names of the others by data set, reason and way out."""
    import seqio

    tasks, missing = [], defaultdict(list)
    for name, rate in rates.items():
        source = seqio.TaskRegistry.get(name).source
        try:
            tasks.append(_make_task(name, rate, source, data))
        except DataUnavailable as error:
            missing[error.dataset, error.reason, error.way_out].append(name)
    return tasks, missing


def _make_task(name: str, rate: float, source: Any, data: config.Data) -> Task:
    """The task with its data opened. Raises DataUnavailable."""
    view = data.view or source.view
    rows = source.rows(data.split, view=view, instruction_split=data.instruction_split)
    if not len(rows):
        raise DataUnavailable(source.spec.name, f"split {data.split!r} is empty")
    chosen = draw_shots(f"{rows.spec.name}/{rows.split}", len(rows), data.num_shots, data.seed)
    length = len(chosen) or len(rows)
    weight = rate if data.rates == "registered" else float(length)
    identity = _identity(view, source.seed, rows)
    return Task(name, rows, length, weight, find_view(view), identity, chosen)


# A data set's tasks share one tuple, in memory and on the way to reader processes.
@functools.lru_cache(maxsize=4096)
def draw_shots(dataset: str, size: int, shots: int, seed: int) -> tuple[int, ...]:
    """Numbers of `shots` of a data set's `size` rows, in order; none, which means all, for 0 or as many as there are.

    A function of its arguments: all prompts of a data set get the same rows. Fewer shots are some of more.
    """
    if shots > size:
        log.warning(
            "%s has %d rows, fewer than data.num_shots %d: all are read", dataset, size, shots
        )
    if not 0 < shots < size:
        return ()
    key = hashlib.blake2b(f"{seed}:{dataset}:shots".encode(), digest_size=8).digest()
    lengths, keys = np.full((2, shots), [[size], [int.from_bytes(key, "little")]], np.uint64)
    return tuple(sorted(shuffled(np.arange(shots), lengths, keys).tolist()))


def _has_words(task: Task) -> bool:
    return not task.view.needs_split or task.rows.template.has_instruction


def _with_examples(tasks: list[Task], data: config.Data) -> list[Task]:
    """The tasks without those that are cut down to rows of which none gives an example."""
    taught = [
        task
        for task in tasks
        if not task.chosen or any(render(task, row, 0, data) for row in range(task.length))
    ]
    _tell_left_out(tasks, taught, f"none of their {data.num_shots} rows gives an example")
    if not taught:
        raise config.ConfigError(
            f"none of the {data.num_shots} rows of each data set gives an example; raise data.num_shots"
        )
    return taught


def _tell_left_out(before: list[Task], after: list[Task], reason: str) -> None:
    names = {task.name for task in after}
    left_out = [task.name for task in before if task.name not in names]
    if left_out:
        log.warning("left out, for %s: %s", reason, ", ".join(left_out))


def _identity(view: str, seed: int, rows: PromptedRows) -> tuple[Any, ...]:
    """What a task's examples depend on besides their number; the same for copies of the same data."""
    template = rows.template
    prompt = (template.jinja, template.answer_choices, *rows.label_words)
    return (view, seed, *prompt, *rows.data_sizes())


@functools.cache
def _warn_once(text: str) -> None:
    """A run reads its mixture twice where it trains its vocabulary; one table is enough."""
    log.warning("%s", text)


def _report(
    data: config.Data, missing: Mapping[tuple[str, str, str], list[str]], task_count: int
) -> None:
    """Logs the table of unavailable data sets, or raises it."""
    rest = task_count - sum(map(len, missing.values()))
    table = "\n".join(_missing_lines(data.mixture, missing, task_count))
    if data.available_only:
        _warn_once(table + (f"\n  going on with the other {_count(rest, 'task')}" if rest else ""))
        return
    ways_out = [f"put the data there ({_data_dir()})"]
    ways_out += ["go on with the rest by data.available_only: true"] if rest else []
    datasets = ", ".join(dataset for dataset, _, _ in missing)
    raise DataUnavailable(datasets, table, ", or ".join(ways_out))


def _missing_lines(
    mixture: str, missing: Mapping[tuple[str, str, str], list[str]], task_count: int
) -> Iterator[str]:
    lost = sum(map(len, missing.values()))
    head = f"{_count(len(missing), 'data set')} ({lost} of {_count(task_count, 'task')})"
    yield f"{head} of {mixture!r} cannot be had:"
    width = max(len(dataset) for dataset, _, _ in missing)
    for (dataset, reason, way_out), names in missing.items():
        place = way_out.removeprefix("put the data at ")  # said once, below the table
        yield f"  {dataset:{width}}  {_count(len(names), 'task'):>9}  {reason}" + (
            place and f"; {place}"
        )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _data_dir() -> str:
    where = os.environ.get("T0JAX_DATA_DIR")
    return f"T0JAX_DATA_DIR is {where}" if where else "T0JAX_DATA_DIR is not set"
