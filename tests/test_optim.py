"""Optimizers against float64 references of their papers' rules, schedules against closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t0jax import config, optim

AXES = {
    "wide": ("embed", "mlp"),
    "stack": {"wi": ("layers", "embed", "mlp"), "norm": ("layers", "embed")},
    "small": ("relpos_buckets", "heads"),
    "small_stack": ("layers", "embed", "heads"),
    "norm": ("embed",),
}
SHAPES = {
    "wide": (130, 200),
    "stack": {"wi": (3, 160, 128), "norm": (3, 160)},
    "small": (32, 6),
    "small_stack": (2, 160, 40),
    "norm": (160,),
}


def is_tuple(node):
    return isinstance(node, tuple)


def random_tree(seed, scale=1.0):
    """Float64 leaves; layer i of a stack is 0.05 ** i times the first, so that layers differ in size."""
    rng = np.random.default_rng(seed)

    def leaf(axes, shape):
        values = rng.normal(size=shape) * scale
        sizes = 0.05 ** np.arange(shape[0]) if axes[0] == "layers" else np.ones(1)
        return values * sizes.reshape(-1, *[1] * (len(shape) - 1))

    return jax.tree.map(leaf, AXES, SHAPES, is_leaf=is_tuple)


def to_f32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


class T5Adafactor:
    """One matrix or vector under Mesh-TensorFlow's and t5x's Adafactor, in float64."""

    def __init__(self, shape, *, offset, rate, scale):
        self.factored = len(shape) == 2 and min(shape) >= 128
        self.row = np.zeros(shape[0]) if self.factored else None
        self.col = np.zeros(shape[1]) if self.factored else None
        self.full = np.zeros(shape)
        self.steps, self.rate, self.scale = offset, rate, scale

    def step(self, param, grad):
        self.steps += 1
        decay = 1 - self.steps**-0.8
        squared = grad**2 + 1e-30
        if self.factored:
            self.row = decay * self.row + (1 - decay) * squared.mean(axis=1)
            self.col = decay * self.col + (1 - decay) * squared.mean(axis=0)
            moment = np.outer(self.row, self.col) / self.row.mean()
        else:
            self.full = decay * self.full + (1 - decay) * squared
            moment = self.full
        update = grad / np.sqrt(moment)
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        size = max(np.sqrt(np.mean(param**2)), 1e-3) if self.scale else 1.0
        return param - self.rate * size * update


def reference_run(params, gradients, **rule):
    """The tree after all steps, layers of stacks taken one by one."""

    def leaf(axes, param, *grads):
        layers = param if axes[0] == "layers" else param[None]
        columns = [grad if axes[0] == "layers" else grad[None] for grad in grads]
        out = []
        for index, layer in enumerate(layers):
            one = T5Adafactor(layer.shape, **rule)
            for column in columns:
                layer = one.step(layer, column[index])
            out.append(layer)
        return np.stack(out) if axes[0] == "layers" else out[0]

    return jax.tree.map(leaf, AXES, params, *gradients, is_leaf=is_tuple)


def run(settings, params, gradients):
    optimizer = optim.make_optimizer(settings, len(gradients), AXES)
    params = to_f32(params)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in gradients:
        params, state = step(params, state, to_f32(grads))
    return params, state


def assert_close(actual, expected, rtol):
    def leaf(a, b):
        layers = (a, b) if b.ndim == 3 else (a[None], b[None])
        for one, other in zip(*layers, strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())

    jax.tree.map(leaf, jax.tree.map(np.asarray, actual), expected)


@pytest.mark.parametrize(("offset", "scale"), [(0, True), (0, False), (1000, True)])
def test_adafactor_follows_t5s_rule_for_50_steps(offset, scale):
    params = random_tree(0)
    gradients = [random_tree(1 + i, scale=1.0 + math.sin(i)) for i in range(50)]
    settings = config.Optimizer(
        learning_rate=1e-2, decay_offset=offset, multiply_by_parameter_scale=scale
    )
    actual, _ = run(settings, params, gradients)
    expected = reference_run(params, gradients, offset=offset, rate=1e-2, scale=scale)
    assert_close(actual, expected, rtol=2e-5)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), expected, params)
    assert all(value > 1e-4 for value in jax.tree.leaves(moved))


def test_adafactor_with_t5s_continued_count_starts():
    settings = config.Optimizer(decay_offset=1_100_000)
    params = random_tree(0)
    gradients = [random_tree(i) for i in range(1, 4)]
    actual, _ = run(settings, params, gradients)
    expected = reference_run(params, gradients, offset=1_100_000, rate=1e-3, scale=True)
    assert_close(actual, expected, rtol=2e-5)


def test_adafactor_on_a_stack_equals_each_layer_alone():
    params, grads = random_tree(0)["stack"]["wi"], [random_tree(i)["stack"]["wi"] for i in (1, 2)]
    settings = config.Optimizer()

    def last(param, axes, gradients):
        optimizer = optim.make_optimizer(settings, 2, {"w": axes})
        tree = to_f32({"w": param})
        state = optimizer.init(tree)
        for grad in gradients:
            updates, state = optimizer.update(to_f32({"w": grad}), state, tree)
            tree = optax.apply_updates(tree, updates)
        return tree["w"]

    stacked = last(params, ("layers", "embed", "mlp"), grads)
    alone = [last(params[i], ("embed", "mlp"), [g[i] for g in grads]) for i in range(3)]
    np.testing.assert_allclose(stacked, np.stack(alone), rtol=1e-6)


def test_adafactor_state_is_factored_float32():
    optimizer = optim.make_optimizer(config.Optimizer(), 1, AXES)
    state = optimizer.init(to_f32(random_tree(0)))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert dtypes == {np.dtype("float32"), np.dtype("int32")}
    parameters = sum(math.prod(s) for s in jax.tree.leaves(SHAPES, is_leaf=is_tuple))
    unfactored = 3 * 160 + 32 * 6 + 2 * 160 * 40 + 160
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < unfactored + 0.03 * parameters


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_state_axes_name_every_dimension(name):
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=is_tuple)
    optimizer = optim.make_optimizer(config.Optimizer(name=name), 1, AXES)
    axes = optim.state_axes(optimizer, shapes, AXES)
    state = jax.eval_shape(optimizer.init, shapes)
    sizes = {"layers": {2, 3}, "embed": {130, 160}, "mlp": {128, 200}, "heads": {6, 40}}

    def check(leaf, names):
        assert len(names) == len(leaf.shape)
        for size, axis in zip(leaf.shape, names, strict=True):
            assert axis is None or size in sizes.get(axis, {32})

    jax.tree.map(check, state, axes)
    moments = jax.tree.leaves(axes, is_leaf=lambda x: is_tuple(x) and "mlp" in x)
    assert any("mlp" in names for names in moments)


def test_adamw_decays_matrices_alone():
    settings = config.Optimizer(name="adamw", learning_rate=1e-2, weight_decay=0.1)
    params = random_tree(0)
    gradients = [random_tree(i) for i in range(1, 6)]
    actual, _ = run(settings, params, gradients)

    def leaf(axes, param, *grads):
        decay = 0.1 if len(axes) - (axes[0] == "layers") > 1 else 0.0
        mean, square = np.zeros_like(param), np.zeros_like(param)
        for t, grad in enumerate(grads, start=1):
            mean = 0.9 * mean + 0.1 * grad
            square = 0.999 * square + 0.001 * grad**2
            update = (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
            param = param - 1e-2 * (update + decay * param)
        return param

    assert_close(actual, jax.tree.map(leaf, AXES, params, *gradients, is_leaf=is_tuple), rtol=2e-5)


def test_clip_norm_bounds_the_whole_tree():
    settings = config.Optimizer(name="adamw", clip_norm=0.5, epsilon=1e6, learning_rate=1.0)
    grads = to_f32(random_tree(1, scale=10.0))
    optimizer = optim.make_optimizer(settings, 1, AXES)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    # A huge epsilon makes Adam's first update the gradient over epsilon.
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)])
    np.testing.assert_allclose(np.linalg.norm(flat) * 1e6, 0.5, rtol=1e-3)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_schedule_closed_forms(name, warmup):
    steps, peak = 100, 0.3
    settings = config.Optimizer(schedule=name, warmup_steps=warmup, learning_rate=peak)
    schedule = optim.make_schedule(settings, steps)

    def expected(step):
        if step < warmup:
            return peak * step / warmup
        done = (step - warmup) / (steps - warmup)
        return {
            "constant": peak,
            "linear": peak * (1 - done),
            "cosine": peak * 0.5 * (1 + math.cos(math.pi * done)),
            "inverse_sqrt": peak * math.sqrt(max(warmup, 1) / max(step, warmup, 1)),
        }[name]

    for step in (0, 1, 5, 9, 10, 11, 50, 99, 100):
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected(step), rel=1e-5, abs=1e-8)


def test_cosine_equals_optax():
    settings = config.Optimizer(schedule="cosine", warmup_steps=7, learning_rate=0.1)
    ours = optim.make_schedule(settings, 50)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.1, 7, 50)
    for step in range(50):
        assert float(ours(step)) == pytest.approx(float(theirs(step)), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_warmup_longer_than_the_run_is_refused(name):
    settings = dataclasses.replace(config.Optimizer(), schedule=name, warmup_steps=10)
    with pytest.raises(ValueError, match="warmup_steps"):
        optim.make_schedule(settings, 10)
