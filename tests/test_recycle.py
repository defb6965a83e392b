"""The model-recycling harness: how sets are divided, what chooses a checkpoint, and a run on a set of one's own."""

import json
from types import SimpleNamespace

import multitask_models as tiny_models
import pytest
from structured_data import write_rows

from scripts import recycle
from t0jax import checkpoint
from t0jax.config import ConfigError, UserError
from t0jax.data.structured.records import Classification


def record(*splits):
    return Classification(dataset="d", sentence1="text", labels=("a", "b"), splits=splits)


@pytest.mark.parametrize(
    ("splits", "wanted"),
    [
        (("train", "validation", "test"), ("train", "validation", "test")),
        (("train", None, "test"), ("train[0%:90%]", "train[90%:100%]", "test")),
        (("train", "validation", None), ("train[0%:90%]", "train[90%:100%]", "validation")),
        (("train", None, None), ("train[0%:80%]", "train[80%:90%]", "train[90%:100%]")),
        (("dev[:80%]", "dev[80%:]", None), ("dev[0%:72%]", "dev[72%:80%]", "dev[80%:]")),
    ],
)
def test_sets_are_divided_into_three(splits, wanted):
    found = recycle.divided(record(*splits), "cb")
    assert (found.name, found.splits) == ("recycle/cb", wanted)


def test_patience_ends_after_as_many_steps_without_a_gain():
    how = {"epsilon": 0.01, "patience": 100}
    scores = {50: 0.5, 100: 0.6, 150: 0.605, 200: 0.6, 250: 0.9}
    assert recycle.patience_ends(scores, how) == 200
    # A gain of 0.005 counts then, and step 250 comes in time.
    assert recycle.patience_ends(scores, how | {"epsilon": 0.001}) is None
    assert recycle.patience_ends({50: 0.5, 100: 0.6}, how) is None


def test_the_best_checkpoint_that_is_there(tmp_path):
    for step in (50, 150, 200):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert recycle.best_step(tmp_path, {50: 0.5, 100: 0.9, 150: 0.7, 200: 0.7}) == 200
    with pytest.raises(UserError, match="diverged"):
        recycle.best_step(tmp_path, {})


def test_what_cannot_be_asked():
    with pytest.raises(UserError, match="'cbb' is none of"):
        recycle.choose_sets("cbb", False)
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        recycle.read_changes(["train.seed 3"])
    assert recycle.read_changes(["train.seed=3", "mesh.data=-1"]) == {
        "train.seed": "3",
        "mesh.data": "-1",
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--optimizer.learning_rate", "3e-4", "--sets", "cb"], "--optimizer.learning_rate"),
        (["--train.seed=9", "--mesh.model", "2"], "--train.seed, --mesh.model"),
        (["--config", "configs/finetune_encoder.yaml"], "--config"),
    ],
)
def test_keys_that_no_run_would_read_are_refused(given, named, tmp_path):
    with pytest.raises(ConfigError, match=f"^{named} would not be read; .*--set"):
        recycle.main(["--model", str(tmp_path), *given])


