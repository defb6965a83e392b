"""From a mixture's name to the loader that reads it.

`make_loader` looks the mixture up in seqio's registry. When all its tasks read by index (`sources.PromptSource`), it
is read by index: hundreds of tasks start in seconds, batches are a pure function of (config, seed, data), whatever
the number of processes and of reader processes, and the position is two integers a virtual shard. Structured tasks
(`structured.source`) go to `structured.loader`. Any other mixture goes through `seqio.get_dataset`, one seqio shard a
process, and so does one that is read from `data.cache_dir`.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t0jax import config
from t0jax.data import registry
from t0jax.data.iterators import IndexLoader, Loader, SeqioLoader, check_layout
from t0jax.data.missing import report
from t0jax.data.reading import Stream, Task, read_texts, render
from t0jax.data.registry import find_tasks, holds_structured, reads_by_index
from t0jax.data.rows import DataUnavailable, PromptedRows
from t0jax.data.shares import weight
from t0jax.data.shots import draw_shots
from t0jax.data.structured.loader import (
    make_multitask_loader,
    structured_heads,
    structured_texts,
)
from t0jax.data.structured.pieces import PairPieces, train_pair_pieces
from t0jax.data.views import find_view
from t0jax.data.vocabulary import (
    EXTRA_IDS,
    Pieces,
    tell_no_one,
    train_sentencepiece,
    vocabulary_path,
)

__all__ = [
    "IndexLoader",
    "Loader",
    "SeqioLoader",
    "added_ids",
    "draw_shots",
    "find_heads",
    "find_tasks",
    "find_vocabulary",
    "make_loader",
    "make_stream",
    "mixture_texts",
    "train_vocabulary",
    "vocabulary_size",
]

log = logging.getLogger("t0jax")


def make_loader(
    data: config.Data, *, process_index: int = 0, process_count: int = 1, parts: int = 1
) -> Loader:
    """The loader of `data.mixture` for one process; `parts` micro-batches a step.

    Raises:
      config.ConfigError: unknown mixture, sizes that do not divide, or no task left to read.
      DataUnavailable: data sets cannot be had, all of them in one table (unless `data.available_only`).
    """
    rates, place = (
        find_tasks(data),
        {"process_index": process_index, "process_count": process_count},
    )
    if holds_structured(data):
        return make_multitask_loader(data, PairPieces(find_vocabulary(data)), **place, parts=parts)
    other = next((name for name in rates if not reads_by_index(name)), None)
    if data.cache_dir:
        return SeqioLoader(data, **place)
    if other is not None:
        log.warning("%r goes through seqio: its task %r is not read by index", data.mixture, other)
        return SeqioLoader(data, **place)
    check_layout(data, process_count)
    pieces = Pieces(find_vocabulary(data))
    pieces.encode("")  # a missing or broken vocabulary is an error now, not in a reader process
    stream = make_stream(data, rates, pieces)
    return IndexLoader(stream, **place)


def find_heads(data: config.Data) -> tuple[config.Head, ...]:
    """Heads of a mixture of structured tasks, sorted by task: a task's number is its place. None of text to text.

    Raises:
      config.ConfigError: unknown mixture, tasks of both kinds in it, or no task whose data can be had.
      DataUnavailable: as `make_loader`.
    """
    return structured_heads(data) if holds_structured(data) else ()


# ---------------------------------------------------------------------------------------- vocabularies


def find_vocabulary(data: config.Data) -> Path:
    """The SentencePiece file of a run: `data.vocabulary`, else the tasks' own; of structured tasks `T0JAX_VOCABULARY`.

    Raises:
      VocabularyError: there is none, or that of structured tasks is not of DeBERTa-v3's kind.
      config.ConfigError: as `registry.find_vocabulary`.
    """
    if not holds_structured(data):
        return registry.find_vocabulary(data)
    path = Path(data.vocabulary) if data.vocabulary else vocabulary_path()
    _ = PairPieces(path).size
    return path


def vocabulary_size(data: config.Data, path: Path) -> int:
    """Number of ids of the mixture's vocabulary: pieces and those added to them."""
    return PairPieces(path).size if holds_structured(data) else Pieces(str(path)).size


def added_ids(data: config.Data) -> int:
    """How many ids the mixture's kind of vocabulary has beside its pieces: T5's extra ids, or [MASK]."""
    return 1 if holds_structured(data) else EXTRA_IDS


def train_vocabulary(data: config.Data, tell: Callable[[str], None] = tell_no_one) -> Path:
    """Trains `data.vocabulary`, of `data.vocabulary_train_size` pieces of the mixture's kind, on the mixture's text.

    `tell` is called with a line when the text is read and the training begins.

    Raises:
      VocabularyError: it cannot be trained or written.
      config.ConfigError, DataUnavailable: as `mixture_texts`.
    """
    train = train_pair_pieces if holds_structured(data) else train_sentencepiece
    return train(mixture_texts(data), Path(data.vocabulary), data.vocabulary_train_size, tell)


def mixture_texts(data: config.Data) -> Iterator[str]:
    """Texts of a by-index mixture in reading order, of as many examples as it has rows; needs no vocabulary.

    For training a vocabulary on a mixture's text.

    Raises:
      config.ConfigError: a task is not read by index; and as `make_stream`.
    """
    rates = find_tasks(data)
    if holds_structured(data):
        yield from structured_texts(data)
        return
    other = next((name for name in rates if not reads_by_index(name)), None)
    if other is not None:
        raise config.ConfigError(
            f"no vocabulary can be trained on {data.mixture!r}: its task {other!r} is not read by index"
        )
    stream = make_stream(data, rates, Pieces(""))
    rows = sum(task.length for task in stream.tasks)
    for texts in itertools.islice(read_texts(stream), rows):
        yield from texts


# --------------------------------------------------------------------------------------------- streams


def make_stream(data: config.Data, rates: Mapping[str, float], pieces: Pieces) -> Stream:
    """The stream of by-index tasks whose data can be had.

    Raises:
      DataUnavailable: some cannot (unless `data.available_only`); its text is a table of all of them.
      config.ConfigError: none can, or no prompt of those that can gives an example.
    """
    opened, missing = _open_tasks(data, rates)
    report(data, missing, len(rates))
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
    identity = _identity(view, source.seed, rows)
    return Task(name, rows, length, weight(data, rate, length), find_view(view), identity, chosen)


def _has_words(task: Task) -> bool:
    rows: Any = task.rows  # prompted ones, where a view reads their instruction
    return not task.view.needs_split or rows.template.has_instruction


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
