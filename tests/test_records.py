"""Structured records: rows to examples, options in a seeded order, and errors that name the task and the row."""

import dataclasses
import json
import math
import os
import pickle
import shlex
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
from structured_data import Choices, Tags, Topic, write_rows

from scripts import records
from t0jax.config import Data
from t0jax.config.heads import head_group
from t0jax.data.rows import DatasetSpec, DataUnavailable
from t0jax.data.structured import items
from t0jax.data.structured.fields import constant, described, joined, letter, position
from t0jax.data.structured.records import (
    Classification,
    MultipleChoice,
    RecordError,
    TokenClassification,
)
from t0jax.data.structured.rows import StructuredRows

ROW = {"text": "a b", "other": "c", "label": 1, "options": ["x", "y", "z", "u", "v"], "right": 2}
NLI = ("entailment", "neutral", "contradiction")


def _gone(row):
    return row["gone"]


def _fails(row):
    return 1 / 0


def _part(row, column, number=0):
    return row[column].split()[number]


def test_a_row_becomes_the_pair_and_the_label_that_are_declared():
    pair = Topic(sentence2="other")
    assert pair.example(ROW).texts == (("a b", "c"),)
    assert pair.example(ROW).label == 1
    assert pair.example({**ROW, "label": "sport"}).label == 1
    for hidden in (-1, "-1", "", None):
        assert pair.example({**ROW, "label": hidden}) is None


def test_paths_and_functions_read_what_lies_deeper():
    row = {"answers": {"text": ["no", "yes"]}, "label": 0, "key": "B", "answer": "yes", "n": 3}
    assert Topic(sentence1="answers.text[1]").example(row).texts == (("yes", None),)
    both = joined("n", "answers.text", separator="/")
    assert Topic(sentence1=both).example(row).texts == (("3/no/yes", None),)
    assert (letter("key")(row), letter("answer2")({"answer2": "1"})) == (1, 0)
    assert position("answer", "answers.text")(row) == 1
    assert Topic(sentence1=both, label=letter("key")).columns == {"n", "answers", "key"}
    assert Topic(sentence1=constant("x"), label=len).columns is None
    assert Topic(sentence1=constant("x"), label=len).example({"a": 1}).label == 1


def test_several_labels_and_numbers_on_a_scale():
    several = Topic(multilabel=True)
    assert several.example({**ROW, "label": [1, "news", 1]}).label == (0, 1)
    assert several.example({**ROW, "label": []}).label == ()
    near = Classification(dataset="pairs", sentence1="text", scale=(0, 5))
    assert near.example({**ROW, "label": "4.5"}).label == 4.5
    assert near.example({**ROW, "label": -1}) is None
    assert [Topic().kind, several.kind, near.kind] == ["classification", "multilabel", "regression"]


def test_a_row_shows_its_options_in_the_same_order_for_the_same_seed():
    asked = Choices()
    orders = Counter()
    for seed in range(600):
        example = asked.example(ROW, seed)
        assert example == asked.example(ROW, seed)
        options = [option for _, option in example.texts]
        assert sorted(options) == sorted(ROW["options"])
        assert options[example.label] == "z"
        orders[example.label] += 1
    # 600 draws of 5 places: 120 each, standard deviation sqrt(600 * 0.2 * 0.8) < 10.
    assert all(abs(orders[place] - 120) < 40 for place in range(5))


def test_too_many_options_are_cut_down_to_others_but_the_right_one():
    kept = Counter()
    for seed in range(400):
        example = Choices().example(ROW, seed, max_choices=3)
        options = [option for _, option in example.texts]
        assert len(set(options)) == 3
        assert options[example.label] == "z"
        kept.update(options)
    assert kept["z"] == 400
    assert all(150 < kept[wrong] < 250 for wrong in "xyuv")
    in_order = Choices().example(ROW, None, max_choices=2)
    assert [option for _, option in in_order.texts] == ["x", "z"]


OWN = """
from structured_data import Topic
from t0jax.data.structured.source import add_task
record = Topic(dataset="own", name="own rows")
add_task(record)
"""


