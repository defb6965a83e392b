"""What a job would take on machines that nobody has rented yet: memory, time and cost, before the first step."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from t0jax import metrics, sharding
from t0jax.config import Config, ConfigError, Mesh
from t0jax.plan import analytic, compiled, programs, roofline, search, topology
from t0jax.plan.analytic import Work
from t0jax.plan.compiled import Memory
from t0jax.plan.programs import Job
from t0jax.plan.roofline import Recipe, Times
from t0jax.plan.topology import PlanError, Topology

__all__ = [
    "Job",
    "Plan",
    "PlanError",
    "find_settings",
    "make_plan",
    "ranking",
    "settings_line",
    "table",
]

Say = Callable[[str], None]

ROWS = 1_000_000
"""Of scoring (an input with one choice), to say what they cost."""


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
    compile_seconds: tuple[float, float] | None
    """By the clock and of all cores together; None where all is arithmetic (GPUs)."""
    unknown_loops: int = 0

    @property
    def room(self) -> float | None:
        """Bytes left on a device, negative where it does not fit; None for a CPU."""
        return self.topology.chip.hbm - self.memory.peak if self.topology.chip.hbm else None

    @property
    def fits(self) -> bool:
        """A compiler that knows the device's memory has the last word: it refuses what does not fit."""
        if self.topology.compiles:
            return self.memory.known
        return self.room is None or self.room >= 0

    @property
    def row_seconds(self) -> float:
        """Predicted seconds over the rows done in them: micro-batches of scoring differ in size."""
        return self.times.predicted / self.work.rows if self.times else math.inf


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
        PlanError: the topology or libtpu.
        ConfigError: the mesh is another number of devices, or the rows do not divide.
    """
    place = _find(name)
    config = with_whole_mesh(programs.adopt_architecture(config), place)
    _check_architecture(config, job == "train" and place.compiles)
    if job == "train":
        mesh = analytic.abstract_mesh(*dataclasses.astuple(config.mesh))
        sharding.check_rows(config.data.batch_size, config.train.grad_accumulation, mesh)
    if place.compiles:
        return _compiled_plan(config, place, job, price, say)
    return _analytic_plan(config, place, job, price)


def _check_architecture(config: Config, step_compiled: bool) -> None:
    """What is arithmetic, and scoring, is T5's."""
    if config.model.architecture != "t5" and not step_compiled:
        raise PlanError(
            f"model.architecture {config.model.architecture}: only its training step can be planned, and only by a "
            "compiler; give a TPU topology (v5e:4x4) or cpu:N, without --job evaluate and --search"
        )


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
    mesh = sharding.make_mesh(config.mesh, topology.devices(place))
    say(f"compiling for {place.name}: {settings_line(config, job)}")
    one = compiled.compile_program(programs.lower(config, mesh, job))
    took = (one.seconds, one.cpu_seconds)
    # The CPU's compiler leaves temporary arrays out of its peak.
    memory = one.memory if place.is_tpu else dataclasses.replace(one.memory, live=0.0)
    traffic = one.traffic
    work = analytic.work(config, sharding.row_ways(mesh), job)
    if traffic is None:
        return Plan(config, place, job, work, memory, {}, 0.0, None, None, took)
    times = roofline.times(
        place, work, traffic.memory_bytes, sum(traffic.sent().values()), traffic.cycles
    )
    return Plan(
        config, place, job, work, memory, traffic.sent(), traffic.memory_bytes, times,
        _recipe(config, place, work, job, times, price), took, traffic.unknown_loops,
    )  # fmt: skip


def _analytic_plan(config: Config, place: Topology, job: Job, price: float | None) -> Plan:
    mesh = analytic.abstract_mesh(*dataclasses.astuple(config.mesh))
    work = analytic.work(config, sharding.row_ways(mesh), job)
    times = search.estimate(config, place, job)
    return Plan(
        config, place, job, work, analytic.memory(config, mesh, job),
        analytic.sent(config, mesh, job), analytic.memory_traffic(config, mesh, job), times,
        _recipe(config, place, work, job, times, price), None,
    )  # fmt: skip


