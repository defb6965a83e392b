"""`python -m scripts.prompts`: fetching without running foreign code, listing, showing, lint, shares of a mixture."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from scripts import prompts
from t0jax.config import UserError
from t0jax.data import release
from t0jax.data.templates import RELEASE, TemplateError, prompts_dir

FILE = "dataset: {0}\ntemplates:\n  id-{0}: !Template\n    name: ask\n    jinja: '{{{{ q }}}} ||| {{{{ a }}}}'\n" \
    "    answer_choices: yes ||| no\n    metadata: !TemplateMetadata\n      original_task: true\n" \
    "      choices_in_prompt: true\n      metrics: [Accuracy]\n"  # fmt: skip


def archive_of(path, members):
    """A source package of these (name or TarInfo, content)."""
    with tarfile.open(path, "w:gz") as files:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            files.addfile(info, io.BytesIO(content.encode()))
    return path


def release_members():
    inside = f"{RELEASE}/promptsource/templates"
    return [
        (f"{RELEASE}/LICENSE", "Apache"),
        (f"{RELEASE}/PKG-INFO", "Metadata-Version: 2.1\nName: promptsource\nVersion: 0.2.3\n"),
        (f"{RELEASE}/promptsource/app.py", "print()"),
        (f"{inside}/mine/templates.yaml", FILE.format("mine")),
        (f"{inside}/other/sub/templates.yaml", FILE.format("other")),
    ]


@pytest.fixture
def package_index(tmp_path, monkeypatch):
    """A local package index that holds a release whose setup.py would leave a trace."""
    trace = tmp_path / "setup-py-was-run"
    script = f"open({str(trace)!r}, 'w')\nfrom setuptools import setup\nsetup(name='promptsource', version='0.2.3')\n"
    (tmp_path / "index").mkdir()
    path = archive_of(
        tmp_path / "index" / f"{RELEASE}.tar.gz",
        [*release_members(), (f"{RELEASE}/setup.py", script)],
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("T0JAX_PROMPTS_DIR", raising=False)
    monkeypatch.setattr(release, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return trace


def test_fetch_unpacks_templates_and_licence_and_runs_nothing(package_index, tmp_path, monkeypatch):
    folder = prompts.fetch()
    assert folder == prompts_dir() == tmp_path / "cache" / RELEASE / "templates"
    found = sorted(
        str(p.relative_to(folder.parent)) for p in folder.parent.rglob("*") if p.is_file()
    )
    assert found == [
        "LICENSE",
        "templates/mine/templates.yaml",
        "templates/other/sub/templates.yaml",
    ]
    assert not package_index.exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [RELEASE]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert prompts.fetch() == folder  # is there: pip is not asked again


def test_fetch_refuses_another_archive(package_index, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "SHA256", "0" * 64)
    with pytest.raises(prompts.FetchError, match=r"could not download(.|\n)*T0JAX_PROMPTS_DIR"):
        prompts.fetch()
    assert not package_index.exists()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for place, name in (("mine", "mine"), ("me/own", "me/own")):
        (tmp_path / "templates" / place).mkdir(parents=True)
        (tmp_path / "templates" / place / "templates.yaml").write_text(FILE.format(name))
    data = tmp_path / "data" / "mine" / "default"
    data.mkdir(parents=True)
    rows = [{"q": "Is it?", "a": "yes"}, {"q": "", "a": "no"}, {"q": "So?", "a": ""}]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("T0JAX_PROMPTS_DIR", str(tmp_path / "templates"))
    monkeypatch.setenv("T0JAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "templates"


def test_list_names_prompts_with_their_flags(folder, capsys):
    assert prompts.main(["list"]) == 0
    everything = capsys.readouterr().out
    assert prompts.main(["list", "--dataset", "mine"]) == 0
    one = capsys.readouterr().out
    flags = "  'ask'  original task, choices, choices in prompt, Accuracy"
    assert one.splitlines() == ["mine: 1 prompts", flags]
    assert everything.splitlines() == ["me/own: 1 prompts", flags, "mine: 1 prompts", flags]
    with pytest.raises(TemplateError, match="did you mean 'mine'"):
        prompts.main(["list", "--dataset", "mime"])


def test_show_renders_one_row(folder, capsys):
    assert prompts.main(["show", "mine", "ask", "--row", "0", "--split", "train"]) == 0
    shown = capsys.readouterr().out
    for text in ("--- input\nIs it?", "--- target\nyes", "--- choices\nyes\nno"):
        assert text in shown
    prompts.main(["show", "mine", "ask", "--row", "1"])
    assert "does not apply" in capsys.readouterr().out
    prompts.main(["show", "mine", "ask", "--row", "2"])
    assert "(none: the prompt renders an empty one)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "why"),
    [(-1, "the label is hidden"), (2, "label is 2, and answer_choices[label] wants 0 to 1")],
)
def test_show_says_why_there_is_no_target(folder, capsys, label, why):
    path = folder / "mine" / "templates.yaml"
    path.write_text(path.read_text().replace("{{ a }}", "{{ answer_choices[label] }}"))
    row = folder.parent / "data" / "mine" / "default" / "train.jsonl"
    row.write_text(json.dumps({"q": "Is it?", "label": label}) + "\n")
    prompts.main(["show", "mine", "ask"])
    assert f"--- target\n(none: {why})" in capsys.readouterr().out


def test_show_puts_every_choice_through_a_view(folder, capsys):
    prompts.main(["show", "mine", "ask", "--view", "channel"])
    channel = capsys.readouterr().out
    assert "--- choice 'yes', right\ninputs:  'yes'\ntargets: 'Is it?'" in channel
    assert "--- choice 'no'\ninputs:  'no'" in channel
    prompts.main(["show", "mine", "ask", "--view", "flipped"])
    assert "inputs:  'input: Is it?<extra_id_0>\\n output: no'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mine", "asks"], "did you mean 'ask'"),
        (["mime", "ask"], "did you mean 'mine'"),
        (["mine", "ask", "--row", "9"], "row 9 of 3"),
        (["mine", "ask", "--split", "test"], "no split 'test'"),
    ],
)
def test_show_says_what_is_not_there(folder, argv, message):
    with pytest.raises(UserError, match=message):
        prompts.main(["show", *argv])


def lint(capsys, *argv):
    """The exit status and the lines, without the seconds."""
    status = prompts.main(["lint", *argv])
    return status, [line.partition("; ")[0] for line in capsys.readouterr().out.splitlines()]


def test_lint_ends_with_a_status_for_ci(folder, capsys):
    assert lint(capsys) == (0, ["2 files, 2 prompts: 0 errors, 0 warnings, 0 notes"])
    (folder / "also").mkdir()
    (folder / "also" / "templates.yaml").write_text(FILE.format("also").replace("[Accuracy]", "[]"))
    assert lint(capsys, "--strict")[0] == 1
    status, lines = lint(capsys, "also", "mine")
    assert (status, lines[1]) == (0, "2 files, 2 prompts: 0 errors, 1 warning, 0 notes")
    assert lines[0].startswith("also: 'ask': warning: metadata.metrics is empty")


def test_lint_goes_on_after_a_broken_file(folder, capsys):
    (folder / "broken").mkdir()
    (folder / "broken" / "templates.yaml").write_text("templates: [")
    status, lines = lint(capsys)
    assert (status, lines[-1]) == (1, "3 files, 2 prompts: 1 error, 0 warnings, 0 notes")
    assert lines[0].startswith("broken: error: ")


def test_lint_looks_at_rows(folder, capsys, monkeypatch):
    monkeypatch.delenv("T0JAX_VOCABULARY", raising=False)
    everything, named = lint(capsys, "--data"), lint(capsys, "--data", "mine")
    local = lint(capsys, "mine", "--local", str(folder.parent / "data" / "mine" / "default"))
    assert named == local
    assert everything[1][:-1] == named[1][:-1]  # the other has no local data, and was not named
    blank, hidden, title, table, counts = named[1]
    assert "'ask': warning: 1 of 3 rows (1) render an empty input" in blank
    assert "'ask': note: 1 of 3 rows (2) have no target" in hidden
    assert title.startswith("mine, train, 3 rows, characters  applies  choices")
    assert table.split() == ["ask", "66.7", "%", "2", "6", "6", "6", "3", "3", "3"]
    assert counts == "1 file, 1 prompt: 0 errors, 1 warning, 1 note"
    assert lint(capsys, "--data", "mine", "--rows", "1")[1][-1].endswith("0 warnings, 0 notes")


def test_lint_says_what_is_not_there(folder, capsys, monkeypatch):
    status, lines = lint(capsys, "mine", "--local", str(folder / "nowhere"))
    assert status == 1
    assert lines[0].startswith("error: not looked at with data: mine: its folder")
    assert "--local FOLDER" not in lines[0]
    status, lines = lint(capsys, "mine", "--data", "--split", "test")
    assert status == 1
    assert "error: not looked at with data: mine: no split 'test'" in lines[0]
    with pytest.raises(UserError, match="did you mean 'mine'"):
        prompts.main(["lint", "mime"])
    with pytest.raises(UserError, match="folder of one data set, not of 2"):
        prompts.main(["lint", "--local", "x"])
    monkeypatch.delenv("T0JAX_DATA_DIR")
    with pytest.raises(UserError, match="set T0JAX_DATA_DIR"):
        prompts.main(["lint", "--data"])


def test_lint_says_in_a_line_what_cannot_be_had(folder, capsys):
    (folder / "also").mkdir()
    (folder / "also" / "templates.yaml").write_text(FILE.format("also"))
    assert prompts.main(["lint", "mine", "also", "me/own", "--data"]) == 0
    (line,) = (part for part in capsys.readouterr().out.splitlines() if "not looked" in part)
    assert line.startswith("not looked at with data: also, me/own: the repository on the Hub")
    assert line.endswith(
        "below T0JAX_DATA_DIR; or with a folder of your own: lint NAME --local FOLDER"
    )
    assert prompts.main(["lint", "also", "me/own", "--data"]) == 1
    out = capsys.readouterr().out
    assert out.count("error: not looked at with data: also, me/own: ") == 1
    assert "2 prompts: 1 error, 0 warnings, 0 notes" in out
    assert prompts.main(["lint", "also", "--data"]) == 1
    assert "<T0JAX_DATA_DIR>/also/default/" in capsys.readouterr().out


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lint", "mine"], "1 file, 1 prompt"),
        (["list", "--dataset", "mine"], "mine: 1 prompts"),
        (["show", "mine", "ask"], "Is it?"),
    ],
)
def test_the_folder_of_prompts_is_named_before_or_behind_the_command(
    folder, capsys, monkeypatch, place, argv, said
):
    monkeypatch.setenv("T0JAX_PROMPTS_DIR", "/nowhere")
    named = ["--prompts-dir", str(folder)]
    assert prompts.main([*argv[:place], *named, *argv[place:]]) == 0
    assert said in capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        prompts.main(["--prompts-dir", str(folder), "lint", "other"])
    assert "--prompts-dir" not in str(caught.value)


@pytest.mark.parametrize(
    "argv", [["lint", "other"], ["list", "--dataset", "other"], ["show", "other", "ask"]]
)
def test_unknown_data_sets_hint_at_the_folder_of_prompts(folder, argv):
    with pytest.raises(UserError, match=r"no prompts for data set 'other'.*--prompts-dir FOLDER"):
        prompts.main(argv)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--rows", "-5", "--rows -5 is negative; 0 looks at all rows"),
        ("--max-input-length", "0", "--max-input-length 0 must be positive"),
        ("--max-target-length", "-1", "--max-target-length -1 must be positive"),
    ],
)
def test_lint_refuses_numbers_that_cannot_be(folder, flag, value, message):
    with pytest.raises(UserError, match=message):
        prompts.main(["lint", "mine", "--data", flag, value])


def test_lint_looks_at_the_rows_of_a_prompt_whose_separator_is_set(folder, capsys):
    path = folder / "mine" / "templates.yaml"
    path.write_text(path.read_text().replace("|||", '{% set s = "|||" %}{{ s }}', 1))
    status, lines = lint(capsys, "--data", "mine")
    assert status == 0
    assert [line.split()[:3] for line in lines if "66.7" in line] == [["ask", "66.7", "%"]]


def test_mixture_has_the_shares_of_t0(capsys):
    """Against the weights that t-zero's own `datasets.csv` gives its data sets."""
    assert prompts.main(["mixture", "t0_train"]) == 0
    head, *lines, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["t0_train", "tasks", "rate", "share", "%"]
    found = {line.split()[0]: line.split()[1:] for line in lines}
    assert len(found) == 38
    assert list(found)[:3] == ["cnn_dailymail/3.0.0", "glue/qqp", "xsum"]
    assert found["cnn_dailymail/3.0.0"] == ["9", "2,584,017", "14.96"]
    assert found["glue/qqp"] == ["6", "2,183,076", "12.64"]
    assert found["gigaword"] == ["9", "499,995", "2.89"]
    assert found["quarel"] == ["5", "9,705", "0.06"]
    assert total.split() == ["all", "313", "17,277,798", "100.00"]
    prompts.main(["mixture", "t0_train", "--by", "task"])
    tasks = capsys.readouterr().out.splitlines()
    assert len(tasks) == 315
    assert tasks[1].split() == ["glue_qqp_answer", "1", "363,846", "2.11"]


