"""The multitask objective: mixed batches are the sum of their items, and every item is what torch says."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from structured_batches import HEADS, MODEL, batch_of, rows_of

from t0jax import config, models, sharding
from t0jax.config.heads import head_group
from t0jax.models.heads import layout
from t0jax.objectives import multitask
from t0jax.scoring.heads import program
from t0jax.step import accumulate

LENGTH, ROWS = 12, 40
NETWORK = models.build(MODEL)


def random_params(network):
    """All parameters random, biases and task embeddings too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), network.shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORK)


@pytest.fixture(scope="module")
def items():
    """Two items of every task, in mixed order."""
    rng = np.random.default_rng(0)
    tasks = rng.permutation(np.tile(np.arange(len(HEADS)), 2))
    return [rows_of(int(task), rng, LENGTH) for task in tasks]


@jax.jit
def summed(params, batch):
    grad = jax.value_and_grad(lambda p: multitask.loss_sums(NETWORK, p, batch, None), has_aux=True)
    (loss, sums), grads = grad(params)
    return {"loss": loss, **sums}, grads


def assert_trees_near(ours, theirs, bound=1e-5):
    scale = max(1.0, *(float(jnp.abs(x).max()) for x in jax.tree.leaves(theirs)))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= bound * scale


@pytest.fixture(scope="module")
def whole(params, items):
    """Sums and gradients of the mixed batch."""
    return summed(params, batch_of(items, ROWS))


def test_a_mixed_batch_is_the_sum_of_single_task_batches(params, items, whole):
    by_task = {}
    for item in items:
        by_task.setdefault(int(item[0]["task_ids"]), []).append(item)
    parts = [summed(params, batch_of(some, ROWS)) for some in by_task.values()]
    total = jax.tree.map(lambda *xs: sum(xs), *parts)
    assert_trees_near(whole[0], total[0])
    assert_trees_near(whole[1], total[1])
    assert whole[0]["normalizer"] == whole[0]["examples"] == len(items)
    assert whole[0]["rated"] == len(items) - 2  # two regressions


def test_losses_are_torchs_item_by_item(params, items, whole):
    total, right, row = 0.0, 0.0, 0
    batch = batch_of(items, sum(map(len, items)))
    mesh, read = sharding.make_mesh(config.Mesh(), jax.devices()[:1]), batch | {"keep": None}
    scores = {
        of: np.asarray(program(MODEL, mesh, of)(params, read)) for of in ("sequence", "tokens")
    }
    for item in items:
        own = {name: value[row : row + len(item)] for name, value in scores.items()}
        loss, correct = torch_item(item, own)
        total, right, row = total + float(loss), right + correct, row + len(item)
    np.testing.assert_allclose(whole[0]["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(whole[0]["correct"], right, rtol=1e-5)


def torch_item(item, found):
    """(loss, how right) of one item's outputs, by torch's losses as transformers' heads use them."""
    head, row = HEADS[int(item[0]["task_ids"])], item[0]
    logits = torch.tensor(found["sequence"])[:, : head.columns]
    if head.kind == "multiple_choice":
        gold = [int(option["label_ids"]) for option in item].index(1)
        return F.cross_entropy(logits[:, 0], torch.tensor(gold)), logits[:, 0].argmax() == gold
    if head.kind == "classification":
        gold = torch.tensor(int(row["label_ids"]))
        return F.cross_entropy(logits[0], gold), logits[0].argmax() == gold
    values = torch.tensor(row["label_values"])
    if head.kind == "regression":
        return F.mse_loss(logits[0, 0], values[0]), 0.0
    if head.kind == "multilabel":
        right = ((logits[0] > 0) == (values[: head.columns] > 0)).all()
        return F.binary_cross_entropy_with_logits(logits[0], values[: head.columns]), right
    labels = torch.tensor(row["token_labels"]).long()
    tokens = torch.tensor(found["tokens"])[0, :, : head.columns]
    right = (tokens.argmax(1) == labels)[labels >= 0].float().mean()
    return F.cross_entropy(tokens, labels, ignore_index=-1), right


def test_micro_batches_are_the_whole(params, items, whole):
    parts, order, next_place = 2, [], [0, 1]
    for number, item in enumerate(items):  # items in turns to micro-batch 0 and 1: rows r % 2
        part = number % parts
        order += [next_place[part] + parts * i for i in range(len(item))]
        next_place[part] += parts * len(item)
    size = max(next_place) + -max(next_place) % 8
    batch = batch_of(items, size, [*order, *sorted(set(range(size)) - set(order))])
    objective = lambda p, b, key: multitask.loss_sums(NETWORK, p, b, None)  # noqa: E731
    cut = jax.jit(accumulate, static_argnums=(0, 4))
    batch = jax.tree.map(jnp.asarray, batch)
    grads, sums = cut(objective, params, batch, jax.random.key(0), parts)
    assert_trees_near(sums, whole[0])
    assert_trees_near(grads, whole[1])


@pytest.mark.parametrize("sizes", [(2, 2, 2), pytest.param((8, 1, 1), marks=pytest.mark.slow)])
def test_options_on_different_devices_are_one_question(params, items, whole, sizes):
    mesh = sharding.make_mesh(config.Mesh(*sizes))
    scattered = np.random.default_rng(1).permutation(ROWS)
    where = sharding.param_shardings(NETWORK.axes, NETWORK.shapes, mesh)
    with jax.set_mesh(mesh):
        batch = sharding.place(batch_of(items, ROWS, scattered), mesh)
        found = summed(jax.device_put(params, where), batch)
    assert_trees_near(found[0], whole[0])
    assert_trees_near(found[1], whole[1])


def test_shared_heads_share_weights_alone_and_unused_ones_stay(params):
    places = layout(HEADS)
    assert places.columns[0] == places.columns[1]  # the nli tasks
    assert places.biases[0] != places.biases[1]
    assert places.columns[4] == places.columns[5]  # the multiple-choice tasks
    rng = np.random.default_rng(2)
    _, grads = summed(params, batch_of([rows_of(1, rng, LENGTH)], ROWS))
    kernel, bias = grads["heads"]["sequence"], grads["heads"]["sequence_bias"]
    used, own = slice(0, 3), slice(int(places.biases[1]), int(places.biases[1]) + 3)
    assert np.abs(kernel[:, used]).min() > 0
    assert not np.any(np.delete(kernel, used, axis=1))
    assert np.abs(bias[own]).min() > 0
    assert not np.any(np.delete(bias, own))
    assert not np.any(grads["heads"]["tokens"])
    assert not np.any(np.delete(grads["task_embedding"], 1, axis=0))


def test_task_embeddings_are_left_out_per_item():
    same = jnp.arange(64)[:, None] // 2 == jnp.arange(64) // 2
    draw = jax.jit(jax.vmap(lambda key: multitask._kept_items(key, 0.75, same)))
    kept = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))
    assert np.array_equal(kept[:, 0::2], kept[:, 1::2])
    assert abs(kept.mean() - 0.75) < 0.02


