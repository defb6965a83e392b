"""The linear probe against scikit-learn's logistic regression, and its features against the network."""

import json

import jax
import multitask_models as tiny_models
import numpy as np
import pytest

from t0jax import config as cfg
from t0jax import models, probe, sharding
from t0jax.data.structured.pieces import PairPieces
from t0jax.data.structured.records import Classification
from t0jax.data.structured.rows import StructuredRows


def features(rows=300, width=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, width)) * rng.uniform(0.1, 5, width) + rng.normal(size=width)
    logits = states @ rng.normal(size=(width, classes)) * 0.4
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return probe.Features(states.astype(np.float32), labels.astype(np.int32))


@pytest.mark.parametrize(("standardize", "inverse_penalty"), [(True, 0.01), (False, 10.0)])
def test_it_is_scikit_learns(standardize, inverse_penalty):
    linear = pytest.importorskip("sklearn.linear_model")
    found = features()
    ours = probe.fit(found, 3, inverse_penalty=inverse_penalty, standardize=standardize)
    states = (found.states - ours.mean) / ours.scale
    theirs = linear.LogisticRegression(C=inverse_penalty, tol=1e-8, max_iter=10_000)
    theirs.fit(states.astype(float), found.labels)
    np.testing.assert_allclose(ours.kernel.T, theirs.coef_, atol=2e-3)
    wanted = theirs.predict_proba(states.astype(float))
    logits = ours.logits(found.states)
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    np.testing.assert_allclose(shares, wanted, atol=1e-3)
    assert ours.gradient < 1e-4
    other = features(seed=1)
    right = theirs.score((other.states - ours.mean) / ours.scale, other.labels)
    assert ours.accuracy(other) == pytest.approx(right, abs=2 / 300)


def test_classes_told_by_a_feature_are_learnt():
    states = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    found = probe.Features(states, (np.arange(60) % 3).astype(np.int32))
    assert probe.fit(found, 3).accuracy(found) == 1.0
    assert probe.majority(found.labels) == pytest.approx(1 / 3)


def test_fitting_ends_where_the_loss_falls_no_more():
    found = features()
    ours = probe.fit(found, 3, tolerance=0.0, steps=5000)
    assert ours.steps < 500
    assert ours.loss == pytest.approx(probe.fit(found, 3).loss, abs=1e-6)


def test_features_are_no_constant_of_the_program():
    found = features(rows=4000, width=50)
    lowered = probe._minimised.lower(found.states, found.labels, 3, 0.1, 10, 1e-6)
    assert len(lowered.as_text()) < found.states.size


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = tiny_models.sentences(20, seed=2, longest=20)
    lines = [{"text": text, "label": k % 3} for k, text in enumerate(texts)]
    lines[7]["label"] = -1
    file = folder / "probed" / "default" / "train.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    record = Classification(dataset="probed", sentence1="text", labels=("a", "b", "c"))
    return StructuredRows(record, "train", str(folder)), lines


def test_features_are_the_first_tokens_states(rows, tmp_path_factory):
    rows, lines = rows
    pieces = PairPieces(tiny_models.vocabulary(tmp_path_factory.mktemp("pieces")))
    config, params = tiny_models.tiny(pieces.path)
    network = models.build(config)
    mesh = sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])
    given = network, params, mesh, pieces, rows
    found = probe.read_features(*given, max_length=32)
    told = [line for line in lines if line["label"] >= 0]
    assert found.labels.tolist() == [line["label"] for line in told]
    ids = np.zeros((len(told), 32), np.int32)
    for row, line in zip(ids, told, strict=True):
        one = pieces.pair(pieces.encode(line["text"]), None, 32)
        row[: len(one)] = one

    @jax.jit
    def states(ids):
        module = network.bind(params)
        hidden = module.encode(ids, ids > 0)
        return hidden[:, 0], module.pool(hidden)

    first, pooled = states(ids)
    np.testing.assert_allclose(found.states, first, atol=1e-5)
    some = probe.read_features(*given, max_length=32, limit=5, pooled=True)
    assert len(some.labels) == 5
    assert all(np.isclose(pooled, row, atol=1e-5).all(axis=1).any() for row in some.states)


@pytest.mark.parametrize("given", ["--train.seed=9", "--data.mixture=x", "--model.d_model=8"])
def test_keys_that_a_probe_does_not_read_are_refused(given, tmp_path):
    from scripts import probe as script

    with pytest.raises(cfg.ConfigError, match=f"^{given.partition('=')[0]} would not be read"):
        script.main(["--model", str(tmp_path), "--mesh.data=1", "--model.dtype=float32", given])


def test_only_classes_are_probed(rows):
    record = Classification(dataset="probed", sentence1="text", scale=(0.0, 1.0))
    other = StructuredRows(record, "train", rows[0].local_dir)
    with pytest.raises(probe.ProbeError, match="'probed' is regression"):
        probe.read_features(None, None, None, None, other)


@pytest.mark.parametrize("heads", [(), tiny_models.HEADS[-1:]])
def test_a_pooler_that_is_not_there_is_not_probed(rows, heads):
    """Of an encoder alone, and of one whose heads read tokens."""
    config = cfg.Model(architecture="deberta", d_kv=64, d_model=384, num_layers=1, heads=heads)
    with pytest.raises(probe.ProbeError, match=r"no pooler.*--pooled"):
        probe.read_features(models.build(config), {}, None, None, rows[0], pooled=True)
