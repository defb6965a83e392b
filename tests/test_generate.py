"""Writing against PyTorch's `generate`, and against itself under caching, neighbours, meshes and processes."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from t0jax import config as cfg
from t0jax import convert, generate, models, sharding
from t0jax.generate import Generator, Settings, strategies

V11 = cfg.Model(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
V10 = dataclasses.replace(V11, feed_forward_proj="relu", tie_word_embeddings=True)
BOTH = pytest.mark.parametrize("config", [V10, V11], ids=["v1.0", "v1.1"])
EOS = 1


@functools.cache
def make_params(config, seed=1, sharpness=2.0, ends=4.0):
    """Random parameters, their logits so sharp that texts differ, and some of them end soon.

    As `Network.init` draws them, and noise; from NumPy, for the programs of JAX's draws take seconds to compile.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, shape = jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape
        noise = 0.1 * rng.normal(size=shape)
        if name.endswith("scale"):
            return (1 + noise).astype(np.float32)
        stddev = 1.0 if name == "shared.embedding" else shape[-2] ** -0.5
        stddev *= config.d_kv**-0.5 if name.endswith("query") else 1.0
        return (stddev * rng.normal(size=shape) + noise).astype(np.float32)

    params = jax.tree.map_with_path(draw, models.build(config).shapes)
    params["decoder"]["final_norm"]["scale"] *= sharpness
    if config.tie_word_embeddings:
        # A smaller table, or the decoder says the word it reads again and again.
        params["decoder"]["final_norm"]["scale"] /= 0.3
        params["shared"]["embedding"] *= 0.3
        params["shared"]["embedding"][EOS] *= ends
    else:
        params["lm_head"][:, EOS] *= ends
    return params


def one_device():
    return sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])


def ragged_inputs(count, seed=0, longest=40):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(2, 96, rng.integers(1, longest)).astype(np.int32).tolist()
        for _ in range(count)
    ]


def write(config, params, inputs, mesh=None, row_tokens=None, **settings):
    generator = Generator(
        models.build(config), mesh or one_device(), Settings(**settings), row_tokens=row_tokens
    )
    return list(generator(params, inputs))


def assert_same(actual, expected, tolerance=0.0):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        assert abs(a.score - b.score) <= tolerance


# ---------------------------------------------------------------------------------------------------------------------
# The cache


@functools.cache
def compiled_decoder(config):
    def run(params, inputs, targets):
        model, ones = models.build(config).bind(params), jnp.ones_like(targets)
        segments = (inputs > 0).astype(jnp.int32)
        return model.logits(model.decode(model.encode(inputs, segments), segments, targets, ones))

    return jax.jit(run)


def whole_decoder(config, params, inputs, targets):
    """Logits [B, T, V] of the decoder that reads all of `targets` at once."""
    return compiled_decoder(config)(params, inputs, targets)


def random_rows(rows, inputs, targets, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, 96, (rows, inputs), dtype=np.int32)
    real = np.arange(inputs) < rng.integers(1, inputs + 1, (rows, 1))
    return ids * real, rng.integers(2, 96, (rows, targets), dtype=np.int32)


def steps(config, params, inputs, length, width, tokens_at):
    """Logits [B, W, V] after each step; `tokens_at(position)` gives tokens and origins."""
    network, segments = models.build(config), (inputs > 0).astype(np.int32)

    @jax.jit
    def start(params):
        model = network.bind(params)
        memory = model.remember(model.encode(inputs, segments), segments)
        return memory, model.new_cache(len(inputs), width, length)

    @jax.jit
    def step(params, memory, cache, position, tokens, origins):
        model = network.bind(params)
        hidden, cache = model.step(tokens, position, memory, cache, origins)
        return model.logits(hidden, memory.head), cache

    memory, cache = start(params)
    for position in range(length):
        logits, cache = step(params, memory, cache, position, *tokens_at(position))
        yield logits


