"""Launch scripts: they parse, name nothing that does not exist, and pass signals and exit codes on.

SLURM, Kubernetes and gcloud are stood in for by small programs that record what they were asked.
"""

import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from t0jax import config

REPOSITORY = Path(__file__).parents[1]
LAUNCH = REPOSITORY / "scripts" / "launch"
SLURM, JOBSET, TPU_VM = (LAUNCH / name for name in ("slurm.sbatch", "gke_jobset.yaml", "tpu_vm.sh"))
FILES = [SLURM, JOBSET, TPU_VM]

WORKER = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> calls
trap 'sleep 0.3; echo saved >> calls; exit 0' TERM
[ ! -e fails ] || exit 3
[ ! -e waits ] || { touch ready; while true; do sleep 0.1; done; }
"""
"""Saves and exits with 0 on SIGTERM; ends at once unless `waits` is there, with 3 if `fails` is."""


@pytest.fixture
def folder(tmp_path):
    """A folder to start in: an empty virtual environment, and `python` and `srun` that are WORKER."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name, body in {
        "python": WORKER,
        "srun": WORKER,
        "scontrol": 'echo "scontrol $*" >> calls\n',
        "gcloud": 'printf "%s\\n" "$@" > "gcloud.$(date +%s%N)"\n',
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(body if body.startswith("#!") else f"#!/usr/bin/env bash\n{body}")
        program.chmod(0o755)
    return tmp_path


