"""One training run, top to bottom: set-up, data, model, step, restore, loop.

A run is a function of (configuration, seed, data): started again in the same folder it goes on from the
newest checkpoint, and on the same mesh the losses are bit for bit those of a run that never stopped.
"""

import contextlib
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
from t0jax.evaluate.history import History, digest
from t0jax.metrics import note
from t0jax.results import Results
from t0jax.step import State, Step, abstract_state, init_state, make_step

Batch = dict[str, np.ndarray]

EXPORT_FOLDER = "hf"
"""Where in the run folder `train.export` writes."""


class Diverged(config_lib.UserError):
    """Too many steps in a row had a non-finite loss or gradient."""


def run(config: Config) -> Results | None:
    """Trains as `config` says; returns the last evaluation, if there was one.

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
    check_settings(config, mesh)
    note(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, "
        f"process {jax.process_index()} of {jax.process_count()}"
    )

    # -----------------------------------------------------------------------------------------------------------------
    # Vocabulary and architecture; what is in the run folder already
    config = adopt_start(config)
    sharding.first_process_does(lambda: train_vocabulary(config), "training the vocabulary")
    vocabulary = loader_lib.find_vocabulary(config.data)
    check_vocabulary(config, vocabulary)
    checkpoint.check_run_dir(run_dir, config, vocabulary)

    # -----------------------------------------------------------------------------------------------------------------
    # Data
    note(f"data: opening {config.data.mixture}")
    share, shares = sharding.process_slice(mesh)
    loader = loader_lib.make_loader(config.data, process_index=share, process_count=shares)
    evaluator = make_evaluator(config, mesh, vocabulary)

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
    metrics.check_sinks(config)
    sharding.first_process_does(
        lambda: checkpoint.write_run_files(run_dir, config, vocabulary), "writing the run folder"
    )
    with contextlib.ExitStack() as stack:
        stack.callback(loader.close)
        stack.callback(checkpoints.close)
        sinks = metrics.open_sinks(config, run_dir, int(state["counters"]["step"]))
        for sink in sinks:
            stack.callback(sink.close)
        step_fn = make_step(config, network, optimizer, mesh)
        loop = Loop(config, mesh, step_fn, loader, checkpoints, history, sinks, evaluator, shares)
        results = loop.run(state)
        del state  # room for the checkpoint that is exported
        if loop.finished:
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


def check_settings(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Rows must divide over micro-batches and the devices that hold rows; scoring reads as training does."""
    optim.make_schedule(
        config.optimizer, config.train.steps
    )  # refuses a warm-up longer than the run
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
    ways = sharding.row_ways(mesh) * config.train.grad_accumulation
    if config.data.batch_size % ways:
        raise ConfigError(
            f"data.batch_size {config.data.batch_size} is not a multiple of {ways} "
            f"(mesh data x fsdp x train.grad_accumulation)"
        )


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
    ids = data.vocabulary_train_size + vocabulary_lib.EXTRA_IDS
    if ids > config.model.vocab_size:
        raise ConfigError(
            f"data.vocabulary_train_size {data.vocabulary_train_size} and {vocabulary_lib.EXTRA_IDS} extra ids "
            f"are more than model.vocab_size {config.model.vocab_size}; make that {ids} or more"
        )
    note(f"vocabulary: training {data.vocabulary_train_size} pieces on {data.mixture}")
    texts = loader_lib.mixture_texts(data)
    vocabulary_lib.train_sentencepiece(texts, Path(data.vocabulary), data.vocabulary_train_size)


def check_vocabulary(config: Config, vocabulary: Path) -> None:
    """Refuses a vocabulary with more ids than the model has embeddings."""
    size = vocabulary_lib.Pieces(str(vocabulary)).size
    if size > config.model.vocab_size:
        raise ConfigError(
            f"the vocabulary {vocabulary} has {size} ids, the model's embedding {config.model.vocab_size} rows; "
            f"set model.vocab_size to at least {size} or use the vocabulary the model was trained with"
        )