def test_shares_are_those_of_the_release():
    from t0jax.config import Data
    from t0jax.data.shares import find_shares

    facts = Path(__file__).parents[2] / "shared" / "spec" / "t0_datasets.json"
    if not facts.is_file():
        pytest.skip(f"there are no facts of the release in {facts}")
    known = {
        "/".join(filter(None, (entry["dataset"], entry["subset"]))): entry["dataset_rate"]
        for entry in json.loads(facts.read_text())["datasets"]
        if entry["do_train"] == "BASE"
    }
    shares = find_shares(Data(mixture="t0_train"))
    assert {share.name: share.rate for share in shares} == known
    for share in shares:
        assert share.share == pytest.approx(known[share.name] / sum(known.values()))


@pytest.fixture
def mixture(folder):
    """A mixture of two tasks of three rows and one whose data are not there."""
    from t0jax.data.rows import DatasetSpec
    from t0jax.data.sources import add_mixture, add_prompt_task

    names = []
    for number, local in enumerate(("data/mine/default", "data/mine/default", "nowhere")):
        spec = DatasetSpec("mine" if number < 2 else "me/own", local=str(folder.parent / local))
        names.append(f"{folder.parent.name}_{number}".replace("-", "_"))
        add_prompt_task(names[-1], spec, "ask", prompts_root=str(folder))
    name = f"{folder.parent.name}_mixture"
    add_mixture(name, dict(zip(names, (1.0, 3.0, 4.0), strict=True)))
    return name


