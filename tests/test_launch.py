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
echo "$T0JAX_CLUSTER" > cluster
trap 'sleep 0.3; echo saved >> calls; exit 0' TERM
[ ! -e fails ] || exit 3
[ ! -e waits ] || { touch ready; while true; do sleep 0.1; done; }
"""
"""Saves and exits with 0 on SIGTERM; ends at once unless `waits` is there, with 3 if `fails` is."""

SRUN = """#!/usr/bin/env bash
echo "srun $*" >> calls
while [[ "$1" == --* ]]; do shift; done
trap 'kill -KILL "$task"' TERM
"$@" &
task=$!
echo "$task" > task
until wait "$task" || ! kill -0 "$task" 2> /dev/null; do :; done
wait "$task"
"""
"""One task; SIGTERM to srun is SIGKILL to the task (`_srun_signal_mgr` in Slurm's src/srun/libsrun/srun_job.c)."""

SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> calls
kill -TERM "$(cat task)"
"""
"""With a signal it goes to the tasks of the job's steps."""

GCLOUD = """#!/usr/bin/env bash
echo "${*:1:7}" >> asked
command="${*: -1}"
command="${command#--command=}"
command="${command//\\/dev\\/shm/$PWD}"
bash -c "${command//\\/tmp\\/libtpu/$PWD\\/libtpu}"
"""
"""`ssh` to a host that is the folder gcloud is called in, with that folder for /dev/shm and /tmp."""


@pytest.fixture
def folder(tmp_path):
    """A folder to start in: an empty virtual environment, a `python` that is WORKER, and what clusters have."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name, body in {
        "python": WORKER,
        "srun": SRUN,
        "scancel": SCANCEL,
        "scontrol": 'echo "scontrol $*" >> calls\n',
        "sudo": '"$@"\n',
        "gcloud": GCLOUD,
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(body if body.startswith("#!") else f"#!/usr/bin/env bash\n{body}")
        program.chmod(0o755)
    return tmp_path


def start(command, folder, **environment):
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "SLURM_JOB_ID": "77", "WATCH": "1", **environment}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def run(command, folder, stop=None, **environment):
    """(exit status, calls of the stand-ins); the signal `stop` comes while the worker works."""
    if stop:
        (folder / "waits").touch()
    process = start(command, folder, **environment)
    if stop:
        wait_for(folder / "ready")
        process.send_signal(stop)
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


def libtpu_takes(flags):
    code = (
        "from jax.experimental import topologies as t; "
        "print(len(t.get_topology_desc(platform='tpu', topology_name='v5e:4x4').devices))"
    )
    environment = {**os.environ, "LIBTPU_INIT_ARGS": flags, "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    return done.returncode == 0


def test_libtpu_knows_the_tpu_flags():
    """libtpu ends a process whose LIBTPU_INIT_ARGS it does not know."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (pip install 'jax[tpu]')")
    flags = {f for path in (JOBSET, TPU_VM) for f in re.findall(r"--xla_\w+=\w+", path.read_text())}
    assert flags
    assert libtpu_takes(" ".join(flags))
    assert not libtpu_takes("--xla_tpu_flag_of_another_year=true")


# ---------------------------------------------------------------------------------------------------------------------
# SLURM


def test_slurm_directives():
    directives = re.findall(r"^#SBATCH (.*)$", SLURM.read_text(), re.M)
    assert {"--requeue", "--ntasks-per-node=1", "--signal=B:USR1@300"} <= set(directives)
    before = SLURM.read_text().split("#SBATCH")[-1]
    assert "#SBATCH" not in before  # sbatch reads none after the first command


def test_slurm_job_is_put_back_when_its_time_is_up_and_the_run_has_saved(folder):
    status, calls = run(SBATCH, folder, stop=signal.SIGUSR1, SLURM_CPUS_PER_TASK="24")
    assert status == 0
    python = "python -m scripts.train --config configs/t0_3b.yaml --mesh.fsdp 16"
    assert calls == [
        f"srun --kill-on-bad-exit=1 --cpus-per-task=24 {python}",
        python,
        "scancel --signal=TERM 77",
        "saved",
        "scontrol requeue 77",
    ]


def test_srun_that_gets_sigterm_kills_its_tasks(folder):
    """The stand-in: what the script must not do."""
    (folder / "waits").touch()
    process = start([folder / "bin" / "srun", "python"], folder)
    wait_for(folder / "ready")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert "saved" not in (folder / "calls").read_text()


def test_slurm_job_that_is_told_to_stop_before_it_can_save_is_put_back(folder):
    (folder / "bin" / "python").write_text("#!/usr/bin/env bash\ntouch ready; exec sleep 60\n")
    process = start(SBATCH, folder)
    wait_for(folder / "ready")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (folder / "calls").read_text().splitlines()[-1] == "scontrol requeue 77"


def test_slurm_job_that_is_cancelled_waits_for_the_saving_and_is_not_put_back(folder):
    """SLURM sends SIGTERM to the tasks, and to the script."""
    (folder / "waits").touch()
    process = start(SBATCH, folder)
    wait_for(folder / "ready")
    os.kill(int((folder / "task").read_text()), signal.SIGTERM)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (folder / "calls").read_text().splitlines()[2:] == ["saved"]


