"""Saving and finding models: orbax checkpoints that carry their own configuration and data position.

A run folder:

    config.yaml            the run's configuration
    vocabulary.model       the SentencePiece model the run was trained with
    checkpoints/<step>/    params, optimizer and, as custom metadata, config, data position and counters
    scores.json            what they scored, see `t0jax.evaluate.history`
    metrics.jsonl ...      see `t0jax.metrics`
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from t0jax import config as config_lib
from t0jax import convert, models, sharding
from t0jax.config import ConfigError
from t0jax.metrics import note

CONFIG_FILE = "config.yaml"
VOCABULARY_FILE = "vocabulary.model"
STEPS_FOLDER = "checkpoints"
PARTIAL = ".partial"
"""Ending of files that are being written."""

State = dict[str, Any]
"""Trees of arrays by name; `params` is one of them."""


class CheckpointError(config_lib.UserError):
    """A checkpoint that cannot be written or read; the message says what is still whole."""


class Checkpoints:
    """The checkpoints of one run: keeps the last and the best, saves in the background."""

    def __init__(
        self,
        run_dir: Path,
        keep_last: int = 2,
        keep_also: ocp.training.preservation_policies.PreservationPolicy | None = None,
    ) -> None:
        """Nothing is touched before the first save; that removes half-written leftovers.

        `keep_also` says which to keep besides the last ones.
        """
        self._folder = (run_dir / STEPS_FOLDER).absolute()
        self._keep_last, self._keep_also = max(keep_last, 1), keep_also
        self._damaged: set[int] = set()

    @functools.cached_property
    def _orbax(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(self._keep_last)]
        if self._keep_also is not None:
            keep.append(self._keep_also)
        # Compressing floats takes nine times the processor time of writing them and saves 8 % of the disk.
        context = ocp.Context()
        context.array.saving.use_compression = False
        return ocp.training.Checkpointer(
            self._folder,
            context=context,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        return sorted(int(entry.step) for entry in self.entries())

    def entries(self) -> list[Any]:
        """Orbax's records of the finished checkpoints; each has a `step` and `metrics`."""
        return list(self._orbax.checkpoints) if self._folder.is_dir() else []

    def save(
        self,
        step: int,
        state: State,
        metadata: Mapping[str, Any],
        wait: bool = False,
    ) -> None:
        """Starts writing; returns when the arrays may be donated.

        Args:
            step: finished training steps.
            state: global arrays.
            metadata: JSON values; equal on all processes.
            wait: return only when it is on disk.

        Raises:
            CheckpointError: this or the previous background save failed (a full disk, a read-only folder).
        """
        try:
            if step not in self.steps() or step in self._damaged:
                self._orbax.save_checkpointables_async(
                    step,
                    dict(state),
                    force=True,
                    overwrite=step in self._damaged,
                    custom_metadata=dict(metadata),
                )
                self._damaged.discard(step)
            if wait:
                self._orbax.wait()
        except Exception as error:
            raise CheckpointError(self._failure(step, error)) from error

    def wait(self) -> None:
        """Until everything is on disk; raises what a background save failed with."""
        try:
            self._orbax.wait()
        except Exception as error:
            raise CheckpointError(self._failure(None, error)) from error

    def _failure(self, step: int | None, error: Exception) -> str:
        self._orbax.reload()
        whole = self.steps()
        left = f"checkpoint {whole[-1]} is whole" if whole else "no earlier checkpoint exists"
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        return (
            f"{what} could not be written to {self._folder}: {_first_line(error)}. {left}; make room or fix the "
            "folder's permissions and start the same command again to go on from there."
        )

    def restore(self, abstract: State) -> tuple[State, dict[str, Any]] | None:
        """The newest checkpoint that can be read, placed as `abstract` says, with its metadata; None if there is none.

        Raises:
            ConfigError: the checkpoint's arrays have other shapes than the run's.
        """
        for step in reversed(self.steps()):
            try:
                metadata = read_metadata(self._folder / str(step))
                _check_shapes(self._folder / str(step), abstract)
                return self._orbax.load_checkpointables(step, abstract), metadata
            except ConfigError:
                raise
            except Exception as error:
                self._damaged.add(step)
                note(
                    f"checkpoint {step} in {self._folder} cannot be read ({_first_line(error)}); "
                    "left in place, trying the one before"
                )
        return None

    def close(self) -> None:
        """Lets go of orbax's threads. What a save failed with was raised by `save` or `wait` already."""
        if "_orbax" in self.__dict__:
            with contextlib.suppress(Exception):
                self._orbax.close()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def read_metadata(step_folder: Path) -> dict[str, Any]:
    """What `Checkpoints.save` was given as `metadata`.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return dict(ocp.checkpointables_metadata(step_folder).custom_metadata)
    except Exception as error:
        raise CheckpointError(
            f"{step_folder} is damaged ({_first_line(error)}); give an earlier step of its folder"
        ) from error


def _check_shapes(step_folder: Path, abstract: State) -> None:
    """Compares names and shapes before orbax does, to say which array differs."""
    saved = ocp.checkpointables_metadata(step_folder).metadata
    for part, tree in abstract.items():
        if part not in saved:
            raise ConfigError(
                f"{step_folder} has no {part}: it holds parameters alone, use train.init_from weights"
            )
        if saved[part] is None:
            raise CheckpointError(
                f"{step_folder}/{part} is damaged: its table of arrays cannot be read"
            )
        found = {_key(path): tuple(leaf.shape) for path, leaf in _leaves(saved[part])}
        wanted = {_key(path): tuple(leaf.shape) for path, leaf in _leaves(tree)}
        for name in sorted(found.keys() ^ wanted.keys())[:1]:
            where = "the checkpoint" if name in found else "this configuration"
            raise ConfigError(f"{step_folder}: {part} {name!r} is in {where} only{_SHAPE_HINT}")
        for name, shape in wanted.items():
            if found[name] != shape:
                shapes = f"has shape {found[name]}, this configuration needs {shape}"
                raise ConfigError(f"{step_folder}: {part} {name!r} {shapes}{_SHAPE_HINT}")


_SHAPE_HINT = (
    "; use the model and optimizer sections it was saved with, or another train.output_dir"
)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    pairs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return [(path, leaf) for path, leaf in pairs if hasattr(leaf, "shape")]  # drops empty nodes


def _key(path: Any) -> str:
    """A name for a tree path that does not depend on whether a level is a tuple, a dict or an attribute."""
    return "/".join(
        str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))
        for entry in path
    )


def gather_position(local: Mapping[str, Any]) -> dict[str, Any]:
    """Every process's data position as one JSON value, the same on all: dictionaries are merged."""
    if jax.process_count() == 1:
        return dict(local)
    text = json.dumps(local).encode()
    length = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    padded = np.frombuffer(text.ljust(length), dtype=np.uint8)
    merged: dict[str, Any] = {}
    for row in np.asarray(multihost_utils.process_allgather(padded)):
        _merge(merged, json.loads(row.tobytes().decode()))
    return merged


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


