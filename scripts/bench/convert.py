"""Host memory of reading, making, restoring and exporting a model over the devices of this machine.

    JAX_NUM_CPU_DEVICES=8 python -m scripts.bench convert --size large --folder DIR

Makes a Hugging Face directory of random weights with the shapes of T5 v1.1 `--size`, or DeBERTa-v3 base (kept in
`--folder` for the next time), then does each of `--jobs` in a fresh process (with `--processes 2`, in two that share
the model):

import   the directory into shards: `convert.load_params`
init     random weights: the trainer's `init_state`, with Adafactor's state
save     as import, then an orbax checkpoint of the parameters
restore  that checkpoint into shards
export   as import, then a directory in transformers' layout: `convert.save_params`

On fake CPU devices what the devices hold is this host's memory. So the share that must be resident is the parameters'
bytes on this process's devices, replicas included; `peak` is the largest anonymous memory above what the process held
when JAX was ready, `high water` the system's own mark, imports and pages of mapped files included.
"""

import argparse
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config

SIZES = {
    "small": config.Model(d_model=512, d_ff=1024, num_heads=6, num_layers=8),
    "base": config.Model(d_model=768, d_ff=2048, num_heads=12, num_layers=12),
    "large": config.Model(d_model=1024, d_ff=2816, num_heads=16, num_layers=24),
    "xl": config.Model(d_model=2048, d_ff=5120, num_heads=32, num_layers=24),
    "deberta-base": config.Model(
        architecture="deberta",
        vocab_size=128100,
        d_model=768,
        d_ff=3072,
        num_heads=12,
        num_layers=12,
        layer_norm_epsilon=1e-7,
    ),
}
JOBS = ("import", "init", "save", "restore", "export")


def main(argv: Sequence[str]) -> None:
    """Prints one line a job and process."""
    options = _parse(argv)
    if options.child:
        return _child(options)
    _make_directory(options)
    for job in options.jobs:
        for line in _run(job, options):
            print(json.dumps(line) if options.json else _report(job, line), flush=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts.bench convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="room for 3 times the model")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--mesh", default="1,-1,1", help="sizes of data, fsdp and model")
    parser.add_argument("--processes", type=int, default=1, help="that share the devices")
    parser.add_argument("--devices", type=int, default=8, help="CPU devices of all processes")
    parser.add_argument("--json", action="store_true", help="numbers in bytes and seconds")
    parser.add_argument("--child", choices=JOBS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# ----------------------------------------------------------------------------------------------------------------------
# The directory


def _make_directory(options: argparse.Namespace) -> None:
    """Random float32 weights in files of 1 GB, written tensor by tensor."""
    from t0jax import convert
    from t0jax.convert import files, writing

    model, folder = SIZES[options.size], options.folder / f"hf-{options.size}"
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True)
    began, draw = time.perf_counter(), np.random.default_rng(0)
    plan = writing.plan_files(model, np.dtype(np.float32), 10**9)
    for part in plan:
        with files.SafetensorsFile(folder / part.name, part.shapes, part.dtype) as file:
            for name in file.names:
                file.write(name, 0.05 * draw.standard_normal(part.shapes[name], np.float32))
    files.write_json(folder / "model.safetensors.index.json", writing.file_index(plan))
    files.write_json(folder / "config.json", convert.hf_config(model, "float32"))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{folder}: {size / 1e9:.2f} GB written in {time.perf_counter() - began:.0f} s")


# ----------------------------------------------------------------------------------------------------------------------
# Fresh processes


