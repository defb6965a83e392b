"""This process among those of its run: who the others are, where they are, who of them is gone."""

import contextlib
import dataclasses
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from t0jax.config import UserError

BEAT_SECONDS = 2.0
LOST_SECONDS = 45.0
"""A process that was silent for so long is lost."""

ALL = -1
"""In the place of a process's number: what no single one of them has done."""

_runs, _numbers = itertools.count(1), itertools.count(1)
"""Of runs within this program, and of meetings; all processes come to them in the same order."""


class ProcessError(UserError):
    """Another process of the run failed, is gone or did not come; the message names it."""


def coordination_service() -> Any:
    """Keys, values and barriers by name. JAX has no public way to it; orbax takes this one too."""
    from jax._src import distributed

    return distributed.global_state.client


@dataclasses.dataclass
class Peers:
    """This process among those of its run."""

    client: Any
    index: int
    count: int
    patience: float

    def __post_init__(self) -> None:
        self.root = f"t0jax/{next(_runs)}"
        self.told = os.dup(2)  # the way out may be while a library's stderr is held back
        self.done, self.failed, self.judged = (threading.Event() for _ in range(3))
        self.names = [f"process {i} of {self.count}" for i in range(self.count)]
        self.place, self.moves, self.watched = "starting", 0, False
        self.polling, self.polls = threading.Lock(), 0
        self.appointing = False
        self.leave_at: int | None = None
        """The poll at which all processes leave together, once one was told to."""
        self.heard = ["" for _ in self.names]
        self.silent = [0 for _ in self.names]
        self.still, self.moved, self.since_broken = 0, -1, 0
        """Process 0 counts in beats, not seconds: a pause of its own is no silence of the others."""

    def start(self) -> None:
        """Tells the others this process's name, learns theirs, and begins to watch."""
        own = f"{self.names[self.index]} ({socket.gethostname()}, pid {os.getpid()})"
        self._set("names", own)
        self.meet("joining the run", self.patience)
        self.names = [name for _, name in sorted(self._all("names").items())]
        if self.index:  # when the first is gone there is no one to ask for its name
            print(f"{own}: the coordinator is {self.names[0]}", file=sys.stderr, flush=True)
        threading.Thread(target=self._watch, name="processes", daemon=True).start()

    @contextlib.contextmanager
    def watching(self, place: str) -> Iterator[None]:
        """What must come to an end within the run's patience, on all processes or on none."""
        self.place, self.moves, self.watched = place, self.moves + 1, True
        try:
            yield
        finally:
            self.moves, self.watched = self.moves + 1, False

    # -------------------------------------------------------------------------------- meetings

    def meet(self, what: str, patience: float) -> None:
        number = next(_numbers)
        self._set(f"meetings/{number}", what)
        # Processes that have come to different places must not let each other pass: `what` is in the name.
        barrier = f"{self.root} meeting {number}: {what}"
        try:
            self.client.wait_at_barrier(barrier, int(patience * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise ProcessError(self._absent(number, what, patience)) from error
        if self.index == 0 and number > 2:  # all have left that meeting
            self.client.key_value_delete(f"{self.root}/meetings/{number - 2}/")

    def _absent(self, number: int, what: str, patience: float) -> str:
        places = self._all(f"meetings/{number}")
        absent = [self.names[i] for i in range(self.count) if i not in places]
        astray = [f"{self.names[i]} is at {p!r}" for i, p in sorted(places.items()) if p != what]
        limit = f"{patience:.0f} s" + (" (train.patience)" if patience == self.patience else "")
        if absent:
            why = f"{', '.join(absent)} did not come within {limit}; its log says what it is doing"
        elif astray:
            why = f"after {limit}, {', '.join(astray)} instead"
        else:
            why = f"the others had left: this process came later than {limit} after them"
        return f"{what}: {why}. Start all processes again; a run goes on from its newest checkpoint"

    def learn(self, what: str, error: Exception | None, patience: float) -> None:
        """Meets; raises ProcessError where another process came with an error and this one with none."""
        key = f"errors/{next(_numbers)}"
        if error is not None:
            self._set(key, _in_a_line(error))
        self.meet(what, patience)
        errors = self._all(key)
        if errors and error is None:
            raise ProcessError(f"{what} failed on {self.names[min(errors)]}: {errors[min(errors)]}")

    # -------------------------------------------------------------------------------- leaving together

    def poll(self, told: bool) -> bool:
        """One of the places, the same on all processes, where a run can be left: whether this is the one.

        JAX's `reached_preemption_sync_point` does the like, but orbax calls it too, with numbers of its own.

        Args:
            told: this process is to leave.
        """
        if told and self.leave_at is None:
            self._set("leaving", "")
        with self.polling:
            self.polls += 1
            return self.polls == self.leave_at

    def _appoint(self) -> None:
        """Agrees on the poll after that of the process which is furthest; until all have told theirs, none polls."""
        if self.leave_at is not None or not self._all("leaving"):
            return
        if not self.appointing:
            self.polling.acquire()
            self.appointing = True
            self._set("polls", str(self.polls))
        polls = self._all("polls")
        if len(polls) == self.count:
            self.leave_at = max(map(int, polls.values())) + 1
            self.polling.release()

    # -------------------------------------------------------------------------------- failing

    def fail(self, error: BaseException) -> None:
        """Tells the others what ended this process.

        A collective that broke is most often the end of another process. Process 0, which counts how long each has
        been silent, says in the end whose it was (`_blame`): another's, with which the watch then ends this process,
        or this one's, whose error is then its own.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if _may_be_a_broken_collective(error):
                self._set("broken", _in_a_line(error))
                self.judged.wait(10 * LOST_SECONDS)  # no longer, should the watch have died
            self._set("failed", _in_a_line(error))
        self.failed.set()

    def _watch(self) -> None:
        beat, missed = 0, 0
        while not self.done.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._set("beats", f"{beat} {self.moves} {int(self.watched)} {self.place}")
                self._look()
                missed = 0
            except jax.errors.JaxRuntimeError as error:
                missed += 1
                if missed * BEAT_SECONDS > LOST_SECONDS and not self.done.is_set():
                    why = f"cannot be reached: {_in_a_line(error)}"
                    self._leave(f"{self.names[0]}, the coordinator, {why}")

    def _look(self) -> None:
        if self.failed.is_set():
            # Its error is being printed; then JAX's way out, or a thread in a lost collective, would keep the process.
            time.sleep(BEAT_SECONDS)
            self._end()
        if self.index == 0:
            self._listen()
        failed = self._all("failed")
        if failed.pop(self.index, None) is not None:
            self.judged.set()
        if failed and not self.failed.is_set():
            whose = {i: "" if i == ALL else f"{self.names[i]} stopped: " for i in sorted(failed)}
            self._leave("; ".join(f"{who}{failed[i]}" for i, who in whose.items()))
        self._appoint()

    def _listen(self) -> None:
        """Process 0 tells all who has fallen silent, or that nothing has moved for too long."""
        beats = self._all("beats")
        for i in range(self.count):
            same = beats.get(i, "") == self.heard[i]
            self.silent[i], self.heard[i] = (self.silent[i] + 1 if same else 0), beats.get(i, "")
            if self.silent[i] * BEAT_SECONDS > LOST_SECONDS:
                self._tell(i, f"silent for {LOST_SECONDS:.0f} s: killed, cut off or out of memory")
        self._blame()
        told = [(beat or "0 0 0 starting").split(" ", 3)[1:] for beat in self.heard]
        moved = sum(int(moves) for moves, _, _ in told)
        watched = all(int(watched) for _, watched, _ in told)
        self.still = self.still + 1 if moved == self.moved and watched else 0
        self.moved = moved
        if self.still * BEAT_SECONDS > self.patience:
            places = "; ".join(f"{n}: {p}" for n, (_, _, p) in zip(self.names, told, strict=True))
            limit = f"{self.patience:.0f} s (train.patience)"
            self._tell(ALL, f"nothing has moved for {limit}: {places}")

    def _blame(self) -> None:
        """Says that a collective broke by itself once everyone has lived for longer than a lost process would have.

        Both are counted in process 0's beats: however slow the machine, who was killed is found before that.
        """
        broken = self._all("broken")
        self.since_broken += bool(broken)
        if self.since_broken * BEAT_SECONDS > LOST_SECONDS + 5 * BEAT_SECONDS:
            for index, why in broken.items():
                self._tell(index, why)

    def _tell(self, index: int, why: str) -> None:
        """Says of a process what it cannot say itself; all others leave."""
        self.client.key_value_set(f"{self.root}/failed/{index}", why, allow_overwrite=True)

    # -------------------------------------------------------------------------------- ending

    def _leave(self, why: str) -> None:
        then = "This process stops too; started again, all go on from what was saved"
        os.write(self.told, f"error: {why}. {then}\n".encode())
        self._end()

    def _end(self) -> None:
        """Ends the process now: its own shutdown would wait for those that are gone."""
        if self.index == 0:
            time.sleep(3 * BEAT_SECONDS)  # the others learn from the service that lives here
        os._exit(1)

    def _set(self, key: str, value: str) -> None:
        self.client.key_value_set(f"{self.root}/{key}/{self.index}", value, allow_overwrite=True)

    def _all(self, key: str) -> dict[int, str]:
        pairs = self.client.key_value_dir_get(f"{self.root}/{key}/")
        return {int(name.rsplit("/", 1)[1]): value for name, value in pairs}


def _may_be_a_broken_collective(error: BaseException) -> bool:
    """Of the runtime's errors all but lack of memory; some of XLA's arrive as ValueError with the status in front."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" not in str(error)
    status = ("UNKNOWN: ", "INTERNAL: ", "UNAVAILABLE: ", "ABORTED: ", "DEADLINE_EXCEEDED: ")
    return isinstance(error, ValueError) and str(error).startswith(status)


def _in_a_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
