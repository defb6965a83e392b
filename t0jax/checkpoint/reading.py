"""Reading checkpoints: whether one is whole, and the newest that is, the same one on all processes.

Orbax notices a file that is cut or gone, and a changed byte in its tables; a changed byte in an array's data it takes
as it is. So a checkpoint carries a seal: a fingerprint of each of its trees and a digest of its metadata.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from t0jax import models, processes
from t0jax.checkpoint.folders import STEPS_FOLDER, CheckpointError, Unavailable
from t0jax.config import ConfigError, UserError
from t0jax.metrics import note

METADATA_FILE = "_CHECKPOINT_METADATA"
SEAL = "seal"

State = dict[str, Any]
"""Trees of arrays by name; `params` is one of them."""

Found = TypeVar("Found")

# ---------------------------------------------------------------------------------------------------------------------
# All processes together


def together(action: Callable[[], Found]) -> Found:
    """What `action` returns where it has succeeded on all processes: a failure of one is a failure of all.

    `action` itself must not wait for other processes: one that fails would leave them waiting.

    Raises:
        ConfigError: `action` did, on some process.
        Unavailable: `action` did, on some process.
        CheckpointError: it failed on some process in another way.
    """
    error, found = None, None
    try:
        found = action()
    except Exception as caught:
        error = caught
    told = processes.tell(error and (_kind(error), reason(error)), "reading a checkpoint")
    failed = {index: about for index, about in enumerate(told) if about}
    if not failed:
        return found  # type: ignore[return-value]
    kind = _KINDS[min(number for number, _ in failed.values())]
    if jax.process_count() == 1:
        if error is not None and isinstance(error, kind):
            raise error
        raise kind(failed[0][1]) from error
    texts = [f"process {index}: {text}" for index, (_, text) in failed.items()]
    raise kind("; ".join(texts)) from error


_KINDS = (ConfigError, Unavailable, CheckpointError)
"""What a failure of one process is on all; of several, the first of these."""


def _kind(error: Exception) -> int:
    return next((n for n, kind in enumerate(_KINDS) if isinstance(error, kind)), len(_KINDS) - 1)


def reason(error: BaseException) -> str:
    """The first line of what caused an error: orbax wraps that in long descriptions of itself."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


# ---------------------------------------------------------------------------------------------------------------------
# The newest whole one


def step_folder(path: Path) -> Path | None:
    """`path`, where it is one checkpoint of a run, whole or not."""
    of_run = path.name.isdigit() and path.absolute().parent.name == STEPS_FOLDER and path.is_dir()
    return path.absolute() if of_run or (path / METADATA_FILE).exists() else None


def steps_in(folder: Path) -> list[int]:
    """Finished checkpoints, oldest first, on this process's disk."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit() and name == str(int(name)))


def newest_whole(
    folder: Path,
    steps: Iterable[int],
    read: Callable[[Path], Found],
    skipped: Callable[[int], Any] = lambda step: None,
) -> Found | None:
    """What `read` finds in the newest of a run's checkpoints that it can read; None without any.

    Args:
        folder: holds the checkpoints.
        steps: those that this process sees.
        read: given a step's folder; raises the same on all processes.
        skipped: told each step that could not be read.

    Raises:
        Unavailable: one that would be the newest cannot be read now.
        CheckpointError: there are some, and none can be read.
    """
    seen = sorted(
        {step for found in processes.tell(sorted(steps), "listing checkpoints") for step in found},
        reverse=True,
    )
    for step in seen:
        try:
            return read(folder / str(step))
        except Unavailable:
            raise
        except CheckpointError as error:
            note(f"checkpoint {step} is skipped: {error}")
            skipped(step)
    if seen:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read ({len(seen)} tried); move the folder away to start over"
        )
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The seal


def sealed(metadata: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The metadata of a checkpoint, with what tells later whether it and its arrays are as they were saved."""
    plain = json.loads(json.dumps(metadata))
    seal = {"arrays": {part: fingerprint(tree) for part, tree in state.items()}}
    return {**plain, SEAL: {**seal, "metadata": _digest([plain, seal])}}


