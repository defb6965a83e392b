"""What a job would take on machines that nobody has rented yet: memory, time and cost, before the first step."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from t0jax import metrics, sharding
from t0jax.config import Config, ConfigError, Mesh
from t0jax.plan import analytic, compiled, programs, roofline, search, topology
from t0jax.plan.analytic import Work
from t0jax.plan.compiled import Memory
from t0jax.plan.programs import Job
from t0jax.plan.roofline import Recipe, Times
from t0jax.plan.topology import PlanError, Topology

__all__ = ["Job", "Plan", "PlanError", "find_settings", "make_plan", "settings_line", "table"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """One job with one setting on one topology."""

    config: Config
    topology: Topology
    job: Job
    work: Work
    memory: Memory
    sent: dict[str, float]
    """Bytes that a device sends in a step, by kind of collective."""
    memory_bytes: float
    """That a device reads and writes in a step."""
    times: Times | None
    recipe: Recipe | None
    compile_seconds: float | None
    """None where all is arithmetic."""
    unknown_loops: int = 0

    @property
    def room(self) -> float | None:
        """Bytes left on a device, negative where it does not fit; None for a CPU."""
        return self.topology.chip.hbm - self.memory.peak if self.topology.chip.hbm else None

    @property
    def fits(self) -> bool:
        return self.room is None or self.room >= 0


def make_plan(
    config: Config, name: str, *, job: Job = "train", price: float | None = None, say: Say = print
) -> Plan:
    """Plans `job` of a recipe on a topology.

    Args:
        config: the recipe; its mesh must multiply to the topology's devices.
        name: `v5p:4x4x4`, `h100:8`, `cpu:8`.
        job: a training step, or a micro-batch of rank classification.
        price: of one chip for an hour.
        say: takes notes on what is going on.

    Raises:
        PlanError: the topology, libtpu, or rows that do not divide.
        ConfigError: the mesh is another number of devices.
    """
    place = _find(name)
    config = with_whole_mesh(programs.adopt_architecture(config), place)
    programs.check(config, config.mesh.data * config.mesh.fsdp, job)
    if place.compiles:
        return _compiled_plan(config, place, job, price, say)
    return _analytic_plan(config, place, job, price)


def _find(name: str) -> Topology:
    """The topology, if it can be planned for here: that is said before anything else is looked at."""
    place = topology.parse(name)
    if place.compiles:
        topology.devices(place)
    return place


def with_whole_mesh(config: Config, place: Topology) -> Config:
    """The mesh with its -1 filled in.

    Raises:
        ConfigError: it does not multiply to the topology's devices.
    """
    sizes = dataclasses.astuple(config.mesh)
    known = math.prod(size for size in sizes if size != -1)
    whole = [place.count // max(known, 1) if size == -1 else size for size in sizes]
    if any(size < 1 for size in whole) or math.prod(whole) != place.count:
        raise ConfigError(
            f"mesh {dict(zip(sharding.MESH_AXES, sizes, strict=True))} does not multiply to the {place.count} devices "
            f"of {place.name}; set --mesh.data -1 and the others so that they divide {place.count}, or --search"
        )
    return dataclasses.replace(config, mesh=Mesh(*whole))


def _compiled_plan(
    config: Config, place: Topology, job: Job, price: float | None, say: Say
) -> Plan:
    mesh = topology.make_mesh(place, config.mesh)
    say(f"compiling for {place.name}: {settings_line(config, job)}")
    one = compiled.compile_program(programs.lower(config, mesh, job))
    traffic = one.traffic
    work = analytic.work(config, sharding.row_ways(mesh), job)
    if traffic is None:
        return Plan(config, place, job, work, one.memory, {}, 0.0, None, None, one.seconds)
    times = roofline.times(
        place, work, traffic.memory_bytes, sum(traffic.sent().values()), traffic.cycles
    )
    return Plan(
        config, place, job, work, one.memory, traffic.sent(), traffic.memory_bytes, times,
        _recipe(config, place, job, times, price), one.seconds, traffic.unknown_loops,
    )  # fmt: skip


def _analytic_plan(config: Config, place: Topology, job: Job, price: float | None) -> Plan:
    mesh = analytic.abstract_mesh(*dataclasses.astuple(config.mesh))
    times = search.estimate(config, place, job)
    return Plan(
        config, place, job, analytic.work(config, sharding.row_ways(mesh), job), analytic.memory(config, mesh, job),
        analytic.sent(config, mesh, job), analytic.memory_traffic(config, mesh, job), times,
        _recipe(config, place, job, times, price), None,
    )  # fmt: skip


def _recipe(
    config: Config, place: Topology, job: Job, times: Times | None, price: float | None
) -> Recipe | None:
    if times is None or job != "train":
        return None
    return roofline.recipe(place, config.train.steps, times.predicted, price)


def find_settings(
    config: Config,
    name: str,
    *,
    job: Job = "train",
    price: float | None = None,
    wanted: int = 3,
    limit: int = 6,
    say: Say = print,
) -> list[Plan]:
    """Plans with the settings that fit, fastest first: meshes x `model.remat` x `train.grad_accumulation`.

    Args:
        config: the recipe; its mesh, remat and grad_accumulation are replaced.
        name: the topology.
        job: as in `make_plan`.
        price: as in `make_plan`.
        wanted: how many plans.
        limit: how many settings may be compiled, the most promising by arithmetic first.
        say: takes notes on what is going on.

    Raises:
        PlanError: nothing fits.
    """
    place = _find(name)
    config = programs.adopt_architecture(config)
    ordered = search.candidates(config, place, job)
    say(f"{len(ordered)} settings may fit {place.name} by arithmetic")
    plans: dict[int, Plan] = {}

    def measure(number: int) -> tuple[bool, float]:
        plan = plans[number] = make_plan(ordered[number], name, job=job, price=price, say=say)
        seconds = plan.times.predicted / plan.work.rows if plan.times else 0.0
        return plan.fits, seconds

    found = search.first_that_fit(
        range(len(ordered)), measure, wanted=wanted, limit=limit if place.compiles else len(ordered)
    )
    if not found:
        raise PlanError(
            f"none of {len(plans)} settings tried fits {place.name}; take more chips, or try more: --limit {2 * limit}"
        )
    return [plans[number] for _, number in found]


def settings_line(config: Config, job: Job = "train") -> str:
    """What a search varies, as one writes it on the command line."""
    sizes = " ".join(f"--mesh.{axis} {getattr(config.mesh, axis)}" for axis in sharding.MESH_AXES)
    if job == "evaluate":
        return sizes
    return f"{sizes} --model.remat {config.model.remat} --train.grad_accumulation {config.train.grad_accumulation}"


def table(plan: Plan) -> str:
    """The plan as lines of `what  value`, per device where not said otherwise."""
    return "\n".join(f"{name:<22}{value}" for name, value in _rows(plan))


def _rows(plan: Plan) -> list[tuple[str, str]]:
    place, memory = plan.topology, plan.memory
    devices = f"{place.count} x {place.chip.kind}"
    if place.chip.devices > 1:
        devices += f", {place.chip.devices} a chip"
    how = "arithmetic alone: no compiler for it is at hand, and nothing was compiled"
    if plan.compile_seconds is not None:
        how = f"compiled in {plan.compile_seconds:.0f} s"
    rows = [("topology", f"{place.name}: {devices}"), ("figures", how)]
    rows += [("settings", settings_line(plan.config, plan.job))]
    rows += [("rows", _work(plan))]
    if memory.known:
        rows += [
            ("arguments", _gb(memory.arguments)),
            (
                "outputs",
                f"{_gb(memory.outputs)}, {_gb(memory.shared)} of them in the place of arguments",
            ),
            ("temporary", _gb(memory.temporary)),
        ]
    rows += [("peak memory", _gb(memory.peak) + _verdict(plan))]
    rows += [
        (
            "model FLOPs",
            f"{plan.work.model_flops / place.count / 1e12:,.1f} T (formula of metrics.py)",
        )
    ]
    rows += [
        (
            "hardware FLOPs",
            f"{plan.work.hardware_flops / place.count / 1e12:,.1f} T with recomputation",
        )
    ]
    if plan.compile_seconds is None or plan.memory.known:
        sent = ", ".join(f"{kind} {_gb(size)}" for kind, size in sorted(plan.sent.items()))
        rows += [("memory traffic", _gb(plan.memory_bytes)), ("sent", sent or "nothing")]
    if plan.unknown_loops:
        rows += [("not counted", f"turns of {plan.unknown_loops} loops, taken as one each")]
    return rows + _times(plan) + _recipe_rows(plan)


def _work(plan: Plan) -> str:
    one = plan.work
    text = f"{one.rows:,} of {one.inputs} + {one.targets} tokens, all devices together"
    return text + ("" if plan.job == "train" else ", one micro-batch of scoring")


def _verdict(plan: Plan) -> str:
    if plan.room is None:
        return f", {_gb(plan.memory.peak * plan.topology.count)} on all devices together"
    word = "fits" if plan.fits else "DOES NOT FIT"
    side = "left" if plan.fits else "too much"
    return f" of {_gb(plan.topology.chip.hbm)}: {word}, {_gb(abs(plan.room))} {side}"


def _times(plan: Plan) -> list[tuple[str, str]]:
    if plan.times is None:
        return []
    one = plan.times
    parts = f"compute {one.compute:.3f}, memory {one.memory:.3f}, links {one.links:.3f}"
    rows = [("roofline", f"{one.roofline:.3f} s ({parts})")]
    if one.compiler:
        rows += [("compiler's estimate", f"{one.compiler:.3f} s, without collectives")]
    share = roofline.mfu(plan.topology, plan.work, one.predicted)
    best = roofline.mfu(plan.topology, plan.work, one.roofline)
    rows += [("predicted step", f"{one.predicted:.3f} s, {one.bound}")]
    rows += [("MFU", f"{share:.1%} (roofline {best:.1%})")]
    rows += [("tokens/s", f"{plan.work.tokens / one.predicted:,.0f}, padding included")]
    return rows


def _recipe_rows(plan: Plan) -> list[tuple[str, str]]:
    one = plan.recipe
    if one is None:
        return []
    text = f"{metrics.clock(one.hours * 3600)} for {plan.config.train.steps:,} steps, {one.chip_hours:,.0f} chip-hours"
    rows = [("recipe", f"{text}; steps alone")]
    return rows + ([("cost", f"{one.cost:,.0f}")] if one.cost is not None else [])


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
