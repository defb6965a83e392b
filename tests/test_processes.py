"""Two real processes (gloo on the CPU) train as one does, stop together, and one goes on from their checkpoint."""

import json
import signal
import socket
import time

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


def begun(run_dir, until):
    """Two processes in the middle of a run that is longer than the test."""
    started = start(run_dir, steps=100_000, devices=1, processes=2)
    said = iter(started[0].stdout.readline, "")
    assert any(line.startswith(f"step {until}/") for line in said)
    return started


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_of_two_processes_has_both_save_and_leave(tmp_path, told):
    started = begun(tmp_path / "run", until=6)
    started[told].send_signal(signal.SIGTERM)
    said = clusters.finish(started)[0]
    step = max(losses(tmp_path / "run"))
    assert f"SIGTERM: saved step {step}; the same command resumes from here" in said
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_of_the_other_which_names_it_and_both_go_on(tmp_path):
    started = begun(tmp_path / "run", until=6)
    began = time.monotonic()
    started[1].kill()
    said = started[0].communicate(timeout=120)[0]
    assert time.monotonic() - began < 120
    assert started[0].returncode == 1
    assert f"error: process 1 of 2 ({socket.gethostname()}, pid {started[1].pid}) stopped: " in said
    started[1].communicate()
    said = clusters.finish(start(tmp_path / "run", steps=10, devices=1, processes=2))[0]
    assert "resuming" in said
    assert max(losses(tmp_path / "run")) == 10


@pytest.mark.slow
def test_two_processes_score_and_continue_a_run_folder(tmp_path):
    clusters.finish(start(tmp_path / "run", steps=4, devices=2))
    model = ["--model", str(tmp_path / "run"), "--mesh.fsdp", "2"]
    score = ["--mixture", "toy_eval_score_eval", "--evaluate.max_examples", "5"]
    found = []
    for processes in (1, 2):
        out = ["--output", str(tmp_path / f"scores{processes}")]
        command = ["-m", "scripts.evaluate", *model, *score, *out]
        clusters.finish(clusters.start(command, processes, 2 // processes))
        results = json.loads((tmp_path / f"scores{processes}" / "results.json").read_text())
        found.append({name: task["accuracy"] for name, task in results["tasks"].items()})
    assert found[0] == found[1]
    command = [
        "-m",
        "scripts.generate",
        *model,
        "--input",
        "Is this good?",
        "--max_new_tokens",
        "4",
    ]
    one, two = (
        clusters.finish(clusters.start(command, processes, 2 // processes))[0].splitlines()[-1]
        for processes in (1, 2)
    )
    assert one == two


@pytest.mark.slow
def test_processes_of_different_settings_or_folders_are_refused(tmp_path):
    for other, said in (
        (["--train.seed", "7"], "process 1 was started with other settings than process 0: train.seed 7, not 0"),
        (["--train.log_every", "2", "--data.workers", "1"], "train.log_every 2, not 1; give all"),
    ):  # fmt: skip
        same = ["-m", "scripts.train", *TINY, "--train.output_dir", str(tmp_path / "run")]
        environments = clusters.environments(2, devices=1)
        started = [
            clusters.start_one([*same, *extra], environment)
            for extra, environment in zip(([], other), environments, strict=True)
        ]
        texts = [process.communicate(timeout=200)[0] for process in started]
        assert [process.returncode for process in started] == [1, 1], texts
        assert all(said in text for text in texts), texts
        assert not (tmp_path / "run").exists()
