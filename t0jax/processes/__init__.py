"""The processes of a run: joining a cluster, meeting within a time limit, failing together, leaving when told to.

JAX's coordination service, which runs in process 0, carries what processes tell each other besides arrays. Three rules
keep a run from hanging without a word:

- A process that waits for the others outside of a training step does so in `meet`, which names who did not come.
- A process that fails says so, and the others stop with its error (`cluster`).
- A thread of each process tells process 0 that it lives. Who falls silent, killed or cut off, is named to all; so is
  where everyone was, when all are within a step (`watching`) and nothing has moved for too long.

Process 0 itself is missed by JAX, which ends the others at once and says that the coordinator is gone.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t0jax.config import ConfigError
from t0jax.processes.peers import Peers, ProcessError, coordination_service

__all__ = [
    "Preempted",
    "Preemption",
    "ProcessError",
    "cluster",
    "first_process_does",
    "gather",
    "meet",
    "refuse_cluster",
    "tell",
    "watching",
]

PATIENCE = 1800.0
"""Seconds that processes wait for each other unless `train.patience` says otherwise."""

ALONE_SECONDS = 6 * 3600.0
"""How long the others wait for what the first process does alone (training a vocabulary, writing an export)."""

JAX_LOST_SECONDS = 90
"""When JAX itself ends all processes because one is silent, should the thread that tells its name not come to it."""

SHUTDOWN_SECONDS = 120
_here: Peers | None = None
_within = False
"""Whether a block of `cluster` is being run."""


class Preempted(Exception):
    """SIGTERM arrived while something long was going on that can be left."""


# ---------------------------------------------------------------------------------------------------------------------
# Joining


@contextlib.contextmanager
def cluster(patience: float = PATIENCE) -> Iterator[None]:
    """Joins the multi-process run that the environment describes; nothing more than its body on a single machine.

    Recognised: `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (any cluster, GKE), SLURM inside
    an `srun` of several tasks, and TPU pods by `TPU_WORKER_HOSTNAMES`; `T0JAX_CLUSTER=1` has JAX look for what it
    knows itself (TPU VMs without that variable). Must begin before any other use of JAX's devices.

    An error that leaves the body is told to the other processes, which stop with it. A block within another is part of
    that.

    Args:
        patience: seconds that processes wait for each other. JAX itself ends those that have waited so long for
            others to start at all.

    Raises:
        ConfigError: the coordinator's address without the other two variables.
    """
    global _here, _within
    if _within:
        yield
        return
    _join(patience)
    run = _current(patience)
    _within = True
    try:
        yield
        if run is not None:
            meet("leaving")
    except BaseException as error:
        if run is not None:
            run.fail(error)
        raise
    finally:
        _within = False
    if run is not None:
        run.done.set()
        _here = None


def _join(patience: float) -> None:
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is heard by `Preemption`
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = (os.environ.get(name) for name in names)
    limits: dict[str, Any] = {
        "initialization_timeout": int(patience),
        "heartbeat_timeout_seconds": JAX_LOST_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    if address or count or index:
        if not (address and count and index):
            raise ConfigError(
                f"a cluster by hand needs all of {', '.join(names)} in the environment"
            )
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ConfigError(
                f"JAX_PROCESS_ID {index} is not one of JAX_NUM_PROCESSES {count}, from 0"
            )
        print(f"process {index}: waiting for {count} processes at {address}", file=sys.stderr)
        jax.distributed.initialize(
            address, num_processes=int(count), process_id=int(index), **limits
        )
    elif _found():
        jax.distributed.initialize(**limits)


def _found() -> str:
    """The variable by which a cluster, other than one by hand, tells that a run has several processes; "" of none."""
    tells = {
        "SLURM_STEP_NUM_TASKS": int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1,
        "TPU_WORKER_HOSTNAMES": "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""),
        "T0JAX_CLUSTER": os.environ.get("T0JAX_CLUSTER") == "1",
    }
    return next((name for name, several in tells.items() if several), "")


def refuse_cluster(program: str) -> None:
    """For programs that one process runs: several would do all of it each, in one folder.

    Args:
        program: what to call it.

    Raises:
        ConfigError: the environment describes a run of several processes (`cluster`).
    """
    by_hand = os.environ.get("JAX_NUM_PROCESSES") not in (None, "", "1")
    name = "JAX_NUM_PROCESSES" if by_hand else _found()
    if name:
        raise ConfigError(
            f"{program} is run by one process, and {name}={os.environ[name]} tells of several; start it once "
            f"(srun -n 1, or on one host), without {name} in its environment"
        )


def _current(patience: float = PATIENCE) -> Peers | None:
    """This process among those of its run; None where it is the only one."""
    global _here
    if _here is None and jax.process_count() > 1:
        _here = Peers(coordination_service(), jax.process_index(), jax.process_count(), patience)
        _here.start()
    return _here


# ---------------------------------------------------------------------------------------------------------------------
# Meeting


def meet(what: str, patience: float | None = None) -> None:
    """Waits until every process has come here.

    Args:
        what: for the error message and for whoever looks where a run is.
        patience: seconds, if not those of the run.

    Raises:
        ProcessError: some did not come in time.
    """
    if run := _current():
        run.meet(what, patience or run.patience)


def gather(tree: Any, what: str) -> Any:
    """Every process's arrays [...], stacked [processes, ...], on every process.

    Raises:
        ProcessError: some process did not come in time.
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], tree)
    meet(what)
    return multihost_utils.process_allgather(tree)


def tell(content: Any, what: str) -> list[Any]:
    """Every process's `content`, a JSON value, in the processes' order, on every process.

    Raises:
        ProcessError: some process did not come in time.
    """
    if jax.process_count() == 1:
        return [content]
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    sizes = gather(np.int32(len(text)), what)
    padded = np.pad(text, (0, sizes.max() - len(text)))
    return [
        json.loads(bytes(row[:size])) for row, size in zip(gather(padded, what), sizes, strict=True)
    ]


def first_process_does(action: Callable[[], None], what: str) -> None:
    """Runs `action` on the first process while the others wait for it.

    Raises:
        Exception: what `action` raised, on the first process.
        ProcessError: it failed there, on the others.
    """
    run = _current()
    if run is None:
        return action()
    error: Exception | None = None
    if run.index == 0:
        try:
            action()
        except Exception as caught:
            error = caught
    run.learn(what, error, ALONE_SECONDS)
    if error is not None:
        raise error


@contextlib.contextmanager
def watching(place: str) -> Iterator[None]:
    """Around what ends soon on every process: if all stay within such a block for too long, each tells where."""
    run = _current()
    with run.watching(place) if run else contextlib.nullcontext():
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Leaving when told to


class Preemption:
    """Hears SIGTERM while its block runs; the processes of a run leave together, whichever of them it was sent to."""

    def __init__(self) -> None:
        self._heard, self._agreed = False, False
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, *_: Any) -> None:
        self._heard = True

    @property
    def asked(self) -> bool:
        """Whether all processes have been asked to leave; with several of them as of the last poll."""
        return self._heard if _current() is None else self._agreed

    def poll(self) -> bool:
        """Whether to leave now; the same on all processes, which poll at the same places in the same order."""
        if run := _current():
            self._agreed = run.poll(self._heard) or self._agreed
        return self.asked

    def check(self) -> None:
        """Ends something long that can be left.

        Raises:
            Preempted: SIGTERM has arrived.
        """
        if self.poll():
            raise Preempted

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
