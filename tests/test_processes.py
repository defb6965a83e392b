"""Two real processes (gloo on the CPU) train as one does, stop together, and one goes on from their checkpoint."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from t0jax import checkpoint, models, sharding
from t0jax import config as cfg

REPOSITORY = Path(__file__).parents[1]
TINY = [
    "--config", "configs/toy.yaml", "--model.d_model", "32", "--model.d_kv", "8", "--model.d_ff", "32",
    "--model.dropout_rate", "0.1", "--data.eval_mixture", "", "--data.batch_size", "8",
    "--data.input_length", "64", "--data.target_length", "16", "--optimizer.warmup_steps", "2",
    "--optimizer.schedule", "constant",
    "--train.log_every", "1", "--train.checkpoint_every", "4", "--train.tensorboard", "false",
    "--train.export", "last", "--mesh.data", "1", "--mesh.fsdp", "2",
]  # fmt: skip


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cluster_of(count):
    """The environment of each of `count` processes on this machine that are one cluster."""
    cluster = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
    }
    return [{**os.environ, **cluster, "JAX_PROCESS_ID": str(index)} for index in range(count)]


def start(run_dir, steps, devices, processes=1):
    """Starts a run over `processes` processes with `devices` devices each."""
    arguments = [*TINY, "--train.output_dir", str(run_dir), "--train.steps", str(steps)]
    command = [sys.executable, "-m", "scripts.train", *arguments]
    cluster = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    started = []
    for index in range(processes):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        if processes > 1:
            environment |= {**cluster, "JAX_PROCESS_ID": str(index)}
        started.append(
            subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    return started


def finish(started):
    outputs = [process.communicate(timeout=400)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def load(path):
    return checkpoint.load_model(path, sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])).params


@pytest.mark.slow
def test_two_processes_equal_one_and_one_goes_on_from_two(tmp_path):
    finish(start(tmp_path / "one", steps=12, devices=2))
    outputs = finish(start(tmp_path / "two", steps=8, devices=1, processes=2))
    assert "process 0 of 2" in outputs[0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(two) == list(range(1, 9))
    assert two == pytest.approx({step: one[step] for step in two}, rel=1e-5)
    kept, exported = (load(folder) for folder in (tmp_path / "two", tmp_path / "two" / "hf"))
    assert models.fingerprint(exported) == models.fingerprint(kept)
    finish(start(tmp_path / "two", steps=12, devices=2))
    assert losses(tmp_path / "two") == pytest.approx(one, rel=1e-4)
