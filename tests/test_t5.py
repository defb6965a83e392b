"""T5 against PyTorch's (transformers), and against itself under packing, scanning, remat, bf16 and meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pets import make_params

from t0jax import config as cfg
from t0jax import convert, models, sharding
from t0jax.models import attention

SMALL = cfg.Model(
    vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.1
)
V10 = dataclasses.replace(SMALL, feed_forward_proj="relu", tie_word_embeddings=True)
UNEQUAL = dataclasses.replace(SMALL, num_layers=1, num_decoder_layers=3)
SHORT_BUCKETS = dataclasses.replace(
    V10, relative_attention_num_buckets=8, relative_attention_max_distance=20, num_layers=2
)


def with_model(**changes):
    return dataclasses.replace(SMALL, **changes)


def make_batch(config, rows=8, inputs=24, targets=12, seed=0):
    """Rows of one example each, padded on the right to random lengths."""
    rng = np.random.default_rng(seed)
    ids = lambda length: rng.integers(2, config.vocab_size, (rows, length), dtype=np.int32)  # noqa: E731
    valid = lambda length: np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1))  # noqa: E731
    encoder, decoder = valid(inputs), valid(targets)
    labels = ids(targets) * decoder
    return {
        "encoder_input_tokens": ids(inputs) * encoder,
        "encoder_segment_ids": encoder.astype(np.int32),
        "decoder_input_tokens": np.pad(labels, ((0, 0), (1, 0)))[:, :-1] * decoder,
        "decoder_target_tokens": labels,
        "decoder_segment_ids": decoder.astype(np.int32),
        "decoder_loss_weights": decoder.astype(np.float32),
    }


def pack(batch):
    """All rows of `batch` side by side in one, each a segment."""
    packed = {name: np.concatenate(list(rows))[None] for name, rows in batch.items()}
    for side in ("encoder", "decoder"):
        rows, length = batch[f"{side}_segment_ids"].shape
        ids = np.repeat(np.arange(1, rows + 1, dtype=np.int32), length)[None]
        packed[f"{side}_segment_ids"] = ids * packed[f"{side}_segment_ids"]
    return packed


def mean_nll(config, params, batch, key=None):
    logits = models.build(config).bind(params)(batch, key=key)
    log_probs = jax.nn.log_softmax(logits)
    targets = batch["decoder_target_tokens"][..., None]
    nll = -jnp.take_along_axis(log_probs, targets, axis=-1)[..., 0]
    weights = batch["decoder_loss_weights"]
    return (nll * weights).sum() / weights.sum(), logits


@functools.lru_cache
def compiled(config):
    return jax.jit(jax.value_and_grad(functools.partial(mean_nll, config), has_aux=True))


def forward_backward(config, params, batch, key=None):
    """(loss, logits at real targets zeroed elsewhere, gradients)."""
    (loss, logits), grads = compiled(config)(params, batch, key)
    return loss, logits * batch["decoder_loss_weights"][..., None], grads


def assert_close(actual, expected, tolerance):
    def check(path, a, b):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)

    jax.tree.map_with_path(check, actual, expected)


def torch_model(config, params):
    """transformers' T5 with the same weights, in evaluation mode (no dropout)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    names = ("architectures", "torch_dtype", "exported_by")
    plain = {k: v for k, v in convert.hf_config(config, "float32").items() if k not in names}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**plain))
    if not config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    state = dict(convert.hf_tensors(params, config, np.dtype(np.float32)))
    left = model.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    assert not left.unexpected_keys
    assert all("embed_tokens" in k or k == "lm_head.weight" for k in left.missing_keys)
    return model.eval()


def torch_forward_backward(config, params, batch):
    import torch

    model = torch_model(config, params)
    tensors = {name: torch.tensor(rows) for name, rows in batch.items()}
    weights = tensors["decoder_loss_weights"]
    logits = model(
        input_ids=tensors["encoder_input_tokens"],
        attention_mask=tensors["encoder_segment_ids"],
        decoder_input_ids=tensors["decoder_input_tokens"],
        decoder_attention_mask=tensors["decoder_segment_ids"],
        use_cache=False,
    ).logits
    targets = tensors["decoder_target_tokens"].long()
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = (nll * weights).sum() / weights.sum()
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), (logits * weights[..., None]).detach().numpy(), grads


