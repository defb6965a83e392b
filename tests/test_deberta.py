"""DeBERTa-v3 beside transformers' DebertaV2: hidden states, logits and gradients with the same weights."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from deberta_weights import from_torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from t0jax import config, metrics, models, sharding
from t0jax.config.heads import head_group
from t0jax.models import distances
from t0jax.models.deberta import LayerNorm, gelu
from t0jax.models.disentangled import DisentangledAttention, log_buckets
from t0jax.models.layers import drop

LABELS = ("entailment", "neutral", "contradiction")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
HEADS = tuple(
    config.Head(task, kind, labels, head_group(kind, labels))
    for task, kind, labels in [
        ("nli", "classification", LABELS),
        ("choice", "multiple_choice", ()),
        ("tags", "token_classification", TAGS),
    ]
)
MODEL = config.Model(
    architecture="deberta",
    vocab_size=99,
    d_model=32,
    d_kv=8,
    num_heads=4,
    d_ff=48,
    num_layers=2,
    layer_norm_epsilon=1e-7,
    dropout_rate=0.1,
    heads=HEADS,
)
STDDEV = 0.3
"""Of the random weights: large enough that attention, and with it the relative terms, is far from uniform."""


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """transformers' modules of the three kinds, one encoder between them, and the heads' own tensors."""
    torch.manual_seed(0)
    settings = transformers.DebertaV2Config(
        vocab_size=MODEL.vocab_size,
        hidden_size=MODEL.d_model,
        num_hidden_layers=MODEL.num_layers,
        num_attention_heads=MODEL.num_heads,
        intermediate_size=MODEL.d_ff,
        initializer_range=STDDEV,
        layer_norm_eps=MODEL.layer_norm_epsilon,
        relative_attention=True,
        position_buckets=MODEL.position_buckets,
        max_position_embeddings=512,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        pooler_hidden_act="gelu",
        pooler_dropout=0,
        num_labels=3,
    )
    nli = transformers.DebertaV2ForSequenceClassification(settings)
    choice = transformers.DebertaV2ForMultipleChoice(settings)
    tags_settings = transformers.DebertaV2Config.from_dict({**settings.to_dict(), "num_labels": 5})
    tags = transformers.DebertaV2ForTokenClassification(tags_settings)
    choice.deberta = tags.deberta = nli.deberta
    choice.pooler = nli.pooler
    modules = {"nli": nli, "choice": choice, "tags": tags}
    with torch.no_grad():
        for module in modules.values():
            for name, parameter in module.named_parameters():
                if "LayerNorm" not in name and parameter.ndim == 1:
                    parameter.normal_(0.0, STDDEV)
            module.eval()
    return modules


@pytest.fixture(scope="module")
def params(theirs):
    return from_torch(theirs, MODEL)


def rows(length: int, count: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens [R, L] and segment ids, the rows after the first padded."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, MODEL.vocab_size, (count, length), dtype=np.int32)
    lengths = np.linspace(length, max(2, length // 3), count).astype(int)
    segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return tokens * segments, segments


def losses_of_torch(theirs, tokens, segments) -> dict[str, Any]:
    """Hidden states, logits of the three kinds, and the gradients of a sum over all of them."""
    ids, mask = torch.tensor(tokens).long(), torch.tensor(segments).long()
    for module in theirs.values():
        module.zero_grad()
    found = {"hidden": theirs["nli"].deberta(ids, mask).last_hidden_state}
    found["nli"] = theirs["nli"](ids, mask).logits
    found["choice"] = theirs["choice"](ids[None], mask[None]).logits[0]
    found["tags"] = theirs["tags"](ids, mask).logits * mask[..., None]
    found["hidden"] = found["hidden"] * mask[..., None]
    total = sum((value * torch.tensor(weight(value.shape))).sum() for value in found.values())
    total.backward()
    return {name: value.detach().numpy() for name, value in found.items()}


def weight(shape: tuple[int, ...]) -> np.ndarray:
    """Fixed random weights, so that a gradient is of everything at once; it stays near 1 in size."""
    return np.random.default_rng(1).normal(0, np.prod(shape) ** -0.5, shape).astype(np.float32)


def outputs(network, params, tokens, segments) -> dict[str, jax.Array]:
    module = network.bind(params)
    shown, count = jnp.asarray(segments)[..., None], len(tokens)
    hidden = module.encode(tokens, segments)
    pooled = module.pool(hidden)
    return {
        "hidden": hidden * shown,
        "nli": module.sequence_logits(pooled, jnp.zeros(count, jnp.int32))[:, :3],
        "choice": module.sequence_logits(pooled, jnp.ones(count, jnp.int32))[:, 0],
        "tags": module.token_logits(hidden, jnp.full(count, 2, jnp.int32)) * shown,
    }


@jax.jit
def encoded(params, *inputs):
    return models.build(MODEL).bind(params).encode(*inputs)


def value_and_grad(network, params, tokens, segments):
    def total(params):
        found = outputs(network, params, tokens, segments)
        return sum(jnp.sum(x * weight(x.shape)) for x in found.values()), found

    (_, found), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return found, grads


def assert_near(ours, theirs, bound: float = 1e-4) -> None:
    """Largest difference at most `bound` times the larger of 1 and the largest magnitude of the reference."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert np.abs(ours - theirs).max() <= bound * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize(
    "length",
    [300, *(pytest.param(n, marks=pytest.mark.slow) for n in (17, 130, 512, 700))],
)
def test_hidden_states_logits_and_gradients_are_torchs(theirs, params, length):
    tokens, segments = rows(length, count=2)
    expected = losses_of_torch(theirs, tokens, segments)
    found, grads = value_and_grad(models.build(MODEL), params, tokens, segments)
    for name, value in expected.items():
        assert_near(found[name], value)
    expected_grads = from_torch(theirs, MODEL, gradients=True)
    expected_grads["embedding"]["embedding"][0] = 0  # torch's padding row is not trained
    jax.tree.map(assert_near, grads, expected_grads)


