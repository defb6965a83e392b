"""The README's walk from a CSV to a model in PyTorch: its files and commands, taken from its text, as they stand."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts import evaluate, generate, prompts, train
from t0jax import config
from t0jax.data.loader import make_loader, mixture_texts
from t0jax.data.registry import import_tasks
from t0jax.data.sources import members
from t0jax.data.vocabulary import train_sentencepiece

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    _, _, text = README.read_text(encoding="utf-8").partition(f"\n{title}\n")
    assert text, f"the README has no section {title!r}"
    return re.split(r"\n##+ ", text)[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def write_files(text: str, folder: Path) -> list[Path]:
    """The files that blocks name in their first line."""
    written = []
    for block in blocks(text, "(?:python|yaml)"):
        path = folder / re.match(r"# (\S+)\n", block)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block, encoding="utf-8")
        written.append(path)
    return written


def commands(text: str) -> list[list[str]]:
    """The words of each command, comments left out."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def of_script(text: str, name: str) -> list[list[str]]:
    """The arguments of every call of a script."""
    start = ["python", "-m", f"scripts.{name}"]
    return [words[3:] for words in commands(text) if words[:3] == start]


@pytest.fixture(scope="module")
def walk():
    return section("### From a CSV to a model in PyTorch")


@pytest.fixture
def project(walk, tmp_path, monkeypatch):
    """The walk's files in an empty folder, its CSV files made."""
    files = write_files(walk, tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for variable in ("T0JAX_VOCABULARY", "T0JAX_PROMPTS_DIR", "T0JAX_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(tmp_path / "cache"))
    runpy.run_path("make_reviews.py")
    return files


def test_files_and_commands(project, walk, capsys):
    names = [path.name for path in project]
    assert names == ["make_reviews.py", "templates.yaml", "my_tasks.py", "ask.py"]
    assert max(len(path.read_text().splitlines()) for path in project) < 30
    for arguments in of_script(walk, "prompts"):
        assert prompts.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2 prompts: 0 errors, 0 warnings, 0 notes" in shown
    assert re.search(r"--- target\n(good|bad)\n--- choices\nbad\ngood", shown)
    assert re.search(r"my_reviews +2 +2 +100.00 +500 ", shown)


def test_data_are_read_as_the_training_command_says(project, walk, tmp_path):
    (arguments,) = of_script(walk, "train")
    settings, _ = config.parse(arguments, "")
    data = settings.data
    pieces = train_sentencepiece(mixture_texts(data), tmp_path / data.vocabulary, 80)
    assert pieces == tmp_path / "runs" / "mine.model"
    batch = next(iter(make_loader(data)))
    assert batch["encoder_input_tokens"].shape == (data.batch_size, data.input_length)
    assert np.count_nonzero(batch["decoder_loss_weights"]) > data.batch_size


def test_prompts_for_a_data_set_that_is_there(tmp_path, monkeypatch, capsys):
    text = section("### Prompts of your own for a data set that is there")
    write_files(text, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert prompts.main(["--prompts-dir", "my_prompts", "lint", "--strict"]) == 0
    assert prompts.main(["mixture", "t0_and_mine", "--module", "more_prompts"]) == 0
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert shown["cnn_dailymail/3.0.0"][:2] == ["9", "2,584,017"]
    assert shown["rotten_tomatoes"][:2] == ["11", "93,830"]


def test_commands_to_look_at_prompts_exist():
    parser = prompts._parser()
    found = of_script(section("### Looking at prompts and mixtures"), "prompts")
    assert {parser.parse_args(words).command for words in found} == {
        "list",
        "show",
        "lint",
        "mixture",
    }


@pytest.mark.slow
def test_from_a_csv_to_torch(project, walk, tmp_path):
    """Every command of the walk, in order, but for what installs torch."""
    pytest.importorskip("torch")
    lines = [line for line in "".join(blocks(walk, "bash")).splitlines() if "-m pip " not in line]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        env=environment, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "good"
    results = json.loads((tmp_path / "runs" / "mine" / "scores" / "results.json").read_text())
    assert min(task["accuracy"] for task in results["tasks"].values()) > 0.9


# ---------------------------------------------------------------------------------------------------------------------
# Every other command: its flags and names exist


def calls(name):
    """The arguments of every call of a script in the whole README, but for those with names left to the reader."""
    found = of_script(README.read_text(encoding="utf-8"), name)
    return [words for words in found if not any("my_" in word or "$" in word for word in words)]


def assert_registered(modules, names):
    import_tasks(modules)
    of_local_files = {"bigbench_movie_recommendation_score_eval"}
    for name in {*names.split(",")} - {"", *of_local_files}:
        assert members(name), name


@pytest.mark.parametrize("words", calls("train"), ids=" ".join)
def test_training_commands(words, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if "--help" in words:
        return
    settings, _ = config.parse(words, "", **train.OPTIONS)
    assert_registered(
        settings.data.modules, f"{settings.data.mixture},{settings.data.eval_mixture}"
    )


@pytest.mark.parametrize("words", calls("evaluate"), ids=" ".join)
def test_evaluation_commands(words):
    if "--compare" in words:
        return
    _, rest = config.take_model(words)
    settings = evaluate.merge(*config.parse(rest, "", **evaluate.OPTIONS))
    assert_registered((*settings.data.modules, "tasks.flipped"), settings.data.eval_mixture)


@pytest.mark.parametrize("words", calls("generate"), ids=" ".join)
def test_generation_commands(words):
    _, rest = config.take_model(words)
    config.parse(rest, "", **generate.OPTIONS)


def test_the_records_declare_what_the_text_says(monkeypatch):
    """The block of the page on structured tasks, with the registry looked over its shoulder."""
    from t0jax.data import sources
    from t0jax.data.structured import source

    declared, mixtures = [], {}
    monkeypatch.setattr(source, "add_task", declared.append)
    monkeypatch.setattr(sources, "add_mixture", mixtures.__setitem__)
    (block,) = [b for b in blocks(section("### Declare a task"), "python") if "my_records" in b]
    exec(compile(block, "my_records.py", "exec"), {})
    assert [record.kind for record in declared] == ["classification", "multiple_choice"]
    assert mixtures["mine"].keys() == {record.name for record in declared}
    row = {
        "dialogue": ["A: It rains."],
        "question": "Sun?",
        "choice": ["no", "yes"],
        "answer": "no",
    }
    example = declared[1].example(row)
    assert example.texts[example.label] == ("A: It rains. Sun?", "no")


def test_the_records_of_other_kinds_are_tasks_of_a_mixture():
    seqio = pytest.importorskip("seqio")
    before = set(seqio.TaskRegistry.names())
    (block,) = [b for b in blocks(section("### Declare a task"), "python") if "more_records" in b]
    try:
        exec(compile(block, "more_records.py", "exec"), {})
        tasks = seqio.MixtureRegistry.get("reviews").tasks
        assert {task.source.record.kind for task in tasks} == {
            "regression", "multilabel", "classification", "token_classification"
        }  # fmt: skip
    finally:
        seqio.MixtureRegistry.remove("reviews")
        for name in set(seqio.TaskRegistry.names()) - before:
            seqio.TaskRegistry.remove(name)


def test_settings_of_the_tasksource_pages_are_known():
    text = README.read_text(encoding="utf-8")
    page = text[text.index("## tasksource") : text.index("\n## Convert\n")]
    found = [
        words[3:] for words in commands(page) if words[:3] == ["python", "-m", "scripts.train"]
    ]
    assert len(found) == 2
    for words in found:
        kept = [word for word in words if word != "..."]
        assert config.parse(kept, "")[0].evaluate.method == "classify"
