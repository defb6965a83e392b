"""What a run reports: notes, throughput, model FLOPs and where log lines go."""

import contextlib
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from t0jax import config as config_lib

PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 FLOP/s of one JAX device, by `device_kind`, from the vendors' data sheets."""

_START = time.monotonic()


def note(message: str) -> None:
    """One line on what is happening, with the seconds since the program began; first process only."""
    if jax.process_index() == 0:
        print(f"[{time.monotonic() - _START:7.1f} s] {message}", flush=True)


def forward_flops(model: config_lib.Model, inputs: int, targets: int) -> float:
    """Multiply-adds x 2 of one row's forward pass, padding included.

    An encoder-decoder's matrix products with `S` inputs and `T` targets, causal halves not discounted; agrees
    with XLA's count of an unrolled T5-base within a few percent (tested).
    """
    attention = model.d_model * model.num_heads * model.d_kv
    heads = model.num_heads * model.d_kv
    mlp = (3 if model.feed_forward_proj.startswith("gated") else 2) * model.d_model * model.d_ff
    encoder = 2 * (4 * attention + mlp) * inputs + 4 * inputs**2 * heads
    decoder = (
        2 * (6 * attention + mlp) * targets
        + 4 * attention * inputs
        + 4 * targets * (targets + inputs) * heads
    )
    head = 2 * model.d_model * model.vocab_size * targets
    return model.num_layers * encoder + model.decoder_layers * decoder + head


def train_flops(model: config_lib.Model, inputs: int, targets: int) -> float:
    """Of one row's forward and backward pass; recomputation by `remat` does not count."""
    return 3 * forward_flops(model, inputs, targets)


def encoder_flops(model: config_lib.Model, length: int) -> float:
    """Multiply-adds x 2 of a DeBERTa row's forward pass, padding included, heads and pooler not.

    Besides attention's own two products each query meets every relative embedding that occurs, and so does each key:
    2 L - 1 of them, or all 2 * `position_buckets` where distances share some.
    """
    d, distances = model.d_model, min(2 * length - 1, 2 * model.position_buckets)
    linear = 2 * (4 * d * d + 2 * d * model.d_ff) * length
    return model.num_layers * (linear + 4 * length**2 * d + 4 * length * distances * d)


def step_flops(model: config_lib.Model, batch: Mapping[str, np.ndarray]) -> float:
    """Of the forward and backward pass of a batch's rows, padding included."""
    rows, inputs = batch["encoder_input_tokens"].shape
    if model.architecture == "deberta":
        return 3 * rows * encoder_flops(model, inputs)
    return rows * train_flops(model, inputs, batch["decoder_input_tokens"].shape[1])


def peak_flops() -> float | None:
    """bfloat16 FLOP/s of all devices of the run, or None on a device that the table lacks."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return peak * jax.device_count() if peak else None


class Sink(Protocol):
    """Where the numbers of a run go."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object a line, by step."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keeps the rows up to `resume_step`, so that a resumed run's file reads as if never stopped."""
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= resume_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise config_lib.UserError(
                f"{self._file.name} cannot be written ({error}); the checkpoints beside it are as they were. Make room "
                "or fix the folder's permissions and start the same command again"
            ) from error

    def close(self) -> None:
        """What could not be written was raised by `write`; here it is tried once more, without a word."""
        with contextlib.suppress(OSError):
            self._file.close()


def _step_of(line: str) -> float:
    """The step of a row; infinity for a line that a kill cut short, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class TensorBoard:
    """Event files through tensorboardX (TensorFlow no longer brings tensorboard)."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases; needs `pip install t0jax[wandb]`."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  an extra

        # One id a folder, so that a resumed run goes on in the same place.
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=project, dir=str(folder), config=dict(config), id=name, resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def check_sinks(config: config_lib.Config) -> None:
    """Raises ConfigError when a sink that is asked for is not installed."""
    if config.train.wandb_project and importlib.util.find_spec("wandb") is None:
        raise config_lib.ConfigError(
            "train.wandb_project is set but wandb is not installed: pip install 't0jax[wandb]'"
        )


def open_sinks(config: config_lib.Config, run_dir: Path, resume_step: int) -> list[Sink]:
    """The sinks of a run, on the first process; none on the others."""
    if jax.process_index() != 0:
        return []
    sinks: list[Sink] = [JsonLines(run_dir / "metrics.jsonl", resume_step)]
    if config.train.tensorboard:
        sinks.append(TensorBoard(run_dir / "tensorboard", resume_step))
    if config.train.wandb_project:
        project = config.train.wandb_project
        sinks.append(Wandb(project, run_dir, config_lib.to_dict(config)))
    return sinks


class Meter:
    """Rates between two log lines."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._peak = peak_flops()
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted: called after compiling, evaluating and saving, which are not steps."""
        self._since = time.monotonic()
        self._counted: dict[str, float] = dict.fromkeys(("steps", "flops", "tokens"), 0.0)

    def add(self, flops: float, tokens: float) -> None:
        """One step's model FLOPs and non-padding tokens, inputs and targets together."""
        for name, value in (("steps", 1), ("flops", flops), ("tokens", tokens)):
            self._counted[name] += value

    def rates(self, step: int) -> dict[str, float]:
        """Per second since the last call, MFU where the device's peak is known, and the seconds left."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        counted = self._counted
        rates = {
            "steps_per_s": counted["steps"] / seconds,
            "tokens_per_s": counted["tokens"] / seconds,
        }
        if self._peak:
            rates["mfu"] = counted["flops"] / seconds / self._peak
        if counted["steps"]:
            rates["eta_s"] = (self._steps - step) * seconds / counted["steps"]
        self.restart()
        return rates


def log_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """`step 120/600  loss 1.234  lr 1.0e-03 ...`: the one line a log step prints.

    `cut` is the share of examples whose text was too long and had to be shortened.
    """
    parts = [f"step {step}/{steps}", f"loss {values['loss']:.4f}", f"acc {values['accuracy']:.3f}"]
    if "ul" in values:
        parts.insert(2, f"ul {values['ul']:.3f}")
    parts += [f"lr {values['learning_rate']:.1e}", f"gnorm {values['grad_norm']:.2f}"]
    parts += [f"{values['examples_per_s']:.0f} ex/s", f"{values['tokens_per_s']:.0f} tok/s"]
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    if "eta_s" in values:
        parts.append(f"ETA {clock(values['eta_s'])}")
    if values.get("cut"):
        parts.append(f"cut {values['cut']:.1%}")
    if values.get("skipped"):
        parts.append(f"skipped {values['skipped']:.0f}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
