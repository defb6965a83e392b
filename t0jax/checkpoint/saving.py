"""The checkpoints of a run: saved in the background, the last and the best kept, the newest whole one restored."""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from orbax.checkpoint import v1 as ocp

from t0jax import processes
from t0jax.checkpoint import reading
from t0jax.checkpoint.folders import STEPS_FOLDER, CheckpointError
from t0jax.checkpoint.reading import State
from t0jax.metrics import note

SAVE_SECONDS = 7200
"""Longest that a background save may take, a process's own writing and the wait for the others' together."""

SET_ASIDE = ".damaged"
"""Ending of the folder of a checkpoint that could not be read, in a run that has gone on without it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished checkpoint."""

    step: int
    metrics: dict[str, Any] | None
    """Scores of version 0.3 or before."""


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint that cannot be read counts for nothing: not as one of the last, not as the best. The first save sets
    its folder aside under another name: what is left of it stays, and no whole one is deleted on its account.
    """

    def __init__(
        self,
        run_dir: Path,
        keep_last: int = 2,
        keep_also: ocp.training.preservation_policies.PreservationPolicy | None = None,
    ) -> None:
        """Nothing is touched before the first save; that removes half-written leftovers.

        `keep_also` says which to keep besides the last ones.
        """
        self._folder = (run_dir / STEPS_FOLDER).absolute()
        self._keep_last, self._keep_also = max(keep_last, 1), keep_also
        self._damaged: set[int] = set()
        self._restored: set[int] = set()
        self._writing = 0

    @functools.cached_property
    def _orbax(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(self._keep_last)]
        if self._keep_also is not None:
            keep.append(self._keep_also)
        _limit_waiting()
        context = ocp.Context()
        context.asynchronous.timeout_secs = SAVE_SECONDS
        # Compressing floats takes nine times the processor time of writing them and saves 8 % of the disk.
        context.array.saving.use_compression = False
        return ocp.training.Checkpointer(
            str(self._folder),
            context=context,
            # Orbax declares two protocols of this name, and its own class is of the other.
            preservation_policy=policies.AnyPreservationPolicy(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        """Finished checkpoints that are not known to be damaged, oldest first; all processes ask together."""
        return [entry.step for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """These checkpoints as the first process sees them, which all processes ask together.

        It alone makes and deletes them. What another one sees of a shared disk may be some seconds old.
        """
        first = jax.process_index() == 0
        seen = [[entry.step, entry.metrics] for entry in self._seen()] if first else []
        return [Entry(*fields) for fields in processes.tell(seen, "listing checkpoints")[0]]

    def _seen(self) -> list[Entry]:
        """As this process sees them."""
        if "_orbax" in self.__dict__:
            known: Any = self._orbax.checkpoints
            found = [Entry(int(entry.step), entry.metrics) for entry in known]
        else:
            steps = self._restored.union(reading.steps_in(self._folder))
            found = [_entry(self._folder, step) for step in steps]
        return sorted(
            (entry for entry in found if entry.step not in self._damaged), key=lambda e: e.step
        )

    def save(
        self,
        step: int,
        state: State,
        metadata: Mapping[str, Any],
        wait: bool = False,
    ) -> None:
        """Starts writing; returns when the arrays may be donated.

        Args:
            step: finished training steps.
            state: global arrays.
            metadata: JSON values; equal on all processes.
            wait: return only when it is on disk.

        Raises:
            CheckpointError: this or the previous background save failed (a full disk, a read-only folder).
        """
        self.wait()
        try:
            self._set_aside_damaged()
            if step not in self.steps():
                self._orbax.save_checkpointables_async(
                    step,
                    dict(state),
                    force=True,
                    custom_metadata=reading.sealed(metadata, state),
                )
                self._writing = step
        except Exception as error:
            raise CheckpointError(self._failure(step, error)) from error
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until everything is on disk; raises what a background save failed with."""
        try:
            if "_orbax" in self.__dict__:
                self._orbax.wait()
        except Exception as error:
            raise CheckpointError(self._failure(self._writing, error)) from error

    def _failure(self, step: int, error: Exception) -> str:
        whole = [found for found in reading.steps_in(self._folder) if found not in self._damaged]
        left = f"checkpoint {whole[-1]} is whole" if whole else "no earlier checkpoint exists"
        way_out = "make room or fix the folder's permissions and start"
        if missing := _missing_processes(error):
            way_out = "see that process's log, and start"
        why = missing or reading.reason(error)
        return (
            f"the checkpoint of step {step} could not be written to {self._folder}: {why}. {left}; {way_out} the same "
            "command again to go on from there."
        )

    def restore(self, abstract: State) -> tuple[State, dict[str, Any]] | None:
        """The newest checkpoint that all processes can read, placed as `abstract` says, with its metadata.

        None if there is none.

        Raises:
            ConfigError: the checkpoint's arrays have other shapes than the run's.
            Unavailable: one of them cannot be read now.
            CheckpointError: there are checkpoints, and none can be read.
        """
        found = reading.newest_whole(
            self._folder,
            reading.steps_in(self._folder),
            lambda step_folder: (int(step_folder.name), reading.read_state(step_folder, abstract)),
            skipped=self._damaged.add,
        )
        if found is None:
            return None
        self._restored = {found[0]}  # maybe listed by another process alone
        self._check_older(found[0])
        return found[1]

    def _check_older(self, restored: int) -> None:
        """Finds those that cannot be the best or the last either, as one whose deletion was interrupted."""
        older = [step for step in self.steps() if step < restored]
        faults = reading.together(
            lambda: {step: reading.fault(self._folder / str(step)) for step in older}
        )
        for told in processes.tell(
            [[step, why] for step, why in faults.items() if why], "comparing checkpoints"
        ):
            for step, why in told:
                if step not in self._damaged:
                    self._damaged.add(step)
                    note(f"checkpoint {step} does not count: {why}")

    def _set_aside_damaged(self) -> None:
        """Renames what could not be read: a disk that is back, or somebody's tools, may still save it."""
        if not self._damaged:
            return
        reading.together(self._rename_damaged)
        self._damaged.clear()
        if "_orbax" in self.__dict__:
            self._orbax.reload()

    def _rename_damaged(self) -> None:
        if jax.process_index() > 0:
            return
        for step in sorted(self._damaged):
            new = _free_name(self._folder / f"{step}{SET_ASIDE}")
            with contextlib.suppress(FileNotFoundError):  # one that this process never saw
                (self._folder / str(step)).rename(new)
                note(f"checkpoint {step}, damaged, is now {new}; delete it when you need its room")

    def close(self) -> None:
        """Lets go of orbax's threads. What a save failed with was raised by `save` or `wait` already."""
        if "_orbax" in self.__dict__:
            with contextlib.suppress(Exception):
                self._orbax.close()


