"""A trace of a few training steps, for XProf or Perfetto (https://docs.jax.dev/en/latest/profiling.html).

`train.profile: "10:15"` traces the steps that the log calls 10 to 14 into `<output_dir>/profile`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from t0jax import metrics
from t0jax.config import ConfigError

FOLDER = "profile"
"""Where in the run folder traces go; each is a folder of its own, `plugins/profile/<time>`, as XProf looks for it."""

NAME = "train"
"""Of the annotation around every traced step; with its number it is what XProf tells steps apart by."""


def parse_window(text: str, steps: int) -> range:
    """The steps of `train.profile`, "first:end" with `end` left out; none when it is empty.

    Steps are counted as in the log, from 1. The first takes the compiling in; leave a few before the window.

    Args:
        text: e.g. "10:15" for the five steps 10, 11, 12, 13 and 14.
        steps: `train.steps`, which the window may not reach beyond.

    Raises:
        ConfigError: not two numbers in order, or steps that the run does not have.
    """
    if not text:
        return range(0)
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal()):
        raise ConfigError(
            f'train.profile {text!r} is not "first:end"; "10:15" traces steps 10 to 14, counted from 1'
        )
    window = range(int(first), int(end))
    if not window or first == "0":
        raise ConfigError(
            f"train.profile {text!r} holds no step: `first` is at least 1 and below `end`, which is left out"
        )
    if window[-1] > steps:
        raise ConfigError(
            f"train.profile {text!r} ends with step {window[-1]}, train.steps is {steps}; choose earlier steps"
        )
    return window


class Span:
    """One step while it runs."""

    result: Any = None
    """What the step gave: arrays that its trace has to wait for."""


class Profiler:
    """Traces the steps of a window on the first process; the devices of the others do the same work.

    A run that ends inside the window, or begins there, keeps a trace of the steps that it made.
    """

    def __init__(self, window: range, run_dir: Path, done: int) -> None:
        """`done` is the number of steps already made: a resumed run may be past the window, and says so."""
        if window and done >= window[-1]:
            metrics.note(
                f"profile: no trace; step {window[-1]}, the window's last, is already done"
            )
        self.window = window if jax.process_index() == 0 else range(0)
        self.folder = run_dir / FOLDER
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[Span]:
        """Around reading a batch and running step `number` on it; put the step's arrays into `result`.

        The last step of the window and the one before its first are waited for, so that the trace holds its steps'
        work whole and no other's. All others run as they do without a profiler.
        """
        span = Span()
        if number in self.window and not self._tracing:
            self._start()
        with self._annotation(number):
            yield span
        if self.window and number in (self.window[0] - 1, self.window[-1]):
            jax.block_until_ready(span.result)
        if self.window and number == self.window[-1]:
            self.close()

    def _annotation(self, number: int) -> contextlib.AbstractContextManager[object]:
        if not self._tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation(NAME, step_num=number)

    def _start(self) -> None:
        metrics.note(f"profile: tracing steps {self.window[0]} to {self.window[-1]}")
        options = jax.profiler.ProfileOptions()
        # Calls of Python functions would fill the file and the time that writing it takes.
        options.python_tracer_level = 0
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self._tracing = True

    def close(self) -> None:
        """Ends a trace that is still going on; may be called at any time."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            metrics.note(
                f"profile: written to {self.folder}; look at it with: xprof --logdir {self.folder}"
            )
