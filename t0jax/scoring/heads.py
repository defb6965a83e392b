"""Scores of a multitask encoder: what its heads answer to rows of token ids, or the states that they read."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from t0jax import config as config_lib
from t0jax import models, sharding
from t0jax.models import Network, Params
from t0jax.scoring.windows import (
    Pending,
    RowStream,
    bucket_of,
    input_parts,
    length_grid,
    local_rows,
)

Output = Literal["sequence", "tokens", "first", "pooled"]
"""Logits of a sequence head or of a token head, the first token's last state, or what a pooler makes of it."""

Bucket = tuple[Output, int]


@dataclass(frozen=True)
class HeadExample:
    """Rows that belong together: one, or one an option.

    Attributes:
        index: number of the example, for whoever asks.
        rows: int32 ids of each row, not empty.
        task: number of the head.
        output: what is wanted.
        embedded: whether the task's embedding is added; without it the encoder does not know the task.
        about: whatever is to come back with the scores.
    """

    index: int
    rows: tuple[np.ndarray, ...]
    task: int
    output: Output = "sequence"
    embedded: bool = True
    about: Any = None


Scores = list[np.ndarray]
"""Of each row: logits [outputs of the head], of tokens [length, outputs], or a state [D]; float32."""


@dataclass(frozen=True)
class _Row:
    owner: Pending[HeadExample, Scores]
    number: int

    @property
    def ids(self) -> np.ndarray:
        return self.owner.example.rows[self.number]


@functools.lru_cache(maxsize=32)
def program(
    config: config_lib.Model, mesh: jax.sharding.Mesh, output: Output
) -> Callable[..., jax.Array]:
    """(parameters, micro-batch) -> [rows, ...]; scorers of one model and mesh share what was compiled."""
    network = models.build(config)

    def found(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        module, tasks = network.bind(params), batch["task_ids"]
        hidden = module.encode(
            batch["encoder_input_tokens"], batch["encoder_segment_ids"], tasks, batch["keep"]
        )
        if output == "tokens":
            return module.token_logits(hidden, tasks)
        if output == "first":
            return hidden[:, 0].astype(jnp.float32)
        pooled = module.pool(hidden)
        return (
            pooled.astype(jnp.float32)
            if output == "pooled"
            else module.sequence_logits(pooled, tasks)
        )

    return jax.jit(found, out_shardings=sharding.batch_sharding(mesh))


class HeadScorer(RowStream[HeadExample, Scores]):
    """Outputs of heads, with one compiled program a length and kind of output, whatever the tasks."""

    def __init__(
        self,
        network: Network,
        mesh: jax.sharding.Mesh,
        max_length: int,
        batch_size: int = 64,
        *,
        row_tokens: int | None = None,
        outputs: Sequence[Output] = ("sequence", "tokens"),
    ):
        """`max_length`: of the longest row; `outputs`: those that will be asked for; the rest as `RowStream`'s."""
        super().__init__(network, mesh, batch_size, row_tokens)
        self.lengths = length_grid(max_length, 32, input_parts)
        self.buckets: list[Bucket] = [(output, size) for output in outputs for size in self.lengths]
        self.columns = [head.columns for head in network.config.heads]

    def rows(self, bucket: Bucket) -> int:
        """Rows of a bucket's micro-batch over all processes."""
        return max(1, self.row_tokens // bucket[1]) * sharding.row_ways(self.mesh)

    def _enqueue(
        self, example: HeadExample, waiting: Mapping[Bucket, deque[_Row]]
    ) -> Pending[HeadExample, Scores]:
        pending = Pending(example, [np.zeros(0)] * len(example.rows), len(example.rows))
        for number, ids in enumerate(example.rows):
            length = bucket_of(len(ids), self.lengths)
            waiting[example.output, length].append(_Row(pending, number))
        return pending

    def _pack(self, bucket: Bucket, rows: Sequence[_Row], size: int) -> dict[str, np.ndarray]:
        ids = np.zeros((2, size, bucket[1]), np.int32)
        tasks, keep = np.zeros(size, np.int32), np.zeros(size, np.float32)
        for i, row in enumerate(rows):
            ids[0, i, : len(row.ids)] = row.ids
            ids[1, i, : len(row.ids)] = 1
            tasks[i], keep[i] = row.owner.example.task, row.owner.example.embedded
        return {
            "encoder_input_tokens": ids[0],
            "encoder_segment_ids": ids[1],
            "task_ids": tasks,
            "keep": keep,
        }

    def _compute(self, bucket: Bucket, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return program(self.network.config, self.mesh, bucket[0])(params, batch)

    def _land(self, flying: Iterable[tuple[list[_Row], jax.Array]]) -> None:
        for rows, found in flying:
            for row, values in zip(rows, local_rows(found), strict=False):
                example = row.owner.example
                if example.output in ("sequence", "tokens"):
                    values = values[..., : self.columns[example.task]]
                if example.output == "tokens":
                    values = values[: len(row.ids)]
                row.owner.scores[row.number] = values
                row.owner.missing -= 1


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0, -logits))
