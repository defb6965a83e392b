"""Devices: forming the mesh, and one table that says where every logical axis lives."""

import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from t0jax import config as config_lib
from t0jax.config import ConfigError

Extra = TypeVar("Extra")

MESH_AXES = ("data", "fsdp", "model")

AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "vocab": "model",
    "heads": "model",
    "mlp": "model",
    "embed": "fsdp",
    # Activations keep their width whole: 'fsdp' already carries the batch there.
    "width": None,
    "length": None,
    "layers": None,
    "relpos_buckets": None,
    "tasks": None,
    "labels": None,
}
"""Logical axis -> mesh axes. The seed is t5x's standard table (t5x/partitioning.py)."""


def process_slice(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """(index, count): which share of a batch's rows this process feeds.

    Processes that hold the same rows (a `model` axis over several of them) have one share together.

    Raises:
        ConfigError: two processes hold some rows in common but not all; raised on every process.
    """
    blocks = mesh.devices.reshape(-1, mesh.shape["model"])
    owners = [frozenset(device.process_index for device in block) for block in blocks]
    groups = list(dict.fromkeys(owners))
    processes = [process for group in groups for process in group]
    if len(processes) > len(set(processes)) or len({owners.count(group) for group in groups}) > 1:
        raise ConfigError(
            f"mesh {dict(mesh.shape)} cuts a batch unevenly over {len(set(processes))} processes of "
            f"{mesh.size // len(set(processes))} devices; choose a mesh.model that divides a process's devices or is "
            "a multiple of them"
        )
    mine = next(i for i, group in enumerate(groups) if jax.process_index() in group)
    return mine, len(groups)


def make_mesh(
    config: config_lib.Mesh,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  a class of the C extension
) -> jax.sharding.Mesh:
    """The (data, fsdp, model) mesh over `devices` (all of them by default).

    Raises:
        ConfigError: the axes do not multiply to the number of devices, or cannot be laid on TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.model]
    wanted = f"mesh {dict(zip(MESH_AXES, sizes, strict=True))}"
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ConfigError(
            f"{wanted}: sizes are positive; one axis at most may be -1 (what is left)"
        )
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise ConfigError(
            f"{wanted} needs {'a multiple of ' if -1 in (config.data, config.fsdp, config.model) else ''}{known} "
            f"devices, there are {len(devices)}; set mesh.data to -1 and the others so that they divide that number"
        )
    types = (AxisType.Auto,) * 3
    return jax.sharding.Mesh(_arranged(sizes, devices), MESH_AXES, axis_types=types)


def _arranged(
    sizes: Sequence[int],
    devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]  a class of the C extension
) -> np.ndarray:
    """The devices with neighbours on the last axis first; TPU slices, which a slower network joins, follow `data`.

    Axes that are no products of whole sides of a TPU's torus, e.g. 32 of 4x4x4, cut sides.
    """
    data, *inner = sizes
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        slices = 1
    elif data % slices:
        raise ConfigError(
            f"mesh.data {data} is not a multiple of the {slices} TPU slices, and fsdp and model cannot cross from one "
            f"to another; set --mesh.data {slices} or a multiple of it"
        )
    try:
        if slices > 1:
            return mesh_utils.create_hybrid_device_mesh(
                (data // slices, *inner), (slices, 1, 1), devices, allow_split_physical_axes=True
            )
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except NotImplementedError as error:
        raise ConfigError(
            f"mesh {dict(zip(MESH_AXES, sizes, strict=True))} cannot be laid on these {len(devices)} "
            f"{devices[0].device_kind} chips ({str(error).splitlines()[0]}); choose axes that are products of whole "
            "sides of the topology, e.g. 4 and 16 of 4x4x4"
        ) from None


def spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: jax.sharding.Mesh | AbstractMesh
) -> PartitionSpec:
    """The partition of an array with these logical axes.

    A dimension that its mesh axes do not divide stays whole, so that small models run on any mesh.
    """
    parts = []
    for name, size in zip(names, shape, strict=True):
        axes = AXES[name] if name else None
        members = (axes,) if isinstance(axes, str) else axes or ()
        ways = int(np.prod([mesh.shape[axis] for axis in members]))
        parts.append(axes if ways > 1 and size % ways == 0 else None)
    return PartitionSpec(*parts)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation to its logical axes under `jax.set_mesh`; the identity without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def param_shardings(axes: Any, shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """A NamedSharding for every parameter; `axes` has tuples of names where `shapes` has shapes."""
    return jax.tree.map(
        lambda shape, names: NamedSharding(mesh, spec(names, shape.shape, mesh)), shapes, axes
    )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh, leading: int = 0) -> NamedSharding:
    """Rows over (data, fsdp); `leading` axes before the rows (micro-batches) stay whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, AXES["batch"]))


def row_ways(mesh: jax.sharding.Mesh | AbstractMesh) -> int:
    """Over how many devices the rows of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(batch_size: int, parts: int, mesh: jax.sharding.Mesh | AbstractMesh) -> None:
    """Refuses a batch that `parts` micro-batches and the devices which hold rows do not divide.

    Args:
        batch_size: `data.batch_size`, rows over all processes.
        parts: `train.grad_accumulation`.
        mesh: every device of a `data` x `fsdp` pair holds rows of its own.

    Raises:
        ConfigError: names the sizes and those that would do.
    """
    ways, shape = row_ways(mesh), mesh.shape
    if batch_size % (ways * parts) == 0:
        return
    step = ways * parts
    below = batch_size // step * step
    near = f"{below} or {below + step}" if below else str(step)
    raise ConfigError(
        f"data.batch_size {batch_size} cannot be cut into train.grad_accumulation {parts} micro-batches over mesh.data "
        f"{shape['data']} x mesh.fsdp {shape['fsdp']} devices; set it to {near} (a multiple of {step}), accumulate "
        "over fewer micro-batches, or give devices to mesh.model, which holds no rows"
    )


def place(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This process's rows -> global arrays, rows cut over (data, fsdp)."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def prefetch(
    batches: Iterator[tuple[Mapping[str, np.ndarray], Extra]],
    mesh: jax.sharding.Mesh,
    depth: int = 2,
) -> Generator[tuple[dict[str, jax.Array], Extra], None, None]:
    """Reads and places batches in a thread, up to `depth` ahead, so that devices do not wait for the host.

    What comes with a batch (the reader's position after it) is passed on beside it. An error of the reader is
    raised here; closing the generator stops the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch, extra in batches:
                put((place(batch, mesh), extra))
                if stopped.is_set():
                    return
            put(StopIteration())
        except BaseException as error:  # raised again in the consumer's thread
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), StopIteration):
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
