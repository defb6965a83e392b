"""Saving and restoring: what is kept, what is skipped, what a bad folder is answered with."""

import contextlib
import dataclasses
import functools
import gc
import resource

import jax
import numpy as np
import pytest

from t0jax import checkpoint, config, models, sharding
from t0jax.checkpoint import CheckpointError, Checkpoints
from t0jax.config import ConfigError
from t0jax.evaluate.history import History

MODEL = config.Model(
    vocab_size=32, d_model=16, d_kv=4, num_heads=4, d_ff=32, num_layers=2, dropout_rate=0.0
)


@pytest.fixture
def mesh():
    return sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))


def random_params(mesh, seed=0, model=MODEL):
    return initializer(mesh, model)(jax.random.key(seed))


@functools.cache
def initializer(mesh, model):
    network = models.build(model)
    shardings = sharding.param_shardings(network.axes, network.shapes, mesh)
    return jax.jit(network.init, out_shardings=shardings)


def save(checkpoints, step, state, **options):
    settings = dataclasses.replace(config.Config(), model=MODEL)
    metadata = {
        "config": config.to_dict(settings),
        "step": step,
        "position": {"shards": {"0": [step, 1]}},
    }
    checkpoints.save(step, state, metadata, **options)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_state_and_position_come_back_bit_for_bit(tmp_path, mesh):
    state = {
        "params": random_params(mesh),
        "counters": {"step": np.int32(3) + jax.numpy.zeros((), "int32")},
    }
    with_checkpoints = Checkpoints(tmp_path)
    save(with_checkpoints, 3, state, wait=True)
    restored, metadata = Checkpoints(tmp_path).restore(abstract(state))
    assert_equal(restored, state)
    assert metadata["position"] == {"shards": {"0": [3, 1]}}
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, restored["params"], state["params"])
    assert all(jax.tree.leaves(same))


def test_donating_the_state_does_not_touch_a_save_in_flight(tmp_path, mesh):
    params = random_params(mesh)
    before = jax.tree.map(np.array, params)
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    wanted = abstract({"params": params})
    save(checkpoints, 1, {"params": params})
    params = bump(bump(bump(params)))
    checkpoints.wait()
    assert_equal(checkpoints.restore(wanted)[0]["params"], before)


def test_keeps_the_last_and_the_best(tmp_path, mesh):
    history = History(tmp_path, "evaluation", keep_best=1)
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_also=history)
    state = {"params": random_params(mesh)}
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, None), (4, 0.4), (5, 0.3)):
        if accuracy is not None:
            history.add(step, accuracy)
        save(checkpoints, step, state, wait=True)
    assert checkpoints.steps() == [2, 4, 5]


@pytest.fixture
def abandoned_reads():
    """Tensorstore leaves tasks of failed reads behind, which complain when collected: here, not in a later test."""
    yield
    gc.collect()


@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_skipped_with_a_word_and_kept(tmp_path, mesh, capsys):
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    for step in (1, 2):
        save(checkpoints, step, {"params": random_params(mesh, seed=step)}, wait=True)
    for path in (tmp_path / "checkpoints/2/params").rglob("*"):
        if path.is_file() and "manifest" in path.name:
            path.write_bytes(path.read_bytes()[:10])
    wanted = abstract({"params": random_params(mesh)})
    reopened = Checkpoints(tmp_path, keep_last=3)
    restored, metadata = reopened.restore(wanted)
    assert metadata["step"] == 1
    assert_equal(restored["params"], random_params(mesh, seed=1))
    assert "checkpoint 2" in capsys.readouterr().out
    assert (tmp_path / "checkpoints/2").exists()
    save(reopened, 2, restored, wait=True)  # the run comes by again: now it is whole
    assert_equal(Checkpoints(tmp_path).restore(wanted)[0], restored)


def test_another_vocabulary_is_another_run(tmp_path):
    settings, vocabularies = config.Config(), [tmp_path / "a.model", tmp_path / "b.model"]
    for path in vocabularies:
        path.write_text(path.name)
    checkpoint.write_run_files(tmp_path / "run", settings, vocabularies[0])
    checkpoint.check_run_dir(tmp_path / "run", settings, vocabularies[0])
    with pytest.raises(ConfigError, match=r"begun with another vocabulary than .*b\.model"):
        checkpoint.check_run_dir(tmp_path / "run", settings, vocabularies[1])


