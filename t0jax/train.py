"""One training run, top to bottom: set-up, data, model, step, restore, loop.

A run is a function of (configuration, seed, data): started again in the same folder it goes on from the
newest checkpoint, and on the same mesh the losses are bit for bit those of a run that never stopped.
"""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from t0jax import (
    checkpoint,
    convert,
    evaluate,
    metrics,
    models,
    optim,
    processes,
    profiling,
    sharding,
)
from t0jax import config as config_lib
from t0jax.config import Config, ConfigError
from t0jax.data import loader as loader_lib
from t0jax.evaluate.history import History, digest
from t0jax.loop import Loop
from t0jax.metrics import note
from t0jax.models.transfer import transfer
from t0jax.results import Results
from t0jax.step import State, abstract_state, init_state, make_step

Batch = dict[str, np.ndarray]

EXPORT_FOLDER = "hf"
"""Where in the run folder `train.export` writes."""


def run(config: Config) -> Results | None:
    """Trains as `config` says; returns the last evaluation, if there was one.

    Raises:
        ConfigError: something the user has to change; nothing was overwritten.
        Diverged: the loss stayed non-finite.
        checkpoint.CheckpointError: a checkpoint could not be written.
    """
    with processes.cluster(config.train.patience), processes.Preemption() as preemption:
        try:
            return _run(config, preemption)
        except processes.Preempted:
            note(
                "SIGTERM: nothing was done since the last save; the same command goes on from there"
            )
            return None


def _run(config: Config, preemption: processes.Preemption) -> Results | None:
    # -----------------------------------------------------------------------------------------------------------------
    # Set-up
    set_environment(config)
    check_same(config)
    run_dir = Path(config.train.output_dir)
    mesh = sharding.make_mesh(config.mesh)
    check_settings(config, mesh)
    note(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, "
        f"process {jax.process_index()} of {jax.process_count()}"
    )

    # -----------------------------------------------------------------------------------------------------------------
    # Vocabulary and architecture; what is in the run folder already
    config = adopt_start(config)
    config = adopt_tasks(config)
    processes.first_process_does(lambda: train_vocabulary(config), "training the vocabulary")
    vocabulary = loader_lib.find_vocabulary(config.data)
    check_vocabulary(config, vocabulary)
    checkpoint.check_run_dir(run_dir, config, vocabulary)
    processes.meet("looking into the run folder")

    # -----------------------------------------------------------------------------------------------------------------
    # Data
    note(f"data: opening {config.data.mixture}")
    share, shares = sharding.process_slice(mesh)
    parts = config.train.grad_accumulation
    loader = loader_lib.make_loader(
        config.data, process_index=share, process_count=shares, parts=parts
    )
    evaluator = make_evaluator(config, mesh, vocabulary)
    processes.meet("opening the data")
    preemption.check()

    # -----------------------------------------------------------------------------------------------------------------
    # Model, optimizer, state
    network = models.build(config.model)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, network.axes)
    history = History(run_dir, digest(evaluator), config.train.keep_best)
    checkpoints = checkpoint.Checkpoints(run_dir, config.train.keep_last, history)
    state, position = start_state(config, network, optimizer, mesh, checkpoints)
    if position:
        loader.restore(position)
    size = sum(x.size for x in jax.tree.leaves(network.shapes))
    note(f"model: {size / 1e6:.1f} M parameters, {config.model.dtype} compute")

    # -----------------------------------------------------------------------------------------------------------------
    # From here on the folder is this run's
    preemption.check()
    metrics.check_sinks(config)
    processes.first_process_does(
        lambda: checkpoint.write_run_files(run_dir, config, vocabulary), "writing the run folder"
    )
    checkpoint.check_shared(run_dir)
    with contextlib.ExitStack() as stack:
        stack.callback(loader.close)
        stack.callback(checkpoints.close)
        sinks = metrics.open_sinks(config, run_dir, int(state["counters"]["step"]))
        for sink in sinks:
            stack.callback(sink.close)
        step_fn = make_step(config, network, optimizer, mesh)
        loop = Loop(config, mesh, step_fn, loader, checkpoints, history, sinks, evaluator, shares)
        results = loop.run(state, preemption)
        del state  # room for the checkpoint that is exported
        if loop.finished:
            preemption.check()
            finish_folder(config, mesh, checkpoints, history)
        return results


# ---------------------------------------------------------------------------------------------------------------------
# Set-up


