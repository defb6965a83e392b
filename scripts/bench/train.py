"""A training step beside torch + transformers + Adafactor: same weights, same examples, alternating runs.

    T0JAX_DATA_DIR=... python -m scripts.bench train --config configs/t0_local.yaml --against torch

Two comparisons, both in non-padding tokens a second (inputs and targets) of forward, backward and update:

mixture   examples of the configured mixture; ours packed as the trainer packs them, torch's in batches of
          `--torch_batch` examples in the same order, padded to the longest as transformers' collator does
padded    one example a row, every row full: the same arrays for both

Dropout is off, so that the losses of the first pass over the batches can be compared; compilation and each method's
first pass are not timed.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from scripts.bench.stepping import Pass, dense, machine, our_pass, torch_pass
from t0jax import config, memory, models, train
from t0jax.data import loader as loader_lib

OPTIONS: dict[str, dict[str, Any]] = {
    "against": {
        "type": str,
        "default": "",
        "help": "`torch` for the comparison, nothing for ours alone",
    },
    "batches": {"type": int, "default": 3, "help": "batches of a pass"},
    "repeats": {"type": int, "default": 5, "help": "timed passes of each method, in turns"},
    "torch_batch": {"type": int, "default": 8, "help": "examples a torch batch holds"},
    "padded_rows": {"type": int, "default": 8, "help": "rows of the padded comparison"},
}


def main(argv: Sequence[str]) -> None:
    """Runs both comparisons and prints their tables."""
    settings, options = config.parse(argv, __doc__ or "", **OPTIONS)
    memory.keep_pages()
    model = dataclasses.replace(settings.model, dropout_rate=0.0)
    settings = dataclasses.replace(settings, model=model)
    train.set_environment(settings)
    train.train_vocabulary(settings)
    loader = loader_lib.make_loader(settings.data)
    packed = [next(loader) for _ in range(options.batches)]
    loader.close()
    examples = [example for batch in packed for example in unpack(batch)]
    cut = range(0, len(examples), options.torch_batch)
    longest = [pad(examples[i : i + options.torch_batch]) for i in cut]
    size = sum(x.size for x in jax.tree.leaves(models.build(model).shapes))
    print(f"{size / 1e6:.1f} M parameters, {model.dtype}, {len(examples)} examples, {machine()}")
    compare("mixture", settings, options, packed, longest)
    full = [dense(settings, options.padded_rows, seed) for seed in range(options.batches)]
    compare("padded", settings, options, full, full)


def unpack(batch: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The (inputs, targets) of every segment, row by row."""
    found = []
    for row in range(len(batch["decoder_segment_ids"])):
        for segment in range(1, int(batch["decoder_segment_ids"][row].max()) + 1):
            inputs = batch["encoder_input_tokens"][row][
                batch["encoder_segment_ids"][row] == segment
            ]
            targets = batch["decoder_target_tokens"][row][
                batch["decoder_segment_ids"][row] == segment
            ]
            found.append((inputs, targets))
    return found


def pad(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """One example a row, both sides padded to the longest."""
    batch: dict[str, np.ndarray] = {}
    for side, tokens, column in (
        ("encoder", "encoder_input_tokens", 0),
        ("decoder", "decoder_target_tokens", 1),
    ):
        lengths = np.array([len(example[column]) for example in examples])
        place = np.arange(lengths.max())[None] < lengths[:, None]
        batch[f"{side}_segment_ids"] = place.astype(np.int32)
        batch[tokens] = np.zeros(place.shape, np.int32)
        batch[tokens][place] = np.concatenate([example[column] for example in examples])
    return batch


def count_tokens(batches: Sequence[dict[str, np.ndarray]]) -> int:
    sides = ("encoder_segment_ids", "decoder_segment_ids")
    return sum(int(np.count_nonzero(batch[side])) for batch in batches for side in sides)


def compare(
    name: str, settings: config.Config, options: Any, ours: list[Any], theirs: list[Any]
) -> None:
    """Times both methods over their batches in turns and prints medians and the ratio."""
    network = models.build(settings.model)
    params = jax.jit(network.init)(jax.random.key(settings.train.seed))
    passes: dict[str, tuple[Pass, int]] = {}
    if options.against == "torch":
        run = torch_pass(settings, params, theirs, tuned=False)
        passes["torch"] = (run, count_tokens(theirs))
    passes["t0jax"] = (our_pass(settings, params, ours), count_tokens(ours))
    losses = {method: run() for method, (run, _) in passes.items()}
    seconds: dict[str, list[float]] = {method: [] for method in passes}
    for _ in range(options.repeats):
        for method, (run, _) in passes.items():
            began = time.perf_counter()
            run()
            seconds[method].append(time.perf_counter() - began)
    rates = {}
    for method, (_, tokens) in passes.items():
        rates[method] = tokens / statistics.median(seconds[method])
        runs = " ".join(f"{s:.2f}" for s in seconds[method])
        print(
            f"{name:8} {method:6} {rates[method]:10.0f} tokens/s  first loss {losses[method][0]:.4f}  (s: {runs})"
        )
    if len(rates) > 1:
        print(f"{name:8} ratio  {rates['t0jax'] / rates['torch']:.2f}")
