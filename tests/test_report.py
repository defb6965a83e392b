"""The report: its page parsed as a browser would, and results side by side against scipy."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from t0jax import report, results
from t0jax.report import comparing, reading
from tests.test_report_statistics import scipy_interval

REPOSITORY = Path(__file__).parents[1]
HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png> & {{ 7 * 7 }}'


def scored(scores, gold, rows=None):
    numbers = range(len(scores)) if rows is None else rows
    return [
        results.ScoredRow(int(row), np.asarray(s, np.float32), (int(g),))
        for row, s, g in zip(numbers, scores, gold, strict=True)
    ]


def entry(rows, dataset, prompt, **more):
    gold, predicted = [row.gold for row in rows], [row.prediction for row in rows]
    rates = {
        "accuracy": results.grade(rows),
        "macro_f1": results.macro_f1(gold, predicted),
        "chance": results.chance(rows),
    }
    names = {"dataset": dataset, "prompt": prompt, "coverage": 1.0, "seconds": 1.0}
    return {**rates, "truncated": 0.0, "n": len(rows), **names, **more}


def write(folder, tasks, missing=None, complete=True, texts=None, extra=None):
    """A results folder through the evaluator's own writer; `tasks`: {name: (data set, prompt, rows, more)}."""
    settings = {"model": "some/model, step 7", "mixture": "t0_eval", "split": "validation"}
    there = results.ResultsFolder(folder, settings)
    entries = dict(extra or {})
    for name, (dataset, prompt, rows, more) in tasks.items():
        there.write_scores(name, rows)
        entries[name] = entry(rows, dataset, prompt, **more)
    there.write_results(results.Results(entries, missing or {}), complete)
    if texts:
        there.write_rows(texts)
    return folder


def random_tasks(seed, dataset="super_glue/cb", prompts=4, rows=30, choices=3, **more):
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(99).integers(0, choices, rows)
    return {
        f"{dataset.replace('/', '_')}_p{k}_score_eval": (
            dataset,
            f"p{k}",
            scored(rng.normal(size=(rows, choices)) + np.eye(choices)[gold], gold),
            more,
        )
        for k in range(prompts)
    }


# Side by side


def test_differences_are_paired_by_row(tmp_path):
    first, second = random_tasks(0), random_tasks(1)
    folders = [write(tmp_path / n, tasks) for n, tasks in (("a", first), ("b", second))]
    opened = comparing.open_folders(folders)
    (row,) = comparing.compare(opened)
    values = [
        np.array([[r.prediction in r.correct for r in rows] for _, _, rows, _ in tasks.values()])
        for tasks in (first, second)
    ]
    difference = (values[1].mean(axis=0) - values[0].mean(axis=0)).astype(float)
    assert row.cells[1].difference == pytest.approx(difference.mean())
    wanted = scipy_interval(lambda rows: difference[rows].mean(), 30, "super_glue/cb", 1000)
    assert row.cells[1].difference_interval == pytest.approx(tuple(wanted), abs=1e-12)


def test_a_model_does_not_differ_from_itself(tmp_path):
    tasks = random_tasks(0) | random_tasks(3, "super_glue/rte", rows=20, choices=2)
    folders = [write(tmp_path / n, tasks) for n in "ab"]
    rows = comparing.compare(comparing.open_folders(folders))
    assert [row.name for row in rows[-2:]] == ["mean over prompts", "mean over data sets"]
    for row in rows:
        assert row.cells[1].difference == 0
        assert row.cells[1].difference_interval == (0, 0)


@pytest.mark.parametrize("change", ["rows", "gold"])
def test_other_rows_have_no_paired_interval(tmp_path, change):
    rng = np.random.default_rng(0)
    scores, gold = rng.normal(size=(12, 2)), rng.integers(0, 2, 12)
    other = scored(scores, gold, range(1, 13)) if change == "rows" else scored(scores, 1 - gold)
    a = write(tmp_path / "a", {"t": ("d", "p", scored(scores, gold), {})})
    b = write(tmp_path / "b", {"t": ("d", "p", other, {})})
    cell = comparing.compare(comparing.open_folders([a, b]))[0].cells[1]
    assert cell.difference_interval is None
    assert cell.note == "other rows: no interval"