def set_environment(config: Config) -> None:
    """Makes the configuration's folders known to tasks and reader processes; turns the compile cache on."""
    for variable, value in (
        ("T0JAX_DATA_DIR", config.data.local_dir),
        ("T0JAX_PROMPTS_DIR", config.data.prompts_dir),
        ("T0JAX_VOCABULARY", config.data.vocabulary),
    ):
        if value:
            os.environ[variable] = value
    cache = config.train.compile_cache or os.environ.get("T0JAX_COMPILE_CACHE", "")
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


_OF_A_HOST = ("data.local_dir", "data.prompts_dir", "data.workers", "train.compile_cache")
"""Keys that may differ between the processes of a run."""


def check_same(config: Config) -> None:
    """Refuses processes that were started with different settings.

    Raises:
        ConfigError: names the first process that differs, and the keys; raised on all.
    """
    own = {k: v for k, v in config_lib.flatten(config).items() if k not in _OF_A_HOST}
    first, *others = processes.tell(own, "comparing settings")
    for number, other in enumerate(others, start=1):
        differs = [f"{k} {other[k]!r}, not {first[k]!r}" for k in first if other[k] != first[k]]
        if differs:
            raise ConfigError(
                f"process {number} was started with other settings than process 0: {'; '.join(differs)}; give all "
                "processes the same command"
            )


