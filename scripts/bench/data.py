"""Reading a mixture: time to the first batch, non-padding tokens a second, packing, memory, size of the position.

`python -m scripts.bench data` writes stand-ins for all data sets of T0++ (right columns, believable lengths, random
words of the local data), trains a SentencePiece vocabulary on the prompted text, then reads the 464-task mixture in a
fresh process. `--local` reads the real data of `T0JAX_DATA_DIR` instead, as far as the mixture's data sets are there.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config

TEXT_FOR_VOCABULARY = 6_000_000  # characters


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints its table."""
    options = _parse(argv)
    if options.measure:
        print(json.dumps(_measure(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        environment = _prepare(options, folder)
        if not Path(environment["T0JAX_CACHE_DIR"]).is_dir():
            _print(
                "first run on this data (converts it to Arrow)",
                _in_fresh_process(argv, environment),
            )
        _print("later runs", _in_fresh_process(argv, environment))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts.bench data", description=__doc__)
    parser.add_argument("--mixture", default="t0++_train", help="a mixture of tasks.t0")
    parser.add_argument(
        "--local", action="store_true", help="read T0JAX_DATA_DIR, not generated data"
    )
    parser.add_argument("--folder", default="", help="keep data and vocabulary here between runs")
    parser.add_argument("--rows", type=int, default=1000, help="generated rows of each data set")
    parser.add_argument("--pieces", type=int, default=32_000, help="size of the vocabulary")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to read")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pack-rows", type=int, default=config.Data.pack_rows)
    parser.add_argument(
        "--profile", action="store_true", help="print where the time goes (workers: 0)"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _data(options: argparse.Namespace) -> config.Data:
    return config.Data(
        mixture=options.mixture,
        batch_size=options.batch_size,
        workers=0 if options.profile else options.workers,
        pack_rows=options.pack_rows,
        available_only=options.local,
    )


# --------------------------------------------------------------------------------------- preparing


def _prepare(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Data and vocabulary in `folder`; the environment that leads a process to them.

    The user's cache gives the prompts alone. What preparing caches is apart from the measured runs' cache, so that
    the first of those still converts the data.
    """
    environment = {"T0JAX_VOCABULARY": str(folder / f"pieces_{options.pieces}.model")} | _prompts()
    os.environ["T0JAX_CACHE_DIR"] = str(folder / "preparing")
    if not options.local:
        environment["T0JAX_DATA_DIR"] = str(folder / "data")
        if not (folder / "data").is_dir():
            _note("writing data sets")
            _write_data(folder, options.rows)
    os.environ.update(environment)
    if not Path(environment["T0JAX_VOCABULARY"]).is_file():
        _note(f"training a vocabulary of {options.pieces} pieces")
        _train_vocabulary(options, Path(environment["T0JAX_VOCABULARY"]))
    return environment | {"T0JAX_CACHE_DIR": str(folder / "cache")}


def _prompts() -> dict[str, str]:
    """Where the prompts are, for a process whose cache folder is another."""
    from t0jax.data.templates import prompts_dir

    return {"T0JAX_PROMPTS_DIR": str(prompts_dir())}


def _write_data(folder: Path, rows: int) -> None:
    from scripts.bench import synthetic

    writer = synthetic.Writer(*synthetic.lexicon(_local_texts()))
    part = folder / "data.part"
    synthetic.write(part, writer, rows)
    part.rename(folder / "data")


def _local_texts() -> Iterator[str]:
    """Strings of the local data sets, if there are any."""
    root = os.environ.get("T0JAX_DATA_DIR", "")
    for path in sorted(Path(root).rglob("*.jsonl")) if root else ():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield from (value for value in json.loads(line).values() if isinstance(value, str))


def _train_vocabulary(options: argparse.Namespace, path: Path) -> None:
    from t0jax.data.loader import mixture_texts
    from t0jax.data.vocabulary import VocabularyError, train_sentencepiece

    texts, length = [], 0
    for text in mixture_texts(_data(options)):
        texts.append(text)
        length += len(text)
        if length > TEXT_FOR_VOCABULARY:
            break
    for size in itertools.takewhile(lambda n: n >= 1000, (options.pieces >> i for i in range(9))):
        try:
            train_sentencepiece(texts, path, size)
            return
        except VocabularyError as error:
            _note(str(error))
    raise SystemExit("no vocabulary could be trained on this text")


# --------------------------------------------------------------------------------------- measuring


def _in_fresh_process(argv: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.bench", "data", *argv, "--measure"]
    started = {"T0JAX_BENCH_STARTED": str(time.time())}
    run = subprocess.run(
        command, env=os.environ | environment | started, stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    data = _data(options)
    from t0jax.data.loader import IndexLoader, make_loader
    from t0jax.data.registry import find_tasks
    from t0jax.data.vocabulary import Pieces

    begun = float(os.environ["T0JAX_BENCH_STARTED"])
    find_tasks(data)  # imports TensorFlow and seqio, registers the tasks
    imported = time.time()
    with make_loader(data) as loader:
        assert isinstance(loader, IndexLoader)
        next(loader)
        first = time.time()
        reading = _read_profiled if options.profile else _read
        counts = reading(loader, options.seconds)
        taken = time.time() - first
        resident = sum(_memory(pid, "VmHWM") for pid in _family())
        own = sum(_memory(pid, "RssAnon") for pid in _family())
        position = len(json.dumps(loader.state()))
        tasks = len(loader.tasks)
    return {
        "tasks": tasks,
        "vocabulary": Pieces(os.environ["T0JAX_VOCABULARY"]).size,
        "import_s": imported - begun,
        "first_batch_s": first - imported,
        "start_to_first_batch_s": first - begun,
        "tokens_per_s": (counts["inputs"] + counts["targets"]) / taken,
        "input_tokens_per_s": counts["inputs"] / taken,
        "batches_per_s": counts["batches"] / taken,
        "fuller_side_filled": counts["full_rows"] / counts["rows"],
        "inputs_filled": counts["inputs"] / counts["input_cells"],
        "targets_filled": counts["targets"] / counts["target_cells"],
        "peak_memory_gb": resident / 2**30,
        "memory_without_files_gb": own / 2**30,
        "position_bytes": position,
    }


def _read(loader: Iterator[Any], seconds: float) -> Counter[str]:
    """Reads for some seconds: non-padding tokens and all cells of inputs and of targets, and batches.

    `full_rows` sums the share filled of each row's fuller side: a row whose targets are full can take no more inputs.
    """
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        batch = next(loader)
        inputs, targets = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
        counts.update(inputs=int((inputs > 0).sum()), targets=int((targets > 0).sum()))
        counts.update(input_cells=inputs.size, target_cells=targets.size, batches=1)
        shares = [(ids > 0).mean(axis=1) for ids in (inputs, targets)]
        counts.update(rows=len(inputs), full_rows=float(np.maximum(*shares).sum()))
    return counts


def _read_profiled(loader: Iterator[Any], seconds: float) -> Counter[str]:
    import cProfile
    import pstats

    profile = cProfile.Profile()
    result = profile.runcall(_read, loader, seconds)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    return result


def _family() -> list[int]:
    """This process and its children."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return [own, *map(int, children)]


def _memory(pid: int, kind: str) -> int:
    """Bytes of a process: VmHWM is the largest resident size so far, shared and mapped pages included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    return 0


def _print(label: str, result: dict[str, Any]) -> None:
    print(f"\n{label}: {result['tasks']} tasks")
    for name, value in result.items():
        print(f"  {name:24} {value:,.3f}" if isinstance(value, float) else f"  {name:24} {value:,}")


def _note(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr)
