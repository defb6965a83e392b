"""A tiny multitask encoder with random weights and one head of every kind, for the tests of what uses heads."""

import jax
import numpy as np

from t0jax import config, models
from t0jax.config import Head
from t0jax.config.heads import head_group
from t0jax.data.structured.pieces import PairPieces, train_pair_pieces

WORDS = [
    "the",
    "a",
    "film",
    "cat",
    "dog",
    "is",
    "was",
    "not",
    "good",
    "bad",
    "fine",
    "dull",
    "black",
    "white",
    "runs",
    "sleeps",
    "in",
    "New",
    "York",
    "Berlin",
    "Anna",
    "who",
    "where",
]
NLI = ("entailment", "neutral", "contradiction")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def head(task, kind, labels=()):
    return Head(task, kind, labels, head_group(kind, labels))


HEADS = (
    head("tiny/sst2", "classification", ("negative", "positive")),
    head("tiny/mnli", "classification", NLI),
    head("tiny/stsb", "regression"),
    head("tiny/emotions", "multilabel", ("joy", "fear", "anger")),
    head("tiny/dream", "multiple_choice"),
    head("tiny/names", "token_classification", TAGS),
)


def sentences(count, seed=0, longest=9):
    """Random texts of the words above."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, longest + 1, count)
    return [" ".join(rng.choice(WORDS, size)) for size in sizes]


def vocabulary(folder):
    """A small SentencePiece model of DeBERTa's kind."""
    return train_pair_pieces(sentences(400, seed=7), folder / "spm.model", 80)


def tiny(pieces, heads=HEADS, **more):
    """(configuration, random parameters), all of them far from zero."""
    model = config.Model(
        architecture="deberta",
        vocab_size=PairPieces(pieces).size + 3,
        d_model=16,
        d_kv=8,
        num_heads=2,
        d_ff=24,
        num_layers=2,
        layer_norm_epsilon=1e-7,
        position_buckets=16,
        max_relative_positions=64,
        heads=heads,
        **more,
    )
    network = models.build(model)
    params = network.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, noisy)
