"""Scores for rank classification: how likely is each choice of an example?

One scorer serves every view. It takes (inputs, targets) pairs, encodes each distinct input of an example once and
lays that input's targets side by side as segments of one decoder row. Rows of similar length share one compiled
shape. Nothing here reads data: examples come tokenised, so neither TensorFlow nor seqio is needed.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from t0jax import config as config_lib
from t0jax import models, sharding
from t0jax.models import Network, Params
from t0jax.objectives import text_to_text
from t0jax.scoring.windows import (
    Pending,
    RowStream,
    bucket_of,
    input_parts,
    length_grid,
    local_rows,
    target_parts,
)

TARGET_COST = 2
"""A decoder position costs about as much as two encoder positions (cross-attention and the vocabulary head);
used only to choose how many rows fill a micro-batch."""


@dataclass(frozen=True)
class RankExample:
    """One prompted example with tokenised choices.

    Attributes:
        index: row of the data set.
        pairs: K (inputs, targets) int arrays, one a choice; targets end with EOS. The direct view repeats the
            same inputs K times, flipped and channel views have K different ones.
        correct: indices of the right choices; several may be right.
        task: number of the task in an evaluation of several.
        grades: what each choice is worth; empty where the right ones are worth 1 and the others nothing.
        cut: its texts were longer than what is here.
    """

    index: int
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    correct: tuple[int, ...]
    task: int = 0
    grades: tuple[float, ...] = ()
    cut: bool = False


@dataclass
class _Row:
    """One input with the distinct targets that follow it: what one row of a micro-batch computes."""

    owner: Pending[RankExample, np.ndarray]
    inputs: np.ndarray
    targets: list[np.ndarray] = field(default_factory=list)
    choices: list[list[int]] = field(default_factory=list)
    """For each target, the choices it is the text of (more than one when choices repeat)."""

    @property
    def target_length(self) -> int:
        return sum(map(len, self.targets))


def _group(
    pending: Pending[RankExample, np.ndarray], settings: config_lib.Evaluate, eos: int, longest: int
) -> list[_Row]:
    """Cuts an example into rows: one a distinct input, more only if its targets exceed the longest row."""
    rows: dict[bytes, _Row] = {}
    done: list[_Row] = []
    known: dict[tuple[bytes, bytes], list[int]] = {}
    for choice, (inputs, targets) in enumerate(pending.example.pairs):
        inputs = np.asarray(inputs, np.int32)[: settings.max_input_length]
        # An empty input would leave nothing to attend to.
        inputs = inputs if len(inputs) else np.array([eos], np.int32)
        targets = np.asarray(targets, np.int32)[: settings.max_target_length]
        source, text = inputs.tobytes(), targets.tobytes()
        if (source, text) in known:
            known[source, text].append(choice)
            continue
        row = rows.setdefault(source, _Row(pending, inputs))
        if row.targets and row.target_length + len(targets) > longest:
            done.append(row)
            row = rows[source] = _Row(pending, inputs)
        known[source, text] = [choice]
        row.targets.append(targets)
        row.choices.append(known[source, text])
    return [*done, *rows.values()]


@functools.lru_cache(maxsize=8)
def program(config: config_lib.Model, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """(parameters, micro-batch) -> sums [rows, T]; scorers of one model and mesh share what was compiled."""
    network = models.build(config)

    def sums(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        # As many columns as positions: the number of choices then needs no compiled shape of its own.
        columns = batch["decoder_target_tokens"].shape[1]
        return text_to_text.rank_sums(network, params, batch, columns)[0]

    return jax.jit(sums, out_shardings=sharding.batch_sharding(mesh))


class Scorer(RowStream[RankExample, np.ndarray]):
    """Sums of target log-probabilities [K] float32 in nats, with one compiled program a (input, target) bucket."""

    def __init__(
        self,
        network: Network,
        mesh: jax.sharding.Mesh,
        settings: config_lib.Evaluate,
        *,
        row_tokens: int | None = None,
    ):
        """`settings` has lengths and options; the other arguments are `RowStream`'s."""
        super().__init__(network, mesh, settings.batch_size, row_tokens)
        self.settings = settings
        self.input_lengths = length_grid(settings.max_input_length, 32, input_parts)
        longest = max(1024, settings.max_target_length)
        self.target_lengths = length_grid(longest, 8, target_parts)
        self.buckets = [(s, t) for s in self.input_lengths for t in self.target_lengths]
        self._sums = program(network.config, mesh)

    def rows(self, bucket: tuple[int, int]) -> int:
        """Rows of a bucket's micro-batch over all processes."""
        inputs, targets = bucket
        each = max(1, self.row_tokens // (inputs + TARGET_COST * targets))
        return each * sharding.row_ways(self.mesh)

    def _enqueue(
        self, example: RankExample, waiting: Mapping[tuple[int, int], deque[_Row]]
    ) -> Pending[RankExample, np.ndarray]:
        pending = Pending(example, np.zeros(len(example.pairs), np.float32))
        longest = self.target_lengths[-1]
        for row in _group(pending, self.settings, self.network.config.eos_token_id, longest):
            pending.missing += 1
            shape = len(row.inputs), row.target_length
            waiting[
                bucket_of(shape[0], self.input_lengths), bucket_of(shape[1], self.target_lengths)
            ].append(row)
        return pending

    def _pack(
        self, bucket: tuple[int, int], rows: Sequence[_Row], size: int
    ) -> dict[str, np.ndarray]:
        return pack_rows(rows, size, *bucket, self.network.config.decoder_start_token_id)

    def _compute(
        self, bucket: tuple[int, int], params: Params, batch: dict[str, jax.Array]
    ) -> jax.Array:
        return self._sums(params, batch)

    def _land(self, flying: Iterable[tuple[list[_Row], jax.Array]]) -> None:
        """Waits for launched micro-batches and hands each sum to the choices it belongs to."""
        for rows, sums in flying:
            local = local_rows(sums)
            for row, values in zip(rows, local, strict=False):
                for target, choices, value in zip(row.targets, row.choices, values, strict=False):
                    length = (
                        np.float32(len(target)) if self.settings.length_normalize else np.float32(1)
                    )
                    row.owner.scores[choices] = value / length
                row.owner.missing -= 1


def pack_rows(
    rows: Sequence[_Row], size: int, input_length: int, target_length: int, start: int
) -> dict[str, np.ndarray]:
    """A micro-batch [size, input_length] and [size, target_length]; rows beyond `rows` are padding (id 0)."""
    inputs = np.zeros((2, size, input_length), np.int32)
    decoder = np.zeros((3, size, target_length), np.int32)
    for i, row in enumerate(rows):
        inputs[0, i, : len(row.inputs)] = row.inputs
        inputs[1, i, : len(row.inputs)] = 1
        at = 0
        for segment, target in enumerate(row.targets, start=1):
            end = at + len(target)
            decoder[0, i, at:end] = [start, *target[:-1]]
            decoder[1, i, at:end] = target
            decoder[2, i, at:end] = segment
            at = end
    return {
        "encoder_input_tokens": inputs[0],
        "encoder_segment_ids": inputs[1],
        "decoder_input_tokens": decoder[0],
        "decoder_target_tokens": decoder[1],
        "decoder_segment_ids": decoder[2],
        "decoder_loss_weights": (decoder[2] > 0).astype(np.float32),
    }
