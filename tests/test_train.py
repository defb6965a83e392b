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
from t0jax import checkpoint, config, loop, train
from t0jax.checkpoint import CheckpointError
from t0jax.config import ConfigError, UserError
from t0jax.evaluate.history import History

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
        for module in (train, loop):
            patch.setattr(module, "note", said.append)
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


class Scripted:
    """Stands for an evaluation that finds these accuracies, one a call; SIGTERM comes within the last of them."""

    def __init__(self, *accuracies, signal_last=False, settings="first"):
        self.left, self.signal_last, self.settings = list(accuracies), signal_last, settings
        self.tasks = []

    def describe(self):
        return {"settings": self.settings}

    def __call__(self, params, pause):
        accuracy = self.left.pop(0)
        if self.signal_last and not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
        pause()
        return SimpleNamespace(mean_accuracy=accuracy, table=str, summary=dict)


def run_scripted(run_dir, evaluator, *overrides):
    """A run of `BEST` whose evaluations are scripted, all of which it must ask for; its last one, and what it said."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_evaluator", lambda *_: evaluator)
        for module in (train, loop, train.evaluate.history):
            patch.setattr(module, "note", said.append)
        found = train.run(tiny(run_dir, *BEST, *overrides))
    assert not evaluator.left
    return found, "\n".join(said)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A finished run whose middle checkpoint is the best, and what it said."""
    run_dir = tmp_path_factory.mktemp("scored") / "run"
    return run_dir, run_scripted(run_dir, Scripted(0.25, 0.75, 0.5))[1]


BEST = [
    "--train.export", "best", "--train.keep_best", "1", "--train.keep_last", "1", "--train.steps", "6",
    "--data.eval_mixture", "toy_eval_score_eval", "--train.eval_every", "2", "--train.checkpoint_every", "2",
]  # fmt: skip


def kept(run_dir):
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept_and_exported(scored):
    run_dir, said = scored
    assert "best: step 4, 0.7500 in the mean over toy_eval_score_eval" in said
    assert kept(run_dir) == [4, 6]
    assert_same_params(run_dir / "hf", run_dir / "checkpoints" / "4")
    shutil.rmtree(run_dir / "hf")
    run_scripted(run_dir, Scripted())  # finished: the scores are those on disk
    assert_same_params(run_dir / "hf", run_dir / "checkpoints" / "4")


def test_a_checkpoint_whose_evaluation_was_terminated_is_scored_first(tmp_path):
    """Law: stopped within any evaluation, and again, a run exports what it would have if it had never been stopped."""
    run_dir = tmp_path / "run"
    for accuracies in ([0.25, 0.5], [0.5, 0.75], [0.75]):
        _, said = run_scripted(run_dir, Scripted(*accuracies, signal_last=True))
        assert said.endswith("the same command resumes from here")
        assert not (run_dir / "hf").exists()
    assert kept(run_dir) == [4, 6]
    found, said = run_scripted(run_dir, Scripted(0.75))
    assert found.mean_accuracy == 0.75
    assert "best: step 6, 0.7500" in said
    assert_same_params(run_dir / "hf", run_dir / "checkpoints" / "6")
    scores = json.loads((run_dir / "scores.json").read_text())
    assert {step: list(found.values()) for step, found in scores.items()} == {
        "2": [0.25],
        "4": [0.5],
        "6": [0.75],
    }


@pytest.mark.slow
def test_a_step_that_only_sigterm_saved_is_scored_once_and_never_the_best(tmp_path):
    """SIGTERM within the evaluations at 1 and 3, where no checkpoint is due."""
    run_dir, every = tmp_path / "run", ("--train.eval_every", "1", "--train.steps", "4")
    run_scripted(run_dir, Scripted(0.75, signal_last=True), *every)
    assert kept(run_dir) == [1]
    run_scripted(run_dir, Scripted(0.75, 0.5, 0.75, signal_last=True), *every)
    assert kept(run_dir) == [2, 3]
    for evaluations in ((0.75, 0.25), ()):
        _, said = run_scripted(run_dir, Scripted(*evaluations), *every)
        assert "best: step 2, 0.5000" in said
    scores = json.loads((run_dir / "scores.json").read_text())
    assert {step: list(found.values()) for step, found in scores.items()} == {
        "1": [None],
        "2": [0.5],
        "3": [None],
        "4": [0.25],
    }


def test_scores_of_other_evaluations_are_not_compared(scored, tmp_path):
    """The last checkpoint is scored anew; the best of the first evaluation is kept beside."""
    run_dir = shutil.copytree(scored[0], tmp_path / "run")
    other = Scripted(0.125, 0.5, 0.0625, settings="other")
    _, said = run_scripted(run_dir, other, "--train.steps", "8", "--train.eval_every", "1")
    assert kept(run_dir) == [4, 6, 8]
    assert "scores of step 4, 6 are of another evaluation" in said
    assert "best: step 6, 0.1250" in said
    _, said = run_scripted(run_dir, Scripted(0.5), "--train.steps", "8")
    assert "scores of step 8 are" in said
    assert "best: step 4, 0.7500" in said


def test_a_run_without_scores_has_no_best_checkpoint(tmp_path):
    nothing = SimpleNamespace(entries=list), History(tmp_path, "", keep_best=1)
    with pytest.raises(ConfigError, match=r"no checkpoint in .* has a score of toy_eval"):
        train.finish_folder(tiny(tmp_path / "run", *BEST), None, *nothing)


def entry(step, accuracy=None):
    """As orbax has it; up to version 0.3 with a score."""
    return SimpleNamespace(step=step, metrics=accuracy and {"accuracy": accuracy})


def test_scores_outlive_the_process_and_go_with_steps_that_are_still_to_come(tmp_path):
    history = History(tmp_path, "one", keep_best=1)
    for step, accuracy in ((2, 0.5), (4, float("nan")), (6, 0.5), (8, 0.75)):
        history.add(step, accuracy)
    entries = [entry(2), entry(4), entry(6), entry(8), entry(10, 0.875)]
    read = History(tmp_path, "one", keep_best=1)
    assert read.best(entries) == (8, 0.75)
    assert read.should_preserve(entries, context=None) == [False] * 3 + [True, True]
    read.begin(7, entries)
    assert read.best(entries) == (6, 0.5)
    assert [read.has(step) for step in (2, 4, 6, 8, 10)] == [True] * 3 + [False] * 2
    assert not History(tmp_path, "two", keep_best=1).has(2)
    (tmp_path / "scores.json").write_text("[")
    with pytest.raises(ConfigError, match=r"scores\.json is broken .* delete it"):
        History(tmp_path, "one", keep_best=1)


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
        (["--data.batch_size", "12", "--data.shards", "4"], ConfigError, "a multiple of 8"),
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
    with pytest.raises(loop.Diverged, match=r"6 steps in a row up to step 6 .*learning_rate"):
        train.run(tiny(tmp_path / "run", "--train.max_bad_steps", "4"))
