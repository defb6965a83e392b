"""Lint: each defect is found where it was put, promptsource's own prompts are sound, rows are told as they are."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from t0jax.data import lint, lint_rows
from t0jax.data.lint import check_file, prompt_issues
from t0jax.data.rows import DatasetSpec, PromptedRows
from t0jax.data.templates import Metadata, Template, list_subsets
from t0jax.data.vocabulary import Pieces, train_sentencepiece
from tests.hostile_prompts import REACHING_OUT

ABOUT = Metadata(True, True, ("Accuracy",))
FILE = "dataset: mine\ntemplates:\n  a: !Template\n    name: one\n    jinja: 'x ||| {{y}}'\n"


def prompt(jinja, choices=None, metadata=ABOUT, name="ask"):
    return Template("id", name, jinja, answer_choices=choices, metadata=metadata)


def levels(template):
    return [level for level, _ in prompt_issues(template)]


@pytest.mark.parametrize(
    "jinja",
    [
        "{{q}} ||| {{a}}",
        "{% if a %}{{q}} ||| yes{% else %}{{q}} ||| no{% endif %}",
        "{% set z = q | lower %}{{z}} ||| {{ a.strip() }}",
        "{% for b in c %}{{b.text}}{{loop.cycle('a', 'b')}}{% endfor %} ||| {{ a }}",
        "{{ '{} {}'.format(q, a) }}{{ zip(q, a) }} ||| {{ {0: 'n'}[a] }}",
        "{% if q is defined and q is not none %}{{q}}{% endif %} ||| {{ a }}",
        "{% set s = '|||' %}{{q}} ||| {{a}}",  # set, and not printed
    ],
)
def test_sound_prompts_pass(jinja):
    assert prompt_issues(prompt(jinja)) == []


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{{q ||| {{a}}", "broken Jinja at line 1"),
        ("{{q -}} ||| {{a}}", "broken Jinja"),  # what promptsource's truncation makes of it
        ("{{q}} {{a}}", "no separator"),
        ("{{q}} ||| {{a}} ||| b", "2 separators: it applies to no row"),
        ("{{q | uper}} ||| {{a}}", "unknown filter 'uper'.*'upper'"),
        ("{% if q %}{{q | uper}}{% endif %} ||| {{a}}", "unknown filter"),
        ("{{q}} ||| {% if a is numbr %}{{a}}{% endif %}", "unknown test 'numbr'.*'number'"),
        ("{{q.__class__}} ||| {{a}}", "'__class__' is refused"),
        ("{{q.encode()}} ||| {{a}}", "no method 'encode'"),
        ("{{len(q)}} ||| {{a}}", "no function 'len' .*zip"),
        ("{% include 'x' %}{{q}} ||| {{a}}", "include"),
        ("{{dict(a=1, a=2)}} ||| {{a}}", "keyword argument repeated"),
        ("{{q}} ||| {{answer_choices[a]}}", "has none"),
    ],
)
def test_errors_are_found_without_data(jinja, message):
    (issue,) = prompt_issues(prompt(jinja))
    assert issue[0] == "error"
    assert re.search(message, issue[1])


@pytest.mark.parametrize(
    ("template", "level", "part"),
    [
        (prompt("{% if a %}{{q}} ||| {{a}}{% endif %}"), "note", "only inside a condition"),
        (prompt("{{q}} ||| yes"), "note", "its target reads no field"),
        (prompt("Write. ||| {{a}}"), "note", "its input reads no field"),
        (prompt("{{[q, a] | choice}} ||| {{a}}"), "note", "draws at random"),
        (prompt("{{q}} ||| {{a | map('choice')}}"), "note", "draws at random"),
        (prompt("{{q}} ||| {{a}}", "yes"), "warning", "only one answer choice"),
        (prompt("{{q}} ||| {{a}}", "yes ||| "), "warning", "choice is empty"),
        (prompt("{{q}} ||| {{a}}", "yes ||| no ||| yes"), "warning", "twice: 'yes'"),
        (prompt("{{q}} ||| {{a}}", "{{yes"), "error", "answer_choices: broken Jinja"),
        (prompt("{{q}} ||| {{a}}", name="ask "), "warning", "blanks"),
        (prompt("{{q}} ||| {{a}}", metadata=Metadata(True, True)), "warning", "metrics is empty"),
        (
            prompt("{{q}} ||| {{a}}", metadata=Metadata(None, True, ("BLEU",))),
            "warning",
            "original",
        ),
        (prompt("{{q}} ||| {{a}}", metadata=Metadata(True, None, ("BLEU",))), "note", "choices_in"),
        (prompt("{{q}} ||| {{a}}", metadata=Metadata(True, True, ("Blue",))), "note", "'BLEU'"),
    ],
)
def test_what_is_most_likely_not_meant(template, level, part):
    (issue,) = prompt_issues(template)
    assert issue[0] == level
    assert part in issue[1]


def test_separators_are_counted_along_each_path():
    both = "{% if a %}{{q}} ||| {{a}}{% endif %}{% if b %}{{q}} ||| {{b}}{% endif %}"
    assert [text[:30] for _, text in prompt_issues(prompt(both))] == [
        "||| only inside a condition, l",
        "2 separators on some paths: it",
    ]
    assert levels(prompt("{% for b in c %}{{b}} ||| {% endfor %}{{a}}")) == ["note", "note"]
    assert levels(prompt("{{ [q, a] | join('|||') }}")) == ["note"]


@pytest.mark.parametrize(
    "jinja",
    [
        "{% set s = '|||' %}{{q}} {{s}} {{a}}",
        "{% set s %} ||| {% endset %}{{q}} {{s | trim}} {{a}}",
        "{% set s = ' |||' %}{% set t = s ~ ' ' %}{{q ~ t ~ a}}",
        "{% set s, t = '', '|||' %}{{q}} {{t}} {{a}}",
        "{% set n = namespace() %}{% set n.s = '|||' %}{{q}} {{n.s}} {{a}}",
    ],
)
def test_a_separator_may_come_from_a_name(jinja):
    """As the rendering shows, which such prompts have."""
    template = prompt(jinja)
    assert template.apply({"q": "Is it?", "a": "yes"})[0] == ["Is it?", "yes"]
    ((level, text),) = prompt_issues(template)
    assert (level, "loop or expression" in text) == ("note", True)


def test_hostile_prompts_are_read_and_none_is_run():
    for source in REACHING_OUT.values():
        prompt_issues(prompt(source))


def write(folder, name, text):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "templates.yaml").write_text(text)


def test_files(tmp_path):
    write(tmp_path, "broken", "templates: [")
    write(tmp_path, "mine", FILE + "  a: !Template\n    name: two\n    jinja: 'x'\n")
    write(tmp_path, "other", FILE)
    write(tmp_path, "none", "dataset: none\ntemplates: {}\n")
    found = {name: check_file(tmp_path, name, None) for name, _ in list_subsets(tmp_path)}
    assert str(found["broken"][1][0]).startswith("broken: error: ")
    assert "broken YAML" in str(found["broken"][1][0])
    assert list(found["mine"][0]) == ["two"]
    assert "2 prompts have the id a; only the last one is read" in found["mine"][1][0].text
    assert "says `dataset: mine`" in str(found["other"][1][0])
    assert [finding.text for finding in found["none"][1]] == ["its file has no prompts"]
    lines = list(map(str, found["mine"][1]))
    assert "mine: 'two': error: no separator: write ||| between the input and the target" in lines


def findings(release, pairs):
    found = [finding for pair in pairs for finding in check_file(release, *pair)[1]]
    return {level: [f for f in found if f.level == level] for level in ("error", "warning", "note")}


def test_prompts_of_some_data_sets(release):
    found = findings(release, [("imdb", None), ("trec", None), ("super_glue", "copa")])
    assert not found["error"]
    assert [finding.prompt for finding in found["warning"]] == ["Sentiment with choices "]
    # t-zero's own notes: 11 of trec's prompts and 4 of copa's apply to a part of the rows.
    assert len([f for f in found["note"] if "only inside a condition" in f.text]) == 15


@pytest.mark.slow
def test_prompts_of_the_release(release):
    found = findings(release, list_subsets(release))
    assert not found["error"]
    assert len(found["warning"]) == 29
    assert sum("blanks" in f.text for f in found["warning"]) == 19
    assert sum("metrics is empty" in f.text for f in found["warning"]) == 8


# ------------------------------------------------------------------------------------------------- rows


PROMPTS = {
    "good": ("{{q}}? ||| {{answer_choices[label]}}", "no ||| yes"),
    "conditional": ("{% if label %}{{q}}? ||| {{answer_choices[1]}}{% endif %}", "no ||| yes"),
    "several": ("{{q}} {% for _ in range(label + 1) %}||| a {% endfor %}", None),
    "blank": ("{{q[:label]}} ||| {{label}}", None),
    "stranger": ("{{q}} ||| {{ ['No', 'yes'][label] }}", "no ||| yes"),
    "constant": ("{{q}} ||| {{ answer_choices[0] }}", "no ||| yes"),
    "twice": ("{{q}} ||| {{ answer_choices[0] }}", "{{q}} ||| {{ ['x', q][label] }} ||| z"),
    "failing": ("{{ (1 // label) }}{{q}} ||| {{label}}", None),
    "lacking": ("{{question}} ||| {{label}}", None),
    "silent": ("{% if q == 1 %}{{q}} ||| {{label}}{% endif %}", None),
}
ROWS = [{"q": f"question {k}" + " |||" * (k == 3), "label": k % 2} for k in range(10)]
ROWS.append({"q": "hidden", "label": -1})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{prompt: its findings' (level, text)} and the table, of ten rows and one whose label is hidden."""
    folder = tmp_path_factory.mktemp("lint")
    blocks = [
        f"  id-{name}: !Template\n    name: {name}\n    jinja: {json.dumps(jinja)}\n"
        f"    answer_choices: {json.dumps(choices)}\n"
        for name, (jinja, choices) in PROMPTS.items()
    ]
    write(folder / "prompts", "mine", "dataset: mine\ntemplates:\n" + "".join(blocks))
    (folder / "data").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "data" / "validation.jsonl").write_text(lines)
    spec = DatasetSpec("mine", local=str(folder / "data"))
    rows = [
        PromptedRows(spec, "validation", name, prompts_root=str(folder / "prompts"))
        for name in PROMPTS
    ]
    findings, table = lint_rows.check_data(rows, 200, lint_rows.Ruler(None, 8, 8))
    by_prompt = {
        name: [(f.level, f.text) for f in findings if f.prompt == name] for name in PROMPTS
    }
    return by_prompt, table


