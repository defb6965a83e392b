"""One training step, ours or torch's, as the benches time it; needs no TensorFlow and no data sets.

As a program it measures one setting in a process of its own, so that peak memory is that setting's alone and running
out of memory ends nothing else: `python -m scripts.bench.stepping METHOD JSON`, METHOD `t0jax` or `torch`, JSON the
fields of `Setting`. Prints one line of JSON, a `Measured`.
"""

import dataclasses
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t0jax import config, memory, metrics, models, optim, sharding
from t0jax.step import init_state, make_step

Pass = Callable[[], list[float]]
"""Runs over all batches once; the losses."""

BATCHES = 2
"""Different batches that a measurement runs through in turns."""


@dataclass(frozen=True)
class Setting:
    """One step to measure: the network, full rows, the optimizer."""

    model: dict[str, Any]
    """Fields of `config.Model`."""
    rows: int
    inputs: int
    targets: int
    optimizer: str = "adafactor"
    repeats: int = 3
    steps: int = 4
    """Steps a repeat."""

    def config(self) -> config.Config:
        return config.Config(
            model=config.Model(**self.model),
            data=config.Data(
                input_length=self.inputs, target_length=self.targets, batch_size=self.rows
            ),
            optimizer=config.Optimizer(name=self.optimizer),
        )


@dataclass(frozen=True)
class Measured:
    """Seconds of one step in each repeat; without any, `error` says why."""

    seconds: list[float]
    memory: int = 0
    """Bytes at the peak, of the device where it tells, else of the process."""
    device: str = ""
    peak_flops: float | None = None
    """bfloat16 FLOP/s of the device, where `metrics.PEAK_FLOPS` knows it."""
    first_loss: float = float("nan")
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")


def machine() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"


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


# Ours


def our_pass(settings: config.Config, params: models.Params | None, batches: list[Any]) -> Pass:
    """The trainer's own step over `batches`, from a copy of `params` or random ones."""
    network = models.build(settings.model)
    mesh = sharding.make_mesh(settings.mesh)
    optimizer = optim.make_optimizer(settings.optimizer, settings.train.steps, network.axes)
    if params is not None:
        # Placed as the step leaves them: its second call would compile again otherwise.
        where = sharding.param_shardings(network.axes, network.shapes, mesh)
        params = jax.device_put(jax.tree.map(lambda x: x + 0, params), where)
    state = init_state(settings, network, optimizer, mesh, params)
    step = make_step(settings, network, optimizer, mesh)
    placed = [sharding.place(batch, mesh) for batch in batches]

    def run() -> list[float]:
        nonlocal state
        reports = []
        for batch in placed:
            state, report = step(state, batch)
            reports.append(report["loss"])
        return [float(loss) for loss in jax.device_get(reports)]

    return run


# torch's


def torch_pass(
    settings: config.Config, params: models.Params | None, batches: list[Any], *, tuned: bool
) -> Pass:
    """transformers' T5 over the same examples, from `params` or random ones.

    Args:
        settings: with `model.dtype` bfloat16 it computes under autocast.
        params: ours, written to a Hugging Face folder and read from there.
        batches: as for `our_pass`; of the decoder, targets alone are read.
        tuned: on CUDA where there is one, TF32 products where the dtype is float32, compiled, AdamW fused.

    Raises:
        config.UserError: torch or transformers is missing.
    """
    try:
        import torch
        from transformers import T5ForConditionalGeneration
    except ImportError as error:
        raise config.UserError(f"the comparison needs torch and transformers: {error}") from None
    device = "cuda" if tuned and torch.cuda.is_available() else "cpu"
    if params is None:
        model = T5ForConditionalGeneration(_torch_config(settings.model))
    else:
        from t0jax import convert

        with tempfile.TemporaryDirectory() as folder:
            convert.save_params(params, settings.model, Path(folder) / "hf")
            model = T5ForConditionalGeneration.from_pretrained(Path(folder) / "hf")
    model.to(device).train()
    optimizer = _torch_optimizer(settings.optimizer, model, tuned)
    placed = [
        {name: torch.from_numpy(x).to(device) for name, x in _torch_batch(batch).items()}
        for batch in batches
    ]
    if tuned:
        torch.set_float32_matmul_precision("high")
    forward = torch.compile(model) if tuned else model
    half = torch.autocast(device, torch.bfloat16, enabled=settings.model.dtype == "bfloat16")

    def run() -> list[float]:
        losses = []
        for batch in placed:
            with half:
                loss = forward(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return [float(loss) for loss in losses]

    return run


def _torch_config(model: config.Model) -> Any:
    """The architecture alone; its fields have the same names."""
    from transformers import T5Config

    fields = dataclasses.asdict(model)
    return T5Config(**{name: fields[name] for name in fields if name not in config.COMPUTE_FIELDS})


def _torch_optimizer(optimizer: config.Optimizer, model: Any, tuned: bool) -> Any:
    rate = optimizer.learning_rate
    if optimizer.name == "adamw":
        from torch.optim import AdamW

        betas = (optimizer.beta1, optimizer.beta2)
        return AdamW(model.parameters(), lr=rate, betas=betas, eps=optimizer.epsilon, fused=tuned)
    from transformers.optimization import Adafactor

    return Adafactor(
        model.parameters(), lr=rate, scale_parameter=True, relative_step=False, warmup_init=False
    )


def _torch_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    labels = np.where(batch["decoder_segment_ids"] > 0, batch["decoder_target_tokens"], -100)
    return {
        "input_ids": batch["encoder_input_tokens"].astype(np.int64),
        "attention_mask": batch["encoder_segment_ids"],
        "labels": labels.astype(np.int64),
    }


# A setting in a process of its own


def measure(method: str, setting: Setting) -> Measured:
    """Compiles, warms up and times one setting in this process."""
    settings = setting.config()
    batches = [dense(settings, setting.rows, seed) for seed in range(BATCHES)]
    try:
        if method == "torch":
            run = torch_pass(settings, None, batches, tuned=True)
        else:
            run = our_pass(settings, None, batches)
        first = run()[0]
        run()
        passes = max(1, setting.steps // BATCHES)
        seconds = [_seconds(run, passes) / (passes * BATCHES) for _ in range(setting.repeats)]
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return Measured([], error="out of memory")
    return Measured(seconds, *_device(method), first_loss=first)


def _seconds(run: Pass, passes: int) -> float:
    began = time.perf_counter()
    for _ in range(passes):
        run()
    return time.perf_counter() - began


def _is_out_of_memory(error: Exception) -> bool:
    """XLA says RESOURCE_EXHAUSTED in the text of its one error; torch has a class."""
    exhausted = "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    return exhausted or type(error).__name__ == "OutOfMemoryError"


def _device(method: str) -> tuple[int, str, float | None]:
    """Peak memory, name and peak FLOP/s of what computed."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if method == "torch":
        import torch

        if not torch.cuda.is_available():
            return resident, "cpu", None
        name = torch.cuda.get_device_name()
        return torch.cuda.max_memory_allocated(), name, metrics.PEAK_FLOPS.get(name)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return stats.get("peak_bytes_in_use", resident), device.device_kind, metrics.peak_flops()


def main(argv: Sequence[str]) -> None:
    method, setting = argv
    memory.keep_pages()
    print(json.dumps(dataclasses.asdict(measure(method, Setting(**json.loads(setting))))))


if __name__ == "__main__":
    main(sys.argv[1:])
