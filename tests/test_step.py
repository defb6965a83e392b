"""The training step: laws that hold whatever the mesh, the micro-batches and the data."""

import dataclasses

import jax
import numpy as np
import pytest

from t0jax import config, metrics, models, optim, sharding
from t0jax.step import init_state, make_step

MODEL = config.Model(
    vocab_size=64, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, dropout_rate=0.0
)
ROWS, INPUTS, TARGETS = 16, 24, 12


def settings(model=MODEL, mesh=None, optimizer=None, **train_options):
    return config.Config(
        model=model,
        data=config.Data(batch_size=ROWS, input_length=INPUTS, target_length=TARGETS),
        # Factored: an entry whose gradient is 0 but for rounding must not be scaled up to full size.
        optimizer=optimizer or config.Optimizer(learning_rate=0.01, min_dim_size_to_factor=8),
        mesh=mesh or config.Mesh(),
        train=config.Train(**train_options),
    )


def packed_batch(seed):
    """Rows of two examples each, of random lengths, with padding at the end."""
    rng = np.random.default_rng(seed)
    batch = {}
    for side, length in (("encoder", INPUTS), ("decoder", TARGETS)):
        first = rng.integers(2, length // 2, ROWS)[:, None]
        second = rng.integers(2, length // 2, ROWS)[:, None]
        column = np.arange(length)[None]
        segments = np.where(column < first, 1, np.where(column < first + second, 2, 0))
        batch[f"{side}_segment_ids"] = segments.astype(np.int32)
    tokens = rng.integers(2, MODEL.vocab_size, (ROWS, INPUTS + TARGETS)).astype(np.int32)
    batch["encoder_input_tokens"] = tokens[:, :INPUTS] * (batch["encoder_segment_ids"] > 0)
    segments, targets = batch["decoder_segment_ids"], tokens[:, INPUTS:]
    batch["decoder_target_tokens"] = targets * (segments > 0)
    before = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    same = segments == np.pad(segments[:, :-1], ((0, 0), (1, 0)))
    batch["decoder_input_tokens"] = np.where(same & (segments > 0), before, 0).astype(np.int32)
    batch["decoder_loss_weights"] = (segments > 0).astype(np.float32)
    return batch


def train_steps(settings, batches):
    """Runs the batches from fresh weights; the reports and the final parameters, on the host."""
    mesh = sharding.make_mesh(settings.mesh)
    network = models.build(settings.model)
    optimizer = optim.make_optimizer(settings.optimizer, settings.train.steps, network.axes)
    state = init_state(settings, network, optimizer, mesh)
    step, reports = make_step(settings, network, optimizer, mesh), []
    for batch in batches:
        state, report = step(state, sharding.place(batch, mesh))
        reports.append(jax.device_get(report))
    return reports, jax.device_get(state)


BATCHES = [packed_batch(seed) for seed in range(4)]


def contrasted(batch):
    """The batch with the second segment of each row as the wrong one of the first."""
    segments = batch["decoder_segment_ids"]
    return batch | {
        "decoder_loss_weights": (segments == 1).astype(np.float32),
        "decoder_unlikelihood_weights": (segments == 2).astype(np.float32),
    }


CONTRASTED = [contrasted(batch) for batch in BATCHES[:2]]
UNLIKELIHOOD = {"loss_normalization": "examples", "ul_weight": 3.0}


def on_one_device(settings, batches):
    """On a mesh of the first device alone."""
    mesh = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,) * 3)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda config: mesh)
        return train_steps(settings, batches)


@pytest.fixture(scope="module")
def one_device():
    """Whole batches."""
    return on_one_device(settings(), BATCHES)


@pytest.fixture(scope="module")
def contrasted_one_device():
    return on_one_device(settings(**UNLIKELIHOOD), CONTRASTED)


@pytest.mark.parametrize(
    "sizes", [*(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (1, 8, 1))), (2, 2, 2)]
)
def test_eight_devices_equal_one(one_device, sizes):
    reports, state = train_steps(settings(mesh=config.Mesh(*sizes)), BATCHES)
    for mine, theirs in zip(reports, one_device[0], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        state["params"],
        one_device[1]["params"],
    )