HIDDEN = ("note", "1 of 11 rows (10) have no target: a hidden label, or it renders none")
IN_DATA = ("note", "||| is in the data of 1 of 11 rows (3); there it is text")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", [IN_DATA, HIDDEN]),
        ("several", [("warning", "5 of 11 rows (1, 3, 5, ...) render several separators")]),
        ("blank", [("warning", "5 of 11 rows (0, 2, 4, ...) render an empty input")]),
        ("stranger", [("error", "the target of 5 of 11 rows (0, 2, 4, ...) is no answer choice: row 0 has 'No'")]),
        ("constant", [("warning", "the target of all rows is 'no'")]),
        ("twice", [("warning", "5 of 11 rows (1, 5, 7, ...) have an answer choice twice"),
                   ("warning", "1 of 11 rows (3) render several separators")]),
        ("failing", [("error", "5 of 11 rows (0, 2, 4, ...) fail: ZeroDivisionError: integer")]),
        ("lacking", [("error", "mine/validation: no column 'question'; the data has 'q', 'label'")]),
        ("silent", [("error", "it applies to none of 11 rows")]),
        ("conditional", [("note", "it does not apply to 5 of 11 rows (0, 2, 4, ...)")]),
    ],
)  # fmt: skip
def test_rows(found, name, expected):
    issues = found[0][name]
    for level, text in expected:
        assert [said for how, said in issues if how == level and text in said], issues


