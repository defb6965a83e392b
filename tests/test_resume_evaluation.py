"""An evaluation that is stopped goes on where it was, to the same results; splits to fall back on."""

import json
import shutil

import jax
import numpy as np
import pytest
from pets import make_params

from scripts import evaluate as script
from t0jax import config as cfg
from t0jax import convert, models, results
from t0jax.data import rows

PROMPTS = ("fixed", "ragged", "partly")


def read(folder):
    """Everything an evaluation wrote, without the time it took."""
    content = json.loads((folder / "results.json").read_text())
    for entry in content["tasks"].values():
        del entry["seconds"]
    scores = {path.name: path.read_text() for path in (folder / "scores").iterdir()}
    return content, scores, (folder / "rows.json").read_text()


class Killed(Exception):
    """Stands for the end of the process."""


def killed_after(lines):
    def progress(line):
        nonlocal lines
        lines -= 1
        if lines < 0:
            raise Killed

    return progress


@pytest.mark.parametrize("lines", [1, 2])
def test_a_stopped_evaluation_goes_on_to_the_same_results(pets_evaluator, tmp_path, lines):
    evaluator, params = pets_evaluator(*PROMPTS, batch_size=3)
    named = {"model": "m", **evaluator.describe()}
    whole = evaluator(params, results.ResultsFolder(tmp_path / "whole", named))
    folder = results.ResultsFolder(tmp_path / "cut", named)
    with pytest.raises(Killed):
        evaluator(params, folder, killed_after(lines - 1))
    there = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert (len(there["tasks"]), there["complete"]) == (lines, False)
    said = []
    again = evaluator(params, results.ResultsFolder(tmp_path / "cut", named), said.append)
    assert said[0] == f"going on: {lines} of 3 tasks are in the folder"
    assert len(said) == 1 + 3 - lines
    assert read(tmp_path / "cut") == read(tmp_path / "whole")
    assert list(again.tasks) == list(whole.tasks)


def swap_labels(pets):
    """An edit that leaves the file's size as it is."""
    path = pets / "data" / "pets" / "default" / "validation.jsonl"
    text = path.read_text()
    flipped = text.replace('"label": 0', '"label": _').replace('"label": 1', '"label": 0')
    path.write_text(flipped.replace('"label": _', '"label": 1'))


def reword(pets):
    path = pets / "prompts" / "pets" / "templates.yaml"
    path.write_text(path.read_text().replace("Which animal says", "What animal says"))


@pytest.mark.parametrize("edit", [swap_labels, reword])
def test_nothing_is_taken_from_other_prompts_or_data(
    pets_evaluator, pets, tmp_path, monkeypatch, edit
):
    other = tmp_path / "pets"
    shutil.copytree(pets, other)
    monkeypatch.setenv("T0JAX_DATA_DIR", str(other / "data"))
    monkeypatch.setenv("T0JAX_PROMPTS_DIR", str(other / "prompts"))
    evaluator, params = pets_evaluator("fixed")
    named = {"model": "m", **evaluator.describe()}
    before = evaluator(params, results.ResultsFolder(tmp_path / "out", named))
    edit(other)
    evaluator, _ = pets_evaluator("fixed")
    said = []
    after = evaluator(params, results.ResultsFolder(tmp_path / "out", named), said.append)
    assert [line.split(":")[0] for line in said] == ["1/1 pets_fixed_score_eval"]
    (one,), (two,) = before.tasks.values(), after.tasks.values()
    assert one["identity"] != two["identity"]


def test_what_is_to_be_replaced_stays_until_there_is_something_new(pets_evaluator, tmp_path):
    evaluator, params = pets_evaluator("fixed")
    named = {"model": "m", **evaluator.describe()}
    evaluator(params, results.ResultsFolder(tmp_path, named))
    (tmp_path / "report.html").write_text("of the old results")
    said = []
    folder = results.ResultsFolder(tmp_path, {**named, "model": "n"}, overwrite=True)
    assert (tmp_path / "results.json").exists()
    evaluator(params, folder, said.append)
    assert [line.split(":")[0] for line in said] == ["1/1 pets_fixed_score_eval"]
    assert not (tmp_path / "report.html").exists()
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["model"] == "n"


