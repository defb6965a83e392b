"""Scoring by generated text: against transformers' `generate` and the metrics' own libraries, and its laws."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from pets import TINY, make_params, one_device

from t0jax import config as cfg
from t0jax import convert, generate, models, results
from t0jax.data import sources
from t0jax.data.rows import DatasetSpec
from t0jax.data.vocabulary import Pieces
from t0jax.evaluate import exchange, tasks, text
from tasks import t0_metrics

CONFIG = dataclasses.replace(TINY, vocab_size=160)
EOS, SAYS = 1, 18
"""Ids: end of sequence, and the one word that the vocabulary has whole."""

LENGTHS = {"max_input_length": 32, "max_target_length": 12}
"""Some inputs and targets are longer. One length of inputs is one program to compile."""

META = "!TemplateMetadata {choices_in_prompt: false, languages: [en], metrics: [], original_task: true}"
PROMPTS = f"""
dataset: DATASET
templates:
  1: !Template
    {{id: '1', name: say, answer_choices: null, reference: '', metadata: {META},
     jinja: 'Say {{{{ options | join(" ") }}}} {{{{ sound }}}} ||| {{{{ sound }}}} says {{{{ options[label] }}}}'}}
  2: !Template
    {{id: '2', name: some, answer_choices: 'cat ||| dog', reference: '', metadata: {META},
     jinja: '{{% if label == 0 %}}Who says {{{{ sound }}}}? ||| {{{{ answer_choices[label] }}}} {{% endif %}}'}}
  3: !Template
    {{id: '3', name: silent, answer_choices: null, reference: '', metadata: {META},
     jinja: '{{{{ sound }}}} ||| {{{{ "" if label == 0 else sound }}}}'}}
"""


@functools.cache
def params():
    """Random parameters that write letters and a word."""
    found = make_params(CONFIG, seed=4)
    scale = np.where(np.arange(CONFIG.vocab_size) < 28, 1.0, 0.0)
    scale[[EOS, 2, SAYS]] = 3.0, 0.0, 5.0
    return found | {"lm_head": found["lm_head"] * scale}


@pytest.fixture(scope="module")
def declare(pets, tmp_path_factory):
    """Registers a prompt's task, under a name that says how it is measured."""
    root = tmp_path_factory.mktemp("prompts")
    for dataset in ("pets", "ghosts"):
        (root / dataset).mkdir()
        (root / dataset / "templates.yaml").write_text(PROMPTS.replace("DATASET", dataset))
    places = {"prompts_root": str(root), "local_dir": str(pets / "data")}

    def add(prompt, *metrics, data="pets", postprocess=t0_metrics.stripped):
        name = "_".join(["written", data, prompt, *(metric.__name__ for metric in metrics)])
        sources.add_prompt_task(
            name, DatasetSpec(data), prompt, postprocess_fn=postprocess, metric_fns=metrics, **places
        )  # fmt: skip
        return name

    return add


@pytest.fixture(scope="module")
def build(pets):
    """Builds an evaluator of some tasks."""

    def evaluator(*names, split="validation", available_only=False, view="", **settings):
        data = cfg.Data(
            modules=(),
            vocabulary=str(pets / "sp.model"),
            eval_split=split,
            available_only=available_only,
            view=view,
        )
        settings = cfg.Evaluate(method="generate", **(LENGTHS | settings))
        network = models.build(CONFIG)
        return text.TextEvaluator(network, one_device(), data, settings, ",".join(names))

    return evaluator


