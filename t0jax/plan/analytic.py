"""What a job takes by arithmetic alone: for GPUs, whose compiler is not at hand, and to leave out hopeless settings.

Shapes as in `metrics.forward_flops`: S inputs, T targets, D d_model, HK num_heads x d_kv, F d_ff, L layers.
Memory and traffic of training T5 xl and xxl with `model.remat full` are within a third of what libtpu compiled, memory
of scoring within a fifth (`tests/test_plan.py`); other settings and GPUs were not compared.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from t0jax import config as config_lib
from t0jax import metrics, models, optim, sharding
from t0jax.config import Config, Model
from t0jax.plan import programs
from t0jax.plan.compiled import Memory
from t0jax.plan.programs import Job


@dataclass(frozen=True)
class Work:
    """One step (or one micro-batch of scoring) over all devices."""

    rows: int
    inputs: int
    targets: int
    model_flops: float
    """By `metrics.train_flops` or `forward_flops`: what MFU counts."""
    hardware_flops: float
    """With what `model.remat` computes twice."""

    @property
    def tokens(self) -> int:
        return self.rows * (self.inputs + self.targets)


def work(config: Config, ways: int, job: Job) -> Work:
    """FLOPs of a step; `ways` devices hold rows of their own."""
    model = config.model
    if job == "evaluate":
        inputs, targets = programs.scoring_shape(config)
        rows = programs.scoring_rows(config, ways)
        flops = rows * metrics.forward_flops(model, inputs, targets)
        return Work(rows, inputs, targets, flops, flops)
    rows, inputs, targets = (
        config.data.batch_size,
        config.data.input_length,
        config.data.target_length,
    )
    if model.architecture == "deberta":
        once = rows * metrics.encoder_flops(model, inputs)
        # All but each layer's last product, whose result no gradient asks for.
        last = rows * 2 * model.num_layers * model.d_ff * model.d_model * inputs
        again = {"none": 0.0, "dots": 0.0, "full": once - last}[model.remat]
        return Work(rows, inputs, 0, 3 * once, 3 * once + again)
    flops = rows * metrics.train_flops(model, inputs, targets)
    return Work(rows, inputs, targets, flops, flops + rows * recomputed(model, inputs, targets))


def recomputed(model: Model, inputs: int, targets: int) -> float:
    """FLOPs of one row that the backward pass computes again: layers, or what is no product with weights."""
    if model.remat == "none":
        return 0.0
    heads = model.num_heads * model.d_kv
    scores = model.num_layers * 4 * inputs**2 * heads
    scores += model.decoder_layers * 4 * targets * (targets + inputs) * heads
    if model.remat == "dots":
        return scores
    # All but the head and each layer's last product, whose result no gradient asks for.
    head = 2 * model.d_model * model.vocab_size * targets
    positions = model.num_layers * inputs + model.decoder_layers * targets
    last = 2 * model.d_ff * model.d_model * positions
    return metrics.forward_flops(model, inputs, targets) - head - last


def abstract_mesh(data: int, fsdp: int, model: int) -> AbstractMesh:
    """A mesh of no devices in particular."""
    return AbstractMesh((data, fsdp, model), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def memory(config: Config, mesh: AbstractMesh, job: Job) -> Memory:
    """About what one device holds: exact for the state, a model of the layers for the rest."""
    ways = sharding.row_ways(mesh)
    params, moments = _state_bytes(config, mesh)
    one = work(config, ways, job)
    if job == "evaluate":
        alive = _scored(config.model, one.inputs, one.targets) / mesh.shape["model"]
        return Memory(params, 0, 0, one.rows / ways * alive + _gathered(config, mesh, job))
    state = params + moments
    gradients = params * (2 if config.train.grad_accumulation > 1 else 1)
    rows = one.rows / ways / config.train.grad_accumulation
    kept = rows * activations(config.model, one.inputs, one.targets, mesh.shape["model"])
    batch = 4 * (3 * one.inputs + 5 * one.targets) * one.rows / ways
    return Memory(state + batch, state, state, gradients + kept + _gathered(config, mesh, job))


Leaf = tuple[tuple[int, ...], int, tuple[str | None, ...]]
"""(shape, bytes of an element, logical axes) of one array."""


@functools.lru_cache(maxsize=8)
def _leaves(
    model: Model, optimizer: config_lib.Optimizer, steps: int
) -> tuple[list[Leaf], list[Leaf]]:
    """(parameters, optimizer state), as `step.abstract_state` has them; cached, a search asks for many meshes."""
    network = models.build(model)
    update = optim.make_optimizer(optimizer, steps, network.axes)
    moments = jax.eval_shape(update.init, network.shapes)
    axes = optim.state_axes(update, network.shapes, network.axes)
    return _listed(network.shapes, network.axes), _listed(moments, axes)


def _listed(shapes: Any, axes: Any) -> list[Leaf]:
    flat, treedef = jax.tree.flatten(shapes)
    names = treedef.flatten_up_to(axes)
    return [(x.shape, x.dtype.itemsize, n) for x, n in zip(flat, names, strict=True)]


def _state_bytes(config: Config, mesh: AbstractMesh) -> tuple[float, float]:
    """(float32 parameters, optimizer state) of one device."""
    plain = dataclasses.replace(config.model, remat="none")
    parts = _leaves(plain, config.optimizer, config.train.steps)
    params, moments = (sum(_leaf_bytes(leaf, mesh) for leaf in leaves) for leaves in parts)
    return params, moments


def _leaf_bytes(leaf: Leaf, mesh: AbstractMesh) -> float:
    shape, item, names = leaf
    where = NamedSharding(mesh, sharding.spec(names, shape, mesh))
    return float(item * math.prod(where.shard_shape(shape)))


def _item(model: Model) -> int:
    return 2 if model.dtype == "bfloat16" else 4


def _layer_bytes(model: Model, inputs: int, targets: int, ways: int) -> tuple[float, float]:
    """What one (encoder, decoder) layer makes of one row on its way: projections, scores, feed-forward."""
    item = _item(model)
    heads = model.num_heads * model.d_kv / ways
    wide = (3 if model.feed_forward_proj.startswith("gated") else 1) * model.d_ff / ways
    # Scores in float32, their exponentials in float32 and the compute type; cuDNN's kernel keeps none.
    score = 0.0 if model.attention == "cudnn" else (8 + item) * model.num_heads / ways
    encoder = item * inputs * (4 * heads + 4 * model.d_model + wide) + score * inputs**2
    decoder = item * targets * (6 * heads + 6 * model.d_model + wide)
    decoder += 2 * item * inputs * heads + score * targets * (targets + inputs)
    return encoder, decoder


def _scored(model: Model, inputs: int, targets: int) -> float:
    """Bytes of one row of scoring at its highest: nothing is kept, so attention, feed-forward and head take turns."""
    item, heads = _item(model), model.num_heads * model.d_kv
    score = 0 if model.attention == "cudnn" else 4 * model.num_heads
    attention = max(score * inputs**2, score * targets * (targets + inputs))
    attention += item * inputs * (4 * heads + 2 * model.d_model)
    wide = item * inputs * (3 * model.d_ff + 2 * model.d_model)
    return max(attention, wide, 4 * targets * model.vocab_size)


def activations(model: Model, inputs: int, targets: int, ways: int) -> float:
    """Bytes of one row of a micro-batch when the backward pass begins, `ways` devices sharing heads and features."""
    item = _item(model)
    encoder, decoder = _layer_bytes(model, inputs, targets, ways)
    handed = item * model.d_model * (model.num_layers * inputs + model.decoder_layers * targets)
    logits = 3 * 4 * targets * model.vocab_size / ways
    if model.remat == "none":
        return handed + model.num_layers * encoder + model.decoder_layers * decoder + logits
    # One layer is computed again and differentiated; the factor is what libtpu 0.0.42 needs for that (T5 xl, xxl).
    working = max(1.3 * encoder, 1.3 * decoder, logits)
    if model.remat == "full":
        return handed + working
    heads, wide = model.num_heads * model.d_kv / ways, 2 * model.d_ff / ways
    products = model.num_layers * inputs * (3 * heads + 2 * model.d_model + wide)
    products += model.decoder_layers * targets * (4 * heads + 3 * model.d_model + wide)
    products += model.decoder_layers * inputs * 2 * heads
    return handed + item * products + working


def _gathered(config: Config, mesh: AbstractMesh, job: Job) -> float:
    """Two layers' weights and the head, whole, in the compute type, and float32 gradients of embedding and head."""
    if mesh.shape["fsdp"] == 1:
        return 0.0
    model = config.model
    table = model.d_model * model.vocab_size
    layer = 8 * model.d_model * model.num_heads * model.d_kv + 3 * model.d_model * model.d_ff
    gradients = 8 * table if job == "train" else 0
    return (_item(model) * (2 * layer + table) + gradients) / mesh.shape["model"]


