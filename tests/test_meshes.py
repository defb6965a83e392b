"""Training on every (data, fsdp, model) mesh of eight devices: the same losses, and every array really cut.

Three of the meshes are compared over a few steps by test_step.py in every test run, all here by the slow tests.
"""

import dataclasses
import functools
import itertools
import re

import jax
import numpy as np
import pytest

from t0jax import config, models, optim, sharding
from t0jax.data import packing
from t0jax.objectives import text_to_text
from t0jax.step import abstract_state, init_state, make_step

STEPS, ROWS, INPUTS, TARGETS = 20, 16, 24, 12
MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]

# Sizes that no other dimension has, so that an array's shape says what its dimensions are.
MODEL = config.Model(
    vocab_size=208, d_model=32, d_kv=8, num_heads=8, d_ff=80, num_layers=2, dropout_rate=0.2
)
ODD = dataclasses.replace(MODEL, vocab_size=203, num_heads=3, d_ff=45, num_layers=1)
"""Neither the vocabulary nor heads nor the feed-forward's width divide over two devices or more."""

OPTIMIZER = config.Optimizer(learning_rate=0.01, min_dim_size_to_factor=8)


def settings(model=MODEL, optimizer=OPTIMIZER, **train):
    """FLIPPED's loss with a z-loss."""
    return config.Config(
        model=model,
        data=config.Data(batch_size=ROWS, input_length=INPUTS, target_length=TARGETS),
        optimizer=optimizer,
        train=config.Train(z_loss=1e-4, loss_normalization="examples", **train),
    )


