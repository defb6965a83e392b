"""Two real processes (gloo on the CPU) train as one does, stop together, and one goes on from their checkpoint."""

import json

import clusters
import jax
import pytest

from t0jax import checkpoint, models, sharding
from t0jax import config as cfg

TINY = [
    "--config", "configs/toy.yaml", "--model.d_model", "32", "--model.d_kv", "8", "--model.d_ff", "32",
    "--model.dropout_rate", "0.1", "--data.eval_mixture", "", "--data.batch_size", "8",
    "--data.input_length", "64", "--data.target_length", "16", "--optimizer.warmup_steps", "2",
    "--optimizer.schedule", "constant",
    "--train.log_every", "1", "--train.checkpoint_every", "4", "--train.tensorboard", "false",
    "--train.export", "last", "--mesh.data", "1", "--mesh.fsdp", "2",
]  # fmt: skip


def start(run_dir, steps, devices, processes=1):
    """Starts a run over `processes` processes with `devices` devices each."""
    arguments = [*TINY, "--train.output_dir", str(run_dir), "--train.steps", str(steps)]
    return clusters.start(["-m", "scripts.train", *arguments], processes, devices)


def losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def load(path):
    return checkpoint.load_model(path, sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])).params


@pytest.mark.slow
def test_two_processes_equal_one_and_one_goes_on_from_two(tmp_path):
    clusters.finish(start(tmp_path / "one", steps=12, devices=2))
    outputs = clusters.finish(start(tmp_path / "two", steps=8, devices=1, processes=2))
    assert "process 0 of 2" in outputs[0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(two) == list(range(1, 9))
    assert two == pytest.approx({step: one[step] for step in two}, rel=1e-5)
    kept, exported = (load(folder) for folder in (tmp_path / "two", tmp_path / "two" / "hf"))
    assert models.fingerprint(exported) == models.fingerprint(kept)
    clusters.finish(start(tmp_path / "two", steps=12, devices=2))
    assert losses(tmp_path / "two") == pytest.approx(one, rel=1e-4)
