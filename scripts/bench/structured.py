"""Reading structured tasks: time to the first batch, examples a second, padding, empty rows, size of the position.

`T0JAX_DATA_DIR=DATA python -m scripts.bench structured` reads the tasks of a local data folder: mixed batches of length
buckets, the same without buckets, and batches whose micro-batches hold one task each.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints a line a way of reading."""
    options = _parse(argv)
    data = config.Data(
        mixture=options.mixture,
        modules=tuple(options.modules),
        available_only=True,
        rates="rows",
        rate_cap=options.rate_cap,
        input_length=options.lengths[-1],
        batch_size=options.batch_size,
        workers=options.workers,
        vocabulary_train_size=options.pieces,
    )
    ways = {
        "mixed": {"length_buckets": tuple(options.lengths)},
        "mixed, no buckets": {},
        "single_task": {"length_buckets": tuple(options.lengths), "batching": "single_task"},
    }
    with tempfile.TemporaryDirectory() as folder:
        data = dataclasses.replace(data, vocabulary=str(Path(folder) / "spm.model"))
        from t0jax.data import loader

        loader.train_vocabulary(data)
        for way, changes in ways.items():
            found = _measure(dataclasses.replace(data, **changes), options)
            print(way, json.dumps(found) if options.json else _line(found), sep=": ", flush=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts.bench structured", description=__doc__)
    parser.add_argument("--mixture", default="tasksource_local")
    parser.add_argument("--modules", nargs="+", default=["tasks.tasksource_local"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--parts", type=int, default=1, help="micro-batches a batch")
    parser.add_argument("--rate-cap", type=int, default=8000)
    parser.add_argument("--pieces", type=int, default=8000, help="size of the vocabulary")
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def _measure(data: config.Data, options: argparse.Namespace) -> dict[str, Any]:
    from t0jax.data.loader import make_loader

    begun = time.perf_counter()
    with make_loader(data, parts=options.parts) as loader:
        next(loader)
        first = time.perf_counter()
        cpu, counts = _cpu(), Counter()
        lengths: Counter[int] = Counter()
        for _ in range(options.batches):
            batch = next(loader)
            tokens = batch["encoder_segment_ids"]
            lengths[tokens.shape[1]] += 1
            counts.update(examples=int(np.count_nonzero(batch["loss_weights"])))
            counts.update(cut=loader.cut_examples or 0, rows=len(tokens), cells=tokens.size)
            counts.update(tokens=int(tokens.sum()), used=int(tokens[:, 0].sum()))
        cpu, wall = _cpu() - cpu, time.perf_counter() - first
        position = len(json.dumps(loader.state()))
    return {
        "first_batch_s": first - begun,
        "examples_per_s": counts["examples"] / wall,
        "examples_per_cpu_s": counts["examples"] / cpu,
        "tokens_per_s": counts["tokens"] / wall,
        "padding": 1 - counts["tokens"] / counts["cells"],
        "empty_rows": 1 - counts["used"] / counts["rows"],
        "cut": counts["cut"] / counts["examples"],
        "batches_by_length": dict(sorted(lengths.items())),
        "position_bytes": position,
    }


def _cpu() -> float:
    """CPU seconds of this process; reader processes are not among them before they end."""
    times = os.times()
    return times.user + times.system


def _line(found: dict[str, Any]) -> str:
    rates = (
        f"{found['examples_per_s']:,.0f} examples/s ({found['examples_per_cpu_s']:,.0f} a CPU second here), "
        f"{found['tokens_per_s']:,.0f} tokens/s, first batch after {found['first_batch_s']:.2f} s"
    )
    shares = f"padding {found['padding']:.1%}, empty rows {found['empty_rows']:.2%}, cut {found['cut']:.1%}"
    lengths = ", ".join(f"{n} x {length}" for length, n in found["batches_by_length"].items())
    return f"{rates}; {shares}; {lengths}; position {found['position_bytes']:,} bytes"