def sent(config: Config, mesh: AbstractMesh, job: Job) -> dict[str, float]:
    """Bytes that one device sends in a step, by kind, if collectives are no more than they have to be."""
    found: dict[str, float] = {}
    for kind, _, size in collectives(config, mesh, job):
        found[kind] = found.get(kind, 0.0) + size
    return found


def collectives(config: Config, mesh: AbstractMesh, job: Job) -> list[tuple[str, str, float]]:
    """(kind, mesh axis, bytes that one device sends in a step)."""
    model, item = config.model, _item(config.model)
    total = _state_bytes(config, abstract_mesh(1, 1, 1))[0] / 4
    data, fsdp, ways = (mesh.shape[axis] for axis in sharding.MESH_AXES)
    one = work(config, data * fsdp, job)
    parts = config.train.grad_accumulation if job == "train" else 1
    share = item * total / ways * parts
    gathers = 1 if job == "evaluate" else 2
    found = [("all-gather", "fsdp", gathers * share * (fsdp - 1) / fsdp)]
    if job == "train":
        found += [
            ("reduce-scatter", "fsdp", share * (fsdp - 1) / fsdp),
            ("all-reduce", "data", 2 * share / fsdp * (data - 1) / data),
        ]
    # Heads and features cut over `model`: sums of a layer's outputs, forward, again, and of its inputs' gradients.
    sums = 2 * model.num_layers * one.inputs + 3 * model.decoder_layers * one.targets
    times = 1 if job == "evaluate" else 3 if model.remat == "full" else 2
    rows = one.rows / (data * fsdp)
    size = times * rows * item * model.d_model * sums * 2 * (ways - 1) / ways
    return [x for x in [*found, ("all-reduce", "model", size)] if x[2]]


def memory_traffic(config: Config, mesh: AbstractMesh, job: Job) -> float:
    """Bytes that one device reads and writes in a step, about: layers' results, weights, the update."""
    ways = sharding.row_ways(mesh)
    one = work(config, ways, job)
    encoder, decoder = _layer_bytes(config.model, one.inputs, one.targets, mesh.shape["model"])
    rows = one.rows / ways
    # Everything a layer makes is written and read once a pass; a backward pass is two.
    passes = 1 if job == "evaluate" else 3 if config.model.remat == "none" else 4
    layers = config.model.num_layers * encoder + config.model.decoder_layers * decoder
    logits = 3 * 4 * one.targets * config.model.vocab_size / mesh.shape["model"]
    params, _ = _state_bytes(config, mesh)
    item = _item(config.model)
    gathered = params * mesh.shape["fsdp"] * item / 4
    parts = config.train.grad_accumulation if job == "train" else 1
    update = 8 * params if job == "train" else 0.0
    return rows * 2 * (passes * layers + logits) + parts * passes * 2 * gathered + update