def test_sound_rows_have_no_other_issue(found):
    assert found[0]["good"] == [IN_DATA, HIDDEN]


def test_table(found):
    head, *lines = found[1]
    assert head.startswith("mine, validation, 11 rows, characters")
    cells = {line.split()[0]: line.split() for line in lines}
    assert set(cells) == set(PROMPTS) - {"lacking"}
    assert cells["good"] == ["good", "100.0", "%", "2", "11", "15", "15", "3", "3", "3"]
    assert cells["twice"][3:4] == ["3"]
    assert cells["conditional"][1] == "54.5"


@pytest.mark.parametrize(
    ("jinja", "labels", "level", "text"),
    [
        ("answer_choices[label]", [0, 1, 2, 2], "error",
         "row 2: no target: label is 2, and answer_choices[label] wants 0 to 1; the same in 2 of 4 rows (2, 3)"),
        ("answer_choices[label]", ["good", "bad"], "error",
         "row 0: no target: label is 'good', and answer_choices[label] wants a number, 0 to 1 (or write {{label}}"),
        ("answer_choices[label]", [0.0, 1.0], "error", "label is 0.0, and answer_choices[label] wants a whole number"),
        ("answer_choices[label - 1]", [1, 2, 3], "error", "row 2: no target: label is 3, and for it"),
        ("{0: 'no', 1: 'yes'}[label]", [0, 1, 2], "error", "row 2: no target: label is 2, and for it"),
        ("answer_choices[mood]", [0, 1, 2], "error", "row 2: no target: mood is 2, and answer_choices[mood]"),
        ("answer_choices[label]", [0, 1, -1, None], "note", "2 of 4 rows (2, 3) have no target: a hidden label"),
        ("answer_choices[label]", [""], "warning", "1 of 1 rows (0) have no target: a hidden label"),
        ("q[5:]", [0, 1, 2], "note", "1 of 3 rows (1) have no target: a hidden label, or it renders none"),
        ("answer_choices[label] if q != 'wait' else ''", [0, 1], "note", "1 of 2 rows (1) have no target"),
    ],
)  # fmt: skip
def test_labels_outside_the_choices_are_errors(tmp_path, jinja, labels, level, text):
    """Hidden are -1, '' and nothing alone; a target that is empty whatever the label is no error."""
    name = "mood" if "mood" in jinja else "label"
    template = {"name": "ask", "jinja": f"{{{{q}}}}? ||| {{{{ {jinja} }}}}"}
    template |= {} if jinja.startswith("q") else {"answer_choices": "no ||| yes"}
    write(tmp_path / "prompts", "mine", "templates:\n  id: !Template " + json.dumps(template))
    values = [{"q": ("really", "wait")[k % 2], name: label} for k, label in enumerate(labels)]
    lines = "".join(json.dumps(row) + "\n" for row in values)
    (tmp_path / "validation.jsonl").write_text(lines)
    spec = DatasetSpec("mine", local=str(tmp_path))
    rows = PromptedRows(spec, "validation", "ask", prompts_root=str(tmp_path / "prompts"))
    findings, _ = lint_rows.check_data([rows], 200, lint_rows.Ruler(None, 8, 8))
    said = [(f.level, f.text) for f in findings if "no target" in f.text]
    assert [how for how, _ in said] == [level]
    assert text in said[0][1]