def test_micro_batches_equal_the_whole_batch(one_device):
    reports, state = train_steps(
        settings(mesh=config.Mesh(data=2, fsdp=2, model=2), grad_accumulation=4), BATCHES
    )
    for mine, theirs in zip(reports, one_device[0], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["examples"] == theirs["examples"] == 2 * ROWS
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        state["params"],
        one_device[1]["params"],
    )


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    weights = np.where(BATCHES[0]["decoder_loss_weights"] > 0, np.inf, 0).astype(np.float32)
    poisoned = dict(BATCHES[0], decoder_loss_weights=weights)
    clean, state = train_steps(settings(), [BATCHES[0], BATCHES[1]])
    reports, skipped = train_steps(settings(), [BATCHES[0], poisoned, poisoned])
    assert [int(r["bad_in_row"]) for r in reports] == [0, 1, 2]
    assert int(skipped["counters"]["skipped"]) == 2
    after_one = train_steps(settings(), [BATCHES[0]])[1]
    jax.tree.map(np.testing.assert_array_equal, skipped["params"], after_one["params"])
    jax.tree.map(np.testing.assert_array_equal, skipped["optimizer"], after_one["optimizer"])
    assert clean[0]["loss"] == reports[0]["loss"]
    assert int(state["counters"]["step"]) == 2


def test_dropout_follows_the_seed_and_the_step():
    model = dataclasses.replace(MODEL, dropout_rate=0.3)
    same = [BATCHES[0], BATCHES[0]]
    frozen = config.Optimizer(learning_rate=0.0)
    first, _ = train_steps(settings(model, optimizer=frozen, seed=1), same)
    again, _ = train_steps(settings(model, optimizer=frozen, seed=1), same)
    assert first[0]["loss"] == again[0]["loss"]
    assert first[0]["loss"] != first[1]["loss"]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        pytest.param((8, 1, 1), 1, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 1, marks=pytest.mark.slow),
        ((2, 2, 2), 4),
    ],
)
def test_unlikelihood_does_not_depend_on_devices_or_micro_batches(
    contrasted_one_device, sizes, parts
):
    run = settings(mesh=config.Mesh(*sizes), grad_accumulation=parts, **UNLIKELIHOOD)
    reports, state = train_steps(run, CONTRASTED)
    for mine, theirs in zip(reports, contrasted_one_device[0], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["ul"] == pytest.approx(theirs["ul"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["examples"] == theirs["examples"] == ROWS
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        state["params"],
        contrasted_one_device[1]["params"],
    )


def test_unlikelihood_ramps_up_to_its_weight():
    """At a learning rate of 0 only the weight moves: loss = nll + weight * ul, for tokens of equal number."""
    segments = np.where(np.arange(TARGETS) < TARGETS // 2, 1, 2) * np.ones((ROWS, 1), np.int32)
    batch = contrasted(BATCHES[0] | {"decoder_segment_ids": segments.astype(np.int32)})
    frozen = config.Optimizer(learning_rate=0.0)
    run = settings(optimizer=frozen, ul_weight=2.0, ul_ramp_steps=4, ul_eps=0.0)
    reports, _ = train_steps(run, [batch] * 6)
    weights = [(report["loss"] - report["nll"]) / report["ul"] for report in reports]
    assert weights == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0], rel=1e-4)


def test_a_batch_of_right_segments_reports_no_unlikelihood(one_device, contrasted_one_device):
    assert "ul" not in one_device[0][0]
    line = {"learning_rate": 1e-3, "examples_per_s": 1.0, "tokens_per_s": 1.0}
    plain, both = (
        metrics.log_line(1, 2, found[0][0] | line) for found in (one_device, contrasted_one_device)
    )
    assert " ul " not in plain
    assert f" ul {contrasted_one_device[0][0]['ul']:.3f} " in both