def test_all_36_sets_are_there():
    assert len(recycle.choose_sets("", False)) == 36
    assert {one.name for one, _ in recycle.choose_sets("", True)} >= {"cb", "sst2"}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A record with 2,560 training rows, a function of those that have a label and those that are read at all."""
    pytest.importorskip("seqio")
    monkeypatch.setenv("T0JAX_DATA_DIR", str(tmp_path))

    def make(name, count=2560, hidden=0, where=None):
        rows = [{"text": f"t {i}", "label": i % 2, "kept": i % 4 > 0} for i in range(count)]
        rows = [row | {"label": -1} if i < hidden else row for i, row in enumerate(rows)]
        write_rows(tmp_path, name, "train", rows)
        kept = {"sentence1": "text", "labels": ("a", "b"), "where": where}
        return Classification(dataset=name, name=f"planned/{name}", **kept)

    return make


def planned(record, *given, epochs=0.0):
    options = SimpleNamespace(epochs=epochs, max_length=64)
    return recycle.plan(record, options, recycle.read_changes(given))


def test_published_settings(told):
    how = planned(told("published"))
    assert (how["batch_size"], how["learning_rate"], how["patience"]) == (256, 5e-5, 1000)
    settings = how["settings"]
    assert (settings["train.steps"], settings["train.eval_every"]) == (100, 50)
    assert (settings["optimizer.warmup_steps"], settings["optimizer.weight_decay"]) == (0, 0.01)


def test_steps_are_of_the_rows_that_are_read(told):
    half = told("hidden", count=800, hidden=400)
    assert planned(half, "data.batch_size=10")["settings"]["train.steps"] == 400
    some = told("kept", count=800, where="kept")
    assert planned(some, "data.batch_size=10", epochs=1.0)["settings"]["train.steps"] == 60
    assert planned(some, "train.steps=7")["settings"]["train.steps"] == 7
    assert planned(some, "data.num_shots=20")["settings"]["train.steps"] == 1


@pytest.mark.slow
def test_a_set_from_start_to_score(tmp_path, monkeypatch, capsys):
    """Missing sets are listed, finished ones are not run again, a former head is not taken over."""
    import seqio

    from tasks import recycling

    texts = tiny_models.sentences(60, seed=4)
    lines = [{"text": text, "label": int("good" in text or "fine" in text)} for text in texts]
    for split in ("train", "validation", "test"):
        file = tmp_path / "own" / "default" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    here = Classification(dataset="own", sentence1="text", labels=("negative", "positive"))
    gone = Classification(dataset="own/gone", sentence1="text", labels=("a", "b"))
    monkeypatch.setattr(recycling, "LOCAL", {"sst2": here, "cb": gone})
    monkeypatch.setenv("T0JAX_DATA_DIR", str(tmp_path))
    vocabulary = tiny_models.vocabulary(tmp_path)
    model, params = tiny_models.tiny(vocabulary)
    checkpoint.save_model(tmp_path / "model", params, model, vocabulary)
    out = tmp_path / "out"
    command = ["--model", str(tmp_path / "model"), "--output", str(out), "--local", "--epochs", "2"]
    command += ["--max_length", "32", "--set", "data.batch_size=8"]
    before = set(seqio.TaskRegistry.names())
    assert recycle.main(command) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    assert list(found["sets"]) == ["sst2"]
    assert "own/gone" in found["missing"]["cb"]
    entry = found["sets"]["sst2"]
    assert (entry["n"], entry["steps"]) == (60, 15)
    assert found["mean"] == pytest.approx(100 * entry["value"])
    assert "not scored: own/gone" in said
    assert not (out / "sst2" / "checkpoints").exists()
    heads = checkpoint.read_config(out / "start").model.heads
    assert all(head.task.startswith("former/") for head in heads)
    written = (out / "sst2" / "result.json").stat().st_mtime_ns
    assert recycle.main(command) == 0
    assert (out / "sst2" / "result.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="max_length: 32 there, 16 now"):
        recycle.main([*command, "--max_length", "16"])
    other = {name: leaf * 2 for name, leaf in params["embedding"].items()}
    checkpoint.save_model(tmp_path / "other", params | {"embedding": other}, model, vocabulary)
    with pytest.raises(UserError, match=r"another model .*weights"):
        recycle.main(["--model", str(tmp_path / "other"), *command[2:]])
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


@pytest.fixture
def three(tmp_path, monkeypatch):
    """The script on three sets, of which one's data is gone, with runs that do nothing but leave a checkpoint."""
    from t0jax.data.rows import DataUnavailable
    from tasks import recycling

    values = {"cb": 0.5, "sst2": 0.7}
    records = {name: record("train", None, None) for name in (*values, "rte")}
    monkeypatch.setattr(recycling, "LOCAL", records)

    def begin(path, output, options):
        output.mkdir(exist_ok=True)
        recycle.write(output / recycle.SETTINGS_FILE, {})

    def run(one, record, start, folder, options):
        if one.name not in values:
            raise DataUnavailable(one.name, "gone")
        (folder / "checkpoints" / "5").mkdir(parents=True)
        found = {"metric": "accuracy", "value": values[one.name], "chance": 0.5, "n": 10}
        return found | {"splits": list(record.splits)}

    monkeypatch.setattr(recycle, "begin", begin)
    monkeypatch.setattr(recycle, "recycle", run)
    out = tmp_path / "out"
    return out, lambda *more: recycle.main(["--model=m", "--local", "--output", str(out), *more])


