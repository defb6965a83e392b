"""Batches of structured tasks for the tests of the multitask encoder, without a data set."""

from collections.abc import Sequence

import numpy as np

from t0jax import config
from t0jax.config.heads import head_group

LABELS = {
    "nli": ("classification", ("entailment", "neutral", "contradiction")),
    "nli2": ("classification", ("Entailment", "neutral", "contradiction")),
    "topics": ("multilabel", ("a", "b", "c", "d", "e")),
    "score": ("regression", ()),
    "choice": ("multiple_choice", ()),
    "choice2": ("multiple_choice", ()),
    "tags": ("token_classification", ("O", "B", "I")),
    "spans": ("token_classification", ("no", "yes")),
}
HEADS = tuple(
    config.Head(task, kind, labels, head_group(kind, labels))
    for task, (kind, labels) in LABELS.items()
)
MODEL = config.Model(
    architecture="deberta",
    vocab_size=64,
    d_model=16,
    d_kv=4,
    num_heads=4,
    d_ff=24,
    num_layers=2,
    layer_norm_epsilon=1e-7,
    position_buckets=8,
    max_relative_positions=16,
    dropout_rate=0.0,
    task_embedding_drop=0.0,
    heads=HEADS,
)

Batch = dict[str, np.ndarray]


def rows_of(task: int, rng: np.random.Generator, length: int, heads=HEADS) -> list[Batch]:
    """The rows of one random item, each a dict of the batch's entries without their first axis."""
    head, width = heads[task], max(1, *(head.columns for head in heads))
    count = int(rng.integers(2, 5)) if head.kind == "multiple_choice" else 1
    gold = int(rng.integers(count))
    rows = []
    for option in range(count):
        tokens = np.zeros(length, np.int32)
        size = int(rng.integers(3, length + 1))
        tokens[:size] = rng.integers(1, MODEL.vocab_size, size)
        labelled = (rng.random(length) < 0.6) & (tokens > 0)
        tags = np.where(labelled, rng.integers(0, head.columns, length), -1).astype(np.int32)
        is_token = head.kind == "token_classification"
        label = int(option == gold) if count > 1 else int(rng.integers(head.columns))
        values = np.zeros(width, np.float32)
        if head.kind == "regression":
            values[0] = rng.normal()
        elif head.kind == "multilabel":
            values[: head.columns] = rng.integers(0, 2, head.columns)
        rows.append(
            {
                "encoder_input_tokens": tokens,
                "encoder_segment_ids": (tokens > 0).astype(np.int32),
                "task_ids": np.int32(task),
                "label_ids": np.int32(label),
                "label_values": values,
                "token_labels": tags if is_token else np.full(length, -1, np.int32),
                "loss_weights": np.float32(count == 1 or option == gold),
            }
        )
    return rows


def empty(length: int, heads=HEADS) -> Batch:
    """A row without an item."""
    row = rows_of(0, np.random.default_rng(0), length, heads)[0]
    return {**{name: np.zeros_like(x) for name, x in row.items()}, "loss_weights": np.float32(0)}


def batch_of(items: Sequence[list[Batch]], size: int, order=None, heads=HEADS) -> Batch:
    """The rows of `items` and empty ones up to `size`; row i of that list goes to place `order[i]`."""
    rows = [{**row, "item_ids": np.int32(i)} for i, item in enumerate(items) for row in item]
    length = len(rows[0]["encoder_input_tokens"])
    spare = range(len(items), len(items) + size - len(rows))
    rows += [{**empty(length, heads), "item_ids": np.int32(i)} for i in spare]
    places = np.arange(size) if order is None else np.asarray(order)
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: x[np.argsort(places)] for name, x in stacked.items()}
