"""Teaching a multitask encoder a task of one's own, in a call; a recipe does the same from the command line.

from t0jax.data.structured.records import Classification
from t0jax.finetune import finetune
record = Classification(dataset="rotten_tomatoes", sentence1="text", labels=("negative", "positive"))
finetune("runs/tasksource", record, "runs/rotten_tomatoes")
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import checkpoint, evaluate, processes, sharding, train
from t0jax import config as config_lib
from t0jax.config import Config
from t0jax.data.structured.loader import open_tasks
from t0jax.data.structured.records import Record, RecordError
from t0jax.data.structured.source import add_task
from t0jax.evaluate.history import SCORES_FILE
from t0jax.metrics import note
from t0jax.results import Results

LENGTHS = (32, 64, 128, 256, 512, 1024)
"""Lengths of a batch's rows, up to the longest."""
WARM_UP = 0.06
"""Share of the steps."""
SAMPLE = 1000
"""Rows that are read to learn how many a large data set fills."""


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
        settings: other keys of the configuration, dotted: `{"train.seed": 1}`; numbers may be text. What follows from
            them (steps, warm-up, lengths) and is not among them follows from these.

    Returns:
        The scores after the last step, of a run that was finished before too; None without a validation split, or
        when SIGTERM ended the run.

    Raises:
        ConfigError: something that cannot be used, or is unknown.
        DataUnavailable: the data cannot be had.
        RecordError: a row is not as declared, or none of the train split has a label.
    """
    settings = dict(settings or {})
    asked = typed({key: settings[key] for key in _ASKED_FIRST if key in settings})
    task, modules = _registered(record)
    values: dict[str, Any] = {
        "model.architecture": "deberta",
        "model.task_embedding": task_embedding,
        "data.modules": modules,
        "data.mixture": task,
        "data.input_length": max_length,
        "data.batch_size": batch_size,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": learning_rate,
        "optimizer.schedule": "linear",
        "optimizer.clip_norm": 1.0,
        "train.output_dir": str(output_dir),
        "train.init_checkpoint": str(model),
        "train.init_task": like,
        "evaluate.method": "classify",
    }
    if _has_split(record, asked.data):
        values["data.eval_mixture"] = values["data.mixture"]
    with processes.cluster(asked.train.patience):
        config = configured(_compute(Path(model)) | values | settings, epochs)
        # One process's word: what is in the folder changes as soon as another goes on.
        finished = processes.tell(_is_finished(config), "looking for a finished run")[0]
        results = train.run(config)
        return score_again(config) if results is None and finished else results


_ASKED_FIRST = ("data.local_dir", "data.eval_split", "train.patience")
"""Keys that are needed before the configuration is whole."""


def _has_split(record: Record, data: config_lib.Data) -> bool:
    """Whether the data has one of the splits `data.eval_split`."""
    there = record.splits_there(data.local_dir)
    return any(name.strip() in there for name in data.eval_split.split(","))


def configured(values: Mapping[str, Any], epochs: float) -> Config:
    """The configuration of some dotted keys, with what follows from them where they do not say it.

    Args:
        values: of the keys; text is read as the command line is.
        epochs: times that the training split is read, for `train.steps`.

    Raises:
        ConfigError: a key is unknown, or the values contradict each other.
        DataUnavailable, RecordError: as `finetune`.
    """
    first = {k: v for k, v in values.items() if k.startswith("data.") or k in _LENGTHS_OF_RUNS}
    config = typed({"data.shards": 1, **first})
    data, schedule = config.data, config.train
    found: dict[str, Any] = {
        "train.steps": schedule.steps,
        "data.shards": math.gcd(data.batch_size, 8),
        "data.length_buckets": (*(n for n in LENGTHS if n < data.input_length), data.input_length),
        "evaluate.max_input_length": data.input_length,
    }
    if "train.steps" not in values:
        found["train.steps"] = max(1, math.ceil(epochs * epoch_rows(data) / data.batch_size))
    found["train.checkpoint_every"] = schedule.eval_every or found["train.steps"]
    found["optimizer.warmup_steps"] = int(WARM_UP * found["train.steps"])
    return typed(found | dict(values))


_LENGTHS_OF_RUNS = ("train.steps", "train.eval_every")


def typed(values: Mapping[str, Any]) -> Config:
    """The checked configuration of some dotted keys, whose values may be text.

    Raises:
        ConfigError: a key is unknown, a value is not of its type, or they contradict each other.
    """
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return config_lib.parse([f"--{key}={text}" for key, text in texts.items()], "")[0]


def epoch_rows(data: config_lib.Data) -> float:
    """Rows of batches that one reading of a task fills: each option of a question is a row, an example without a told
    label is none. Of a large task it is found by a sample.

    Args:
        data: `mixture` names the task.

    Raises:
        RecordError: no example has a label.
        DataUnavailable, ConfigError: as `open_tasks`.
    """
    (task,) = open_tasks(data)
    numbers = np.arange(task.length) if task.chosen is None else task.chosen
    size = min(task.length, SAMPLE)
    sample = np.random.default_rng(0).choice(numbers, size, replace=False)
    for some in (sample, numbers):
        examples = [task.rows[int(number)] for number in some]
        if filled := sum(len(one.texts) or 1 for one in examples if one):
            return filled * task.length / len(some)
    raise RecordError(
        task.name,
        None,
        f"no row of {task.rows.split_in_data} has a label that is told; train on a split that has them",
    )


def score_again(config: Config) -> Results | None:
    """The scores of a finished run's last checkpoint; None without an evaluation."""
    if not config.data.eval_mixture:
        return None
    mesh = sharding.make_mesh(config.mesh)
    model = checkpoint.load_model(config.train.output_dir, mesh)
    evaluator = evaluate.make_evaluator(
        model.network,
        mesh,
        config.data,
        config.evaluate,
        config.data.eval_mixture,
        model.vocabulary,
    )
    note(f"evaluation: {config.data.eval_mixture} once more, by step {model.step}")
    return evaluator(model.params)


def _is_finished(config: Config) -> bool:
    """Whether nothing of the run is left to do: its last step is saved, and scored."""
    folder = Path(config.train.output_dir)
    try:
        scores = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
        saved = {step.name for step in (folder / checkpoint.STEPS_FOLDER).iterdir()} & set(scores)
    except (OSError, ValueError):
        return False
    return any(int(step) >= config.train.steps for step in saved)


_ADDED: set[str] = set()
"""Names in seqio of the tasks that `finetune` registered, for nobody else had."""


def _registered(record: Record) -> tuple[str, list[str]]:
    """The name in seqio of the record's task, and the module that registers it, for those who name the task later.

    A module that has the record and leaves it to `finetune` to register it is of no use to them.
    """
    import seqio

    before = set(seqio.TaskRegistry.names())
    name = add_task(record).name
    if name not in before:
        _ADDED.add(name)
    return name, [] if name in _ADDED else _modules(record)


def _modules(record: Record) -> list[str]:
    """The module that has the record as a variable; none of a script's own."""
    there = list(sys.modules.items())
    found = [
        name for name, module in there if any(v is record for v in list(vars(module).values()))
    ]
    return [name for name in found if name != "__main__"][-1:]


def _compute(model: Path) -> dict[str, Any]:
    """How a run computed, which its fine-tuning does too."""
    if checkpoint.is_hugging_face(model):
        return {}
    own = checkpoint.read_config(model).model
    return {f"model.{name}": getattr(own, name) for name in config_lib.COMPUTE_FIELDS}