def check_settings(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Rows must divide over micro-batches and the devices that hold rows; scoring reads as training does."""
    optim.make_schedule(
        config.optimizer, config.train.steps
    )  # refuses a warm-up longer than the run
    profiling.parse_window(config.train.profile, config.train.steps)
    if config.data.eval_mixture and config.data.input_eos != config.evaluate.input_eos:
        raise ConfigError(
            f"data.input_eos is {config.data.input_eos}, evaluate.input_eos {config.evaluate.input_eos}: a "
            "model is scored on inputs as it was trained on; set both"
        )
    if config.train.export == "best" and not config.train.keep_best:
        raise ConfigError(
            "train.export best needs scored checkpoints: set train.keep_best 1, data.eval_mixture and "
            "train.eval_every, or train.export last"
        )
    if config.train.export != "none":
        convert.check_replaceable(Path(config.train.output_dir) / EXPORT_FOLDER)
    sharding.check_rows(config.data.batch_size, config.train.grad_accumulation, mesh)


def adopt_start(config: Config) -> Config:
    """The configuration with the architecture and the vocabulary of `train.init_checkpoint`, where there is one.

    Raises:
        ConfigError: `data.vocabulary` is another one than the model was trained with.
    """
    if not config.train.init_checkpoint:
        return config
    path = Path(config.train.init_checkpoint)
    hugging_face = checkpoint.is_hugging_face(path)
    own = convert.read_config(path) if hugging_face else checkpoint.read_config(path).model
    # Whether tasks have an embedding is this run's choice: fine-tuning on one may do without.
    own = dataclasses.replace(own, task_embedding=config.model.task_embedding)
    model, data = config_lib.with_compute(own, config.model), config.data
    pieces = checkpoint.vocabulary_of(path)
    if pieces is not None and not data.vocabulary:
        data = dataclasses.replace(data, vocabulary=str(pieces))
        os.environ["T0JAX_VOCABULARY"] = str(pieces)
    elif pieces is not None and Path(data.vocabulary).read_bytes() != pieces.read_bytes():
        raise ConfigError(
            f"data.vocabulary {data.vocabulary} is not the vocabulary of train.init_checkpoint ({pieces}); leave "
            "data.vocabulary empty to use that"
        )
    return dataclasses.replace(config, model=model, data=data)


def adopt_tasks(config: Config) -> Config:
    """The configuration with the heads that the tasks of `data.mixture` need; text-to-text tasks need none.

    Raises:
        ConfigError: the tasks are not such as the architecture learns.
    """
    heads = loader_lib.find_heads(config.data)
    if bool(heads) != (config.model.architecture == "deberta"):
        needed = (
            "structured, which a T5 cannot answer by heads; take a recipe with model.architecture deberta, or the same "
            "records as text (tasks.tasksource_instruct)"
            if heads
            else "text to text, which heads cannot answer; take a recipe with model.architecture t5"
        )
        raise ConfigError(
            f"model.architecture is {config.model.architecture}, but the tasks of {config.data.mixture} are {needed}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, heads=heads))


def train_vocabulary(config: Config) -> None:
    """Trains `data.vocabulary` on the mixture's text, if the configuration says so and it is not there yet."""
    data = config.data
    if not data.vocabulary or Path(data.vocabulary).exists():
        return
    if not data.vocabulary_train_size:
        raise ConfigError(
            f"data.vocabulary {data.vocabulary} does not exist; give a SentencePiece model, or set "
            "data.vocabulary_train_size to train one on the mixture's text"
        )
    ids = data.vocabulary_train_size + loader_lib.added_ids(data)
    if ids > config.model.vocab_size:
        raise ConfigError(
            f"data.vocabulary_train_size {data.vocabulary_train_size} and {loader_lib.added_ids(data)} extra ids "
            f"are more than model.vocab_size {config.model.vocab_size}; make that {ids} or more"
        )
    note(f"vocabulary: reading the text of {data.mixture}")
    loader_lib.train_vocabulary(data, lambda line: note(f"vocabulary: {line}"))


def check_vocabulary(config: Config, vocabulary: Path) -> None:
    """Refuses a vocabulary with more ids than the model has embeddings."""
    size = loader_lib.vocabulary_size(config.data, vocabulary)
    if size > config.model.vocab_size:
        raise ConfigError(
            f"the vocabulary {vocabulary} has {size} ids, the model's embedding {config.model.vocab_size} rows; "
            f"set model.vocab_size to at least {size} or use the vocabulary the model was trained with"
        )


def make_evaluator(
    config: Config, mesh: jax.sharding.Mesh, vocabulary: Path
) -> evaluate.Evaluation | None:
    """The evaluation of `data.eval_mixture`, prepared once."""
    mixture = config.data.eval_mixture
    if not mixture:
        return None
    note(f"evaluation: preparing {mixture}")
    network = models.build(config.model)
    return evaluate.make_evaluator(network, mesh, config.data, config.evaluate, mixture, vocabulary)


# ---------------------------------------------------------------------------------------------------------------------
# State


def start_state(
    config: Config,
    network: models.Network,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    checkpoints: checkpoint.Checkpoints,
) -> tuple[State, dict[str, Any]]:
    """Where training starts, by precedence, with the data position.

    1. The newest whole checkpoint of this run's folder: go on, everything restored.
    2. `train.init_checkpoint` with `init_from: state`: its weights, optimizer and step; data from the start.
    3. `train.init_checkpoint` with `init_from: weights`: its weights alone.
    4. Random weights from `train.seed`.
    """
    start = config.train.init_checkpoint
    abstract = abstract_state(network, optimizer, mesh)
    restored = checkpoints.restore(abstract)
    if restored is not None:
        note(f"start: resuming {config.train.output_dir} at step {restored[1]['step']}")
        return restored[0], restored[1]["position"]
    if start and config.train.init_from == "state":
        note(f"start: weights, optimizer state and step count of {start}; data from the beginning")
        return checkpoint.load_state(Path(start), abstract), {}
    params = None
    if start:
        note(f"start: weights of {start}; fresh optimizer state, step 0")
        model = checkpoint.load_model(start, mesh, config.model)
        where = sharding.param_shardings(network.axes, network.shapes, mesh)
        key = jax.random.key(config.train.seed)
        params = transfer(model.network, model.params, network, key, where, config.train.init_task)
    else:
        note(f"start: random weights from seed {config.train.seed}")
    return init_state(config, network, optimizer, mesh, params), {}


# ---------------------------------------------------------------------------------------------------------------------
# After the last step


def finish_folder(
    config: Config, mesh: jax.sharding.Mesh, checkpoints: checkpoint.Checkpoints, history: History
) -> None:
    """Says which checkpoint scored best, and writes the one that `train.export` names beside the checkpoints.

    Raises:
        ConfigError: the best one is to be exported and none was scored.
    """
    wanted, run_dir = config.train.export, Path(config.train.output_dir)
    mixture = config.data.eval_mixture
    best = history.best(checkpoints.entries()) if config.train.keep_best else None
    if best:
        note(f"best: step {best[0]}, {best[1]:.4f} in the mean over {mixture}")
    if wanted == "none":
        return
    if wanted == "best" and not best:
        raise ConfigError(
            f"train.export best: no checkpoint in {run_dir} has a score of {mixture}; set train.export last"
        )
    step = best[0] if best and wanted == "best" else checkpoints.steps()[-1]
    out = run_dir / EXPORT_FOLDER
    note(f"export: writing step {step} to {out}")
    model = checkpoint.load_model(run_dir / checkpoint.STEPS_FOLDER / str(step), mesh)
    convert.save_params(model.params, model.network.config, out, tokenizer_path=model.vocabulary)
