"""Scoring structured tasks by heads: against the network itself, scikit-learn, scipy and tables by hand."""

import dataclasses
import functools
import json
import os
import shutil

import clusters
import jax
import multitask_models as tiny_models
import numpy as np
import pytest
from multitask_models import TAGS, sentences
from structured_data import write_rows

from t0jax import checkpoint, convert, evaluate, models, processes, report, results, sharding
from t0jax import config as cfg
from t0jax.data.structured.pieces import PairPieces
from t0jax.data.structured.records import Classification, MultipleChoice, TokenClassification
from t0jax.report import reading, statistics
from t0jax.results import structured

ROWS = 30


def rows_of(kind, seed):
    """Random rows of one kind of task."""
    rng = np.random.default_rng(seed)
    for text in sentences(ROWS, seed, longest=30):
        yield text, rng


def datasets():
    """{data set: rows} of every kind."""
    found = {name: [] for name in ("sst", "pairs", "score", "moods", "quiz", "tagged", "rte")}
    for number, (text, rng) in enumerate(rows_of("all", 3)):
        found["sst"].append({"text": text, "label": int(rng.integers(2))})
        found["pairs"].append({"a": text, "b": "who runs", "label": int(rng.integers(3))})
        found["rte"].append({"a": text, "b": "a cat", "label": int(rng.integers(2))})
        found["score"].append({"text": text, "label": float(rng.integers(0, 6))})
        found["moods"].append({"text": text, "label": np.flatnonzero(rng.random(3) > 0.5).tolist()})
        options = sentences(2 + number % 3, 50 + number)
        found["quiz"].append(
            {"text": text, "options": options, "label": int(rng.integers(len(options)))}
        )
        tags = rng.integers(len(TAGS), size=len(text.split())).tolist()
        found["tagged"].append({"words": text.split(), "tags": tags})
    return found


