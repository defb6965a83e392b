"""Many structured tasks in one batch: the loss of each row's own head.

A batch of R rows of length L (int32 but where said): `encoder_input_tokens` [R, L], `encoder_segment_ids` [R, L] with 0
on padding, `task_ids` [R], `item_ids` [R] (equal for the options of one question and else unique), `label_ids` [R]
(class number; 1 on a question's right option, 0 on the others), `label_values` float [R, W] (regression: the target in
column 0; multilabel: 1 for each label that holds), `token_labels` [R, L] (-1 where there is none; with token heads
only) and `loss_weights` float [R] (1 on every item's row, of a question on the right option's alone).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from t0jax.config import Config, HeadKind
from t0jax.models import Network, Params
from t0jax.models.deberta import MultitaskEncoder
from t0jax.models.heads import KINDS, Layout, layout
from t0jax.models.layers import split_key
from t0jax.objectives import Objective, Sums

Batch = Mapping[str, jax.Array]
Terms = tuple[jax.Array, jax.Array]
"""Of each row the loss and whether its answer is right (tokens: the share that is), float32 [R] each."""


def objective(config: Config, network: Network, step: jax.Array | int) -> Objective:
    """`loss_sums` as `config.model` drops; the same at every step."""
    del step
    drops = config.model.dropout_rate > 0 or config.model.task_embedding_drop > 0

    def loss(params, batch, key):
        return loss_sums(network, params, batch, key if drops else None)

    return loss


def report(sums: Sums) -> Sums:
    """Means over items, and their number; `accuracy` is over those that can be right."""
    return {
        "nll": sums["nll"] / jnp.maximum(sums["normalizer"], 1e-9),
        "accuracy": sums["correct"] / jnp.maximum(sums["rated"], 1.0),
        "examples": sums["examples"],
    }


def loss_sums(
    network: Network, params: Params, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, Sums]:
    """Summed loss over the items of a (micro-)batch and the sum it is to be divided by.

    Of an item: cross-entropy over its task's labels, or over the options of its question wherever their rows lie;
    squared error of a regression; binary cross-entropy averaged over a multilabel task's labels; cross-entropy
    averaged over an example's labelled tokens. They are those of transformers' models, one item at a time.

    Args:
        network: the architecture `params` belong to.
        params: its float32 parameters.
        batch: see above; the rows of an item lie in one (micro-)batch.
        key: for dropout and for leaving out task embeddings (`model.task_embedding_drop`, all options of a question
            together); None does neither.

    Returns:
        The float32 scalar to differentiate, and float32 scalar sums: `normalizer` (weights of the items), `nll` (the
        loss again), `correct`, `rated` (items that `correct` is of: all but regression), `examples` and
        `target_tokens` (the number of items).
    """
    drop_key, key = split_key(key, 2)
    same = batch["item_ids"][:, None] == batch["item_ids"]  # [R, R]
    keep = None
    if drop_key is not None:
        keep = _kept_items(drop_key, 1.0 - network.config.task_embedding_drop, same)
    outputs = _outputs(network, params, batch, keep, key)
    banks = layout(network.config.heads)
    terms = []
    if banks.sequence[0]:
        terms = _sequence_terms(banks, batch, outputs["sequence"], same)
    if banks.tokens[0]:
        of_tokens = _is(banks, batch, "token_classification")
        terms.append((of_tokens, _tokens(outputs["tokens"], batch["token_labels"])))
    weights = batch["loss_weights"].astype(jnp.float32)  # [R]
    loss, correct = (
        sum(jnp.sum(jnp.where(of & (weights > 0), weights * term[i], 0.0)) for of, term in terms)
        for i in (0, 1)
    )
    items = jnp.sum(weights > 0, dtype=jnp.float32)
    rated = jnp.sum((weights > 0) & ~_is(banks, batch, "regression"), dtype=jnp.float32)
    sums = {
        "normalizer": jnp.sum(weights),
        "nll": loss,
        "correct": correct,
        "rated": rated,
        "examples": items,
        "target_tokens": items,
    }
    return loss, jax.lax.stop_gradient(sums)


def _outputs(
    network: Network,
    params: Params,
    batch: Batch,
    keep: jax.Array | None,
    key: jax.Array | None,
) -> dict[str, jax.Array]:
    model: MultitaskEncoder = network.bind(params)
    banks, tasks = layout(network.config.heads), batch["task_ids"]
    encode_key, pool_key, token_key = split_key(key, 3)
    hidden = model.encode(
        batch["encoder_input_tokens"], batch["encoder_segment_ids"], tasks, keep, encode_key
    )  # [R, L, D]
    found = {}
    if banks.sequence[0]:
        found["sequence"] = model.sequence_logits(model.pool(hidden, pool_key), tasks)  # [R, N]
    if banks.tokens[0]:
        found["tokens"] = model.token_logits(hidden, tasks, token_key)  # [R, L, M]
    return found


def _kept_items(key: jax.Array, share: float, same: jax.Array) -> jax.Array:
    """bool [R], True for `share` of the items; the rows of one item agree."""
    kept = jax.random.bernoulli(key, share, (len(same),))  # [R]
    return kept[jnp.argmax(same, axis=1)]


def _is(banks: Layout, batch: Batch, kind: HeadKind) -> jax.Array:
    """bool [R]: whether a row's task is of this kind."""
    return jnp.asarray(banks.kinds == KINDS.index(kind))[batch["task_ids"]]


