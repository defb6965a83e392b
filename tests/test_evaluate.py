"""Rank evaluation of prompts: metrics against scikit-learn, one process against two."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from pets import TINY, make_params

from scripts import evaluate as script
from t0jax import checkpoint, evaluate, results
from t0jax import config as cfg
from t0jax.data import vocabulary
from t0jax.evaluate import exchange

EOS = 1


# ---------------------------------------------------------------------------------------------------------------------
# Metrics and results


def scored_row(scores, correct, row=0):
    return results.ScoredRow(row, np.array(scores, np.float32), correct)


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    gold, predicted = rng.integers(0, 2 + seed, 50), rng.integers(0, 3, 50)
    expected = sklearn.f1_score(gold, predicted, average="macro")
    assert results.macro_f1(gold, predicted) == pytest.approx(expected, abs=1e-12)


def test_any_of_several_right_choices_counts_and_the_first_of_equal_scores_wins():
    rows = [
        scored_row([-1, -2, -3], (0, 2)),
        scored_row([-3, -2, -1], (0, 2)),
        scored_row([-1, -1], (1,)),
    ]
    assert [row.prediction for row in rows] == [0, 2, 0]
    assert results.accuracy(rows) == pytest.approx(2 / 3)
    assert [row.gold for row in rows] == [0, 2, 1]


def test_chance_is_the_mean_share_of_right_choices():
    rows = [scored_row([0, 0, 0, 0], (1,)), scored_row([0, 0], (0,)), scored_row([0, 0], (0, 1))]
    assert results.chance(rows) == pytest.approx((0.25 + 0.5 + 1) / 3)


def task_row(accuracy, dataset="d", n=10, coverage=1.0):
    rates = {"accuracy": accuracy, "macro_f1": accuracy, "chance": 0.5}
    return {
        **rates,
        "n": n,
        "dataset": dataset,
        "prompt": "p",
        "coverage": coverage,
        "seconds": 1.0,
    }


def test_prompts_are_aggregated_by_data_set_and_over_all():
    values = [0.1, 0.4, 0.5, 0.9]
    tasks = {f"t{i}": task_row(value) for i, value in enumerate(values)} | {"u": task_row(1.0, "e")}
    found = results.Results(tasks)
    row = found.datasets()["d"]
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    assert (row["prompts"], row["n"]) == (4, 10)
    assert row["median"] == pytest.approx(middle)
    assert row["iqr"] == pytest.approx(high - low)
    assert row["std"] == pytest.approx(np.std(values))
    assert found.overall()["median"] == pytest.approx(0.5)
    assert found.mean_accuracy == pytest.approx(np.mean([*values, 1.0]))


def test_the_table_names_what_was_partly_or_not_scored():
    missing = {"a": "rte: not here", "b": "rte: not here"}
    text = results.Results({"t": task_row(0.5, coverage=0.25)}, missing).table()
    assert "t applies to 25.0% of the rows" in text
    assert "not scored: rte (2): not here" in text


def test_results_of_other_settings_are_not_overwritten(tmp_path):
    results.ResultsFolder(tmp_path, {"model": "a"}).write_results(results.Results({}), True)
    results.ResultsFolder(tmp_path, {"model": "a"}).write_scores("t", [scored_row([0, 1], (1,))])
    with pytest.raises(results.EvaluationError, match=r"model: 'a' there, 'b' now.*--overwrite"):
        results.ResultsFolder(tmp_path, {"model": "b"})
    folder = results.ResultsFolder(tmp_path, {"model": "b"}, overwrite=True)
    assert (tmp_path / "scores" / "t.jsonl").exists()
    folder.write_scores("u", [scored_row([0, 1], (1,))])
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["u.jsonl"]


def test_scores_are_written_without_loss(tmp_path):
    rows = [scored_row(np.float32([-1 / 3, -7.1e-5]), (1,), row=4)]
    results.ResultsFolder(tmp_path, {}).write_scores("t", rows)
    line = json.loads((tmp_path / "scores" / "t.jsonl").read_text())
    assert np.float32(line["scores"]).tobytes() == rows[0].scores.tobytes()
    assert (line["row"], line["gold"], line["prediction"]) == (4, [1], 1)


# ---------------------------------------------------------------------------------------------------------------------
# Prompted tasks


def test_an_evaluation_counts_every_row_once_and_writes_it_down(pets_evaluator, tmp_path):
    evaluator, params = pets_evaluator("fixed", "ragged", "partly")
    folder = results.ResultsFolder(tmp_path, {"model": "m", **evaluator.describe()})
    found = evaluator(params, folder)
    assert {name: task["n"] for name, task in found.tasks.items()} == {
        "pets_fixed_score_eval": 31,
        "pets_ragged_score_eval": 31,
        "pets_partly_score_eval": 16,
    }
    assert found.tasks["pets_partly_score_eval"]["coverage"] == pytest.approx(16 / 31)
    assert "partly: pets_partly_score_eval" in found.table()
    for name, task in found.tasks.items():
        lines = (tmp_path / "scores" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["row"] for row in rows] == sorted({row["row"] for row in rows})
        hits = [row["prediction"] in row["gold"] for row in rows]
        assert task["accuracy"] == pytest.approx(np.mean(hits))
        assert task["chance"] == pytest.approx(np.mean([1 / len(row["scores"]) for row in rows]))
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["complete"]
    assert written["tasks"] == json.loads(json.dumps(found.tasks))
    assert evaluator(params).tasks.keys() == found.tasks.keys()


def test_examples_are_tokenised_as_t0_does(pets_evaluator, pets):
    evaluator, _ = pets_evaluator("fixed", max_input_length=6)
    pieces = vocabulary.Pieces(str(pets / "sp.model"))
    first = next(evaluator._examples([0]))
    rendered = evaluator.tasks[0].rows[0]
    assert list(first.pairs[0][0]) == pieces.encode(rendered.inputs)[:6]
    assert [list(t) for _, t in first.pairs] == [[*pieces.encode(c), EOS] for c in ("cat", "dog")]
    with_end, _ = pets_evaluator("fixed", input_eos=True, max_input_length=6)
    assert list(next(with_end._examples([0])).pairs[0][0]) == [
        *pieces.encode(rendered.inputs)[:5],
        EOS,
    ]


def test_max_examples_takes_rows_from_everywhere_and_always_the_same(pets_evaluator, tmp_path):
    def rows(limit):
        evaluator, params = pets_evaluator("fixed", max_examples=limit)
        evaluator(params, results.ResultsFolder(tmp_path / str(limit), {}))
        lines = (tmp_path / str(limit) / "scores" / "pets_fixed_score_eval.jsonl").read_text()
        return [json.loads(line)["row"] for line in lines.splitlines()]

    nine = rows(9)
    assert len(set(nine)) == 9
    assert max(nine) > 20  # of 31: data may be sorted by label
    assert nine == sorted(nine) == rows(9)
    assert rows(31) == rows(0) == list(range(31))


def test_a_prompt_without_choices_is_refused_by_name(pets_evaluator):
    with pytest.raises(results.EvaluationError, match=r"pets_open_score_eval.*'open'.*choices"):
        pets_evaluator("open")


def test_hidden_labels_are_refused_before_anything_is_scored(pets_evaluator):
    with pytest.raises(results.EvaluationError, match=r"'pets_fixed_score_eval', row 5.*hidden"):
        pets_evaluator("fixed", split="test")


def test_an_answer_outside_the_choices_is_refused(pets_evaluator):
    with pytest.raises(results.EvaluationError, match=r"'(cat|dog)' is not among .*cow.*hen"):
        pets_evaluator("outside")


def test_missing_data_sets_are_named_or_left_out_on_request(pets_evaluator):
    with pytest.raises(results.EvaluationError, match=r"(?s)ghosts.*--data.available_only"):
        pets_evaluator("fixed", missing=True)
    evaluator, params = pets_evaluator("fixed", missing=True, available_only=True)
    found = evaluator(params)
    assert list(found.missing) == ["ghosts_score_eval"]
    assert "not scored: ghosts (1): " in found.table()


def test_label_words_replace_the_answers_of_every_prompt(pets_evaluator, capsys):
    evaluator, params = pets_evaluator("fixed", "ragged", label_words={"cat": "tabby"})
    assert "none of the label words" not in capsys.readouterr().out
    fixed = next(task for task in evaluator.tasks if "fixed" in task.name)
    assert fixed.rows[0].choices[0] == "tabby"
    assert {task.dataset for task in evaluator.tasks} == {"pets, other words"}
    assert evaluator.describe()["label_words"] == {"cat": "tabby"}
    assert all(task["n"] == 31 for task in evaluator(params).tasks.values())
    pets_evaluator("fixed", label_words={"Yes": "agree"})
    assert "in the answers of 1 of 1 tasks" in capsys.readouterr().out


def test_label_words_that_make_two_answers_one_are_refused_at_once(pets_evaluator):
    with pytest.raises(results.EvaluationError, match="make the choices"):
        pets_evaluator("fixed", label_words={"cat": "dog"})


@pytest.mark.parametrize("view", ["channel", "flipped"])
def test_other_views_score_the_same_rows(pets_evaluator, view):
    evaluator, params = pets_evaluator("fixed", "ragged", view=view)
    found = evaluator(params)
    assert [task["n"] for task in found.tasks.values()] == [31, 31]
    assert evaluator.describe()["view"] == view
    assert evaluator.describe()["input_eos"] == (view == "flipped")


def test_prompts_without_words_are_told_and_not_scored(pets_evaluator):
    evaluator, params = pets_evaluator("fixed", "partly", view="flipped")
    found = evaluator(params)
    assert list(found.tasks) == ["pets_fixed_score_eval"]
    assert "no words of its own" in found.missing["pets_partly_score_eval"]
    with pytest.raises(results.EvaluationError, match="choose --view channel"):
        pets_evaluator("partly", view="flipped")


def test_rows_travel_between_processes_unchanged():
    """The exchange of one process with itself."""
    rows = [
        results.ScoredRow(
            3, np.array([0.1, -2.5, 1e-30], np.float32), (1,), (1 / 3, 1.0, 0.1), True
        ),
        results.ScoredRow(0, np.array([-1.0, -2.0], np.float32), (0, 1)),
    ]
    for a, b in zip(exchange.exchange_rows(rows), rows, strict=True):
        assert (a.row, a.correct, a.grades, a.cut) == (b.row, b.correct, b.grades, b.cut)
        assert a.scores.tobytes() == b.scores.tobytes()


def test_a_run_is_scored_as_it_was_trained_but_not_where(tmp_path):
    trained = cfg.Config(
        model=TINY,
        data=cfg.Data(
            mixture="m", eval_mixture="e", view="channel", local_dir="/theirs", available_only=True
        ),
        evaluate=cfg.Evaluate(max_examples=5, max_input_length=77),
    )
    checkpoints = checkpoint.Checkpoints(tmp_path)
    metadata = {"config": cfg.to_dict(trained), "step": 0, "position": {}}
    checkpoints.save(0, {"params": make_params(TINY)}, metadata, wait=True)
    checkpoints.close()
    found = script.as_trained(tmp_path)
    assert (found.data.view, found.data.eval_mixture) == ("channel", "e")
    assert found.evaluate.max_input_length == 77
    assert (found.data.local_dir, found.data.available_only) == ("", False)
    assert found.evaluate.max_examples == 0


def test_ways_out_of_missing_tasks_hold_in_scoring_and_in_training():
    ways = ["--data.eval_split", "test,validation", "--evaluate.head", "glue/mnli"]
    trained, _ = cfg.parse(ways, "")
    run = cfg.Config(data=cfg.Data(eval_split="test"))
    scored = script.merge(*cfg.parse(ways, "", run, of_model=True, **script.OPTIONS))
    for found in (trained, scored):
        assert (found.data.eval_split, found.evaluate.head) == ("test,validation", "glue/mnli")


def test_an_unknown_mixture_is_refused():
    with pytest.raises(results.EvaluationError, match="no_such_mixture"):
        evaluate.find_tasks("no_such_mixture", cfg.Data(modules=()), "validation")


def test_scoring_needs_no_tensorflow():
    code = (
        "import sys, t0jax.evaluate, t0jax.scoring\n"
        "assert not {'tensorflow', 'seqio', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


# ---------------------------------------------------------------------------------------------------------------------
# Several processes

WORKER = """
import os, sys, json
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import jax
index, count, port, devices, axis = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
jax.config.update("jax_num_cpu_devices", devices)
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
from pathlib import Path
from t0jax import config as cfg, evaluate, models, results, sharding
from t0jax.data import sources
from t0jax.data.rows import DatasetSpec
names = [sources.add_rank_task(f"pets_{p}", DatasetSpec("pets"), p).name for p in ("fixed", "partly", "ragged")]
sources.add_mixture("mix", dict.fromkeys(names, 1.0))
mesh = sharding.make_mesh(cfg.Mesh(**{axis: -1, **({} if axis == "data" else {"data": 1})}))
network = models.build(cfg.Model(vocab_size=160, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
data = cfg.Data(modules=(), vocabulary=sys.argv[6])
evaluator = evaluate.Evaluator(network, mesh, data, cfg.Evaluate(batch_size=3), "mix")
params = network.init(jax.random.key(0))
folder = results.ResultsFolder(Path(sys.argv[7]), {"model": "m"})
found = evaluator(jax.device_get(params), folder)
print("accuracy", found.mean_accuracy, [t["n"] for t in found.tasks.values()])
"""


def communicate(pets, out, count, devices, axis="data", last=None):
    """[(exit code, output, errors)] of `count` processes; the last one reads the data of `last` where given."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {
        **{k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
        "T0JAX_PROMPTS_DIR": str(pets / "prompts"),
        "T0JAX_CACHE_DIR": str(pets / "cache"),
    }
    arguments = [str(count), port, str(devices), axis, str(pets / "sp.model"), str(out)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), *arguments],
            env=environment
            | {"T0JAX_DATA_DIR": str((last if last and index == count - 1 else pets) / "data")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(w.returncode, *texts) for w, texts in zip(workers, outputs, strict=True)]


def run_workers(*arguments):
    out, outputs = arguments[1], communicate(*arguments)
    for code, _, errors in outputs:
        assert code == 0, errors[-3000:]
    assert len({next(x for x in o.splitlines() if "accuracy" in x) for _, o, _ in outputs}) == 1
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (out / "scores").iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "fsdp", "model"])
def test_two_processes_score_every_row_once(pets, tmp_path, axis):
    """Also where both hold the same rows, cut along `model`."""
    expected = run_workers(pets, tmp_path / "one", 1, 2, axis)
    actual = run_workers(pets, tmp_path / "two", 2, 1, axis)
    assert actual.keys() == expected.keys()
    for name, rows in expected.items():
        assert [row["row"] for row in actual[name]] == [row["row"] for row in rows]
        assert [row["gold"] for row in actual[name]] == [row["gold"] for row in rows]
        for a, b in zip(actual[name], rows, strict=True):
            np.testing.assert_allclose(a["scores"], b["scores"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_with_different_data_stop_and_say_so(pets, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pets / "data", other / "data")
    path = other / "data" / "pets" / "default" / "validation.jsonl"
    path.write_text(path.read_text() + "\n")
    for code, _, errors in communicate(pets, tmp_path / "out", 2, 1, "data", other):
        assert code != 0
        assert "not the same on all processes: process 1 differs from process 0" in errors


@pytest.mark.slow
def test_two_processes_go_on_where_they_were_stopped(pets, tmp_path):
    expected = run_workers(pets, tmp_path / "two", 2, 1)
    content = json.loads((tmp_path / "two" / "results.json").read_text())
    del content["tasks"]["pets_ragged_score_eval"]
    (tmp_path / "two" / "results.json").write_text(json.dumps(content))
    assert run_workers(pets, tmp_path / "two", 2, 1) == expected
