"""Damage: what of a run folder is whole is used and kept, and a word is said about the rest."""

import errno
import gc
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from test_checkpoint import files_no_larger_than

from t0jax import checkpoint, config, metrics, models, sharding
from t0jax.checkpoint import CheckpointError, Checkpoints, Unavailable
from t0jax.config import ConfigError
from t0jax.evaluate.history import History

MODEL = config.Model(
    vocab_size=256, d_model=64, d_kv=4, num_heads=4, d_ff=32, num_layers=1, dropout_rate=0.0
)

pytestmark = [
    pytest.mark.usefixtures("abandoned_reads"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def abandoned_reads():
    """Tensorstore leaves tasks of failed reads behind, which complain when collected: here, not in a later test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))


def small(mesh, seed=0):
    """A state of the shape that training has, as small as it can be."""
    where = NamedSharding(mesh, PartitionSpec("fsdp", "model"))
    return {
        "params": {"a": jax.device_put(np.random.default_rng(seed).random((64, 64), "f4"), where)},
        "optimizer": (jnp.full(3, seed, "float32"),),
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def save(folder, steps, mesh, **options):
    """Checkpoints whose numbers are those of their step."""
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        metadata = {"config": {}, "step": step, "position": {"0": [step, 1]}}
        checkpoints.save(step, small(mesh, step), metadata, wait=True)
    checkpoints.close()


def damage(step_folder):
    for path in step_folder.rglob("manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:10])


def on_disk(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def pair(mesh, tmp_path_factory):
    """A run folder with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("pair")
    save(folder, (1, 2), mesh)
    return folder


def files_of(pair):
    step = pair / "checkpoints" / "2"
    return sorted(path.relative_to(step) for path in step.rglob("*") if path.is_file())


@pytest.mark.parametrize("harm", ["cut", "deleted", "emptied"])
def test_whatever_file_is_damaged_the_checkpoint_is_used_whole_or_not_at_all(
    pair, mesh, tmp_path, harm, capsys
):
    """Law over every file of a checkpoint: restored is 2 as it was, or 1 as it was and a word about 2."""
    wanted, skipped = abstract(small(mesh)), set()
    folder = shutil.copytree(pair, tmp_path / "run")
    for name in files_of(pair):
        path = folder / "checkpoints" / "2" / name
        content = path.read_bytes()
        match harm:
            case "cut":
                path.write_bytes(content[: len(content) // 2])
            case "emptied":
                path.write_bytes(b"")
            case "deleted":
                path.unlink()
        state, metadata = Checkpoints(folder).restore(wanted)
        path.write_bytes(content)
        step = metadata["step"]
        assert_equal(state, small(mesh, step))
        assert metadata["position"] == {"0": [step, 1]}
        assert ("checkpoint 2 is skipped" in capsys.readouterr().out) == (step == 1)
        if step == 1:
            skipped.add(str(name.parent / name.name.split("-")[0]))
    assert {"_CHECKPOINT_METADATA", "params/_METADATA", "params/manifest.ocdbt"} <= skipped


def test_a_changed_byte_anywhere_is_harmless_or_noticed(pair, mesh, tmp_path, capsys):
    """The same law; orbax itself takes a changed byte in an array's data as it is, and stops at others."""
    wanted, rng = abstract(small(mesh)), np.random.default_rng(0)
    folder = shutil.copytree(pair, tmp_path / "run")
    noticed = set()
    for name in files_of(pair):
        path = folder / "checkpoints" / "2" / name
        content = path.read_bytes()
        tables = name.name in ("_METADATA", "_sharding")  # may change to another legal shape
        for place in [] if tables else rng.choice(len(content), 3, replace=False):
            changed = bytearray(content)
            changed[place] ^= 0x90
            path.write_bytes(changed)
            checkpoints = Checkpoints(folder)
            state, metadata = checkpoints.restore(wanted)
            assert_equal(state, small(mesh, metadata["step"]))
            assert checkpoints.steps() == ([1, 2] if metadata["step"] == 2 else [1])
            noticed |= {name.parts[:2]} if metadata["step"] == 1 else set()
        path.write_bytes(content)
    assert {("_CHECKPOINT_METADATA",), ("params", "ocdbt.process_0")} <= noticed
    assert "its arrays are not as they were written" in capsys.readouterr().out


def flip_array_data(step_folder):
    largest = max(step_folder.glob("params/ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def random_params(network, mesh, seed):
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape, at: jax.device_put(rng.random(shape.shape, "f4"), at), network.shapes, where
    )


def test_a_run_folder_with_a_damaged_checkpoint_is_its_newest_whole_one_for_everyone(
    mesh, tmp_path, capsys
):
    """By its arrays or by its metadata; one that was named itself is an error."""
    network, checkpoints = models.build(MODEL), Checkpoints(tmp_path)
    mesh = sharding.make_mesh(config.Mesh(), mesh.devices.ravel()[:1])
    settings, saved = config.to_dict(config.Config(model=MODEL)), {}
    for step in (4, 8):
        saved[step] = random_params(network, mesh, step)
        metadata = {"config": settings, "step": step, "position": {}}
        checkpoints.save(step, {"params": saved[step]}, metadata, wait=True)
    checkpoints.close()
    (tmp_path / "vocabulary.model").write_bytes(b"pieces")
    damaged = tmp_path / "checkpoints" / "8"
    flip_array_data(damaged)
    model = checkpoint.load_model(tmp_path, mesh)
    assert model.step == 4
    assert_equal(model.params, saved[4])
    assert model.vocabulary == tmp_path / "vocabulary.model"
    with pytest.raises(
        CheckpointError, match=r"8/params is damaged: its arrays .*newest whole one"
    ):
        checkpoint.load_model(damaged, mesh)
    (damaged / "_CHECKPOINT_METADATA").write_text("{")
    assert checkpoint.read_config(tmp_path).model == MODEL
    assert_equal(
        checkpoint.load_state(tmp_path, {"params": abstract(saved[4])})["params"], saved[4]
    )
    assert capsys.readouterr().out.count("checkpoint 8 is skipped") == 3
    with pytest.raises(CheckpointError, match=r"checkpoints/8 is damaged"):
        checkpoint.read_config(damaged)
    assert on_disk(tmp_path) == ["4", "8"]  # looking changes nothing


def test_a_damaged_checkpoint_pushes_no_whole_one_out(mesh, tmp_path):
    """Whole 4 and damaged 8 with room for one: the run saves 6, then 8 again, and whole ones alone are counted."""
    save(tmp_path, (4, 8), mesh, keep_last=2)
    damage(tmp_path / "checkpoints" / "8")
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    state, metadata = checkpoints.restore(abstract(small(mesh)))
    assert (metadata["step"], checkpoints.steps()) == (4, [4])
    assert on_disk(tmp_path) == ["4", "8"]  # nothing is touched before the first save
    checkpoints.save(6, state, metadata, wait=True)
    assert on_disk(tmp_path) == ["6", "8.damaged"]
    checkpoints.save(8, small(mesh, 8), {"step": 8}, wait=True)
    assert on_disk(tmp_path) == ["8", "8.damaged"]
    assert Checkpoints(tmp_path).restore(abstract(state))[1]["step"] == 8


def test_a_checkpoint_that_is_damaged_after_it_was_saved_is_no_different(mesh, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for step in (4, 8):
        checkpoints.save(step, small(mesh, step), {"step": step}, wait=True)
    damage(tmp_path / "checkpoints" / "8")
    assert checkpoints.restore(abstract(small(mesh)))[1]["step"] == 4
    checkpoints.save(8, small(mesh, 8), {"step": 8}, wait=True)
    assert checkpoints.steps() == [4, 8]
    assert on_disk(tmp_path) == ["4", "8", "8.damaged"]
    assert_equal(checkpoints.restore(abstract(small(mesh)))[0], small(mesh, 8))


def test_what_was_set_aside_before_stays(mesh, tmp_path):
    save(tmp_path, (4, 8), mesh)
    (tmp_path / "checkpoints" / "8.damaged").mkdir()
    (tmp_path / "checkpoints" / "8.damaged" / "mine").write_text("")
    damage(tmp_path / "checkpoints" / "8")
    checkpoints = Checkpoints(tmp_path)
    state, _ = checkpoints.restore(abstract(small(mesh)))
    checkpoints.save(8, state, {"step": 8}, wait=True)
    assert on_disk(tmp_path) == ["4", "8", "8.damaged", "8.damaged-2"]
    assert (tmp_path / "checkpoints" / "8.damaged" / "mine").exists()


def test_a_damaged_checkpoint_is_not_the_best_nor_one_of_the_last(mesh, tmp_path, capsys):
    """2 scored best and was damaged since, as 3 was: the best whole one, 4, is kept when 6, 7 and 8 come."""
    history = History(tmp_path, "evaluation", keep_best=1)
    for step, accuracy in ((2, 0.9), (4, 0.8), (5, 0.1)):
        history.add(step, accuracy)
    save(tmp_path, (2, 3, 4, 5), mesh, keep_last=4)
    for step, file in ((2, "_CHECKPOINT_METADATA"), (3, "params/_METADATA")):
        (tmp_path / "checkpoints" / str(step) / file).unlink()
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_also=history)
    assert checkpoints.restore(abstract(small(mesh)))[1]["step"] == 5
    said = capsys.readouterr().out
    assert "checkpoint 2 does not count" in said
    assert "checkpoint 3 does not count" in said
    assert history.best(checkpoints.entries()) == (4, 0.8)
    for step in (6, 7, 8):
        checkpoints.save(step, small(mesh, step), {"step": step}, wait=True)
    assert on_disk(tmp_path) == ["2.damaged", "3.damaged", "4", "7", "8"]


def test_no_checkpoint_that_can_be_read_is_an_error_and_none_at_all_a_beginning(mesh, tmp_path):
    assert Checkpoints(tmp_path).restore(abstract(small(mesh))) is None
    save(tmp_path, (1, 2), mesh)
    for step in ("1", "2"):
        damage(tmp_path / "checkpoints" / step)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read \(2 tried\)"):
        Checkpoints(tmp_path).restore(abstract(small(mesh)))
    assert on_disk(tmp_path) == ["1", "2"]


def test_scores_that_version_0_3_left_in_checkpoints_are_found(mesh, tmp_path):
    save(tmp_path, (1, 2), mesh)
    (tmp_path / "checkpoints" / "2" / "metrics").mkdir()
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text('{"accuracy": 0.5}')
    found = {entry.step: entry.metrics for entry in Checkpoints(tmp_path).entries()}
    assert found == {1: None, 2: {"accuracy": 0.5}}


NOT_NOW = {
    "stale handle": OSError(errno.ESTALE, "Stale file handle"),
    "too many files": OSError(errno.EMFILE, "Too many open files"),
    "host memory": MemoryError(),
    "device memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"),
    "tensorstore": ValueError("FAILED_PRECONDITION: Error reading x: [OS error 13: EACCES]"),
}  # fmt: skip


def failing_once(action, error):
    """`action`, which fails at its first call, as orbax wraps what it fails with."""
    left = [error]

    def act(*args):
        if left:
            raise ocp.errors.InvalidLayoutError("cannot load") from left.pop()
        return action(*args)

    return act


@pytest.mark.parametrize("error", NOT_NOW.values(), ids=NOT_NOW)
def test_a_whole_checkpoint_that_cannot_be_read_now_is_not_damaged(pair, mesh, monkeypatch, error):
    """The run goes on from no older one: it stops, and the next start takes the newest."""
    wanted, checkpoints = abstract(small(mesh)), Checkpoints(pair)
    for name in ("load_checkpointables", "checkpointables_metadata"):
        monkeypatch.setattr(ocp, name, failing_once(getattr(ocp, name), error))
        with pytest.raises(Unavailable, match=r"/2 cannot be read now .* move its folder away"):
            checkpoints.restore(wanted)
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(wanted)[1]["step"] == 2


def test_what_orbax_leaves_out_without_an_error_is_looked_at_twice(pair, mesh, tmp_path):
    """A link to itself stands for a file that the system refuses: orbax says that there is none."""
    folder, wanted = shutil.copytree(pair, tmp_path / "run"), abstract(small(mesh))
    for step, name in (
        (2, "_CHECKPOINT_METADATA"),
        (2, "params/_METADATA"),
        (1, "params/_METADATA"),
    ):
        path = folder / "checkpoints" / str(step) / name
        content = path.read_bytes()
        path.unlink()
        path.symlink_to(path)
        with pytest.raises(Unavailable, match=rf"/{step} cannot be read now .*symbolic links"):
            Checkpoints(folder).restore(wanted)
        path.unlink()
        path.write_bytes(content)
    assert Checkpoints(folder).restore(wanted)[1]["step"] == 2


@pytest.mark.parametrize("room", [0, 100, 400, 1500, 20_000])
def test_wherever_a_save_runs_out_of_room_the_whole_ones_stay(mesh, tmp_path, room):
    """From the first small file to the array's data; with room for one checkpoint, before which the last would go."""
    save(tmp_path, (1,), mesh)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    big = small(mesh, 1) | {"params": {"a": jax.random.normal(jax.random.key(0), (64, 4000))}}
    with (
        files_no_larger_than(room),
        pytest.raises(
            CheckpointError, match=r"could not be written .*checkpoint 1 is whole; make room"
        ),
    ):
        checkpoints.save(2, big, {"step": 2}, wait=True)
    checkpoints.close()
    again = Checkpoints(tmp_path, keep_last=1)
    state, metadata = again.restore(abstract(small(mesh)))
    assert metadata["step"] == 1
    again.save(2, state, {"step": 2}, wait=True)
    assert on_disk(tmp_path) == ["2"]


def test_a_folder_that_cannot_be_changed_is_an_error_that_says_what_is_whole(
    mesh, tmp_path, monkeypatch
):
    """The damaged checkpoint cannot be set aside: then nothing is written or deleted."""
    save(tmp_path, (1, 2), mesh)
    damage(tmp_path / "checkpoints" / "2")

    def refuse(path, target):
        raise PermissionError(13, "Permission denied", str(path))

    checkpoints = Checkpoints(tmp_path, keep_last=1)
    state, metadata = checkpoints.restore(abstract(small(mesh)))
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(
        CheckpointError, match=r"step 3 could not .*Permission.*checkpoint 1 is whole"
    ):
        checkpoints.save(3, state, metadata)
    assert on_disk(tmp_path) == ["1", "2"]


def test_the_other_files_of_a_run_say_so_too_when_there_is_no_room(tmp_path):
    checkpoint.write_run_files(tmp_path, config.Config(), None)
    before = (tmp_path / "config.yaml").read_bytes()
    sink = metrics.JsonLines(tmp_path / "metrics.jsonl", 0)
    with files_no_larger_than(10):
        with pytest.raises(CheckpointError, match=r"cannot be written to .*File too large"):
            checkpoint.write_run_files(tmp_path, config.Config(), None)
        with pytest.raises(
            config.UserError, match=r"metrics\.jsonl cannot be written .*as they were"
        ):
            sink.write(1, {"loss": 0.5, "accuracy": 0.25})
        sink.close()  # its second try fails too, and hides nothing
    assert (tmp_path / "config.yaml").read_bytes() == before


TIMED_OUT = """DEADLINE_EXCEEDED: Barrier timed out. Id: CheckpointManager:save_start::2. This usually happens because \
a task triggered the barrier too early or too slowly. Please look at the task logs to debug further.
# of tasks that reached the barrier: 1/2.
The first task at the barrier: 0. Some timed out task names:
1


RPC: /xla.coordination.CoordinationService/Barrier"""
"""What JAX 0.10.2 said when the second of two processes was stopped before a save."""


def test_a_process_that_does_not_come_to_a_save_is_named(mesh, tmp_path, monkeypatch):
    def time_out(*_, **__):
        raise jax.errors.JaxRuntimeError(TIMED_OUT)

    save(tmp_path, (1,), mesh)
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", time_out)
    with pytest.raises(
        CheckpointError, match=r"process 1 did not come .* checkpoint 1 is whole; see"
    ):
        checkpoints.save(2, small(mesh, 2), {"step": 2})


def test_leftovers_of_a_killed_save_go_with_the_next_one_and_nothing_else_does(mesh, tmp_path):
    save(tmp_path, (1,), mesh)
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-17"):
        shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / name)
    for name in ("notes", "0007", "1.copy"):
        (tmp_path / "checkpoints" / name).mkdir()
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, small(mesh, 2), {"step": 2}, wait=True)
    assert on_disk(tmp_path) == ["0007", "1", "1.copy", "2", "notes"]


def test_other_shapes_are_an_error_and_no_damage(mesh, tmp_path):
    save(tmp_path, (1, 2), mesh)
    other = abstract(small(mesh) | {"optimizer": (jnp.zeros(2, "float32"),)})
    with pytest.raises(ConfigError, match=r"optimizer '0' has shape \(3,\), .* needs \(2,\)"):
        Checkpoints(tmp_path).restore(other)


def test_an_array_that_is_read_in_another_type_is_not_damaged(mesh, tmp_path):
    save(tmp_path, (1,), mesh)
    wanted = abstract(small(mesh))
    half = jax.tree.map(lambda x: x.update(dtype=jnp.bfloat16), wanted["params"])
    state, _ = Checkpoints(tmp_path).restore(wanted | {"params": half})
    assert state["params"]["a"].dtype == jnp.bfloat16