def test_another_shape_names_the_array_and_both_shapes(tmp_path, mesh):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, {"params": random_params(mesh)}, wait=True)
    wide = dataclasses.replace(MODEL, d_ff=64)
    wanted = abstract({"params": random_params(mesh, model=wide)})
    with pytest.raises(ConfigError, match=r"params '.*' has shape .*32.*needs .*64"):
        checkpoints.restore(wanted)
    deep = dataclasses.replace(MODEL, tie_word_embeddings=True)
    wanted = abstract({"params": random_params(mesh, model=deep)})
    with pytest.raises(ConfigError, match=r"lm_head.* is in the checkpoint only"):
        checkpoints.restore(wanted)


def test_a_model_loads_from_its_run_its_step_and_onto_another_mesh(tmp_path, mesh):
    params = random_params(mesh)
    checkpoint.save_model(tmp_path / "m", params, MODEL, vocabulary=None)
    one = sharding.make_mesh(config.Mesh(data=8))
    for path in (tmp_path / "m", tmp_path / "m/checkpoints/0"):
        loaded = checkpoint.load_model(path, one)
        assert_equal(loaded.params, params)
        assert loaded.network.config == MODEL


def test_computing_options_are_the_readers_choice(tmp_path, mesh):
    checkpoint.save_model(tmp_path / "m", random_params(mesh), MODEL, vocabulary=None)
    compute = config.Model(d_model=999, dtype="bfloat16", remat="full", scan_layers=False)
    loaded = checkpoint.load_model(tmp_path / "m", mesh, compute).network.config
    assert (loaded.d_model, loaded.dtype, loaded.remat) == (16, "bfloat16", "full")


def test_folders_that_hold_no_model_say_what_was_expected(tmp_path, mesh):
    with pytest.raises(CheckpointError, match="holds no model"):
        checkpoint.load_model(tmp_path, mesh)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        checkpoint.save_model(tmp_path / "x", random_params(mesh), MODEL, vocabulary=None)
    assert (tmp_path / "x/file").read_text() == "mine"


def test_a_folder_of_another_run_is_refused_naming_what_differs(tmp_path):
    settings = dataclasses.replace(config.Config(), model=MODEL)
    checkpoint.write_run_files(tmp_path / "run", settings, vocabulary=None)
    checkpoint.check_run_dir(tmp_path / "run", settings, None)
    more = dataclasses.replace(settings, train=dataclasses.replace(settings.train, steps=9999))
    checkpoint.check_run_dir(tmp_path / "run", more, None)
    other = dataclasses.replace(settings, data=dataclasses.replace(settings.data, mixture="other"))
    with pytest.raises(ConfigError, match=r"another run \(data\.mixture: '' there, 'other' here\)"):
        checkpoint.check_run_dir(tmp_path / "run", other, None)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_text("")
    with pytest.raises(ConfigError, match=r"cat\.png"):
        checkpoint.check_run_dir(tmp_path / "photos", settings, None)


@contextlib.contextmanager
def files_no_larger_than(size):
    """Writing past `size` bytes fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_fails_says_what_is_still_whole(tmp_path):
    state = {"params": {"a": jax.random.normal(jax.random.key(0), (300, 300))}}
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, state, wait=True)
    with (
        files_no_larger_than(50_000),
        pytest.raises(CheckpointError, match=r"step 2 .*File too large.*checkpoint 1 is whole"),
    ):
        save(checkpoints, 2, state, wait=True)
    reopened = Checkpoints(tmp_path)
    assert reopened.steps() == [1]
    assert_equal(reopened.restore(abstract(state))[0], state)


def test_a_run_folder_that_another_process_does_not_see_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"process 0 does not see train\.output_dir .*share"):
        checkpoint.check_shared(tmp_path, seconds=0.0)
    checkpoint.write_run_files(tmp_path, config.Config(), None)
    checkpoint.check_shared(tmp_path, seconds=0.0)
