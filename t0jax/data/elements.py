"""Rows read by index as a seqio source; prompted rows as elements of `tf.data`, and their tokenising inside seqio.

Elements hold text. Of a view with sentinels an element has the parts of its pair too (`pair`, JSON), which
`tokenize_pairs` encodes as readers by index do.
"""

import t0jax.data.quiet  # noqa: F401  before TensorFlow and seqio

# isort: split

import abc
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t0jax.data import views
from t0jax.data.encoding import PairEncoder
from t0jax.data.rows import DataUnavailable, PromptedRows
from t0jax.data.vocabulary import Pieces

_ROWS_PER_CALL = 64
_ROWS_PER_SHARD = 20_000
_UNLIMITED = 1 << 30

Columns = dict[str, np.ndarray]
Layout = Mapping[str, tuple[tf.DType, tuple[int, ...]]]

_TEXT_LAYOUT = {"inputs": (tf.string, ()), "targets": (tf.string, ())}
_RANK_LAYOUT = {
    "idx": (tf.int32, (2,)),
    "inputs": (tf.string, ()),
    "is_correct": (tf.bool, ()),
    "targets": (tf.string, ()),
    "weight": (tf.float32, ()),
}
_PAIR_LAYOUT = {"pair": (tf.string, ())}


class IndexedSource(seqio.DataSource):
    """A source whose rows are read by index: what seqio asks of one, all from `rows(split)` and their elements.

    Sources that read the same are equal, so that a task may be declared again.
    """

    @abc.abstractmethod
    def rows(self, split: str) -> Any:
        """The rows of a split: they have a length and are read by number.

        Raises:
          DataUnavailable: the data cannot be had; here or when the rows are first read.
        """

    @abc.abstractmethod
    def elements(self, rows: Any, numbers: tf.data.Dataset) -> tf.data.Dataset:
        """The elements of a data set of row numbers."""

    @abc.abstractmethod
    def identity(self) -> tuple[Any, ...]:
        """All that what is read depends on."""

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """Names of as many shards as are worth reading apart."""
        count = -(-len(self.rows(split)) // _ROWS_PER_SHARD)
        return [f"{split}-{number:05d}-of-{count:05d}" for number in range(count)]

    def num_input_examples(self, split: str) -> int | None:
        """Rows of the split, None if the data cannot be had."""
        try:
            return len(self.rows(split))
        except DataUnavailable:
            return None

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """Elements of a shard, by `row_numbers`."""
        del sequence_length, use_cached, num_epochs
        rows = self.rows(split)
        return self.elements(rows, row_numbers(len(rows), shuffle, seed, shard_info))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IndexedSource) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(repr(self))  # an identity may hold mappings, which have no hash


