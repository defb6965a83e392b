"""A checkpoint is all processes' together, and goes on on another mesh and another number of processes."""

import json
import shutil

import pytest
from clusters import finish, start

HALF, STEPS = 6, 12
TINY = [
    "--config", "configs/toy.yaml", "--model.d_model", "32", "--model.d_kv", "8", "--model.d_ff", "32",
    "--model.dropout_rate", "0.1", "--data.eval_mixture", "", "--data.batch_size", "8",
    "--data.input_length", "64", "--data.target_length", "16", "--optimizer.warmup_steps", "2",
    "--optimizer.schedule", "constant", "--train.log_every", "1", "--train.checkpoint_every", str(HALF),
    "--train.tensorboard", "false",
]  # fmt: skip


def train(run_dir, processes, devices, mesh, steps=STEPS):
    arguments = ["-m", "scripts.train", *TINY, "--train.steps", str(steps)]
    for axis, size in zip(("data", "fsdp", "model"), mesh, strict=True):
        arguments += [f"--mesh.{axis}", str(size)]
    cache = ["--train.compile_cache", str(run_dir.parent / "compiled")]
    finish(start([*arguments, *cache, "--train.output_dir", str(run_dir)], processes, devices))
    return run_dir


def column(run_dir, name):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row[name] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Never interrupted, on one process with 8 devices, and its checkpoint in the middle."""
    return train(tmp_path_factory.mktemp("whole") / "run", 1, 8, mesh=(2, 2, 2))


@pytest.fixture
def halfway(whole, tmp_path):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoints" / str(STEPS))
    return run_dir


def assert_goes_on_as(run_dir, whole):
    assert list(column(run_dir, "loss")) == list(range(1, STEPS + 1))
    assert column(run_dir, "loss") == pytest.approx(column(whole, "loss"), rel=1e-5)
    for name in ("examples", "target_tokens"):
        assert column(run_dir, name) == column(whole, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"), [(2, 2, (1, 4, 1)), (2, 2, (2, 1, 2)), (1, 8, (8, 1, 1))]
)
def test_a_checkpoint_of_8_devices_goes_on_elsewhere(halfway, whole, processes, devices, mesh):
    assert_goes_on_as(train(halfway, processes, devices, mesh), whole)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_on_one(whole, tmp_path):
    run_dir = train(tmp_path / "run", 2, 2, mesh=(2, 2, 1), steps=HALF)
    assert_goes_on_as(train(run_dir, 1, 8, mesh=(4, 2, 1)), whole)


ONE_CANNOT_READ = """
import os, shutil, sys
from pathlib import Path

import jax
jax.distributed.initialize(num_processes=2, process_id=int(os.environ["JAX_PROCESS_ID"]))
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from t0jax.checkpoint import Checkpoints, load_state, reading

run_dir, blind, index = Path(sys.argv[1]), int(sys.argv[2]), jax.process_index()
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
where = NamedSharding(mesh, PartitionSpec("data"))


def state(step):
    return {"params": {"a": jax.jit(lambda: jnp.full(64, step, "float32"), out_shardings=where)()}}


first = Checkpoints(run_dir, keep_last=2)
for step in (4, 8):
    first.save(step, state(step), {"step": step}, wait=True)
first.close()
broken = run_dir / "broken" / str(index)
shutil.copytree(run_dir / "checkpoints" / "8", broken)
for path in broken.glob("params/**/d/*"):
    path.unlink()
load, steps_in = reading.ocp.load_checkpointables, reading.steps_in


def load_broken(step, *args):
    return load(broken if index == blind and step.name == "8" else step, *args)


reading.ocp.load_checkpointables = load_broken
wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state(0))
if index != blind:  # a disk that shows a folder later
    reading.steps_in = lambda folder: [step for step in steps_in(folder) if step != 8]
second = Checkpoints(run_dir, keep_last=1)
found, metadata = second.restore(wanted)
values = {float(shard.data[0]) for shard in found["params"]["a"].addressable_shards}
loaded = float(load_state(run_dir, wanted)["params"]["a"].addressable_shards[0].data[0])
print("restored", metadata["step"], values, "loaded", loaded, "left", second.steps())
second.save(6, found, {"step": 6}, wait=True)
print("kept", second.steps())
second.close()
if index == 1:  # a directory cache that is older than all of them
    reading.steps_in = lambda folder: []
print("seen", Checkpoints(run_dir).steps())
"""


@pytest.mark.slow
@pytest.mark.parametrize("blind", [0, 1])
def test_what_one_process_cannot_read_none_uses(tmp_path, blind):
    """The blind one finds no arrays in step 8; the other does not even see its folder."""
    said = finish(start(["-c", ONE_CANNOT_READ, str(tmp_path), str(blind)], 2, 1))
    for text in said:
        assert "restored 4 {4.0} loaded 4.0 left [4]" in text
        assert "kept [6]" in text
        assert "seen [6]" in text
    assert f"process {blind}:" in said[0]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "8.damaged"]
