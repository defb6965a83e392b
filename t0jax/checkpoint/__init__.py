"""Saving and finding models: orbax checkpoints that carry their own configuration and data position.

A run folder:

    config.yaml                     the run's configuration
    vocabulary.model                the SentencePiece model the run was trained with
    checkpoints/<step>/             params, optimizer and, as custom metadata, config, data position and counters
    checkpoints/<step>.damaged/     one that could not be read when the run went on without it
    scores.json                     what they scored, see `t0jax.evaluate.history`
    metrics.jsonl ...               see `t0jax.metrics`
"""

from t0jax.checkpoint.folders import (
    CONFIG_FILE,
    PARTIAL,
    STEPS_FOLDER,
    VOCABULARY_FILE,
    CheckpointError,
    Unavailable,
    check_run_dir,
    check_shared,
    config_to_yaml,
    read_run_config,
    write_atomically,
    write_run_files,
)
from t0jax.checkpoint.loading import (
    LoadedModel,
    is_hugging_face,
    load_model,
    load_params,
    load_state,
    read_config,
    save_model,
    vocabulary_of,
)
from t0jax.checkpoint.reading import State, read_metadata
from t0jax.checkpoint.saving import Checkpoints, gather_position

__all__ = [
    "CONFIG_FILE",
    "PARTIAL",
    "STEPS_FOLDER",
    "VOCABULARY_FILE",
    "CheckpointError",
    "Checkpoints",
    "LoadedModel",
    "State",
    "Unavailable",
    "check_run_dir",
    "check_shared",
    "config_to_yaml",
    "gather_position",
    "is_hugging_face",
    "load_model",
    "load_params",
    "load_state",
    "read_config",
    "read_metadata",
    "read_run_config",
    "save_model",
    "vocabulary_of",
    "write_atomically",
    "write_run_files",
]
