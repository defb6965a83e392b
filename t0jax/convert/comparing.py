"""Whether two models compute the same."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t0jax import config as cfg
from t0jax import models
from t0jax.convert import deberta_names
from t0jax.convert.files import open_tensors

Bound = tuple[models.Network, models.Params]


def stored_dtype(hf_dir: str | Path) -> str:
    """The dtype of a directory's weights by NumPy's name, e.g. 'bfloat16'."""
    tensors = open_tensors(hf_dir)
    return tensors[min(tensors)].read(slice(0, 1)).dtype.name


def logit_difference(exported: Bound, original: Bound, dtype: str, seed: int = 0) -> float:
    """Largest difference between two models' logits on random tokens; of an encoder without heads, of its states.

    Args:
        exported: network and parameters read from an export.
        original: those it was made from; their weights are rounded to `dtype` as the export's were.
        dtype: of the export's file.
        seed: of the tokens.
    """
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), original[1])
    batch = _random_batch(original[0].config, seed)

    def outputs(network: models.Network, params: models.Params) -> Any:
        return _OUTPUTS[network.config.architecture](network, params, batch)

    run = jax.jit(outputs, static_argnums=0)
    both = run(*exported), run(original[0], rounded)
    return float(max(jnp.abs(a - b).max() for a, b in zip(*both, strict=True)))


def _t5_outputs(network: models.Network, params: models.Params, batch: Any) -> list[jax.Array]:
    return [network.bind(params)(batch)]


def _multitask_outputs(
    network: models.Network, params: models.Params, batch: Any
) -> list[jax.Array]:
    """Logits of the rows of sequence heads and those of token heads."""
    model, tasks, tokens = network.bind(params), batch["task_ids"], batch["encoder_input_tokens"]
    token = np.array([head.kind == "token_classification" for head in network.config.heads], bool)
    states = model.encode(tokens, batch["encoder_segment_ids"], tasks if token.size else None)
    if not token.size:
        return [states]
    found = []
    if not token.all():
        rows = ~token[tasks]
        found.append(model.sequence_logits(model.pool(states[rows]), tasks[rows]))
    if token.any():
        rows = token[tasks]
        found.append(model.token_logits(states[rows], tasks[rows]))
    return found


_OUTPUTS = {"t5": _t5_outputs, "deberta": _multitask_outputs}


def _random_batch(config: cfg.Model, seed: int) -> dict[str, np.ndarray]:
    """Two rows for each task; those of a DeBERTa begin with [CLS], which is nowhere else."""
    rng = np.random.default_rng(seed)
    rows = 2 * max(1, len(config.heads))
    inputs, targets = (
        rng.integers(0, config.vocab_size, (rows, n), dtype=np.int32) for n in (24, 8)
    )
    if config.architecture == "deberta":
        inputs[inputs == deberta_names.CLS_ID] = config.pad_token_id
        inputs[:, 0] = deberta_names.CLS_ID
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": np.ones_like(inputs),
        "decoder_input_tokens": targets,
        "decoder_segment_ids": np.ones_like(targets),
        "task_ids": np.arange(rows, dtype=np.int32) // 2,
    }