FEW = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10}
SHAPES = {
    "v1.0, few buckets": dataclasses.replace(V10, **FEW),
    "v1.1": V11,
    "unequal depths, unrolled": dataclasses.replace(
        V11, num_layers=1, num_decoder_layers=2, scan_layers=False
    ),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_steps_are_the_whole_decoder(config):
    params = make_params(config, sharpness=0.5, ends=1.0)
    inputs, targets = random_rows(3, 20, 16)
    expected = whole_decoder(config, params, inputs, targets)
    found = steps(config, params, inputs, 16, 1, lambda t: (targets[:, t : t + 1], None))
    for position, logits in enumerate(found):
        np.testing.assert_allclose(logits[:, 0], expected[:, position], rtol=0, atol=1e-5)


def test_hypotheses_that_part_read_their_own_past():
    """Each step every hypothesis goes on from a random one; the whole decoder reads what came out of that."""
    rows, width, length = 3, 4, 9
    params = make_params(V11, sharpness=0.5, ends=1.0)
    inputs, _ = random_rows(rows, 20, 1)
    rng = np.random.default_rng(1)
    texts = np.zeros((rows, width, length), np.int32)
    origins = np.broadcast_to(np.arange(width)[:, None], texts.shape).astype(np.int32)

    def tokens_at(position):
        nonlocal texts, origins
        parents = rng.integers(0, width, (rows, width, 1))
        texts, origins = (np.take_along_axis(x, parents, axis=1) for x in (texts, origins))
        origins[:, :, position:] = np.arange(width)[:, None]
        texts[:, :, position] = rng.integers(2, 96, (rows, width))
        return texts[:, :, position], origins

    for position, logits in enumerate(steps(V11, params, inputs, length, width, tokens_at)):
        repeated, read = np.repeat(inputs, width, axis=0), texts.reshape(rows * width, length)
        expected = whole_decoder(V11, params, repeated, read)[:, position]
        np.testing.assert_allclose(logits.reshape(expected.shape), expected, rtol=0, atol=1e-5)


def test_bfloat16_steps_are_near_the_whole_decoder():
    config = dataclasses.replace(V11, dtype="bfloat16")
    params = make_params(config, sharpness=0.5, ends=1.0)
    inputs, targets = random_rows(3, 20, 6)
    expected = whole_decoder(config, params, inputs, targets)
    scale = np.abs(expected).max()
    found = steps(config, params, inputs, 6, 1, lambda t: (targets[:, t : t + 1], None))
    for position, logits in enumerate(found):
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=0.03 * scale)


