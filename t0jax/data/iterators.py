"""Endless iterators of batches with a position that is saved and restored exactly.

`IndexLoader` reads a stream by index; `SeqioLoader` any other seqio mixture, through `seqio.get_dataset`. Batches are
dictionaries of numpy arrays, this process's rows only: see `packing.pack_group`.
"""

import abc
import base64
import dataclasses
import hashlib
import itertools
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config
from t0jax.data.packing import shift_right
from t0jax.data.reading import (
    Batch,
    Job,
    PartReader,
    Place,
    ReaderProcess,
    Stream,
    concatenate,
)
from t0jax.data.registry import find_vocabulary, open_cache

log = logging.getLogger("t0jax")

ORDER_VERSION = 1
"""Raised with every change of the code after which the same settings give other batches."""

SINCE_0_2 = {
    "data.num_negatives": 0,
    "data.num_shots": 0,
    "data.instruction_split": "rendered",
    "data.truncation": "input",
    "views": "direct",
}
"""What positions saved by older versions do not say, for there was nothing else."""

_OTHER_WAY = (
    "the saved data position is of a mixture read {}, which is now read {}. Go back to the data.mixture and "
    "data.cache_dir of before, or start with train.init_from: weights"
)

GO_BACK = "Go back to those settings, or start with train.init_from: weights"

SNAPSHOT_EVERY = 100
"""Batches between two copies of tf.data's iterator state."""


