"""Which mesh, recomputation and micro-batch are the fastest of those that fit?"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
TIGHT = 1.2
"""Settings that would not fit with this many times the memory of arithmetic are compiled after the others."""


@dataclass(frozen=True)
class _Candidate:
    config: Config
    needed: float
    """Bytes of a device, by arithmetic."""
    seconds: float
    """Of a row, by arithmetic."""


def candidates(config: Config, topology: Topology, job: Job) -> list[Config]:
    """Settings that divide and fit by arithmetic, in the order in which to try them.

    Where arithmetic has the last word: fastest first. Where a compiler has, which can try a few alone: the best mesh
    of every (remat, grad_accumulation, mesh.model) before a second one, since neighbouring meshes differ little, and
    near misses at the end.

    Raises:
        PlanError: nobody states how fast such a device is, or nothing fits.
    """
    if not topology.chip.flops:
        raise PlanError(
            f"{topology.name} has no stated speed to rank settings by; name a TPU or a GPU"
        )
    found = [_candidate(one, topology, job) for one in _settings(config, topology, job)]
    room = topology.chip.hbm * (MARGIN if topology.compiles else 1.0)
    fitting = sorted(
        (one for one in found if one.needed <= room), key=lambda one: (one.seconds, one.needed)
    )
    if not fitting:
        raise PlanError(_nothing_fits(config, topology, found))
    if topology.compiles:
        fitting = _varied(fitting, topology.chip.hbm)
    return [one.config for one in fitting]


def _candidate(config: Config, topology: Topology, job: Job) -> _Candidate:
    sizes = config.mesh
    mesh = analytic.abstract_mesh(sizes.data, sizes.fsdp, sizes.model)
    seconds = estimate(config, topology, job).predicted
    # The rows of a micro-batch of scoring differ from mesh to mesh.
    rows = analytic.work(config, sizes.data * sizes.fsdp, job).rows
    return _Candidate(config, analytic.memory(config, mesh, job).peak, seconds / rows)


def _varied(ordered: Sequence[_Candidate], hbm: float) -> list[_Candidate]:
    """Candidates, fastest first, so that those of one kind do not stand before all others."""
    seen: Counter[tuple[bool, str, int, int]] = Counter()
    ranked = []
    for one in ordered:
        tight, model = one.needed * TIGHT > hbm, one.config.mesh.model
        kind = (tight, one.config.model.remat, one.config.train.grad_accumulation, model)
        ranked.append((tight, seen[kind], one))
        seen[kind] += 1
    return [one for *_, one in sorted(ranked, key=lambda x: x[:2])]


def _nothing_fits(config: Config, topology: Topology, found: Sequence[_Candidate]) -> str:
    if not found:
        return (
            f"no mesh of {topology.count} devices divides data.batch_size {config.data.batch_size} and the model's "
            "widths; take another number of chips"
        )
    smallest, have = min(one.needed for one in found) / 1e9, topology.chip.hbm / 1e9
    return (
        f"no mesh, model.remat or train.grad_accumulation fits {topology.name} by arithmetic: the smallest needs "
        f"{smallest:.1f} of {have:.1f} GB; take more chips or larger ones"
    )


def estimate(config: Config, topology: Topology, job: Job) -> roofline.Times:
    """By arithmetic alone, of a device whose speed is stated."""
    sizes = config.mesh
    mesh = analytic.abstract_mesh(sizes.data, sizes.fsdp, sizes.model)
    one = analytic.work(config, sizes.data * sizes.fsdp, job)
    moved = analytic.memory_traffic(config, mesh, job)
    times = roofline.times(topology, one, moved, _sent(config, topology, job))
    assert times is not None, topology.name
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