def test_the_text_table(tmp_path):
    both, more = random_tasks(0), random_tasks(5, "hellaswag", prompts=2, choices=4)
    a, b = write(tmp_path / "a", both | more), write(tmp_path / "b", random_tasks(1))
    lines = report.compare_table([a, b], ["ours", "theirs"]).splitlines()
    assert lines[0].split("  ")[0] == "data set"
    assert lines[0].endswith("theirs - ours")
    mean = np.mean([results.grade(rows) for _, _, rows, _ in both.values()])
    assert f"{mean:.3f} [" in next(line for line in lines if line.startswith("super_glue/cb"))
    assert "not scored" in next(line for line in lines if line.startswith("hellaswag"))
    assert not any(line.startswith("mean over") for line in lines)  # one data set in common
    text = {
        "metrics": {"rouge1": 31.254},
        "n": 2,
        "dataset": "xsum",
        "prompt": "p",
        "coverage": 1.0,
    }
    c = write(tmp_path / "c", {}, extra={"xsum_p": text})
    lines = report.compare_table([a, c]).splitlines()
    assert lines[-1].split() == ["xsum_p", "rouge1", "-", "31.25"]
    alone = report.compare_table([a]).splitlines()
    assert sum(line.startswith("mean over") for line in alone) == 2


# The page