@pytest.mark.parametrize(
    ("config", "inputs"),
    [(V10, 24), (SMALL, 24), (UNEQUAL, 24), (SHORT_BUCKETS, 60)],
    ids=["v1.0", "v1.1", "unequal depths", "few buckets, long rows"],
)
def test_logits_and_gradients_are_torchs(config, inputs):
    params, batch = make_params(config), make_batch(config, rows=3, inputs=inputs)
    loss, logits, grads = forward_backward(config, params, batch)
    torch_loss, torch_logits, torch_grads = torch_forward_backward(config, params, batch)
    assert abs(loss - torch_loss) < 1e-5
    np.testing.assert_allclose(logits, torch_logits, rtol=0, atol=1e-4)
    ours = dict(convert.hf_tensors(grads, config, np.dtype(np.float32)))
    assert ours.keys() == torch_grads.keys()
    for name, grad in ours.items():
        np.testing.assert_allclose(grad, torch_grads[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "limit"), [(32, 128), (8, 20), (64, 256)])
def test_relative_buckets_are_torchs(causal, buckets, limit):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    distance = np.arange(-2000, 2001)
    expected = modeling.T5Attention._relative_position_bucket(
        torch.tensor(distance), bidirectional=not causal, num_buckets=buckets, max_distance=limit
    )
    np.testing.assert_array_equal(
        attention.relative_buckets(distance, causal, buckets, limit), expected.numpy()
    )


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 4), (4, 1), (5, 3), (3, 5), (6, 6)])
def test_windows_are_diagonals(queries, keys):
    line = np.arange(2 * (queries + keys - 1)).reshape(2, -1)
    i, j = np.arange(queries)[:, None], np.arange(keys)[None]
    expected = line[:, j - i + queries - 1]
    np.testing.assert_array_equal(attention.windows(jnp.asarray(line), queries, keys), expected)


def test_packed_is_unpacked():
    params, batch = make_params(SMALL), make_batch(SMALL)
    loss, logits, grads = forward_backward(SMALL, params, batch)
    packed_loss, packed_logits, packed_grads = forward_backward(SMALL, params, pack(batch))
    assert_close(packed_loss, loss, 1e-5)
    assert_close(packed_logits.reshape(logits.shape), logits, 1e-4)
    assert_close(packed_grads, grads, 1e-5)


def test_targets_side_by_side_read_one_input():
    """K targets as segments of one decoder row score as K rows that repeat the input."""
    params, batch = make_params(SMALL), make_batch(SMALL, rows=3)
    network = models.build(SMALL).bind(params)
    one = {
        name: np.repeat(rows[:1], 3, axis=0) for name, rows in batch.items() if "encoder" in name
    }
    repeated = network(batch | one) * batch["decoder_loss_weights"][..., None]
    row, source = pack(batch), {name: rows[:1] for name, rows in one.items()}
    segments = row["decoder_segment_ids"]
    hidden = network.decode(
        network.encode(source["encoder_input_tokens"], source["encoder_segment_ids"]),
        source["encoder_segment_ids"],
        row["decoder_input_tokens"],
        segments,
        cross_segment_ids=(segments > 0).astype(np.int32),
    )
    together = network.logits(hidden) * row["decoder_loss_weights"][..., None]
    assert_close(together.reshape(repeated.shape), repeated, 1e-4)


def test_a_row_without_any_token_is_finite():
    """Rows that fill up a batch must neither be NaN nor make gradients NaN."""
    params, batch = make_params(SMALL), make_batch(SMALL)
    empty = {name: np.concatenate([rows, 0 * rows]) for name, rows in batch.items()}
    loss, _, grads = forward_backward(SMALL, params, batch)
    full_loss, full_logits, full_grads = forward_backward(SMALL, params, empty)
    assert np.isfinite(full_logits).all()
    assert_close((full_loss, full_grads), (loss, grads), 1e-5)


