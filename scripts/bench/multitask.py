"""Multitask training steps: with few tasks and with many, and beside a plain torch loop in tasknet's regime.

    T0JAX_DATA_DIR=... python -m scripts.bench multitask --config configs/tasksource_small_local.yaml --what torch

tasks   the same rows as examples of 2 tasks and of `--many`, every task with weights of its own: steps a second
torch   training examples a second on the recipe's mixture. Ours: the trainer's own batches, of any tasks, in length
        buckets. torch's: transformers' encoder under every task's head, the same items in micro-batches of one task
        with `data.batch_size` rows (of a question, all options), padded to the longest, one AdamW step each. The
        mean losses of an item before training, without dropout, say that both compute the same.

With `--synthetic` items of random tokens and lengths take the place of the mixture, and neither TensorFlow nor seqio
nor data are needed. Compilation and each method's first pass are not timed; runs alternate. Processor seconds are
those of the whole process, and what to go by on a machine that others use too.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from scripts.bench.stepping import machine, our_pass
from scripts.bench.tasknet import Batch, micro_batches, tasknet_pass, unpack
from t0jax import config, memory, models
from t0jax.config.heads import head_group
from t0jax.data.structured.encoding import Item, rows_to_batch
from t0jax.objectives import multitask

OPTIONS: dict[str, dict[str, Any]] = {
    "what": {"choices": ["tasks", "torch", "both"], "default": "both", "help": "what to time"},
    "many": {"type": int, "default": 200, "help": "tasks of the larger network"},
    "batches": {"type": int, "default": 40, "help": "batches of a pass"},
    "repeats": {"type": int, "default": 3, "help": "timed passes of each method, in turns"},
    "synthetic": {"action": "store_true", "help": "random items in place of the mixture's"},
}

SYNTHETIC = (
    ("classification", ("no", "yes"), 1, 26, 0.6),
    ("classification", ("world", "sports", "business", "science"), 1, 56, 0.3),
    ("classification", ("entailment", "neutral", "contradiction"), 1, 96, 0.4),
    ("multiple_choice", (), 3, 120, 0.5),
    ("multiple_choice", (), 4, 110, 0.3),
)
"""Kind, labels, rows of an item, median length and the spread of its logarithm: about the local mixture's."""


def main(argv: Sequence[str]) -> None:
    """Runs the comparisons asked for and prints their tables."""
    settings, options = config.parse(argv, __doc__ or "", **OPTIONS)
    memory.keep_pages()
    make = synthetic if options.synthetic else mixture
    settings, batches = make(settings, options.batches)
    rows = sum(len(batch["task_ids"]) for batch in batches)
    places = sum(batch["encoder_segment_ids"].size for batch in batches)
    tokens = sum(int(batch["encoder_segment_ids"].sum()) for batch in batches)
    size = sum(x.size for x in jax.tree.leaves(models.build(settings.model).shapes))
    print(f"{size / 1e6:.1f} M parameters, {settings.model.dtype}, {machine()}")
    print(
        f"{len(batches)} batches, {rows} rows, {tokens / places:.0%} of {places} places are tokens"
    )
    if options.what != "torch":
        compare_tasks(settings, options, batches)
    if options.what != "tasks":
        compare_torch(settings, options, batches)


def mixture(settings: config.Config, count: int) -> tuple[config.Config, list[Batch]]:
    """The recipe with the heads of its mixture, and the first batches that the trainer would read."""
    from t0jax import train
    from t0jax.data import loader as loader_lib

    train.set_environment(settings)
    train.train_vocabulary(settings)
    model = dataclasses.replace(settings.model, heads=loader_lib.find_heads(settings.data))
    loader = loader_lib.make_loader(settings.data)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return dataclasses.replace(settings, model=model), batches


def synthetic(settings: config.Config, count: int) -> tuple[config.Config, list[Batch]]:
    """Random items in batches of one length bucket each, filled as they come."""
    rng = np.random.default_rng(settings.data.seed)
    heads = tuple(
        config.Head(f"task{i}", kind, labels, head_group(kind, labels))
        for i, (kind, labels, *_) in enumerate(SYNTHETIC)
    )
    buckets = settings.data.length_buckets or (settings.data.input_length,)
    open_rows: dict[int, list[tuple[int, Item]]] = {length: [] for length in buckets}
    batches: list[Batch] = []
    while len(batches) < count:
        task = int(rng.integers(len(SYNTHETIC)))
        item = _random_item(task, settings, rng)
        length = next(bucket for bucket in buckets if bucket >= item.length)
        used = sum(len(one.rows) for _, one in open_rows[length])
        if used + len(item.rows) > settings.data.batch_size:
            batches.append(_batch(open_rows[length], heads, settings.data.batch_size, length))
            open_rows[length] = []
        open_rows[length].append((task, item))
    model = dataclasses.replace(settings.model, heads=heads)
    return dataclasses.replace(settings, model=model), batches


