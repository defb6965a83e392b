"""Optimizers over plain parameter trees: T5's Adafactor per layer, AdamW, and their schedules.

Stacked parameters (leading logical axis `layers`) are treated as the separate layers they are:
Adafactor's parameter scale, update clipping and factored moments are statistics of one matrix,
which the layers of a stack must not share.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t0jax import config

Axes = Any
"""A tree like the parameters' with tuples of logical axis names (or None) for leaves."""
Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]

CLIP_THRESHOLD = 1.0
"""Largest RMS of one matrix's update before the learning rate (Shazeer & Stern 2018, section 6)."""
MIN_PARAMETER_SCALE = 1e-3
"""Floor of the RMS that updates are relative to (Shazeer & Stern 2018, `epsilon_2`)."""


# Schedules


def make_schedule(optimizer: config.Optimizer, steps: int) -> Schedule:
    """Learning rate by step, counted from 0.

    It rises linearly from 0 at step 0 to `learning_rate` at step `warmup_steps`, then stays
    (constant), falls to 0 at `steps` (linear, cosine), or falls as sqrt(warmup_steps / step)
    (inverse_sqrt).

    Raises:
      ConfigError: the warm-up leaves no step of a schedule that has an end.
    """
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    if optimizer.schedule in ("linear", "cosine") and warmup >= steps:
        raise config.ConfigError(
            f"optimizer.warmup_steps ({warmup}) must be below train.steps ({steps}) with the "
            f"{optimizer.schedule} schedule; 0 is no warm-up"
        )
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, steps - warmup),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps - warmup),
        "inverse_sqrt": lambda: _inverse_sqrt(peak, max(warmup, 1), warmup),
    }[optimizer.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _inverse_sqrt(peak: float, scale: int, start: int) -> Schedule:
    """`peak * sqrt(scale / step)` for the step `start + count`, never above `peak`."""
    return lambda count: peak * jnp.sqrt(scale / jnp.maximum(count + start, scale))


# Optimizers


def make_optimizer(
    optimizer: config.Optimizer, steps: int, axes: Axes
) -> optax.GradientTransformation:
    """The transformation of gradients into updates, the learning rate (and its sign) included.

    Args:
      optimizer: what to build.
      steps: length of the run, for schedules with an end.
      axes: logical axes of every parameter.

    Returns:
      A transformation over float32 trees; its state is a tree of float32 arrays and int32 counts.
    """
    schedule = make_schedule(optimizer, steps)
    norm = optimizer.clip_norm
    make = {"adafactor": _adafactor, "adamw": _adamw}[optimizer.name]
    return optax.chain(
        optax.clip_by_global_norm(norm) if norm else optax.identity(),
        make(optimizer, axes),
        optax.scale_by_learning_rate(schedule),
    )


def state_axes(optimizer: optax.GradientTransformation, shapes: Any, axes: Axes) -> Any:
    """Logical axes of the optimizer's state, so that moments are sharded as their parameters are.

    Args:
      optimizer: from `make_optimizer`.
      shapes: the parameters' shapes, as `jax.ShapeDtypeStruct`s.
      axes: logical axes of every parameter.

    Returns:
      A tree like `jax.eval_shape(optimizer.init, shapes)` with tuples of axis names for leaves.
    """
    named = jax.tree_util.tree_leaves_with_path(axes, is_leaf=_is_axes)
    params = {
        path: (names, shape.shape)
        for (path, names), shape in zip(named, jax.tree.leaves(shapes), strict=True)
    }

    def leaf(path: tuple[Any, ...], state: jax.ShapeDtypeStruct) -> tuple[str | None, ...]:
        for start in range(len(path)):
            if path[start:] in params:
                return _moment_axes(*params[path[start:]], state.shape, path[start - 1])
        return (None,) * len(state.shape)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(optimizer.init, shapes))


def _moment_axes(
    names: tuple[str | None, ...], shape: tuple[int, ...], state: tuple[int, ...], field: Any
) -> tuple[str | None, ...]:
    """Axes of a state leaf of shape `state` that belongs to a parameter of axes `names`."""
    if state == shape:
        return names
    first = int(_is_stacked(names))
    by_size = first + np.argsort(shape[first:])
    gone = by_size[-1:] if getattr(field, "name", "") == "v_row" else by_size[-2:-1]
    if state == tuple(np.delete(shape, gone)):
        return tuple(name for dim, name in enumerate(names) if dim not in gone)
    return names[:first] + (None,) * (len(state) - first)


