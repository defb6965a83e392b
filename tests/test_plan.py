"""Plans: what is read from compiled programs against hand counts, arithmetic against recipes, and the search's law."""

import dataclasses
import functools
import random
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t0jax import config, metrics, plan, sharding
from t0jax.plan import analytic, compiled, hlo, programs, roofline, search, topology

TINY = config.Config(
    model=config.Model(
        d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=256, dropout_rate=0.0
    ),
    data=config.Data(input_length=64, target_length=16, batch_size=16),
    optimizer=config.Optimizer(name="adamw"),
    mesh=config.Mesh(2, 4, 1),
    train=config.Train(steps=10, grad_accumulation=2),
)
TURNS = 5


def recipe(name):
    return config.parse(["--config", f"configs/{name}.yaml"], "")[0]


@pytest.fixture(autouse=True)
def at_home(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


# ---------------------------------------------------------------------------------------------------------------------
# Collectives of a compiled program


COLLECTIVES = {
    # On 8 devices, of 64 float32 a device: what each sends by the ring algorithm.
    "all-gather": (lambda x: jax.lax.all_gather(x, "d").sum(0), 7 * 256),
    "all-reduce": (lambda x: jax.lax.psum(x, "d"), 2 * 256 * 7 / 8),
    "reduce-scatter": (
        lambda x: jnp.tile(jax.lax.psum_scatter(x, "d", tiled=True), 8),
        256 * 7 / 8,
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "d", [(i, (i + 1) % 8) for i in range(8)]),
        256,
    ),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x.reshape(8, 8), "d", 0, 0).reshape(64),
        256 * 7 / 8,
    ),
}


def read(function):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, P("d"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False)
    x = jax.ShapeDtypeStruct((8 * 64,), jnp.float32, sharding=where)
    return hlo.traffic(jax.jit(mapped).lower(x).compile().as_text())


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_collectives_count_once_outside_a_loop_and_each_turn_inside(kind):
    one, size = COLLECTIVES[kind]

    def program(x):
        def turn(x, _):
            return one(jnp.sin(x)), None

        return one(jax.lax.scan(turn, x, length=TURNS)[0] * 2)

    found = read(program)
    assert found.sent() == {kind: pytest.approx((TURNS + 1) * size)}
    assert {(c.group, c.times) for c in found.collectives} <= {(8, 1), (8, TURNS), (8, TURNS + 1)}
    assert found.unknown_loops == 0


def test_a_loop_in_a_loop_multiplies():
    def program(x):
        def inner(x, _):
            return jax.lax.psum(jnp.sin(x), "d"), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=3)[0] * 2, None

        return jax.lax.scan(outer, x, length=TURNS)[0]

    assert read(program).sent() == {"all-reduce": pytest.approx(3 * TURNS * 2 * 256 * 7 / 8)}


TPU_TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=16

%fused.1 (p.1: f32[8,4]) -> f32[64,4] {
  %p.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %ag.1 = f32[64,4]{1,0:T(8,128)} all-gather(%p.1), channel_id=5, replica_groups=[2,8]<=[16], dimensions={0}
}

%fused.2 (p.2: f32[8,4]) -> f32[64,4] {
  %p.2 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %ag.2 = f32[64,4]{1,0:T(8,128)} all-gather(%p.2), channel_id=5, replica_groups=[2,8]<=[16], dimensions={0}
}

%all-reduce-scatter.3 (p.3: f32[32]) -> f32[8] {
  %p.3 = f32[32]{0:T(128)} parameter(0)
  %ar.3 = f32[32]{0:T(128)} all-reduce(%p.3), channel_id=6, replica_groups=mesh['a'=4,'b'=4] {'b'}, to_apply=%add
  %zero.3 = s32[] constant(0)
  ROOT %ds.3 = f32[8]{0:T(128)} dynamic-slice(%ar.3, %zero.3), dynamic_slice_sizes={8}
}