class Page(HTMLParser):
    """Tags with their attributes, text, and text within <title> elements of plots."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.texts, self.titles, self.open = [], [], [], []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        (self.titles if self.open[-1:] == ["title"] else self.texts).append(data)

    def of(self, tag, style=""):
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and (not style or style in attributes.get("class", "").split())
        ]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def references():
    return json.loads((REPOSITORY / "tasks" / "t0_references.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two data sets, hostile text, a prompt for half of the rows, missing and generated tasks."""
    tasks = random_tasks(0, answer_choices=["Yes", "Maybe", "No"])
    tasks |= random_tasks(2, "anli/dev_r1", prompts=2, rows=20)
    rng = np.random.default_rng(1)
    rows = scored(rng.normal(size=(15, 3)), rng.integers(0, 3, 15), range(0, 30, 2))
    parity = results.parity(rows, [(str(k // 2), "ab"[k % 2]) for k in range(15)])
    half = {"coverage": 0.5, "truncated": 0.2, "parity": parity}
    tasks["half_score_eval"] = ("super_glue/cb", HOSTILE, rows, half)
    empty = {"n": 0, "dataset": "super_glue/cb", "prompt": "never", "coverage": 0.0}
    metrics = {"rouge1": 31.25, HOSTILE: 1.0}
    made = {"metrics": metrics, "n": 2, "dataset": "xsum", "prompt": "TLDR", "coverage": 1.0}
    (worst, *_), *_ = results.hardest(
        {t: [(r.row, r.prediction in r.correct) for r in rows] for t, (_, _, rows, _) in tasks.items()
         if t != "half_score_eval" and "cb" in t}
    )  # fmt: skip
    text = {
        "task": "super_glue_cb_p0_score_eval",
        "inputs": HOSTILE,
        "choices": ["Yes", "Maybe", HOSTILE],
    }
    path = write(
        tmp_path_factory.mktemp("results") / "mine",
        tasks,
        missing={"x_1": f"x: not here {HOSTILE}", "x_2": f"x: not here {HOSTILE}"},
        complete=False,
        texts={"super_glue/cb": {str(worst): text}},
        extra={"never_score_eval": empty, "xsum_tldr": made},
    )
    lines = [{"row": k, "target": HOSTILE, "prediction": "short"} for k in range(2)]
    (path / "scores" / "xsum_tldr.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    rows = [{"step": k, "loss": 5.0 / k, "learning_rate": 1e-3} for k in range(1, 1000)]
    rows.insert(
        500, {"step": 500, "eval/accuracy/mean": 0.5, "eval/chance": 0.33, "eval/bleu": 12.0}
    )
    lines = [json.dumps(row) for row in rows]
    (run / "metrics.jsonl").write_text(
        "\n".join([*lines, "[1]", '{"step": "1", "loss": 1}', '{"step": 1000, "lo'])
    )
    (run / "checkpoints" / "999").mkdir(parents=True)
    return run / "checkpoints" / "999"


@pytest.fixture(scope="module")
def page(folder, run_folder, references, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    return Page(report.write_report([folder], out, references=references, run=run_folder))


def test_the_page_loads_nothing(page):
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "data", "xlink:href"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in (attributes.get("style") or "")
    assert "url(" not in page.source.split("</style>")[0]
    assert "@import" not in page.source
    for link in page.of("a"):
        assert link["href"].startswith(("#data-", "https://"))


def test_the_pages_policy_lets_its_own_script_run_alone(page):
    (policy,) = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    (script,) = [part.split("</script>")[0] for part in page.source.split("<script>")[1:]]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_text_of_prompts_and_rows_is_shown_and_never_markup(page):
    assert len(page.of("script")) == 1
    assert "<script>alert" not in page.source
    assert "{{ 7 * 7 }}" in page.text  # it is no template either
    # The prompt's name, its dot, the row's text and a choice, a metric, what was wanted, and the reason.
    assert page.text.count('<script>alert("x")</script>') >= 6
    assert any(title.startswith(HOSTILE) for title in page.titles)


def test_every_prompt_is_a_dot_at_its_accuracy(folder, page):
    tasks = json.loads((folder / "results.json").read_text())["tasks"]
    wanted = sorted(
        f"{100 * task['accuracy']:.2f}%" for task in tasks.values() if "accuracy" in task
    )
    overview = page.source.split('id="overview"')[1].split("</section>")[0]
    circles = [part.split(">")[0] for part in overview.split("<circle cx=")[1:]]
    dots = [circle.split('"')[1] for circle in circles if 'class="dot"' in circle]
    assert sorted(dots) == wanted


def test_what_there_was_and_was_not_is_said(page):
    text = page.text
    assert "not complete" in text
    assert "2 tasks were not scored x (2): not here" in text
    assert "2 prompts apply to part of the rows only" in text
    assert "half_score_eval: 50.0% of the rows" in text
    assert "never_score_eval: to no row" in text
    assert "Rows of 1 task were too long" in text
    assert "31.25" in text  # ROUGE
    assert re.search(r"gap pairs alike .*% of 7 ", text)
    assert {"Yes", "Maybe", "No", "choice 1"} <= {part.strip() for part in page.texts}


def test_published_figures_are_marked_where_they_belong(page, references):
    """CB has two, and ANLI's are means over the rounds, drawn hollow on each round."""
    cb = [r for r in references if r["dataset"] == "super_glue/cb"]
    anli = [r for r in references if r["dataset"] == "anli"]
    overview = page.source.split('id="overview"')[1].split("</section>")[0]
    marks = [part.split('"')[1] for part in overview.split('<path d="')[1:]]
    hollow = overview.count(' hollow"')
    keys = len({r["model"] for r in cb + anli}) + 1
    assert len(marks) == len(cb) + len(anli) + keys
    assert hollow == len(anli) + 1
    assert "mean of anli/dev_r1, anli/dev_r2, anli/dev_r3" in " ".join(page.titles)
    assert all(reference["source"]["title"] in page.text for reference in cb + anli)


def test_figures_of_another_split_are_not_shown(folder, tmp_path, references):
    content = json.loads((folder / "results.json").read_text())
    content["settings"]["split"] = "test"
    (tmp_path / "results.json").write_text(json.dumps(content))
    out = report.write_report([tmp_path], tmp_path / "r.html", references=references)
    assert "Published" not in Page(out).text


def test_training_curves(page):
    curves = page.of("polyline")
    assert [len(curve["points"].split()) for curve in curves] == [300, 300]
    assert {"training loss", "learning rate"} <= set(page.titles)
    assert "accuracy while training" not in page.titles  # measured once


def test_curves_of_what_was_measured_on_the_way(folder, run_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = (run_folder.parents[1] / "metrics.jsonl").read_text()
    again = {"step": 400, "eval/accuracy/mean": 0.5, "eval/bleu/t": 12.0}
    (run / "metrics.jsonl").write_text(f"{lines}\n{json.dumps(again)}\n")
    titles = Page(report.write_report([folder], tmp_path / "r.html", run=run)).titles
    assert "accuracy while training" in titles


def test_several_folders_side_by_side(folder, tmp_path):
    other = write(tmp_path / "other", random_tasks(4))
    out = report.write_report([folder, other], tmp_path / "r.html", names=["A", HOSTILE])
    found = Page(out)
    assert "Side by side" in found.text
    assert len(found.of("svg", "series-1")) > 0
    assert len(found.of("script")) == 1


def test_folders_of_older_versions(tmp_path):
    """No rows.json, no answer choices, no coverage of what is new; scores may be gone."""
    tasks = random_tasks(0)
    folder = write(tmp_path / "old", tasks)
    for path in (folder / "scores").iterdir():
        path.unlink()
    found = Page(report.write_report([folder], tmp_path / "r.html"))
    assert "Rows that most prompts get wrong" not in found.text
    assert "super_glue/cb" in found.text
    assert "[" not in report.compare_table([folder])


def test_nothing_scored(tmp_path):
    folder = write(tmp_path / "none", {}, missing={"t": "no data"})
    found = Page(report.write_report([folder], tmp_path / "r.html"))
    assert "1 task was not scored" in found.text


def test_what_cannot_be_read_is_named(tmp_path, folder):
    with pytest.raises(report.ReportError, match=r"nowhere has no results\.json"):
        report.compare_table([tmp_path / "nowhere"])
    with pytest.raises(report.ReportError, match="1 results folders but 2 names"):
        report.compare_table([folder], ["a", "b"])
    with pytest.raises(report.ReportError, match="names must differ"):
        report.compare_table([folder, folder], ["a", "a"])
    with pytest.raises(report.ReportError, match="no results folder"):
        report.compare_table([])
    with pytest.raises(report.ReportError, match=r"metrics\.jsonl"):
        report.write_report([folder], tmp_path / "r.html", run=tmp_path)
    (tmp_path / "results.json").write_text('{"tasks": ')
    with pytest.raises(report.ReportError, match="no JSON"):
        report.compare_table([tmp_path])
    (tmp_path / "results.json").write_text('{"tasks": {"t": {"n": 3}}, "x": 1}')
    assert not report.compare_table([tmp_path])  # a task without accuracy is no error
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(report.ReportError, match="not of a form"):
        report.compare_table([tmp_path])


SCORED = {
    "accuracy": 0.5,
    "macro_f1": 0.5,
    "chance": 0.5,
    "n": 1,
    "dataset": "d",
    "prompt": "p",
}
LINE = {"row": 0, "scores": [0.0, -1.0], "gold": [0], "prediction": 0}


def write_plain(folder, tasks=None, line=LINE, rows=None, **more):
    content = {"tasks": {"t": SCORED} if tasks is None else tasks, **more}
    (folder / "scores").mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "scores" / "t.jsonl").write_text(json.dumps(line))
    (folder / "rows.json").write_text(json.dumps(rows or {}))
    return report.write_report([folder], folder / "r.html").read_text()


@pytest.mark.parametrize(
    "name",
    ["../../secret", "..", ".", "", "a//b", "a/../b", "a\\b", "/etc/secret", "a\0", "a" * 300],
)
def test_a_task_is_no_path_out_of_its_folder(tmp_path, name):
    (tmp_path / "secret.jsonl").write_text('{"row": 1, "target": "SECRET", "prediction": ""}')
    folder = tmp_path / "theirs"
    folder.mkdir()
    assert "SECRET" not in write_plain(folder)
    with pytest.raises(report.ReportError, match=r"results\.json: a task's name.*not of a form"):
        write_plain(folder, {name: {"metrics": {"bleu": 1.0}}})


@pytest.mark.parametrize(
    ("named", "content"),
    [
        ("tasks", {"tasks": [1]}),
        ("tasks", {"tasks": {"t": 1}}),
        ("settings", {"settings": ["model"]}),
        ("missing", {"missing": {"a": 5}}),
        ("missing", {"missing": ["a"]}),
        ("metrics of the task t", {"tasks": {"t": {"metrics": {"bleu": "high"}}}}),
        ("metrics of the task t", {"tasks": {"t": {"metrics": [1.0]}}}),
        ("n of the task t", {"tasks": {"t": SCORED | {"n": "1"}}}),
        ("accuracy of the task t", {"tasks": {"t": SCORED | {"accuracy": "0.5"}}}),
        ("accuracy of the task t", {"tasks": {"t": SCORED | {"accuracy": float("nan")}}}),
        ("accuracy of the task t", {"tasks": {"t": SCORED | {"accuracy": 1.02}}}),
        ("chance of the task t", {"tasks": {"t": SCORED | {"chance": 10**400}}}),
        ("macro_f1 of the task t", {"tasks": {"t": {**SCORED, "macro_f1": None}}}),
        ("dataset of the task t", {"tasks": {"t": SCORED | {"dataset": ["d"]}}}),
        (
            "prompt of the task t",
            {"tasks": {"t": {k: v for k, v in SCORED.items() if k != "prompt"}}},
        ),
        ("coverage of the task t", {"tasks": {"t": SCORED | {"coverage": "all"}}}),
        ("answer_choices of the task t", {"tasks": {"t": SCORED | {"answer_choices": [1]}}}),
        ("parity of the task t", {"tasks": {"t": SCORED | {"parity": {"accuracy": {"a": 1}}}}}),
        ("t.jsonl: a line", {"line": [0]}),
        ("t.jsonl: a line", {"line": LINE | {"prediction": 2}}),
        ("t.jsonl: a line", {"line": LINE | {"gold": []}}),
        ("t.jsonl: a line", {"line": LINE | {"gold": [-1]}}),
        ("t.jsonl: a line", {"line": LINE | {"scores": ["a", "b"]}}),
        ("t.jsonl: a line", {"line": LINE | {"row": [0]}}),
        ("t.jsonl: a line", {"line": LINE | {"grades": [1]}}),
        ("rows.json: the rows of 'd'", {"rows": {"d": {"0": "text"}}}),
        ("rows.json: the rows of 'd'", {"rows": {"d": {"0": {"choices": [1]}}}}),
    ],
)
def test_what_is_of_another_form_is_named(tmp_path, named, content):
    """Anyone's folder may be compared."""
    assert not any(word in write_plain(tmp_path) for word in ("nan", "None"))
    with pytest.raises(report.ReportError, match=f"{re.escape(named)} is not of a form"):
        write_plain(tmp_path, **content)


def test_bytes_and_depths_that_are_no_text_are_no_json(tmp_path):
    write_plain(tmp_path)
    for file, how in (("scores/t.jsonl", "no JSON lines"), ("results.json", "no JSON")):
        for content in (b"\xff\xfe", b"[" * 100_000):
            (tmp_path / file).write_bytes(content)
            with pytest.raises(report.ReportError, match=how):
                report.compare_table([tmp_path])


# The files


def test_a_results_folder_as_the_evaluator_writes_it(folder):
    found = reading.read_folder(folder)
    dataset = found.datasets["super_glue/cb"]
    assert dataset.mean == pytest.approx(np.mean([p.accuracy for p in dataset.prompts]))
    for prompt in dataset.prompts:
        assert np.mean(list(prompt.grades.values())) == pytest.approx(prompt.accuracy)
        assert results.macro_f1(*zip(*prompt.pairs, strict=True)) == pytest.approx(
            prompt.entry["macro_f1"]
        )


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/runs/mine, step 300", "mine, step 300"),
        ("/runs/mine/checkpoints/300, step 300", "mine, step 300"),
        ("bigscience/T0_3B", "T0_3B"),
        ("", "folder"),
    ],
)
def test_one_folder_is_named_after_its_model(tmp_path, model, name):
    folder = tmp_path / "folder"
    results.ResultsFolder(folder, {"model": model}).write_results(results.Results({}), True)
    assert reading.read_folder(folder).name == name


# Published figures


def test_references_name_data_sets_of_t0_and_their_sources(references):
    from tasks.t0_table import load_table

    known = {"/".join(filter(None, (e.dataset, e.subset))) for e in load_table() if e.evaluation == "BASE"}  # fmt: skip
    for reference in references:
        assert reference["dataset"] in known
        assert 0 < reference["value"] < 1
        assert reference["statistic"]
        assert reference["source"]["link"].startswith("https://")
        assert reference["source"]["title"]
        assert all(name.startswith(reference["dataset"]) for name in reference.get("mean_of", ()))
    assert {r["model"] for r in references} >= {"T0 3B", "T0 11B"}
