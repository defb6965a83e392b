"""What is held while models are read, made and written: shard by shard and tensor by tensor, never a whole model."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from clusters import finish, start
from safetensors.numpy import load_file, save_file

from t0jax import config as cfg
from t0jax import convert, models, optim, sharding, step
from t0jax.convert import files, writing

MODEL = cfg.Model(
    vocab_size=512, d_model=64, d_kv=8, d_ff=128, num_layers=2, num_decoder_layers=3, num_heads=8
)
MESHES = [(1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 1, 8)]
ON_MESHES = pytest.mark.parametrize("shape", MESHES, ids=str)


@pytest.fixture(scope="module")
def network():
    return models.build(MODEL)


@pytest.fixture(scope="module")
def params(network):
    return jax.jit(network.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def export(params, tmp_path_factory):
    return convert.save_params(params, MODEL, tmp_path_factory.mktemp("model") / "hf")


def shardings(network, shape):
    mesh = sharding.make_mesh(cfg.Mesh(*shape))
    return sharding.param_shardings(network.axes, network.shapes, mesh)


class Reads:
    """Counts the bytes that tensors are read by."""

    def __init__(self):
        self.total = self.largest = 0

    def watch(self, tensor):
        def read(rows):
            block = tensor.read(rows)
            self.total += block.nbytes
            self.largest = max(self.largest, block.nbytes)
            return block

        return dataclasses.replace(tensor, read=read)


def load_watched(export, network, where):
    reads = Reads()
    tensors = {name: reads.watch(t) for name, t in convert.open_tensors(export).items()}
    loaded = {
        entry.path: convert.load_entry(entry, tensors, entry.leaf(where))
        for entry in convert.name_table(network)
    }
    return reads, loaded


# Import


@ON_MESHES
def test_every_byte_is_read_once(shape, export, network, params):
    reads, loaded = load_watched(export, network, shardings(network, shape))
    assert reads.total == sum(x.nbytes for x in jax.tree.leaves(params))
    for entry in convert.name_table(network):
        np.testing.assert_array_equal(loaded[entry.path], entry.leaf(params))


@ON_MESHES
def test_small_groups_and_blocks_give_the_same(shape, export, network, params, monkeypatch):
    """No read is larger than a block, no group of shards than what may be held."""
    monkeypatch.setattr(convert, "HELD_BYTES", 3000)
    monkeypatch.setattr(files, "READ_BYTES", 700)
    groups = []
    read_shards = convert._read_shards

    def spy(*arguments):
        shards = read_shards(*arguments)
        groups.append((len(shards), sum(shard.nbytes for shard in shards.values())))
        return shards

    monkeypatch.setattr(convert, "_read_shards", spy)
    reads, loaded = load_watched(export, network, shardings(network, shape))
    assert reads.largest <= 700
    assert all(size <= 3000 or count == 1 for count, size in groups)
    for entry in convert.name_table(network):
        np.testing.assert_array_equal(loaded[entry.path], entry.leaf(params))


def test_only_the_rows_of_own_shards_are_read(export, network):
    """A process that holds one of 8 shards reads an eighth where shards are rows of the file."""
    entry = next(e for e in convert.name_table(network) if e.path[-2:] == ("mlp", "wo"))
    reads = Reads()
    tensors = {name: reads.watch(t) for name, t in convert.open_tensors(export).items()}
    layers, inputs, outputs = entry.shape
    bounds = ((0, layers), (0, inputs), (8, 16))
    shard = convert._read_shards(entry, tensors, [bounds])[bounds]
    assert shard.shape == (layers, inputs, 8)
    assert reads.total == layers * inputs * 8 * 4 == np.prod(entry.shape) * 4 // (outputs // 8)


def test_a_file_that_shrinks_is_an_error(export, network, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((export / file.name).read_bytes())
    tensors = convert.open_tensors(tmp_path)
    file.write_bytes(file.read_bytes()[:5000])
    last = convert.name_table(network)[-1]
    with pytest.raises(convert.ConvertError, match=r"model.safetensors was cut short"):
        convert.load_entry(last, tensors, last.leaf(shardings(network, (1, 8, 1))))


def test_other_element_types_are_refused(tmp_path):
    save_file({"shared.weight": np.zeros((2, 2), np.int8)}, tmp_path / "model.safetensors")
    tensors = convert.open_tensors(tmp_path)  # of a name that no model reads it would be no fault
    with pytest.raises(convert.ConvertError, match=r"shared\.weight is of I8"):
        tensors["shared.weight"].read(slice(0, 1))


# Random weights


@pytest.mark.parametrize("shape", MESHES[:1], ids=str)
def test_no_device_makes_more_than_its_shards(shape, network):
    """The compiled initialisation's own accounts, a device: results are its shards, work arrays less than 2 of each."""
    where = shardings(network, shape)
    program = jax.jit(network.init, out_shardings=where).lower(jax.random.key(0)).compile()
    shards = jax.tree.leaves(
        jax.tree.map(lambda x, s: 4 * int(np.prod(s.shard_shape(x.shape))), network.shapes, where)
    )
    memory = program.memory_analysis()
    tables = 16 * len(shards)  # of pointers to the results
    assert sum(shards) <= memory.output_size_in_bytes <= sum(shards) + tables + 1024
    # Random bits and their neighbours, of several leaves at once; an eighth each.
    assert memory.temp_size_in_bytes <= 2 * sum(shards)