def test_the_rows_that_most_prompts_get_wrong_are_written_with_their_text(pets_evaluator, tmp_path):
    evaluator, params = pets_evaluator(*PROMPTS)
    folder = results.ResultsFolder(tmp_path, {"model": "m", **evaluator.describe()})
    evaluator(params, folder)
    rows = json.loads((tmp_path / "rows.json").read_text())["pets"]
    wrong = dict.fromkeys(range(31), 0)
    for name in PROMPTS:
        for row, right in folder.read_outcomes(f"pets_{name}_score_eval"):
            wrong[row] += not right
    hardest = sorted(wrong, key=lambda row: (-wrong[row], row))[: len(rows)]
    assert set(map(int, rows)) == {row for row in hardest if wrong[row]}
    task = {task.name: task for task in evaluator.tasks}
    for row, shown in rows.items():
        rendered = task[shown["task"]].rows[int(row)]
        assert (shown["inputs"], shown["choices"]) == (rendered.inputs, list(rendered.choices))


def test_fingerprints_tell_parameters_apart_and_not_their_places():
    params = make_params(
        cfg.Model(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    told = models.fingerprint(params)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    sharded = jax.tree.map(
        lambda x: jax.device_put(x, spread) if x.shape[0] % 8 == 0 else x, params
    )
    assert models.fingerprint(sharded) == told
    leaves, tree = jax.tree.flatten(params)
    first, rest = leaves[0], leaves[1:]
    changed = [first[::-1], np.nextafter(first, np.inf), -first, first * 2, first * 0.125]
    others = {models.fingerprint(jax.tree.unflatten(tree, [x, *rest])) for x in changed}
    assert len(others | {told}) == 6


@pytest.mark.parametrize("split", ["nowhere,validation", "validation,test"])
def test_the_first_split_that_is_there_is_scored(pets_evaluator, split):
    evaluator, _ = pets_evaluator("fixed", split=split)
    (task,) = evaluator.tasks
    assert (task.rows.split, len(task.rows)) == ("validation", 31)
    assert task.dataset == ("pets" if split.startswith("validation") else "pets/validation")


def test_no_split_at_all_is_told(pets_evaluator):
    with pytest.raises(results.EvaluationError, match="no split 'neither'"):
        pets_evaluator("fixed", split="nowhere,neither")


def test_a_split_that_cannot_be_read_now_is_not_made_up_for_by_another(pets_evaluator, monkeypatch):
    found = rows.open_rows

    def offline(spec, split, local_dir=""):
        if split == "validation":
            raise rows.DataUnavailable(spec.name, "the Hub answered 503")
        return found(spec, split, local_dir)

    monkeypatch.setattr(rows, "open_rows", offline)
    with pytest.raises(results.EvaluationError, match="answered 503"):
        pets_evaluator("fixed", split="validation,test")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_writes_a_report_goes_on_and_compares(pets_evaluator, pets, tmp_path, capsys):
    evaluator, params = pets_evaluator(*PROMPTS)
    model = tmp_path / "model"
    network = evaluator.scorer.network
    convert.save_params(params, network.config, model, tokenizer_path=pets / "sp.model")
    command = ["--model", str(model), "--mixture", evaluator.mixture]
    first, second = str(tmp_path / "one"), str(tmp_path / "two")
    assert script.main([*command, "--output", first]) == 0
    assert "pets" in (tmp_path / "one" / "report.html").read_text()
    assert script.main([*command, "--output", first]) == 0
    said = capsys.readouterr()
    assert "going on: 3 of 3 tasks are in the folder" in said.out + said.err
    assert script.main([*command, "--output", second, "--evaluate.length_normalize", "true"]) == 0
    capsys.readouterr()
    out = tmp_path / "both.html"
    names = ["--names", "sum", "mean"]
    assert script.main(["--compare", first, second, *names, "--output", str(out)]) == 0
    table = capsys.readouterr().out
    assert "sum" in table
    assert "mean" in table
    assert "pets" in out.read_text()
    with pytest.raises(cfg.ConfigError, match="2 folders and 1 --names"):
        script.main(["--compare", first, second, "--names", "sum"])


def test_other_weights_are_not_taken_for_the_ones_scored_before(pets_evaluator, pets, tmp_path):
    evaluator, params = pets_evaluator("fixed")
    model, out = tmp_path / "model", str(tmp_path / "out")
    config = evaluator.scorer.network.config
    command = ["--model", str(model), "--mixture", evaluator.mixture, "--output", out]
    convert.save_params(params, config, model, tokenizer_path=pets / "sp.model")
    script.main(command)
    convert.save_params(make_params(config, 5), config, model, tokenizer_path=pets / "sp.model")
    with pytest.raises(results.EvaluationError, match=r"weights: '\w{16}' there.*--overwrite"):
        script.main(command)