%body (s: (u32[], f32[8,4], f32[32])) -> (u32[], f32[8,4], f32[32]) {
  %two = u32[] constant(2)
  %s = (u32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, /*index=2*/f32[32]{0:T(128)}) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %y = f32[32]{0:T(128)} get-tuple-element(%s), index=2
  %next = u32[] add(%i, %two)
  %start = f32[64,4]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%fused.1, config={"estimated_cycles":"100"}
  %done = f32[64,4]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%fused.2, config={"estimated_cycles":"20"}
  %rs = f32[8]{0:T(128)} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
  %cp = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)}, u32[]) collective-permute-start(%x), channel_id=7
  %cpd = f32[8,4]{1,0:T(8,128)} collective-permute-done(%cp)
  ROOT %t = (u32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) tuple(%next, %cpd, %y)
}

%condition (c: (u32[], f32[8,4], f32[32])) -> pred[] {
  %limit = u32[] constant(9)
  %c = (u32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) parameter(0)
  %j = u32[] get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[8,4], b: f32[32]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %b = f32[32]{0:T(128)} parameter(1)
  %one = u32[] constant(1)
  %from = u32[] copy(%one)
  %state = (u32[], f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) tuple(%from, %a, %b)
  %loop = (u32[], f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) while(%state), condition=%condition, body=%body
  ROOT %out = f32[8,4]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
"""As libtpu writes: no trip counts, gathers spread over fusions, reduce-scatters in disguise, VMEM as `S(1)`."""


def test_what_a_tpu_compiler_writes_is_read():
    found = hlo.traffic(TPU_TEXT)
    turns = 4  # 1, 3, 5, 7
    assert found.sent() == {
        "all-gather": turns * 7 * 128,  # once, though two fusions carry it
        "reduce-scatter": turns * 128 * 3 / 4,
        "collective-permute": turns * 128,
    }
    assert found.cycles == turns * 120
    # Both fusions read x and write to VMEM; rs reads y and writes 8 numbers; permute, its buffers; add, two and one.
    a_turn = 128 + 128 + (128 + 32) + (128 + 128 + 128 + 4) + 12
    assert found.memory_bytes == turns * a_turn + 8


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}",
        "[4,4]<=[16]",
        "mesh['a'=4,'b'=2,'c'=2] {'b','c'}",
        "mesh['a'=2,'b'=4,'c'=2], device_ids=([4,4]T(1,0)) {'b'}",
        "mesh['a'=16] {'a':(2)4}",
    ],
)
def test_groups_are_read_however_they_are_written(groups):
    text = TPU_TEXT.replace("mesh['a'=4,'b'=4] {'b'}", groups)
    assert "reduce-scatter" in hlo.traffic(text).sent()
    assert {c.group for c in hlo.traffic(text).collectives if c.kind == "reduce-scatter"} == {4}


def test_a_loop_that_cannot_be_read_is_said():
    text = TPU_TEXT.replace("direction=LT", "direction=EQ")
    assert hlo.traffic(text).unknown_loops == 1


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[4,1024,2]{2,1,0:T(8,128)(2,1)}", 4 * 1024 * 2 * 2),
        ("bf16[4,1024,2]{2,1,0:T(8,128)(2,1)S(1)}", 0),
        ("(f32[3]{0}, s8[5]{0}, /*index=2*/pred[])", 12 + 5 + 1),
        ("f8e4m3fn[16]{0}", 16),
        ("token[]", 0),
    ],
)
def test_shapes_have_their_bytes(shape, size):
    assert hlo.array_bytes(shape) == size


# ---------------------------------------------------------------------------------------------------------------------
# A step compiled for eight CPU devices


@functools.cache
def tiny_plan():
    return plan.make_plan(TINY, "cpu:8", say=lambda _: None)


def test_the_real_step_is_compiled_and_nothing_is_allocated():
    before = len(jax.live_arrays())
    made = tiny_plan()
    assert (
        len(jax.live_arrays()) - before < 8
    )  # keys and constants of tracing; the state has over a hundred arrays
    assert made.fits
    assert made.times is None
    assert made.memory.arguments == pytest.approx(analytic_memory(TINY).arguments, rel=0.02)
    assert made.memory.shared == pytest.approx(made.memory.outputs, rel=0.01)  # donated
    assert made.memory.temporary > 0
    assert made.unknown_loops == 0
    assert {"all-gather", "all-reduce"} <= made.sent.keys()
    assert "DOES NOT" not in plan.table(made)


