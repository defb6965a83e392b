"""Whole runs on structured tasks by the trainer that T5 has: stopping and going on, and fine-tuning on another task."""

import dataclasses
import importlib
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import clusters
import jax
import numpy as np
import pytest
from structured_data import Choices, Tags, Topic, write_mixed_data, write_rows

from t0jax import checkpoint, config, loop, sharding, train
from t0jax import finetune as finetune_lib
from t0jax.config import ConfigError, UserError
from t0jax.data import loader as loader_lib
from t0jax.data.structured.records import RecordError
from t0jax.evaluate.head_tasks import find_head_tasks
from t0jax.finetune import finetune

STEPS = 8
TASKS = {"run_topics": Topic, "run_questions": Choices, "run_tagged": Tags}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A tiny run on tasks of three kinds, its data and its vocabulary; the tasks have other names than elsewhere."""
    seqio = pytest.importorskip("seqio")
    from t0jax.data import sources
    from t0jax.data.structured.source import add_task

    root = tmp_path_factory.mktemp("structured")
    write_mixed_data(root)
    rows = [{"text": f"{'sport' if i % 2 else 'news'} {i}", "label": i % 2} for i in range(12)]
    for split in ("train", "validation"):
        write_rows(root, "others", split, rows)
    before = set(seqio.TaskRegistry.names())
    for name, record in TASKS.items():
        add_task(record(name=name))
    sources.add_mixture("run_all", dict.fromkeys(TASKS, 1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T0JAX_DATA_DIR", str(root))
        patch.setenv("T0JAX_CACHE_DIR", str(root / "cache"))
        yield config.Config(
            model=config.Model(
                architecture="deberta", vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                position_buckets=8, max_relative_positions=16, layer_norm_epsilon=1e-7, scan_layers=False,
            ),
            data=config.Data(
                mixture="run_all", eval_mixture="run_all", modules=(), rates="rows", batch_size=16,
                input_length=32, vocabulary=str(root / "spm.model"),
                vocabulary_train_size=40,
            ),
            optimizer=config.Optimizer(name="adamw", schedule="inverse_sqrt", warmup_steps=2),
            train=config.Train(
                output_dir=str(root / "whole"), steps=STEPS, checkpoint_every=4, log_every=4, tensorboard=False
            ),
            evaluate=config.Evaluate(method="classify", max_input_length=32),
        )  # fmt: skip
    seqio.MixtureRegistry.remove("run_all")
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


@pytest.fixture(scope="module")
def whole(settings):
    """The folder of a run that was not stopped, and its scores."""
    return settings.train.output_dir, train.run(settings)


@pytest.mark.slow
def test_what_may_last_is_told_as_it_begins(settings, tmp_path, monkeypatch):
    said = []
    for module in (train, loop):
        monkeypatch.setattr(module, "note", said.append)
    data = dataclasses.replace(settings.data, vocabulary=str(tmp_path / "spm.model"))
    train.run(dataclasses.replace(to(settings, tmp_path / "run"), data=data))
    assert "vocabulary: reading the text of run_all" in said
    (line,) = [line for line in said if "pieces on" in line]
    assert re.fullmatch(
        r"vocabulary: training 40 pieces on \d+ lines, [\d,]+ characters of text", line
    )
    (line,) = [line for line in said if "compiling" in line]
    assert line.endswith("; compiling the step for rows of 32 tokens")
    assert f"evaluation: run_all, tasks: 3, at step {STEPS}" in said


def test_each_length_of_rows_is_told_once(monkeypatch):
    said, run = [], SimpleNamespace(began=0.0, shapes=set())
    monkeypatch.setattr(loop, "note", said.append)
    for inputs, targets in ((64, 8), (128, 8), (64, 8), (128, 8)):
        batch = {
            "encoder_input_tokens": np.zeros((4, inputs)),
            "decoder_input_tokens": np.zeros((4, targets)),
        }
        loop.Loop.tell_of_compiling(run, batch)
    assert [line.partition("compiling ")[2] for line in said] == [
        "the step for rows of 64 + 8 tokens",
        "the step for rows of 128 + 8 tokens",
    ]


def to(settings, output_dir, **changes):
    changed = dataclasses.replace(settings.train, output_dir=str(output_dir), **changes)
    return dataclasses.replace(settings, train=changed)


def params_of(run):
    mesh = sharding.make_mesh(config.Mesh())
    return jax.device_get(checkpoint.load_model(run, mesh).params)


def losses(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["accuracy"]) for row in rows if "loss" in row]


def test_a_run_has_scores_of_all_tasks_and_carries_its_heads(whole, settings):
    run, results = whole
    assert set(results.tasks) == set(TASKS)
    found = checkpoint.read_config(Path(run)).model.heads
    assert [(head.task, head.kind) for head in found] == [
        ("run_questions", "multiple_choice"),
        ("run_tagged", "token_classification"),
        ("run_topics", "classification"),
    ]
    assert found == loader_lib.find_heads(settings.data)


def test_stopping_and_going_on_changes_nothing(whole, settings, tmp_path):
    run = tmp_path / "stopped"
    first = to(settings, run, steps=4)
    train.run(first)
    train.run(to(settings, run))
    assert losses(run) == losses(Path(whole[0]))
    jax.tree.map(np.testing.assert_array_equal, params_of(run), params_of(whole[0]))


def test_a_new_task_starts_from_the_encoder_and_the_head_of_its_labels(whole, tmp_path):
    other = Topic(dataset="others", name="other topics")
    results = finetune(
        whole[0], other, tmp_path / "tuned", epochs=1, max_length=32, like="run_topics"
    )
    assert results.tasks["other topics"]["n"] == 12
    again = finetune(
        whole[0], other, tmp_path / "tuned", epochs=1, max_length=32, like="run_topics"
    )
    assert again.tasks["other topics"]["accuracy"] == results.tasks["other topics"]["accuracy"]
    model = checkpoint.read_config(tmp_path / "tuned").model
    assert [head.task for head in model.heads] == ["other topics"]
    bare = tmp_path / "bare"
    finetune(whole[0], other, bare, epochs=1, max_length=32, task_embedding=False)
    assert "task_embedding" not in params_of(bare)


PROGRAM = """
import sys
from structured_data import Topic
from t0jax import config
from t0jax.finetune import finetune
def main(argv):
    given = {"epochs": 1, "max_length": 32, "batch_size": 8, "settings": {"train.tensorboard": False}}
    found = finetune(*argv[:1], Topic(dataset="others", name="others"), *argv[1:], **given)
    print("found", found.tasks["others"]["accuracy"])
    return 0
