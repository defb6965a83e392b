"""Real processes that meet, fail, vanish and are told to leave; no model, so that each is up within seconds."""

import os
import signal
import subprocess
import time

import clusters
import pytest

from scripts import classify, probe, recycle
from t0jax import processes
from t0jax.config import ConfigError

HEAD = """
import os, sys, time
import numpy as np
from t0jax import config, processes
from t0jax.processes import peers
import jax

peers.BEAT_SECONDS, peers.LOST_SECONDS = 0.3, 6.0
jax.config.update("jax_platforms", "cpu")

def main(argv):
    with processes.cluster(patience=PATIENCE):
        me = jax.process_index()
        body(me)
    print("end", flush=True)
    return 0
"""
RUN = "config.run_script(main)"


def run(body, count=2, patience=60, end=RUN):
    """Starts `count` processes that do `body(me)` within one cluster."""
    program = f"{HEAD}\ndef body(me):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    program = program.replace("PATIENCE", str(patience)) + end
    return clusters.start(["-c", program], count, devices=1, stderr=subprocess.PIPE)


def ends(started):
    """(exit status, lines on stdout but Gloo's greeting, stderr) of each."""
    found = [(*process.communicate(timeout=100), process.returncode) for process in started]
    return [
        (status, [line for line in out.splitlines() if not line.startswith("[Gloo]")], err)
        for out, err, status in found
    ]


def test_processes_exchange_arrays_and_wait_for_what_the_first_does():
    body = """
print(processes.gather({"a": np.arange(2) + 10 * me}, "adding up")["a"].tolist())
print(processes.tell({"me": "é" * me}, "asking"))
done = []
processes.first_process_does(lambda: (time.sleep(0.5), done.append(me)), "waiting")
print("did", done)
try:
    processes.first_process_does(lambda: 1 / 0, "dividing")
except Exception as error:
    print(type(error).__name__, error)
"""
    (first, out0, err0), (second, out1, err1) = ends(run(body.strip()))
    assert (first, second) == (0, 0), err0 + err1
    shared = ["[[0, 1], [10, 11]]", "[{'me': ''}, {'me': 'é'}]"]
    assert out0 == [*shared, "did [0]", "ZeroDivisionError division by zero", "end"]
    *same, told, end = out1
    assert [*same, end] == [*shared, "did []", "end"]
    assert told.startswith("ProcessError dividing failed on process 0 of 2 (")
    assert told.endswith("division by zero")


def test_the_error_of_one_process_stops_the_others_which_name_it():
    body = """
if me == 1:
    raise config.ConfigError("no data set cb in this folder")
processes.meet("opening the data")
"""
    (first, out0, err0), (second, _, err1) = ends(run(body.strip()))
    assert (first, second) == (1, 1), err0 + err1
    assert "error: no data set cb in this folder" in err1
    assert "error: process 1 of 2 (" in err0
    assert "stopped: no data set cb in this folder" in err0
    assert "end" not in out0


def test_who_does_not_come_to_a_meeting_is_named():
    body = """
if me == 1:
    time.sleep(5)
processes.meet("opening the data", 2)
"""
    (first, _, err0), (second, _, _) = ends(run(body.strip()))
    assert first == 1
    assert second != 0
    assert "opening the data: process 1 of 2 (" in err0
    assert "did not come within 2 s" in err0


def test_a_step_that_never_ends_tells_where_everyone_is():
    body = """
processes._current().patience = 2
with processes.watching("step 7" if me == 0 else "reading the batch of step 7"):
    time.sleep(60)
"""
    (first, _, err0), (second, _, err1) = ends(run(body.strip()))
    assert (first, second) == (1, 1), err0 + err1
    for err in (err0, err1):
        assert "error: nothing has moved for 2 s" in err
        assert "): step 7; process 1 of 2 (" in err
        assert "): reading the batch of step 7" in err


ENDLESS = """
print("ready", flush=True)
while True:
    processes.gather(np.int32(1), "adding up")
    time.sleep(0.05)
"""


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_is_named_by_the_others(killed):
    started = run(ENDLESS.strip(), count=3)
    for process in started:
        assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    os.kill(started[killed].pid, signal.SIGKILL)
    found = ends(started)
    assert found[killed][0] == -signal.SIGKILL
    for status, _, err in found[:killed] + found[killed + 1 :]:
        assert status not in (0, -signal.SIGKILL)
        # JAX ends processes at once when the coordinator is gone; that it was process 0 they said at their start.
        named = f"process {killed} of 3 (" if killed else "the coordinator is process 0 of 3 ("
        assert named in err, err