def _random_item(task: int, settings: config.Config, rng: np.random.Generator) -> Item:
    _, labels, rows, median, spread = SYNTHETIC[task]
    drawn = median * np.exp(spread * rng.normal() + 0.1 * rng.normal(size=rows))
    lengths = np.clip(drawn, 4, settings.data.input_length).astype(int)
    tokens = [rng.integers(4, settings.model.vocab_size, n, dtype=np.int32) for n in lengths]
    return Item(tuple(tokens), int(rng.integers(len(labels) or rows)))


def _batch(
    items: Sequence[tuple[int, Item]], heads: Sequence[config.Head], rows: int, length: int
) -> Batch:
    ends = np.cumsum([len(item.rows) for _, item in items])
    placed = [
        (task, item, range(end - len(item.rows), end))
        for (task, item), end in zip(items, ends.tolist(), strict=True)
    ]
    return rows_to_batch(placed, heads, rows, length)


# Few and many tasks


def compare_tasks(settings: config.Config, options: Any, batches: Sequence[Batch]) -> None:
    """Times the same rows as examples of 2 and of many classification tasks."""
    methods = {}
    for count in (2, options.many):
        labels = ("entailment", "neutral", "contradiction")
        heads = tuple(config.Head(f"task{i}", "classification", labels) for i in range(count))
        model = dataclasses.replace(settings.model, heads=heads)
        relabelled = [_as_tasks(batch, count, seed) for seed, batch in enumerate(batches)]
        run = our_pass(dataclasses.replace(settings, model=model), None, relabelled)
        methods[f"{count} tasks"] = run
    few, many = alternate(methods, options.repeats)
    for (name, _), seconds in zip(methods.items(), (few, many), strict=True):
        told("tasks", name, len(batches) / seconds.wall, "steps/s", seconds)
    print(
        f"tasks    ratio  {few.wall / many.wall:.3f} (processor {few.processor / many.processor:.3f})"
    )


def _as_tasks(batch: Batch, count: int, seed: int) -> Batch:
    """The rows of a batch as examples of `count` three-way tasks."""
    rng, rows = np.random.default_rng(seed), len(batch["task_ids"])
    return {
        "encoder_input_tokens": batch["encoder_input_tokens"],
        "encoder_segment_ids": batch["encoder_segment_ids"],
        "task_ids": rng.integers(count, size=rows, dtype=np.int32),
        "item_ids": np.arange(rows, dtype=np.int32),
        "label_ids": rng.integers(3, size=rows, dtype=np.int32),
        "label_values": np.zeros((rows, 1), np.float32),
        "loss_weights": batch["encoder_segment_ids"][:, 0].astype(np.float32),
    }


# torch


def compare_torch(settings: config.Config, options: Any, batches: Sequence[Batch]) -> None:
    """Times our batches and torch's micro-batches of the same items, from the same weights."""
    network = models.build(settings.model)
    params = jax.jit(network.init)(jax.random.key(settings.train.seed))
    items = [item for batch in batches for item in unpack(batch, settings.model.heads)]
    micro = micro_batches(items, settings.data.batch_size, settings.data.seed)
    run, first = tasknet_pass(settings, params, micro)
    scored = jax.jit(lambda batch: multitask.loss_sums(network, params, batch, None)[1])
    sums = [scored(batch) for batch in batches]
    ours = sum(float(x["nll"]) for x in sums) / sum(float(x["examples"]) for x in sums)
    print(
        f"torch    {len(items)} items; mean loss before training {ours:.5f}, torch's {first():.5f}"
    )
    methods = {"torch": run, "t0jax": our_pass(settings, params, list(batches))}
    theirs, own = alternate(methods, options.repeats)
    told("torch", f"torch ({len(micro)} steps)", len(items) / theirs.wall, "examples/s", theirs)
    told("torch", f"t0jax ({len(batches)} steps)", len(items) / own.wall, "examples/s", own)
    print(
        f"torch    ratio  {theirs.wall / own.wall:.2f} (processor {theirs.processor / own.processor:.2f})"
    )


# Timing


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Medians of a pass."""

    wall: float
    processor: float


def alternate(methods: Mapping[str, Callable[[], Any]], repeats: int) -> list[Seconds]:
    """Seconds of each method; all run once before, then in turns."""
    for run in methods.values():
        run()
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, run in methods.items():
            began = time.perf_counter(), time.process_time()
            run()
            spent[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return [Seconds(*map(statistics.median, zip(*runs, strict=True))) for runs in spent.values()]


def told(what: str, name: str, rate: float, unit: str, seconds: Seconds) -> None:
    spent = f"{seconds.wall:.2f} s a pass, {seconds.processor:.2f} s of processor"
    print(f"{what:8} {name:18} {rate:9.1f} {unit} ({spent})")
