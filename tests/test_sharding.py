"""Meshes, placement and prefetching on eight fake devices."""

import dataclasses
import math
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


@dataclasses.dataclass(frozen=True)
class TorusChip:
    """A TPU device, as far as a mesh looks at it."""

    id: int
    coords: tuple[int, ...]
    device_kind: str = "TPU v4"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


def torus(*sides, number=0):
    """Slice `number` of as many as one likes."""
    first = number * math.prod(sides)
    return [
        TorusChip(first + i, coords[::-1], slice_index=number)
        for i, coords in enumerate(np.ndindex(*sides))
    ]


@pytest.mark.parametrize("sizes", [(4, 16, 1), (2, 32, 1), (1, 8, 8), (-1, 2, 1)])
def test_any_factors_of_a_torus_are_a_mesh(sizes):
    chips = torus(4, 4, 4)
    mesh = sharding.make_mesh(config.Mesh(*sizes), chips)
    assert all(n in (have, -1) for n, have in zip(sizes, mesh.devices.shape, strict=True))
    assert set(mesh.devices.flat) == set(chips)


def test_a_torus_that_takes_no_such_mesh_is_named(monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("Failed to find assignment")

    monkeypatch.setattr("jax.experimental.mesh_utils.create_device_mesh", refuse)
    message = r"'fsdp': 32.*these 64 TPU v4 chips.*products of whole sides"
    with pytest.raises(config.ConfigError, match=message):
        sharding.make_mesh(config.Mesh(2, 32, 1), torus(4, 4, 4))


def two_slices():
    """Two `v5e:4x4`; devices do not come sorted by slice."""
    chips = [
        dataclasses.replace(chip, device_kind="TPU v5 lite")
        for number in range(2)
        for chip in torus(4, 4, 1, number=number)
    ]
    return chips[::2] + chips[1::2]


@pytest.mark.parametrize("sizes", [(2, 16, 1), (4, 2, 4), (-1, 4, 1)])
def test_slices_follow_the_data_axis_and_no_other_axis_leaves_one(sizes):
    mesh = sharding.make_mesh(config.Mesh(*sizes), two_slices())
    assert set(mesh.devices.flat) == set(two_slices())
    of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    expected = np.repeat([0, 1], len(of) // 2)
    np.testing.assert_array_equal(of, np.broadcast_to(expected[:, None, None], of.shape))


@pytest.mark.parametrize("sizes", [(1, 32, 1), (1, 16, 2)])
def test_a_mesh_whose_fsdp_would_leave_a_slice_is_refused(sizes):
    with pytest.raises(config.ConfigError, match=r"data 1 is not .* 2 TPU slices.*--mesh.data 2"):
        sharding.make_mesh(config.Mesh(*sizes), two_slices())


def test_gpus_of_several_hosts_are_one_mesh_in_the_order_of_their_numbers():
    """JAX gives every host a slice of its own, and `jax.make_mesh` refuses several."""
    gpus = [TorusChip(i, (), "NVIDIA H200", "gpu", slice_index=i // 8) for i in range(16)]
    mesh = sharding.make_mesh(config.Mesh(1, 16, 1), gpus[::-1])
    assert mesh.devices.flatten().tolist() == gpus
