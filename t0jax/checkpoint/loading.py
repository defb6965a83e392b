"""Models by path: a run folder, one of its checkpoints, or a Hugging Face directory."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax

from t0jax import config as config_lib
from t0jax import convert, models, processes, sharding
from t0jax.checkpoint import reading
from t0jax.checkpoint.folders import (
    STEPS_FOLDER,
    VOCABULARY_FILE,
    CheckpointError,
    Unavailable,
    write_run_files,
)
from t0jax.checkpoint.reading import State
from t0jax.checkpoint.saving import Checkpoints
from t0jax.config import ConfigError

Found = TypeVar("Found")


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
    adapters: str | Path | None = None,
    known: Mapping[str, config_lib.Head] | None = None,
) -> LoadedModel:
    """Reads a run folder (its newest whole checkpoint), one checkpoint of it, or a Hugging Face directory.

    Args:
        path: the folder.
        mesh: where the parameters go; each shard is read where it lives.
        compute: dtype, remat and so on; those that the checkpoint was saved with when not given.
        allow_pickle: also read `pytorch_model.bin` (needs torch).
        adapters: of a Hugging Face directory, the folder of its tasks' heads (see `convert.read_config`).
        known: of tasks in such directories, kind and label names.

    Raises:
        ConfigError: the folder is none of these, or its shapes are not what its configuration says; adapters of
            something else than a Hugging Face directory.
        CheckpointError: there is no whole checkpoint, or it cannot be read now.
    """
    path = Path(path)
    if is_hugging_face(path):
        return _load_hugging_face(path, mesh, compute, allow_pickle, adapters, known)
    if adapters is not None:
        raise ConfigError(
            f"{path} is no Hugging Face directory; a t0jax checkpoint has all its heads"
        )

    def read(step: Path) -> LoadedModel:
        metadata = reading.together(lambda: reading.read_metadata(step))
        config = config_lib.from_dict(metadata["config"], str(step))
        network = models.build(config_lib.with_compute(config.model, compute or config.model))
        params = load_params(step, network, mesh)
        return LoadedModel(network, params, vocabulary_of(path), config, int(metadata["step"]))

    return _read_checkpoint(path, read)


def vocabulary_of(path: Path) -> Path | None:
    """The SentencePiece file beside a model (as `load_model` takes it), if there is one."""
    if is_hugging_face(path):
        return convert.vocabulary_file(path)
    one = reading.step_folder(path)
    file = (one.parent.parent if one else path.absolute()) / VOCABULARY_FILE
    return file if file.exists() else None


def read_config(path: Path) -> config_lib.Config:
    """The configuration of a run folder or one of its checkpoints."""

    def read(step: Path) -> config_lib.Config:
        metadata = reading.together(lambda: reading.read_metadata(step))
        return config_lib.from_dict(metadata["config"], str(step))

    return _read_checkpoint(path, read)


def load_state(path: Path, abstract: State) -> State:
    """All arrays of a run's newest whole checkpoint, or of one checkpoint, placed as `abstract` says.

    Raises:
        ConfigError: shapes differ, or it holds parameters only.
        CheckpointError: it cannot be read.
    """
    return _read_checkpoint(path, lambda step: reading.read_state(step, abstract)[0])


def load_params(
    step_folder: Path, network: models.Network, mesh: jax.sharding.Mesh
) -> models.Params:
    """The parameters of one checkpoint, into their shards."""
    abstract = jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        network.shapes,
        sharding.param_shardings(network.axes, network.shapes, mesh),
    )
    return reading.read_state(step_folder, {"params": abstract})[0]["params"]


def _load_hugging_face(
    path: Path,
    mesh: jax.sharding.Mesh,
    compute: config_lib.Model | None,
    allow_pickle: bool,
    adapters: str | Path | None,
    known: Mapping[str, config_lib.Head] | None,
) -> LoadedModel:
    where = {"allow_pickle": allow_pickle, "adapters": adapters}
    architecture = convert.read_config(path, known=known, **where)
    network = models.build(config_lib.with_compute(architecture, compute or architecture))
    shardings = sharding.param_shardings(network.axes, network.shapes, mesh)
    params = convert.load_params(path, network, shardings, **where)
    return LoadedModel(network, params, vocabulary_of(path), None, 0)


def _read_checkpoint(path: Path, read: Callable[[Path], Found]) -> Found:
    """What `read` finds in the checkpoint that `path` is, or else in the newest whole one of that run folder."""
    is_one = reading.step_folder(path) is not None
    if processes.tell(is_one, "finding a checkpoint")[0]:
        try:
            return read(path.absolute())
        except Unavailable:
            raise
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; give its run folder to take the newest whole one, or an earlier step"
            ) from error
    folder = (path / STEPS_FOLDER).absolute()
    found = reading.newest_whole(folder, reading.steps_in(folder), read)
    if found is not None:
        return found
    if not path.exists():
        raise CheckpointError(
            f"there is no {path}; a Hugging Face model is put there by python -m scripts.convert from-hf"
        )
    raise CheckpointError(
        f"{path} holds no model: expected a run folder with {STEPS_FOLDER}/, one of its checkpoints, or a "
        "Hugging Face directory with config.json"
    )


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
