"""Bringing the tasks a run names into seqio's registry, and finding them there."""

import contextlib
import difflib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t0jax.config import ConfigError, Data
from t0jax.data.vocabulary import EXTRA_IDS

_SHOWN = 5


def import_tasks(modules: Sequence[str]) -> None:
    """Imports modules that register seqio tasks.

    Raises:
      ConfigError: there is no such module.
    """
    with _greeting_kept_back():
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # it has its devices already
            tf.config.set_visible_devices([], "GPU")  # TensorFlow would claim the memory JAX needs
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = error.name
            if missing is None or not (module == missing or module.startswith(f"{missing}.")):
                raise
            raise ConfigError(
                f"data.modules names {module!r}, which cannot be imported; run from the folder it is in, or "
                "put that on PYTHONPATH"
            ) from None


def find_tasks(data: Data) -> dict[str, float]:
    """{task: rate} of `data.mixture`, those with a positive rate, sorted by name.

    Raises:
      ConfigError: `data.modules` register no such mixture or task.
    """
    if not data.mixture:
        raise ConfigError(
            "data.mixture is empty: name a seqio mixture or task, or give --config RECIPE"
        )
    import_tasks(data.modules)
    import seqio

    from t0jax.data.sources import members

    names = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if data.mixture not in names:
        near = difflib.get_close_matches(data.mixture, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        modules = ", ".join(data.modules)
        raise ConfigError(f"data.mixture: {modules} register no {data.mixture!r}{hint}")
    return {name: rate for name, rate in sorted(members(data.mixture).items()) if rate > 0}


def reads_by_index(task_name: str) -> bool:
    """Whether a task is a `PromptSource` that seqio would only tokenise."""
    import seqio

    from t0jax.data.elements import tokenize_pairs
    from t0jax.data.sources import PromptSource

    task = seqio.TaskRegistry.get(task_name)
    plain = (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos, tokenize_pairs)
    return (
        isinstance(task.source, PromptSource)
        and not task.source.rank
        and all(
            step in plain or isinstance(step, seqio.CacheDatasetPlaceholder)
            for step in task.preprocessors
        )
    )


def find_vocabulary(data: Data) -> Path:
    """The SentencePiece file of a run: `data.vocabulary`, or the one the mixture's tasks were declared with.

    It is read with 100 extra ids.

    Raises:
      VocabularyError: the tasks leave it to `T0JAX_VOCABULARY`, and that names no file.
      ConfigError: the tasks have no SentencePiece vocabulary, several, or one with other extra ids.
    """
    if data.vocabulary:
        return Path(data.vocabulary)
    rates = find_tasks(data)
    import seqio  # after the tasks' modules, which import it quietly

    tasks = [seqio.TaskRegistry.get(name) for name in rates]
    declared = [feature.vocabulary for t in tasks for feature in t.output_features.values()]
    found = {
        (Path(v.sentencepiece_model_file), v.extra_ids)
        for v in declared
        if hasattr(v, "sentencepiece_model_file")
    }
    if len(found) != 1:
        raise ConfigError(
            f"the tasks of {data.mixture!r} declare {len(found)} SentencePiece vocabularies, not one; tasks that are "
            "read by index take data.vocabulary instead"
        )
    path, extra_ids = found.pop()
    if extra_ids != EXTRA_IDS:
        raise ConfigError(
            f"the tasks of {data.mixture!r} declare {path} with {extra_ids} extra ids; declare {EXTRA_IDS}, as T5 has"
        )
    return path


def open_cache(data: Data) -> None:
    """Has seqio read the tasks of `data.mixture` from `data.cache_dir` when it is asked for cached ones.

    Raises:
      ConfigError: a task or its split is not there, or was tokenised with another vocabulary than the task's.
    """
    names = list(find_tasks(data))
    import seqio

    folder = os.path.expanduser(data.cache_dir).rstrip("/")
    others = [other for other in seqio.get_global_cache_dirs() if other != folder]
    seqio.set_global_cache_dirs([folder, *others])
    tasks = [seqio.TaskRegistry.get(name) for name in names]
    missing = [task.name for task in tasks if not _is_cached(task, folder, data.split)]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        raise ConfigError(
            f"data.cache_dir {data.cache_dir} has no split {data.split!r} of {len(missing)} of the {len(tasks)} tasks "
            f"of {data.mixture!r}: {shown}; write them with seqio_cache_tasks, or leave data.cache_dir out"
        )
    _check_ids(tasks[0], data)


def _is_cached(task: Any, folder: str, split: str) -> bool:
    """Whether the folder holds all of a task's split; seqio remembers where it found a task first."""
    import seqio
    import tensorflow as tf

    own = os.path.join(folder, seqio.get_task_dir_from_name(task.name))
    found = task.cache_dir == own
    return found and tf.io.gfile.exists(seqio.get_cached_info_path(own, split))


def _check_ids(task: Any, data: Data) -> None:
    """Raises ConfigError where the first cached input is not what the task's vocabulary makes of its text."""
    import seqio
    import tensorflow as tf

    with tf.io.gfile.GFile(seqio.get_cached_info_path(task.cache_dir, data.split)) as file:
        if json.load(file)["features"]["inputs"]["dtype"] == "string":  # tokenised when it is read
            return
    cached = task.get_dataset(
        None, data.split, use_cached=True, shuffle=False, try_in_mem_cache=False
    )
    example = next(iter(cached.take(1)))
    feature = task.output_features["inputs"]
    ids = feature.vocabulary.encode(example["inputs_pretokenized"].numpy().decode())
    if example["inputs"].numpy().tolist() != ids + [feature.vocabulary.eos_id] * feature.add_eos:
        raise ConfigError(
            f"data.cache_dir {data.cache_dir} was written with another vocabulary than the tasks of {data.mixture!r} "
            "have now (T0JAX_VOCABULARY); write it anew with seqio_cache_tasks --overwrite, or go back to that file"
        )


@contextlib.contextmanager
def _greeting_kept_back() -> Iterator[None]:
    """Sends file descriptor 2 to nowhere: TensorFlow's libraries write there before any setting is read."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