class Loader(abc.ABC):
    """An endless iterator of batches that knows its place. Not for use by several threads at once.

    Attributes:
      cut_examples: how many examples of the last batch were longer than their share of a row; None where that is not
        known.
    """

    cut_examples: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    @abc.abstractmethod
    def __next__(self) -> Batch:
        """The next batch: this process's rows. Raises ReadError naming the task and row that fail."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """The place after the last batch returned, ready for JSON."""

    @abc.abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a saved place.

        Raises:
          config.ConfigError: the state is of another stream (data, seed, lengths, shards ...).
        """

    def counts(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """Of the batch just returned: its tokens, and {"cut": share of its examples that were too long} where that is
        known."""
        sides = ("encoder_segment_ids", "decoder_segment_ids")
        tokens = float(sum(np.count_nonzero(batch[side]) for side in sides))
        right = batch["decoder_segment_ids"] * (batch["decoder_loss_weights"] > 0)
        examples = sum(len(np.unique(row[row > 0])) for row in right)
        return tokens, self._cut_share(examples)

    def _cut_share(self, examples: int) -> dict[str, float]:
        if self.cut_examples is None:
            return {}
        return {"cut": self.cut_examples / max(1, examples)}

    def close(self) -> None:  # noqa: B027
        """Lets go of processes and memory; the loader may still be restored or go on."""

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# ------------------------------------------------------------------------------------- by index


class IndexLoader(Loader):
    """Reads a `Stream`: this process takes a contiguous run of its virtual shards.

    A batch holds the rows of shard 0, then of shard 1, and so on over the processes. `state()["shards"]` has the
    shards of this process; the union over the processes restores any number of processes.
    """

    def __init__(self, stream: Stream, *, process_index: int = 0, process_count: int = 1):
        check_layout(stream.data, process_count)
        self._stream, self._workers = stream, stream.data.workers
        own = stream.data.shards // process_count
        self._shard_rows = stream.data.batch_size // stream.data.shards
        shards = range(process_index * own, (process_index + 1) * own)
        self._places: dict[int, Place] = dict.fromkeys(shards, (0, 0))
        self._fingerprint = fingerprint(stream)
        self._readers: list[PartReader | ReaderProcess] = []

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are read: those whose data can be had."""
        return tuple(task.name for task in self._stream.tasks)

    def __next__(self) -> Batch:
        try:
            self._readers = self._readers or self._start()
            parts = [reader.read() for reader in self._readers]
        except BaseException:
            # Readers may have moved on unevenly: the next call starts them again from the last place returned.
            self.close()
            raise
        for _, places in parts:
            self._places.update(places)
        batch = concatenate([batch for batch, _ in parts])
        self.cut_examples = int(batch.pop("cut_examples").sum())
        return batch

    def state(self) -> dict[str, Any]:
        shards = {str(shard): list(place) for shard, place in self._places.items()}
        return {"stream": self._fingerprint, "shards": shards}

    def restore(self, state: Mapping[str, Any]) -> None:
        if "stream" not in state:
            raise config.ConfigError(_OTHER_WAY.format("through seqio", "by index"))
        found = differences({**SINCE_0_2, **state["stream"]}, self._fingerprint)
        missing = [
            str(shard) for shard in self._places if str(shard) not in state.get("shards", {})
        ]
        if missing:
            found.append(f"it has no place for the shards {', '.join(missing)}")
        if found:
            raise config.ConfigError(
                f"the saved data position is of another stream: {'; '.join(found)}. {GO_BACK}"
            )
        self.close()
        self._places = {shard: _place(state["shards"][str(shard)]) for shard in self._places}

    def close(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()

    def _start(self) -> list["PartReader | ReaderProcess"]:
        count = min(self._workers, len(self._places))
        if not count:
            return [PartReader(self._stream, self._shard_rows, self._places)]
        shards = list(self._places)
        cuts = [len(shards) * i // count for i in range(count + 1)]
        runs = [shards[a:b] for a, b in itertools.pairwise(cuts)]
        jobs = [
            Job(self._stream, self._shard_rows, {s: self._places[s] for s in run}) for run in runs
        ]
        readers: list[ReaderProcess] = []
        try:
            for job in jobs:
                readers.append(ReaderProcess(job))
            for reader in readers:
                reader.start()
        except BaseException:
            for reader in readers:
                reader.close()
            raise
        return [*readers]


def check_layout(data: config.Data, process_count: int) -> None:
    """Raises ConfigError unless shards, batch and processes divide as they must."""
    if data.shards < 1 or data.shards % process_count:
        raise config.ConfigError(
            f"data.shards={data.shards} must be a multiple of the {process_count} processes that read different rows; "
            "start one process a host, or set data.shards (of a new run: batches depend on it) to such a number"
        )
    if data.batch_size < 1 or data.batch_size % data.shards:
        raise config.ConfigError(
            f"data.batch_size={data.batch_size} must be a multiple of data.shards={data.shards}"
        )
    for name in ("pack_rows", "input_length", "target_length"):
        if getattr(data, name) < 1:
            raise config.ConfigError(f"data.{name}={getattr(data, name)} must be positive")
    if data.num_shots < 0:
        raise config.ConfigError(f"data.num_shots={data.num_shots} must not be negative")


def fingerprint(stream: Stream) -> dict[str, Any]:
    """What a position is only valid with: the settings, and digests of the tasks (prompts and data too) and the
    vocabulary."""
    names = (
        *("seed", "shards", "pack", "pack_rows", "input_length", "target_length"),
        *("num_shots", "num_negatives", "instruction_split", "truncation"),
    )
    tasks = [[task.name, task.length, task.rate, *task.identity] for task in stream.tasks]
    settings = {f"data.{name}": getattr(stream.data, name) for name in names}
    ends = {task.view.input_eos for task in stream.tasks}
    by_view = ends.pop() if len(ends) == 1 else "by view"
    asked = stream.data.input_eos
    return settings | {
        "data.input_eos": by_view if asked is None else asked,
        "views": ", ".join(sorted({type(task.view).__name__.lower() for task in stream.tasks})),
        "order": ORDER_VERSION,
        "tasks": digest(json.dumps(tasks)),
        "vocabulary": _vocabulary_digest(stream.encoder),
    }


def _vocabulary_digest(encoder: Any) -> str:
    path = getattr(encoder, "path", None)
    return digest(Path(path).read_bytes()) if path else type(encoder).__name__


def digest(content: str | bytes) -> str:
    """A short name of some content."""
    content = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What a saved fingerprint has otherwise than the one here, for a message."""
    return [
        f"{name} was {saved.get(name)}, is {here[name]}"
        for name in here
        if saved.get(name) != here[name]
    ]


def _place(pair: list[int]) -> Place:
    start, given = pair
    return int(start), int(given)


# ------------------------------------------------------------------------------------ through seqio


class SeqioLoader(Loader):
    """Any seqio mixture, through `seqio.get_dataset` and `EncDecFeatureConverter`, or its tasks as they were cached.

    Each process reads its own seqio shard, so batches do depend on the number of processes. The state holds tf.data's
    own iterator state, shuffle buffers included (some 0.7 MB a task; a second to write at 20 tasks), as it was at
    most SNAPSHOT_EVERY batches ago, and the number of batches since, which resuming reads and drops. Of pipelines that
    tf.data cannot save (Python generators) all batches are counted: exact as long as the source is deterministic.
    """

    def __init__(self, data: config.Data, *, process_index: int = 0, process_count: int = 1):
        """
        Raises:
          config.ConfigError: sizes that do not divide, a setting that only tasks read by index can follow, or a
            `data.cache_dir` that does not hold the tasks as they are.
        """
        if data.batch_size % process_count:
            raise config.ConfigError(
                f"data.batch_size={data.batch_size} must be a multiple of the {process_count} processes"
            )
        vocabulary = _check_seqio(data)
        self._data, self._shard = data, (process_index, process_count)
        self._key = f"process {process_index} of {process_count}"
        names = ("mixture", "split", "seed", "batch_size", "pack", "input_length", "target_length")
        settings = {f"data.{name}": getattr(data, name) for name in names}
        self._fingerprint = settings | {
            "vocabulary": digest(vocabulary.read_bytes()),
            "read from a cache": bool(data.cache_dir),
        }
        if data.cache_dir:
            self._fingerprint["content of data.cache_dir"] = open_cache(data)
        self._iterator, self._snapshot, self._since = None, None, 0
        self._can_save = True

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        if self._can_save and self._since >= SNAPSHOT_EVERY:
            snapshot = _save_iterator(self._iterator)
            self._can_save = snapshot is not None
            if self._can_save:
                self._snapshot, self._since = snapshot, 0
        batch = {name: value.numpy() for name, value in next(self._iterator).items()}
        self._since += 1
        return _complete(batch)

    def state(self) -> dict[str, Any]:
        """The place under this process's name, so that the states of all processes merge into one."""
        place = {"snapshot": self._snapshot, "batches_since": self._since}
        return {self._key: {"stream": self._fingerprint, **place}}

    def restore(self, state: Mapping[str, Any]) -> None:
        if "stream" in state:
            raise config.ConfigError(_OTHER_WAY.format("by index", "through seqio"))
        if self._key not in state:
            raise config.ConfigError(
                f"the saved data position is none of {self._key}: it has {', '.join(state) or 'nothing'}. Go on with "
                "as many processes as before, or start with train.init_from: weights"
            )
        place = state[self._key]
        saved = {"read from a cache": False} | place["stream"]
        found = differences(saved, self._fingerprint)
        if found:
            raise config.ConfigError(
                f"the saved data position is of another stream: {'; '.join(found)}. {GO_BACK}"
            )
        self._iterator = self._start()
        self._snapshot, self._since = place["snapshot"], place["batches_since"]
        if self._snapshot is not None:
            _load_iterator(self._iterator, self._snapshot)
        if self._since > SNAPSHOT_EVERY:
            log.warning("reading past %d batches to the saved data position", self._since)
        for _ in range(self._since):
            next(self._iterator)

    def _start(self) -> Any:
        """An iterator over a new pipeline: a second one over the same would shuffle anew."""
        return iter(_seqio_dataset(self._data, *self._shard))


def _check_seqio(data: config.Data) -> Path:
    """The tasks' vocabulary file; raises ConfigError for what seqio's own reading would pass over in silence."""
    by_index = ("input_eos", "available_only", "rates", "view", "num_negatives", "num_shots")
    way_out = "read them without data.cache_dir"
    if not data.cache_dir:
        way_out = "declare the tasks with t0jax.data.sources"
    for name in (*by_index, "instruction_split", "truncation"):
        value = getattr(data, name)
        if value != getattr(config.Data, name):
            raise config.ConfigError(
                f"data.{name}={value} is only for tasks read by index, which those of {data.mixture!r} are not here; "
                f"leave it out, or {way_out}"
            )
    own = find_vocabulary(dataclasses.replace(data, vocabulary=""))
    if data.vocabulary and Path(data.vocabulary).read_bytes() != own.read_bytes():
        raise config.ConfigError(
            f"data.vocabulary={data.vocabulary} is not the vocabulary of the tasks of {data.mixture!r}, {own}, which "
            "seqio tokenises with; leave it out, or declare the tasks with that file"
        )
    return own


def _seqio_dataset(data: config.Data, process_index: int, process_count: int) -> Any:
    import seqio

    dataset = seqio.get_dataset(
        data.mixture,
        {"inputs": data.input_length, "targets": data.target_length},
        seqio.EncDecFeatureConverter(pack=data.pack),
        dataset_split=data.split,
        use_cached=bool(data.cache_dir),
        shuffle=True,
        num_epochs=None,
        shard_info=seqio.ShardInfo(process_index, process_count),
        verbose=False,
        seed=data.seed,
    )
    return dataset.batch(data.batch_size // process_count, drop_remainder=True).prefetch(2)


def _complete(batch: Batch) -> Batch:
    """seqio's features as the batch contract's: unpacked rows get their one segment, weights are float32."""
    if "encoder_segment_ids" not in batch:
        for side, tokens in (
            ("encoder", "encoder_input_tokens"),
            ("decoder", "decoder_target_tokens"),
        ):
            segment = (batch[tokens] != 0).astype("int32")
            batch[f"{side}_segment_ids"] = segment
            batch[f"{side}_positions"] = (segment.cumsum(axis=1, dtype="int32") - 1) * segment
        targets, segment = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
        batch["decoder_input_tokens"] = shift_right(targets, segment)
    return batch | {"decoder_loss_weights": batch["decoder_loss_weights"].astype("float32")}


def _save_iterator(iterator: Any) -> dict[str, str] | None:
    """The files of a tf.data iterator's checkpoint, base64; None where tf.data cannot save it."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(f"{folder}/iterator")
        except tf.errors.FailedPreconditionError:
            return None
        files = Path(folder).iterdir()
        return {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}


def _load_iterator(iterator: Any, files: Mapping[str, str]) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(base64.b64decode(content))
        tf.train.Checkpoint(iterator=iterator).read(f"{folder}/iterator").assert_consumed()
