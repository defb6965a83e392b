"""The search for settings: laws of its order, what it tries, what it says when nothing fits; and its tables."""

import dataclasses
import os
import random
import re

import pytest

from scripts import plan as script
from t0jax import plan
from t0jax.plan import analytic, programs, roofline, search, topology
from t0jax.plan.compiled import Memory
from tests.test_plan import TINY, analytic_memory, recipe


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a search sees of a plan."""

    number: int
    fits: bool
    row_seconds: float


def tried(truth, wanted, limit, measure=None):
    asked = []

    def look(number):
        asked.append(number)
        return (measure or truth.__getitem__)(number)

    notes = []
    found = search.try_in_order(list(truth), look, wanted=wanted, limit=limit, say=notes.append)
    return found, asked, notes


def test_a_search_ranks_what_fits_first_and_stops_when_it_has_enough():
    for seed in range(200):
        draw = random.Random(seed)
        truth = {
            i: Measured(i, draw.random() < 0.4, draw.random()) for i in range(draw.randrange(1, 12))
        }
        wanted, limit = draw.randrange(1, 4), draw.randrange(1, 9)
        found, asked, _ = tried(truth, wanted, limit)
        assert asked == list(truth)[: len(asked)]
        assert len(asked) <= limit
        assert {x.number for x in found} == set(asked)
        fitting = [x for x in found if x.fits]
        assert found[: len(fitting)] == fitting
        assert [x.row_seconds for x in fitting] == sorted(x.row_seconds for x in fitting)
        assert len(fitting) == wanted or len(asked) == min(limit, len(truth))


def test_an_interrupted_search_ranks_what_it_has_and_a_refused_setting_is_left_out():
    truth = {i: Measured(i, True, -float(i)) for i in range(5)}

    def measure(number):
        if number == 1:
            raise plan.PlanError("the compiler refuses: no")
        if number == 3:
            raise KeyboardInterrupt
        return truth[number]

    found, asked, notes = tried(truth, 5, 5, measure)
    assert [x.number for x in found] == [2, 0]
    assert asked == [0, 1, 2, 3]
    assert any("left out: the compiler refuses" in note for note in notes)
    assert any("interrupted" in note for note in notes)
    with pytest.raises(KeyboardInterrupt):
        tried({3: truth[3]}, 1, 1, measure)


def test_settings_with_room_are_compiled_before_near_misses_and_one_of_a_kind_before_a_second():
    place = topology.parse("v5e:4x4")
    settings = programs.adopt_architecture(recipe("t0_3b"))
    ordered = search.candidates(settings, place, "train")
    needed = [analytic_memory(x).peak for x in ordered]
    roomy = [search.TIGHT * size <= place.chip.hbm for size in needed]
    assert roomy == sorted(roomy, reverse=True)
    assert any(roomy)
    assert max(needed) <= search.MARGIN * place.chip.hbm
    first = [x for x, has_room in zip(ordered, roomy, strict=True) if has_room]
    kinds = [(x.model.remat, x.train.grad_accumulation, x.mesh.model) for x in first]
    different = len(set(kinds))
    assert different > 6
    assert len(set(kinds[:different])) == different
    seconds = [search.estimate(x, place, "train").predicted for x in first]
    assert seconds[:different] == sorted(seconds[:different])
    for kind, best in zip(kinds[:different], seconds[:different], strict=True):
        assert best == min(s for k, s in zip(kinds, seconds, strict=True) if k == kind)


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


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a100-40g:1", 1024, r"smallest needs \d+\.\d of 38\.5 GB; take more chips"),
        ("h100:8", 1, "no mesh of 8 devices divides data.batch_size 1 "),
        ("cpu:8", 1024, "cpu:8 has no stated speed"),
    ],
)
def test_a_search_with_nothing_to_try_says_why(name, rows, message):
    settings = recipe("t0_11b")
    odd = dataclasses.replace(settings.model, num_heads=5, d_ff=5, d_model=5)
    if rows == 1:  # one device holds all rows, and seven of eight divide no width
        settings = dataclasses.replace(TINY, model=odd)
    data = dataclasses.replace(settings.data, batch_size=rows)
    with pytest.raises(plan.PlanError, match=message):
        plan.find_settings(dataclasses.replace(settings, data=data), name, say=lambda _: None)


def compiled_plan(settings, name="v5e:2x2", known=True, total=9e9, live=7e9):
    """As `make_plan` would make it of what libtpu says."""
    place = topology.parse(name)
    memory = Memory(total, 0, 0, 0, known=known, needed=0 if known else total, live=live)
    work = analytic.work(settings, 4, "train")
    times = roofline.times(place, work, 1e9, 0.0, 1e6) if known else None
    return plan.Plan(settings, place, "train", work, memory, {}, 1e9, times, None, (1.0, 1.0))


def test_a_search_whose_settings_are_all_too_large_ranks_them_and_ends_with_1(monkeypatch, capsys):
    monkeypatch.setattr(topology, "devices", lambda _: [])
    monkeypatch.setattr(
        plan, "make_plan", lambda one, *_, **__: compiled_plan(one, known=False, total=20e9)
    )
    argv = ["--config", "configs/t0_3b.yaml", "--topology", "v5e:4x4", "--search", "--limit", "2"]
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert script.main(argv) == 1
    seen = capsys.readouterr()
    assert seen.out.split("settings\n")[-1].count("DOES NOT FIT") == 3  # two and the first in full
    assert re.search(r"none of the 2 settings tried fits .* more of the \d+: --limit 4", seen.out)


def test_what_the_compiler_accepts_fits_even_if_the_sum_of_parts_is_more():
    chip = topology.parse("v5e:2x2").chip
    made = compiled_plan(TINY, total=1.09 * chip.hbm)
    text = plan.table(made)
    assert made.fits
    assert "peak memory         7.00 GB of 16.91 GB: fits, 9.91 GB left" in text
    assert "9% over, but the compiler accepts it" in text
    assert "over" not in plan.table(compiled_plan(TINY))
    refused = compiled_plan(TINY, known=False, total=20e9)
    assert not refused.fits
    assert "20.00 GB of 16.91 GB: DOES NOT FIT, 3.09 GB too much" in plan.table(refused)


def test_flags_for_the_compiler_are_named(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_one=1")
    assert "with LIBTPU_INIT_ARGS=--xla_one=1\n" in plan.table(compiled_plan(TINY))
    gpus = plan.table(plan.make_plan(TINY, "h100:8"))
    assert "LIBTPU" not in gpus
    assert "MEM_FRACTION=0.92; float32 as if at bfloat16's peak\n" in gpus


def test_cudnn_attention_keeps_no_scores():
    model = dataclasses.replace(TINY.model, dtype="bfloat16", remat="none")
    plain = dataclasses.replace(TINY, model=model)
    fused = dataclasses.replace(plain, model=dataclasses.replace(model, attention="cudnn"))
    # Of a row of a micro-batch: 64 x 64 in the encoder, 16 x (16 + 64) in the decoder, two layers, four heads.
    scores = 10 * 4 * 2 * (64**2 + 16 * (16 + 64))
    saved = analytic_memory(plain).temporary - analytic_memory(fused).temporary
    assert saved == scores * 16 / 8 / 2
