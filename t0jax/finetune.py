"""Teaching a multitask encoder a task of one's own, in a call; a recipe does the same from the command line.

from t0jax.data.structured.records import Classification
from t0jax.finetune import finetune
record = Classification(dataset="rotten_tomatoes", sentence1="text", labels=("negative", "positive"))
finetune("runs/tasksource", record, "runs/rotten_tomatoes")
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t0jax import checkpoint, train
from t0jax import config as config_lib
from t0jax.config import Config, ConfigError
from t0jax.data.structured.records import MultipleChoice, Record
from t0jax.data.structured.rows import StructuredRows
from t0jax.data.structured.source import add_task
from t0jax.results import Results

LENGTHS = (32, 64, 128, 256, 512, 1024)
"""Lengths of a batch's rows, up to the longest."""


def finetune(
    model: str | Path,
    record: Record,
    output_dir: str | Path,
    *,
    epochs: float = 3.0,
    batch_size: int = 32,
    learning_rate: float = 2e-5,
    max_length: int = 256,
    like: str = "",
    task_embedding: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Results | None:
    """Trains `model` on `record`'s train split and scores its validation split, if there is one.

    Args:
        model: a run, a checkpoint or a Hugging Face directory.
        record: the task; its data are local files or on the Hub.
        output_dir: of the run; a call that was stopped goes on from there.
        epochs: times that the train split is read.
        batch_size: rows a step; a question's options are a row each.
        learning_rate: at the end of the warm-up, 6 % of the steps; it then falls to 0.
        max_length: tokens of a row; longer texts are cut.
        like: a task of `model` whose embedding, and head where the labels agree, the new task starts from.
        task_embedding: whether the task has an embedding.
        settings: other keys of the configuration, dotted: `{"train.seed": 1}`.

    Returns:
        The scores after the last step; None without a validation split, or when SIGTERM ended the run.

    Raises:
        ConfigError: something that cannot be used, or is unknown.
        DataUnavailable: the data cannot be had.
    """
    task = add_task(record).name
    rows = len(StructuredRows(record, "train"))
    if isinstance(record, MultipleChoice):
        rows *= _options(record)
    steps = max(1, math.ceil(epochs * rows / batch_size))
    values: dict[str, Any] = {
        **_compute(Path(model)),
        "model.architecture": "deberta",
        "model.task_embedding": task_embedding,
        "data.modules": (),
        "data.mixture": task,
        "data.input_length": max_length,
        "data.length_buckets": (*(n for n in LENGTHS if n < max_length), max_length),
        "data.batch_size": batch_size,
        "data.shards": math.gcd(batch_size, 8),
        "optimizer.name": "adamw",
        "optimizer.learning_rate": learning_rate,
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": int(0.06 * steps),
        "optimizer.clip_norm": 1.0,
        "train.output_dir": str(output_dir),
        "train.init_checkpoint": str(model),
        "train.init_task": like,
        "train.steps": steps,
        "train.checkpoint_every": steps,
        "evaluate.method": "classify",
        "evaluate.max_input_length": max_length,
    }
    if record.splits[1] is not None:
        values["data.eval_mixture"] = task
    return train.run(_config(values | dict(settings or {})))


def _options(record: Record) -> int:
    """Rows of a question in training, by the first whose answer is told."""
    found = (example for example in StructuredRows(record, "train", max_choices=4) if example)
    return len(next(found).texts)


def _compute(model: Path) -> dict[str, Any]:
    """How a run computed, which its fine-tuning does too."""
    if checkpoint.is_hugging_face(model):
        return {}
    own = checkpoint.read_config(model).model
    return {f"model.{name}": getattr(own, name) for name in config_lib.COMPUTE_FIELDS}


def _config(values: Mapping[str, Any]) -> Config:
    """The checked configuration of some dotted keys.

    Raises:
        ConfigError: a key is unknown, or the values contradict each other.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if not dot:
            raise ConfigError(f"setting {key!r} names no section; write e.g. 'train.{key}'")
        sections.setdefault(section, {})[name] = value
    return config_lib.check(config_lib.from_dict(sections, "finetune"))