@pytest.mark.parametrize(
    "key", [pytest.param(None, marks=pytest.mark.slow), 3], ids=["no dropout", "dropout"]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"scan_layers": False},
        {"remat": "dots"},
        pytest.param({"remat": "full"}, marks=pytest.mark.slow),
        {"scan_layers": False, "remat": "full"},
    ],
    ids=str,
)
def test_scan_and_remat_change_nothing(changes, key):
    key = None if key is None else jax.random.key(key)
    params, batch = make_params(SMALL), make_batch(SMALL)
    expected = forward_backward(SMALL, params, batch, key)
    assert_close(forward_backward(with_model(**changes), params, batch, key), expected, 2e-5)


def test_dropout_needs_a_key_and_keeps_the_mean():
    params, batch = make_params(SMALL), make_batch(SMALL)
    plain = forward_backward(SMALL, params, batch)[1]
    rate0 = forward_backward(with_model(dropout_rate=0.0), params, batch, jax.random.key(0))[1]
    np.testing.assert_array_equal(rate0, plain)
    dropped = [forward_backward(SMALL, params, batch, jax.random.key(i))[1] for i in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 0.1
    assert np.abs(dropped[0] - plain).max() > 0.1
    (noise,) = models.layers.dropout_noise(jax.random.key(0), 0.1, (64,), [(500,)])
    assert abs(noise.mean() - 1) < 0.01
    np.testing.assert_array_equal(np.unique(noise), np.float32([0, 1 / 0.9]))


def test_bfloat16_is_near_float32():
    base = SMALL
    params, batch = models.build(base).init(jax.random.key(0)), make_batch(base)
    loss, _, grads = forward_backward(base, params, batch)
    half = dataclasses.replace(base, dtype="bfloat16")
    half_loss, half_logits, half_grads = forward_backward(half, params, batch)
    assert half_logits.dtype == jnp.float32
    assert abs(half_loss - loss) < 0.02 * loss
    for path, grad in jax.tree.leaves_with_path(grads):
        other = dict(jax.tree.leaves_with_path(half_grads))[path]
        assert other.dtype == jnp.float32
        cosine = jnp.vdot(grad, other) / jnp.linalg.norm(grad) / jnp.linalg.norm(other)
        assert cosine > 0.99, jax.tree_util.keystr(path)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("base", [SMALL, V10], ids=["v1.1", "v1.0"])
def test_eight_devices_compute_what_one_does(shape, base):
    assert jax.device_count() == 8
    params, batch = make_params(base), make_batch(base)
    expected = forward_backward(base, params, batch)
    network = models.build(base)
    mesh = sharding.make_mesh(cfg.Mesh(*shape))
    with jax.set_mesh(mesh):
        where = sharding.param_shardings(network.axes, network.shapes, mesh)
        spread = jax.device_put(params, where)
        actual = forward_backward(base, spread, sharding.place(batch, mesh))
    assert len(actual[1].sharding.device_set) == 8
    assert_close(jax.device_get(actual), jax.device_get(expected), 1e-5)


def test_sharded_init_is_plain_init():
    network = models.build(SMALL)
    mesh = sharding.make_mesh(cfg.Mesh(2, 2, 2))
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    spread = jax.jit(network.init, out_shardings=where)(jax.random.key(0))
    assert_close(jax.device_get(spread), network.init(jax.random.key(0)), 1e-6)


def test_initial_logits_are_moderate():
    """Both heads start near uniform: what Mesh-TensorFlow's scales are for."""
    for base in (SMALL, V10):
        loss, *_ = forward_backward(
            base, models.build(base).init(jax.random.key(0)), make_batch(base)
        )
        assert abs(loss - np.log(base.vocab_size)) < 1.5


def test_parameters_of_another_architecture_are_refused():
    params = models.build(V10).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"missing \['decoder.layers.mlp.wi_0'"):
        models.build(SMALL).bind(params)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the GPU has cuDNN")
def test_cudnn_says_what_it_needs():
    config = with_model(attention="cudnn", dtype="bfloat16")
    params = models.build(config).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"set model\.attention to 'xla'"):
        mean_nll(config, params, make_batch(config))
