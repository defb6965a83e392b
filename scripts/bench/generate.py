"""Writing beside transformers' `generate`: same random weights, inputs and number of tokens, alternating runs.

`python -m scripts.bench generate --against torch` writes greedily and with 4 beams with a T5 v1.1 small of random
weights that never end a text. transformers gets `--batch` inputs at a time, padded to the longest. Whether the tokens
are the same is counted. Compilation is reported apart. Beside the seconds stand those of processor time: on a machine
that others use, compare these, of one core (`taskset -c 0`).
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints a table for each number of beams."""
    options = _parse(argv)
    import jax

    from t0jax import models

    network = models.build(_architecture(options))
    params = jax.jit(network.init)(jax.random.key(0))
    # A logit of exactly 0 among random ones is never the largest: no text ends, on either side.
    params["lm_head"] = params["lm_head"].at[:, network.config.eos_token_id].set(0.0)
    inputs = _inputs(options, network.config.vocab_size)
    model = _torch_model(params, network.config) if options.against == "torch" else None
    print(
        f"{len(inputs)} inputs of {min(map(len, inputs))} to {max(map(len, inputs))} tokens, ",
        end="",
    )
    print(f"{options.new_tokens} new tokens each, {_machine()}")
    for beams in options.beams:
        methods = {"t0jax": _writer(network, params, inputs, options, beams)}
        print(
            f"{beams} beams: first run {_seconds(methods['t0jax'])[0][0]:.1f} s, compiling included"
        )
        if model is not None:
            methods["transformers"] = _torch_writer(model, inputs, options, beams)
        _report(*_alternate(methods, options.repeats), len(inputs) * options.new_tokens)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts.bench generate", description=__doc__)
    parser.add_argument("--against", choices=["torch", "nothing"], default="nothing")
    parser.add_argument("--inputs", type=int, default=24)
    parser.add_argument("--longest", type=int, default=120, help="tokens of the longest input")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batch", type=int, default=24, help="inputs of a call of transformers'")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    return parser.parse_args(argv)


def _architecture(options: argparse.Namespace) -> config.Model:
    """T5 v1.1 small, or a narrower model of its proportions."""
    width = options.d_model
    heads = max(1, round(6 * width / 512))
    return config.Model(d_model=width, d_ff=2 * width, num_heads=heads, num_layers=options.layers)


def _inputs(options: argparse.Namespace, vocabulary: int) -> list[list[int]]:
    """Random token ids of ragged lengths, ended by EOS."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(options.longest // 6, options.longest, options.inputs)
    return [[*draw.integers(3, vocabulary, length).tolist(), 1] for length in lengths]


# ----------------------------------------------------------------------------------------------- methods


def _writer(
    network: Any, params: Any, inputs: Sequence[Any], options: argparse.Namespace, beams: int
) -> Callable[[], list[np.ndarray]]:
    from t0jax import sharding
    from t0jax.generate import Generator, Settings

    settings = Settings(num_beams=beams, max_new_tokens=options.new_tokens)
    generator = Generator(network, sharding.make_mesh(config.Mesh()), settings)
    return lambda: [one.tokens for one in generator(params, inputs)]


def _torch_model(params: Any, architecture: config.Model) -> Any:
    import transformers

    from t0jax import convert

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "hf"
        convert.save_params(params, architecture, folder)
        return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


def _torch_writer(
    model: Any, inputs: Sequence[Any], options: argparse.Namespace, beams: int
) -> Callable[[], list[np.ndarray]]:
    settings = {"num_beams": beams, "max_new_tokens": options.new_tokens, "do_sample": False}
    return lambda: [
        row
        for start in range(0, len(inputs), options.batch)
        for row in _torch_batch(model, inputs[start : start + options.batch], settings)
    ]


def _torch_batch(model: Any, inputs: Sequence[Any], settings: dict[str, Any]) -> Any:
    import torch

    rows = [torch.tensor(row) for row in inputs]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.inference_mode():
        found = model.generate(input_ids=ids, attention_mask=(ids > 0).long(), **settings)
    return found[:, 1:].numpy()


# --------------------------------------------------------------------------------------------- measuring


def _seconds(run: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds on the clock and of processor time, and what `run` found."""
    clock, processor = time.perf_counter(), time.process_time()
    found = run()
    return (time.perf_counter() - clock, time.process_time() - processor), found


def _alternate(
    methods: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, Any]]:
    """Seconds of each method's runs, taken in turn, and what the last run found."""
    timings: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    found = {}
    for _ in range(repeats):
        for name, run in methods.items():
            seconds, found[name] = _seconds(run)
            timings[name].append(seconds)
    return timings, found


def _report(
    timings: dict[str, list[tuple[float, float]]], found: dict[str, Any], tokens: int
) -> None:
    medians = {
        name: [statistics.median(kind) for kind in zip(*runs, strict=True)]
        for name, runs in timings.items()
    }
    for name, (clock, processor) in medians.items():
        runs = " ".join(f"{seconds:.2f}" for seconds, _ in timings[name])
        print(
            f"  {name:12} {clock:7.2f} s  {tokens / clock:8.0f} tokens/s  "
            f"(processor {processor:.2f} s; runs: {runs})"
        )
    if len(medians) > 1:
        clock, processor = (b / a for a, b in zip(*medians.values(), strict=True))
        same = sum(a.tolist() == b.tolist() for a, b in zip(*found.values(), strict=True))
        count = len(next(iter(found.values())))
        print(
            f"  ratio of medians {clock:.2f}, of processor time {processor:.2f}; "
            f"{same}/{count} texts are the same tokens"
        )


def _machine() -> str:
    return f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
