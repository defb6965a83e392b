"""The programs that a job runs, with abstract arguments: a training step, a micro-batch of scoring."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from t0jax import checkpoint, convert, models, optim, scoring, sharding
from t0jax import config as config_lib
from t0jax.config import Config
from t0jax.plan.topology import PlanError
from t0jax.step import Batch, abstract_state, jit_step

Job = Literal["train", "evaluate"]

SIZES = {
    "small": (512, 1024, 6, 8), "base": (768, 2048, 12, 12), "large": (1024, 2816, 16, 24),
    "xl": (2048, 5120, 32, 24), "xxl": (4096, 10240, 64, 24),
}  # fmt: skip
"""T5 v1.1: d_model, d_ff, num_heads, num_layers (https://huggingface.co/google/t5-v1_1-xl and its sizes)."""

NAMES = {
    **{f"{prefix}-{size}{suffix}": size for size in SIZES for prefix, suffix in (("t5-v1_1", ""), ("t5", "-lm-adapt"))},
    "T0_3B": "xl", "T0": "xxl", "T0p": "xxl", "T0pp": "xxl",
}  # fmt: skip
"""Last part of a published model's name -> its size."""


DEBERTA_SIZES = {
    "xsmall": (384, 1536, 6, 12), "small": (768, 3072, 12, 6), "base": (768, 3072, 12, 12),
    "large": (1024, 4096, 16, 24),
}  # fmt: skip
"""DeBERTa-v3: d_model, d_ff, num_heads, num_layers (https://huggingface.co/microsoft/deberta-v3-base and its sizes)."""

NOMINAL_HEADS = (
    *(config_lib.Head(f"task {n}", "classification", ("a", "b", "c")) for n in range(600)),
    config_lib.Head("questions", "multiple_choice"),
)
"""Of a plan, which opens no data: weights of their own for 600 tasks of three labels, and multiple choice."""


def adopt_architecture(config: Config) -> Config:
    """The configuration with the architecture of `train.init_checkpoint`: read there, or known by its name.

    A DeBERTa gets `NOMINAL_HEADS`.

    Raises:
        PlanError: it is neither here nor a published model.
    """
    start = config.train.init_checkpoint
    if not start:
        return _with_heads(config)
    path = Path(start)
    if path.exists():
        hugging_face = checkpoint.is_hugging_face(path)
        own = convert.read_config(path) if hugging_face else checkpoint.read_config(path).model
    elif path.name in NAMES:
        d_model, d_ff, heads, layers = SIZES[NAMES[path.name]]
        own = config_lib.Model(d_model=d_model, d_ff=d_ff, num_heads=heads, num_layers=layers)
    elif path.name.startswith("deberta-v3-") and path.name.split("-")[2] in DEBERTA_SIZES:
        d_model, d_ff, heads, layers = DEBERTA_SIZES[path.name.split("-")[2]]
        own = config_lib.Model(
            architecture="deberta", vocab_size=128_100, d_model=d_model, d_ff=d_ff, num_heads=heads,
            num_layers=layers,
        )  # fmt: skip
    else:
        raise PlanError(
            f"train.init_checkpoint {start} is not here and {path.name!r} is no model whose shape is known "
            f"({', '.join(NAMES)}, deberta-v3-{'|'.join(DEBERTA_SIZES)}); set it to '' and give model.d_model, "
            "model.d_ff, ..."
        )
    return _with_heads(
        dataclasses.replace(config, model=config_lib.with_compute(own, config.model))
    )


def _with_heads(config: Config) -> Config:
    if config.model.architecture != "deberta":
        return config
    model = dataclasses.replace(config.model, heads=config.model.heads or NOMINAL_HEADS)
    return dataclasses.replace(config, model=model)


def lower(config: Config, mesh: jax.sharding.Mesh, job: Job) -> jax.stages.Lowered:
    """The program of `job` on `mesh`, traced for it; nothing is allocated."""
    return (_lower_step if job == "train" else _lower_scoring)(config, mesh)


def _lower_step(config: Config, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    network = models.build(config.model)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, network.axes)
    state = abstract_state(network, optimizer, mesh)
    program = jit_step(config, network, optimizer, mesh)
    with jax.set_mesh(mesh):
        return program.lower(state, abstract_batch(config, mesh))


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> Batch:
    """A batch as the loader gives it (`data.packing`, `data.structured.encoding`), without its numbers."""
    data = config.data
    rows = data.batch_size
    if config.model.architecture == "deberta":
        numbers = ("task_ids", "item_ids", "label_ids")
        tokens = ("encoder_input_tokens", "encoder_segment_ids")
        return {
            **_arrays(tokens, (rows, data.input_length), jnp.int32, mesh),
            **_arrays(numbers, (rows,), jnp.int32, mesh),
            **_arrays(["label_values"], (rows, 1), jnp.float32, mesh),
            **_arrays(["loss_weights"], (rows,), jnp.float32, mesh),
        }
    encoder = ("encoder_input_tokens", "encoder_segment_ids", "encoder_positions")
    decoder = (
        *("decoder_input_tokens", "decoder_target_tokens"),
        *("decoder_segment_ids", "decoder_positions"),
    )
    weights = ["decoder_loss_weights"]
    if data.num_negatives:
        weights.append("decoder_unlikelihood_weights")
    return {
        **_arrays(encoder, (rows, data.input_length), jnp.int32, mesh),
        **_arrays(decoder, (rows, data.target_length), jnp.int32, mesh),
        **_arrays(weights, (rows, data.target_length), jnp.float32, mesh),
    }


def _arrays(names, shape, dtype, mesh) -> dict[str, Any]:
    where = sharding.batch_sharding(mesh)
    return dict.fromkeys(names, jax.ShapeDtypeStruct(shape, dtype, sharding=where))


def scoring_shape(config: Config) -> tuple[int, int]:
    """(input length, target length) of the largest micro-batch that most prompts need: one target of full length."""
    settings = config.evaluate
    grid = scoring.length_grid(max(1024, settings.max_target_length), 8, scoring.target_parts)
    return settings.max_input_length, next(n for n in grid if n >= settings.max_target_length)


def scoring_rows(config: Config, ways: int) -> int:
    """Rows of that micro-batch over all devices (`scoring.Scorer.rows`)."""
    inputs, targets = scoring_shape(config)
    each = max(1, scoring.ACCELERATOR_TOKENS // (inputs + scoring.TARGET_COST * targets))
    return each * ways


def _lower_scoring(config: Config, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    network = models.build(config.model)
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    params = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), network.shapes, where
    )
    inputs, targets = scoring_shape(config)
    rows = scoring_rows(config, sharding.row_ways(mesh))
    decoder = ("decoder_input_tokens", "decoder_target_tokens", "decoder_segment_ids")
    batch = {
        **_arrays(("encoder_input_tokens", "encoder_segment_ids"), (rows, inputs), jnp.int32, mesh),
        **_arrays(decoder, (rows, targets), jnp.int32, mesh),
        **_arrays(["decoder_loss_weights"], (rows, targets), jnp.float32, mesh),
    }
    with jax.set_mesh(mesh):
        return scoring.program(network.config, mesh).lower(params, batch)
