"""From examples to token ids, and from encoded items to batches: one way for training, scoring and a user's own texts.

An item is what is answered together: one sequence, or the options of a multiple-choice question, a row each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t0jax.config import Head
from t0jax.data.structured.pieces import PAD_ID, PairPieces, Truncate
from t0jax.data.structured.records import Example

Batch = dict[str, np.ndarray]

_SEQUENCE_PAIR = 3  # control pieces of a pair; two of a single text


@dataclass(frozen=True, slots=True)
class Item:
    """An encoded example.

    Attributes:
      rows: int32 ids of each row.
      label: as `Example.label`.
      first: of token classification, the position of every word's first token; -1 where it was cut off.
      word_of_token: of token classification, every token's word; -1 of control pieces.
      cut: whether some text was longer than the rows may be.
    """

    rows: tuple[np.ndarray, ...]
    label: Any
    first: tuple[int, ...] = ()
    word_of_token: tuple[int, ...] = ()
    cut: bool = False

    @property
    def length(self) -> int:
        """Of its longest row."""
        return max(map(len, self.rows))


def encode(
    example: Example, pieces: PairPieces, max_length: int, truncate: Truncate = "longest"
) -> list[np.ndarray]:
    """int32 ids of each of an example's rows, of at most `max_length`."""
    return list(encode_items([example], pieces, max_length, truncate)[0].rows)


def encode_items(
    examples: Sequence[Example],
    pieces: PairPieces,
    max_length: int,
    truncate: Truncate = "longest",
) -> list[Item]:
    """The items of some examples; a text that several rows share is tokenised once."""
    texts = list(
        dict.fromkeys(
            text for e in examples for pair in e.texts for text in pair if text is not None
        )
    )
    known = dict(zip(texts, pieces.encode_batch(texts), strict=True))
    return [
        _pairs(example, known, pieces, max_length, truncate)
        if example.texts
        else _words(example, pieces, max_length)
        for example in examples
    ]


def _pairs(
    example: Example,
    known: dict[str, list[int]],
    pieces: PairPieces,
    max_length: int,
    truncate: Truncate,
) -> Item:
    rows, cut = [], False
    for one, other in example.texts:
        first, second = known[one], None if other is None else known[other]
        ids = pieces.pair(first, second, max_length, truncate)
        whole = len(first) + 2 if second is None else len(first) + len(second) + _SEQUENCE_PAIR
        cut |= whole > len(ids)
        rows.append(np.array(ids, np.int32))
    return Item(tuple(rows), example.label, cut=cut)


def _words(example: Example, pieces: PairPieces, max_length: int) -> Item:
    ids, first, word_of_token, lost = pieces.words(example.words, max_length)
    row = np.array(ids, np.int32)
    return Item((row,), example.label, tuple(first), tuple(word_of_token), lost > 0)


# ------------------------------------------------------------------------------------------- batches


def rows_to_batch(
    items: Iterable[tuple[int, Item, Sequence[int]]],
    heads: Sequence[Head],
    rows: int,
    length: int,
) -> Batch:
    """The batch of some items; rows that no item takes are empty.

    Args:
      items: (task number, item, the row of the batch that each of its rows takes).
      heads: of all tasks, in the order of their numbers.
      rows: R.
      length: L, at least that of every item.

    Returns:
      encoder_input_tokens, encoder_segment_ids [R, L] int32; task_ids, item_ids, label_ids [R] int32; label_values
      [R, W], W the labels of the widest multilabel head or 1, and loss_weights [R], float32; token_labels [R, L] int32
      where a head reads tokens. Rows of one item have one item number, that of its first row; the item's weight is on
      its row, of multiple choice on the right option's.
    """
    batch = _empty(heads, rows, length)
    for task, item, places in items:
        for ids, place in zip(item.rows, places, strict=True):
            batch["encoder_input_tokens"][place, : len(ids)] = ids
            batch["encoder_segment_ids"][place, : len(ids)] = 1
        batch["task_ids"][list(places)] = task
        batch["item_ids"][list(places)] = places[0]
        if item.label is not None:
            _label(batch, heads[task], item, places)
    return batch


def _empty(heads: Sequence[Head], rows: int, length: int) -> Batch:
    width = max([1, *(head.columns for head in heads if head.kind == "multilabel")])
    batch = {
        "encoder_input_tokens": np.full((rows, length), PAD_ID, np.int32),
        "encoder_segment_ids": np.zeros((rows, length), np.int32),
        "task_ids": np.zeros(rows, np.int32),
        "item_ids": np.arange(rows, dtype=np.int32),
        "label_ids": np.zeros(rows, np.int32),
        "label_values": np.zeros((rows, width), np.float32),
        "loss_weights": np.zeros(rows, np.float32),
    }
    if any(head.kind == "token_classification" for head in heads):
        batch["token_labels"] = np.full((rows, length), -1, np.int32)
    return batch


def _label(batch: Batch, head: Head, item: Item, places: Sequence[int]) -> None:
    """Writes the item's label and its weight."""
    row, label = places[0], item.label
    if head.kind == "multiple_choice":
        row = places[label]
        batch["label_ids"][row] = 1
    elif head.kind == "classification":
        batch["label_ids"][row] = label
    elif head.kind == "regression":
        batch["label_values"][row, 0] = label
    elif head.kind == "multilabel":
        batch["label_values"][row, list(label)] = 1.0
    else:
        words = np.array(item.word_of_token)
        labels = np.append(np.array(label, np.int32), -1)  # control pieces are word -1
        batch["token_labels"][row, : len(words)] = labels[words]
        if not (labels[words] >= 0).any():  # all labelled words were cut off
            return
    batch["loss_weights"][row] = 1.0
