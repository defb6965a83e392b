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

_ROOT = "t0jax"
_numbers = itertools.count(1)
"""Of meetings and agreements, which all processes come to in the same order; a barrier's name is used once."""


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
        self.done, self.failed = threading.Event(), threading.Event()
        self.names = [f"process {i} of {self.count}" for i in range(self.count)]
        self.moves, self.place = 0, "starting"
        self.limits = 0
        """How many time limits of others' waiting cover what this process does."""
        self.heard = ["" for _ in self.names]
        self.silent = [0 for _ in self.names]
        self.polling, self.polls = threading.Lock(), 0
        self.leave_at: int | None = None
        """The poll at which all processes leave together, once one was told to; 0 when they could not agree."""
        self.still, self.moved = 0, -1
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

    def move(self, place: str) -> None:
        self.moves, self.place = self.moves + 1, place

    @contextlib.contextmanager
    def bounded(self, place: str) -> Iterator[None]:
        """Something that the others wait for, or that waits for them, with a time limit of its own."""
        self.move(place)
        self.limits += 1
        try:
            yield
        finally:
            self.limits -= 1

    # -------------------------------------------------------------------------------- meetings

    def meet(self, what: str, patience: float) -> None:
        number = next(_numbers)
        self._set(f"meetings/{number}", what)
        with self.bounded(what):
            try:
                self.client.wait_at_barrier(f"{_ROOT} meeting {number}", int(patience * 1000))
            except jax.errors.JaxRuntimeError as error:
                raise ProcessError(self._absent(number, what, patience)) from error
        if self.index == 0 and number > 2:  # all have left that meeting
            self.client.key_value_delete(f"{_ROOT}/meetings/{number - 2}/")

    def _absent(self, number: int, what: str, patience: float) -> str:
        places = self._all(f"meetings/{number}")
        absent = [i for i in range(self.count) if i not in places]
        elsewhere = {i: place for i, place in places.items() if place != what}
        who = ", ".join(self.names[i] for i in absent or elsewhere)
        return (
            f"{what}: {who or 'a process'} did not come within {patience:.0f} s (train.patience); its log says what it "
            "is doing. Start all processes again to go on from the newest checkpoint"
        )

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
        """Agrees on the next poll of the process that is furthest, while none can go on to another."""
        with self.polling:
            self.leave_at = 0
            self._set("polls", str(self.polls))
            with contextlib.suppress(
                jax.errors.JaxRuntimeError
            ):  # one is lost, which is told elsewhere
                self.client.wait_at_barrier(f"{_ROOT} leaving", int(LOST_SECONDS * 1000))
                self.leave_at = max(map(int, self._all("polls").values())) + 1

    # -------------------------------------------------------------------------------- failing

    def fail(self, error: BaseException) -> None:
        """Tells the others what ended this process.

        A collective that broke is the end of another one, which the watch may learn and tell first.
        """
        broken = isinstance(error, jax.errors.JaxRuntimeError)
        if broken and "RESOURCE_EXHAUSTED" not in str(error):
            self.done.wait(LOST_SECONDS + 5 * BEAT_SECONDS)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set("failed", _in_a_line(error))
        self.failed.set()

    def _watch(self) -> None:
        beat = 0
        try:
            while not self.done.wait(BEAT_SECONDS):
                beat, limited = beat + 1, int(self.limits > 0)
                self._set("beats", f"{beat} {self.moves} {limited} {self.place}")
                self._look()
        except jax.errors.JaxRuntimeError as error:
            if not self.done.is_set():
                self._leave(f"{self.names[0]}, the coordinator, is gone ({_in_a_line(error)})")

    def _look(self) -> None:
        if self.failed.is_set():
            # Its error is being printed; then JAX's way out, or a thread in a lost collective, would keep the process.
            time.sleep(BEAT_SECONDS)
            self._end()
        if self.index == 0:
            self._listen()
        if self.leave_at is None and self._all("leaving"):
            self._appoint()
        failed = self._all("failed")
        failed.pop(self.index, None)
        if failed and not self.failed.is_set():
            first = min(failed)
            self._leave(f"{self.names[first]} stopped: {failed[first]}")

    def _listen(self) -> None:
        """Process 0 tells all who has fallen silent, or that nothing has moved for too long."""
        beats = self._all("beats")
        for i in range(self.count):
            same = beats.get(i, "") == self.heard[i]
            self.silent[i], self.heard[i] = (self.silent[i] + 1 if same else 0), beats.get(i, "")
            if self.silent[i] * BEAT_SECONDS > LOST_SECONDS:
                self._tell(i, f"silent for {LOST_SECONDS:.0f} s: killed, cut off or out of memory")
        told = [beat.split(" ", 3)[1:] for beat in self.heard if beat]
        moved = sum(int(moves) for moves, _, _ in told)
        limited = any(int(limits) for _, limits, _ in told)
        self.still = self.still + 1 if moved == self.moved and not limited else 0
        self.moved = moved
        if self.still * BEAT_SECONDS > self.patience:
            places = "; ".join(f"{n}: {p}" for n, (_, _, p) in zip(self.names, told, strict=False))
            self._leave(self._tell(0, f"nothing has moved for {self.patience:.0f} s: {places}"))

    def _tell(self, index: int, why: str) -> str:
        """Says of a process what it cannot say itself; all others leave."""
        self.client.key_value_set(f"{_ROOT}/failed/{index}", why, allow_overwrite=True)
        return why

    # -------------------------------------------------------------------------------- ending

    def _leave(self, why: str) -> None:
        then = "This process stops too; started again, all go on from what was saved"
        print(f"error: {why}. {then}", file=sys.stderr, flush=True)
        self._end()

    def _end(self) -> None:
        """Ends the process now: its own shutdown would wait for those that are gone."""
        if self.index == 0:
            time.sleep(3 * BEAT_SECONDS)  # the others learn from the service that lives here
        sys.stdout.flush()
        os._exit(1)

    def _set(self, key: str, value: str) -> None:
        self.client.key_value_set(f"{_ROOT}/{key}/{self.index}", value, allow_overwrite=True)

    def _all(self, key: str) -> dict[int, str]:
        pairs = self.client.key_value_dir_get(f"{_ROOT}/{key}/")
        return {int(name.rsplit("/", 1)[1]): value for name, value in pairs}


def _in_a_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
