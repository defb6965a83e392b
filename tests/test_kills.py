"""`kill -9` again and again, while a run starts, steps and saves: it ends as one that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from t0jax import checkpoint, models, sharding
from t0jax import config as cfg

REPOSITORY = Path(__file__).parents[1]
KILLS, STEPS = 60, 200
TINY = [
    "--config", "configs/toy.yaml", "--model.d_model", "32", "--model.d_kv", "8", "--model.d_ff", "32",
    "--model.dropout_rate", "0.1", "--data.eval_mixture", "", "--data.batch_size", "8",
    "--data.input_length", "64", "--data.target_length", "16", "--optimizer.schedule", "inverse_sqrt",
    "--optimizer.warmup_steps", "5", "--train.log_every", "1", "--train.checkpoint_every", "2",
    "--train.tensorboard", "false",
]  # fmt: skip
CLOCK = {"steps_per_s", "tokens_per_s", "examples_per_s", "eta_s", "mfu"}
"""Numbers of a row that depend on the time."""


SERVER = """
import json, os, sys
import tasks.toy
from scripts import train
from t0jax import train as _

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(train.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Launcher:
    """Starts runs, one after the other, as children of a process that has imported everything and done nothing else."""

    def __init__(self, log):
        self.log = log
        with log.open("a") as file:
            self.server = subprocess.Popen(
                [sys.executable, "-c", SERVER], cwd=REPOSITORY, text=True, bufsize=1,
                env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
            )  # fmt: skip

    def start(self, run_dir, steps):
        """The process id of a run; the command is the same each time."""
        own = ["--train.output_dir", str(run_dir), "--train.steps", str(steps)]
        cache = ["--train.compile_cache", str(self.log.parent / "compiled")]
        self.server.stdin.write(json.dumps([*TINY, *own, *cache]) + "\n")
        return int(self.line())

    def wait(self):
        """The exit code of the run; negative for a signal."""
        return int(self.line())

    def line(self):
        """The server's next line; what runs say comes in between."""
        while not (line := self.server.stdout.readline().strip()).lstrip("-").isdigit():
            assert self.server.poll() is None, self.log.read_text()[-3000:]
            with self.log.open("a") as file:
                file.write(line + "\n")
        return line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.kill()
        self.server.communicate()


def rows(run_dir):
    """Every step's numbers but those of the clock."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


class Killer:
    """Kills a run at moments drawn from a seed; counts what they hit."""

    def __init__(self, run_dir, seed):
        self.run_dir, self.rng, self.hit = run_dir, random.Random(seed), Counter()
        self.startup = 5.0
        """Seconds until the loop begins, as last seen."""

    def kill(self, pid):
        """Waits for the moment and kills; sorts it by what was going on."""
        wanted = self.rng.choice(["startup", "step", "save", "save"])
        begun, leftovers = self.rows(), self.saves()
        began = time.monotonic()
        if wanted == "startup":
            time.sleep(self.rng.uniform(0, self.startup))
        else:
            wait_until(lambda: self.rows() != begun)  # cut to the resumed step, or written on
            self.startup = time.monotonic() - began
            look = self.saves if wanted == "save" else self.rows
            for _ in range(self.rng.randint(1, 3)):
                seen = look()
                wait_until(lambda at=seen: look() - at)
            time.sleep(self.rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        hit = "step" if self.rows() != begun else "startup"
        self.hit["save" if self.saves() - leftovers else hit] += 1

    def rows(self):
        """Tells one state of the metrics file from another."""
        path = self.run_dir / "metrics.jsonl"
        return {(path.stat().st_size, path.stat().st_ino)} if path.exists() else set()

    def saves(self):
        """Folders that a save, running or killed, has begun."""
        folder = self.run_dir / "checkpoints"
        found = folder.iterdir() if folder.exists() else ()
        return {path.name for path in found if "orbax-checkpoint-tmp" in path.name}


def wait_until(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def kill_often(launcher, run_dir, kills, steps, seed):
    """What was hit, once the run has been killed `kills` times and has then ended by itself."""
    killer = Killer(run_dir, seed)
    for _ in range(kills):
        killer.kill(launcher.start(run_dir, steps))
        assert launcher.wait() == -signal.SIGKILL, launcher.log.read_text()[-3000:]
    launcher.start(run_dir, steps)
    assert launcher.wait() == 0, launcher.log.read_text()[-3000:]
    return killer.hit


def params_of(run_dir):
    mesh = sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])
    return checkpoint.load_model(run_dir, mesh).params


def check(killed, whole, steps):
    assert [row["step"] for row in rows(whole)] == list(range(1, steps + 1))
    assert rows(killed) == rows(whole)
    assert models.fingerprint(params_of(killed)) == models.fingerprint(params_of(whole))
    jax.tree.map(np.testing.assert_array_equal, params_of(killed), params_of(whole))
    kept = [sorted(p.name for p in (at / "checkpoints").iterdir()) for at in (killed, whole)]
    assert kept[0] == kept[1] == [str(steps - 2), str(steps)]


@pytest.mark.slow
def test_a_run_that_is_killed_60_times_ends_as_one_that_never_was(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with Launcher(tmp_path / "log.txt") as launcher:
        launcher.start(whole, STEPS)
        assert launcher.wait() == 0, launcher.log.read_text()[-3000:]
        hit = kill_often(launcher, killed, KILLS, STEPS, seed=0)
    assert set(hit) == {"startup", "step", "save"}, hit
    check(killed, whole, STEPS)
