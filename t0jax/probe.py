"""A linear probe: how much of a task an encoder knows before it was trained on it.

The encoder is left as it is. The last state of each row's first token is computed once; a multinomial logistic
regression on these features is then fitted to its minimum. Model-recycling (arXiv 2211.00107) ranks models so, on MNLI.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t0jax.config import UserError
from t0jax.data.structured.encoding import encode_items
from t0jax.data.structured.pieces import PairPieces
from t0jax.data.structured.records import Record
from t0jax.data.structured.rows import StructuredRows
from t0jax.models import Network, Params
from t0jax.scoring.heads import HeadExample, HeadScorer, Output

READ = 256
"""Rows tokenised at a time."""
DRAW_SEED = 0
"""Of the rows that a limit leaves."""
STALLED_STEPS = 5
"""Steps without a smaller loss after which fitting ends: what float32 can tell is then reached."""


class ProbeError(UserError, ValueError):
    """A task that cannot be probed."""


@dataclass(frozen=True)
class Features:
    """What an encoder says of labelled rows: `states` float32 [rows, D] and `labels` int32 [rows]."""

    states: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Probe:
    """A fitted regression.

    Attributes:
        kernel: [D, classes] float32, of standardised features.
        bias: [classes].
        mean, scale: [D], of the training rows; what features are standardised by.
        loss: mean over rows of what was minimised, in nats.
        gradient: its gradient's norm where fitting ended.
        steps: of L-BFGS.
    """

    kernel: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    loss: float
    gradient: float
    steps: int

    def logits(self, states: np.ndarray) -> np.ndarray:
        """[rows, D] -> [rows, classes]."""
        return (states - self.mean) / self.scale @ self.kernel + self.bias

    def accuracy(self, features: Features) -> float:
        """Share of rows whose likeliest class is right."""
        return float(np.mean(self.logits(features.states).argmax(axis=1) == features.labels))


def check_kind(record: Record) -> None:
    """Raises ProbeError of a task that a probe cannot learn."""
    if record.kind != "classification":
        raise ProbeError(
            f"task {record.name!r} is {record.kind}, and a probe learns classification; choose a task of that kind, or "
            "fine-tune the model on this one"
        )


def read_features(
    network: Network,
    params: Params,
    mesh: jax.sharding.Mesh,
    pieces: PairPieces,
    rows: StructuredRows,
    *,
    max_length: int = 512,
    limit: int = 0,
    pooled: bool = False,
) -> Features:
    """The features of a classification's rows whose label is told.

    Args:
        network, params, mesh: the encoder; no task's embedding is added.
        pieces: its vocabulary.
        rows: of the task.
        max_length: tokens of a row.
        limit: rows to read, drawn once and for all; 0 reads all.
        pooled: what the pooler makes of the first token's state, in place of that.

    Raises:
        ProbeError: the task is no classification, or the encoder has no pooler.
    """
    check_kind(rows.record)
    if pooled and "pooler" not in network.shapes:
        raise ProbeError(
            "the encoder has no pooler, which only a model with heads that read whole rows has; probe the first "
            "token's state itself: leave --pooled out"
        )
    output: Output = "pooled" if pooled else "first"
    scorer = HeadScorer(network, mesh, max_length, outputs=(output,))

    def examples() -> Iterator[HeadExample]:
        numbers = _drawn(len(rows), limit)
        for start in range(0, len(numbers), READ):
            read = [rows[number] for number in numbers[start : start + READ]]
            items = encode_items([one for one in read if one is not None], pieces, max_length)
            for item in items:
                yield HeadExample(0, item.rows, 0, output, False, item.label)

    found = [(example.about, states[0]) for example, states in scorer.score(params, examples())]
    if not found:
        raise ProbeError(f"task {rows.record.name!r}: no row of {rows.split} has a label")
    labels, states = zip(*found, strict=True)
    return Features(np.stack(states), np.array(labels, np.int32))


def _drawn(size: int, limit: int) -> list[int]:
    if not 0 < limit < size:
        return list(range(size))
    return sorted(np.random.default_rng(DRAW_SEED).choice(size, limit, replace=False).tolist())


class _Fit(NamedTuple):
    """Where L-BFGS is; `loss` and `gradient` are of the step before."""

    weights: Any
    solver: Any
    loss: Any
    gradient: jax.Array
    count: jax.Array
    stalled: jax.Array
    """Steps since the loss fell."""


def fit(
    features: Features,
    classes: int,
    *,
    inverse_penalty: float = 1.0,
    standardize: bool = True,
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> Probe:
    """Minimises the summed cross-entropy + |kernel|^2 / (2 inverse_penalty), in float32.

    Scikit-learn's `LogisticRegression(C=inverse_penalty)`: the bias is not penalised.

    Args:
        features: of the training rows.
        classes: labels there are.
        inverse_penalty: C.
        standardize: fit on features of mean 0 and deviation 1.
        steps: of L-BFGS at most.
        tolerance: ends when the gradient of the mean loss is shorter, or the loss falls no more.
    """
    states = features.states.astype(np.float32)
    mean = states.mean(axis=0) if standardize else np.zeros(states.shape[1], np.float32)
    deviation = states.std(axis=0) if standardize else np.ones(states.shape[1], np.float32)
    scale = np.where(deviation > 0, deviation, 1).astype(np.float32)
    weights, loss, gradient, count = _minimised(
        jnp.asarray((states - mean) / scale),
        jnp.asarray(features.labels),
        classes,
        1 / (inverse_penalty * len(states)),
        steps,
        tolerance,
    )
    kernel, bias = (np.asarray(weights[name]) for name in ("kernel", "bias"))
    return Probe(kernel, bias, mean, scale, float(loss), float(gradient), int(count))


@functools.partial(jax.jit, static_argnames="classes")
def _minimised(
    states: jax.Array,
    labels: jax.Array,
    classes: int,
    penalty: float,
    steps: int,
    tolerance: float,
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array, jax.Array]:
    """(weights, loss, norm of its gradient, steps) where L-BFGS ends: at the minimum of the mean loss."""

    def loss_of(weights: dict[str, jax.Array]) -> jax.Array:
        logits = states @ weights["kernel"] + weights["bias"]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return nll.mean() + 0.5 * penalty * jnp.sum(weights["kernel"] ** 2)

    solver = optax.lbfgs()
    both = optax.value_and_grad_from_state(loss_of)

    def step(carry: _Fit) -> _Fit:
        value, slope = both(carry.weights, state=carry.solver)
        updates, state = solver.update(
            slope, carry.solver, carry.weights, value=value, grad=slope, value_fn=loss_of
        )
        stalled = jnp.where(value < carry.loss, 0, carry.stalled + 1)
        weights = optax.apply_updates(carry.weights, updates)
        return _Fit(weights, state, value, optax.tree.norm(slope), carry.count + 1, stalled)

    def goes_on(carry: _Fit) -> jax.Array:
        return (
            (carry.gradient > tolerance) & (carry.count < steps) & (carry.stalled < STALLED_STEPS)
        )

    weights = {"kernel": jnp.zeros((states.shape[1], classes)), "bias": jnp.zeros(classes)}
    far, none = jnp.float32(np.inf), jnp.int32(0)
    start = _Fit(weights, solver.init(weights), far, far, none, none)
    end = jax.lax.while_loop(goes_on, step, start)
    return end.weights, end.loss, end.gradient, end.count


def majority(labels: Sequence[int] | np.ndarray) -> float:
    """Share of the most frequent class."""
    return float(np.bincount(labels).max() / len(labels))
