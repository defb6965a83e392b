"""Rank classification beside t-zero's method in torch: same random weights, same rows, alternating runs.

`T0JAX_DATA_DIR=... python -m scripts.bench evaluate --against torch` scores QuAIL, DREAM and CB rows in equal shares
with a T5 v1.1 small of random weights. t-zero's method is its `run_eval.py`: the input repeated once a choice, batches
of 8 examples padded to the longest, the encoder run for each choice. Compilation is reported apart.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config

PROMPTS = (
    ("quail", None, "description_context_question_answer_text"),
    ("dream", None, "baseline"),
    ("super_glue", "cb", "GPT-3 style"),
)
SPLIT = "validation"


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints its table."""
    options = _parse(argv)
    import jax

    from t0jax import models, sharding
    from t0jax.scoring import Scorer

    network = models.build(_architecture(options))
    params = jax.jit(network.init)(jax.random.key(0))
    scorer = Scorer(network, sharding.make_mesh(config.Mesh()), config.Evaluate())
    with tempfile.TemporaryDirectory() as temporary:
        examples = _examples(options, Path(temporary))
        methods = {"t0jax": lambda: [scores for _, scores in scorer.score(params, examples)]}
        compiling = _seconds(methods["t0jax"])[0]
        if options.against == "torch":
            folder = Path(temporary) / "hf"
            methods["t-zero in torch"] = _torch_method(params, network.config, folder, examples)
        timings, found = _alternate(methods, options.repeats)
    print(f"{len(examples)} examples, {sum(len(e.pairs) for e in examples)} choices, {_machine()}")
    print(f"first run with {len(scorer.compiled)} shapes compiled: {compiling:.1f} s")
    for name, seconds in timings.items():
        middle = statistics.median(seconds)
        runs = " ".join(f"{s:.2f}" for s in seconds)
        print(
            f"{name:16} {middle:8.2f} s  {len(examples) / middle:8.1f} examples/s  (runs: {runs})"
        )
    if len(timings) > 1:
        _compare(timings, found)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts.bench evaluate", description=__doc__)
    parser.add_argument("--against", choices=["torch", "nothing"], default="nothing")
    parser.add_argument("--rows", type=int, default=40, help="rows of each data set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--pieces", type=int, default=8_000, help="vocabulary to train on the rows")
    return parser.parse_args(argv)


def _architecture(options: argparse.Namespace) -> config.Model:
    """T5 v1.1 small, or a narrower model of its proportions."""
    width = options.d_model
    heads = max(1, round(6 * width / 512))
    return config.Model(d_model=width, d_ff=2 * width, num_heads=heads, num_layers=options.layers)


def _examples(options: argparse.Namespace, folder: Path) -> list[Any]:
    from t0jax import evaluate
    from t0jax.data.rows import DatasetSpec, PromptedRows
    from t0jax.data.vocabulary import Pieces, train_sentencepiece

    tasks = [
        evaluate.RankTask(dataset, PromptedRows(DatasetSpec(dataset, subset), SPLIT, prompt))
        for dataset, subset, prompt in PROMPTS
    ]
    text = (task.rows[row].inputs for task in tasks for row in range(len(task.rows)))
    pieces = Pieces(train_sentencepiece(text, folder / "pieces.model", options.pieces))
    encoder = evaluate.Encoder(pieces, config.Evaluate())
    return [
        encoder.example(number, task, row, task.rows[row])
        for number, task in enumerate(tasks)
        for row in range(min(options.rows, len(task.rows)))
    ]


# ---------------------------------------------------------------------------------------- t-zero's method


def _torch_method(
    params: Any, architecture: config.Model, folder: Path, examples: Sequence[Any]
) -> Callable[[], list[np.ndarray]]:
    import transformers

    from t0jax import convert

    convert.save_params(params, architecture, folder)
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    _score_batch(model, examples[:1])
    return lambda: [
        scores
        for start in range(0, len(examples), 8)
        for scores in _score_batch(model, examples[start : start + 8])
    ]


def _score_batch(model: Any, examples: Sequence[Any]) -> list[np.ndarray]:
    """Sums of target log-probabilities of a few examples, every (input, choice) a row of one padded batch."""
    import torch

    pairs = [pair for example in examples for pair in example.pairs]
    inputs, inputs_mask = _pad([tokens for tokens, _ in pairs])
    targets, targets_mask = _pad([tokens for _, tokens in pairs])
    with torch.inference_mode():
        logits = model(input_ids=inputs, attention_mask=inputs_mask, labels=targets).logits
        log_probs = torch.log_softmax(logits, dim=-1).gather(-1, targets[..., None])[..., 0]
        sums = (log_probs * targets_mask).sum(dim=-1).numpy()
    ends = np.cumsum([len(example.pairs) for example in examples])
    return np.split(sums, ends[:-1])


def _pad(texts: Sequence[np.ndarray]) -> tuple[Any, Any]:
    import torch

    rows = [torch.tensor(text, dtype=torch.long) for text in texts]
    masks = [torch.ones(len(text), dtype=torch.long) for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(masks, batch_first=True)


# ---------------------------------------------------------------------------------------- measuring


def _seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def _alternate(
    methods: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each method's runs, taken in turn, and what the last run found."""
    timings: dict[str, list[float]] = {name: [] for name in methods}
    found = {}
    for _ in range(repeats):
        for name, run in methods.items():
            seconds, found[name] = _seconds(run)
            timings[name].append(seconds)
    return timings, found


def _compare(timings: dict[str, list[float]], found: dict[str, Any]) -> None:
    (_, ours), (_, theirs) = timings.items()
    ratio = statistics.median(theirs) / statistics.median(ours)
    a, b = found.values()
    worst = max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
    same = sum(int(np.argmax(x) == np.argmax(y)) for x, y in zip(a, b, strict=True))
    print(
        f"ratio of medians {ratio:.2f}; {same}/{len(a)} predictions equal, scores within {worst:.1e}"
    )


def _machine() -> str:
    import os
    import platform

    return f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