config.run_script(main)
"""


@pytest.mark.slow
def test_processes_learn_and_score_together(whole, tmp_path, monkeypatch):
    """A finished run is scored again by all of them, with what one alone has found."""
    path = (clusters.REPOSITORY, clusters.REPOSITORY / "tests")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    found = []
    for count, out in ((1, "one"), (2, "two"), (2, "two")):
        command = ["-c", PROGRAM, str(whole[0]), str(tmp_path / out)]
        said = clusters.finish(clusters.start(command, count, 2 // count))
        found += [re.search("found ([.0-9]+)", text)[1] for text in said]
    assert len(found) == 5
    assert len({*found}) == 1


def test_what_is_scored_is_what_the_data_has(whole, tmp_path, monkeypatch):
    """Declared by default, a split need not be there."""
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(8)]
    write_rows(Path(os.environ["T0JAX_DATA_DIR"]), "alone", "train", rows)
    monkeypatch.setattr(train, "run", lambda run: run.data.eval_mixture)
    alone, out = Topic(dataset="alone", name="alone"), tmp_path / "out"
    assert finetune(whole[0], alone, out) == ""
    asked = {"data.eval_split": "validation,train"}
    assert finetune(whole[0], alone, out, settings=asked) == "alone"
    write_rows(tmp_path, "alone", "train", rows)
    write_rows(tmp_path, "alone", "validation", rows)
    elsewhere = {"data.local_dir": str(tmp_path)}
    assert finetune(whole[0], alone, out, settings=elsewhere) == "alone"


HELD = Topic(dataset="others", name="held topics")
"""A record that a module holds."""


def planned(record, **settings):
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    given = {"data.mixture": add(record), "data.modules": (), "data.batch_size": 4}
    return finetune_lib.configured(given | dotted, 3.0)


def add(record):
    from t0jax.data.structured.source import add_task

    return add_task(record).name


def test_what_follows_from_settings_follows_from_all_of_them(settings, tmp_path):
    own = planned(HELD)
    assert (own.train.steps, own.optimizer.warmup_steps) == (9, 0)
    changed = planned(HELD, data__batch_size="12", data__input_length=128, train__steps="50")
    assert (changed.train.steps, changed.optimizer.warmup_steps) == (50, 3)
    assert changed.data.length_buckets == (32, 64, 128)
    assert changed.data.batch_size % changed.data.shards == 0
    assert planned(HELD, optimizer__learning_rate="5e-5").optimizer.learning_rate == 5e-5
    with pytest.raises(ConfigError, match="learning_rate"):
        planned(HELD, optimizer__learning_rate="fast")
    kept = planned(HELD, train__eval_every=2, train__keep_best=1, data__eval_mixture=add(HELD))
    assert kept.train.checkpoint_every == 2
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(40)]
    write_rows(tmp_path, "others", "train", rows)
    assert planned(HELD, data__local_dir=str(tmp_path)).train.steps == 30


def test_steps_are_of_the_rows_that_are_read(settings, tmp_path):
    rows = [{"text": f"t {i}", "label": i % 3 - 1, "kept": i % 2} for i in range(24)]
    write_rows(tmp_path, "told", "train", rows)
    told = Topic(dataset="told", name="told topics", where="kept")
    assert planned(told, data__local_dir=str(tmp_path)).train.steps == 6  # 8 of 24 rows, thrice
    rows = [{"text": "which", "options": list("abcdefgh"), "right": i} for i in (0, 1, -1)]
    write_rows(tmp_path, "asked", "train", rows)
    many = Choices(dataset="asked", name="many options")
    given = {"data__local_dir": str(tmp_path), "data__batch_size": 8}
    assert planned(many, **given).train.steps == 3  # of 4 rows each
    assert planned(many, **given, data__max_choices=8).train.steps == 6
    write_rows(tmp_path, "asked", "train", rows[2:] * 3)
    with pytest.raises(RecordError, match=r"'many options': .*label"):
        planned(many, **given)


def test_the_module_of_a_record_is_found():
    assert finetune_lib._modules(HELD) == [__name__]
    assert finetune_lib._modules(Topic(dataset="others")) == []
    nowhere = config.Data(mixture="nowhere", modules=())
    with pytest.raises(UserError, match="none; name the one that declares it with --module"):
        find_head_tasks("nowhere", nowhere, "validation", ())
    with pytest.raises(ConfigError, match=r"data\.modules is empty, register no 'nowhere'"):
        loader_lib.find_heads(nowhere)


def test_a_module_is_named_where_it_registers_the_record(tmp_path, monkeypatch):
    """By one that merely has it nobody finds the task later."""
    seqio = pytest.importorskip("seqio")
    names = ("merely_held", "held_and_registered")
    has = "from structured_data import Topic\nrecord = Topic(dataset='others', name='{}')\n"
    registers = "from t0jax.data.structured.source import add_task\nadd_task(record)\n"
    for name, does in zip(names, ("", registers), strict=True):
        (tmp_path / f"{name}.py").write_text(has.format(name) + does)
    monkeypatch.syspath_prepend(tmp_path)
    held, registered = (importlib.import_module(name).record for name in names)
    try:
        for _ in range(2):  # what the first call registered is no module's the second time
            assert finetune_lib._registered(held) == ("merely_held", [])
            assert finetune_lib._registered(registered) == (names[1], [names[1]])
    finally:
        for name in names:
            seqio.TaskRegistry.remove(name)


def test_what_does_not_fit_is_refused(whole, settings, tmp_path):
    other = Topic(dataset="others", name="more topics")
    with pytest.raises(ConfigError, match=r"no task of the model .* run_topics"):
        finetune(whole[0], other, tmp_path / "a", max_length=32, like="run_topic")
    with pytest.raises(ConfigError, match=r"key 'seed'; did you mean .*'train\.seed'"):
        finetune(whole[0], other, tmp_path / "a", settings={"seed": 1})
    t5 = dataclasses.replace(settings, model=config.Model(vocab_size=64))
    with pytest.raises(
        ConfigError, match=r"architecture is t5, but .* a recipe with model\.architecture deberta"
    ):
        train.run(to(t5, tmp_path / "b"))
    fewer = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, mixture="run_topics")
    )
    with pytest.raises(ConfigError, match=r"model\.heads: run_questions, run_tagged only there"):
        train.run(fewer)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
