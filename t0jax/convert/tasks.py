"""Multitask encoders in parts: one task as a stock model, and all heads as the published layout's adapters."""

import difflib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from t0jax import config as cfg
from t0jax import models
from t0jax.convert import deberta_names as names
from t0jax.convert import main_head, published
from t0jax.convert.files import ConvertError, Source
from t0jax.convert.names import hf_config, marked
from t0jax.convert.writing import DTYPES, SHARD_BYTES, Export, row_of, write


def save_task(
    params: models.Params,
    config: cfg.Model,
    task: str,
    out_dir: str | Path,
    dtype: str = "float32",
    tokenizer_path: str | Path | None = None,
    *,
    fold: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes one task as transformers' DebertaV2ForSequenceClassification, -MultipleChoice or -TokenClassification.

    The task's embedding is added to that of [CLS], so that the model computes the same from the same ids: [CLS] stands
    at the start of a row and nowhere else.

    Args:
        params: of the multitask encoder, on any mesh.
        config: its architecture.
        task: name of one of its heads.
        out_dir, dtype, tokenizer_path, shard_bytes: as `save_params` takes them.
        fold: whether the task's embedding goes in; without it the directory is the backbone of all adapters.

    Returns:
        `out_dir`.

    Raises:
        ConvertError: there is no such task, or as `save_params`.
    """
    number, network = _number(config, task), models.build(config)
    single = names.one_head(config, number)
    about = hf_config(single, _known(dtype))
    rows = {}
    if fold and "task_embedding" in network.shapes:
        about[published.FOLDED] = task
        rows[names.EMBEDDING] = (names.CLS_ID, _folded(params, number))
    table = names.encoder_table(network) + names.classifier(network, number)
    if config.heads[number].kind == "token_classification":
        table = [entry for entry in table if entry.path[0] != "pooler"]
    export = Export(single, table, about, DTYPES[dtype], tokenizer_path, rows)
    return write(params, export, out_dir, shard_bytes)


def save_adapters(
    params: models.Params, config: cfg.Model, out_dir: str | Path, dtype: str = "float32"
) -> Path:
    """Writes every head and the task embedding, in the published layout, without the encoder.

    With the main task's model, `save_task(..., fold=False)`, they are the whole model again.

    Raises:
        ConvertError: the model has no heads, or as `save_params`.
    """
    if not config.heads:
        raise ConvertError("the model has no heads, so there are no adapters to write")
    about = {
        "model_type": names.MODEL_TYPES[0],
        "hidden_size": config.d_model,
        "torch_dtype": _known(dtype),
        **published.describe(config.heads),
    }
    table = published.head_table(models.build(config))
    return write(params, _Adapters(config, table, marked(about), DTYPES[dtype]), out_dir)


class _Adapters(Export):
    """Heads alone."""

    def check(self, folder: Path) -> None:
        found = published.read_heads(Source(folder))
        if found is None or found.heads != self.config.heads:
            raise ConvertError(f"config.json reads back as {found}")


def one_task(
    params: models.Params, config: cfg.Model, task: str
) -> tuple[models.Params, cfg.Model]:
    """What `save_task` writes as parameters of a network: (parameters, architecture)."""
    number, network = _number(config, task), models.build(config)
    single = names.one_head(config, number)
    kept = {key: value for key, value in params.items() if key != "task_embedding"}
    if "task_embedding" in network.shapes:
        table = params["embedding"]["embedding"]
        row = table[names.CLS_ID] + params["task_embedding"][number]
        kept["embedding"] = {"embedding": jnp.asarray(table).at[names.CLS_ID].set(row)}
    if config.heads[number].kind == "token_classification":
        kept.pop("pooler", None)
    kept["heads"] = {
        entry.path[1]: entry.leaf(params)[..., slice(*entry.spans[0])]
        for entry in names.classifier(network, number)
    }
    return kept, single


def main_task(config: cfg.Model) -> str:
    """The task that an export of the whole model is as a stock model; see `main_head.main_task`.

    Raises:
        ConvertError: the model has no heads.
    """
    if not config.heads:
        raise ConvertError("the model has no heads, so no task to be the main one")
    return config.heads[main_head.main_task(config.heads)].task


def _number(config: cfg.Model, task: str) -> int:
    tasks = [head.task for head in config.heads]
    if task in tasks:
        return tasks.index(task)
    near = difflib.get_close_matches(task, tasks, n=3, cutoff=0.3) or tasks[:3]
    raise ConvertError(
        f"the model has no task {task!r}; "
        + (f"near it: {', '.join(near)}" if near else "it has none")
    )


def _folded(params: models.Params, number: int) -> np.ndarray:
    return row_of(params["embedding"]["embedding"], names.CLS_ID) + row_of(
        params["task_embedding"], number
    )


def _known(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ConvertError(f"dtype {dtype!r}; {' or '.join(DTYPES)} can be written")
    return dtype
