"""Meshes, placement and prefetching on eight fake devices."""

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
