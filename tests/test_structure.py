"""The house's rules that a machine can check."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TENSORFLOW_FREE = [
    "t0jax.config",
    "t0jax.sharding",
    "t0jax.models",
    "t0jax.objectives.text_to_text",
    "t0jax.optim",
    "t0jax.step",
    "t0jax.checkpoint",
    "t0jax.convert",
    "t0jax.scoring",
    "t0jax.evaluate",
    "t0jax.generate",
    "t0jax.train",
    "t0jax.data.encoding",
    "t0jax.data.label_words",
    "t0jax.data.views",
    "t0jax.data.templates",
    "t0jax.data.rows",
    "t0jax.data.packing",
    "t0jax.data.vocabulary",
    "t0jax.data.loader",
]


def run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_imports_go_one_way():
    lint = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([lint, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_style():
    for arguments in (["check"], ["format", "--check"]):
        command = [Path(sys.executable).with_name("ruff"), *arguments, "."]
        found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_tensorflow_is_imported_where_tasks_are_read_alone():
    imports = "; ".join(f"import {module}" for module in TENSORFLOW_FREE)
    heavy = ("tensorflow", "seqio", "torch", "transformers", "datasets")
    found = run(f"{imports}; import sys; print([m for m in {heavy} if m in sys.modules])")
    assert found.stdout.strip() == "[]", found.stdout + found.stderr


@pytest.mark.parametrize("folder", ["t0jax", "scripts"])
def test_tensorflow_is_imported_quietly_first(folder):
    for path in (REPOSITORY / folder).rglob("*.py"):
        body = ast.parse(path.read_text()).body
        lines = [ast.unparse(node) for node in body if isinstance(node, ast.Import)]
        if {"import seqio", "import tensorflow as tf"} & set(lines) and path.stem != "quiet":
            assert lines[0] == "import t0jax.data.quiet", path


def test_tensorflow_does_not_greet_and_its_errors_are_shown():
    """Whichever room comes first."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    code = """
import os, t0jax.data.structured.source, tensorflow as tf
tf.constant(1) + 1
with t0jax.data.quiet.greeting_kept_back():
    os.write(2, b"I0000 00:00:1.2 3 port.cc:153] oneDNN custom operations are on.\\n")
    os.write(2, b"E0000 00:00:1.2 3 cpu.cc:1] no AVX here\\n")
try:
    with t0jax.data.quiet.greeting_kept_back():
        os.write(2, b"I0000 00:00:1.2 3 port.cc:153] what led to it\\n")
        raise ImportError
except ImportError:
    pass
"""
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=120
    )
    shown = [line.partition("] ")[2] for line in found.stderr.splitlines()]
    assert shown == ["no AVX here", "what led to it"], found.stderr


def test_readers_start_without_jax():
    """Reader processes import this alone; JAX in each would cost memory and seconds."""
    found = run("import t0jax.data.reading, sys; print('jax' in sys.modules)")
    assert found.stdout.strip() == "False", found.stdout + found.stderr


def test_importing_the_package_imports_nothing_heavy():
    found = run(
        "import sys; before = set(sys.modules); import t0jax; print(sorted(set(sys.modules) - before))"
    )
    assert found.stdout.strip() == "['t0jax']", found.stdout + found.stderr


@pytest.mark.parametrize("folder", ["t0jax", "tasks", "scripts", "tests"])
def test_no_file_is_longer_than_500_lines(folder):
    long = {
        path.name: lines
        for path in (REPOSITORY / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long