def analytic_memory(settings, job="train"):
    sizes = dataclasses.astuple(settings.mesh)
    return analytic.memory(settings, analytic.abstract_mesh(*sizes), job)


@pytest.mark.parametrize(
    ("name", "mesh", "parts", "temporary", "moved"),
    [
        ("t0_3b", (1, 64, 1), 1, 10.42e9, 1323e9),  # v4:4x4x4
        ("t0_11b", (1, 64, 1), 1, 21.35e9, 2614e9),  # v5p:4x4x4
        ("t0_3b", (1, 16, 1), 16, 6.51e9, 7062e9),  # v5e:4x4
    ],
)
def test_arithmetic_is_within_a_third_of_what_libtpu_compiled(name, mesh, parts, temporary, moved):
    """Figures of libtpu 0.0.42.1 with `model.remat full` on 21 November 2026."""
    settings = programs.adopt_architecture(recipe(name))
    settings = dataclasses.replace(
        settings,
        mesh=config.Mesh(*mesh),
        train=dataclasses.replace(settings.train, grad_accumulation=parts),
    )
    assert analytic_memory(settings).temporary == pytest.approx(temporary, rel=1 / 3)
    found = analytic.memory_traffic(settings, analytic.abstract_mesh(*mesh), "train")
    assert found == pytest.approx(moved, rel=1 / 3)


