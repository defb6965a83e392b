"""Real processes with some CPU devices each, which find each other as those of a cluster do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environments(processes, devices):
    """The environment of each process of a cluster on this machine; one alone knows of no cluster."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    if processes == 1:
        return [environment]
    cluster = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [{**environment, **cluster, "JAX_PROCESS_ID": str(i)} for i in range(processes)]


def start(arguments, processes, devices, stderr=subprocess.STDOUT):
    """Starts `python ARGUMENTS` as that many processes."""
    found = environments(processes, devices)
    return [start_one(arguments, environment, stderr) for environment in found]


def start_one(arguments, environment, stderr=subprocess.STDOUT):
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=REPOSITORY, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=stderr,
    )  # fmt: skip


def finish(started):
    """What each has said; all must end well."""
    said = [process.communicate(timeout=400)[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text
    return said
