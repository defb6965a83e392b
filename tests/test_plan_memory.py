"""The memory that a plan states against what a run of the same step takes: eight CPU devices of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import ctypes, dataclasses, gc, json, sys
import jax, numpy as np
from t0jax import config, models, optim, plan, sharding
from t0jax.plan import programs
from t0jax.step import abstract_state, init_state, jit_step

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def measure(settings):
    made = plan.make_plan(settings, "cpu:8", say=lambda _: None)
    settings = made.config
    mesh = sharding.make_mesh(settings.mesh)
    network = models.build(settings.model)
    optimizer = optim.make_optimizer(settings.optimizer, settings.train.steps, network.axes)
    with jax.set_mesh(mesh):
        abstract = abstract_state(network, optimizer, mesh), programs.abstract_batch(settings, mesh)
        step = jit_step(settings, network, optimizer, mesh).lower(*abstract).compile()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base = status("VmRSS")
    state = init_state(settings, network, optimizer, mesh)
    batch = sharding.place({k: np.ones(x.shape, x.dtype) for k, x in abstract[1].items()}, mesh)
    jax.block_until_ready((state, batch))
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    jax.block_until_ready(step(state, batch))
    return 8 * (made.memory.peak - made.memory.code), status("VmHWM") - base

large = config.parse(sys.argv[1:], "")[0]
rows = 8 * large.train.grad_accumulation
small = dataclasses.replace(large, data=dataclasses.replace(large.data, batch_size=rows))
print(json.dumps([measure(small), measure(large)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "choice",
    [
        ["--mesh.fsdp", "4", "--model.remat", "full"],
        ["--mesh.fsdp", "2", "--model.remat", "dots", "--train.grad_accumulation", "2"],
        ["--mesh.fsdp", "8", "--model.remat", "none"],
    ],
    ids=lambda choice: choice[3],
)
def test_a_run_takes_the_memory_that_its_plan_states(choice):
    """Resident memory over that before the state was there, at its highest in the first step: within 15%.

    The scratch of matrix products and of the runtime, which no plan has, is what a step with a row a device takes more.
    """
    shape = {
        "model": {"d_model": 512, "num_layers": 4, "vocab_size": 8192},
        "data": {"input_length": 512, "target_length": 128, "batch_size": 64},
    }
    flags = [
        f"--{part}.{key}={value}" for part, keys in shape.items() for key, value in keys.items()
    ]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "XLA_FLAGS": "",
        # Large blocks go back to the system when they are freed, so that resident means in use.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    found = subprocess.run(
        [sys.executable, "-c", RUN, *flags, *choice],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    small, large = json.loads(found.stdout.splitlines()[-1])
    scratch = small[1] - small[0]
    assert large[0] + scratch == pytest.approx(large[1], rel=0.15)