def test_a_scoring_program_is_planned():
    small = dataclasses.replace(TINY.evaluate, max_input_length=64, max_target_length=16)
    settings = dataclasses.replace(TINY, evaluate=small)
    made = plan.make_plan(settings, "h100:8", job="evaluate")
    assert made.recipe is None
    assert programs.scoring_shape(settings) == (64, 16)
    assert made.work.rows == 8 * (32768 // (64 + 2 * 16))
    flops = made.work.rows * metrics.forward_flops(TINY.model, 64, 16)
    assert made.work.model_flops == made.work.hardware_flops == flops


@functools.cache
def step_flops(remat):
    """(FLOPs that XLA counts in an unscanned step, ours)."""
    model = dataclasses.replace(
        TINY.model, scan_layers=False, d_model=128, d_ff=512, num_layers=1, remat=remat
    )
    data = config.Data(input_length=128, target_length=32, batch_size=8)
    settings = dataclasses.replace(
        TINY, model=model, data=data, mesh=config.Mesh(1, 1, 1), train=config.Train()
    )
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    counted = programs.lower(settings, mesh, "train").cost_analysis()["flops"]
    return counted, analytic.work(settings, 1, "train")


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputed_flops_are_those_that_xla_counts(remat):
    (kept, ours), (again, more) = step_flops("none"), step_flops(remat)
    assert ours.hardware_flops == ours.model_flops
    # XLA counts elementwise work too, which is more beside products as narrow as these.
    assert kept == pytest.approx(ours.hardware_flops, rel=0.15)
    assert again - kept == pytest.approx(more.hardware_flops - more.model_flops, rel=0.3)


# ---------------------------------------------------------------------------------------------------------------------
# Time and cost


def test_time_and_cost_of_a_recipe_are_those_of_its_head():
    """configs/t0_3b.yaml: 12.4 hours for 1.42e20 FLOPs on 8 H100 at an MFU of 40%."""
    settings = programs.adopt_architecture(recipe("t0_3b"))
    place = topology.parse("h100:8")
    work = analytic.work(settings, 8, "train")
    assert f"{work.model_flops * settings.train.steps:.2e}" == "1.42e+20"
    seconds = work.model_flops / (8 * 989e12 * 0.4)
    assert roofline.mfu(place, work, seconds) == pytest.approx(0.4)
    found = roofline.recipe(place, settings.train.steps, seconds, price=2.0)
    assert round(found.hours, 1) == 12.4
    assert found.chip_hours == pytest.approx(8 * found.hours)
    assert found.cost == pytest.approx(2 * found.chip_hours)
    assert roofline.recipe(place, 10, 1.0, None).cost is None


def test_the_roofline_is_the_slowest_of_three_and_the_prediction_never_below_it():
    place, work = topology.parse("v5p:2x2x1"), analytic.Work(8, 1, 1, 3e15, 4e15)
    times = roofline.times(place, work, memory_bytes=2765e9, sent=0.0, cycles=3.5e9)
    assert times.compute == pytest.approx(1e15 / 459e12)
    assert times.memory == pytest.approx(1.0)
    assert times.roofline == times.compute
    assert times.predicted == times.compute
    slow = roofline.times(place, work, 0.0, 0.0, cycles=7e9)
    assert slow.predicted == slow.compiler == pytest.approx(4.0)
    alone = roofline.times(
        place, work, memory_bytes=2765e9, sent=600e9
    )  # no compiler's word: the sum
    assert alone.predicted == pytest.approx(1e15 / 459e12 + 2)


def test_prices_are_of_chips_and_speed_of_devices():
    place = topology.parse("v3:2x2")
    assert (place.count, place.chips) == (8, 4)
    assert roofline.recipe(place, 3600, 1.0, 1.0).cost == pytest.approx(4)


def test_what_leaves_a_host_goes_over_its_network():
    """16 GPUs in two hosts: weights are gathered over `fsdp` inside one, gradients summed over `data` between them."""
    settings = dataclasses.replace(TINY, mesh=config.Mesh(2, 8, 1))
    place = topology.parse("h100:16")
    sizes = {
        x[1]: 0.0 for x in analytic.collectives(settings, analytic.abstract_mesh(2, 8, 1), "train")
    }
    for _, axis, size in analytic.collectives(settings, analytic.abstract_mesh(2, 8, 1), "train"):
        sizes[axis] += size
    assert sizes.keys() == {"fsdp", "data"}
    expected = sizes["fsdp"] / 450e9 + sizes["data"] / 50e9
    assert search.estimate(settings, place, "train").links == pytest.approx(expected)


@pytest.mark.parametrize("name", [k for k, v in topology.CHIPS.items() if v.kind != "cpu"])
def test_every_chip_has_its_figures_and_a_source(name):
    chip = topology.CHIPS[name]
    assert chip.flops
    assert min(chip.hbm, chip.bandwidth, chip.links) > 1e9
    assert chip.source.startswith("https://")
    assert bool(chip.clock) == bool(chip.dimensions)
    assert bool(chip.host) == bool(chip.network)


# ---------------------------------------------------------------------------------------------------------------------
# Search


def test_the_search_never_returns_what_does_not_fit():
    for seed in range(200):
        draw = random.Random(seed)
        truth = {i: (draw.random() < 0.4, draw.random()) for i in range(draw.randrange(1, 12))}
        wanted, limit = draw.randrange(1, 4), draw.randrange(1, 9)
        asked = []
        found = search.first_that_fit(
            list(truth), lambda i, a=asked, t=truth: a.append(i) or t[i], wanted=wanted, limit=limit
        )
        assert all(truth[i][0] for _, i in found)
        assert [s for s, _ in found] == sorted(truth[i][1] for _, i in found)
        fitting = [i for i in list(truth)[:limit] if truth[i][0]]
        assert {i for _, i in found} == set(fitting[:wanted])
        assert asked == list(truth)[: len(asked)]
        assert len(asked) <= limit


def test_settings_that_a_search_gives_are_valid_fit_and_are_ordered():
    settings = recipe("t0_11b")
    found = plan.find_settings(settings, "h100:16", wanted=12, say=lambda _: None)
    assert len(found) == 12
    assert all(made.fits for made in found)
    seconds = [made.times.predicted for made in found]
    assert seconds == sorted(seconds)
    for made in found:
        mesh, rows = made.config.mesh, made.config.data.batch_size
        assert mesh.data * mesh.fsdp * mesh.model == 16
        assert rows % (mesh.data * mesh.fsdp * made.config.train.grad_accumulation) == 0
        assert plan.make_plan(made.config, "h100:16").memory == made.memory


def test_a_search_that_finds_nothing_says_so():
    with pytest.raises(plan.PlanError, match="take more chips"):
        plan.find_settings(recipe("t0_11b"), "a100-40g:1", say=lambda _: None)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "kinds are v3, v4, v5e"),
        ("v5p:4x4", "3 sizes.*v5p:2x2x4"),
        ("v5e:4x4x4", "2 sizes.*v5e:8x8"),
        ("h100:2x4", "a number of devices"),
        ("h100:0", "a number of devices"),
        ("v5e:", "2 sizes"),
    ],
)
def test_a_wrong_topology_is_answered_with_near_ones(name, message):
    with pytest.raises(plan.PlanError, match=message):
        topology.parse(name)


