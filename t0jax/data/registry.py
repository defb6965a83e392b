"""Bringing the tasks a run names into seqio's registry, and finding them there."""

import difflib
import hashlib
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t0jax.config import ConfigError, Data, Head
from t0jax.data.vocabulary import EXTRA_IDS

_SHOWN = 5


def import_tasks(modules: Sequence[str]) -> None:
    """Imports modules that register seqio tasks.

    Raises:
      ConfigError: there is no such module.
    """
    import t0jax.data.quiet  # noqa: F401  before modules that import TensorFlow or seqio

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
        modules = ", ".join(data.modules) or "no modules, for data.modules is empty,"
        register = "registers" if len(data.modules) == 1 else "register"
        raise ConfigError(f"data.mixture: {modules} {register} no {data.mixture!r}{hint}")
    return {name: rate for name, rate in sorted(members(data.mixture).items()) if rate > 0}


def known_heads(modules: Sequence[str]) -> dict[str, Head]:
    """The heads of all structured tasks registered once `modules` are imported, by task; none without modules.

    Raises:
      ConfigError: there is no such module.
    """
    if not modules:
        return {}
    import_tasks(modules)
    import seqio

    from t0jax.data.structured.source import StructuredSource

    sources = (seqio.TaskRegistry.get(name).source for name in seqio.TaskRegistry.names())
    heads = (source.record.head() for source in sources if isinstance(source, StructuredSource))
    return {head.task: head for head in heads}


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


def holds_structured(data: Data) -> bool:
    """Whether the tasks of `data.mixture` are structured records, not texts to texts.

    Raises:
      ConfigError: as `find_tasks`, or it has tasks of both kinds.
    """
    names = list(find_tasks(data))
    import seqio

    from t0jax.data.structured.source import StructuredSource

    kinds = {n: isinstance(seqio.TaskRegistry.get(n).source, StructuredSource) for n in names}
    if len(set(kinds.values())) > 1:
        one, other = (next(name for name in names if kinds[name] is kind) for kind in (True, False))
        raise ConfigError(
            f"the mixture {data.mixture!r} has structured tasks ({one!r}) and others ({other!r}), which no model reads "
            "together; make a mixture of each kind"
        )
    return any(kinds.values())


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
    import seqio

    tasks = [seqio.TaskRegistry.get(name) for name in rates]
    features = [feature for task in tasks for feature in task.output_features.values()]
    declared: list[Any] = [feature.vocabulary for feature in features]
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


def open_cache(data: Data) -> str:
    """Has seqio read the tasks of `data.mixture` from `data.cache_dir` when it is asked for cached ones.

    Returns:
      A digest of what the cache holds of them: what seqio's script wrote about each split, and its first example.

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
    held = hashlib.blake2b(digest_size=8)
    for task in tasks:
        about, record = _read_cached(task, data.split)
        _check_ids(task, record, data)
        held.update(b"".join([task.name.encode(), *about, record]))
    return held.hexdigest()


def _cached_paths(task: Any, split: str) -> list[str]:
    """What seqio's script writes about a task's split: its features, and its numbers of examples and tokens."""
    import seqio

    return [
        find(task.cache_dir, split)
        for find in (seqio.get_cached_info_path, seqio.get_cached_stats_path)
    ]


def _is_cached(task: Any, folder: str, split: str) -> bool:
    """Whether the folder holds all of a task's split; seqio remembers where it found a task first."""
    import seqio
    import tensorflow as tf

    own = os.path.join(folder, seqio.get_task_dir_from_name(task.name))
    return task.cache_dir == own and all(map(tf.io.gfile.exists, _cached_paths(task, split)))


def _read_cached(task: Any, split: str) -> tuple[list[bytes], bytes]:
    """What the cache says about a task's split, and the split's first record; b"" where there is none."""
    import seqio
    import tensorflow as tf

    about = []
    for path in _cached_paths(task, split):
        with tf.io.gfile.GFile(path, "rb") as file:
            about.append(file.read())
    prefix = seqio.get_cached_tfrecord_prefix(task.cache_dir, split)
    shards = tf.io.gfile.glob(f"{prefix}-*-of-*{json.loads(about[0]).get('num_shards', '')}")
    if not shards:
        return about, b""
    record = next(iter(tf.data.TFRecordDataset(sorted(shards))), None)
    return about, b"" if record is None else bytes(record.numpy())


def _check_ids(task: Any, record: bytes, data: Data) -> None:
    """Raises ConfigError where an example's ids are not what the task's vocabulary makes of its texts.

    Texts that are tokenised when they are read have no ids here.
    """
    import tensorflow as tf

    example = tf.train.Example.FromString(record).features.feature
    for name, feature in task.output_features.items():
        text, found = example.get(f"{name}_pretokenized"), example.get(name)
        if text is None or found is None or not text.bytes_list.value or found.bytes_list.value:
            continue
        ids = feature.vocabulary.encode(text.bytes_list.value[0].decode())
        if list(found.int64_list.value) not in (ids, [*ids, feature.vocabulary.eos_id]):
            raise ConfigError(
                f"data.cache_dir {data.cache_dir} was written with another vocabulary than the tasks of "
                f"{data.mixture!r} have now (T0JAX_VOCABULARY), as {task.name} shows; write it anew with "
                "seqio_cache_tasks --overwrite, or go back to that file"
            )
