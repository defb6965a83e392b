"""Plans: the real step compiled for eight CPU devices, arithmetic against recipes, the search's laws, the errors."""

import dataclasses
import functools
import os
import sys

import jax
import pytest

from scripts import plan as script
from t0jax import config, metrics, plan, sharding
from t0jax.plan import analytic, programs, roofline, search, topology

TINY = config.Config(
    model=config.Model(
        d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=256, dropout_rate=0.0
    ),
    data=config.Data(input_length=64, target_length=16, batch_size=16),
    optimizer=config.Optimizer(name="adamw"),
    mesh=config.Mesh(2, 4, 1),
    train=config.Train(steps=10, grad_accumulation=2),
)


def recipe(name):
    return config.parse(["--config", f"configs/{name}.yaml"], "")[0]


@pytest.fixture(autouse=True)
def at_home(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


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
    assert made.memory.peak == made.memory.total > made.memory.temporary
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


@pytest.mark.parametrize(
    ("changes", "temporary"),
    [
        ({}, 0.855e9),
        ({"vocab_size": 1024}, 0.852e9),
        ({"vocab_size": 1024, "num_heads": 16}, 1.703e9),
        ({"vocab_size": 1024, "d_ff": 4096}, 0.866e9),
    ],
    ids=str,
)
def test_arithmetic_of_scoring_is_within_a_fifth_of_what_libtpu_compiled(changes, temporary):
    """Figures of libtpu 0.0.42.1 for v5e:2x2, mesh (1, 4, 1), on 21 November 2026."""
    sizes = {"d_model": 512, "d_ff": 1024, "num_layers": 4, "num_heads": 8, "vocab_size": 32128}
    model = config.Model(**{**sizes, **changes}, d_kv=64, dtype="bfloat16")
    settings = config.Config(model=model, mesh=config.Mesh(1, 4, 1))
    assert analytic_memory(settings, "evaluate").temporary == pytest.approx(temporary, rel=0.2)


def test_arithmetic_of_scoring_with_t5_xl_is_within_a_fifth_too():
    """5.1 GB with its arguments on v5e:4x4, by libtpu 0.0.42.1 on 21 November 2026."""
    settings = programs.adopt_architecture(recipe("t0_3b"))
    settings = dataclasses.replace(settings, mesh=config.Mesh(1, 16, 1))
    assert analytic_memory(settings, "evaluate").peak == pytest.approx(5.1e9, rel=0.2)


def test_a_scoring_program_is_planned():
    small = dataclasses.replace(TINY.evaluate, max_input_length=64, max_target_length=16)
    settings = dataclasses.replace(TINY, evaluate=small)
    made = plan.make_plan(settings, "h100:8", job="evaluate")
    hours = plan.ROWS / made.work.rows * made.times.predicted / 3600
    assert made.recipe.hours == pytest.approx(hours)
    assert programs.scoring_shape(settings) == (64, 16)
    assert made.work.rows == 8 * (32768 // (64 + 2 * 16))
    flops = made.work.rows * metrics.forward_flops(TINY.model, 64, 16)
    assert made.work.model_flops == made.work.hardware_flops == flops


@functools.cache
def step_flops(remat):
    """(FLOPs that XLA counts in an unscanned step, ours)."""
    model = dataclasses.replace(
        TINY.model, scan_layers=False, num_layers=1, d_model=256, d_ff=1024, d_kv=64, remat=remat
    )
    data = config.Data(input_length=256, target_length=64, batch_size=4)
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
    # XLA counts elementwise work too.
    assert kept == pytest.approx(ours.hardware_flops, rel=0.02)
    assert again - kept == pytest.approx(more.hardware_flops - more.model_flops, rel=0.1)


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
    times = roofline.times(place, work, memory_bytes=2765e9, sent=0.0, cycles=2 * place.chip.clock)
    assert times.compute == pytest.approx(1e15 / 459e12)
    assert times.memory == pytest.approx(1.0)
    assert times.roofline == times.compute
    assert times.predicted == times.compute
    slow = roofline.times(place, work, 0.0, 0.0, cycles=4 * place.chip.clock)
    assert slow.predicted == slow.compiler == pytest.approx(4.0)
    alone = roofline.times(
        place, work, memory_bytes=2765e9, sent=600e9
    )  # no compiler's word: the sum
    assert alone.predicted == pytest.approx(1e15 / 459e12 + 2)


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
    assert not chip.clock or 1e9 < chip.clock < 2e9
    assert bool(chip.host) == bool(chip.network)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "kinds are v4, v5e"),
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
    with pytest.raises(config.ConfigError, match=r"batch_size 16 .*set it to 128"):
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
    with pytest.raises(plan.PlanError, match=r"pip install -e '\.\[plan\]'"):
        topology.devices(topology.parse("v5e:2x2"))


# ---------------------------------------------------------------------------------------------------------------------
# The script


def ran(monkeypatch, capsys, *argv):
    """(exit status, what it printed); the variables it sets stay inside."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return script.main(argv), capsys.readouterr().out


def test_what_does_not_fit_ends_with_1(monkeypatch, capsys):
    argv = ["--config", "configs/t0_11b.yaml", "--topology", "h100:8", "--mesh.fsdp", "1"]
    status, printed = ran(monkeypatch, capsys, *argv, "--mesh.data", "8")
    assert status == 1
    assert "DOES NOT FIT" in printed


def test_a_plan_that_fits_has_its_cost_and_says_that_it_is_arithmetic(monkeypatch, capsys):
    argv = ["--config", "configs/t0_3b.yaml", "--topology", "h100:8", "--price", "2"]
    status, printed = ran(monkeypatch, capsys, *argv)
    assert status == 0
    rows = {line[:22].strip(): line[22:] for line in printed.splitlines()}
    assert rows["figures"].startswith("arithmetic alone")
    assert "1,048,576 + 262,144 tokens" in rows["a step"]
    hours = float(rows["12,200 steps"].split(", ")[-1].split(" ")[0].replace(",", ""))
    assert float(rows["their cost"].replace(",", "")) == pytest.approx(2 * hours, rel=0.01)
    assert rows["evaluations"].startswith("25 of t0_train_score_eval are not in it")
    assert rows["evaluations"].endswith("for 1,000 inputs of 1024 + 256")


def test_a_search_prints_one_line_a_setting_and_the_first_in_full(monkeypatch, capsys):
    argv = ["--config", "configs/t0_3b.yaml", "--topology", "h100:8", "--search", "--wanted", "4"]
    status, printed = ran(monkeypatch, capsys, *argv, "--job", "evaluate", "--price", "2")
    assert status == 0
    lines = printed[printed.index("MFU") :].splitlines()
    assert [line.split(".")[0].strip() for line in lines[1:5]] == ["1", "2", "3", "4"]
    assert "1,000,000 rows" in printed


def test_no_topology_is_answered_with_names():
    with pytest.raises(config.ConfigError, match="--topology NAME"):
        script.main(["--config", "configs/t0_3b.yaml"])


@pytest.mark.parametrize(("flag", "value"), [("wanted", "0"), ("limit", "-1"), ("price", "-0.5")])
def test_numbers_below_what_makes_sense_are_refused(flag, value):
    argv = ["--config", "configs/t0_3b.yaml", "--topology", "h100:8", f"--{flag}={value}"]
    with pytest.raises(config.ConfigError, match=f"--{flag} {value} is too small"):
        script.main(argv)


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
    needed = analytic.sent(made.config, analytic.abstract_mesh(1, 4, 1), "train")
    assert 1 <= sum(made.sent.values()) / sum(needed.values()) < 2
    scored = plan.make_plan(settings, "v5e:2x2", job="evaluate", say=lambda _: None)
    assert scored.fits
    assert scored.memory.arguments < made.memory.arguments
