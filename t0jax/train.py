"""One training run, top to bottom: set-up, data, model, step, restore, loop.

A run is a function of (configuration, seed, data): started again in the same folder it goes on from the
newest checkpoint, and on the same mesh the losses are bit for bit those of a run that never stopped.
"""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from t0jax import checkpoint, convert, evaluate, metrics, models, optim, sharding
from t0jax import config as config_lib
from t0jax.config import Config, ConfigError
from t0jax.data import loader as loader_lib
from t0jax.data import vocabulary as vocabulary_lib
from t0jax.metrics import note
from t0jax.step import State, Step, init_state, make_step

Batch = dict[str, np.ndarray]


class Diverged(config_lib.UserError):
    """Too many steps in a row had a non-finite loss or gradient."""


def run(config: Config) -> evaluate.Results | None:
    """Trains as `config` says; returns the last rank evaluation, if there was one.

    Raises:
        ConfigError: something the user has to change; nothing was overwritten.
        Diverged: the loss stayed non-finite.
        checkpoint.CheckpointError: a checkpoint could not be written.
    """
    # -----------------------------------------------------------------------------------------------------------------
    # Set-up
    sharding.start_cluster()
    set_environment(config)
    run_dir = Path(config.train.output_dir)
    mesh = sharding.make_mesh(config.mesh)
    check_shapes(config, mesh)
    note(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, "
        f"process {jax.process_index()} of {jax.process_count()}"
    )

    # -----------------------------------------------------------------------------------------------------------------
    # Vocabulary and architecture; what is in the run folder already
    vocabulary = prepare_vocabulary(config)
    config = resolve_architecture(config)
    check_vocabulary(config, vocabulary)
    checkpoint.check_run_dir(run_dir, config)

    # -----------------------------------------------------------------------------------------------------------------
    # Data
    note(f"data: opening {config.data.mixture}")
    loader = loader_lib.make_loader(
        config.data, process_index=jax.process_index(), process_count=jax.process_count()
    )

    # -----------------------------------------------------------------------------------------------------------------
    # Model, optimizer, state
    network = models.build(config.model)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, network.axes)
    if jax.process_index() == 0:
        checkpoint.write_run_files(run_dir, config, vocabulary)
    checkpoints = checkpoint.Checkpoints(run_dir, config.train.keep_last, config.train.keep_best)
    state, position = start_state(config, network, optimizer, mesh, checkpoints)
    if position:
        loader.restore(position)
    size = sum(x.size for x in jax.tree.leaves(network.shapes))
    note(f"model: {size / 1e6:.1f} M parameters, {config.model.dtype} compute")

    # -----------------------------------------------------------------------------------------------------------------
    # Step, evaluation, loop
    step_fn = make_step(config, network, optimizer, mesh)
    evaluator = make_evaluator(config, network, mesh, vocabulary)
    sinks = metrics.open_sinks(config, run_dir, int(state["counters"]["step"]))
    loop = Loop(config, mesh, step_fn, loader, checkpoints, sinks, evaluator)
    try:
        return loop.run(state)
    finally:
        loader.close()
        checkpoints.close()
        for sink in sinks:
            sink.close()


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