# ---------------------------------------------------------------------------------------------------------------------
# Run folders


def write_run_files(run_dir: Path, config: config_lib.Config, vocabulary: Path | None) -> None:
    """`config.yaml` and a copy of the vocabulary, each written whole or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / CONFIG_FILE, config_to_yaml(config).encode())
    if vocabulary is not None and not (run_dir / VOCABULARY_FILE).exists():
        write_atomically(run_dir / VOCABULARY_FILE, Path(vocabulary).read_bytes())


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
    *("optimizer.name", "train.seed", "train.init_checkpoint", "train.init_from"),
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
    changed = {
        key: f"{key}: {there[key]!r} there, {here[key]!r} here"
        for key in here
        if there[key] != here[key]
    }
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


# ---------------------------------------------------------------------------------------------------------------------
# Models by path


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to score: parameters live on the mesh it was loaded for."""

    network: models.Network
    params: models.Params
    vocabulary: Path | None
    config: config_lib.Config | None
    """The run's configuration; None for a Hugging Face directory."""
    step: int


def is_hugging_face(path: Path) -> bool:
    return (path / "config.json").exists()


def load_model(
    path: str | Path,
    mesh: jax.sharding.Mesh,
    compute: config_lib.Model | None = None,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Reads a run folder (its newest checkpoint), one checkpoint of it, or a Hugging Face directory.

    Args:
        path: the folder.
        mesh: where the parameters go; each shard is read where it lives.
        compute: dtype, remat and so on; those that the checkpoint was saved with when not given.
        allow_pickle: also read `pytorch_model.bin` (needs torch).

    Raises:
        ConfigError: the folder is none of these, or its shapes are not what its configuration says.
        CheckpointError: there is no whole checkpoint.
    """
    path = Path(path)
    if is_hugging_face(path):
        return _load_hugging_face(path, mesh, compute, allow_pickle)
    step_folder = _step_folder(path)
    metadata = read_metadata(step_folder)
    config = config_lib.from_dict(metadata["config"], str(step_folder))
    network = models.build(config_lib.with_compute(config.model, compute or config.model))
    params = load_params(step_folder, network, mesh)
    return LoadedModel(network, params, vocabulary_of(path), config, int(metadata["step"]))


def vocabulary_of(path: Path) -> Path | None:
    """The SentencePiece file beside a model (as `load_model` takes it), if there is one."""
    in_run = (VOCABULARY_FILE, lambda: _step_folder(path).parent.parent)
    name, folder = ("spiece.model", lambda: path) if is_hugging_face(path) else in_run
    file = folder() / name
    return file if file.exists() else None


def read_config(path: Path) -> config_lib.Config:
    """The configuration of a run folder or one of its checkpoints."""
    step_folder = _step_folder(path)
    return config_lib.from_dict(read_metadata(step_folder)["config"], str(step_folder))


def load_state(path: Path, abstract: State) -> State:
    """All arrays of a run's newest checkpoint, or of one checkpoint, placed as `abstract` says.

    Raises:
        ConfigError: shapes differ, or it holds parameters only.
        CheckpointError: it cannot be read.
    """
    step_folder = _step_folder(path)
    _check_shapes(step_folder, abstract)
    return _load(step_folder, abstract)


def _load(step_folder: Path, abstract: State) -> State:
    try:
        return ocp.load_checkpointables(step_folder, abstract)
    except Exception as error:
        raise CheckpointError(f"{step_folder} cannot be read: {_first_line(error)}") from error


def load_params(
    step_folder: Path, network: models.Network, mesh: jax.sharding.Mesh
) -> models.Params:
    """The parameters of one checkpoint, into their shards."""
    abstract = jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        network.shapes,
        sharding.param_shardings(network.axes, network.shapes, mesh),
    )
    _check_shapes(step_folder, {"params": abstract})
    return _load(step_folder, {"params": abstract})["params"]


def _load_hugging_face(
    path: Path, mesh: jax.sharding.Mesh, compute: config_lib.Model | None, allow_pickle: bool
) -> LoadedModel:
    architecture = convert.read_config(path)
    network = models.build(config_lib.with_compute(architecture, compute or architecture))
    shardings = sharding.param_shardings(network.axes, network.shapes, mesh)
    params = convert.load_params(path, network, shardings, allow_pickle=allow_pickle)
    return LoadedModel(network, params, vocabulary_of(path), None, 0)


def _step_folder(path: Path) -> Path:
    if (path / "_CHECKPOINT_METADATA").exists():
        return path.absolute()
    folder = (path / STEPS_FOLDER).absolute()
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not steps:
        if not path.exists():
            raise CheckpointError(
                f"there is no {path}; a Hugging Face model is put there by python -m scripts.convert from-hf"
            )
        raise CheckpointError(
            f"{path} holds no model: expected a run folder with {STEPS_FOLDER}/, one of its checkpoints, or a "
            "Hugging Face directory with config.json"
        )
    return folder / str(max(steps))


def save_model(
    path: str | Path, params: models.Params, model: config_lib.Model, vocabulary: Path | None
) -> None:
    """Writes parameters alone as a new run folder at step 0, as `convert from-hf` does.

    Raises:
        ConfigError: the folder is not empty.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path} is not empty; choose another folder")
    config = dataclasses.replace(config_lib.Config(), model=model)
    checkpoints = Checkpoints(path)
    try:
        metadata = {"config": config_lib.to_dict(config), "step": 0, "position": {}}
        checkpoints.save(0, {"params": params}, metadata, wait=True)
        write_run_files(path, config, vocabulary)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        checkpoints.close()