def _free_name(path: Path) -> Path:
    names = itertools.chain(
        [path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    )
    return next(name for name in names if not name.exists())


def _entry(folder: Path, step: int) -> Entry:
    try:
        scores = json.loads((folder / str(step) / "metrics" / "metrics").read_text())
        return Entry(step, dict(scores))
    except (OSError, ValueError, TypeError):
        return Entry(step, None)


def _limit_waiting() -> None:
    """Makes orbax's processes meet at barriers that give up after 5 minutes and say who is missing.

    Without this flag of orbax's they meet in collectives, which wait for ever.
    """
    if jax.process_count() > 1:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        flags.FLAGS.experimental_orbax_use_distributed_barrier = True


def _missing_processes(error: Exception) -> str:
    """Who did not come to a barrier, from what JAX's coordination service says."""
    found = re.search(
        r"Barrier timed out.*timed out task names:\s*([\d\s,]+)", str(error), re.DOTALL
    )
    if found is None:
        return ""
    return f"process {', '.join(re.findall(r'[0-9]+', found[1]))} did not come to write its part in time"


def gather_position(local: Mapping[str, Any]) -> dict[str, Any]:
    """Every process's data position as one JSON value, the same on all: dictionaries are merged."""
    merged: dict[str, Any] = {}
    for position in processes.tell(dict(local), "gathering the data position"):
        _merge(merged, position)
    return merged


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
