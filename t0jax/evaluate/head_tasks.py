"""The structured tasks of a mixture, opened for scoring, each with the head that answers it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t0jax import config as config_lib
from t0jax.classify.inputs import ClassifyError, find_task
from t0jax.config import Head
from t0jax.config.heads import normalised
from t0jax.convert.published import group_of
from t0jax.data.rows import DataError, DataUnavailable, SplitUnavailable
from t0jax.data.structured.fields import described
from t0jax.data.structured.records import SPLITS, Record
from t0jax.data.structured.rows import StructuredRows
from t0jax.evaluate.tasks import all_sources, content_digest
from t0jax.results import EvaluationError

SHOWN = 3
"""Heads that a message names."""


@dataclass(frozen=True)
class Answer:
    """How a head answers a task.

    Attributes:
        number: of the head in the model.
        head: itself.
        columns: for each label of the task the outputs of the head that mean it; None where they are its own.
    """

    number: int
    head: Head
    columns: tuple[tuple[int, ...], ...] | None = None

    def logits(self, outputs: np.ndarray) -> np.ndarray:
        """[..., outputs of the head] -> [..., labels of the task]; of several outputs the log of the summed weight."""
        if self.columns is None:
            return outputs
        parts = [np.logaddexp.reduce(outputs[..., list(c)], axis=-1) for c in self.columns]
        return np.stack(parts, axis=-1)


@dataclass(frozen=True)
class HeadTask:
    """One structured task on one split."""

    rows: StructuredRows
    split: str
    """The split asked for first; the rows' own may be another to fall back on."""
    answer: Answer

    @property
    def record(self) -> Record:
        return self.rows.record

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in the order of their numbers."""
        return self.record.names

    @property
    def dataset(self) -> str:
        """The task's name in tables, with the split's where it is another than asked for."""
        return self.name if self.rows.split == self.split else f"{self.name}/{self.rows.split}"

    @property
    def prompt(self) -> str:
        """What stands where other methods name a prompt: the kind, and the head if it is another task's."""
        kind, head = self.record.kind.replace("_", " "), self.answer.head.task
        return kind if head == self.name else f"{kind}, head {head}"

    @property
    def identity(self) -> str:
        """A digest of what is read, the head and the data; the same for copies of the data, wherever they lie."""
        spec, rows = self.record.spec, self.rows
        files = [content_digest(file) for file in rows.data_files()]
        columns = (spec.name, spec.renames, spec.recodes)
        read = (self.record.identity, columns, rows.split, rows.split_in_data)
        content = described((read, self.answer, files))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# Opening


def find_head_tasks(
    mixture: str, data: config_lib.Data, split: str, heads: Sequence[Head], head: str = ""
) -> tuple[list[HeadTask], dict[str, str], dict[str, str]]:
    """The structured tasks of a mixture, opened: (tasks by name, why others cannot be, those without such a split).

    A split that a record declares not to have is no missing data: nothing that could be done would bring it. Broken
    files are.

    Args:
        mixture: seqio mixtures or tasks, with commas between.
        data: `modules` that register them.
        split: train, validation or test; of several with commas between, the first that a data set has.
        heads: of the model.
        head: the task whose head answers all tasks; each its own when empty.

    Raises:
        EvaluationError: an unknown mixture or head, a task that is not structured, or one that the head cannot answer.
    """
    from t0jax.data.structured.source import StructuredSource  # here: it imports TensorFlow

    if head:
        find_head(heads, head)
    tasks, missing, without = [], {}, {}
    for name, source in all_sources(mixture, data):
        if not isinstance(source, StructuredSource):
            raise EvaluationError(
                f"task {name!r} is not structured, so no head answers it; "
                "score prompts with a T5 and evaluate.method rank or generate"
            )
        record = source.record
        try:
            answer = answer_of(heads, record, head)
            rows = _open(source, split)
        except (DataUnavailable, NoHead) as error:
            told = missing if isinstance(error, NoHead) or _declares(record, split) else without
            told[record.name] = str(error)
            continue
        tasks.append(HeadTask(rows, _names(split)[0], answer))
    return sorted(tasks, key=lambda task: task.name), missing, without


