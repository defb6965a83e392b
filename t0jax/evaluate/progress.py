"""Lines that say how far an evaluation is."""

import time
from collections.abc import Callable

from t0jax.metrics import clock

REPORT_SECONDS = 10.0


def no_pause() -> None:
    """An evaluation that nothing ends early."""


class Progress:
    """Tells of every finished task, and in between how many rows are done and how long the rest may take."""

    def __init__(
        self,
        tell: Callable[[str], None],
        tasks: int,
        rows: int,
        done: int = 0,
        pause: Callable[[], None] = no_pause,
    ):
        """
        Args:
            tell: is called with each line.
            tasks: number of all tasks.
            rows: to be scored for those that are not done yet.
            done: tasks that are done already.
            pause: is called whenever rows were scored, on all processes at the same places; may raise to leave.
        """
        self._tell, self._tasks, self._rows, self._done = tell, tasks, rows, done
        self._pause = pause
        self._told = time.monotonic()
        self._first: tuple[float, int] | None = None

    def task(self, name: str, found: str) -> None:
        """A task is finished with `found`, e.g. its accuracy."""
        self._done += 1
        self._tell(f"{self._done}/{self._tasks} {name}: {found}")

    def rows(self, scored: int) -> None:
        """So many rows were scored since the start."""
        self._pause()
        now, scored = time.monotonic(), min(scored, self._rows)  # processes may be unequally far
        if self._first is None and scored:
            self._first = now, scored  # what came before was compiling
        if self._first is None or now - self._told < REPORT_SECONDS or scored == self._first[1]:
            return
        rate = (scored - self._first[1]) / (now - self._first[0])
        self._told, left = now, clock((self._rows - scored) / rate)
        self._tell(
            f"scored: {self._done}/{self._tasks} tasks, {scored:,} of {self._rows:,} rows, {rate:,.0f} rows/s, "
            f"about {left} left"
        )