def row_losses(network, params, batch, key):
    """[items] losses of a batch: the summed loss is linear in the weights of rows."""
    there, batch = batch["loss_weights"] > 0, jax.tree.map(jnp.asarray, batch)
    loss = lambda w: multitask.loss_sums(network, params, {**batch, "loss_weights": w}, key)[0]  # noqa: E731
    return jax.grad(loss)(batch["loss_weights"])[there]


def test_an_item_is_learnt_with_its_task_embedding_or_without(params, items):
    """Each row has the one loss or the other; a question that lost it for some options alone would have neither."""
    network = models.build(dataclasses.replace(MODEL, task_embedding_drop=0.25))
    losses = jax.jit(lambda params, key: row_losses(network, params, batch, key))
    batch = batch_of(items, ROWS)
    bare = {**params, "task_embedding": np.zeros_like(params["task_embedding"])}
    within, without = (losses(p, None) for p in (params, bare))
    assert np.abs(within - without).min() > 1e-4, "the two can be told apart"
    found = np.stack([losses(params, jax.random.key(seed)) for seed in range(48)])  # [48, items]
    kept, dropped = (np.isclose(found, x, rtol=1e-5, atol=1e-5) for x in (within, without))
    assert np.array_equal(kept, ~dropped)
    assert abs(kept.mean() - 0.75) < 0.1
    assert kept.any(0).all()
    assert dropped.any(0).all()
    assert (kept.any(1) & dropped.any(1)).sum() > 24, "items of one batch are drawn for themselves"


def test_nothing_is_dropped_without_a_key(items):
    """The program is that of a network which never drops."""
    network = models.build(dataclasses.replace(MODEL, task_embedding_drop=1.0, dropout_rate=0.5))
    batch = batch_of(items, ROWS)
    program, plain = (
        str(jax.make_jaxpr(partial(multitask.loss_sums, net))(NETWORK.shapes, batch, None))
        for net in (network, NETWORK)
    )
    assert program == plain


def test_one_program_a_length_whatever_the_tasks():
    names = [("yes", "no"), ("a", "b", "c"), (), ("x", "y", "z", "w")]
    heads = []
    for i in range(200):
        kind = ("classification", "multilabel", "multiple_choice", "token_classification")[i % 4]
        labels = tuple(f"{name}{i // 8}" for name in names[i % 4])
        heads.append(config.Head(f"task{i}", kind, labels, head_group(kind, labels)))
    model = dataclasses.replace(MODEL, num_layers=1, scan_layers=False, heads=tuple(heads))
    network = models.build(model)
    params = random_params(network)
    step = jax.jit(jax.grad(lambda p, b: multitask.loss_sums(network, p, b, jax.random.key(0))[0]))
    rng = np.random.default_rng(0)
    for length in (8, 12):
        for first in range(0, 200, 40):
            some = [rows_of(first + 13 * i % 40, rng, length, heads) for i in range(2)]
            grads = step(params, batch_of(some, 8, heads=heads))
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert step._cache_size() == 2