def lines(folder, task):
    path = folder / "scores" / f"{task}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Against transformers and the metrics' libraries


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    """transformers' model with the same parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = convert.save_params(params(), CONFIG, tmp_path_factory.mktemp("model") / "hf")
    yield transformers.T5ForConditionalGeneration.from_pretrained(path).eval()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("beams", [1, 4])
def test_texts_are_transformers_and_values_the_libraries(
    build, declare, torch_model, pets, beams, tmp_path
):
    import sacrebleu
    import torch
    from rouge_score import rouge_scorer

    name = declare("say", t0_metrics.rouge, t0_metrics.bleu)
    evaluator = build(name, num_beams=beams)
    found = evaluator(params(), results.ResultsFolder(tmp_path, evaluator.describe()))
    pieces = Pieces(str(pets / "sp.model"))
    targets, predictions = [], []
    for row in evaluator.tasks[0].rows:
        ids = torch.tensor([pieces.encode(row.inputs)[:32]])  # T0's have no end of sequence
        written = torch_model.generate(ids, do_sample=False, num_beams=beams, max_new_tokens=12)
        targets.append(row.targets)
        predictions.append(pieces.decode(written[0, 1:].tolist()))
    there = lines(tmp_path, name)
    assert [line["row"] for line in there] == list(range(31))
    assert [line["target"] for line in there] == targets
    assert [line["prediction"] for line in there] == predictions
    names = ["rouge1", "rouge2", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(names)
    scores = [scorer.score(*pair) for pair in zip(targets, predictions, strict=True)]
    expected = {n: 100 * np.mean([score[n].fmeasure for score in scores]) for n in names}
    expected["bleu"] = sacrebleu.corpus_bleu(predictions, [targets], tokenize="intl").score
    assert found.tasks[name]["metrics"] == pytest.approx(expected)
    share = np.mean(list(expected.values())) / 100
    assert found.tasks[name]["score"] == found.mean_accuracy == pytest.approx(share)
    assert min(expected["rouge1"], expected["bleu"]) > 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Laws


def rows_of(evaluator):
    """The rows of the first task."""
    return evaluator._written(params(), evaluator.tasks[0], lambda done: None)


def written(evaluator):
    """What was written for each of them."""
    return {row.row: row.prediction for row in rows_of(evaluator)}


def test_a_text_depends_neither_on_the_rows_beside_it_nor_on_how_many_there_are(build, declare):
    name = declare("say")
    expected = written(build(name))
    assert len(set(expected.values())) > 5
    narrow = build(name)
    narrow.generator = generate.Generator(
        narrow.generator.network, one_device(), narrow.generator.settings, row_tokens=64
    )
    assert written(narrow) == expected
    few = written(build(name, max_examples=7))
    assert list(few) == tasks.drawn_rows(31, 7)
    assert few.items() <= expected.items()


def test_rows_without_a_target_are_left_out(build, declare):
    some, silent = declare("some"), declare("silent")
    found = build(some, silent)(params())
    assert {name: task["n"] for name, task in found.tasks.items()} == {silent: 15, some: 16}
    assert found.tasks[some]["coverage"] == pytest.approx(16 / 31)
    hidden = build(declare("say"), split="test")(params())
    assert hidden.tasks[declare("say")]["n"] == 5


def test_a_task_is_measured_as_it_declares(build, declare):
    """By its postprocessor, which is told what seqio's are, and by its metrics; by equality without any."""
    seen = []

    def halves(text, example=None, is_target=False):
        seen.append((example["inputs_pretokenized"], example["targets_pretokenized"], is_target))
        return len(text) // 2

    def errors(targets, predictions):
        return {"mean": np.float32(np.mean(np.subtract(targets, predictions)))}

    def by_probability(targets, scores):
        raise AssertionError("it takes no texts")

    name = declare("say", errors, by_probability, postprocess=halves)
    evaluator = build(name, max_examples=3)
    task, rows = evaluator.tasks[0], rows_of(evaluator)
    expected = np.mean([len(row.target) // 2 - len(row.prediction) // 2 for row in rows])
    assert text.measure(task, rows)[0] == {"mean": pytest.approx(expected)}
    rendered = [task.rows[row.row] for row in rows]
    assert seen == [(r.inputs, r.targets, True) for r in rendered] + [
        (r.inputs, r.targets, False) for r in rendered
    ]
    bare = build(declare("say"), max_examples=3).tasks[0]
    right = dataclasses.replace(rows[0], prediction=f" {rows[0].target} ")
    values, score = text.measure(bare, [right, *rows[1:]])
    assert values == {"exact_match": pytest.approx(100 / 3)}
    assert score == pytest.approx(1 / 3)


def test_metrics_that_are_better_when_lower_do_not_count(build, declare):
    """A task with no other metric has no score, and the mean is over the other tasks."""
    both = declare("say", t0_metrics.edit_distance, t0_metrics.coqa_f1)
    alone = declare("some", t0_metrics.edit_distance)
    found = build(both, alone, max_examples=4)(params())
    entries = [found.tasks[name] for name in (both, alone)]
    assert [sorted(entry["metrics"]) for entry in entries] == [["f1", "mean_edit"], ["mean_edit"]]
    assert entries[0]["score"] == entries[0]["metrics"]["f1"] / 100
    assert "score" not in entries[1]
    assert found.mean_accuracy == entries[0]["score"]
    assert np.isnan(results.Results({alone: entries[1]}).mean_accuracy)


def test_metrics_that_cannot_be_told_apart_or_are_no_numbers_are_refused(build, declare):
    def words(targets, predictions):
        return {"accuracy": "good"}

    evaluator = build(declare("say", t0_metrics.accuracy, words), max_examples=3)
    rows = rows_of(evaluator)
    with pytest.raises(results.EvaluationError, match=r"words.*not the first to give 'accuracy'"):
        text.measure(evaluator.tasks[0], rows)
    alone = dataclasses.replace(evaluator.tasks[0], metrics=(words,))
    with pytest.raises(results.EvaluationError, match=r"'accuracy' as str, which is no number"):
        text.measure(alone, rows)


def test_long_texts_are_counted(build, declare):
    name = declare("say")
    evaluator = build(name)
    rows = rows_of(evaluator)
    tokens = [
        [len(evaluator.pieces.encode(side)) for side in (row.inputs, row.target)] for row in rows
    ]
    assert [row.cut for row in rows] == [a > 32 or b + 1 > 12 for a, b in tokens]
    assert len({row.cut for row in rows}) == 2


def test_finished_tasks_are_not_written_again(build, declare, tmp_path):
    names = [declare("say"), declare("some")]
    evaluator = build(*names)
    folder = results.ResultsFolder(tmp_path, evaluator.describe())
    first = build(names[0])(params(), folder)
    second = evaluator(params(), folder)
    assert second.tasks[names[0]] == first.tasks[names[0]]
    there = json.loads((tmp_path / "results.json").read_text())
    assert there["complete"]
    assert there["tasks"] == json.loads(json.dumps(second.tasks))
    assert "some" in second.table()
    assert evaluator(None, folder).tasks == second.tasks


@pytest.mark.parametrize("view", ["channel", "flipped"])
def test_other_views_write_their_own_targets(build, declare, view):
    evaluator = build(declare("some"), view=view)
    rows = rows_of(evaluator)
    start = {"channel": "Who says", "flipped": "<extra_id_0> Who says"}[view]
    assert {row.target[: len(start)] for row in rows} == {start}
    assert evaluator.describe()["input_eos"] == (view == "flipped")


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be scored


def test_rank_tasks_are_refused_by_name(build, pets):
    name = sources.add_rank_task("written_ranked", DatasetSpec("pets"), "some").name
    with pytest.raises(results.EvaluationError, match=rf"{name}'.*without `_score_eval`.*rank"):
        build(name)


def test_missing_data_sets_are_named_or_left_out_on_request(build, declare):
    name, ghost = declare("say"), declare("say", data="ghosts")
    with pytest.raises(results.EvaluationError, match=r"(?s)ghosts.*--data.available_only"):
        build(name, ghost)
    evaluator = build(name, ghost, available_only=True)
    assert list(evaluator.unscored) == [ghost]
    assert [task.name for task in evaluator.tasks] == [name]


def test_a_metric_without_its_package_is_refused_before_anything_is_written(build, declare):
    @t0_metrics._needs("no_such_package", "no-such-package")
    def rare(targets, predictions):
        raise AssertionError("not to be called")

    with pytest.raises(t0_metrics.MetricError, match="pip install no-such-package"):
        build(declare("say", rare))


def test_broken_weights_are_told(build, declare):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params())
    with pytest.raises(results.EvaluationError, match="row 0: the text's probability is not"):
        build(declare("say"))(broken)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def test_rows_travel_between_processes_unchanged():
    """The exchange of one process with itself."""
    rows = [
        text.TextRow(3, "in\n", "ein Ziel, \udcff", "“écrit” 文", -0.1, True),
        text.TextRow(0, "", "", "", -1e-30),
    ]
    assert text.exchange_texts(rows) == rows
    assert text.exchange_texts([]) == []
    assert exchange.gather_rows([*rows, rows[0]], text.exchange_texts) == [rows[1], rows[0]]


WORKER = """
import json, sys
import jax
index, count, port, devices = map(int, sys.argv[1:5])
jax.config.update("jax_num_cpu_devices", devices)
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
import test_text_evaluation as own
from t0jax import config as cfg, models, results, sharding
from t0jax.data import sources
from t0jax.data.rows import DatasetSpec
from t0jax.evaluate.text import TextEvaluator
from tasks.t0_metrics import edit_distance, stripped
vocabulary, prompts, local_dir, axis = sys.argv[5:]
for prompt in ("say", "some"):
    sources.add_prompt_task(prompt, DatasetSpec("pets"), prompt, prompts_root=prompts, local_dir=local_dir,
                            postprocess_fn=stripped, metric_fns=[edit_distance])
mesh = sharding.make_mesh(cfg.Mesh(**{axis: -1, **({} if axis == "data" else {"data": 1})}))
settings = cfg.Evaluate(method="generate", **own.LENGTHS)
evaluator = TextEvaluator(models.build(own.CONFIG), mesh, cfg.Data(modules=(), vocabulary=vocabulary), settings,
                          "say,some")
found = evaluator(jax.device_get(own.params()))
print("found", json.dumps([{k: v for k, v in task.items() if k != "seconds"} for task in found.tasks.values()]))
"""


def run_workers(pets, prompts, count, axis):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment["PYTHONPATH"] = os.path.dirname(__file__)
    devices = str(2 // count)
    places = [str(pets / "sp.model"), str(prompts), str(pets / "data"), axis]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), str(count), port, devices, *places],
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
    return [next(x for x in out.splitlines() if x.startswith("found")) for out, _ in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "model"])
def test_two_processes_find_what_one_does(pets, tmp_path, axis):
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "templates.yaml").write_text(PROMPTS.replace("DATASET", "pets"))
    (expected,) = run_workers(pets, tmp_path, 1, axis)
    assert run_workers(pets, tmp_path, 2, axis) == [expected] * 2
