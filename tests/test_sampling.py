"""Which token is chosen from a model's logits: drawn as transformers' warpers say, the largest as JAX finds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from t0jax import config as cfg
from t0jax.generate import Settings, strategies
from t0jax.models import t5

EOS = 1


class Constant:
    """A model that expects the same whatever it has read."""

    config = cfg.Model(vocab_size=50)

    def __init__(self, logits):
        self.expected = jnp.asarray(logits)

    def new_cache(self, rows, width, length):
        return ()

    def step(self, tokens, position, memory, cache):
        return tokens, cache

    def logits(self, hidden, head):
        return jnp.broadcast_to(self.expected, (*hidden.shape, len(self.expected)))


def drawn_tokens(logits, rows, **settings):
    """Two tokens for each row, [rows, 2]."""
    settings = Settings(max_new_tokens=2, **settings)
    key, real = jax.random.key_data(jax.random.key(settings.seed)), jnp.ones(rows, bool)
    memory = t5.Memory(None, None, None)
    task = strategies.Task(Constant(logits), memory, real, jnp.arange(rows), key)
    return np.asarray(jax.jit(lambda: strategies.strategy(settings)(task, settings))()[0])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, 5, 1.0), (1.0, 0, 0.7), (0.7, 20, 0.5), (0.7, 0, 0.001), (2.0, 0, 1.0), (1.0, 7, 0.9)],
)
def test_samples_are_drawn_where_and_as_often_as_transformers_says(temperature, top_k, top_p):
    """Chi-square over 6,000 tokens; none is drawn outside what transformers' warpers leave."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = 2 * np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    logits[:, EOS] = -np.inf
    warpers = [transformers.TemperatureLogitsWarper(temperature)]
    warpers += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = transformers.LogitsProcessorList(warpers)(None, torch.tensor(logits)).numpy()
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    found = strategies.likely(jnp.asarray(logits), Settings(**settings))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    drawn = drawn_tokens(logits[0], 3000, **settings)
    share = torch.softmax(torch.tensor(expected[0], dtype=torch.float64), 0).numpy()
    counts = np.bincount(drawn.ravel(), minlength=50)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(share))
    often = share * drawn.size >= 5
    observed = [*counts[often], counts[~often].sum()]
    chances = [*share[often], share[~often].sum()]
    cells = [(o, c * drawn.size) for o, c in zip(observed, chances, strict=True) if c > 0]
    if len(cells) > 1:
        assert scipy.stats.chisquare(*zip(*cells, strict=True)).pvalue > 0.01
        both = scipy.stats.chi2_contingency(np.histogram2d(*(drawn.T % 2), bins=2)[0] + 1)
        assert both.pvalue > 0.01, "a row's tokens are drawn together"


def test_sampling_is_asked_for_by_any_of_its_settings():
    assert strategies.strategy(Settings()) is strategies.greedy
    assert strategies.strategy(Settings(temperature=0.0, top_k=5)) is strategies.greedy
    assert Settings(top_k=5).temperature == Settings(top_p=0.9).temperature == 1.0
    assert Settings(temperature=0.5, top_k=5).temperature == 0.5
    logits = np.random.default_rng(1).normal(size=50).astype(np.float32)
    np.testing.assert_array_equal(
        drawn_tokens(logits, 9, top_p=0.8), drawn_tokens(logits, 9, temperature=1.0, top_p=0.8)
    )


@pytest.mark.parametrize("size", [10, 4096, 4133])
def test_largest_values_are_found_as_jax_finds_them(size):
    """Equal ones in their order, whatever block they are in."""
    values = np.random.default_rng(size).integers(0, 40, (3, 4, size)).astype(np.float32)
    values[0, 0] = -np.inf
    for count in (1, 8):
        for ours, theirs in zip(
            strategies.top_k(values, count), jax.lax.top_k(values, count), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(strategies.largest(values), np.argmax(values, axis=-1))
