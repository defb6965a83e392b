"""Which mesh, recomputation and micro-batch are the fastest of those that fit?"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from t0jax import config as config_lib
from t0jax.config import Config
from t0jax.plan import analytic, roofline
from t0jax.plan.programs import Job
from t0jax.plan.topology import PlanError, Topology


class Measured(Protocol):
    """A plan, as far as a search looks at it."""

    @property
    def fits(self) -> bool: ...

    @property
    def row_seconds(self) -> float: ...


Tried = TypeVar("Tried", bound=Measured)

REMATS = ("none", "dots", "full")
MARGIN = 1.3
"""Settings that would need this many times the memory by arithmetic are not compiled; arithmetic is within a third."""


def candidates(config: Config, topology: Topology, job: Job) -> list[Config]:
    """Settings that divide and fit by arithmetic, fastest first; then near misses, if a compiler has the last word."""
    found = []
    margin = MARGIN if topology.compiles else 1.0
    for one in _settings(config, topology, job):
        mesh = analytic.abstract_mesh(one.mesh.data, one.mesh.fsdp, one.mesh.model)
        needed = analytic.memory(one, mesh, job).peak
        if needed > topology.chip.hbm * margin:
            continue
        seconds = estimate(one, topology, job).predicted
        if job == "evaluate":  # the rows of a micro-batch differ from mesh to mesh
            seconds /= analytic.work(one, one.mesh.data * one.mesh.fsdp, job).rows
        found.append((needed > topology.chip.hbm, seconds, needed, one))
    return [one for *_, one in sorted(found, key=lambda x: x[:3])]


def estimate(config: Config, topology: Topology, job: Job) -> roofline.Times:
    """By arithmetic alone.

    Raises:
        PlanError: nobody states how fast such a device is.
    """
    sizes = config.mesh
    mesh = analytic.abstract_mesh(sizes.data, sizes.fsdp, sizes.model)
    one = analytic.work(config, sizes.data * sizes.fsdp, job)
    moved = analytic.memory_traffic(config, mesh, job)
    times = roofline.times(topology, one, moved, _sent(config, topology, job))
    if times is None:
        raise PlanError(
            f"{topology.name} has no stated speed to rank settings by; name a TPU or a GPU"
        )
    return times


def _sent(config: Config, topology: Topology, job: Job) -> float:
    """Bytes sent over `links`; those that leave a host, over a slower network, count for as many as take as long."""
    chip, sizes = topology.chip, config.mesh
    mesh = analytic.abstract_mesh(sizes.data, sizes.fsdp, sizes.model)
    # Neighbours on the last axis sit in one host first (`sharding.MESH_AXES`).
    reach = {"model": sizes.model, "fsdp": sizes.model * sizes.fsdp, "data": topology.count}
    total = 0.0
    for _, axis, size in analytic.collectives(config, mesh, job):
        leaves = chip.host and reach[axis] > chip.host
        total += size * (chip.links / chip.network if leaves else 1.0)
    return total


def _settings(config: Config, topology: Topology, job: Job) -> Iterator[Config]:
    remats = REMATS if job == "train" else (config.model.remat,)
    for data, fsdp, model in _meshes(topology.count):
        if (
            config.model.num_heads % model
            or config.model.d_ff % model
            or config.model.d_model % fsdp
        ):
            continue
        for parts in _parts(config.data.batch_size, data * fsdp) if job == "train" else (1,):
            for remat in remats:
                yield dataclasses.replace(
                    config,
                    mesh=config_lib.Mesh(data, fsdp, model),
                    model=dataclasses.replace(config.model, remat=remat),
                    train=dataclasses.replace(config.train, grad_accumulation=parts),
                )


def _meshes(count: int) -> Iterator[tuple[int, int, int]]:
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    for model in divisors:
        for fsdp in divisors:
            if count % (model * fsdp) == 0:
                yield count // (model * fsdp), fsdp, model


def _parts(rows: int, ways: int) -> list[int]:
    """Numbers of micro-batches, powers of two, that leave every device whole rows."""
    return [parts for k in range(12) if rows % (ways * (parts := 2**k)) == 0]


def try_in_order(
    ordered: Sequence[Config],
    measure: Callable[[Config], Tried],
    *,
    wanted: int,
    limit: int,
    say: Callable[[str], None],
) -> list[Tried]:
    """Measures candidates in their order until `wanted` fit or `limit` were tried.

    Args:
        ordered: most promising first.
        measure: makes the plan of a candidate; one that raises PlanError is left out, with a word.
        wanted: how many that fit are enough.
        limit: how many may be measured; compiling takes minutes.
        say: takes notes on what is going on.

    Returns:
        All that were measured: those that fit, fastest first, then the others. Ctrl-C ends with what there is.
    """
    found: list[Tried] = []
    for number, one in enumerate(ordered[:limit], start=1):
        say(f"setting {number} of at most {min(limit, len(ordered))}")
        try:
            found.append(measure(one))
        except PlanError as error:
            say(f"left out: {error}")
        except KeyboardInterrupt:
            if not found:
                raise
            say("interrupted: ranking what there is")
            break
        if sum(plan.fits for plan in found) == wanted:
            break
    return sorted(found, key=lambda plan: (not plan.fits, plan.row_seconds))
