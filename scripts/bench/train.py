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
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t0jax import config, convert, models, optim, sharding, train
from t0jax.data import loader as loader_lib
from t0jax.step import init_state, make_step

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

Pass = Callable[[], list[float]]
"""Runs over all batches once; the losses."""


def main(argv: Sequence[str]) -> None:
    """Runs both comparisons and prints their tables."""
    settings, options = config.parse(argv, __doc__ or "", **OPTIONS)
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


def machine() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"


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


def dense(settings: config.Config, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random tokens without padding, in the layout of a packed batch with one segment a row."""
    rng = np.random.default_rng(seed)
    lengths = {"encoder": settings.data.input_length, "decoder": settings.data.target_length}
    batch = {f"{side}_segment_ids": np.ones((rows, n), np.int32) for side, n in lengths.items()}
    tokens = {
        side: rng.integers(3, settings.model.vocab_size, (rows, n)).astype(np.int32)
        for side, n in lengths.items()
    }
    batch["encoder_input_tokens"], batch["decoder_target_tokens"] = tokens.values()
    batch["decoder_input_tokens"] = np.pad(tokens["decoder"][:, :-1], ((0, 0), (1, 0)))
    batch["decoder_loss_weights"] = np.ones_like(tokens["decoder"], np.float32)
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
        passes["torch"] = (torch_pass(settings, params, theirs), count_tokens(theirs))
    passes["t0jax"] = (our_pass(settings, network, params, ours), count_tokens(ours))
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


def our_pass(
    settings: config.Config, network: models.Network, params: Any, batches: list[Any]
) -> Pass:
    """The trainer's own step over `batches`."""
    mesh = sharding.make_mesh(settings.mesh)
    optimizer = optim.make_optimizer(settings.optimizer, settings.train.steps, network.axes)
    copy = jax.tree.map(lambda x: x + 0, params)
    state = init_state(settings, network, optimizer, mesh, copy)
    step = make_step(settings, network, optimizer, mesh)
    placed = [sharding.place(batch, mesh) for batch in batches]

    def run() -> list[float]:
        nonlocal state
        reports = []
        for batch in placed:
            state, report = step(state, batch)
            reports.append(report["loss"])
        return [float(loss) for loss in reports]

    return run


def torch_pass(settings: config.Config, params: Any, batches: list[Any]) -> Pass:
    """transformers' T5 and Adafactor over the same examples."""
    import torch
    from transformers import T5ForConditionalGeneration
    from transformers.optimization import Adafactor

    with tempfile.TemporaryDirectory() as folder:
        convert.save_params(params, settings.model, Path(folder) / "hf")
        model = T5ForConditionalGeneration.from_pretrained(Path(folder) / "hf")
    model.train()
    rate = settings.optimizer.learning_rate
    optimizer = Adafactor(
        model.parameters(), lr=rate, scale_parameter=True, relative_step=False, warmup_init=False
    )
    placed = [
        {
            "input_ids": torch.tensor(batch["encoder_input_tokens"]).long(),
            "attention_mask": torch.tensor(batch["encoder_segment_ids"]),
            "labels": torch.tensor(
                np.where(batch["decoder_segment_ids"] > 0, batch["decoder_target_tokens"], -100)
            ).long(),
        }
        for batch in batches
    ]

    def run() -> list[float]:
        losses = []
        for batch in placed:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    return run