def _adamw(optimizer: config.Optimizer, axes: Axes) -> optax.GradientTransformation:
    matrices = jax.tree.map(_is_matrix, axes, is_leaf=_is_axes)
    return optax.chain(
        optax.scale_by_adam(b1=optimizer.beta1, b2=optimizer.beta2, eps=optimizer.epsilon),
        optax.add_decayed_weights(optimizer.weight_decay, mask=matrices),
    )


def _adafactor(optimizer: config.Optimizer, axes: Axes) -> optax.GradientTransformation:
    """T5's rule; `weight_decay` is AdamW's alone."""
    scale = optax.scale_by_param_block_rms(MIN_PARAMETER_SCALE)
    return optax.chain(
        _factored_rms(optimizer, axes),
        _per_layer(optax.clip_by_block_rms(CLIP_THRESHOLD), axes),
        _per_layer(scale, axes) if optimizer.multiply_by_parameter_scale else optax.identity(),
    )


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)


def _is_stacked(axes: tuple[str | None, ...]) -> bool:
    return axes[:1] == ("layers",)


def _is_matrix(axes: tuple[str | None, ...]) -> bool:
    """Whether one layer's parameter has two dimensions or more: a stacked norm is a vector."""
    return len(axes) - _is_stacked(axes) >= 2


# Per-layer application


def _per_layer(transform: optax.GradientTransformation, axes: Axes) -> optax.GradientTransformation:
    """Applies a stateless transformation of single leaves to each layer of stacked ones."""

    def leaf(names: tuple[str | None, ...], update: jax.Array, param: jax.Array) -> Any:
        def apply(update, param):
            return transform.update(update, transform.init(param), param)[0]

        return (jax.vmap(apply) if _is_stacked(names) else apply)(update, param)

    def update(updates, state, params=None):
        return jax.tree.map(leaf, axes, updates, params, is_leaf=_is_axes), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class FactoredMoments(NamedTuple):
    """Adafactor's second moments: three trees like the parameters', one zero where unused."""

    count: jax.Array
    """Steps taken, [] int32."""
    v_row: Any
    """Factored leaves without their largest dimension."""
    v_col: Any
    """Factored leaves without their second largest dimension."""
    v: Any
    """Whole second moments of leaves too small to factor."""


def _factored_rms(optimizer: config.Optimizer, axes: Axes) -> optax.GradientTransformation:
    """Gradients over the root of their factored second moment, layer by layer.

    The moment decays by 1 - (t + decay_offset) ** -decay_rate at step t = 1, 2, ... optax counts
    from 0, adds 1 and subtracts `step_offset`, hence the sign.
    """
    one = optax.scale_by_factored_rms(
        decay_rate=optimizer.decay_rate,
        step_offset=-optimizer.decay_offset,
        min_dim_size_to_factor=optimizer.min_dim_size_to_factor,
        epsilon=1e-30,
    )

    def init_leaf(names, param):
        def moments(param):
            state: Any = one.init(param)
            return tuple(state)[1:]

        return (jax.vmap(moments) if _is_stacked(names) else moments)(param)

    def init(params):
        leaves = jax.tree.map(init_leaf, axes, params, is_leaf=_is_axes)
        return FactoredMoments(jnp.zeros([], jnp.int32), *_unzip(axes, leaves))

    def update_leaf(count, names, grad, v_row, v_col, v, param):
        def step(grad, v_row, v_col, v, param):
            state: Any = optax.FactoredState(count, v_row, v_col, v)
            new, state = one.update(grad, state, param)
            return new, *tuple(state)[1:]

        return (jax.vmap(step) if _is_stacked(names) else step)(grad, v_row, v_col, v, param)

    def update(updates, state, params=None):
        leaves = jax.tree.map(
            lambda *args: update_leaf(state.count, *args),
            axes, updates, state.v_row, state.v_col, state.v, params,
            is_leaf=_is_axes,
        )  # fmt: skip
        new, *moments = _unzip(axes, leaves)
        return new, FactoredMoments(optax.safe_increment(state.count), *moments)

    return optax.GradientTransformation(init, update)


def _unzip(axes: Axes, leaves: Any) -> list[Any]:
    """A tree of n-tuples -> n trees."""
    treedef = jax.tree.structure(axes, is_leaf=_is_axes)
    columns = zip(*treedef.flatten_up_to(leaves), strict=True)
    return [treedef.unflatten(column) for column in columns]