@pytest.mark.parametrize("sizes", [(1, 3, 1), (-1, 3, 1), (-1, 0, 1), (-1, -1, 1), (-2, -8, 1)])
def test_a_mesh_of_another_size_is_refused(sizes):
    with pytest.raises(config.ConfigError, match="does not multiply to the 16 devices of h100:16"):
        plan.make_plan(dataclasses.replace(TINY, mesh=config.Mesh(*sizes)), "h100:16")


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(plan.PlanError, match="16 is not a multiple of 128"):
        plan.make_plan(dataclasses.replace(TINY, mesh=config.Mesh(-1, 8, 1)), "h100:64")


def test_too_few_cpu_devices_are_said():
    with pytest.raises(plan.PlanError, match="JAX_NUM_CPU_DEVICES=16"):
        topology.devices(topology.parse("cpu:16"))


def test_an_unknown_start_is_refused_with_a_way_out():
    start = dataclasses.replace(TINY.train, init_checkpoint="models/mine")
    with pytest.raises(plan.PlanError, match=r"give model\.d_model"):
        plan.make_plan(dataclasses.replace(TINY, train=start), "h100:8")


def test_missing_libtpu_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(plan.PlanError, match=r"pip install 't0jax\[plan\]'"):
        topology.devices(topology.parse("v5e:2x2"))


def test_memory_that_a_compiler_refuses_is_read():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm. Exceeded by 8.75G."
    assert compiled.needed_memory(said) == pytest.approx(24.5 * 2**30)
    other = "RESOURCE_EXHAUSTED: ... memory required for HLO temporaries (512.00G) exceeds available HBM (95.74G)."
    assert compiled.needed_memory(other) == 512 * 2**30
    assert compiled.needed_memory("INTERNAL: something else") is None


# ---------------------------------------------------------------------------------------------------------------------
# With libtpu


@pytest.mark.slow
def test_a_tpu_is_planned_without_one():
    pytest.importorskip("libtpu")
    model = dataclasses.replace(TINY.model, dtype="bfloat16", remat="full")
    settings = dataclasses.replace(TINY, model=model, mesh=config.Mesh(1, -1, 1))
    made = plan.make_plan(settings, "v5e:2x2", price=1.2, say=lambda _: None)
    assert made.fits
    assert made.times.compiler > 0
    assert made.sent
    assert made.unknown_loops == 0
    assert made.recipe.cost == pytest.approx(1.2 * made.recipe.chip_hours)
    with pytest.raises(plan.PlanError, match=r"libtpu does not know v5e:3x3.*it accepts v5e:2x"):
        topology.devices(topology.parse("v5e:3x3"))
    with pytest.raises(plan.PlanError, match="product of whole sides"):
        topology.make_mesh(topology.parse("v5p:4x4x4"), config.Mesh(2, 32, 1))
    scored = plan.make_plan(settings, "v5e:2x2", job="evaluate", say=lambda _: None)
    assert scored.fits
    assert scored.memory.arguments < made.memory.arguments