def test_checkpoints_of_a_set_whose_end_was_cut_short_are_removed(three, monkeypatch):
    out, script = three
    with monkeypatch.context() as patch:
        patch.setattr(recycle.shutil, "rmtree", lambda *_, **__: _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            script("--sets", "cb")
    assert (out / "cb" / "checkpoints").is_dir()
    script("--sets", "cb")
    assert not (out / "cb" / "checkpoints").exists()
    script("--sets", "sst2", "--keep_checkpoints")
    script("--sets", "sst2")
    assert (out / "sst2" / "checkpoints").is_dir()


def _raise(error):
    raise error


def test_a_few_sets_leave_the_mean_over_all(three):
    out, script = three
    script()
    whole = json.loads((out / "results.json").read_text())
    assert (whole["of"], list(whole["missing"])) == (2, ["rte"])
    (out / "cb" / recycle.RESULT_FILE).unlink()
    script("--sets", "cb")
    assert json.loads((out / "results.json").read_text()) == whole
    script("--sets", "sst2")
    assert json.loads((out / "results.json").read_text()) == whole


def test_data_are_looked_for_where_runs_read_them(told, tmp_path, monkeypatch):
    """All three splits are in a folder that the runs' configuration names."""
    from t0jax import finetune

    elsewhere = told("elsewhere")
    for split in ("validation", "test"):
        write_rows(tmp_path, "elsewhere", split, [{"text": "t", "label": 0, "kept": True}])
    monkeypatch.setenv("T0JAX_DATA_DIR", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(finetune, "finetune", lambda *_, settings, **__: _raise(KeyError(settings)))
    given = {"set": [f"data.local_dir={tmp_path}"], "max_length": 64, "epochs": 0.0}
    with pytest.raises(KeyError, match=r"data\.local_dir"):
        recycle.recycle(None, elsewhere, tmp_path, tmp_path / "out", SimpleNamespace(**given))


def test_results_of_other_settings_are_not_taken_over(tmp_path):
    told = {"weights": "0123", "epochs": 0.0}
    recycle.take(tmp_path, told, "a model")
    recycle.take(tmp_path, told, "the same elsewhere")
    with pytest.raises(UserError, match=r"epochs: 0.0 there, 2.0 now\); choose another --output"):
        recycle.take(tmp_path, told | {"epochs": 2.0}, "a model")
    folder = tmp_path / "cb"
    assert not recycle.is_finished(folder, record("train", "validation", "test"))
    folder.mkdir()
    recycle.write(folder / recycle.RESULT_FILE, {"splits": ["train", "validation", "test"]})
    assert recycle.is_finished(folder, record("train", "validation", "test"))
    with pytest.raises(UserError, match="delete that folder"):
        recycle.is_finished(folder, record("train[:90%]", "train[90%:]", "test"))
    (tmp_path / recycle.SETTINGS_FILE).unlink()  # results of a version that wrote none
    with pytest.raises(UserError, match="None there"):
        recycle.take(tmp_path, told, "a model")


def test_the_table_has_published_columns_and_a_mean_of_the_sets_that_are_alike(tmp_path, capsys):
    sets = [
        SimpleNamespace(name="cb", baseline=75.0, tasksource=85.71, comparable=True, note=""),
        SimpleNamespace(name="anli", baseline=58.78, tasksource=59.71, comparable=False, note="r1"),
    ]
    for one, value in zip(sets, (0.8, 0.4), strict=True):
        (tmp_path / one.name).mkdir()
        entry = {"metric": "accuracy", "value": value, "chance": 1 / 3, "n": 56}
        recycle.write(tmp_path / one.name / recycle.RESULT_FILE, entry)
    recycle.report(tmp_path, sets, {"sst2": "glue/sst2: not here"})
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "cb accuracy 80.00 33.33 75.00 85.71 56" in said
    assert "mean of 2 60.00 66.89 72.71" in said
    assert "1 alike 80.00 75.00 85.71" in said
    assert "not alike: anli: r1" in said
    assert "not scored: glue/sst2 (1): not here" in said
    written = recycle.read_json(tmp_path / "results.json")
    assert (written["comparable"], written["comparable_mean"]) == (["cb"], 80.0)
