"""Chips by name: what they can do, and the devices of a topology that nobody has to hold."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from t0jax import config as config_lib
from t0jax import metrics

GIB = 2**30


class PlanError(config_lib.UserError):
    """A plan that cannot be made; the message names the topology or the setting and the way out."""


@dataclass(frozen=True)
class Chip:
    """One JAX device of a kind."""

    kind: str
    """JAX's `device_kind`; the peak FLOP/s is that of `metrics.PEAK_FLOPS`."""
    hbm: float
    """Bytes that a program may fill."""
    bandwidth: float
    """Of the memory, bytes/s."""
    links: float
    """Bytes/s that the device can send to others over all its links together."""
    source: str
    """Of the peak, the memory and the links."""
    units: tuple[int, int] = (0, 0)
    """(matrix units, numbers on a side) of a TPU; none for other devices."""
    dimensions: int = 0
    """Of a TPU's topology; 0 for other devices."""
    settings: tuple[tuple[str, str], ...] = ()
    """What libtpu is told besides the topology's name."""
    host: int = 0
    """Devices that `links` joins; 0 for all of them."""
    network: float = 0.0
    """Bytes/s that a device can send beyond them."""

    @property
    def flops(self) -> float | None:
        """bfloat16 FLOP/s; None on a CPU."""
        return metrics.PEAK_FLOPS.get(self.kind)

    @property
    def clock(self) -> float:
        """Cycles/s of a TPU, to read the compiler's estimates: the peak over the products of a cycle; else 0.

        1.05 GHz for v4, as its paper says (https://arxiv.org/abs/2304.01433); no source states the others', and v6e's
        rests on an inferred number of units (`CHIPS`).
        """
        number, side = self.units
        return self.flops / (2 * number * side**2) if self.flops and number else 0.0


_TPU = "https://docs.cloud.google.com/tpu/docs"
_GPU_SHARE = 0.92
GPU_MEMORY = f"XLA_PYTHON_CLIENT_MEM_FRACTION={_GPU_SHARE}"
"""What a GPU's plan takes as set; JAX leaves a quarter of the memory alone unless told."""


def _gpu(
    kind: str, memory: float, bandwidth: float, links: float, page: str, network: float
) -> Chip:
    source = f"https://www.nvidia.com/en-us/data-center/{page}"
    name = f"NVIDIA {kind}"
    return Chip(name, _GPU_SHARE * memory, bandwidth, links, source, host=8, network=network)


