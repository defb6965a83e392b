"""Structured records: a data set's columns declared as sentences and labels, options and the right one, words and tags.

    sst2 = Classification(dataset="glue/sst2", sentence1="sentence", labels=("negative", "positive"))
    cosmos = MultipleChoice(dataset="cosmos_qa", inputs=joined("context", "question"),
                            choices=("answer0", "answer1", "answer2", "answer3"))

`Record.example(row)` reads a row. A row that cannot be read is an error that names the task, the row, the value and a
way out; a row whose label the data set does not tell (-1 or -1.0, "", None, NaN) gives none.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t0jax.config import Head, HeadKind, UserError
from t0jax.config.heads import head_group
from t0jax.data.rows import (
    HIDDEN,
    DatasetSpec,
    DataUnavailable,
    Rows,
    available_splits,
    data_files,
    open_rows,
)
from t0jax.data.structured.fields import (
    BadRow,
    Field,
    Row,
    as_text,
    columns_of,
    constant,
    described,
    joined,
    letter,
    position,
    read,
    read_text,
    shown,
    unimportable,
)
from t0jax.data.structured.parts import find_part

__all__ = [
    "SPLITS",
    "Classification",
    "Example",
    "Field",
    "MultipleChoice",
    "Record",
    "RecordError",
    "Row",
    "TokenClassification",
    "constant",
    "joined",
    "letter",
    "position",
]

SPLITS = ("train", "validation", "test")
IGNORED = (-1, -100, None)
"""Tags of words that have no label."""


class RecordError(UserError, ValueError):
    """A declaration or a row that cannot be used: `task`, `row` (None of a declaration) and the `reason`."""

    def __init__(self, task: str, row: int | None, reason: str) -> None:
        where = f"task {task!r}" if row is None else f"task {task!r}, row {row}"
        super().__init__(f"{where}: {reason}")
        self.task, self.row, self.reason = task, row, reason

    def __reduce__(self) -> tuple[type, tuple[str, int | None, str]]:
        return type(self), (self.task, self.row, self.reason)


@dataclass(frozen=True)
class Example:
    """One row as a model sees it.

    Attributes:
      texts: (first, second or None) sentence pairs: one, or of multiple choice one an option, in the order shown;
        none of token classification.
      label: class number; number, of regression; class numbers, of multilabel; number of the right option; of token
        classification a class number a word, -1 without one. None where it is not told.
      words: of token classification.
    """

    texts: tuple[tuple[str, str | None], ...]
    label: Any
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all kinds share: where the rows come from, and what makes them differ from tasksource's."""

    dataset: str | DatasetSpec
    """`dataset` or `dataset/subset`; a `DatasetSpec` for everything else (a Hub repository with an owner's name)."""
    name: str = ""
    """The task's id, as users see it; the data set's name when empty."""
    splits: tuple[str | None, str | None, str | None] = SPLITS
    """Names in the data of the splits train, validation and test; None for one it does not have. Never cut anew, so
    official development sets stay whole, unless it says so: `dev[:80%]` is a part of one (`parts.find_part`)."""
    differs: str = ""
    """How the task differs from tasksource's, and why."""
    where: Any = None
    """A function of the row that says whether it is read; all are without one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.spec.name)
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if isinstance(value, list):
                object.__setattr__(self, part.name, tuple(value))
            name = unimportable(value)
            _declare(
                self,
                name is None,
                f"`{part.name}` holds {name}, which reader processes cannot import; define the function at the top "
                "level of a module",
            )
        _declare(
            self,
            len(self.splits) == 3,
            f"splits {self.splits} are not three: train, validation, test",
        )
        try:
            _ = [find_part(split) for split in self.splits if split]
        except ValueError as error:
            raise RecordError(self.name, None, str(error)) from error
        self._check()

    @functools.cached_property
    def spec(self) -> DatasetSpec:
        """The data set."""
        if isinstance(self.dataset, DatasetSpec):
            return self.dataset
        dataset, _, subset = self.dataset.partition("/")
        return DatasetSpec(dataset, subset or None)

    @property
    def kind(self) -> HeadKind:
        """What its head answers."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Label names in the order of their numbers; none of regression and multiple choice."""
        return ()

    def head(self) -> Head:
        """The head that answers the task."""
        return Head(self.name, self.kind, self.names, head_group(self.kind, self.names))

    def splits_there(self, local_dir: str = "") -> tuple[str, ...]:
        """Of train, validation and test: those with files, of local data; those declared, of the Hub's."""
        try:
            there = available_splits(self.spec, local_dir)
        except DataUnavailable:
            there = None
        held = [(name, split) for name, split in zip(SPLITS, self.splits, strict=True) if split]
        return tuple(n for n, split in held if there is None or find_part(split).split in there)

    def open(self, split: str, local_dir: str = "") -> Rows:
        """All rows of a split, by its name in the data; for records whose data has a format of its own to override.

        Raises:
          DataUnavailable, DataError: as `rows.open_rows`.
        """
        return open_rows(self.spec, split, local_dir)

    def files(self, split: str, local_dir: str = "") -> list[str]:
        """The files of a split, by its name in the data. Raises as `rows.data_files`."""
        return data_files(self.spec, split, local_dir)

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns it reads; None where its functions do not say."""
        fields = [self.where] if self.where else []
        found = [columns_of(field) for field in (*fields, *self._fields())]
        return None if None in found else frozenset().union(*(columns or () for columns in found))

    @property
    def identity(self) -> tuple[str, ...]:
        """What its examples depend on besides the data; the same in every process, and for copies of the data."""
        about = ("dataset", "name", "splits", "differs")
        names = [part.name for part in dataclasses.fields(self) if part.name not in about]
        read = [f"{name}={described(getattr(self, name))}" for name in names]
        return (*read, f"columns={described((self.spec.renames, self.spec.recodes))}")

    def example(
        self,
        row: Row,
        seed: int | None = None,
        max_choices: int | None = None,
        *,
        number: int | None = None,
    ) -> Example | None:
        """What a row says; None where its label is not told, or `where` leaves it out.

        Args:
          row: {column: value}.
          seed: of the order of options, and of which stay when there are too many; None keeps the data's order.
          max_choices: options kept at most, the right one among them; None keeps all.
          number: the row's, for messages.

        Raises:
          RecordError: a column is missing, or a value is not what the declaration says.
        """
        try:
            if self.where and not read(self.where, row):
                return None
            return self._example(row, seed, max_choices)
        except BadRow as error:
            raise RecordError(self.name, number, str(error)) from error

    def _fields(self) -> Sequence[Field]:
        raise NotImplementedError

    def _check(self) -> None:
        """Raises RecordError for a declaration that contradicts itself."""

    def _example(self, row: Row, seed: int | None, max_choices: int | None) -> Example | None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Classification(Record):
    """A text or a pair of them with one label, several (`multilabel`), or a number on a `scale`."""

    sentence1: Field
    sentence2: Field | None = None
    label: Field = "label"
    labels: tuple[str, ...] = ()
    multilabel: bool = False
    scale: tuple[float, float] | None = None
    """Regression: the least and the largest label."""

    @property
    def kind(self) -> HeadKind:
        if self.scale is not None:
            return "regression"
        return "multilabel" if self.multilabel else "classification"

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    def _fields(self) -> Sequence[Field]:
        return [
            field for field in (self.sentence1, self.sentence2, self.label) if field is not None
        ]

    def _check(self) -> None:
        if self.scale is None:
            _check_labels(self, self.labels, 1 if self.multilabel else 2)
            return
        _declare(self, not self.labels and not self.multilabel, "a scale leaves no room for labels")
        _declare(self, self.scale[0] < self.scale[1], f"the scale {self.scale} does not rise")

    def _example(self, row: Row, seed: int | None, max_choices: int | None) -> Example | None:
        label = self._label(read(self.label, row))
        if label is None:
            return None
        first = read_text(self.sentence1, row, "sentence1")
        second = None if self.sentence2 is None else read_text(self.sentence2, row, "sentence2")
        return Example(((first, second),), label)

    def _label(self, value: Any) -> int | float | tuple[int, ...] | None:
        if self.scale is not None:
            return _on_scale(value, self.scale)
        if not self.multilabel:
            return _number_of(value, self.labels)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise BadRow(f"label {shown(value)} is not a list, as `multilabel` has it")
        found = [_number_of(one, self.labels) for one in value]
        return None if None in found else tuple(sorted({n for n in found if n is not None}))


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Record):
    """A text and its options, one of them right. Each option is read with the text, and scored by itself.

    Options are shown in an order drawn by the seed. One that repeats another is left out.
    """

    inputs: Field
    choices: Field | tuple[Field, ...]
    """A field each, or one field that holds a list."""
    label: Field | int = "label"
    """Number of the right option, from 0 on; `letter` and `position` make one of what data sets have instead."""

    @property
    def kind(self) -> HeadKind:
        return "multiple_choice"

    def _fields(self) -> Sequence[Field]:
        choices = self.choices if isinstance(self.choices, tuple) else (self.choices,)
        return [self.inputs, *choices, *(() if isinstance(self.label, int) else (self.label,))]

    def _check(self) -> None:
        enough = not isinstance(self.choices, tuple) or len(self.choices) > 1
        _declare(self, enough, f"choices {self.choices} are fewer than two")

    def _example(self, row: Row, seed: int | None, max_choices: int | None) -> Example | None:
        gold = self.label if isinstance(self.label, int) else read(self.label, row)
        if _hidden(gold):
            return None
        options = self._options(row)
        gold = _gold(gold, len(options))
        kept = _shown_options(options, gold, seed, max_choices)
        if len(kept) < 2:
            raise BadRow(f"all options are {shown(options[gold])}; skip such rows with `where`")
        text = read_text(self.inputs, row, "inputs")
        return Example(tuple((text, options[i]) for i in kept), kept.index(gold))

    def _options(self, row: Row) -> list[str]:
        if isinstance(self.choices, tuple):
            options = [read(field, row) for field in self.choices]
        else:
            options = read(self.choices, row)
            if not isinstance(options, list | tuple):
                raise BadRow(f"choices are {shown(options)}, not a list")
        texts = [as_text(option, f"choice {i}") for i, option in enumerate(options)]
        for i, text in enumerate(texts):
            if not text.strip():
                raise BadRow(f"choice {i} is empty ({shown(text)}); skip such rows with `where`")
        return texts


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Record):
    """Words and a tag each."""

    tokens: Field
    tags: Field
    labels: tuple[str, ...]

    @property
    def kind(self) -> HeadKind:
        return "token_classification"

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    def _fields(self) -> Sequence[Field]:
        return [self.tokens, self.tags]

    def _check(self) -> None:
        _check_labels(self, self.labels)

    def _example(self, row: Row, seed: int | None, max_choices: int | None) -> Example | None:
        words, tags = read(self.tokens, row), read(self.tags, row)
        for what, value in (("tokens", words), ("tags", tags)):
            if not isinstance(value, list | tuple):
                raise BadRow(f"{what} are {shown(value)}, not a list")
        if len(words) != len(tags):
            raise BadRow(f"{len(words)} tokens have {len(tags)} tags")
        found = [-1 if tag in IGNORED else _number_of(tag, self.labels) for tag in tags]
        label = tuple(-1 if number is None else number for number in found)
        if not any(number >= 0 for number in label):
            return None
        return Example(
            (), label, tuple(as_text(word, f"token {i}") for i, word in enumerate(words))
        )


# ------------------------------------------------------------------------------------------- labels


def _hidden(value: Any) -> bool:
    """Whether a label is not told; NaN is what a column of floats has in place of None."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return missing or (isinstance(value, int | float | str) and value in HIDDEN)


