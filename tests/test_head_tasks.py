"""Which head answers a task, by which of its outputs, and what a task's results are of."""

import dataclasses
import json

import numpy as np
import pytest
from multitask_models import head
from test_classify_evaluator import RECORDS

from t0jax import evaluate
from t0jax.data.rows import DatasetSpec
from t0jax.data.structured.rows import StructuredRows
from t0jax.evaluate import head_tasks


def test_results_are_of_what_is_read_and_not_of_where_it_lies(tmp_path):
    """What is not read, and the folder of a copy, have nothing scored again, nor stop processes of several hosts."""

    def identity(place, label=0, split="validation", **changes):
        (tmp_path / place).mkdir(exist_ok=True)
        row = {"text": "a", "other": "b", "label": label}
        (tmp_path / place / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        spec = DatasetSpec("sst", local=str(tmp_path / place), **changes.pop("spec", {}))
        record = dataclasses.replace(RECORDS["sst"], dataset=spec, **changes)
        answer = head_tasks.Answer(0, record.head())
        rows = StructuredRows(record, "validation")
        return head_tasks.HeadTask(rows, "validation", answer).identity

    own = identity("here")
    assert own == identity("there")
    assert own == identity("here", differs="in other words")
    others = [
        identity("labelled", label=1),
        identity("here", sentence1="other"),
        identity("here", sentence2="other"),
        identity("here", labels=("positive", "negative")),
        identity("here", where="label"),
        identity("here", spec={"recodes": (("label", (1, 0)),)}),
        identity("parts", splits=("train", "validation[:50%]", None)),
        identity("here", scale=(0.0, 1.0), labels=()),
    ]
    assert len({own, *others}) == 1 + len(others)


def test_labels_are_matched_by_name():
    heads = [head("anli", "classification", ("contradiction", "neutral", "entailment"))]
    answer = head_tasks.answer_of(heads, RECORDS["pairs"], "anli")
    assert answer.columns == ((2,), (1,), (0,))
    assert answer.logits(np.array([1.0, 2.0, 3.0])).tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("nameless", [("LABEL_0", "LABEL_1"), ("0", "1")])
def test_labels_without_names_are_matched_by_number(nameless):
    numbered = [head("tiny/sst2", "classification", nameless)]
    assert head_tasks.answer_of(numbered, RECORDS["sst"]).columns is None


@pytest.mark.parametrize(
    "others", [("thumbs up", "thumbs down"), ("positive", "bad"), ("LABEL_1", "LABEL_0")]
)
def test_other_names_are_refused(others):
    """By number the first of them would turn every answer round."""
    named = [head("tiny/sst2", "classification", others)]
    with pytest.raises(evaluate.EvaluationError, match=r"'negative', 'positive'.*choose") as caught:
        head_tasks.answer_of(named, RECORDS["sst"])
    assert all(repr(label) in str(caught.value) for label in others)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (
            "sst",
            "; let another's with its labels answer (--evaluate.head tiny/moods), or fine-tune",
        ),
        ("pairs", " and none with its labels; fine-tune"),
        ("quiz", "; let another's of its kind answer (--evaluate.head tiny/quiz), or fine-tune"),
        ("score", "; fine-tune"),
    ],
)
def test_heads_that_would_do_are_named(record, told):
    """Not those of numbers: nothing tells their scales."""
    heads = [
        head("tiny/moods", "classification", ("positive", "negative")),
        head("tiny/quiz", "multiple_choice"),
        head("tiny/ratings", "regression"),
    ]
    with pytest.raises(head_tasks.NoHead) as caught:
        head_tasks.answer_of(heads, RECORDS[record])
    assert f"no head for this task{told}" in str(caught.value)


def test_without_a_head_of_its_kind_a_question_is_told_so():
    with pytest.raises(head_tasks.NoHead, match="for this task and none of its kind; fine-tune"):
        head_tasks.answer_of([head("tiny/ratings", "regression")], RECORDS["quiz"])