def _run(job: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Does `job` in `--processes` fresh processes; what each of them reports."""
    command = [sys.executable, "-m", "scripts.bench", "convert", "--child", job]
    command += ["--folder", str(options.folder), "--size", options.size, "--mesh", options.mesh]
    count = options.processes
    devices = {"JAX_NUM_CPU_DEVICES": str(options.devices // count), "JAX_PLATFORMS": "cpu"}
    cluster = {}
    if count > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    children = []
    for index in range(count):
        own = {"JAX_PROCESS_ID": str(index)} if count > 1 else {}
        environment = os.environ | devices | cluster | own
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    outputs = [child.communicate(timeout=1800)[0] for child in children]
    if any(child.returncode for child in children):
        sys.exit(f"{job} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def _report(job: str, line: dict[str, Any]) -> str:
    peak, held, high = (line[name] / 1e6 for name in ("peak", "held", "high_water"))
    return (
        f"{job:8} {held:6.0f} MB held  peak {peak:6.0f} MB = {peak / held:.3f} x  "
        f"high water {high:6.0f} MB = {high / held:.3f} x (imports {line['base'] / 1e6:.0f} MB, "
        f"mapped files {line['mapped'] / 1e6:.0f} MB)  {line['seconds']:.1f} s, {line['cpu']:.1f} s of processor"
        f"  per device {min(line['devices']) / 1e6:.1f} to {max(line['devices']) / 1e6:.1f} MB"
    )


def _child(options: argparse.Namespace) -> None:
    """Prints what one job held, as a line of JSON."""
    from t0jax import processes

    with processes.cluster():
        print(json.dumps(_measure(_job(options))), flush=True)


def _measure(job: Callable[[], Any]) -> dict[str, Any]:
    """Memory and time of a job."""
    base = _memory()["RssAnon"]
    with Peaks() as peaks:
        began, cpu = time.perf_counter(), time.process_time()
        held = job()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    devices = _device_bytes(held)
    return {
        "held": sum(devices),
        "devices": devices,
        "base": base,
        "peak": peaks.largest["RssAnon"] - base,
        "mapped": peaks.largest["RssFile"],
        "high_water": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": seconds,
        "cpu": cpu,
    }


class Peaks:
    """The largest memory of this process while the block runs, looked at every 5 ms."""

    def __enter__(self) -> "Peaks":
        self.largest, self._done = _memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            now = _memory()
            self.largest = {name: max(value, now[name]) for name, value in self.largest.items()}

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _memory() -> dict[str, int]:
    """Bytes of this process: RssAnon (its own) and RssFile (pages of mapped files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    rows = (line.split() for line in lines if line.startswith(("RssAnon", "RssFile")))
    return {name.rstrip(":"): int(count) * 1024 for name, count, _ in rows}


def _device_bytes(tree: Any) -> list[int]:
    """Of the arrays, on each of this process's devices."""
    import jax

    totals = dict.fromkeys(jax.local_devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            totals[shard.device] += shard.data.nbytes
    return list(totals.values())


def _job(options: argparse.Namespace) -> Callable[[], Any]:
    """What is measured; imports, devices and a first program are behind it."""
    from t0jax import checkpoint, convert, models, optim, sharding, step

    settings = config.Config(model=SIZES[options.size])
    network = models.build(settings.model)
    axes = dict(zip(("data", "fsdp", "model"), map(int, options.mesh.split(",")), strict=True))
    mesh = sharding.make_mesh(config.Mesh(**axes))
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    optimizer = optim.make_optimizer(settings.optimizer, settings.train.steps, network.axes)
    run, folder = (
        options.folder / f"bench-run-{options.size}",
        options.folder / f"hf-{options.size}",
    )

    def load() -> models.Params:
        return convert.load_params(folder, network, where)

    def save() -> models.Params:
        shutil.rmtree(run, ignore_errors=True)
        params = load()
        checkpoint.save_model(run, params, settings.model, None)
        return params

    def export() -> models.Params:
        params = load()
        convert.save_params(params, settings.model, options.folder / f"export-{options.size}")
        return params

    def restore() -> models.Params:
        return checkpoint.load_params(run / checkpoint.STEPS_FOLDER / "0", network, mesh)

    def init() -> step.State:
        return step.init_state(settings, network, optimizer, mesh)

    return dict(zip(JOBS, (load, init, save, restore, export), strict=True))[options.child]