CHIPS = {
    # TPUs: `hbm` is no page's but what libtpu 0.0.42.1 itself gives when it refuses a program. Links are half of the
    # pages' bidirectional bandwidth; v4's page has none: 6 links of 50 GB/s, from table 4 of the paper named above (and
    # its bisection of 24 TB/s over 512 links of 4,096 chips). v6e's page has four matrix units in one version and
    # two in another; four are an inference, since only they give a clock near v5p's. Bandwidths are those of today's
    # pages; older versions have 819e9 for v5e and 1640e9 for v6e.
    "v4": Chip(
        "TPU v4", 30.75 * GIB, 1200e9, 300e9, f"{_TPU}/v4", (8, 128), 3,
        settings=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip("TPU v5 lite", 15.75 * GIB, 800e9, 200e9, f"{_TPU}/v5e", (4, 128), 2),
    "v5p": Chip("TPU v5", 95.74 * GIB, 2765e9, 600e9, f"{_TPU}/v5p", (8, 128), 3),
    "v6e": Chip("TPU v6 lite", 31.25 * GIB, 1600e9, 400e9, f"{_TPU}/v6e", (4, 256), 2),
    # GPUs: `hbm` is a share (`GPU_MEMORY`) of what CUDA gives a process, which no page states: an H100 has 79.1 GiB
    # (https://github.com/vllm-project/vllm/issues/27508), an H200 about 139; the A100 are put at a GiB less than
    # their names say, B200 at its page's 180e9 bytes. Links are half of NVLink's bandwidth; beyond a host of 8, one 200
    # (A100) or 400 Gbit/s port a GPU, as NVIDIA's DGX have.
    "a100-40g": _gpu("A100-SXM4-40GB", 39 * GIB, 1555e9, 300e9, "a100", 25e9),
    "a100-80g": _gpu("A100-SXM4-80GB", 79 * GIB, 2039e9, 300e9, "a100", 25e9),
    "h100": _gpu("H100 80GB HBM3", 79.1 * GIB, 3350e9, 450e9, "h100", 50e9),
    "h200": _gpu("H200", 139 * GIB, 4800e9, 450e9, "h200", 50e9),
    "b200": _gpu("B200", 180e9, 8000e9, 900e9, "dgx-b200", 50e9),
    "cpu": Chip("cpu", 0.0, 0.0, 0.0, "this machine"),
}  # fmt: skip
"""By the first part of a topology's name; pages as of 21 November 2026."""

SHAPES = {
    2: ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    3: [
        "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "12x12x12",
        "16x16x16", "16x16x24",
    ],
}  # fmt: skip
"""Slices that Google rents (the pages of `CHIPS`), to name when another is asked for."""


@dataclass(frozen=True)
class Topology:
    """`v5p:4x4x4` or `h100:8`, read."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Chips, each of them one JAX device."""
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        return bool(self.chip.dimensions)

    @property
    def compiles(self) -> bool:
        """Whether a compiler for it is at hand; GPUs are planned by arithmetic alone."""
        return self.is_tpu or self.chip.kind == "cpu"


def parse(name: str) -> Topology:
    """Reads `KIND:SHAPE`.

    Raises:
        PlanError: the kind is unknown or the shape is none of such a kind; the message lists what is near.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise PlanError(
            f"unknown topology {name!r}: kinds are {', '.join(CHIPS)}, e.g. v5p:4x4x4 or h100:8"
        )
    chip = CHIPS[kind]
    sizes = tuple(map(int, shape.split("x"))) if re.fullmatch(r"\d+(x\d+)*", shape) else ()
    if not sizes or 0 in sizes or len(sizes) != (chip.dimensions or 1):
        form = (
            "a number of devices"
            if not chip.dimensions
            else f"{chip.dimensions} sizes with x between"
        )
        raise PlanError(
            f"topology {name!r}: {kind} takes {form}, e.g. {', '.join(near(kind, sizes or (8,)))}"
        )
    return Topology(name, chip, sizes)


def near(kind: str, sizes: Sequence[int], limit: int = 4) -> list[str]:
    """Names of slices of about as many chips, nearest first."""
    dimensions = CHIPS[kind].dimensions
    if not dimensions:
        return [f"{kind}:{n}" for n in (1, 8, 64)]
    wanted = math.prod(sizes)

    def distance(shape: str) -> float:
        have = math.prod(map(int, shape.split("x")))
        return max(have / wanted, wanted / have)

    return [f"{kind}:{shape}" for shape in sorted(SHAPES[dimensions], key=distance)[:limit]]


def devices(topology: Topology) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]  a class of the C extension
    """Its devices, to compile for; CPU devices are this process's own.

    Raises:
        PlanError: libtpu is missing or does not know the topology, or this process has too few CPU devices.
    """
    if topology.chip.kind == "cpu":
        here = jax.devices("cpu")
        if len(here) < topology.count:
            raise PlanError(
                f"{topology.name} needs {topology.count} CPU devices and this process has {len(here)}: set "
                f"JAX_NUM_CPU_DEVICES={topology.count}"
            )
        return here[: topology.count]
    return _tpu_devices(topology)


def _tpu_devices(topology: Topology) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]  a class of the C extension
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            f"compiling for {topology.name} needs libtpu: pip install -e '.[plan]' (no TPU is needed)"
        )
    # Nothing here is a TPU machine: its metadata server is not asked, and several plans may run side by side.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **_settings(topology)
        )
    except jax.errors.JaxRuntimeError as error:
        kind = topology.name.partition(":")[0]
        accepted = [name for name in near(kind, topology.shape) if _accepts(parse(name))]
        raise PlanError(
            f"libtpu does not know {topology.name}: {str(error).splitlines()[0]}; it accepts {', '.join(accepted)}"
        ) from None
    return list(found.devices)


def _settings(topology: Topology) -> dict[str, object]:
    """libtpu takes hosts of 2x2 chips unless it is told of smaller ones."""
    settings: dict[str, object] = dict(topology.chip.settings)
    if topology.count < 4:
        settings["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
    return settings


def _accepts(topology: Topology) -> bool:
    from jax.experimental import topologies

    try:
        topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **_settings(topology)
        )
    except jax.errors.JaxRuntimeError:
        return False
    return True