def test_relative_terms_shape_the_states(theirs, params):
    """The oracle would notice: with distances reversed the states differ by far more than the bound."""
    tokens, segments = rows(9, count=3)
    reversed_table = {**params, "relative": {"embedding": params["relative"]["embedding"][::-1]}}
    a, b = (encoded(p, tokens, segments) for p in (params, reversed_table))
    assert jnp.abs(a - b).max() > 0.1


def test_log_buckets_are_transformers():
    distance = np.arange(-2047, 2048)
    for buckets, limit in ((256, 512), (8, 16), (32, 512)):
        expected = make_log_bucket_position(torch.tensor(distance), buckets, limit).numpy()
        expected = np.clip(expected + buckets, 0, 2 * buckets - 1)
        assert np.array_equal(log_buckets(distance, buckets, limit), expected)


@pytest.fixture(scope="module")
def plain(params):
    """(tokens, segments), and outputs and gradients of the plain float32 network on them."""
    inputs = rows(24, count=8)
    return inputs, value_and_grad(models.build(MODEL), params, *inputs)


@pytest.mark.parametrize(
    "change",
    [
        {"scan_layers": False, "remat": "full"},
        pytest.param({"remat": "dots"}, marks=pytest.mark.slow),
        pytest.param({"scan_layers": False}, marks=pytest.mark.slow),
    ],
)
def test_scanned_unrolled_and_recomputed_layers_agree(params, plain, change):
    inputs, expected = plain
    found = value_and_grad(models.build(dataclasses.replace(MODEL, **change)), params, *inputs)
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), found, expected)


def test_bfloat16_is_near(params, plain):
    inputs, (expected, _) = plain
    network = models.build(dataclasses.replace(MODEL, dtype="bfloat16"))
    found = jax.jit(lambda p: outputs(network, p, *inputs))(params)
    for name, value in expected.items():
        error = np.asarray(found[name], np.float32) - value
        # Measured: 1.4 to 1.8 %, and 3.9 % of the one logit of an option.
        assert rms(error) < (0.05 if name == "choice" else 0.025) * rms(value), name


def rms(x) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


def test_norms_of_bfloat16_lose_one_rounding():
    """Also where the mean is large beside the deviation, which in bfloat16 would be rounded away."""
    x = jnp.asarray(np.random.default_rng(0).normal(8, 1, (16, 512)), jnp.bfloat16)
    model = dataclasses.replace(MODEL, d_model=512)
    found = np.asarray(LayerNorm(model)(x), np.float64)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-5)


