"""From a mixture's name to batches, with a position that is saved and restored exactly.

`make_loader` looks the mixture up in seqio's registry. When all its tasks read by index (`sources.PromptSource`), it
is read by index: hundreds of tasks start in seconds, batches are a pure function of (config, seed, data), whatever
the number of processes and of reader processes, and the position is two integers a virtual shard. Any other mixture
goes through `seqio.get_dataset`, one seqio shard a process.

Batches are dictionaries of numpy arrays, this process's rows only: see `packing.pack_group`.
"""

import abc
import base64
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t0jax import config
from t0jax.data.packing import shift_right
from t0jax.data.reading import (
    Batch,
    Job,
    PartReader,
    Place,
    ReaderProcess,
    Stream,
    Task,
    concatenate,
    read_texts,
)
from t0jax.data.registry import find_tasks, reads_by_index
from t0jax.data.rows import DataUnavailable, PromptedRows
from t0jax.data.views import find_view
from t0jax.data.vocabulary import EXTRA_IDS, Pieces

log = logging.getLogger("t0jax")

ORDER_VERSION = 1
"""Raised with every change of the code after which the same settings give other batches."""

SNAPSHOT_EVERY = 100
"""Batches between two copies of tf.data's iterator state."""


class Loader(abc.ABC):
    """An endless iterator of batches that knows its place. Not for use by several threads at once."""

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
        return concatenate([batch for batch, _ in parts])

    def state(self) -> dict[str, Any]:
        shards = {str(shard): list(place) for shard, place in self._places.items()}
        return {"stream": self._fingerprint, "shards": shards}

    def restore(self, state: Mapping[str, Any]) -> None:
        differences = _differences(state.get("stream", {}), self._fingerprint)
        missing = [
            str(shard) for shard in self._places if str(shard) not in state.get("shards", {})
        ]
        if missing:
            differences.append(f"it has no place for the shards {', '.join(missing)}")
        if differences:
            raise config.ConfigError(
                f"the saved data position is of another stream: {'; '.join(differences)}. Go back to "
                "those settings, or start with train.init_from: weights"
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
        return readers


def check_layout(data: config.Data, process_count: int) -> None:
    """Raises ConfigError unless shards, batch and processes divide as they must."""
    if data.shards < 1 or data.shards % process_count:
        raise config.ConfigError(
            f"data.shards={data.shards} must be a multiple of the {process_count} processes"
        )
    if data.batch_size < 1 or data.batch_size % data.shards:
        raise config.ConfigError(
            f"data.batch_size={data.batch_size} must be a multiple of data.shards={data.shards}"
        )
    for name in ("pack_rows", "input_length", "target_length"):
        if getattr(data, name) < 1:
            raise config.ConfigError(f"data.{name}={getattr(data, name)} must be positive")


def fingerprint(stream: Stream) -> dict[str, Any]:
    """What a position is only valid with: the settings, and digests of the tasks (prompts and data too) and the
    vocabulary."""
    names = ("seed", "shards", "pack", "pack_rows", "input_length", "target_length", "input_eos")
    tasks = [[task.name, task.length, task.rate, *task.identity] for task in stream.tasks]
    settings = {f"data.{name}": getattr(stream.data, name) for name in names}
    return settings | {
        "order": ORDER_VERSION,
        "tasks": _digest(json.dumps(tasks)),
        "vocabulary": _vocabulary_digest(stream.encoder),
    }


def _vocabulary_digest(encoder: Any) -> str:
    path = getattr(encoder, "path", None)
    return _digest(Path(path).read_bytes()) if path else type(encoder).__name__


def _digest(content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
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
    """Any seqio mixture, through `seqio.get_dataset` and `EncDecFeatureConverter`.

    Each process reads its own seqio shard, so batches do depend on the number of processes. The state holds tf.data's
    own iterator state, shuffle buffers included (some 0.7 MB a task; a second to write at 20 tasks), as it was at
    most SNAPSHOT_EVERY batches ago, and the number of batches since, which resuming reads and drops. Of pipelines that
    tf.data cannot save (Python generators) all batches are counted: exact as long as the source is deterministic.
    """

    def __init__(self, data: config.Data, *, process_index: int = 0, process_count: int = 1):
        """
        Raises:
          config.ConfigError: sizes that do not divide, or a setting that only tasks read by index can follow.
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
        self._fingerprint = settings | {"vocabulary": _digest(vocabulary.read_bytes())}
        self._iterator, self._snapshot, self._since = self._start(), None, 0
        self._can_save = True

    def __next__(self) -> Batch:
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
        if self._key not in state:
            raise config.ConfigError(
                f"the saved data position is none of {self._key}: it has {', '.join(state) or 'nothing'}. Go on with "
                "as many processes as before, or start with train.init_from: weights"
            )
        place = state[self._key]
        differences = _differences(place["stream"], self._fingerprint)
        if differences:
            raise config.ConfigError(
                f"the saved data position is of another stream: {'; '.join(differences)}"
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
    for name in ("input_eos", "available_only", "rates"):
        value = getattr(data, name)
        if value != getattr(config.Data, name):
            raise config.ConfigError(
                f"data.{name}={value} is only for tasks read by index, which those of {data.mixture!r} are not; "
                "leave it out, or declare the tasks with t0jax.data.sources"
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


# ------------------------------------------------------------------------------------ from a name


def make_loader(data: config.Data, *, process_index: int = 0, process_count: int = 1) -> Loader:
    """The loader of `data.mixture` for one process.

    Raises:
      config.ConfigError: unknown mixture, sizes that do not divide, or no task left to read.
      DataUnavailable: data sets cannot be had, all of them in one table (unless `data.available_only`).
    """
    rates = find_tasks(data)
    other = next((name for name in rates if not reads_by_index(name)), None)
    if other is not None:
        log.warning("%r goes through seqio: its task %r is not read by index", data.mixture, other)
        return SeqioLoader(data, process_index=process_index, process_count=process_count)
    check_layout(data, process_count)
    pieces = Pieces(find_vocabulary(data))
    pieces.encode("")  # a missing or broken vocabulary is an error now, not in a reader process
    stream = make_stream(data, rates, pieces)
    return IndexLoader(stream, process_index=process_index, process_count=process_count)


def find_vocabulary(data: config.Data) -> Path:
    """The SentencePiece file of a run: `data.vocabulary`, or the one the mixture's tasks were declared with.

    It is read with 100 extra ids.

    Raises:
      VocabularyError: the tasks leave it to `T0JAX_VOCABULARY`, and that names no file.
      config.ConfigError: the tasks have no SentencePiece vocabulary, several, or one with other extra ids.
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
        raise config.ConfigError(
            f"the tasks of {data.mixture!r} declare {len(found)} SentencePiece vocabularies, not one; tasks that are "
            "read by index take data.vocabulary instead"
        )
    path, extra_ids = found.pop()
    if extra_ids != EXTRA_IDS:
        raise config.ConfigError(
            f"the tasks of {data.mixture!r} declare {path} with {extra_ids} extra ids; declare {EXTRA_IDS}, as T5 has"
        )
    return path


def mixture_texts(data: config.Data) -> Iterator[str]:
    """Inputs and targets of a by-index mixture in reading order, as many as it has rows; needs no vocabulary.

    For training a vocabulary on a mixture's text.

    Raises:
      config.ConfigError: a task is not read by index; and as `make_stream`.
    """
    rates = find_tasks(data)
    other = next((name for name in rates if not reads_by_index(name)), None)
    if other is not None:
        raise config.ConfigError(
            f"no vocabulary can be trained on {data.mixture!r}: its task {other!r} is not read by index"
        )
    stream = make_stream(data, rates, Pieces(""))
    rows = sum(task.length for task in stream.tasks)
    for inputs, targets in itertools.islice(read_texts(stream), rows):
        yield inputs
        yield targets


def make_stream(data: config.Data, rates: Mapping[str, float], pieces: Pieces) -> Stream:
    """The stream of by-index tasks whose data can be had.

    Raises:
      DataUnavailable: some cannot (unless `data.available_only`); its text is a table of all of them.
      config.ConfigError: none can.
    """
    import seqio

    tasks, missing = [], defaultdict(list)
    for name, rate in rates.items():
        source = seqio.TaskRegistry.get(name).source
        try:
            rows = source.rows(data.split)
            length = len(rows)
            if not length:
                raise DataUnavailable(source.spec.name, f"split {data.split!r} is empty")
            weight = rate if data.rates == "registered" else float(length)
            tasks.append(
                Task(name, rows, length, weight, find_view(source.view), _identity(source, rows))
            )
        except DataUnavailable as error:
            missing[error.dataset, error.reason, error.way_out].append(name)
    if missing:
        _report(data, missing, len(rates))
    if not tasks:
        where = os.environ.get("T0JAX_DATA_DIR")
        hint = f"T0JAX_DATA_DIR is {where}" if where else "T0JAX_DATA_DIR is not set"
        raise config.ConfigError(f"none of the data sets of {data.mixture!r} can be had; {hint}")
    return Stream(tuple(tasks), pieces, data)


def _identity(source: Any, rows: PromptedRows) -> tuple[Any, ...]:
    """What a task's examples depend on besides their number; the same for copies of the same data."""
    template = rows.template
    prompt = (template.jinja, template.answer_choices)
    return (source.view, source.seed, *prompt, *rows.data_sizes())


def _report(
    data: config.Data, missing: Mapping[tuple[str, str, str], list[str]], task_count: int
) -> None:
    """Logs the table of unavailable data sets, or raises it."""
    lost = sum(map(len, missing.values()))
    head = f"{len(missing)} data sets ({lost} of {task_count} tasks) of {data.mixture!r} cannot be had:"
    width = max(len(dataset) for dataset, _, _ in missing)
    lines = [
        f"  {dataset:{width}}  {len(names):3d} tasks  {reason}"
        + (f"; {way_out}" if way_out else "")
        for (dataset, reason, way_out), names in missing.items()
    ]
    table = "\n".join([head, *lines])
    if data.available_only:
        log.warning("%s\n  going on with the other %d tasks", table, task_count - lost)
        return
    datasets = ", ".join(dataset for dataset, _, _ in missing)
    way_out = "put them into T0JAX_DATA_DIR, or go on with the rest by data.available_only: true"
    raise DataUnavailable(datasets, table, way_out)