def test_a_fresh_state_is_cut_like_its_parameters(network):
    mesh = sharding.make_mesh(cfg.Mesh(1, 8, 1))
    config = cfg.Config(model=MODEL)
    optimizer = optim.make_optimizer(config.optimizer, 10, network.axes)
    state = step.init_state(config, network, optimizer, mesh)
    where = step.state_shardings(network, optimizer, mesh)
    for leaf, planned in zip(jax.tree.leaves(state), jax.tree.leaves(where), strict=True):
        assert leaf.sharding.is_equivalent_to(planned, leaf.ndim)
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(state["params"]):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    total = sum(x.nbytes for x in jax.tree.leaves(state["params"]))
    assert max(held.values()) <= 1.05 * total / 8


# Export


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_those_that_safetensors_writes(dtype, export, params, tmp_path):
    folder = convert.save_params(params, MODEL, tmp_path / "hf", dtype, shard_bytes=100_000)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 3
    for name in names:
        save_file(load_file(folder / name), tmp_path / name, metadata={"format": "pt"})
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("shape", MESHES[1:2], ids=str)
def test_an_export_holds_one_tensor(shape, network, params, export, tmp_path, monkeypatch):
    """From any mesh the same bytes, and nothing of a tensor stays when the next is made."""
    alive = []
    file_tensor = writing._file_tensor

    def spy(*arguments):
        assert not [value for value in alive if value() is not None]
        value = file_tensor(*arguments)
        alive.append(weakref.ref(value))
        return value

    monkeypatch.setattr(writing, "_file_tensor", spy)
    placed = jax.device_put(params, shardings(network, shape))
    folder = convert.save_params(placed, MODEL, tmp_path / "hf")
    assert len(alive) == sum(len(entry.tensors) for entry in convert.name_table(network))
    for file in export.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


@pytest.fixture
def earlier(export, tmp_path):
    """An export that another is to take the place of, known by a file that only it has."""
    folder = shutil.copytree(export, tmp_path / "hf")
    (folder / "mine").write_text("")
    return folder


@pytest.mark.parametrize("refused", [1, 2])
def test_the_earlier_export_stays_when_the_new_one_cannot_take_its_place(
    earlier, params, monkeypatch, refused
):
    rename, calls = os.rename, []

    def refuse(*paths):
        calls.append(paths)
        if len(calls) == refused:
            raise OSError(errno.EIO, "Input/output error")
        rename(*paths)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        convert.save_params(params, MODEL, earlier)
    assert (earlier / "mine").exists()
    assert [path.name for path in earlier.parent.iterdir()] == ["hf"]


@pytest.mark.parametrize("refusals", [(2, 3), (2,)], ids=["not moved back", "killed"])
def test_an_earlier_export_that_was_moved_away_comes_back(earlier, params, monkeypatch, refusals):
    """Killed between the two renames, or no rename works: the next export begins with what there was."""
    rename, calls = os.rename, []

    class Killed(BaseException):
        pass

    def refuse(*paths):
        calls.append(paths)
        if len(calls) in refusals:
            raise Killed if len(refusals) == 1 else OSError(errno.EIO, "Input/output error")
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        if len(refusals) == 1:  # nothing more is done by a process that was killed
            patch.setattr(writing, "_exchange", lambda new, old, out: refuse(out, old) or refuse())
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises((OSError, Killed)):
            convert.save_params(params, MODEL, earlier)
    assert not earlier.exists()
    monkeypatch.setattr(writing, "_verify", lambda *_: pytest.fail("not now"))
    with pytest.raises(pytest.fail.Exception):
        convert.save_params(params, MODEL, earlier)
    assert (earlier / "mine").exists()
    monkeypatch.undo()
    other = earlier.with_name(".hf.new-mine")
    other.mkdir()
    convert.save_params(params, MODEL, earlier)
    assert not (earlier / "mine").exists()
    assert {path.name for path in earlier.parent.iterdir()} == {"hf", other.name}


# The real thing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "megabytes", "processes"),
    [("small", 308, 1), ("small", 308, 2), ("deberta-base", 735, 1)],
)
def test_peak_of_a_real_import(size, megabytes, processes, tmp_path):
    """Weights over 8 devices: beside them stay the groups of shards and the blocks being read."""
    command = [sys.executable, "-m", "scripts.bench", "convert", "--size", size]
    command += ["--folder", str(tmp_path), "--jobs", "import", "--processes", str(processes)]
    found = subprocess.run(
        [*command, "--json"],
        capture_output=True,
        text=True,
        env=os.environ,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == processes
    for row in rows:
        assert row["held"] == pytest.approx(1e6 * megabytes / processes, rel=0.01)
        assert row["peak"] <= row["held"] + 2 * convert.HELD_BYTES + 2 * files.READ_BYTES + 30e6


TWO_EXPORTS = """
import sys
import jax
from t0jax import config, convert, models, processes, sharding
from t0jax.convert import files

def full_disk(*_):
    raise OSError(28, "No space left on device")

with processes.cluster(patience=100):
    network = models.build(config.Model(**eval(sys.argv[2])))
    mesh = sharding.make_mesh(config.Mesh(data=1, fsdp=-1))
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    params = jax.jit(network.init, out_shardings=where)(jax.random.key(0))
    convert.save_params(params, network.config, sys.argv[1])
    files.SafetensorsFile.write = full_disk
    try:
        convert.save_params(params, network.config, sys.argv[1])
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_two_processes_export_and_agree_on_an_error(export, tmp_path):
    """The same files as one process writes; a full disk on the first one ends both, and the export stays."""
    arguments = ["-c", TWO_EXPORTS, str(tmp_path / "hf"), str(vars(MODEL))]
    said = finish(start(arguments, 2, 2))
    assert "OSError [Errno 28] No space left on device" in said[0]
    assert re.search(
        r"ProcessError .*failed on process 0 of 2 \(.*No space left on device", said[1]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    for file in export.iterdir():
        assert (tmp_path / "hf" / file.name).read_bytes() == file.read_bytes()