def test_a_negative_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="limit=-5 is negative"):
        lint_rows.check_data([], -5, lint_rows.Ruler(None, 8, 8))


def test_lengths_are_those_of_numpy_and_the_tokenizer(tmp_path):
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["a", "small", "number", "of", "words"], k=k)) for k in range(1, 60)
    ]
    pieces = Pieces(train_sentencepiece(texts, tmp_path / "v.model", 40))
    sizes = np.array([len(pieces.encode(text)) for text in texts])
    ruler = lint_rows.Ruler(pieces, 30, 30)
    lengths, targets = ruler.inputs(texts), ruler.targets(texts)
    assert lengths.longest == sizes.max()
    assert lengths.median == np.sort(sizes)[len(sizes) // 2]
    assert np.mean(sizes <= lengths.most) >= 0.95 > np.mean(sizes < lengths.most)
    assert lengths.cut == np.mean(sizes > 30)
    assert targets.longest == sizes.max() + 1
    assert targets.cut == np.mean(sizes + 1 > 30)
    assert lint_rows.Ruler(None, 30, 30).inputs(texts).cut is None
    assert ruler.inputs([]) is None


def test_split_to_look_at(tmp_path):
    for name in ("dev_r1.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n')
    spec = DatasetSpec("mine", local=str(tmp_path))
    assert lint_rows.choose_split(spec, "", ()) == "dev_r1"
    assert lint_rows.choose_split(spec, "test", ()) == "test"
    shutil.copy(tmp_path / "test.jsonl", tmp_path / "validation.jsonl")
    assert lint_rows.choose_split(spec, "", ()) == "validation"
    assert lint_rows.choose_split(DatasetSpec("other"), "", ("train", "test")) == "train"


def test_local_data_sets_have_no_error(release):
    data = Path(__file__).parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"there are no data in {data}")
    for dataset, subset, split in (
        ("super_glue", "cb", "validation"),
        ("cosmos_qa", None, "validation"),
    ):
        templates, static = check_file(release, dataset, subset)
        spec = DatasetSpec(dataset, subset)
        rows = [PromptedRows(spec, split, name, 0, str(release), str(data)) for name in templates]
        findings, table = lint_rows.check_data(rows, 20, lint_rows.Ruler(None, 1024, 256))
        assert not [f for f in (*static, *findings) if f.level == "error"]
        assert len(table) == 1 + len(templates)


def test_metrics_that_score_are_known():
    from tasks.t0_metrics import BY_NAME

    assert set(BY_NAME) <= {name.casefold() for name in lint.METRICS}