def _recipe(
    config: Config, place: Topology, work: Work, job: Job, times: Times | None, price: float | None
) -> Recipe | None:
    if times is None:
        return None
    steps = config.train.steps if job == "train" else ROWS / work.rows
    return roofline.recipe(place, steps, times.predicted, price)


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
    """Plans with other settings, ranked: meshes x `model.remat` x `train.grad_accumulation`.

    Settings that cannot fit by arithmetic are not compiled; the others are tried in the order of `search.candidates`.

    Args:
        config: the recipe; its mesh, remat and grad_accumulation are replaced.
        name: the topology.
        job: as in `make_plan`.
        price: as in `make_plan`.
        wanted: how many plans that fit are enough.
        limit: how many settings may be compiled.
        say: takes notes on what is going on.

    Returns:
        Those that fit, fastest first, then those that were compiled in vain; one at least.

    Raises:
        PlanError: nothing fits by arithmetic, the compiler refuses everything, or the device's speed is unknown.
    """
    place = _find(name)
    config = programs.adopt_architecture(config)
    _check_architecture(config, False)
    ordered = search.candidates(config, place, job)
    say(f"{len(ordered)} settings may fit {place.name} by arithmetic")

    def measure(one: Config) -> Plan:
        plan = make_plan(one, name, job=job, price=price, say=say)
        say(_outcome(plan))
        return plan

    most = min(limit, len(ordered)) if place.compiles else wanted
    found = search.try_in_order(ordered, measure, wanted=wanted, limit=most, say=say)
    if not found:
        raise PlanError(f"the compiler refuses all {most} settings tried for {place.name}")
    if not found[0].fits:
        more = f", or try more of the {len(ordered)}: --limit {2 * limit}"
        more = more if len(ordered) > most else ""
        say(f"none of the {len(found)} settings tried fits {place.name}: take more chips{more}")
    return found


def settings_line(config: Config, job: Job = "train") -> str:
    """What a search varies, as one writes it on the command line."""
    sizes = " ".join(f"--mesh.{axis} {getattr(config.mesh, axis)}" for axis in sharding.MESH_AXES)
    if job == "evaluate":
        return sizes
    return f"{sizes} --model.remat {config.model.remat} --train.grad_accumulation {config.train.grad_accumulation}"


def table(plan: Plan) -> str:
    """The plan as lines of `what  value`: the job, what each device does, what all do together."""
    each, together = [*_memory(plan), *_work(plan)], [*_times(plan), *_recipe_rows(plan)]
    rows = [*_head(plan), ("each device:", ""), *_indented(each)]
    rows += [("all devices:", ""), *_indented(together)] if together else []
    return "\n".join(f"{name:<22}{value}".rstrip() for name, value in rows)


def _indented(rows: "Rows") -> "Rows":
    return [(f"  {name}", value) for name, value in rows]


def ranking(plans: Sequence[Plan]) -> str:
    """One line a plan, as `find_settings` ranks them."""
    lines = [f"{'':>3}  {'step':>9}  {'MFU':>6}  {'peak memory':>22}  settings"]
    for rank, plan in enumerate(plans, start=1):
        step = _seconds(plan.times.predicted) if plan.times else "-"
        share = roofline.mfu(plan.topology, plan.work, plan.times.predicted) if plan.times else 0.0
        room = f"{_bytes(plan.memory.peak)} of {_bytes(plan.topology.chip.hbm)}"
        word = "" if plan.fits else ", DOES NOT FIT"
        lines.append(
            f"{rank:>2}.  {step:>9}  {share:>6.1%}  {room:>22}  {settings_line(plan.config, plan.job)}{word}"
        )
    return "\n".join(lines)


def _outcome(plan: Plan) -> str:
    step = f"{_seconds(plan.times.predicted)} a step, " if plan.times else ""
    return f"{step}{_bytes(plan.memory.peak)}{_verdict(plan)}"


Rows = list[tuple[str, str]]


def _head(plan: Plan) -> Rows:
    place, one = plan.topology, plan.work
    tokens = f"{one.rows * one.inputs:,} + {one.rows * one.targets:,} tokens, padding included"
    what = "a step" if plan.job == "train" else "micro-batch"
    return [
        ("topology", f"{place.name}: {place.count} x {place.chip.kind}"),
        ("figures", _origin(plan)),
        ("settings", settings_line(plan.config, plan.job)),
        (what, f"{one.rows:,} rows of {one.inputs} + {one.targets}: {tokens}"),
    ]


def _origin(plan: Plan) -> str:
    """Where the figures come from, with what they take for granted."""
    flags = os.environ.get("LIBTPU_INIT_ARGS")
    if plan.compile_seconds is not None:
        how = "compiled in {:.0f} s ({:.0f} s of CPU)".format(*plan.compile_seconds)
        return how + (f" with LIBTPU_INIT_ARGS={flags}" if flags and plan.topology.is_tpu else "")
    how = f"arithmetic alone, nothing was compiled; memory with {topology.GPU_MEMORY}"
    speed = "; float32 as if at bfloat16's peak" if plan.config.model.dtype == "float32" else ""
    return how + speed


