"""The training state and one step: gradients of the summed loss, the update, what it reports."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t0jax import models, objectives, optim, sharding
from t0jax.config import Config
from t0jax.objectives import Objective

COUNTERS = ("step", "bad_in_row", "skipped")

State = dict[str, Any]
"""`params`, `optimizer` and `counters` (int32 scalars by the names above)."""

Batch = dict[str, jax.Array]

Step = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
"""(state, batch) -> (state, float32 scalars to report)."""


def state_shardings(
    network: models.Network, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> State:
    """Where every array of the state lives: moments beside their parameters, counters everywhere."""
    shapes = jax.eval_shape(optimizer.init, network.shapes)
    axes = optim.state_axes(optimizer, network.shapes, network.axes)
    return {
        "params": sharding.param_shardings(network.axes, network.shapes, mesh),
        "optimizer": sharding.param_shardings(axes, shapes, mesh),
        "counters": dict.fromkeys(COUNTERS, sharding.replicated(mesh)),
    }


def abstract_state(
    network: models.Network, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> State:
    """Shapes and shardings of the state, without the state: what a checkpoint is restored into."""
    shapes = {
        "params": network.shapes,
        "optimizer": jax.eval_shape(optimizer.init, network.shapes),
        "counters": dict.fromkeys(COUNTERS, jax.ShapeDtypeStruct((), jnp.int32)),
    }
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        state_shardings(network, optimizer, mesh),
    )


def init_state(
    config: Config,
    network: models.Network,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    params: models.Params | None = None,
) -> State:
    """A fresh state, each shard created where it lives; from `params` or random weights."""
    where = state_shardings(network, optimizer, mesh)
    if params is None:
        init = jax.jit(network.init, out_shardings=where["params"])
        params = init(jax.random.key(config.train.seed))
    zeros = jax.jit(lambda: dict.fromkeys(COUNTERS, jnp.int32(0)), out_shardings=where["counters"])
    moments = jax.jit(optimizer.init, out_shardings=where["optimizer"])(params)
    return {"params": params, "optimizer": moments, "counters": zeros()}


def accumulate(
    objective: Objective,
    params: models.Params,
    batch: Batch,
    key: jax.Array,
    parts: int,
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients of the summed loss and all sums over `parts` micro-batches.

    Row r belongs to micro-batch r % parts, so that every device keeps its rows.
    """
    grad = jax.value_and_grad(objective, has_aux=True)

    def one(part: Batch, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        (loss, sums), grads = grad(params, part, key)
        return grads, {"loss": loss, **sums}

    if parts == 1:
        return one(batch, key)
    cut = {
        name: sharding.constrain(
            x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1),
            None,
            "batch",
            *[None] * (x.ndim - 1),
        )
        for name, x in batch.items()
    }
    keys = jax.random.split(key, parts)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(one, jax.tree.map(lambda x: x[0], cut), keys[0]),
    )

    def body(total, part):
        return jax.tree.map(jnp.add, total, one(*part)), None

    return jax.lax.scan(body, zeros, (cut, keys))[0]


def jit_step(
    config: Config,
    network: models.Network,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
    """The step (state, batch) -> (state, metrics), to be called or lowered under `jax.set_mesh`; the state is donated.

    A step whose loss or gradient norm is not finite changes nothing but the counters.
    """
    schedule = optim.make_schedule(config.optimizer, config.train.steps)
    base_key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    learned = objectives.of(network)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        counters = state["counters"]
        key = jax.random.fold_in(base_key, counters["step"])
        objective = learned.objective(config, network, counters["step"])
        grads, sums = accumulate(
            objective, state["params"], batch, key, config.train.grad_accumulation
        )
        scale = 1.0 / jnp.maximum(sums["normalizer"], 1e-9)
        grads = jax.tree.map(lambda g: g * scale, grads)
        norm = optax.tree.norm(grads)
        loss = sums["loss"] * scale
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        fresh = {
            "params": optax.apply_updates(state["params"], updates),
            "optimizer": moments,
        }
        kept = {name: state[name] for name in fresh}
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), fresh, kept)
        bad = 1 - good.astype(jnp.int32)
        new["counters"] = {
            "step": counters["step"] + 1,
            "bad_in_row": (counters["bad_in_row"] + 1) * bad,
            "skipped": counters["skipped"] + bad,
        }
        report = {
            "loss": loss,
            **learned.report(sums),
            "grad_norm": norm,
            # Skipped steps do not move the optimizer's own count.
            "learning_rate": jnp.float32(schedule(counters["step"] - counters["skipped"])),
            "skipped": new["counters"]["skipped"].astype(jnp.float32),
            "bad_in_row": new["counters"]["bad_in_row"].astype(jnp.float32),
        }
        return new, report

    # Said, not inferred: the next step takes the state as it is, and so does a run resumed from it.
    where = (state_shardings(network, optimizer, mesh), sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=where)


def make_step(
    config: Config,
    network: models.Network,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> Step:
    """`jit_step` as a plain function that knows its mesh."""
    jitted = jit_step(config, network, optimizer, mesh)

    def call(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        with jax.set_mesh(mesh):
            return jitted(state, batch)

    return call