def test_weights_of_bfloat16_values_lose_one_rounding():
    """Scores that differ by less than bfloat16 tells apart at their size, over a long row."""
    rng = np.random.default_rng(0)
    scores, v = rng.normal(200, 1, (1, 1, 4, 512)), rng.normal(0, 1, (1, 1, 512, 8))
    v = jnp.asarray(v, jnp.bfloat16)
    given = jnp.asarray(scores, jnp.float32), v, jnp.ones((1, 512), bool), None
    found = DisentangledAttention._mix(SimpleNamespace(rate=0.0), *given)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ np.asarray(v, np.float64)
    assert found.dtype == jnp.bfloat16
    assert rms(np.asarray(found, np.float64) - exact) < 2**-8 * rms(exact)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_and_its_derivative_are_torchs(dtype):
    """To a unit in the last place of bfloat16, far to the left too, where 1 + erf(x) is nearly nothing."""
    points = np.linspace(-5, 5, 401, dtype=np.float32)
    theirs = torch.tensor(points, dtype=getattr(torch, dtype), requires_grad=True)
    value = torch.nn.functional.gelu(theirs)
    value.sum().backward()
    ours = jnp.asarray(points, dtype)
    found = gelu(ours), jax.grad(lambda x: gelu(x).astype(jnp.float32).sum())(ours)
    rtol = 1e-4 if dtype == "float32" else 2**-7
    for own, other in zip(found, (value.detach(), theirs.grad), strict=True):
        np.testing.assert_allclose(own.astype(np.float32), other.float(), rtol=rtol, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_gradients_are_near(params, plain):
    """Also with all inputs but the first token masked and scores in the hundreds, where float16 would overflow."""
    inputs, (_, expected) = plain
    network = models.build(dataclasses.replace(MODEL, dtype="bfloat16"))
    _, grads = value_and_grad(network, params, *inputs)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    error = jax.tree.map(
        lambda a, b: float(jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-3)),
        grads["layers"],
        expected["layers"],
    )
    assert np.median(jax.tree.leaves(error)) < 0.1
    attention = params["layers"]["attention"]
    sharp = {name: 30 * x if name in ("query", "key") else x for name, x in attention.items()}
    params = {**params, "layers": {**params["layers"], "attention": sharp}}
    alone = (inputs[0], inputs[1] * (np.arange(inputs[1].shape[1]) == 0))
    found, grads = value_and_grad(network, params, *alone)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((found, grads)))


def on_a_mesh(params, inputs, sizes):
    """`value_and_grad` of the plain network over eight devices."""
    network, mesh = models.build(MODEL), sharding.make_mesh(config.Mesh(*sizes))
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    with jax.set_mesh(mesh):
        batch = sharding.place({"tokens": inputs[0], "segments": inputs[1]}, mesh)
        found = value_and_grad(network, jax.device_put(params, where), *batch.values())
    return jax.device_get(found)


@pytest.mark.slow  # the multitask objective's own test has a mesh in every run
@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1), (1, 2, 4), (1, 8, 1), (1, 1, 8)])
def test_a_mesh_of_eight_devices_computes_the_same(params, plain, sizes):
    inputs, expected = plain
    found = on_a_mesh(params, inputs, sizes)
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), found, expected)


@pytest.mark.parametrize("sizes", [(2, 2, 2)])
def test_relative_terms_as_a_tpu_computes_them_are_the_same(params, plain, sizes, monkeypatch):
    """Three blocks of positions, the last a part of one, rows and heads over devices."""
    monkeypatch.setattr(distances, "BLOCK", 10)
    monkeypatch.setattr(distances, "by_diagonals", distances.by_blocks)
    monkeypatch.setattr(distances, "by_diagonals_transposed", distances.by_blocks_transposed)
    inputs, expected = plain
    found = on_a_mesh(params, inputs, sizes)
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), found, expected)


def test_the_task_embedding_is_added_to_the_first_token(params):
    tokens, segments = rows(9, count=3)
    vector = jnp.linspace(-1, 1, MODEL.d_model)
    with_task = {**params, "task_embedding": jnp.zeros((3, MODEL.d_model)).at[1].set(vector)}
    # As a row of the table in place of the first token, which occurs nowhere else.
    table = jnp.asarray(params["embedding"]["embedding"])
    tokens = np.where(np.arange(9) == 0, 1, np.where(tokens == 1, 2, tokens))
    folded = {**params, "embedding": {"embedding": table.at[1].add(vector)}}
    tasks, keep = jnp.array([0, 1, 1]), jnp.array([1, 1, 0])
    found = encoded(with_task, tokens, segments, tasks, keep)
    without, within = (encoded(p, tokens, segments) for p in (params, folded))
    for row, expected in enumerate((without, within, without)):
        assert_near(found[row], expected[row], 1e-5)


def test_dropout_drops_the_share_asked_for():
    ones = jnp.ones((64, 401))
    found = np.asarray(drop(ones, 0.1, jax.random.key(0)))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.9)}
    assert abs((found == 0).mean() - 0.1) < 0.01
    assert drop(ones, 0.1, None) is ones


def test_flops_are_xlas():
    model = dataclasses.replace(
        MODEL, d_model=256, d_kv=64, d_ff=1024, scan_layers=False, vocab_size=16, heads=()
    )
    network, (count, length) = models.build(model), (16, 64)
    tokens = jax.ShapeDtypeStruct((count, length), jnp.int32)
    lowered = jax.jit(lambda p, t: network.bind(p).encode(t, t)).lower(network.shapes, tokens)
    counted = lowered.cost_analysis()["flops"]
    assert counted == pytest.approx(count * metrics.encoder_flops(model, length), rel=0.06)