def check_shapes(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Rows must divide over micro-batches and the devices that hold rows."""
    ways = sharding.row_ways(mesh) * config.train.grad_accumulation
    if config.data.batch_size % ways:
        raise ConfigError(
            f"data.batch_size {config.data.batch_size} is not a multiple of {ways} "
            f"(mesh data x fsdp x train.grad_accumulation)"
        )


def prepare_vocabulary(config: Config) -> Path:
    """The SentencePiece model of the run, trained first if the configuration says so."""
    data = config.data
    if data.vocabulary and not Path(data.vocabulary).exists():
        if not data.vocabulary_train_size:
            raise ConfigError(
                f"data.vocabulary {data.vocabulary} does not exist; give a SentencePiece model, or set "
                "data.vocabulary_train_size to train one on the mixture's text"
            )
        if jax.process_index() == 0:
            note(f"vocabulary: training {data.vocabulary_train_size} pieces on {data.mixture}")
            texts = loader_lib.mixture_texts(data)
            vocabulary_lib.train_sentencepiece(
                texts, Path(data.vocabulary), data.vocabulary_train_size
            )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("vocabulary")
    return loader_lib.find_vocabulary(data)


def resolve_architecture(config: Config) -> Config:
    """The configuration with the architecture of `train.init_checkpoint`, where there is one."""
    start = config.train.init_checkpoint
    if not start:
        return config
    path = Path(start)
    read = convert.read_config if checkpoint.is_hugging_face(path) else checkpoint.read_model_config
    architecture = read(path)
    model = config_lib.with_compute(architecture, config.model)
    return dataclasses.replace(config, model=model)


def check_vocabulary(config: Config, vocabulary: Path) -> None:
    """Refuses a vocabulary with more ids than the model has embeddings."""
    size = vocabulary_lib.Pieces(str(vocabulary)).size
    if size > config.model.vocab_size:
        raise ConfigError(
            f"the vocabulary {vocabulary} has {size} ids, the model's embedding {config.model.vocab_size} rows; "
            f"set model.vocab_size to at least {size} or use the vocabulary the model was trained with"
        )


def make_evaluator(
    config: Config, network: models.Network, mesh: jax.sharding.Mesh, vocabulary: Path
) -> evaluate.Evaluator | None:
    """The rank evaluation of `data.eval_mixture`, prepared once."""
    if not config.data.eval_mixture:
        return None
    note(f"evaluation: preparing {config.data.eval_mixture}")
    mixture = config.data.eval_mixture
    return evaluate.Evaluator(
        network, mesh, config.data, config.evaluate, mixture, vocabulary=vocabulary
    )


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
    resumable = bool(checkpoints.steps())
    params = None
    if start and not resumable and config.train.init_from == "weights":
        params = checkpoint.load_model(start, mesh, config.model).params
    state = init_state(config, network, optimizer, mesh, params)
    if resumable:
        restored = checkpoints.restore(checkpoint.abstract_state(state))
        if restored is None:
            raise checkpoint.CheckpointError(
                f"no checkpoint in {config.train.output_dir} can be read; move the folder away to start over"
            )
        note(f"start: resuming {config.train.output_dir} at step {restored[1]['step']}")
        return restored[0], restored[1]["position"]
    if start and config.train.init_from == "state":
        state = checkpoint.load_state(Path(start), checkpoint.abstract_state(state))
        note(f"start: weights, optimizer state and step count of {start}; data from the beginning")
    elif start:
        note(f"start: weights of {start}; fresh optimizer state, step 0")
    else:
        note(f"start: random weights from seed {config.train.seed}")
    return state, {}


# ---------------------------------------------------------------------------------------------------------------------
# Loop


class Preemption:
    """Remembers SIGTERM while the loop runs; in a multi-process run all processes agree on the step."""

    def __init__(self) -> None:
        self._asked = False
        self._previous = None
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked

    def close(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


@dataclasses.dataclass
class Loop:
    """The steps of a run, with what happens between them."""

    config: Config
    mesh: jax.sharding.Mesh
    step_fn: Step
    loader: loader_lib.Loader
    checkpoints: checkpoint.Checkpoints
    sinks: list[metrics.Sink]
    evaluator: evaluate.Evaluator | None

    def run(self, state: State) -> evaluate.Results | None:
        """From the state's step to `train.steps`; saves at the end and on SIGTERM."""
        train, step = self.config.train, int(state["counters"]["step"])
        meter = metrics.Meter(self.config.model, self.config.data, train.steps)
        preemption = Preemption()
        pending: list[dict[str, jax.Array]] = []
        position, results, saved, began = {}, None, step, time.monotonic()
        first = step
        batches = sharding.prefetch(self.read(), self.mesh)
        try:
            while step < train.steps:
                batch, (rows, tokens, position) = next(batches)
                if step == first:
                    note(
                        f"data: first batch after {time.monotonic() - began:.1f} s; compiling the step"
                    )
                state, report = self.step_fn(state, batch)
                step += 1
                pending.append(report)
                meter.add(rows * jax.process_count(), tokens * jax.process_count())
                if step == first + 1:
                    jax.block_until_ready(report)
                    note(f"step {step}: first step after {time.monotonic() - began:.1f} s")
                    meter.restart()
                if step % train.log_every == 0 or step == train.steps:
                    self.log(step, pending, meter)
                    pending = []
                evaluated = None
                if (
                    self.evaluator
                    and train.eval_every
                    and step % train.eval_every == 0
                    and step < train.steps
                ):
                    results = self.evaluate(state, step)
                    evaluated = results.mean_accuracy
                    meter.restart()
                if preemption.reached(step):
                    self.log(step, pending, meter)
                    self.save(step, state, position, evaluated, wait=True)
                    note(f"SIGTERM: saved step {step}; the same command resumes from here")
                    return results
                if step % train.checkpoint_every == 0 and step < train.steps:
                    self.save(step, state, position, evaluated, wait=not train.async_checkpoint)
                    saved = step
        finally:
            batches.close()
            preemption.close()
        if self.evaluator:
            results = self.evaluate(state, step)
        if step > saved or not self.checkpoints.steps():
            accuracy = results.mean_accuracy if results else None
            self.save(step, state, position, accuracy, wait=True)
        self.checkpoints.wait()
        note(f"done: step {step}, {train.output_dir}")
        return results

    def read(self) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        """This process's rows with their counts and the data position after them."""
        for batch in self.loader:
            sides = ("encoder_segment_ids", "decoder_segment_ids")
            tokens = float(sum(np.count_nonzero(batch[side]) for side in sides))
            yield batch, (len(batch[sides[0]]), tokens, self.loader.state())
        raise ConfigError(f"the data of {self.config.data.mixture} ended before train.steps")

    def log(self, step: int, pending: list[dict[str, jax.Array]], meter: metrics.Meter) -> None:
        """Every step's numbers to the sinks, one line on the window to stdout; stops a diverged run."""
        rows = [{k: float(v) for k, v in row.items()} for row in jax.device_get(pending)]
        if not rows:
            return
        rates = meter.rates(step)
        rates["examples_per_s"] = (
            rates["steps_per_s"] * sum(r["examples"] for r in rows) / len(rows)
        )
        for at, row in enumerate(rows, start=step - len(rows) + 1):
            for sink in self.sinks:
                sink.write(at, row if at < step else {**row, **rates})
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        means["skipped"] = rows[-1]["skipped"]
        if jax.process_index() == 0:
            print(metrics.log_line(step, self.config.train.steps, {**means, **rates}), flush=True)
        worst = int(max(row["bad_in_row"] for row in rows))
        if worst >= self.config.train.max_bad_steps:
            raise Diverged(
                f"{worst} steps in a row up to step {step} had a non-finite loss or gradient; lower "
                "optimizer.learning_rate, set optimizer.clip_norm, or go back to an earlier checkpoint in "
                f"{self.config.train.output_dir}"
            )

    def evaluate(self, state: State, step: int) -> evaluate.Results:
        assert self.evaluator is not None
        results = self.evaluator(state["params"])
        if jax.process_index() == 0:
            print(results.table(), flush=True)
        for sink in self.sinks:
            sink.write(step, {f"eval/{name}": value for name, value in results.summary().items()})
        return results

    def save(
        self, step: int, state: State, position: dict[str, Any], accuracy: float | None, wait: bool
    ) -> None:
        metadata = {
            "config": config_lib.to_dict(self.config),
            "step": step,
            "position": checkpoint.gather_position(position),
        }
        self.checkpoints.save(step, state, metadata, accuracy, wait)