def make_evaluator(
    config: Config, mesh: jax.sharding.Mesh, vocabulary: Path
) -> evaluate.Evaluator | evaluate.TextEvaluator | None:
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
    if checkpoints.steps():
        restored = checkpoints.restore(abstract)
        if restored is None:
            raise checkpoint.CheckpointError(
                f"no checkpoint in {config.train.output_dir} can be read; move the folder away to start over"
            )
        note(f"start: resuming {config.train.output_dir} at step {restored[1]['step']}")
        return restored[0], restored[1]["position"]
    if start and config.train.init_from == "state":
        note(f"start: weights, optimizer state and step count of {start}; data from the beginning")
        return checkpoint.load_state(Path(start), abstract), {}
    params = None
    if start:
        note(f"start: weights of {start}; fresh optimizer state, step 0")
        params = checkpoint.load_model(start, mesh, config.model).params
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
        note(f"best: step {best[0]}, {best[1]:.4f} in the mean over the prompts of {mixture}")
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


# ---------------------------------------------------------------------------------------------------------------------
# Loop


class Preempted(Exception):
    """SIGTERM arrived while something long was going on that can be left."""


class Preemption:
    """Remembers SIGTERM while the loop runs; in a multi-process run all processes agree on the step."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, *_: Any) -> None:
        self.asked = True

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; the same on all processes."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.asked

    def leave(self, _: str) -> None:
        """Progress of an evaluation: ends it when SIGTERM has arrived."""
        if self.asked:
            raise Preempted

    def __exit__(self, *_: object) -> None:
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
    history: History
    sinks: list[metrics.Sink]
    evaluator: evaluate.Evaluator | evaluate.TextEvaluator | None
    shares: int
    """Groups of processes that read different rows."""

    def __post_init__(self) -> None:
        self.step, self.saved, self.finished = 0, -1, False
        self.position: dict[str, Any] = {}
        self.pending: list[dict[str, jax.Array]] = []
        self.meter = metrics.Meter(self.config.model, self.config.data, self.config.train.steps)

    def run(self, state: State) -> Results | None:
        """From the state's step to `train.steps`; saves at the end and on SIGTERM.

        A checkpoint that SIGTERM left without its score is scored first.
        """
        train, results, stopped = self.config.train, None, False
        self.step = first = self.saved = int(state["counters"]["step"])
        self.history.begin(first, self.checkpoints.entries())
        began = time.monotonic()
        with (
            Preemption() as preemption,
            contextlib.closing(sharding.prefetch(self.read(), self.mesh)) as batches,
        ):
            if self.owes_score():
                results, stopped = self.score(state, preemption), preemption.asked
            while self.step < train.steps and not stopped:
                batch, (rows, tokens, cut, self.position) = next(batches)
                if self.step == first:
                    waited = time.monotonic() - began
                    note(f"data: first batch after {waited:.1f} s; compiling the step")
                state, report = self.step_fn(state, batch)
                self.step += 1
                self.pending.append({**report, **cut})
                self.meter.add(rows * self.shares, tokens * self.shares)
                if self.step == first + 1:
                    jax.block_until_ready(report)
                    note(f"step {self.step}: first step after {time.monotonic() - began:.1f} s")
                    self.meter.restart()
                if self.step % train.log_every == 0:
                    self.flush()
                results = self.conclude(state, preemption) or results
                stopped = preemption.reached(self.step)
            if stopped:
                self.save(state, wait=True)
            elif not self.checkpoints.steps():  # the state of another run that was as long
                results = self.conclude(state, preemption)
        self.finished = not (stopped or preemption.asked)
        if self.finished:
            note(f"done: step {self.step}, {train.output_dir}")
        else:
            note(f"SIGTERM: saved step {self.step}; the same command resumes from here")
        return results

    def conclude(self, state: State, preemption: Preemption) -> Results | None:
        """What is due after a step: a checkpoint, an evaluation; both after the last."""
        train = self.config.train
        wait = self.step >= train.steps or not train.async_checkpoint
        # Keeping the best needs the score first; otherwise nothing is risked before the state is safe.
        if self.saves and not (self.evaluates and train.keep_best):
            self.save(state, wait)
        results = self.score(state, preemption) if self.evaluates else None
        if self.saves:
            self.save(state, wait)
        return results

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due at this step."""
        train = self.config.train
        return self.step >= train.steps or self.step % train.checkpoint_every == 0

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is due at this step."""
        train = self.config.train
        every = train.eval_every or train.steps
        return self.step >= train.steps or self.step % every == 0

    def owes_score(self) -> bool:
        """Whether this step was saved and the evaluation that is due was not finished."""
        saved = self.step in self.checkpoints.steps() and not self.history.has(self.step)
        return saved and self.evaluates and self.evaluator is not None

    def read(self) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        """This process's rows with their counts and the data position after them."""
        for batch in self.loader:
            sides = ("encoder_segment_ids", "decoder_segment_ids")
            tokens = float(sum(np.count_nonzero(batch[side]) for side in sides))
            yield batch, (len(batch[sides[0]]), tokens, self._cut_share(batch), self.loader.state())
        raise ConfigError(f"the data of {self.config.data.mixture} ended before train.steps")

    def _cut_share(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """Share of this process's examples whose text was too long, where the reader knows."""
        if self.loader.cut_examples is None:
            return {}
        right = batch["decoder_segment_ids"] * (batch["decoder_loss_weights"] > 0)
        examples = sum(len(np.unique(row[row > 0])) for row in right)
        return {"cut": self.loader.cut_examples / max(1, examples)}

    def flush(self) -> None:
        """Every pending step's numbers to the sinks, one line on them to stdout; stops a diverged run."""
        rows = [{k: float(v) for k, v in row.items()} for row in jax.device_get(self.pending)]
        self.pending = []
        if not rows:
            return
        rates = self.meter.rates(self.step)
        rates["examples_per_s"] = rates["steps_per_s"] * np.mean([row["examples"] for row in rows])
        for at, row in enumerate(rows, start=self.step - len(rows) + 1):
            for sink in self.sinks:
                sink.write(at, row if at < self.step else {**row, **rates})
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        means |= {name: rows[-1][name] for name in ("skipped", "learning_rate")}
        if jax.process_index() == 0:
            line = metrics.log_line(self.step, self.config.train.steps, {**means, **rates})
            print(line, flush=True)
        worst = int(max(row["bad_in_row"] for row in rows))
        if worst >= self.config.train.max_bad_steps:
            raise Diverged(
                f"{worst} steps in a row up to step {self.step} had a non-finite loss or gradient; lower "
                "optimizer.learning_rate, set optimizer.clip_norm, or go back to an earlier checkpoint "
                f"in {self.config.train.output_dir}"
            )

    def score(self, state: State, preemption: Preemption) -> Results | None:
        """Scores `data.eval_mixture`; None without one, or when SIGTERM ended it.

        The score counts for this step's checkpoint, if one is due: SIGTERM makes no more candidates for the best.
        """
        if self.evaluator is None:
            return None
        self.flush()
        try:
            results = self.evaluator(state["params"], progress=preemption.leave)
        except Preempted:
            return None
        if self.saves:
            self.history.add(self.step, results.mean_accuracy)
        if jax.process_index() == 0:
            print(results.table(), flush=True)
        for sink in self.sinks:
            values = {f"eval/{name}": value for name, value in results.summary().items()}
            sink.write(self.step, values)
        self.meter.restart()
        return results

    def save(self, state: State, wait: bool) -> None:
        """Saves this step, once."""
        self.flush()
        if self.step > self.saved or not self.checkpoints.steps():
            metadata = {
                "config": config_lib.to_dict(self.config),
                "step": self.step,
                "position": checkpoint.gather_position(self.position),
            }
            self.checkpoints.save(self.step, state, metadata, wait)
            self.saved = self.step
            self.meter.restart()
        if wait:
            self.checkpoints.wait()