def _memory(plan: Plan) -> Rows:
    one = plan.memory
    peak = ("peak memory", _bytes(one.peak) + _verdict(plan))
    if not one.known:
        return [peak]
    outputs = f"{_bytes(one.outputs)}, {_bytes(one.shared)} of them in the place of arguments"
    rows = [("arguments", _bytes(one.arguments)), ("outputs", outputs)]
    rows += [("temporary", _bytes(one.temporary))]
    rows += [("program", _bytes(one.code))] if one.code else []
    return [*rows, ("sum of parts", _bytes(one.total) + _excess(plan)), peak]


def _excess(plan: Plan) -> str:
    hbm = plan.topology.chip.hbm
    if not plan.fits or not hbm or plan.memory.total <= hbm:
        return ""
    return f": {plan.memory.total / hbm - 1:.0%} over, but the compiler accepts it"


def _verdict(plan: Plan) -> str:
    if plan.room is None:
        return f", {_bytes(plan.memory.peak * plan.topology.count)} on all devices together"
    word = "fits" if plan.fits else "DOES NOT FIT"
    side = "left" if plan.fits else "too much"
    return f" of {_bytes(plan.topology.chip.hbm)}: {word}, {_bytes(abs(plan.room))} {side}"


def _work(plan: Plan) -> Rows:
    model, hardware = (
        _amount(flops / plan.topology.count)
        for flops in (plan.work.model_flops, plan.work.hardware_flops)
    )
    rows = [("model FLOPs", f"{model} (formula of metrics.py)")]
    rows += [("hardware FLOPs", f"{hardware} with recomputation")]
    if not plan.memory.known:
        return rows
    sent = ", ".join(f"{kind} {_bytes(size)}" for kind, size in sorted(plan.sent.items()))
    rows += [("memory traffic", _bytes(plan.memory_bytes)), ("sent", sent or "nothing")]
    if plan.unknown_loops:
        rows += [("not counted", f"turns of {plan.unknown_loops} loops, taken as one each")]
    return rows


def _times(plan: Plan) -> Rows:
    if plan.times is None:
        return []
    one = plan.times
    parts = f"compute {_seconds(one.compute)}, memory {_seconds(one.memory)}, links {_seconds(one.links)}"
    rows = [("roofline", f"{_seconds(one.roofline)} ({parts})")]
    if one.compiler:
        rows += [("compiler's estimate", f"{_seconds(one.compiler)}, without collectives")]
    share = roofline.mfu(plan.topology, plan.work, one.predicted)
    best = roofline.mfu(plan.topology, plan.work, one.roofline)
    rows += [("predicted time", f"{_seconds(one.predicted)}, {one.bound}")]
    rows += [("predicted MFU", f"{share:.1%} (roofline {best:.1%})")]
    rows += [("tokens/s", f"{plan.work.tokens / one.predicted:,.0f}, padding included")]
    return rows


def _recipe_rows(plan: Plan) -> Rows:
    one = plan.recipe
    if one is None:
        return []
    what = f"{plan.config.train.steps:,} steps" if plan.job == "train" else f"{ROWS:,} rows"
    text = f"{metrics.clock(one.hours * 3600)}, {one.chip_hours:,.1f} chip-hours"
    rows = [(what, text)] + ([("their cost", f"{one.cost:,.2f}")] if one.cost is not None else [])
    return rows + _evaluations(plan)


def _evaluations(plan: Plan) -> Rows:
    """How often a run evaluates and what a thousand inputs take; how many there are, only the data say."""
    settings, mixture = plan.config.train, plan.config.data.eval_mixture
    if plan.job != "train" or not mixture or plan.config.model.architecture != "t5":
        return []
    count = -(-settings.steps // settings.eval_every) if settings.eval_every else 1
    ways = plan.config.mesh.data * plan.config.mesh.fsdp
    scored = analytic.work(plan.config, ways, "evaluate")
    seconds = search.estimate(plan.config, plan.topology, "evaluate").predicted
    text = f"{count} of {mixture} are not in it: by arithmetic {_seconds(1000 * seconds / scored.rows)}"
    return [("evaluations", f"{text} for 1,000 inputs of {scored.inputs} + {scored.targets}")]


def _amount(value: float) -> str:
    """`29.13 G`, `928.50 T`."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:,.2f} {letter}"
    return f"{value / 1e3:,.2f} k"


def _bytes(size: float) -> str:
    return _amount(size) + "B"


def _seconds(value: float) -> str:
    return f"{value:,.3f} s" if value >= 1 else f"{value * 1e3:,.2f} ms"