def row_numbers(
    count: int, shuffle: bool, seed: int | None, shard: seqio.ShardInfo | None
) -> tf.data.Dataset:
    """The numbers of a shard's rows, every `num_shards`-th; a shuffle is over all of them.

    The order lives in this range, so that the iterator's state can be saved.
    """
    start, step = (shard.index, shard.num_shards) if shard else (0, 1)
    numbers = tf.data.Dataset.range(start, count, step)
    return numbers.shuffle(max(1, -(-count // step)), seed=seed) if shuffle else numbers


def read(
    numbers: tf.data.Dataset, rows: PromptedRows, view: views.View, *, rank: bool
) -> tf.data.Dataset:
    """The elements of a data set of row numbers: an example each, or for `rank` each choice of each."""
    layout: Layout = _RANK_LAYOUT if rank else _TEXT_LAYOUT
    if view.needs_split:
        layout = {**layout, **_PAIR_LAYOUT}
    columns = functools.partial(_rank_columns if rank else _text_columns, rows, view)
    as_tensors = functools.partial(_as_tensors, columns, layout)
    return numbers.batch(_ROWS_PER_CALL).map(as_tensors).unbatch()


def _as_tensors(
    read_rows: Callable[[np.ndarray], Columns], layout: Layout, numbers: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Elements of some row numbers, as tensors with a leading axis of unknown size."""

    def columns(numbers: np.ndarray) -> list[np.ndarray]:
        found = read_rows(numbers)
        return [found[name] for name in layout]

    tensors = tf.numpy_function(columns, [numbers], [dtype for dtype, _ in layout.values()])
    named = dict(zip(layout, tensors, strict=True))
    for name, (_, shape) in layout.items():
        named[name].set_shape((None, *shape))
    return named


def _text_columns(rows: PromptedRows, view: views.View, numbers: np.ndarray) -> Columns:
    found = [
        lesson
        for number in numbers.tolist()
        if (rendered := rows[number]) is not None and (lesson := views.lesson(view, rendered))
    ]
    return _pair_columns([(lesson.right, lesson.peers) for lesson in found])


def _rank_columns(rows: PromptedRows, view: views.View, numbers: np.ndarray) -> Columns:
    idx, pairs, correct = [], [], []
    for number in numbers.tolist():
        rendered = rows[number]
        if rendered is None or not rendered.inputs or not rendered.targets:
            continue
        right, candidates = views.correct_choices(rendered), views.candidates(view, rendered)
        for choice, pair in enumerate(candidates):
            idx.append((number, choice))
            pairs.append((pair, candidates))
            correct.append(choice in right)
    return {
        **_pair_columns(pairs),
        "idx": np.array(idx, np.int32).reshape(-1, 2),
        "is_correct": np.array(correct, np.bool_),
        "weight": np.ones(len(pairs), np.float32),
    }


def _pair_columns(pairs: Sequence[tuple[views.Pair, Sequence[views.Pair]]]) -> Columns:
    return {
        "inputs": strings([pair.inputs for pair, _ in pairs]),
        "targets": strings([pair.targets for pair, _ in pairs]),
        "pair": strings([_spelled(pair, peers) for pair, peers in pairs]),
    }


def strings(texts: Sequence[str]) -> np.ndarray:
    """Texts as `tf.numpy_function` returns them."""
    return np.array([text.encode() for text in texts], np.object_ if texts else np.bytes_)


# ------------------------------------------------------------------------------------------ tokenising


def tokenize_pairs(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    sequence_length: Mapping[str, int] | None,
) -> tf.data.Dataset:
    """seqio preprocessor: `inputs` and `targets` as token ids, fitted to `sequence_length` by `PairEncoder`."""
    feature, lengths = output_features["inputs"], sequence_length or {}
    encoder = PairEncoder(
        Pieces(feature.vocabulary.sentencepiece_model_file, feature.vocabulary.extra_ids),
        lengths.get("inputs") or _UNLIMITED,
        lengths.get("targets") or _UNLIMITED,
        feature.add_eos,
    )

    def tokenize(element: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        read_pair = functools.partial(_encoded, encoder)
        inputs, targets = tf.numpy_function(read_pair, [element["pair"]], [tf.int32, tf.int32])
        ids = {
            "inputs": tf.ensure_shape(inputs, [None]),
            "targets": tf.ensure_shape(targets, [None]),
        }
        text = {f"{name}_pretokenized": element[name] for name in ids}
        return {name: x for name, x in element.items() if name != "pair"} | text | ids

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


def _spelled(pair: views.Pair, peers: Sequence[views.Pair]) -> str:
    """JSON of the parts of a pair, and of the parts of its peers that may not be shortened."""
    kept = [[part for part in peer.input_parts if not part.shorten] for peer in peers]
    sides = [
        [_fields(part) for part in side] for side in (pair.input_parts, pair.target_parts, *kept)
    ]
    return json.dumps(sides, ensure_ascii=False)


def _fields(part: views.Part) -> list[Any]:
    return [part.text, part.sentinel, part.shorten]


def _encoded(encoder: PairEncoder, text: bytes) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets, *kept = [
        tuple(views.Part(*fields) for fields in side) for side in json.loads(text)
    ]
    peers = [views.Pair("", "", parts) for parts in kept]
    encoded = encoder.encode([[views.Pair("", "", inputs, targets)]], [peers])[0][0]
    return encoded.inputs, encoded.targets
