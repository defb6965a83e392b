"""The steps of a run and what happens between them: log lines, checkpoints, evaluations, leaving when told to."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t0jax import checkpoint, evaluate, metrics, processes, profiling, sharding
from t0jax import config as config_lib
from t0jax.config import Config, ConfigError
from t0jax.data import loader as loader_lib
from t0jax.evaluate.history import History
from t0jax.metrics import note
from t0jax.processes import Preempted, Preemption
from t0jax.results import Results
from t0jax.step import State, Step


class Diverged(config_lib.UserError):
    """Too many steps in a row had a non-finite loss or gradient."""


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
    evaluator: evaluate.Evaluation | None
    shares: int
    """Groups of processes that read different rows."""

    def __post_init__(self) -> None:
        self.step, self.saved, self.finished = 0, -1, False
        self.began, self.shapes = time.monotonic(), set[tuple[int, ...]]()
        self.position: dict[str, Any] = {}
        self.pending: list[dict[str, jax.Array]] = []
        self.meter = metrics.Meter(self.config.train.steps)

    def run(self, state: State, preemption: Preemption) -> Results | None:
        """From the state's step to `train.steps`; saves at the end and on SIGTERM.

        A checkpoint that SIGTERM left without its score is scored first.
        """
        train, results, stopped = self.config.train, None, False
        self.step = first = self.saved = int(state["counters"]["step"])
        self.history.begin(first, self.checkpoints.entries())
        with (
            contextlib.closing(sharding.prefetch(self.read(), self.mesh)) as batches,
            contextlib.closing(self.profiler()) as profiler,
        ):
            if self.owes_score():
                results, stopped = self.score(state, preemption), preemption.asked
            while self.step < train.steps and not stopped:
                with profiler.step(self.step + 1) as span:
                    state, span.result = self.advance(state, batches)
                if self.step == first + 1:
                    jax.block_until_ready(span.result)
                    note(
                        f"step {self.step}: first step after {time.monotonic() - self.began:.1f} s"
                    )
                    self.meter.restart()
                if self.step % train.log_every == 0:
                    self.flush()
                results = self.conclude(state, preemption) or results
                stopped = preemption.poll()
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

    def profiler(self) -> profiling.Profiler:
        """Of the steps to come."""
        train = self.config.train
        window = profiling.parse_window(train.profile, train.steps)
        return profiling.Profiler(window, Path(train.output_dir), self.step)

    def advance(
        self, state: State, batches: Iterator[tuple[dict[str, jax.Array], Any]]
    ) -> tuple[State, dict[str, jax.Array]]:
        """One step on the next batch: the new state, and what it reports, which is kept for the log."""
        number = self.step + 1
        with processes.watching(f"reading the batch of step {number}"):
            batch, (flops, tokens, cut, self.position) = next(batches)
        self.tell_of_compiling(batch)
        with processes.watching(f"step {number}"):
            state, report = self.step_fn(state, batch)
        self.step = number
        self.pending.append({**report, **cut})
        self.meter.add(flops * self.shares, tokens * self.shares)
        return state, report

    def tell_of_compiling(self, batch: Mapping[str, jax.Array]) -> None:
        """One line for each shape of batches, which has a program of its own, as it comes first."""
        names = ("encoder_input_tokens", "decoder_input_tokens")
        lengths = tuple(batch[name].shape[1] for name in names if name in batch)
        if lengths in self.shapes:
            return
        waited = f"data: first batch after {time.monotonic() - self.began:.1f} s; "
        size = " + ".join(map(str, lengths))
        note(f"{'' if self.shapes else waited}compiling the step for rows of {size} tokens")
        self.shapes.add(lengths)

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
        """This process's rows with what is counted of them and the data position after them."""
        for batch in self.loader:
            flops = metrics.step_flops(self.config.model, batch)
            yield batch, (flops, *self.loader.counts(batch), self.loader.state())
        raise ConfigError(f"the data of {self.config.data.mixture} ended before train.steps")

    def flush(self) -> None:
        """Every pending step's numbers to the sinks, one line on them to stdout; stops a diverged run."""
        with processes.watching(f"step {self.step}"):
            pending = jax.device_get(self.pending)
        rows = [{k: float(v) for k, v in row.items()} for row in pending]
        self.pending = []
        if not rows:
            return
        rates = self.meter.rates(self.step)
        rates["examples_per_s"] = rates["steps_per_s"] * float(
            np.mean([row["examples"] for row in rows])
        )
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

        Only where a checkpoint is due does the score count for it: SIGTERM makes no more candidates for the best.
        """
        if self.evaluator is None:
            return None
        self.flush()
        mixture, tasks = self.config.data.eval_mixture, len(self.evaluator.tasks)
        note(f"evaluation: {mixture}, tasks: {tasks}, at step {self.step}")
        try:
            results = self.evaluator(state["params"], pause=preemption.check)
        except Preempted:
            return None
        self.history.add(self.step, results.mean_accuracy, candidate=self.saves)
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