def _sequence_terms(
    banks: Layout, batch: Batch, logits: jax.Array, same: jax.Array
) -> list[tuple[jax.Array, Terms]]:
    """(whether a row's head is of a kind, the terms it then has) for each kind of sequence head that occurs."""
    sizes = jnp.asarray(banks.sizes)[batch["task_ids"]]  # [R]
    present = jnp.arange(logits.shape[1]) < sizes[:, None]  # [R, N]
    values = batch["label_values"].astype(jnp.float32)  # [R, W]
    makers: dict[HeadKind, Callable[[], Terms]] = {
        "classification": lambda: _classes(logits, batch["label_ids"]),
        "multilabel": lambda: _labels(logits, values, present, sizes),
        "regression": lambda: _value(logits[:, 0], values[:, 0]),
        "multiple_choice": lambda: _options(logits[:, 0], same),
    }
    kinds = [kind for kind in makers if KINDS.index(kind) in banks.kinds]
    return [(_is(banks, batch, kind), makers[kind]()) for kind in kinds]


def _classes(logits: jax.Array, labels: jax.Array) -> Terms:
    """Cross-entropy of logits [..., N] with class numbers [...]; right where no other class is as high."""
    own = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    gold = jnp.sum(jnp.where(own, logits, 0.0), axis=-1)  # [...]
    others = jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1)  # [...]
    return jax.nn.logsumexp(logits, axis=-1) - gold, (gold > others).astype(jnp.float32)


def _labels(logits: jax.Array, values: jax.Array, present: jax.Array, sizes: jax.Array) -> Terms:
    """Mean binary cross-entropy over a task's labels, logits [R, N]; right where all labels are."""
    width = min(logits.shape[1], values.shape[1])  # other kinds of heads may be wider
    logits, values, present = logits[:, :width], values[:, :width], present[:, :width]
    each = jax.nn.softplus(logits) - values * logits  # [R, W]
    right = ((logits > 0) == (values > 0.5)) | ~present  # [R, W]
    mean = jnp.sum(jnp.where(present, each, 0.0), axis=1) / sizes  # [R]
    return mean, jnp.all(right, axis=1).astype(jnp.float32)


def _value(prediction: jax.Array, target: jax.Array) -> Terms:
    return jnp.square(prediction - target), jnp.zeros_like(prediction)


def _options(scores: jax.Array, same: jax.Array) -> Terms:
    """Cross-entropy of each row's score [R] among the rows of its item, as if it were the right one."""
    own = jnp.where(same, scores[None], -jnp.inf)  # [R, R]
    others = jnp.where(jnp.eye(len(scores), dtype=bool), -jnp.inf, own)  # [R, R]
    loss = jax.nn.logsumexp(own, axis=1) - scores  # [R]
    return loss, (scores > jnp.max(others, axis=1)).astype(jnp.float32)


def _tokens(logits: jax.Array, labels: jax.Array) -> Terms:
    """Means over labelled tokens of logits [R, L, M]; 0 for a row without one."""
    labelled = labels >= 0  # [R, L]
    count = jnp.maximum(jnp.sum(labelled, axis=1), 1)  # [R]
    loss, right = (
        jnp.sum(jnp.where(labelled, term, 0.0), axis=1) / count for term in _classes(logits, labels)
    )
    return loss, right
