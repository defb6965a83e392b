"""Other heads on a trained encoder: what goes along, what starts anew, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from t0jax import config as cfg
from t0jax import models
from t0jax.models.heads import head_group, layout
from t0jax.models.transfer import transfer

NLI = ("entailment", "neutral", "contradiction")
SMALL = cfg.Model(
    architecture="deberta", vocab_size=24, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
    position_buckets=8, max_relative_positions=16,
)  # fmt: skip


def head(task, labels=(), kind="classification", group=None):
    group = "|".join(labels) if group is None else group
    return cfg.Head(task, kind, tuple(labels), group)


TRAINED = (
    head("mnli", NLI),
    head("race", kind="multiple_choice", group="multiple_choice"),
    head("anli", NLI),
    head("tags", "OB", "token_classification", "token:O|B"),
    head("numbers", ("0", "1"), group=""),
)


def network(*heads, **changes):
    return models.build(dataclasses.replace(SMALL, heads=heads, **changes))


def trained():
    """A network whose every parameter is different."""
    source = network(*TRAINED)
    params = source.init(jax.random.key(1))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return source, jax.tree.unflatten(treedef, moved)


def moved(source, params, target, like=""):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    where = jax.tree.map(lambda _: device, target.shapes)
    return jax.device_get(transfer(source, params, target, jax.random.key(3), where, like))


def weights(net, params, task):
    """(kernel [D, n], bias [n], embedding [D]) of a task."""
    number = [head.task for head in net.config.heads].index(task)
    places = layout(net.config.heads)
    bank = "tokens" if places.token[number] else "sequence"
    outputs = np.arange(places.sizes[number])
    return (
        params["heads"][bank][:, places.columns[number] + outputs],
        params["heads"][f"{bank}_bias"][places.biases[number] + outputs],
        params["task_embedding"][number],
    )


def test_tasks_take_their_heads_along_in_any_order():
    source, params = trained()
    target = network(TRAINED[3], head("new", ("no", "yes")), TRAINED[2], TRAINED[1], TRAINED[4])
    found = moved(source, params, target)
    for task in ("tags", "anli", "race", "numbers"):
        for ours, theirs in zip(
            weights(target, found, task), weights(source, params, task), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found["pooler"]["kernel"], params["pooler"]["kernel"])
    for part in ("embedding", "layers", "relative", "relative_norm", "embedding_norm"):
        jax.tree.map(np.testing.assert_array_equal, found[part], jax.device_get(params[part]))


def test_a_new_task_takes_the_weights_of_its_group_but_no_bias():
    source, params = trained()
    target = network(head("fever", NLI), head("new", ("no", "yes")))
    found = moved(source, params, target)
    kernel, bias, embedding = weights(target, found, "fever")
    np.testing.assert_array_equal(kernel, weights(source, params, "mnli")[0])
    assert not bias.any()
    assert not embedding.any()
    fresh = weights(target, jax.device_get(target.init(jax.random.key(3))), "new")[0]
    np.testing.assert_allclose(
        weights(target, found, "new")[0], fresh, rtol=1e-6
    )  # jitted, and not


def test_a_new_task_starts_like_the_one_named():
    source, params = trained()
    target = network(head("fever", NLI), head("new", ("no", "yes")))
    found = moved(source, params, target, like="anli")
    for ours, theirs in zip(
        weights(target, found, "fever"), weights(source, params, "anli"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    _, bias, embedding = weights(target, found, "new")
    assert not bias.any()
    np.testing.assert_array_equal(embedding, params["task_embedding"][2])


def test_numbers_as_labels_share_nothing():
    source, params = trained()
    target = network(head("other numbers", ("0", "1"), group=""))
    found = moved(source, params, target, like="numbers")
    kernel = weights(target, found, "other numbers")[0]
    assert not np.array_equal(kernel, weights(source, params, "numbers")[0])


def test_a_bare_encoder_gets_a_pooler_and_heads_and_no_embedding_where_none_is_wanted():
    source = network()
    params = source.init(jax.random.key(1))
    target = network(*TRAINED, task_embedding=False)
    found = moved(source, params, target)
    assert {"pooler", "heads"} <= found.keys()
    assert "task_embedding" not in found
    assert jax.tree.structure(found) == jax.tree.structure(target.shapes)


def test_a_group_of_other_outputs_gives_nothing():
    source, params = trained()
    target = network(head("binary", NLI[:2], group=TRAINED[0].group))
    found = weights(target, moved(source, params, target), "binary")[0]
    fresh = weights(target, jax.device_get(target.init(jax.random.key(3))), "binary")[0]
    np.testing.assert_allclose(found, fresh, rtol=1e-6)


def test_label_names_do_not_run_into_each_other():
    joined, apart = (
        head_group("classification", names) for names in (("a|b", "c"), ("a", "b", "c"))
    )
    assert joined != apart


def test_the_same_model_is_given_back_as_it_is():
    source, params = trained()
    same = network(*TRAINED, dropout_rate=0.3)
    assert transfer(source, params, same, jax.random.key(0), {}) is params


def test_what_cannot_be_moved_is_refused():
    source, params = trained()
    with pytest.raises(cfg.ConfigError, match=r"train\.init_task 'snli' .* mnli, race"):
        moved(source, params, network(head("fever", NLI)), like="snli")
    with pytest.raises(cfg.ConfigError, match=r"train\.init_task 'snli'"):
        moved(source, params, network(*TRAINED), like="snli")
    with pytest.raises(cfg.ConfigError, match="'layers' does not have the shapes"):
        moved(source, params, network(*TRAINED, num_layers=2))