def packed_batch(seed, vocabulary):
    """Rows of two to four examples; every third example has a wrong pair in its row."""
    rng = np.random.default_rng(seed)

    def segment():
        sizes = rng.integers(2, INPUTS // 4), rng.integers(1, TARGETS // 4)
        return packing.Segment(*(rng.integers(2, vocabulary, n).astype(np.int32) for n in sizes))

    examples = [
        packing.Example(segment(), (segment(),) if i % 3 == 0 else ()) for i in range(8 * ROWS)
    ]
    batch, _ = packing.pack_group(examples, ROWS, INPUTS, TARGETS, wrong=True)
    del batch["cut_examples"]
    return batch


def mesh_of(sizes):
    """The first devices, in this (data, fsdp, model) shape."""
    return sharding.make_mesh(config.Mesh(*sizes), jax.devices()[: np.prod(sizes)])


def prepare(run, mesh):
    """(step, its state) on this mesh."""
    network = models.build(run.model)
    optimizer = optim.make_optimizer(run.optimizer, run.train.steps, network.axes)
    state = init_state(run, network, optimizer, mesh)
    return make_step(run, network, optimizer, mesh), state


@functools.cache
def train(model, sizes, steps=STEPS):
    """({"loss": [steps], "ul": ..., "grad_norm": ...}, the last state)."""
    mesh, reports = mesh_of(sizes), []
    step, state = prepare(settings(model), mesh)
    for seed in range(steps):
        batch = sharding.place(packed_batch(seed, model.vocab_size), mesh)
        state, report = step(state, batch)
        reports.append(jax.device_get(report))
    curves = {name: np.array([r[name] for r in reports]) for name in ("loss", "ul", "grad_norm")}
    return curves, state


def one_device():
    return train(MODEL, (1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_gives_one_devices_losses(sizes):
    """With dropout, z-loss, packing, wrong pairs and Adafactor, 20 steps of different batches."""
    (curves, state), (expected, theirs) = train(MODEL, sizes), one_device()
    np.testing.assert_allclose(curves["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(curves["ul"], expected["ul"], rtol=1e-5)
    np.testing.assert_allclose(curves["grad_norm"], expected["grad_norm"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        *jax.device_get((state["params"], theirs["params"])),
    )


@pytest.mark.slow
def test_the_meshes_are_all_and_every_step_is_another():
    assert len(MESHES) == 10
    assert len(set(one_device()[0]["loss"].tolist())) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 8), (2, 2, 2)], ids=str)
def test_sizes_that_do_not_divide_change_nothing(sizes):
    """Such dimensions stay whole."""
    curves, state = train(ODD, sizes, steps=3)
    expected, _ = train(ODD, (1, 1, 1), steps=3)
    np.testing.assert_allclose(curves["loss"], expected["loss"], rtol=1e-5)
    head = state["params"]["lm_head"]
    assert head.addressable_shards[0].data.shape[1] == ODD.vocab_size


# ---------------------------------------------------------------------------------------------------------------------
# Where arrays live


def shard_shape(names, shape, mesh):
    """What one device should hold: each dimension over the axes of its name, where they divide it."""
    ways = {
        name: np.prod([mesh.shape[axis] for axis in np.atleast_1d(axes)])
        for name, axes in sharding.AXES.items()
        if axes
    }
    cuts = [int(ways.get(name, 1)) for name in names]
    return tuple(n // w if n % w == 0 else n for n, w in zip(shape, cuts, strict=True))


def shapes_in(program):
    """The shapes of all arrays in a compiled program's text."""
    return {tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", program)}


def check_shards(tree, axes, mesh):
    """Every array of `tree` is cut as its axes say; returns (bytes on a device, bytes in all)."""

    def check(array, names):
        shapes = {shard.data.shape for shard in array.addressable_shards}
        assert shapes == {shard_shape(names, array.shape, mesh)}, names
        return np.array([array.addressable_shards[0].data.nbytes, array.nbytes])

    return sum(jax.tree.leaves(jax.tree.map(check, tree, axes)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_a_trained_state_lies_in_shards(sizes):
    """After the last step, as the compiled step returned it: an eighth of the parameters a device, or their `fsdp` x
    `model` share, but for norms and biases."""
    mesh, (_, state) = mesh_of(sizes), train(MODEL, sizes)
    network = models.build(MODEL)
    optimizer = optim.make_optimizer(OPTIMIZER, 1000, network.axes)
    held, total = check_shards(state["params"], network.axes, mesh)
    ways = mesh.shape["fsdp"] * mesh.shape["model"]
    assert held < 1.1 * total / ways
    axes = optim.state_axes(optimizer, network.shapes, network.axes)
    check_shards(state["optimizer"], axes, mesh)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_a_fresh_state_is_created_in_shards(name):
    """The moments of each parameter lie beside it."""
    run, mesh = settings(optimizer=config.Optimizer(name=name)), mesh_of((1, 4, 2))
    network = models.build(dataclasses.replace(MODEL, dropout_rate=0.0))
    optimizer = optim.make_optimizer(run.optimizer, 1000, network.axes)
    state = init_state(run, network, optimizer, mesh)
    held, total = check_shards(state["params"], network.axes, mesh)
    axes = optim.state_axes(optimizer, network.shapes, network.axes)
    moments, all_moments = check_shards(state["optimizer"], axes, mesh)
    if name == "adamw":
        assert moments - 8 == 2 * held  # two counts
        assert all_moments - 8 == 2 * total


def test_no_device_draws_a_whole_random_matrix():
    """The program of the first parameters has no array as large as one that is cut."""
    mesh, network = mesh_of((1, 4, 2)), models.build(MODEL)
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    init = jax.jit(network.init, out_shardings=where)
    program = init.lower(jax.random.key(0)).compile().as_text()
    cut = {
        leaf.shape
        for leaf, place in zip(jax.tree.leaves(network.shapes), jax.tree.leaves(where), strict=True)
        if len(leaf.shape) > 1 and place.shard_shape(leaf.shape) != leaf.shape
    }
    assert len(cut) == 8
    assert cut.isdisjoint(shapes_in(program))


@pytest.mark.parametrize(("name", "factor"), [("adafactor", 1.02), ("adamw", 3)])
def test_a_3b_state_takes_an_eighth_of_its_bytes_on_each_of_eight_devices(name, factor):
    """Nothing is allocated: T5 v1.1 xl by its shapes, `factor` times the parameters' bytes."""
    xl = config.Model(d_model=2048, d_ff=5120, num_heads=32, num_layers=24)
    network, mesh = models.build(xl), mesh_of((1, 4, 2))
    optimizer = optim.make_optimizer(config.Optimizer(name=name), 1000, network.axes)
    state = abstract_state(network, optimizer, mesh)
    held = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(network.shapes))
    assert parameters == pytest.approx(4 * 2.85e9, rel=0.01)
    assert held == pytest.approx(factor * parameters / 8, rel=0.02)


def test_logits_stay_in_shards_from_the_head_to_the_loss():
    """No device ever holds the logits of a whole row's vocabulary, or of rows that are another's."""
    small = dataclasses.replace(MODEL, num_layers=1, scan_layers=False)  # compiles faster
    mesh, network = mesh_of((2, 2, 2)), models.build(small)
    program = loss_program(network, mesh)
    rows, words = ROWS // 4, MODEL.vocab_size // 2
    shapes = shapes_in(program)
    # The head multiplies flat rows.
    assert {(rows, TARGETS, words), (rows * TARGETS, words)} & shapes
    whole = [
        s for s in shapes if MODEL.vocab_size in s and np.prod(s) > MODEL.vocab_size * MODEL.d_model
    ]
    assert whole == []


def loss_program(network, mesh):
    """The compiled loss and its gradient for a batch of rows, as text."""

    def loss(params, batch):
        return text_to_text.loss_sums(network, params, batch, None, z_loss=1e-4)[0]

    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), network.shapes, where
    )
    batch = sharding.place(packed_batch(0, MODEL.vocab_size), mesh)
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss), out_shardings=where).lower(params, batch).compile().as_text()
