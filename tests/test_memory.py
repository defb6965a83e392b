"""Memory that one call of a program gives back and the next one takes."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from t0jax import memory

if sys.argv[1] == "keep":
    assert memory.keep_pages()
x = jnp.ones((2048, 2048))
program = jax.jit(lambda x: (jnp.sin(x) @ x[:, :8] + jnp.cumsum(x, axis=0) @ x[:, :8]).sum())
temporary = program.lower(x).compile().memory_analysis().temp_size_in_bytes
for _ in range(10):  # the heap finds its shape
    program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    program(x).block_until_ready()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() / (10 * temporary))
"""


def fresh_share(mode: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Part of a program's temporary memory that is fresh pages in each call."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_pages_serve_the_next_call(monkeypatch):
    assert fresh_share("default", monkeypatch) > 0.9
    assert fresh_share("keep", monkeypatch) < 0.5


def test_hosts_of_accelerators_are_left_alone(monkeypatch):
    import jax

    from t0jax import memory

    monkeypatch.setattr(memory.jax, "config", type("Config", (), {"jax_platforms": "cuda,cpu"}))
    assert not memory.keep_pages()
    assert jax.default_backend() == "cpu"