def start(command, folder):
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def run(command, folder, stop=False):
    """(exit status, calls of the stand-ins); with `stop`, SIGTERM comes while the worker works."""
    if stop:
        (folder / "waits").touch()
    process = start(command, folder)
    deadline = time.monotonic() + 60
    while stop and not (folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if stop:
        process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert errors == ""
    return process.returncode, (folder / "calls").read_text().splitlines()


def container():
    """The JobSet's only container, and the job around it."""
    job = yaml.safe_load(JOBSET.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    (only,) = job["template"]["spec"]["containers"]
    return only, job


def jobset_command():
    only, _ = container()
    return [*only["command"], *only["args"]]


SBATCH = ["bash", str(SLURM), "--config", "configs/t0_3b.yaml", "--mesh.fsdp", "16"]


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("path", [SLURM, TPU_VM], ids=lambda path: path.name)
def test_shell_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_options_recipes_programs_and_variables_exist(path):
    text = path.read_text()
    named = re.findall(r"(?:--|\s)((?:mesh|data|train|model)\.[a-z_]+)\b", text)
    assert {"mesh.fsdp"} <= set(named)
    assert set(named) <= set(config.known_keys())
    for recipe in re.findall(r"configs/\w+\.yaml", text):
        assert (REPOSITORY / recipe).exists()
    for module in re.findall(r"-m (scripts\.\w+)", text):
        assert importlib.util.find_spec(module)
    read = "".join(source.read_text() for source in (REPOSITORY / "t0jax").rglob("*.py"))
    for variable in re.findall(r"\bT0JAX_\w+", text):
        assert variable in read, variable


def gpu_flags():
    return re.findall(r"--xla_gpu_\w+=\w+", SLURM.read_text())


def test_xla_knows_the_gpu_flags():
    """XLA ends a process whose XLA_FLAGS it does not know, GPU or not."""
    assert gpu_flags()
    for flags, known in (
        (" ".join(gpu_flags()), True),
        ("--xla_gpu_flag_of_another_year=true", False),
    ):
        environment = {**os.environ, "XLA_FLAGS": flags}
        code = [sys.executable, "-c", "import jax; jax.devices()"]
        assert (subprocess.run(code, env=environment, capture_output=True).returncode == 0) is known


def test_libtpu_knows_the_tpu_flags():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (pip install 'jax[tpu]')")
    flags = {f for path in (JOBSET, TPU_VM) for f in re.findall(r"--xla_\w+=\w+", path.read_text())}
    code = (
        "from jax.experimental import topologies as t; "
        "print(len(t.get_topology_desc(platform='tpu', topology_name='v5e:4x4').devices))"
    )
    environment = {**os.environ, "LIBTPU_INIT_ARGS": " ".join(flags), "TPU_SKIP_MDS_QUERY": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


# ---------------------------------------------------------------------------------------------------------------------
# SLURM


def test_slurm_directives():
    directives = re.findall(r"^#SBATCH (.*)$", SLURM.read_text(), re.M)
    assert {"--requeue", "--ntasks-per-node=1", "--signal=B:TERM@300"} <= set(directives)
    before = SLURM.read_text().split("#SBATCH")[-1]
    assert "#SBATCH" not in before  # sbatch reads none after the first command


def test_slurm_job_is_put_back_when_its_time_is_up_and_the_run_has_saved(folder):
    status, calls = run(SBATCH, folder, stop=True)
    assert status == 0
    arguments = "python -m scripts.train --config configs/t0_3b.yaml --mesh.fsdp 16"
    assert calls == [f"srun --kill-on-bad-exit=1 {arguments}", "saved", "scontrol requeue 77"]


def test_slurm_job_that_ends_by_itself_is_not_put_back(folder):
    status, calls = run(SBATCH, folder)
    assert (status, len(calls)) == (0, 1)
    (folder / "fails").touch()
    status, calls = run(SBATCH, folder)
    assert (status, len(calls)) == (3, 2)


# ---------------------------------------------------------------------------------------------------------------------
# GKE


def test_jobset_has_what_its_definition_requires():
    """Fields of jobset.x-k8s.io/v1alpha2 and of batch/v1's jobs, and how they hang together."""
    content = yaml.safe_load(JOBSET.read_text())
    assert (content["apiVersion"], content["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec, (only, job) = content["spec"], container()
    (replicated,) = spec["replicatedJobs"]
    assert replicated["name"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # which a pod failure policy needs
    codes, disrupted = job["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"] == {
        "containerName": only["name"],
        "operator": "In",
        "values": [143],
    }
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert {codes["action"], disrupted["action"]} == {"FailJob"}
    assert {mount["name"] for mount in only["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_jobset_uses_every_chip_of_its_slice():
    only, job = container()
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert job["parallelism"] * only["resources"]["limits"]["google.com/tpu"] == chips
    assert f"--mesh.fsdp {chips} " in only["args"][0]


def test_container_that_is_told_to_stop_saves_and_is_not_counted_as_finished(folder):
    status, calls = run(jobset_command(), folder, stop=True)
    assert (status, calls[1:]) == (143, ["saved"])


def test_container_that_ends_by_itself_keeps_its_status(folder):
    assert run(jobset_command(), folder)[0] == 0
    (folder / "fails").touch()
    assert run(jobset_command(), folder)[0] == 3


# ---------------------------------------------------------------------------------------------------------------------
# TPU VM


def asked(folder, *arguments):
    """The arguments of every gcloud that `tpu_vm.sh NAME ZONE ...` started, in order."""
    process = start(["bash", str(TPU_VM), "pod", "us-east5-a", *arguments], folder)
    process.communicate(timeout=60)
    found = [path.read_text() for path in sorted(folder.glob("gcloud.*"))]
    return process.returncode, found


def test_tpu_vm_starts_every_host_after_cleaning_it(folder):
    status, (clean, begin) = asked(folder, "start", "--train.output_dir", "/shared/a run")
    assert status == 0
    for command in (clean, begin):
        assert "pod\n--zone=us-east5-a\n--worker=all\n--command=" in command
        subprocess.run(
            ["bash", "-n"], input=command.partition("--command=")[2], text=True, check=True
        )
    assert "rm -f /tmp/libtpu_lockfile" in clean
    assert r"scripts.train --train.output_dir /shared/a\ run" in begin
    assert "T0JAX_CLUSTER=1" in begin


def test_what_tpu_vm_starts_is_stopped_by_signal(folder):
    """The commands for a host, run on this one: the process saves before `stop` returns."""
    shutil.copytree(folder, folder / "t0jax", ignore=shutil.ignore_patterns("gcloud.*"))
    (folder / "t0jax" / "waits").touch()
    commands = [
        text.partition("--command=")[2].replace("/dev/shm", str(folder))
        for text in asked(folder, "start", "--mesh.fsdp", "16")[1][1:]
    ]
    commands += [
        asked(folder, "stop")[1][-1].partition("--command=")[2].replace("/dev/shm", str(folder))
    ]
    begun = start(["bash", "-c", commands[0]], folder)
    begun.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while not (folder / "t0jax" / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    start(["bash", "-c", commands[1]], folder).communicate(timeout=60)
    assert (folder / "t0jax" / "calls").read_text().splitlines() == [
        "python -m scripts.train --mesh.fsdp 16",
        "saved",
    ]


def test_tpu_vm_explains_itself_and_refuses_unknown_actions(folder):
    assert asked(folder, "launch")[0] == 2
    plain = subprocess.run(["bash", TPU_VM], capture_output=True, text=True)
    assert plain.returncode == 2
    assert "NAME ZONE start" in plain.stderr