def test_slurm_job_that_ends_by_itself_is_not_put_back(folder):
    status, calls = run(SBATCH, folder)
    assert (status, len(calls)) == (0, 2)
    (folder / "fails").touch()
    status, calls = run(SBATCH, folder)
    assert (status, len(calls)) == (3, 4)


def test_slurm_gives_all_gpus_to_a_process_that_is_alone_on_its_node(folder):
    (folder / "bin" / "python").write_text(
        '#!/usr/bin/env bash\necho "${JAX_LOCAL_DEVICE_IDS-none}" > calls\n'
    )
    assert run(SBATCH, folder, SLURM_GPUS_ON_NODE="4")[1] == ["0,1,2,3"]
    alone = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "2"}
    assert run(SBATCH, folder, **alone)[1] == ["0,1"]
    assert run(SBATCH, folder, SLURM_NTASKS_PER_NODE="8")[1] == ["none"]


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


def test_a_container_that_fills_its_node_is_killed_before_it_can_be_evicted():
    """Evictions carry DisruptionTarget, which restarts without counting."""
    limits = container()[0]["resources"]["limits"]
    assert {"memory", "ephemeral-storage"} <= set(limits)


def test_container_that_is_told_to_stop_saves_and_is_not_counted_as_finished(folder):
    status, calls = run(jobset_command(), folder, stop=signal.SIGTERM)
    assert (status, calls[1:]) == (143, ["saved"])


def test_container_that_ends_by_itself_keeps_its_status(folder):
    assert run(jobset_command(), folder)[0] == 0
    (folder / "fails").touch()
    assert run(jobset_command(), folder)[0] == 3


# ---------------------------------------------------------------------------------------------------------------------
# TPU VM


def tpu_vm(folder, *arguments, **environment):
    """(status, stderr) of `tpu_vm.sh NAME ZONE ...`, whose one host is this folder."""
    command = ["bash", str(TPU_VM), "pod", "us-east5-a", *arguments]
    process = start(command, folder, **environment)
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


@pytest.fixture
def host(folder):
    """The folder with the repository in it, as `install` leaves it; runs are over when the test is."""
    shutil.copytree(folder, folder / "t0jax")
    yield folder
    tpu_vm(folder, "kill")


def calls_of(host):
    return (host / "t0jax" / "calls").read_text().splitlines()


def test_tpu_vm_addresses_every_host_of_the_slice(host):
    assert tpu_vm(host, "start", "--train.output_dir", "/shared/a run")[0] == 0
    asked = (host / "asked").read_text().splitlines()
    assert set(asked) == {"compute tpus tpu-vm ssh pod --zone=us-east5-a --worker=all"}
    assert "python -m scripts.train --train.output_dir /shared/a run" in calls_of(host)
    assert (host / "t0jax" / "cluster").read_text() == "1\n"


def test_what_tpu_vm_starts_saves_before_stop_returns(host):
    (host / "t0jax" / "waits").touch()
    assert tpu_vm(host, "start", "--mesh.fsdp", "16") == (0, "")
    wait_for(host / "t0jax" / "ready")
    assert tpu_vm(host, "stop") == (0, "")
    assert calls_of(host) == ["python -m scripts.train --mesh.fsdp 16", "saved"]
    assert tpu_vm(host, "stop") == (0, "")  # says that nothing is running


def test_tpu_vm_start_refuses_where_a_run_is_alive_and_clears_away_a_dead_one(host):
    (host / "t0jax" / "waits").touch()
    assert tpu_vm(host, "start")[0] == 0
    (host / "libtpu_lockfile").touch()
    status, errors = tpu_vm(host, "start")
    assert status == 1
    assert "running; give 'stop' first" in errors
    assert (host / "libtpu_lockfile").exists()
    assert len(calls_of(host)) == 1
    assert tpu_vm(host, "kill")[0] == 0
    assert tpu_vm(host, "start")[0] == 0
    assert not (host / "libtpu_lockfile").exists()
    assert calls_of(host) == ["python -m scripts.train"] * 2


def test_tpu_vm_start_reports_a_run_that_dies_at_once(host):
    (host / "t0jax" / "fails").touch()
    (host / "t0jax" / "t0jax.log").write_text("error: no such recipe\n")
    status, errors = tpu_vm(host, "start")
    assert status == 3
    assert "error: no such recipe" in errors
    assert "over with status 3" in errors


def test_tpu_vm_stop_does_not_wait_for_ever(host):
    hung = "#!/usr/bin/env bash\ntrap '' TERM\nwhile true; do sleep 0.1; done\n"
    (host / "bin" / "python").write_text(hung)
    assert tpu_vm(host, "start")[0] == 0
    status, errors = tpu_vm(host, "stop", PATIENCE="1")
    assert status == 1
    assert "still running after 1 s" in errors


@pytest.mark.parametrize("url", ["https://me:token@example.org/t0jax", "https://token@x.org/a", ""])
def test_tpu_vm_copies_no_password_to_the_hosts(folder, url):
    status, errors = tpu_vm(folder, "install", REPOSITORY=url)
    assert status == 2
    assert "set REPOSITORY to one without a password" in errors
    assert not (folder / "asked").exists()


def test_tpu_vm_explains_itself_and_refuses_unknown_actions(folder):
    assert tpu_vm(folder, "launch")[0] == 2
    plain = subprocess.run(["bash", TPU_VM], capture_output=True, text=True)
    assert plain.returncode == 2
    assert "NAME ZONE start" in plain.stderr
    assert "NAME ZONE kill" in plain.stderr