def test_mixture_counts_rows(mixture, capsys):
    def lines(*options):
        prompts.main(["mixture", mixture, "--module", "t0jax", *options])
        return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]

    assert lines() == [
        ["me/own", "1", "4", "50.00"],
        ["mine", "2", "4", "50.00"],
        ["all", "3", "8", "100.00"],
    ]
    counted, total, legend, missing, reason = lines("--data")
    assert legend[:2] == ["passes/M:", "how"]
    assert counted == ["mine", "2", "4", "100.00", "3", "333333.33"]
    assert total == ["all", "2", "4", "100.00"]
    assert " ".join(missing[:5]) == "1 data set (1 task)"
    assert " ".join(reason).endswith("does not exist: me/own")
    assert lines("--rates", "rows")[0] == ["mine", "2", "6", "100.00", "3", "333333.33"]
    assert [line[2:4] for line in lines("--data", "--by", "task")[:2]] == [
        ["3", "75.00"],
        ["1", "25.00"],
    ]
    assert lines("--data", "--by", "task")[-2:] == [missing, reason]


def test_mixture_names_prompts_that_are_not_there(mixture, folder, capsys, monkeypatch):
    """Without data; and where there is no folder of prompts, nothing is said of them."""
    argv = ["mixture", mixture, "--module", "t0jax"]
    (folder / "me" / "own" / "templates.yaml").write_text(FILE.format("x").replace("ask", "asks"))
    prompts.main(argv)
    *_, head, line = capsys.readouterr().out.splitlines()
    task = f"{folder.parent.name}_2".replace("-", "_")
    assert head == "1 task cannot be read, for want of the prompt:"
    assert line == f"  unknown prompt 'ask' for me/own; did you mean 'asks'?: {task}"
    monkeypatch.setattr("t0jax.data.shares.prompts_dir", lambda root: prompts_dir("/nowhere"))
    prompts.main(argv)
    assert "cannot be read" not in capsys.readouterr().out


def test_mixture_says_what_is_not_there():
    with pytest.raises(UserError, match="did you mean 't0_train'"):
        prompts.main(["mixture", "t0_trian"])


def test_as_a_program(folder):
    command = [sys.executable, "-m", "scripts.prompts", "show", "mine", "asks"]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "error: unknown prompt 'asks' for mine; did you mean 'ask'?\n"