@pytest.mark.parametrize("culprit", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_runtime_error_of_ones_own_is_told_by_its_process_too(culprit):
    """Though it looks like a collective that another's end broke."""
    body = f"""
if me == {culprit}:
    raise jax.errors.JaxRuntimeError("INTERNAL: no such buffer")
time.sleep(60)
"""
    found = ends(run(body.strip()))
    assert [status for status, _, _ in found] == [1, 1]
    assert "JaxRuntimeError: INTERNAL: no such buffer" in found[culprit][2]
    assert f"error: process {culprit} of 2 (" in found[1 - culprit][2]
    assert "stopped: INTERNAL: no such buffer" in found[1 - culprit][2]


def test_processes_that_have_come_to_different_places_do_not_pass():
    body = """
processes.meet("saving" if me == 0 else "leaving", 2)
"""
    (first, out0, err0), (second, _, err1) = ends(run(body.strip()))
    assert (first, second) == (1, 1), err0 + err1
    assert "saving: after 2 s, process 1 of 2 (" in err0
    assert ") is at 'leaving' instead" in err0
    assert "end" not in out0


POLLING = """
print("ready", flush=True)
with processes.Preemption() as preemption:
    polls = 1
    while not preemption.poll():
        processes.gather(np.int32(polls), "adding up")
        polls += 1
print("polls", polls)
"""


@pytest.mark.parametrize("told", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_sigterm_to_one_process_is_heard_by_all_at_the_same_poll(told):
    started = run(POLLING.strip())
    for process in started:
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.kill(started[told].pid, signal.SIGTERM)
    (first, out0, err0), (second, out1, err1) = ends(started)
    assert (first, second) == (0, 0), err0 + err1
    assert out0 == out1
    assert out0[0].startswith("polls ")


@pytest.mark.slow
def test_who_is_lost_while_the_others_are_told_to_leave_is_named():
    started = run(POLLING.strip(), count=3)
    for process in started:
        assert process.stdout.readline() == "ready\n"
    os.kill(started[2].pid, signal.SIGSTOP)
    os.kill(started[1].pid, signal.SIGTERM)
    time.sleep(1)
    os.kill(started[2].pid, signal.SIGKILL)
    for status, _, err in ends(started)[:2]:
        assert status == 1
        assert "process 2 of 3 (" in err


TWICE = """
import signal
first = not os.environ.get("BEFORE")
os.environ["BEFORE"] = "yes"
with processes.Preemption() as preemption:
    if first and me == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    left = False
    for _ in range(2000 if first else 20):
        left = left or preemption.poll()
        processes.gather(np.int32(1), "adding up")
        if left:
            break
        time.sleep(0.05)
print("left" if left else "stayed")
"""


@pytest.mark.slow
def test_a_second_run_of_one_program_is_not_told_what_the_first_was():
    again = RUN.replace("run_script(main)", "run_script(lambda argv: main(argv) + main(argv))")
    for status, out, err in ends(run(TWICE.strip(), end=again)):
        assert status == 0, err
        assert out == ["left", "end", "stayed", "end"]


def test_a_block_within_another_is_part_of_it():
    body = """
with processes.cluster(patience=1):
    print(processes.tell(me, "within"))
print(processes.tell(me + 5, "after it"))
"""
    for status, out, err in ends(run(body.strip())):
        assert status == 0, err
        assert out == ["[0, 1]", "[5, 6]", "end"]


@pytest.mark.parametrize(
    ("name", "one", "several"),
    [
        ("JAX_NUM_PROCESSES", "1", "2"),
        ("SLURM_STEP_NUM_TASKS", "1", "2"),
        ("TPU_WORKER_HOSTNAMES", "localhost", "a,b"),
        ("T0JAX_CLUSTER", "", "1"),
    ],
)
def test_programs_of_one_process_refuse_several(name, one, several, monkeypatch):
    monkeypatch.setenv(name, one)
    processes.refuse_cluster("scripts.probe")
    monkeypatch.setenv(name, several)
    with pytest.raises(ConfigError, match=f"scripts.probe .* {name}={several} .* without {name}"):
        processes.refuse_cluster("scripts.probe")


@pytest.mark.parametrize("script", [recycle, probe, classify])
def test_scripts_of_one_process_refuse_several(script, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    given = ["--model", str(tmp_path), *(["--list"] if script is classify else [])]
    with pytest.raises(ConfigError, match="is run by one process, and SLURM_STEP_NUM_TASKS=2"):
        script.main(given)