def test_the_way_to_all_wrong_rows_is_one_that_works(tmp_path, monkeypatch, capsys):
    """A record that no module registers cannot be named on a command line."""
    seqio = pytest.importorskip("seqio")
    (tmp_path / "own_records.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "my data"
    write_rows(root, "own", "train", [ROW])
    write_rows(root, "own", "validation", [ROW, {**ROW, "label": 7}])
    data = Data(mixture="own_rows", modules=("own_records",), local_dir=str(root))
    try:
        for split, status, last in (("train", 0, "no row is wrong"), ("validation", 1, "1 found")):
            told = items.lists_all(dataclasses.replace(data, split=split))
            command = shlex.split(told.split("`")[1])
            assert command[:3] == ["python", "-m", records.__name__]
            assert records.main(command[3:]) == status
            lines = capsys.readouterr().out.splitlines()
            assert lines[-1].endswith(f"rows of {split}, tasks: 1: {last}")
        assert lines[0].startswith("own rows  1  label 7 is outside")
    finally:
        seqio.TaskRegistry.remove("own_rows")
    told = items.lists_all(Data(mixture="own", modules=()))
    assert told.startswith("register the record in a module (`add_task`), and `python -m scripts")
    assert "--mixture own --module MODULE`" in told


def test_repeated_options_are_shown_once():
    example = Choices().example({**ROW, "options": ["z", "x", "z", "x"]})
    assert [option for _, option in example.texts] == ["x", "z"]
    assert example.label == 1


def test_words_keep_their_tags():
    row = {"tokens": ["He", "runs", "."], "tags": ["N", 1, -100]}
    example = Tags().example(row)
    assert (example.words, example.label) == (("He", "runs", "."), (0, 1, -1))
    assert Tags().example({"tokens": ["x"], "tags": [-1]}) is None


@pytest.mark.parametrize(
    ("record", "row", "reason"),
    [
        (Topic(), {**ROW, "label": 2}, "label 2 is outside the 2 declared labels"),
        (Topic(), {**ROW, "label": "art"}, "label 'art' is outside"),
        (Topic(), {**ROW, "label": 0.5}, "label 0.5 is outside"),
        (Topic(), {"text": "a"}, "no column 'label'; the data has 'text'"),
        (Topic(sentence2="hypothesis"), ROW, "no column 'hypothesis'"),
        (Topic(), {**ROW, "text": None}, "sentence1 is None, not a text; skip such rows"),
        (Topic(sentence1="text"), {**ROW, "text": math.nan}, "sentence1 is nan, not a text"),
        (Topic(sentence1=joined("text", "other")), {**ROW, "other": None}, "other is None, not"),
        (Topic(sentence1=joined("text")), {**ROW, "text": ["a", math.nan]}, r"text\[1\] is nan"),
        (Tags(), {"tokens": ["a", None], "tags": [0, 1]}, "token 1 is None, not a text"),
        (Topic(sentence1="text.en"), ROW, "text is 'a b', which has no '.en'"),
        (Topic(label=_gone), ROW, "no column 'gone'"),
        (Topic(label=_fails), ROW, "failed: ZeroDivisionError"),
        (Topic(multilabel=True), ROW, "label 1 is not a list"),
        (Choices(), {**ROW, "options": []}, "there are no options; skip such rows"),
        (Choices(), {**ROW, "right": 5}, "the right option is number 5 of 5, counted from 0 on"),
        (Choices(), {**ROW, "right": "C"}, "the right option is 'C', not a number; use `letter`"),
        (Choices(), {**ROW, "options": ["x", " ", "z"]}, r"choice 1 is empty \(' '\)"),
        (Choices(), {**ROW, "options": ["z", "z", "z"]}, "all options are 'z'"),
        (Choices(), {**ROW, "options": "xyz"}, "choices are 'xyz', not a list"),
        (
            Choices(label=position("text", "options")),
            ROW,
            "the answer 'a b' is none of the options",
        ),
        (Choices(label=letter("text")), ROW, "the answer 'a b' is neither a letter nor a number"),
        (Tags(), {"tokens": ["a"], "tags": [0, 1]}, "1 tokens have 2 tags"),
        (Tags(), {"tokens": ["a"], "tags": [7]}, "label 7 is outside"),
        (
            Classification(dataset="pairs", sentence1="text", scale=(0, 5)),
            {**ROW, "label": 7},
            r"label 7.0 is outside the scale \(0, 5\)",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_task_and_what_is_wrong(record, row, reason):
    with pytest.raises(RecordError, match=f"^task '{record.name}', row 7: .*{reason}") as caught:
        record.example(row, number=7)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.task, copy.row, str(copy)) == (record.name, 7, str(caught.value))


@pytest.mark.parametrize(
    ("declare", "reason"),
    [
        (lambda: Topic(labels=("one",)), "1 label is declared; name them"),
        (lambda: Topic(labels=("one", "one")), "name one twice"),
        (lambda: Topic(labels=("one", "")), "label 1 is empty"),
        (lambda: Topic(scale=(0, 1)), "a scale leaves no room for labels"),
        (lambda: Topic(labels=(), scale=(1, 1)), "does not rise"),
        (lambda: Topic(splits=("train", "test")), "are not three"),
        (lambda: Choices(choices=("a",)), "are fewer than two"),
        (lambda: Topic(label=lambda row: 1), "`label` holds .*<lambda>, which reader processes"),
        (lambda: Topic(where=joined(partial(lambda row: 1))), "`where` holds .*<lambda>"),
        (lambda: Choices(choices=("a", _closure(2))), "`choices` holds _closure.<locals>.inner"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(declare, reason):
    with pytest.raises(RecordError, match=f"^task '[a-z]+': .*{reason}"):
        declare()


def _closure(number):
    def inner(row):
        return number

    return inner


def test_declarations_take_lists_and_partial_functions():
    listed = Choices(choices=["text", "other"], label=0)
    assert listed == Choices(choices=("text", "other"), label=0)
    assert listed.example(ROW).texts == (("a b", "a b"), ("a b", "c"))
    second = Topic(sentence1=partial(_part, column="text", number=1))
    assert second.columns is None
    assert pickle.loads(pickle.dumps(second)).example(ROW).texts == (("b", None),)


DESCRIBE = """
from functools import partial
from t0jax.data.structured.fields import constant, described
from held import keep
print(described((constant({"b", "a", "c"}), partial(keep, n=1), {"x": keep}, len, bool)))
"""


def test_a_field_is_described_by_what_it_does_alike_in_every_process(tmp_path):
    def say(text, seed):
        (tmp_path / "held.py").write_text(text)
        paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        env = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-B", "-c", DESCRIBE]
        return subprocess.run(command, env=env, check=True, capture_output=True).stdout

    first = say("def keep(row, n):\n    return n\n", "1")
    assert first == say("def keep(row, n):\n    # why\n    return n\n", "2")
    assert first != say("def keep(row, n):\n    return n + 1\n", "1")
    assert described(partial(_part, column="a")) != described(partial(_part, column="b"))


def test_heads_share_by_the_words_of_their_labels():
    entailed = Topic(labels=("Entailed", "NEUTRAL", "contradiction")).head()
    assert entailed.group == Topic(labels=NLI, name="nli").head().group == "|".join(NLI)
    assert Topic(labels=NLI[::-1]).head().group != entailed.group
    assert head_group("classification", ("negative", "pos")) == "negative|positive"
    assert (
        head_group("classification", ("non-duplicate", "duplicate")) == "not_equivalent|equivalent"
    )
    assert head_group("classification", ("0", "1")) == head_group("regression", ()) == ""
    assert Choices().head().group == "multiple_choice"
    assert Tags().head().group == "token:n|v"
    assert (Choices().head().columns, Tags().head().columns) == (1, 2)


def test_official_splits_are_kept_whole_and_others_are_told_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(tmp_path / "cache"))
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(31)]
    for split in ("train", "dev"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    spec = DatasetSpec("topics", local=str(tmp_path))
    record = Topic(dataset=spec, splits=("train", "dev", None), where=_not_the_first)
    dev = pickle.loads(pickle.dumps(StructuredRows(record, "validation").open()))
    assert len(dev) == 31
    assert [dev[i] and dev[i].texts[0][0] for i in (0, 1, 30)] == [None, "row 1", "row 30"]
    with pytest.raises(DataUnavailable, match="no split 'test'; it has train, validation"):
        StructuredRows(record, "test").open()
    with pytest.raises(
        RecordError, match=r"^task 'topics': no column 'gone'; the data has 'text', 'label'$"
    ):
        StructuredRows(Topic(dataset=spec, sentence1="gone"), "train").open()
    bad = Topic(dataset=spec, label="text")
    with pytest.raises(RecordError, match=r"^task 'topics', row 3: label 'row 3' is outside"):
        StructuredRows(bad, "train")[3]


def _not_the_first(row):
    return row["text"] != "row 0"


@pytest.mark.parametrize("label", [-1, -1.0, "-1", "", None, math.nan])
def test_a_label_that_is_not_told_is_none_however_it_is_written(label):
    row = {**ROW, "label": label, "right": label}
    stsb = Classification(dataset="pairs", sentence1="text", scale=(0, 5))
    records = (Topic(), Topic(multilabel=True, label=_in_a_list), stsb, Choices())
    assert [record.example(row) for record in records] == [None] * 4
    signed = dataclasses.replace(stsb, scale=(-1, 1)).example(row)
    assert (signed and signed.label) == (-1 if label in (-1, "-1") else None)
    words = TokenClassification(dataset="d", tokens="t", tags="g", labels=("a", "b"))
    if label not in ("", "-1"):
        assert words.example({"t": ["x", "y"], "g": [label, 1.0]}).label == (-1, 1)


def _in_a_list(row):
    return [0, row["label"]]


def test_a_number_that_is_none_is_no_label():
    near = Classification(dataset="pairs", sentence1="text", scale=(-1, 1))
    assert near.example({**ROW, "label": -1}).label == -1
    with pytest.raises(RecordError, match="label inf is outside"):
        near.example({**ROW, "label": math.inf})
    assert MultipleChoice(
        dataset="d", inputs=constant(""), choices=("text", "other"), label=0
    ).example(ROW).texts == (("", "a b"), ("", "c"))
    assert TokenClassification(dataset="d", tokens="t", tags="g", labels=("a", "b")).columns == {
        "t",
        "g",
    }
