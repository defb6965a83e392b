"""Meshes, placement and prefetching on eight fake devices."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t0jax import config, sharding
from t0jax.config import ConfigError


def test_minus_one_takes_what_is_left():
    assert dict(sharding.make_mesh(config.Mesh()).shape) == {"data": 8, "fsdp": 1, "model": 1}
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=-1, model=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1), (-1, 5, 1)])
def test_a_mesh_that_does_not_cover_the_devices_is_refused(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        sharding.make_mesh(config.Mesh(*sizes))


def test_dimensions_that_do_not_divide_stay_whole():
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))
    assert sharding.spec(("embed", "mlp"), (6, 4), mesh) == PartitionSpec("fsdp", "model")
    assert sharding.spec(("embed", "heads"), (6, 5), mesh) == PartitionSpec("fsdp", None)


def test_placed_rows_are_cut_over_data_and_fsdp_and_keep_their_order():
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))
    rows = np.arange(32).reshape(8, 4)
    placed = sharding.place({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 4)}


def test_constrain_is_the_identity_without_a_mesh_and_pins_under_one():
    x = np.ones((8, 4), np.float32)
    constrain = jax.jit(lambda x: sharding.constrain(x, "batch", "width"))
    np.testing.assert_array_equal(constrain(x), x)
    mesh = sharding.make_mesh(config.Mesh(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        assert constrain(x).sharding.spec == PartitionSpec(("data", "fsdp"))


def test_prefetch_keeps_order_and_passes_what_comes_with_a_batch():
    mesh = sharding.make_mesh(config.Mesh())
    batches = (({"x": np.full((8,), i)}, f"position {i}") for i in range(5))
    got = [(int(batch["x"][0]), extra) for batch, extra in sharding.prefetch(batches, mesh)]
    assert got == [(i, f"position {i}") for i in range(5)]


def test_prefetch_raises_the_readers_error_after_the_good_batches():
    def read():
        yield {"x": np.zeros(8)}, None
        raise KeyError("row 7")

    batches = sharding.prefetch(read(), sharding.make_mesh(config.Mesh()))
    next(batches)
    with pytest.raises(KeyError, match="row 7"):
        next(batches)


def test_closing_prefetch_stops_reading():
    read = []

    def endless():
        while True:
            read.append(None)
            yield {"x": np.zeros(8)}, None

    batches = sharding.prefetch(endless(), sharding.make_mesh(config.Mesh()), depth=2)
    next(batches)
    batches.close()
    assert len(read) <= 5  # given out, two ready, one in hand


@pytest.mark.parametrize(
    ("batch", "parts", "sizes", "near"),
    [
        (12, 1, (4, 2, 1), "set it to 8 or 16 (a multiple of 8)"),
        (24, 4, (2, 2, 2), "set it to 16 or 32 (a multiple of 16)"),
        (4, 1, (8, 1, 1), "set it to 8 (a multiple of 8)"),
    ],
)
def test_a_batch_that_the_devices_do_not_divide_is_refused(batch, parts, sizes, near):
    mesh = sharding.make_mesh(config.Mesh(*sizes))
    with pytest.raises(ConfigError, match=f"data.batch_size {batch} .*") as caught:
        sharding.check_rows(batch, parts, mesh)
    assert near in str(caught.value)
    assert f"mesh.data {sizes[0]} x mesh.fsdp {sizes[1]}" in str(caught.value)
    sharding.check_rows(48, 3, mesh)


def pretended(sizes, each):
    """A mesh whose devices belong, `each` at a time, to processes 0, 1, ..."""
    processes = np.arange(np.prod(sizes)).reshape(sizes) // each
    devices = np.vectorize(lambda p: SimpleNamespace(process_index=p), otypes=[object])(processes)
    shape = dict(zip(sharding.MESH_AXES, sizes, strict=True))
    return SimpleNamespace(devices=devices, shape=shape, size=devices.size)


def shares(sizes, each, monkeypatch):
    """`process_slice` as each process sees it."""
    mesh, found = pretended(sizes, each), []
    for process in range(mesh.size // each):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(sharding.process_slice(mesh))
    return found


@pytest.mark.parametrize(
    ("sizes", "each", "expected"),
    [
        ((8, 1, 1), 4, [(0, 2), (1, 2)]),
        ((1, 4, 2), 4, [(0, 2), (1, 2)]),
        ((1, 1, 8), 4, [(0, 1), (0, 1)]),  # both hold every row
        ((2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 2, 4), 1, [(0, 2)] * 4 + [(1, 2)] * 4),
        ((2, 4, 1), 1, [(i, 8) for i in range(8)]),
    ],
)
def test_processes_share_a_batchs_rows_as_the_mesh_cuts_them(sizes, each, expected, monkeypatch):
    assert shares(sizes, each, monkeypatch) == expected


def test_a_mesh_that_cuts_rows_across_processes_is_refused_on_all_of_them(monkeypatch):
    """Processes 0 and 2 hold whole rows; had only process 1 refused, they would wait for it."""
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        with pytest.raises(ConfigError, match="unevenly over 3 processes of 2 devices"):
            sharding.process_slice(pretended((2, 1, 3), 2))
