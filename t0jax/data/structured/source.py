"""Structured records as seqio sources and tasks.

    add_task(Classification(dataset="glue/sst2", sentence1="sentence", labels=("negative", "positive")))

The tasks are ordinary seqio tasks of text features, the same for all kinds so that they mix: `sentence1` and
`sentence2`, a text a row (the options of a question are rows; words, of token classification), and `labels`, the names
of what is right. Readers that need no TensorFlow take the rows themselves: `StructuredSource.rows(split)`.
"""

import t0jax.data.quiet  # noqa: F401  before TensorFlow and seqio

# isort: split

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t0jax.data.elements import IndexedSource, strings
from t0jax.data.rows import DatasetSpec
from t0jax.data.structured.fields import described, shown
from t0jax.data.structured.records import SPLITS, Example, Record, RecordError
from t0jax.data.structured.rows import StructuredRows

FEATURES = ("sentence1", "sentence2", "labels")

_NAMES: dict[str, str] = {}
"""{task's id: its name in seqio}."""


class StructuredSource(IndexedSource):
    """A data set through one record: rows by index for readers that want them, `tf.data` for seqio."""

    def __init__(self, record: Record, *, local_dir: str = "", seed: int = 0) -> None:
        """
        Args:
          record: the declaration.
          local_dir: root of the local data; `T0JAX_DATA_DIR` when empty.
          seed: of the order of options, where a reader does not give another.
        """
        self.record, self.local_dir, self.seed = record, str(local_dir), seed
        super().__init__(splits=SPLITS)

    @property
    def spec(self) -> DatasetSpec:
        """The data set."""
        return self.record.spec

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits: those with files, of local data; those declared, of the Hub's."""
        return self.record.splits_there(self.local_dir)

    def rows(
        self,
        split: str,
        *,
        local_dir: str = "",
        seed: int | None = None,
        max_choices: int | None = None,
    ) -> StructuredRows:
        """The rows of a split, not yet opened; `local_dir` where the source has none, `seed` in place of its own."""
        seed = self.seed if seed is None else seed
        return StructuredRows(self.record, split, self.local_dir or local_dir, seed, max_choices)

    def elements(self, rows: StructuredRows, numbers: tf.data.Dataset) -> tf.data.Dataset:
        """Each row's texts by feature; rows without an example are left out."""
        read = functools.partial(_read, rows)

        def element(number: tf.Tensor) -> dict[str, tf.Tensor]:
            found = tf.numpy_function(read, [number], [tf.bool, *[tf.string] * len(FEATURES)])
            texts = zip(FEATURES, found[1:], strict=True)
            return {"there": tf.ensure_shape(found[0], [])} | {
                name: tf.ensure_shape(text, [None]) for name, text in texts
            }

        there = numbers.map(element).filter(lambda x: x["there"])
        return there.map(lambda x: {name: x[name] for name in FEATURES})

    def identity(self) -> tuple[Any, ...]:
        return self.record, self.local_dir, self.seed

    def __repr__(self) -> str:
        return f"StructuredSource({self.record.name}, {self.record.kind}, data set {self.record.spec.name})"


def add_task(
    record: Record, name: str | None = None, *, local_dir: str = "", seed: int = 0
) -> seqio.Task:
    """Registers a record as a seqio task; `StructuredSource` has the arguments.

    seqio's names hold letters, digits, ".", ":" and "_" alone: others become "_" (`glue_sst2`). Users see
    `record.name`. Declaring the same record again changes nothing.

    Raises:
      RecordError: the id, or the name in seqio, is taken by another task.
    """
    name = name or seqio_name(record)
    source = StructuredSource(record, local_dir=local_dir, seed=seed)
    other = _same_id(record.name) or name
    if other in seqio.TaskRegistry.names():
        task = seqio.TaskRegistry.get(other)
        found = list(_differences(task.source, source))
        found += [f"seqio's name {task.name!r}, here {name!r}"] * (task.name != name)
        if found:
            raise RecordError(
                record.name,
                None,
                f"the id is taken: task {other!r} has {'; '.join(found)}; give the record another `name`",
            )
        return task
    _NAMES[record.name] = name
    return seqio.TaskRegistry.add(
        name,
        source=source,  # pyright: ignore[reportArgumentType]  seqio's protocol forgets its own None
        preprocessors=[],
        output_features=_features(),
        metric_fns=[],
    )


def seqio_name(record: Record) -> str:
    """The record's id with seqio's letters alone."""
    return re.sub(r"[^\w.:]", "_", record.name)


def _differences(there: Any, here: StructuredSource) -> Iterator[str]:
    """What a registered source has otherwise than one that is to be, field by field."""
    if not isinstance(there, StructuredSource) or there.record.kind != here.record.kind:
        yield f"{there}"
        return
    names = [part.name for part in dataclasses.fields(here.record)]
    pairs = [(n, getattr(there.record, n, None), getattr(here.record, n)) for n in names]
    pairs += [(n, getattr(there, n), getattr(here, n)) for n in ("local_dir", "seed")]
    for name, one, other in pairs:
        if described(one) != described(other):
            yield f"{name} {shown(one)}, here {shown(other)}"


def _same_id(task_id: str) -> str | None:
    """The seqio name of the registered structured task of this id."""
    name = _NAMES.get(task_id)
    return name if name in seqio.TaskRegistry.names() else None


def _features() -> dict[str, seqio.Feature]:
    text = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string)
    return dict.fromkeys(FEATURES, text)


def _read(rows: StructuredRows, number: np.ndarray) -> tuple[np.ndarray, ...]:
    """Whether the row has an example, and its features' texts."""
    example = rows[int(number)]
    there = np.array(example is not None)
    return there, *(
        strings(part) for part in (_texts(rows.record, example) if example else ("",) * 3)
    )


def _texts(record: Record, example: Example) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    if example.words:
        return example.words, (), _names(record, example.label)
    first = [pair[0] for pair in example.texts]
    second = [pair[1] for pair in example.texts if pair[1] is not None]
    if record.kind == "multiple_choice":
        return first, second, [second[example.label]]
    return first, second, _names(record, example.label)


def _names(record: Record, label: Any) -> list[str]:
    if record.kind == "regression":
        return [str(label)]
    numbers = label if isinstance(label, tuple) else (label,)
    return [record.names[number] if number >= 0 else "" for number in numbers]
