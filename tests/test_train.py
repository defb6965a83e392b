"""Whole runs on the toy data: stopping and going on changes nothing, and bad input costs nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from scripts import train as script
from t0jax import checkpoint, config, train
from t0jax.checkpoint import CheckpointError
from t0jax.config import ConfigError, UserError

REPOSITORY = Path(__file__).parents[1]
STEPS = 32
# The schedule does not know how long the run is, so that runs of any length share one compiled step.
TINY = [
    "--config", "configs/toy.yaml", "--model.d_model", "32", "--model.d_kv", "8", "--model.d_ff", "32",
    "--model.dropout_rate", "0.1", "--data.eval_mixture", "", "--data.batch_size", "8",
    "--data.input_length", "64", "--data.target_length", "16", "--optimizer.schedule", "inverse_sqrt",
    "--optimizer.warmup_steps", "5", "--train.steps", str(STEPS), "--train.log_every", "3",
    "--train.checkpoint_every", "8", "--train.tensorboard", "false",
]  # fmt: skip


def tiny(output_dir, *overrides):
    return config.parse([*TINY, "--train.output_dir", str(output_dir), *overrides], "")[0]


def losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"], row["grad_norm"]) for row in map(json.loads, lines)]


def params_of(model):
    mesh = train.sharding.make_mesh(config.Mesh())
    return jax.device_get(checkpoint.load_model(model, mesh).params)


def assert_same_params(one, other):
    jax.tree.map(np.testing.assert_array_equal, params_of(one), params_of(other))


@pytest.fixture(scope="module", autouse=True)
def in_repository():
    before = Path.cwd()
    os.chdir(REPOSITORY)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    train.run(tiny(run_dir))
    return run_dir


@pytest.fixture(scope="module")
def begun(uninterrupted, tmp_path_factory):
    """A new run from the weights of another, and what it said."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "note", said.append)
        start = ("--train.init_checkpoint", str(uninterrupted), "--train.steps", "3")
        train.run(tiny(run_dir, *start))
    return run_dir, "\n".join(said)


KILLED = """
import os, signal, sys
from scripts import train
from t0jax import config, metrics

write, last = metrics.JsonLines.write, int(sys.argv.pop(1))

def write_and_die(sink, step, values):
    write(sink, step, values)
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)

metrics.JsonLines.write = write_and_die
config.run_script(train.main)
"""


def test_a_killed_run_goes_on_bit_for_bit(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, "12", *TINY, "--train.output_dir", str(run_dir)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == -signal.SIGKILL, found.stdout + found.stderr
    assert_goes_on_as(uninterrupted, run_dir)


def test_a_terminated_run_saves_and_goes_on_bit_for_bit(
    uninterrupted, tmp_path, monkeypatch, capsys
):
    run_dir, write = tmp_path / "run", train.metrics.JsonLines.write

    def write_and_signal(sink, step, values):
        write(sink, step, values)
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.metrics.JsonLines, "write", write_and_signal)
    assert script.main([*TINY, "--train.output_dir", str(run_dir), "--train.export", "last"]) == 0
    assert "the same command resumes from here" in capsys.readouterr().out
    assert not (run_dir / "hf").exists()
    monkeypatch.undo()
    assert_goes_on_as(uninterrupted, run_dir)


def assert_goes_on_as(uninterrupted, run_dir):
    assert 12 <= len(losses(run_dir)) < STEPS
    train.run(tiny(run_dir))
    assert losses(run_dir) == losses(uninterrupted)
    assert_same_params(run_dir, uninterrupted)


def test_training_learns_something(uninterrupted):
    series = losses(uninterrupted)
    assert [step for step, *_ in series] == list(range(1, STEPS + 1))
    assert np.mean([loss for _, loss, _ in series[-5:]]) < series[0][1] - 0.5


def test_a_finished_run_started_again_trains_no_further_and_exports_anew(uninterrupted):
    before = losses(uninterrupted)
    for _ in range(2):
        train.run(tiny(uninterrupted, "--train.export", "last"))
        assert losses(uninterrupted) == before
        assert_same_params(uninterrupted / "hf", uninterrupted)
        pieces = (uninterrupted / "hf" / "spiece.model", uninterrupted / "vocabulary.model")
        assert pieces[0].read_bytes() == pieces[1].read_bytes()
        (uninterrupted / "hf" / "spiece.model").unlink()


def scripted(accuracies):
    """Stands for an evaluation that finds these accuracies, one a call."""
    left = iter(accuracies)

    def evaluator(params, progress):
        return SimpleNamespace(mean_accuracy=next(left), table=str, summary=dict)

    return lambda *_: evaluator


BEST = [
    "--train.export", "best", "--train.keep_best", "1", "--train.keep_last", "1", "--train.steps", "6",
    "--data.eval_mixture", "toy_eval_score_eval", "--train.eval_every", "2", "--train.checkpoint_every", "2",
]  # fmt: skip