def _declares(record: Record, split: str) -> bool:
    """Whether a record has one of some splits, with commas between."""
    declared: dict[str, str | None] = dict(zip(SPLITS, record.splits, strict=True))
    return any(declared.get(name) for name in _names(split))


def _names(split: str) -> list[str]:
    return [name.strip() for name in split.split(",")]


def _open(source: Any, split: str) -> StructuredRows:
    """The rows of the first split that there is. Raises DataUnavailable, for a broken file too."""
    names = _names(split)
    for name in names:
        try:
            return source.rows(name).open()
        except SplitUnavailable:
            if name == names[-1]:
                raise
        except DataError as error:
            raise DataUnavailable(source.spec.name, str(error)) from error
    raise AssertionError("a text has at least one part")


# ---------------------------------------------------------------------------------------------------------------------
# Heads


class NoHead(EvaluationError):
    """A task that the model has no head for."""


def find_head(heads: Sequence[Head], task: str) -> int:
    """The number of a task's head.

    Raises:
        NoHead: there is none; names the nearest ones.
    """
    try:
        return find_task([head.task for head in heads], task)
    except ClassifyError as error:
        # The part before the colon names the task where reasons are gathered.
        raise NoHead(f"{task}: {error}") from None


def _own_head(heads: Sequence[Head], record: Record) -> int:
    """The number of the head of a task. Raises NoHead, with the heads that would do."""
    for number, head in enumerate(heads):
        if head.task == record.name:
            return number
    none = f"{record.name}: the model has no head for this task"
    train = "fine-tune the model on the task"
    if record.kind == "regression":  # another's numbers are on another scale
        raise NoHead(f"{none}; {train}")
    alike = "with its labels" if record.names else "of its kind"
    fitting = [f"--evaluate.head {head.task}" for head in heads if _fits(head, record)][:SHOWN]
    if not fitting:
        raise NoHead(f"{none} and none {alike}; {train}")
    raise NoHead(f"{none}; let another's {alike} answer ({' or '.join(fitting)}), or {train}")


def _fits(head: Head, record: Record) -> bool:
    """Whether the head of another task can answer this one."""
    try:
        answer_of([head], record, head.task)
    except EvaluationError:
        return False
    return True


def answer_of(heads: Sequence[Head], record: Record, other: str = "") -> Answer:
    """The head that answers a task: its own, or that of the task `other`.

    Labels are matched by their normalised names. `not_X`, which a head lacks, is all that it has besides X. Outputs of
    the task's own head that have no names, or numbers for names, are the labels in their order.

    Raises:
        NoHead: there is none, or it is of another kind.
        EvaluationError: it lacks a label.
    """
    number = find_head(heads, other) if other else _own_head(heads, record)
    head = heads[number]
    if head.kind != record.kind:
        raise NoHead(
            f"task {record.name!r} is {record.kind}, the head of {head.task!r} {head.kind}; choose a head of its kind"
        )
    if head.columns == record.head().columns and (not record.names or record.names == head.labels):
        return Answer(number, head)
    known = {normalised(label): column for column, label in enumerate(head.labels)}
    columns = [_columns(normalised(label), known) for label in record.names]
    if all(columns):
        return Answer(number, head, tuple(columns))
    nameless = not group_of(head.kind, head.labels)
    if nameless and head.task == record.name and head.columns == len(record.names):
        return Answer(number, head)
    lacking = [label for label, found in zip(record.names, columns, strict=True) if not found]
    raise EvaluationError(
        f"task {record.name!r} has labels {_told(record.names)}, of which the head of {head.task!r} lacks "
        f"{_told(lacking)} (it has {_told(head.labels)}); choose another head, or rename the labels of the record"
    )


def _told(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels))


def _columns(label: str, known: dict[str, int]) -> tuple[int, ...]:
    if label in known:
        return (known[label],)
    opposite = label.removeprefix("not_")
    if opposite == label or opposite not in known:
        return ()
    return tuple(column for name, column in known.items() if name != opposite)
