"""What a checkpoint in the background costs the steps that go on meanwhile, and what it weighs.

    python -m scripts.bench checkpoint --folder DIR

Trains a T5 v1.1 of `--size` with Adafactor on a few short rows. A round is: the step that runs while `save` is called
with `wait=False` (its time includes what `save` blocks), the steps until the writing has ended, then as many steps
with nothing going on. Medians over all rounds, and their ratios to the quiet steps. On CPU devices the writing takes
its time from the cores that compute; on an accelerator from the host's alone. At the end the newest checkpoint is
restored and compared bit for bit.
"""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config

RUN = "bench-checkpoint"
"""Folder in `--folder` that is made anew: a name that no run has."""


def main(argv: Sequence[str]) -> None:
    """Prints a line a round, then the medians."""
    options = _parse(argv)
    import jax

    from scripts.bench.convert import SIZES
    from t0jax import checkpoint, models, optim, sharding, step

    settings = config.Config(model=SIZES[options.size])
    network = models.build(settings.model)
    mesh = sharding.make_mesh(config.Mesh(data=1, fsdp=-1))
    optimizer = optim.make_optimizer(settings.optimizer, settings.train.steps, network.axes)
    state = step.init_state(settings, network, optimizer, mesh)
    train_step = step.make_step(settings, network, optimizer, mesh)
    batch = sharding.place(_batch(options, settings.model.vocab_size), mesh)
    shutil.rmtree(options.folder / RUN, ignore_errors=True)
    checkpoints = checkpoint.Checkpoints(options.folder / RUN)
    metadata = {"config": config.to_dict(settings), "step": 0, "position": {}}

    def timed_step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, report = train_step(state, batch)
        jax.block_until_ready((state, report))
        return time.perf_counter() - began

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"{size / 1e9:.2f} GB of state, {jax.device_count()} devices, {os.cpu_count()} cores")
    timed_step(), timed_step()
    found: dict[str, list[float]] = {n: [] for n in ("save", "first", "during", "quiet", "write")}
    for number in range(1, options.saves + 1):
        began = time.perf_counter()
        checkpoints.save(number, state, metadata)
        blocked = time.perf_counter() - began
        first, during = timed_step(), []
        while not _written(options.folder / RUN, number):
            during.append(timed_step())
        wrote = time.perf_counter() - began
        checkpoints.wait()
        quiet = [timed_step() for _ in range(max(options.quiet, len(during)))]
        _collect(found, save=[blocked], first=[blocked + first], during=during, quiet=quiet)
        _collect(found, write=[wrote])
        print(
            f"save {number}: blocked {blocked:.2f} s, step with it {blocked + first:.2f} s, then "
            f"{_list(during)}; written after {wrote:.1f} s; quiet {_list(quiet)}",
            flush=True,
        )
    quiet = statistics.median(found["quiet"])
    for name, what in _NAMES.items():
        if found[name]:
            median = statistics.median(found[name])
            print(f"{what:45} {median:7.2f} s  {median / quiet:.2f} x")
    checkpoints.save(options.saves + 1, state, metadata, wait=True)
    _restore(options, state, checkpoints, step.abstract_state(network, optimizer, mesh))


_NAMES = {
    "quiet": "a step with nothing going on",
    "save": "save blocks",
    "first": "the step with save, blocking included",
    "during": "a step while the writing goes on",
    "write": "from save to the whole checkpoint",
}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts.bench checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help=f"checkpoints go to {RUN} in it")
    parser.add_argument("--size", default="base", help="of T5 v1.1: small, base, large or xl")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--quiet", type=int, default=3, help="least quiet steps of a round")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=32, help="tokens of inputs; targets: half")
    return parser.parse_args(argv)


def _batch(options: argparse.Namespace, vocabulary: int) -> dict[str, np.ndarray]:
    """Random tokens, every row full."""
    draw = np.random.default_rng(0)
    lengths = {"encoder": options.length, "decoder": options.length // 2}
    shapes = {side: (options.rows, length) for side, length in lengths.items()}
    tokens = {s: draw.integers(3, vocabulary, shape, np.int32) for s, shape in shapes.items()}
    batch: dict[str, np.ndarray] = {
        "encoder_input_tokens": tokens["encoder"],
        "decoder_input_tokens": tokens["decoder"],
        "decoder_target_tokens": tokens["decoder"],
        "decoder_loss_weights": np.ones(shapes["decoder"], np.float32),
    }
    for side, (rows, length) in shapes.items():
        batch[f"{side}_segment_ids"] = np.ones((rows, length), np.int32)
        batch[f"{side}_positions"] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return batch


def _written(run: Path, step: int) -> bool:
    return (run / "checkpoints" / str(step)).exists()


def _collect(found: dict[str, list[float]], **seconds: list[float]) -> None:
    for name, values in seconds.items():
        found[name] += values


def _list(seconds: list[float]) -> str:
    return " ".join(f"{s:.2f}" for s in seconds) or "no step"


def _restore(options: argparse.Namespace, state: Any, checkpoints: Any, abstract: Any) -> None:
    """Reads the newest checkpoint and compares it with the state."""
    import jax

    newest = options.folder / RUN / "checkpoints" / str(options.saves + 1)
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    began = time.perf_counter()
    restored = checkpoints.restore(abstract)
    seconds = time.perf_counter() - began
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, state, restored[0])
    print(f"{size / 1e9:.3f} GB on disk; restored in {seconds:.1f} s, every bit equal")
    checkpoints.close()
