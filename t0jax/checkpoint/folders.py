"""A run folder beside its checkpoints: its files, who may write there, and the error of this room."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import yaml

from t0jax import config as config_lib
from t0jax.config import ConfigError
from t0jax.metrics import note

CONFIG_FILE = "config.yaml"
VOCABULARY_FILE = "vocabulary.model"
STEPS_FOLDER = "checkpoints"
PARTIAL = ".partial"
"""Ending of files that are being written."""


class CheckpointError(config_lib.UserError):
    """A checkpoint that cannot be written or read; the message says what is still whole."""


class Unavailable(CheckpointError):
    """A checkpoint that may be whole and cannot be read now. None older is taken in its place."""


def write_run_files(run_dir: Path, config: config_lib.Config, vocabulary: Path | None) -> None:
    """`config.yaml` and a copy of the vocabulary, each written whole or not at all.

    Raises:
        CheckpointError: they cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / CONFIG_FILE, config_to_yaml(config).encode())
        if vocabulary is not None and not (run_dir / VOCABULARY_FILE).exists():
            write_atomically(run_dir / VOCABULARY_FILE, Path(vocabulary).read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{run_dir} cannot be written to ({error}); nothing in it was changed. Make room or fix its permissions "
            "and start the same command again"
        ) from error


def check_shared(run_dir: Path, seconds: float = 30.0) -> None:
    """Refuses a run folder, just written by the first process, that another one does not see.

    Raises:
        ConfigError: it is not there after `seconds`, which a network disk may need to show it.
    """
    deadline = time.monotonic() + seconds
    while not (run_dir / CONFIG_FILE).exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"process {jax.process_index()} does not see train.output_dir {run_dir.absolute()}, which process 0 "
                "has written; put it on a disk that all processes share, under the same path"
            )
        time.sleep(1.0)


def config_to_yaml(config: config_lib.Config) -> str:
    plain = json.loads(json.dumps(config_lib.to_dict(config)))
    return yaml.safe_dump(plain, sort_keys=False)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file of a run whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(content)
    os.replace(partial, path)


def read_run_config(run_dir: Path) -> config_lib.Config:
    """The configuration that a run folder was made with."""
    path = run_dir / CONFIG_FILE
    return config_lib.from_dict(config_lib.read_yaml(path), str(path))


_IDENTITY = (
    *(f"model.{f.name}" for f in dataclasses.fields(config_lib.Model) if f.name not in config_lib.COMPUTE_FIELDS),
    *(f"data.{name}" for name in ("mixture", "split", "rates", "input_length", "target_length", "batch_size")),
    *(f"data.{name}" for name in ("pack", "pack_rows", "shards", "seed")),
    *(f"data.{name}" for name in ("view", "num_negatives", "num_shots", "instruction_split", "truncation")),
    *(f"data.{name}" for name in ("rate_cap", "batching", "length_buckets", "max_choices")),
    *("optimizer.name", "train.seed", "train.init_checkpoint", "train.init_from", "train.init_task"),
)  # fmt: skip
"""Keys that make a run what it is; the others may change when it goes on."""


def check_run_dir(run_dir: Path, config: config_lib.Config, vocabulary: Path | None) -> None:
    """Refuses a folder that holds something else than this run; notes settings that changed since.

    Raises:
        ConfigError: another run's configuration (naming the keys that differ) or foreign files.
    """
    if not (run_dir / CONFIG_FILE).exists():
        found = sorted(p.name for p in run_dir.iterdir()) if run_dir.is_dir() else []
        foreign = [name for name in found if not name.endswith(PARTIAL)]
        if foreign:
            raise ConfigError(
                f"train.output_dir {run_dir} is not empty and holds no t0jax run (it has {foreign[0]}); "
                "choose another"
            )
        return
    there, here = config_lib.flatten(read_run_config(run_dir)), config_lib.flatten(config)
    changed = {key: _differs(key, there[key], here[key]) for key in here if there[key] != here[key]}
    if other := [text for key, text in changed.items() if key in _IDENTITY]:
        raise ConfigError(
            f"train.output_dir {run_dir} holds another run ({'; '.join(other)}); choose another folder, or "
            "delete that one to start over"
        )
    kept = run_dir / VOCABULARY_FILE
    if vocabulary is not None and kept.exists() and kept.read_bytes() != vocabulary.read_bytes():
        raise ConfigError(
            f"train.output_dir {run_dir} was begun with another vocabulary than {vocabulary}; use "
            f"data.vocabulary {kept}, or another folder"
        )
    if changed:
        note(f"settings changed since {run_dir} was made: {'; '.join(changed.values())}")


def _differs(key: str, there: Any, here: Any) -> str:
    """What a key was and is; of heads, which may be hundreds, the tasks that make the difference."""
    if key != "model.heads":
        return f"{key}: {there!r} there, {here!r} here"
    old, new = ({head["task"]: head for head in heads} for heads in (there, here))
    parts = {
        "only there": [task for task in old if task not in new],
        "only here": [task for task in new if task not in old],
        "with other labels": [task for task in old if task in new and old[task] != new[task]],
    }
    told = [
        f"{', '.join(tasks[:5])}{' ...' if len(tasks) > 5 else ''} {how}"
        for how, tasks in parts.items()
        if tasks
    ]
    return f"{key}: {'; '.join(told) or 'the same tasks in another order'}"