def test_the_best_checkpoint_is_kept_and_exported(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    monkeypatch.setattr(train, "make_evaluator", scripted([0.25, 0.75, 0.5]))
    train.run(tiny(run_dir, *BEST))
    said = capsys.readouterr().out
    assert "best: step 4, 0.7500 in the mean over the prompts of toy_eval_score_eval" in said
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["4", "6"]
    assert_same_params(run_dir / "hf", run_dir / "checkpoints" / "4")
    shutil.rmtree(run_dir / "hf")
    train.run(tiny(run_dir, *BEST))  # finished: the scores are those on disk
    assert_same_params(run_dir / "hf", run_dir / "checkpoints" / "4")


def test_a_run_without_scores_has_no_best_checkpoint(tmp_path):
    none = SimpleNamespace(best=lambda: None)
    with pytest.raises(ConfigError, match=r"no checkpoint in .* was scored"):
        train.finish_folder(tiny(tmp_path / "run", *BEST), None, none)


def test_an_export_takes_the_place_of_nothing_else(tmp_path):
    (tmp_path / "run" / "hf").mkdir(parents=True)
    (tmp_path / "run" / "hf" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no export of t0jax"):
        train.run(tiny(tmp_path / "run", "--train.export", "last"))
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "hf", "mine.txt"]


def test_weights_or_state_of_another_run_start_a_new_one(uninterrupted, begun, tmp_path, capsys):
    run_dir, said = begun
    assert "fresh optimizer state, step 0" in said
    assert losses(run_dir)[0][1] < losses(uninterrupted)[0][1] - 0.5
    more = ["--train.init_from", "state", "--train.steps", str(STEPS + 4)]
    train.run(tiny(tmp_path / "state", "--train.init_checkpoint", str(uninterrupted), *more))
    assert "optimizer state and step count" in capsys.readouterr().out
    assert [step for step, *_ in losses(tmp_path / "state")] == list(range(STEPS + 1, STEPS + 5))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["--data.mixture", "toy_trian"], ConfigError, "did you mean 'toy_train'"),
        (["--data.modules", "[tasks.toys]"], ConfigError, "tasks.toys"),
        (["--data.vocabulary", "nowhere.model"], ConfigError, "nowhere.model does not exist"),
        (["--model.vocab_size", "128"], ConfigError, "embedding 128 rows"),
        (["--mesh.data", "3"], ConfigError, "needs 3 devices, there are 8"),
        (["--data.batch_size", "12", "--data.shards", "4"], ConfigError, "not a multiple of 8"),
        (["--train.init_checkpoint", "/nowhere"], CheckpointError, "there is no /nowhere"),
        (
            ["--optimizer.schedule", "linear", "--optimizer.warmup_steps", "50"],
            ConfigError,
            "warmup_steps",
        ),
        (
            ["--train.export", "best"],
            ConfigError,
            r"needs scored checkpoints: set train\.keep_best 1",
        ),
        (["--data.eval_mixture", "toy_evil_score_eval"], UserError, "toy_evil_score_eval"),
        (["--train.wandb_project", "p"], ConfigError, "pip install 't0jax"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, overrides, error, message):
    with pytest.raises(error, match=message) as caught:
        train.run(tiny(tmp_path / "run", *overrides))
    assert isinstance(caught.value, UserError)
    assert not (tmp_path / "run").exists()


def test_the_vocabulary_of_the_model_that_a_run_starts_from_is_used_or_missed(
    uninterrupted, begun, tmp_path
):
    ours, theirs = ((run / "vocabulary.model").read_bytes() for run in (begun[0], uninterrupted))
    assert ours == theirs
    (tmp_path / "other.model").write_bytes(b"another")
    start = ["--train.init_checkpoint", str(uninterrupted)]
    with pytest.raises(
        ConfigError, match=r"other\.model is not the vocabulary of train\.init_checkpoint"
    ):
        train.run(tiny(tmp_path / "no", *start, "--data.vocabulary", str(tmp_path / "other.model")))


def test_a_folder_with_another_run_is_left_as_it_was(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    with pytest.raises(ConfigError, match=r"another run .*model\.d_ff"):
        train.run(tiny(uninterrupted, "--model.d_ff", "48"))
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_a_run_that_diverges_stops_and_says_what_to_do(tmp_path, monkeypatch):
    """After a flush that saw four bad steps; that such steps change nothing and are counted is test_step's."""
    report = dict.fromkeys(
        ("loss", "accuracy", "grad_norm", "learning_rate", "examples"), np.float32(np.nan)
    )
    bad = iter(range(1, STEPS))

    def step(state, batch):
        counts = dict.fromkeys(("bad_in_row", "skipped"), next(bad))
        return state, {**report, **counts}

    monkeypatch.setattr(train, "make_step", lambda *_: step)
    with pytest.raises(train.Diverged, match=r"6 steps in a row up to step 6 .*learning_rate"):
        train.run(tiny(tmp_path / "run", "--train.max_bad_steps", "4"))