def _number_of(value: Any, names: tuple[str, ...]) -> int | None:
    """The number of a label given by number or by name; None where it is not told."""
    if isinstance(value, str) and value in names:
        return names.index(value)
    if _hidden(value):
        return None
    declared = f"the {len(names)} declared labels {shown(list(names))}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return int(value)
    raise BadRow(f"label {shown(value)} is outside {declared}; correct `labels` or the data")


def _on_scale(value: Any, scale: tuple[float, float]) -> float | None:
    if _hidden(value) and (scale[0] > -1 or value not in (-1, "-1")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow(f"label {shown(value)} is not a number, as `scale` has it") from None
    if not math.isfinite(number) or not scale[0] <= number <= scale[1]:
        raise BadRow(f"label {number} is outside the scale {scale}; correct `scale` or the data")
    return number


def _gold(value: Any, options: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not options:
        raise BadRow("there are no options; skip such rows with `where`")
    if isinstance(value, str):
        raise BadRow(
            f"the right option is {shown(value)}, not a number; use `letter` or `position`"
        )
    if not isinstance(value, int) or not 0 <= value < options:
        raise BadRow(f"the right option is number {shown(value)} of {options}, counted from 0 on")
    return int(value)


def _shown_options(
    options: Sequence[str], gold: int, seed: int | None, max_choices: int | None
) -> list[int]:
    """Numbers of the options shown, in order: no text twice, the right one always."""
    wrong = {text: i for i, text in reversed(list(enumerate(options))) if text != options[gold]}
    numbers = sorted(wrong.values())
    limit = len(options) if max_choices is None else max_choices
    if seed is None:
        return sorted([gold, *numbers[: limit - 1]])
    drawn = sorted(numbers, key=lambda i: _draw(seed, "drawn", i))[: limit - 1]
    return sorted([gold, *drawn], key=lambda i: _draw(seed, "order", i))


def _draw(seed: int, what: str, number: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{what}:{number}".encode(), digest_size=8).digest()


def _declare(record: Record, holds: bool, otherwise: str) -> None:
    if not holds:
        raise RecordError(record.name, None, otherwise)


def _check_labels(record: Record, labels: tuple[str, ...], least: int = 2) -> None:
    way_out = "name them in the order of their numbers, or give `scale` for regression"
    declared = ("no label is", "1 label is")[len(labels)] if len(labels) < least else ""
    _declare(record, not declared, f"{declared} declared; {way_out}")
    for number, name in enumerate(labels):
        what = "empty" if name == "" else f"{name!r}, not a name"
        _declare(record, isinstance(name, str) and bool(name), f"label {number} is {what}")
    _declare(record, len(set(labels)) == len(labels), f"labels {labels} name one twice")