@BOTH
def test_matrices_are_cast_once_and_nothing_else(config):
    half = dataclasses.replace(config, dtype="bfloat16")
    params, (inputs, targets) = make_params(half), random_rows(3, 20, 6)
    cast = Generator(models.build(half), one_device(), Settings()).shard(params)
    assert sum(x.nbytes for x in jax.tree.leaves(cast)) < 0.55 * sum(
        x.nbytes for x in jax.tree.leaves(params)
    )
    np.testing.assert_array_equal(
        whole_decoder(half, cast, inputs, targets), whole_decoder(half, params, inputs, targets)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Against PyTorch


@pytest.fixture(scope="module")
def torch_models(tmp_path_factory):
    """(config, seed of its parameters) -> transformers' model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more wait for each other longer than so small a model takes

    @functools.cache
    def load(config, seed):
        folder = tmp_path_factory.mktemp("models") / "hf"
        path = convert.save_params(make_params(config, seed), config, folder)
        return transformers.T5ForConditionalGeneration.from_pretrained(path).eval()

    yield load
    torch.set_num_threads(threads)


def torch_written(model, inputs, **settings):
    """What transformers writes for one padded batch: tokens up to EOS, and scores of beam search."""
    import torch

    ids = np.zeros((len(inputs), max(map(len, inputs))), np.int64)
    for row, tokens in zip(ids, inputs, strict=True):
        row[: len(tokens)] = tokens
    out = model.generate(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(ids > 0).long(), do_sample=False,
        return_dict_in_generate=True, output_scores=True, **settings,
    )  # fmt: skip
    texts = []
    for row in out.sequences[:, 1:].numpy():
        ends = np.flatnonzero(row == EOS)
        texts.append(row[: ends[0] + 1] if len(ends) else row)
    return texts, getattr(out, "sequences_scores", None)


SEARCHES = [
    {"num_beams": 1, "max_new_tokens": 20},
    {"num_beams": 4, "max_new_tokens": 12},
    {"num_beams": 4, "max_new_tokens": 20, "early_stopping": "never", "length_penalty": 0.6},
    {"num_beams": 4, "max_new_tokens": 20, "length_penalty": 2.0},
    {"num_beams": 3, "max_new_tokens": 20, "length_penalty": -0.5},
    {"num_beams": 4, "max_new_tokens": 20, "early_stopping": True},
]


@BOTH
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_texts_are_torchs(config, search, torch_models):
    """Token by token, over rows that end at once, later or never."""
    ended = 0
    for seed in range(3):
        params, inputs = make_params(config, seed), ragged_inputs(12, seed, longest=32)
        expected, scores = torch_written(torch_models(config, seed), inputs, **search)
        found = write(config, params, inputs, **search)
        for one, tokens in zip(found, expected, strict=True):
            assert one.tokens.tolist() == tokens.tolist()
        if scores is not None:
            np.testing.assert_allclose([one.score for one in found], scores, rtol=1e-4, atol=1e-4)
        ended += sum(tokens[-1] == EOS for tokens in expected)
    assert 2 <= ended <= 34


# ---------------------------------------------------------------------------------------------------------------------
# Laws

STRATEGIES = [
    {"max_new_tokens": 9},
    {"max_new_tokens": 9, "num_beams": 3},
    {"max_new_tokens": 9, "temperature": 0.9, "top_k": 30, "top_p": 0.9},
]


def test_scores_are_the_models():
    params, texts = make_params(V11), ragged_inputs(4)
    found = write(V11, params, texts, row_tokens=512, **STRATEGIES[0])
    inputs, written = np.zeros((4, 40), np.int32), np.zeros((4, 10), np.int32)
    for row, text, target, one in zip(inputs, texts, written, found, strict=True):
        row[: len(text)], target[1 : 1 + len(one.tokens)] = text, one.tokens
    log_probs = jax.nn.log_softmax(whole_decoder(V11, params, inputs, written[:, :-1]))
    each = np.take_along_axis(np.asarray(log_probs), written[:, 1:, None], axis=2)[..., 0]
    for one, row in zip(found, each, strict=True):
        assert abs(one.score - row[: len(one.tokens)].mean()) < 1e-5


@pytest.mark.parametrize("settings", STRATEGIES, ids=["greedy", "beam", "sample"])
def test_neighbours_change_nothing(settings):
    """Neither tokens nor a bit of the scores; a sample is its row's number's."""
    params, inputs = make_params(V11), ragged_inputs(30)
    expected = write(V11, params, inputs, row_tokens=512, **settings)
    assert len({one.tokens.tobytes() for one in expected}) > 5
    assert_same(write(V11, params, inputs[:7], row_tokens=512, **settings), expected[:7])
    others = [*inputs[:3], *ragged_inputs(9, seed=5), *inputs[12:]]
    found = write(V11, params, others, row_tokens=512, **settings)
    assert_same([*found[:3], *found[12:]], [*expected[:3], *expected[12:]])


def test_rows_are_read_a_window_at_a_time(monkeypatch):
    params, inputs = make_params(V11), ragged_inputs(17)
    expected = write(V11, params, inputs, row_tokens=512, **STRATEGIES[2])
    monkeypatch.setattr(generate, "WINDOW", 2)
    drawn, seen = [], []
    generator = Generator(
        models.build(V11), one_device(), Settings(**STRATEGIES[2]), row_tokens=512
    )
    found = generator(params, (drawn.append(i) or i for i in inputs), seen.append)
    assert next(found).tokens.tolist() == expected[0].tokens.tolist()
    assert len(drawn) == 2 * 3
    assert_same(list(found), expected[1:])
    assert seen[-1] == 17


def test_samples_follow_the_models_probabilities():
    """And a seed is no part of the program: another writes other texts without compiling."""
    params = make_params(V11, sharpness=1.0)
    settings = {"max_new_tokens": 1, "temperature": 1.3, "top_k": 4}
    drawn = [one.tokens[0] for one in write(V11, params, [[5, 6, 7]] * 320, **settings)]
    inputs, start = np.array([[5, 6, 7]], np.int32), np.zeros((1, 1), np.int32)
    logits = whole_decoder(V11, params, inputs, start)[0, 0]
    expected = 320 * jax.nn.softmax(strategies.likely(logits, Settings(**settings)))
    counts = np.bincount(drawn, minlength=96)
    kept = np.flatnonzero(expected)
    assert len(kept) == 4
    assert counts[kept].sum() == 320
    assert scipy.stats.chisquare(counts[kept], expected[kept], sum_check=False).pvalue > 0.01
    one, other = (
        Generator(models.build(V11), one_device(), Settings(seed=seed, **settings))
        for seed in (0, 1)
    )
    assert one._write is other._write
    texts = [text.tokens[0] for text in other(params, [[5, 6, 7]] * 320)]
    assert texts != drawn
    assert texts == [text.tokens[0] for text in other(params, [[5, 6, 7]] * 320)]


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)], ids=str)
@pytest.mark.parametrize(
    ("config", "settings"), [(V10, STRATEGIES[0]), (V11, STRATEGIES[1])], ids=["greedy", "beam"]
)
def test_eight_devices_write_what_one_does(config, settings, shape):
    params, inputs = make_params(config), ragged_inputs(11, longest=32)
    expected = write(config, params, inputs, row_tokens=512, **settings)
    mesh = sharding.make_mesh(cfg.Mesh(*shape))
    actual = write(config, params, inputs, mesh, row_tokens=512, **settings)
    assert_same(actual, expected, 1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_the_best_continuations_are_found_in_the_vocabularys_parts(shape):
    """More are wanted (16) than a part has (12)."""
    log_probs = np.random.default_rng(0).normal(size=(8, 3, 96)).astype(np.float32)
    find = jax.jit(strategies.best_of_all, static_argnums=1)
    with jax.set_mesh(sharding.make_mesh(cfg.Mesh(*shape))):
        values, beams, tokens = find(log_probs, 16)
    flat = log_probs.reshape(8, -1)
    order = np.argsort(-flat, axis=1)[:, :16]
    np.testing.assert_array_equal(values, np.take_along_axis(flat, order, axis=1))
    np.testing.assert_array_equal(96 * np.asarray(beams) + tokens, order)


def test_empty_and_long_inputs():
    params = make_params(V11)
    long = ragged_inputs(1, longest=90, seed=3)[0] * 5
    settings = {"max_new_tokens": 5, "max_input_length": 8}
    found = write(V11, params, [[], long], **settings)
    assert_same(found, write(V11, params, [[EOS], long[:8]], **settings))
    assert write(V11, params, [], **settings) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; it must be at least 1"),
        ({"num_beams": 49}, "num_beams is 49; it must be at most 48"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p is 1\.5; it must be above 0 and at most 1"),
        ({"temperature": 1.0, "num_beams": 2}, r"temperature is 1\.0; it must be 0 with beams"),
        ({"top_k": 5, "num_beams": 2}, "top_k is 5; it must be 0 with beams"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_followed(settings, message):
    with pytest.raises(cfg.ConfigError, match=message):
        Generator(models.build(V11), one_device(), Settings(**settings))


# ---------------------------------------------------------------------------------------------------------------------
# Several processes

WORKER = """
import json, sys
import jax
index, count, port, devices, axis = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
jax.config.update("jax_num_cpu_devices", devices)
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
from t0jax import config as cfg, generate, models, sharding
mesh = sharding.make_mesh(cfg.Mesh(**{axis: -1, **({} if axis == "data" else {"data": 1})}))
network = models.build(cfg.Model(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
generator = generate.Generator(network, mesh, generate.Settings(num_beams=2, max_new_tokens=5), row_tokens=512)
inputs = [[5 + n, 9, 11 + 2 * n][: 1 + n % 3] * (1 + n) for n in range(15)]
mine = range(generator.slice, len(inputs), generator.slices)
params = jax.device_get(network.init(jax.random.key(0)))
found = generator(params, [inputs[n] for n in mine])
print(json.dumps({n: one.tokens.tolist() for n, one in zip(mine, found, strict=True)}))
"""


def run_workers(count, devices, axis):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    arguments = [str(count), port, str(devices), axis]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "fsdp", "model"])
def test_two_processes_write_every_row(axis):
    """Each its own, or both the same where they hold the same rows, cut along `model`."""
    (expected,) = run_workers(1, 2, axis)
    first, second = run_workers(2, 1, axis)
    assert len(expected) == 15
    assert first | second == expected
    assert first == second if axis == "model" else not first.keys() & second.keys()


def test_no_tensorflow_is_needed():
    code = (
        "import sys, t0jax.generate; assert not {'tensorflow', 'seqio', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