RECORDS = {
    "sst": Classification(
        dataset="sst", name="tiny/sst2", sentence1="text", labels=("negative", "positive")
    ),
    "pairs": Classification(
        dataset="pairs",
        name="tiny/mnli",
        sentence1="a",
        sentence2="b",
        labels=tiny_models.NLI,
    ),
    "score": Classification(dataset="score", name="tiny/stsb", sentence1="text", scale=(0.0, 5.0)),
    "moods": Classification(
        dataset="moods",
        name="tiny/emotions",
        sentence1="text",
        labels=("joy", "fear", "anger"),
        multilabel=True,
    ),
    "quiz": MultipleChoice(dataset="quiz", name="tiny/dream", inputs="text", choices="options"),
    "tagged": TokenClassification(
        dataset="tagged", name="tiny/names", tokens="words", tags="tags", labels=TAGS
    ),
    "rte": Classification(
        dataset="rte",
        name="tiny/rte",
        sentence1="a",
        sentence2="b",
        labels=("not_entailment", "entailment"),
    ),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The data on disk and its seqio tasks, one mixture of those that the model has heads for."""
    seqio = pytest.importorskip("seqio")
    from t0jax.data.sources import add_mixture
    from t0jax.data.structured.source import add_task

    folder = tmp_path_factory.mktemp("data")
    names = {}
    for dataset, rows in datasets().items():
        write_rows(folder, dataset, "validation", rows)
        name = f"classify_evaluator_{dataset}"
        names[dataset] = add_task(RECORDS[dataset], name, local_dir=str(folder)).name
    add_mixture("classify_evaluator_all", {n: 1.0 for d, n in names.items() if d != "rte"})
    yield names
    seqio.MixtureRegistry.remove("classify_evaluator_all")
    for name in names.values():
        seqio.TaskRegistry.remove(name)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny_models.vocabulary(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def model(vocabulary):
    config, params = tiny_models.tiny(vocabulary)
    return models.build(config), params


def make(
    model, vocabulary, mixture, mesh=None, available_only=False, split="validation", **settings
):
    data = cfg.Data(modules=(), available_only=available_only, eval_split=split)
    given = cfg.Evaluate(method="classify", max_input_length=40, **settings)
    mesh = mesh or sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])
    return evaluate.make_evaluator(model[0], mesh, data, given, mixture, vocabulary)


@pytest.fixture(scope="module")
def scored(tasks, model, vocabulary, tmp_path_factory):
    """(evaluator, results, folder) of all tasks."""
    evaluator = make(model, vocabulary, "classify_evaluator_all")
    path = tmp_path_factory.mktemp("results") / "found"
    folder = evaluate.ResultsFolder(path, {"model": "tiny", **evaluator.describe()})
    return evaluator, evaluator(model[1], folder), path


@pytest.fixture(scope="module")
def outputs(model, vocabulary):
    """(task, rows of ids) -> what the network says of the rows, all in one batch."""
    network, params = model
    numbers = {h.task: number for number, h in enumerate(network.config.heads)}
    run = jax.jit(functools.partial(_together, network, params), static_argnums=2)

    def answer(task, rows, tokens=False):
        size = network.config.heads[numbers[task]].columns
        ids = np.zeros((len(rows), 40), np.int32)
        for one, row in zip(ids, rows, strict=True):
            one[: len(row)] = row
        return np.asarray(run(ids, np.full(len(rows), numbers[task]), tokens))[..., :size]

    return answer


def _together(network, params, ids, tasks, tokens):
    module = network.bind(params)
    hidden = module.encode(ids, ids > 0, tasks)
    if tokens:
        return module.token_logits(hidden, tasks)
    return module.sequence_logits(module.pool(hidden), tasks)


def ids_of(vocabulary, first, second=None):
    pieces = PairPieces(vocabulary)
    return pieces.pair(pieces.encode(first), second and pieces.encode(second), 40)


def test_every_kind_is_measured_as_by_hand(scored, outputs, vocabulary):
    metrics = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    found, data = scored[1].tasks, datasets()
    rows = {
        name: [ids_of(vocabulary, r["text"]) for r in data[name]]
        for name in ("sst", "score", "moods")
    }
    gold = {name: [r.get("label") for r in data[name]] for name in data}

    predicted = [int(o.argmax()) for o in outputs("tiny/sst2", rows["sst"])]
    entry = found["tiny/sst2"]
    assert entry["accuracy"] == pytest.approx(metrics.accuracy_score(gold["sst"], predicted))
    assert entry["macro_f1"] == pytest.approx(
        metrics.f1_score(gold["sst"], predicted, average="macro")
    )
    assert (entry["n"], entry["chance"], entry["kind"]) == (ROWS, 0.5, "classification")
    assert entry["majority"] == max(np.mean(gold["sst"]), 1 - np.mean(gold["sst"]))

    values = [float(o[0]) for o in outputs("tiny/stsb", rows["score"])]
    entry = found["tiny/stsb"]
    assert entry["metrics"]["pearson"] == pytest.approx(
        stats.pearsonr(gold["score"], values)[0], abs=1e-5
    )
    assert entry["metrics"]["spearman"] == pytest.approx(
        stats.spearmanr(gold["score"], values)[0], abs=1e-5
    )
    assert entry["score"] == entry["metrics"]["pearson"]

    several = np.array([o > 0 for o in outputs("tiny/emotions", rows["moods"])])
    right = np.array([[k in labels for k in range(3)] for labels in gold["moods"]])
    for average in ("macro", "micro"):
        assert found["tiny/emotions"]["metrics"][f"{average}_f1"] == pytest.approx(
            metrics.f1_score(right, several, average=average, zero_division=0)
        )


def test_questions_read_all_options(scored, outputs, vocabulary):
    data = datasets()["quiz"]
    right, chances = [], []
    for row in data:
        ids = [ids_of(vocabulary, row["text"], option) for option in row["options"]]
        empty = [[1]] * (4 - len(ids))
        best = int(np.argmax(outputs("tiny/dream", ids + empty)[: len(ids), 0]))
        right.append(best == row["label"])
        chances.append(1 / len(row["options"]))
    entry = scored[1].tasks["tiny/dream"]
    assert entry["accuracy"] == pytest.approx(np.mean(right))
    assert entry["chance"] == pytest.approx(np.mean(chances))


def test_tags_are_read_at_first_pieces(scored, outputs, vocabulary):
    data, right, pairs = datasets()["tagged"], [], []
    encoded = [PairPieces(vocabulary).words(row["words"], 40)[:3] for row in data]
    found = outputs("tiny/names", [ids for ids, _, _ in encoded], True)
    for row, (_, first, _), logits in zip(data, encoded, found, strict=True):
        tags = [TAGS[int(logits[f].argmax())] if f >= 0 else "O" for f in first]
        gold = [TAGS[tag] for tag in row["tags"]]
        right += [a == b for a, b in zip(gold, tags, strict=True)]
        pairs.append((structured.entities(gold), structured.entities(tags)))
    hits, wanted, given = (
        sum(map(len, part)) for part in zip(*[(a & b, a, b) for a, b in pairs], strict=True)
    )
    entry = scored[1].tasks["tiny/names"]["metrics"]
    assert entry["token_accuracy"] == pytest.approx(np.mean(right))
    assert entry["entity_f1"] == pytest.approx(2 * hits / (wanted + given))


def test_the_mean_over_tasks_is_that_of_their_own_metrics(scored):
    found = scored[1]
    values = [entry.get("accuracy", entry.get("score")) for entry in found.tasks.values()]
    assert found.mean_accuracy == pytest.approx(np.mean(values))
    table = found.table()
    for name, kind in (("tiny/sst2", "classification"), ("tiny/names", "token classification")):
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert kind in line
    mean = next(line for line in table.splitlines() if line.startswith("mean over 6"))
    assert mean.split() == ["mean", "over", "6", "tasks", f"{np.mean(values):.3f}"]


def test_the_report_shows_kinds_and_intervals(scored, tmp_path):
    _, found, path = scored
    folder = reading.read_folder(path)
    page = report.write_report([path], tmp_path / "report.html").read_text()
    for name, entry in found.tasks.items():
        assert name in page
        low, high = folder.structured[name].interval
        assert low <= structured.main_value(entry) <= high
    assert "token classification" in page
    assert "entity_f1" in page
    low, high = folder.structured["tiny/stsb"].interval
    table = report.compare_table([path])
    assert f"{found.tasks['tiny/stsb']['score']:.3f} [{low:.3f}, {high:.3f}]" in table
    assert "tiny/sst2" in table
    (mean,) = (line for line in table.splitlines() if line.startswith("mean over 6 structured"))
    assert f"  {found.mean_accuracy:.3f} [" in mean
    task = folder.structured["tiny/sst2"]
    low, high = task.interval_of("macro_f1")
    assert low <= task.others["macro_f1"] <= high
    assert "macro_f1" not in found.tasks["tiny/dream"]  # places of shuffled options are no classes


def test_the_intervals_are_the_bootstraps(scored):
    """Of regression, by drawing rows anew and measuring with scipy."""
    stats = pytest.importorskip("scipy.stats")
    task = reading.read_folder(scored[2]).structured["tiny/stsb"]
    gold, given = (np.array([line[s] for line in task.lines]) for s in ("target", "prediction"))
    counts = next(iter(statistics.resampled_counts(ROWS, "tiny/stsb")))
    for number in range(5):
        drawn = np.repeat(np.arange(ROWS), counts[number].astype(int))
        for metric, value in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            wanted = value(gold[drawn], given[drawn])[0]
            assert task.samples[metric][number] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("tiny/stsb", {"row": 0, "target": 1, "prediction": "high"}),
        ("tiny/emotions", {"row": 0, "target": [0], "prediction": [3]}),
        ("tiny/names", {"row": 0, "target": ["O"], "prediction": ["O", "O"]}),
        ("tiny/names", {"row": "0", "target": ["O"], "prediction": ["O"]}),
    ],
)
def test_lines_of_another_form_are_refused(scored, tmp_path, task, line):
    path = shutil.copytree(scored[2], tmp_path / "copy")
    (path / "scores" / results.scores_file(task)).write_text(json.dumps(line))
    with pytest.raises(reading.ReportError, match="not of a form"):
        reading.read_folder(path)


def test_it_goes_on_where_it_was_stopped(scored, model, tmp_path):
    evaluator, found, _ = scored
    folder = evaluate.ResultsFolder(tmp_path, {"model": "tiny", **evaluator.describe()})
    kept = dict(list(found.tasks.items())[:2])
    for name in kept:
        folder.write_scores(name, [results.ScoredRow(0, np.zeros(2, np.float32), (0,))])
    folder.write_results(results.Results(kept), complete=False)
    lines = []
    again = evaluator(model[1], folder, lines.append)
    assert lines[0] == "going on: 2 of 6 tasks are in the folder"
    for entry in (*again.tasks.values(), *found.tasks.values()):
        entry.pop("seconds", None)
    assert again.tasks == found.tasks


@pytest.mark.parametrize("change", ["batch_size", "devices"])
def test_scores_do_not_depend_on_batches_and_devices(scored, model, vocabulary, tasks, change):
    mesh = sharding.make_mesh(cfg.Mesh(), jax.devices()[:4]) if change == "devices" else None
    mixture = f"{tasks['sst']},{tasks['quiz']}"
    other = make(model, vocabulary, mixture, mesh, batch_size=3)
    kept = {}
    other._exchange, plain = lambda n, rows: kept.setdefault(n, plain(n, rows)), other._exchange
    found = other(model[1]).tasks
    for name, entry in found.items():
        assert entry["accuracy"] == scored[1].tasks[name]["accuracy"]
    first = results.ScoredRow.to_json(kept[1][0])
    stored = json.loads((scored[2] / "scores" / "tiny__sst2.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(first["scores"], stored["scores"], atol=0 if mesh is None else 1e-6)


def test_another_tasks_head(tasks, model, vocabulary, outputs):
    """RTE by MNLI's head: not_entailment is all that is not entailment."""
    found = make(model, vocabulary, tasks["rte"], head="tiny/mnli")(model[1]).tasks["tiny/rte"]
    data = datasets()["rte"]
    logits = outputs("tiny/mnli", [ids_of(vocabulary, r["a"], r["b"]) for r in data])
    predicted = [int(o[0] > np.logaddexp(o[1], o[2])) for o in logits]
    assert found["accuracy"] == pytest.approx(
        np.mean([p == r["label"] for p, r in zip(predicted, data, strict=True)])
    )
    assert found["prompt"] == "classification, head tiny/mnli"


def test_a_task_without_a_head_is_named(tasks, model, vocabulary):
    with pytest.raises(
        evaluate.EvaluationError,
        match=r"no task of .* can be scored\n.*tiny/rte.* no head for this task; .*--evaluate.head tiny/mnli",
    ):
        make(model, vocabulary, tasks["rte"])
    both = f"{tasks['rte']},{tasks['sst']}"
    found = make(model, vocabulary, both, available_only=True)(model[1])
    assert list(found.tasks) == ["tiny/sst2"]
    assert "tiny/rte" in found.missing
    with pytest.raises(
        evaluate.EvaluationError, match="'tiny/rte' is classification, the head of 'tiny/dream'"
    ):
        make(model, vocabulary, tasks["rte"], head="tiny/dream")
    with pytest.raises(evaluate.EvaluationError, match="lacks"):
        make(model, vocabulary, tasks["rte"], head="tiny/sst2")
    with pytest.raises(evaluate.EvaluationError, match="did you mean 'tiny/mnli'"):
        make(model, vocabulary, tasks["rte"], head="tiny/mnl")


@pytest.fixture
def lacking(tasks, tmp_path):
    """Adds tasks like `tiny/sst2` with splits of their own, and data that has a training split alone."""
    import seqio

    from t0jax.data.structured.source import add_task

    write_rows(tmp_path, "sst", "train", datasets()["sst"])
    added = []

    def add(*splits):
        record = dataclasses.replace(RECORDS["sst"], name=f"tiny/{len(added)}", splits=splits)
        added.append(add_task(record, f"lacking_{len(added)}", local_dir=str(tmp_path)).name)
        return added[-1]

    yield add
    for name in added:
        seqio.TaskRegistry.remove(name)


def test_a_split_that_a_record_does_not_have_is_no_missing_data(tasks, lacking, model, vocabulary):
    """Tasks that could never be scored do not keep the others of the mixture from it; a lost file does."""
    none, test, lost = (
        lacking("train", *rest) for rest in ((None, None), (None, "train"), ("lost", None))
    )
    own = functools.partial(make, model, vocabulary, head="tiny/sst2")
    found = own(f"{tasks['sst']},{none},{test}")(model[1])
    assert list(found.tasks) == ["tiny/sst2"]
    assert list(found.missing) == ["tiny/0", "tiny/1"]
    names = [t.name for t in own(f"{none},{test}", split="validation,test").tasks]
    assert names == ["tiny/1"]
    with pytest.raises(evaluate.EvaluationError, match=r"(?s)not all tasks .*no split 'lost'"):
        own(f"{tasks['sst']},{none},{lost}")
    with pytest.raises(evaluate.EvaluationError, match="no split 'validation'; it has train"):
        own(none)
    told = (
        r"'test'; it has train, validation\nscore .* lacks test: --data.eval_split test,validation"
    )
    with pytest.raises(evaluate.EvaluationError, match=told):
        own(lacking("train", "train", None), split="test")


def test_a_broken_file_is_missing_data_as_in_training(tasks, lacking, model, vocabulary, tmp_path):
    broken = tmp_path / "sst" / "default" / "validation.jsonl"
    broken.write_text('{"text": "a", "label": 0}\n{"text": \n')
    both = f"{tasks['sst']},{lacking('train', 'validation', None)}"
    with pytest.raises(
        evaluate.EvaluationError, match=r"not scored: sst \(1\): .*validation\.jsonl.*not JSON"
    ):
        make(model, vocabulary, both, head="tiny/sst2")
    found = make(model, vocabulary, both, head="tiny/sst2", available_only=True)(model[1])
    assert list(found.tasks) == ["tiny/sst2"]
    assert "validation.jsonl" in found.missing["tiny/0"]
    assert "not scored: sst (1): " in found.table()


def test_broken_weights_are_an_error(tasks, model, vocabulary):
    broken = jax.tree.map(lambda x: x * np.nan, model[1])
    with pytest.raises(
        evaluate.EvaluationError, match=r"'tiny/sst2', row 0: an output is not finite"
    ):
        make(model, vocabulary, tasks["sst"])(broken)
    with pytest.raises(
        evaluate.EvaluationError, match=r"'tiny/names', row 0: an output is not finite"
    ):
        make(model, vocabulary, tasks["tagged"])(broken)


def test_rows_of_processes_are_put_together(monkeypatch):
    from t0jax.evaluate import classify

    parts = [[structured.AnsweredRow(2, 1.0, 0.5), structured.AnsweredRow(0, 2.0, 0.25, True)], []]
    parts[1] = [structured.AnsweredRow(1, 0.0, 0.75)]
    pack = lambda rows: [tuple(vars(row).values()) for row in rows]  # noqa: E731
    monkeypatch.setattr(processes, "tell", lambda mine, what: [mine, pack(parts[1])])
    assert classify.exchange_answers(parts[0]) == parts[0] + parts[1]


def test_a_t5_has_no_heads(tasks):
    network = models.build(cfg.Model(d_model=8, num_layers=1, num_heads=2, vocab_size=16))
    with pytest.raises(evaluate.EvaluationError, match="needs a multitask encoder"):
        make((network, None), None, tasks["sst"])


def test_declared_tasks_tell_what_a_directory_leaves_out(
    scored, tasks, model, vocabulary, tmp_path
):
    from scripts import evaluate as script

    folder = convert.save_params(model[1], model[0].config, tmp_path / "hf", "float32", vocabulary)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"kinds": None}))
    command = ["--model", str(folder), "--mixture", tasks["tagged"]]
    command += ["--module", "structured_data", "--evaluate.max_input_length", "40"]
    assert script.main([*command, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert found["tiny/names"]["metrics"] == pytest.approx(
        scored[1].tasks["tiny/names"]["metrics"], abs=1e-6
    )


MODULE = """
from t0jax.data.structured.source import add_task
from t0jax.data.sources import add_mixture
from test_classify_evaluator import RECORDS
names = [add_task(RECORDS[name], f"several_{name}").name for name in ("sst", "score", "moods", "quiz", "tagged")]
add_mixture("several", dict.fromkeys(names, 1.0))
"""


@pytest.mark.slow
def test_processes_find_what_one_does(model, vocabulary, tmp_path, monkeypatch):
    """Each reads and scores its own rows."""
    for dataset, rows in datasets().items():
        write_rows(tmp_path / "data", dataset, "validation", rows)
    (tmp_path / "several_tasks.py").write_text(MODULE)
    checkpoint.save_model(tmp_path / "model", model[1], model[0].config, vocabulary)
    path = [str(tmp_path), str(clusters.REPOSITORY), str(clusters.REPOSITORY / "tests")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("T0JAX_DATA_DIR", str(tmp_path / "data"))
    command = ["-m", "scripts.evaluate", "--model", str(tmp_path / "model"), "--mixture", "several"]
    command += ["--module", "several_tasks", "--evaluate.max_input_length", "40"]
    found = []
    for processes_, devices in ((1, 2), (2, 1)):
        out = tmp_path / str(processes_)
        clusters.finish(clusters.start([*command, "--output", str(out)], processes_, devices))
        content = json.loads((out / "results.json").read_text())
        for entry in content["tasks"].values():
            del entry["seconds"]
        found.append((content, {f.name: f.read_text() for f in (out / "scores").iterdir()}))
    assert len(found[0][0]["tasks"]) == 5
    assert found[0] == found[1]
