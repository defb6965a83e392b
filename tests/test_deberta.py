"""DeBERTa-v3 beside transformers' DebertaV2: hidden states, logits and gradients with the same weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from deberta_weights import from_torch

from t0jax import config, models
from t0jax.config.heads import head_group

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
    [17, 300, *(pytest.param(n, marks=pytest.mark.slow) for n in (130, 512, 700))],
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
