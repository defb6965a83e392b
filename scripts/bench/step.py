r"""Training steps on full rows, over batch sizes, remat and attention, beside torch compiled; needs no data.

    python -m scripts.bench step --shape large --batch 8,16,32 --remat none,dots,full --attention xla,cudnn \
        --against torch --output step.json

Every setting runs in a process of its own, over random tokens, one example a row, no padding. A batch that runs out
of memory is said to, and no larger one is tried with the same remat and attention; `--grow` doubles the last batch
until that happens. MFU is the analytic count of `metrics.train_flops` over the device's bfloat16 peak, recomputation
not counted; none on devices that `metrics.PEAK_FLOPS` lacks. torch is transformers' T5 compiled, under autocast where
the dtype is bfloat16, with transformers' Adafactor or the fused AdamW. The best setting of both, by tokens a second,
is then measured again in turns, `--rounds` times.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.bench.stepping import Measured, Setting
from t0jax import config, metrics

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "small": {},
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}  # fmt: skip
"""T5 v1.1's sizes as fields of `config.Model`, and one to try the bench with."""

HEAD = f"{'method':6} {'rows':>5} {'remat':>5} {'attn':>5} {'ms/step':>9} {'tokens/s':>9} {'MFU':>6} {'GB':>6}"


def main(argv: Sequence[str]) -> None:
    """Measures the grid, prints a row a setting as it comes, writes all of it to `--output`."""
    options = parse(argv)
    rows: list[dict[str, Any]] = []
    print(f"{options.shape}, rows of {options.inputs} + {options.targets}, {options.dtype}")
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        for method, base in combinations(options):
            rows += try_batches(method, base, options, cache)
        best = {row["method"]: row for row in sorted(rows, key=lambda row: row["tokens_per_s"])}
        found = {"options": vars(options), "settings": rows, "best": best}
        if len(best) == 2:
            found["against"] = in_turns(best, options.rounds, cache)
    if not best:
        print("no setting fits into memory")
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts.bench step", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="base")
    add("--batch", default="8,16,32", help="rows of a step, rising")
    add("--grow", action="store_true", help="double the last batch until memory ends")
    add("--inputs", type=int, default=512)
    add("--targets", type=int, default=128)
    add("--remat", default="none,dots,full")
    add("--attention", default="xla", help="of xla and cudnn")
    add("--scan", default="true", help="scan_layers: true, false or both")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--optimizer", choices=["adafactor", "adamw"], default="adafactor")
    add("--dropout", type=float, default=0.0)
    add("--against", choices=["torch", "nothing"], default="nothing")
    add("--steps", type=int, default=10, help="timed steps of a repeat")
    add("--repeats", type=int, default=3)
    add("--rounds", type=int, default=2, help="turns of the best settings against each other")
    add("--output", default="", help="JSON file")
    return parser.parse_args(argv)


def combinations(options: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    """What is tried with every batch size; rows are still 0."""
    shape = {**SHAPES[options.shape], "dtype": options.dtype, "dropout_rate": options.dropout}

    def setting(**compute: Any) -> Setting:
        return Setting(
            {**shape, **compute}, 0, options.inputs, options.targets, options.optimizer,
            options.repeats, options.steps,
        )  # fmt: skip

    scans = {"true": [True], "false": [False], "both": [True, False]}[options.scan]
    for attention in options.attention.split(","):
        for remat in options.remat.split(","):
            for scan in scans:
                yield "t0jax", setting(attention=attention, remat=remat, scan_layers=scan)
    if options.against == "torch":
        yield "torch", setting()


def try_batches(
    method: str, base: Setting, options: argparse.Namespace, cache: str
) -> list[dict[str, Any]]:
    """Rising batch sizes until one does not fit; the rows of the table that do."""
    sizes = [int(size) for size in options.batch.split(",")]
    rows = []
    while sizes:
        setting = dataclasses.replace(base, rows=sizes.pop(0))
        measured = run(method, setting, cache)
        print(line(method, setting, measured), flush=True)
        if measured.error:
            break
        rows.append(row(method, setting, measured))
        if options.grow and not sizes:
            sizes.append(2 * setting.rows)
    return rows


def run(method: str, setting: Setting, cache: str) -> Measured:
    """One setting in a process of its own, which finds the programs of earlier ones in `cache`."""
    described = json.dumps(dataclasses.asdict(setting))
    # JAX takes three quarters of a GPU where nothing is said, torch all that it can.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.stepping", method, described],
        env={**memory, **os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return Measured(**json.loads(done.stdout.splitlines()[-1]))
    # -9 is how the kernel ends a process when the host's memory is used up.
    why = "killed" if done.returncode == -9 else _last_error(done.stderr)
    return Measured([], error=why)


def _last_error(stderr: str) -> str:
    """What a traceback ends with; JAX puts a remark on itself after it."""
    lines = [
        line for line in stderr.splitlines() if ": " in line and "Error" in line.split(": ")[0]
    ]
    return lines[-1] if lines else "no word"


def row(method: str, setting: Setting, measured: Measured) -> dict[str, Any]:
    """What the table and the JSON say of one setting."""
    tokens, flops = count(setting)
    seconds = measured.median
    peak = measured.peak_flops
    return {
        "method": method,
        "setting": dataclasses.asdict(setting),
        **dataclasses.asdict(measured),
        "seconds_per_step": seconds,
        "tokens_per_s": tokens / seconds,
        "flops_per_s": flops / seconds,
        "mfu": flops / seconds / peak if peak else None,
    }


def count(setting: Setting) -> tuple[int, float]:
    """Tokens and FLOPs of a step."""
    flops = metrics.train_flops(config.Model(**setting.model), setting.inputs, setting.targets)
    return setting.rows * (setting.inputs + setting.targets), setting.rows * flops


def line(method: str, setting: Setting, measured: Measured) -> str:
    model = setting.model
    scanned = "" if model.get("scan_layers", True) else " unrolled"
    start = (
        f"{method:6} {setting.rows:5d} {model.get('remat', ''):>5} {model.get('attention', ''):>5}"
    )
    if measured.error:
        return f"{start} {measured.error}{scanned}"
    found = row(method, setting, measured)
    mfu = "-" if found["mfu"] is None else f"{found['mfu']:.1%}"
    return (
        f"{start} {1e3 * measured.median:9.1f} {found['tokens_per_s']:9.0f} {mfu:>6} "
        f"{measured.memory / 1e9:6.2f}{scanned}"
    )


def in_turns(best: dict[str, dict[str, Any]], rounds: int, cache: str) -> dict[str, Any]:
    """Ratio of tokens a second of both methods' best settings, measured in turns."""
    settings = {method: Setting(**found["setting"]) for method, found in best.items()}
    rates: dict[str, list[float]] = {method: [] for method in settings}
    for _ in range(rounds):
        for method, setting in settings.items():
            measured = run(method, setting, cache)
            if measured.error:
                raise config.UserError(f"{method} ran before and now fails: {measured.error}")
            rates[method].append(count(setting)[0] / measured.median)
    ratio = statistics.median(rates["t0jax"]) / statistics.median(rates["torch"])
    for method, setting in settings.items():
        runs = " ".join(f"{rate:.0f}" for rate in rates[method])
        print(f"best {method:6} {setting.rows:4d} rows: {runs} tokens/s")
    print(f"ratio t0jax / torch {ratio:.2f}, on {best['t0jax']['device']}")
    return {"tokens_per_s": rates, "ratio": ratio}
