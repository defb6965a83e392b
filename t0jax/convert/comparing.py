"""Whether two models compute the same."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t0jax import models
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
    config = original[0].config
    batch = _random_batch(config.vocab_size, max(1, len(config.heads)), seed)
    run = jax.jit(lambda network, params: _OUTPUTS[network.config.architecture](network, params, batch), static_argnums=0)
    pairs = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(), run(*exported), run(original[0], rounded)
    )
    return float(max(jax.tree.leaves(pairs)))


def _t5_logits(network: models.Network, params: models.Params, batch: Any) -> Any:
    return network.bind(params)(batch)


def _multitask_logits(network: models.Network, params: models.Params, batch: Any) -> Any:
    """Of every task on one of the rows each."""
    model, tasks = network.bind(params), batch["task_ids"]
    tokens = batch["encoder_input_tokens"]
    has_heads = bool(network.config.heads)
    states = model.encode(tokens, batch["encoder_segment_ids"], tasks if has_heads else None)
    token = np.array([head.kind == "token_classification" for head in network.config.heads], bool)
    if not has_heads:
        return [states]
    found = []
    if not token.all():
        rows = ~token[tasks]
        found.append(model.sequence_logits(model.pool(states[rows]), tasks[rows]))
    if token.any():
        rows = token[tasks]
        found.append(model.token_logits(states[rows], tasks[rows]))
    return found


_OUTPUTS = {"t5": _t5_logits, "deberta": _multitask_logits}


def _random_batch(vocab_size: int, tasks: int, seed: int) -> dict[str, np.ndarray]:
    """Two rows for each task, none with [CLS] inside."""
    rng = np.random.default_rng(seed)
    task_ids = np.repeat(np.arange(tasks, dtype=np.int32), 2)
    inputs, targets = (rng.integers(0, vocab_size, (2 * tasks, n), dtype=np.int32) for n in (24, 8))
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": np.ones_like(inputs),
        "decoder_input_tokens": targets,
        "decoder_segment_ids": np.ones_like(targets),
        "task_ids": task_ids,
    }