def fingerprint(tree: Any) -> str:
    """Of all arrays' bits, by names that do not depend on the containers' types. One pass, where the shards are."""
    return models.fingerprint({key(path): leaf for path, leaf in leaves(tree)})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _unseal(custom: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Metadata and the fingerprints of the arrays; none of a checkpoint of version 0.3 or before."""
    plain = {name: value for name, value in custom.items() if name != SEAL}
    seal = dict(custom.get(SEAL) or {})
    if seal and seal.pop("metadata", None) != _digest([plain, seal]):
        raise CheckpointError(f"{METADATA_FILE} is not as it was written")
    return plain, dict(seal.get("arrays", {}))


# ---------------------------------------------------------------------------------------------------------------------
# One checkpoint


def read_metadata(step: Path) -> dict[str, Any]:
    """What `Checkpoints.save` was given as `metadata`.

    Raises:
        Unavailable: it cannot be read now.
        CheckpointError: it is damaged.
    """
    return _describe(step)[0]


def fault(step: Path) -> str:
    """What is wrong with a checkpoint's small files, its metadata and the table of each tree; empty if nothing.

    Raises:
        Unavailable: they cannot be read now.
    """
    try:
        _, fingerprints, tables = _describe(step)
        for part in fingerprints.keys() | tables.keys():
            _table(step, part, tables)
    except Unavailable:
        raise
    except CheckpointError as error:
        return str(error)
    return ""


def _describe(step: Path) -> tuple[dict[str, Any], dict[str, str], Mapping[str, Any]]:
    """Metadata, fingerprints, and the table of names and shapes of each tree."""
    try:
        found = ocp.checkpointables_metadata(str(step))
        if not _is_complete(found):  # orbax logs why and leaves it out, be it for good or not
            _touch(step)
            found = ocp.checkpointables_metadata(str(step))
        kept: Any = found.custom_metadata or {}
        custom = dict(kept)
        if not custom:
            raise CheckpointError(f"{METADATA_FILE} cannot be read")
        return *_unseal(custom), found.metadata
    except Exception as error:
        raise _judged(step, error) from error


def _is_complete(found: Any) -> bool:
    tables = found.metadata.values()
    return bool(found.custom_metadata) and all(table is not None for table in tables)


def _touch(step: Path) -> None:
    """Reads a byte of every file, for the errors that orbax keeps to itself.

    Raises:
        OSError: a folder or file cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(step, onerror=refuse):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                file.read(1)


def _judged(step: Path, error: Exception) -> CheckpointError:
    """What an error in reading a checkpoint says about it."""
    if not _is_passing(error):
        return CheckpointError(f"{step} is damaged ({reason(error)})")
    return Unavailable(
        f"{step} cannot be read now ({reason(error)}) and may be whole; nothing was changed. Start the same command "
        "again when it can be read; to go on without it, move its folder away"
    )


_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_PASSING = re.compile(
    r"\b(UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|CANCELLED)\b"
    r"|OS error (?!(?:" + "|".join(map(str, _MISSING)) + r")\b)\d+"
)
"""In what tensorstore and XLA say: of the system or of memory, not of what the files hold."""


def _is_passing(error: BaseException | None) -> bool:
    """Whether it comes from the system rather than from files that are gone, cut or changed."""
    while error is not None:
        if isinstance(error, OSError):
            if error.errno not in (*_MISSING, None) or isinstance(error, TimeoutError):
                return True
        elif isinstance(error, MemoryError) or _PASSING.search(str(error)):
            return True
        error = error.__cause__
    return False


def _table(step: Path, part: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    if tables.get(part) is None:
        raise CheckpointError(f"{step}/{part} is damaged: its table of arrays cannot be read")
    return {key(path): leaf for path, leaf in leaves(tables[part])}


def read_state(step: Path, abstract: State) -> tuple[State, dict[str, Any]]:
    """The arrays of one checkpoint, placed as `abstract` says, and its metadata.

    Raises:
        ConfigError: the checkpoint's arrays have other names or shapes.
        Unavailable: some process cannot read it now.
        CheckpointError: it is damaged for some process, or its arrays are not those that were saved.
    """
    # Orbax numbers its operations on each process: none may begin to load unless all do.
    metadata, fingerprints = together(lambda: _read_tables(step, abstract))
    state = together(lambda: _load_alone(step, abstract))
    for part, told in fingerprints.items():
        if fingerprint(state[part]) != told:
            raise CheckpointError(
                f"{step}/{part} is damaged: its arrays are not as they were written"
            )
    return state, metadata


def _load_alone(step: Path, abstract: State) -> State:
    """This process's shards; waits for no other process."""
    try:
        with _alone():
            return ocp.load_checkpointables(str(step), abstract)
    except Exception as error:
        raise _judged(step, error) from error


def _read_tables(step: Path, abstract: State) -> tuple[dict[str, Any], dict[str, str]]:
    """The metadata, and the fingerprints of the trees that will be read as they were saved."""
    metadata, fingerprints, tables = _describe(step)
    for part in abstract:
        if part not in tables and part not in fingerprints:
            raise ConfigError(
                f"{step} has no {part}: it holds parameters alone, use train.init_from weights"
            )
    found = {part: _table(step, part, tables) for part in abstract}
    same = {}
    for part, tree in abstract.items():
        wanted = {key(path): leaf for path, leaf in leaves(tree)}
        _check_shapes(step, part, found[part], wanted)
        same[part] = all(found[part][name].dtype == leaf.dtype for name, leaf in wanted.items())
    return metadata, {part: told for part, told in fingerprints.items() if same.get(part)}


def _alone() -> ocp.Context:
    """Makes orbax read without waiting for other processes, so that an error on one leaves none waiting."""
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _check_shapes(
    step: Path, part: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Compares names and shapes before orbax does, to say which array differs."""
    for name in sorted(found.keys() ^ wanted.keys())[:1]:
        where = "the checkpoint" if name in found else "this configuration"
        raise ConfigError(f"{step}: {part} {name!r} is in {where} only{_SHAPE_HINT}")
    for name, leaf in wanted.items():
        there, here = tuple(found[name].shape), tuple(leaf.shape)
        if there != here:
            shapes = f"has shape {there}, this configuration needs {here}"
            raise ConfigError(f"{step}: {part} {name!r} {shapes}{_SHAPE_HINT}")


_SHAPE_HINT = (
    "; use the model and optimizer sections it was saved with, or another train.output_dir"
)


def leaves(tree: Any) -> list[tuple[Any, Any]]:
    """(path, array) of a tree of arrays or of orbax's descriptions of them."""
    pairs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return [(path, leaf) for path, leaf in pairs if hasattr(leaf, "shape")]  # drops empty nodes


def key(path: Any) -> str:
    """A name for a tree path that does not depend on whether a level is a tuple, a dict or an attribute."""
    return "/".join(
        str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))
        for entry in path
    )
