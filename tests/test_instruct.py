"""Structured examples as text: tasksource-instruct's wording, FLIPPED's view of it, and mixtures that T0 trains on."""

import json
from dataclasses import replace

import pytest

from t0jax import config
from t0jax.data import sources, views
from t0jax.data.loader import make_loader
from t0jax.data.rows import DatasetSpec
from t0jax.data.structured.instruct import is_verbal, to_text
from t0jax.data.structured.instruct_tasks import add_instruct_tasks
from t0jax.data.structured.records import (
    Classification,
    MultipleChoice,
    RecordError,
    TokenClassification,
)
from t0jax.data.vocabulary import Pieces, train_sentencepiece
from t0jax.evaluate import tasks as evaluation
from tasks import tasksource_instruct

NLI = ("entailment", "neutral", "contradiction")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
PAIRS = Classification(dataset="pairs", sentence1="a", sentence2="b", labels=NLI)
TEXTS = Classification(dataset="texts", sentence1="a", labels=("bad", "good"))
WEEK = Classification(dataset="week", sentence1="a", labels=DAYS)
QUESTIONS = MultipleChoice(dataset="questions", inputs="a", choices="options")
TAGS = TokenClassification(dataset="tags", tokens="words", tags="tags", labels=("O", "B-place"))

WORDED = [
    (
        PAIRS,
        {"a": "A man sleeps.", "b": "He is awake.", "label": 2},
        'With no explanation, label text_A→text_B with either "entailment", "neutral" or "contradiction".\n'
        "text_A: A man sleeps.\ntext_B: He is awake.",
        "contradiction.",
    ),
    (
        TEXTS,
        {"a": " fine ", "label": 1},
        'With no explanation, label the following with either "bad" or "good".\n fine',
        "good.",
    ),
    (
        QUESTIONS,
        {"a": "What is wet?", "options": ["fire", "rain", "wood"], "label": 1},
        'With no explanation, chose the best option from "A", "B" or "C". What is wet?\n\nA: fire\nB: rain\nC: wood',
        "B.",
    ),
    (
        QUESTIONS,
        {"a": "", "options": ["do", "do not"], "label": 0},
        'With no explanation, chose the best option from "A" or "B". \nA: do\nB: do not',
        "A.",
    ),
    (
        QUESTIONS,
        {"a": "Is it tea or milk?", "options": ["milk", "tea"], "label": 1},
        "Is it tea or milk?",
        "tea.",
    ),
    (
        TAGS,
        {"words": ["in", "Oslo"], "tags": [0, 1]},
        'With no explanation, label each line with "O" or "B-place" preceded by ":".\nin\nOslo',
        "in:O\nOslo:B-place",
    ),
]


@pytest.mark.parametrize(("record", "row", "inputs", "targets"), WORDED)
def test_wording(record, row, inputs, targets):
    rendered = to_text(record, record.example(row))
    assert (rendered.inputs, rendered.targets) == (inputs, targets)
    if record.kind != "token_classification":
        assert rendered.choices.index(targets) == row["label"]


@pytest.mark.parametrize(("record", "row", "inputs", "targets"), WORDED)
def test_flipped_writes_the_instruction_and_reads_the_rest(record, row, inputs, targets):
    rendered = to_text(record, record.example(row))
    assert rendered.split.text == rendered.inputs
    own = rendered.split.literals
    assert all(
        "With no explanation" not in part for part in rendered.split.parts if str(part) == part
    )
    lesson = views.lesson(views.VIEWS["flipped"], rendered, negatives=1)
    if not own:  # all options are in the question, so the prompt says nothing itself
        assert lesson is None
        return
    assert lesson.right.targets.startswith("<extra_id_0> With no explanation")
    assert all(literal in lesson.right.targets for literal in own)
    assert lesson.right.inputs.endswith(f"\n output: {targets}")
    assert [pair.targets for pair in lesson.wrong] == [lesson.right.targets] * len(lesson.wrong)


def test_labels_of_many_are_drawn_and_the_right_one_stands_anywhere():
    example = WEEK.example({"a": "after Tuesday", "label": 2})
    shown = [to_text(WEEK, example, seed) for seed in range(60)]
    assert all(len(set(one.choices)) == 4 for one in shown)
    assert {one.choices.index("Wednesday.") for one in shown} == {0, 1, 2, 3}
    assert {choice for one in shown for choice in one.choices} == {f"{day}." for day in DAYS}
    assert to_text(WEEK, example, 5) == shown[5]
    assert to_text(WEEK, example, options=None).choices == tuple(f"{day}." for day in DAYS)


@pytest.mark.parametrize(
    "record",
    [
        Classification(dataset="stars", sentence1="a", scale=(1.0, 5.0)),
        Classification(dataset="moods", sentence1="a", labels=("calm", "glad"), multilabel=True),
        Classification(dataset="numbers", sentence1="a", labels=("0", "1")),
    ],
)
def test_labels_that_are_no_words_are_refused(record):
    assert not is_verbal(record)
    with pytest.raises(RecordError, match=rf"task '{record.name}': .*cannot be asked for in words"):
        add_instruct_tasks(record)


# ------------------------------------------------------------------------------------------- as tasks

ROWS = {
    "pairs": [{"a": f"It rained {n} days.", "b": "It was wet.", "label": n % 3} for n in range(9)],
    "week": [{"a": f"day {n}", "label": n % 6 if n else -1} for n in range(13)],
    "questions": [
        {"a": f"What is {n}?", "options": ["a fig", "a nut", "a pea", "ice", "oil"], "label": n % 5}
        for n in range(10)
    ],
    "tags": [{"words": ["in", f"Oslo{n}"], "tags": [0, 1]} for n in range(4)],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The records over rows in files, registered as text, and the settings to read them with."""
    root = tmp_path_factory.mktemp("instruct")
    records = {}
    for record in (PAIRS, WEEK, QUESTIONS, TAGS):
        folder = root / record.name
        folder.mkdir()
        text = "".join(json.dumps(row) + "\n" for row in ROWS[record.name])
        (folder / "train.jsonl").write_text(text)
        spec = DatasetSpec(record.name, local=str(folder))
        records[record.name] = replace(record, dataset=spec, name=f"tests/{record.name}")
    texts = [to_text(r, e).inputs for r in records.values() for e in examples(r)] * 20
    vocabulary = train_sentencepiece(iter(texts), root / "instruct.model", 120)
    added = [task.name for record in records.values() for task in add_instruct_tasks(record)]
    train = [name for name in added if not name.endswith(sources.RANK_SUFFIX)]
    sources.add_mixture("instruct_train", dict.fromkeys(train, 1.0))
    rank = [name for name in added if name not in train]
    sources.add_mixture("instruct_score", dict.fromkeys(rank, 1.0))
    data = config.Data(
        mixture="instruct_train",
        modules=(),
        vocabulary=str(vocabulary),
        input_length=256,
        target_length=128,
        batch_size=8,
        shards=1,
        pack=False,
    )
    return records, data


def examples(record):
    """All labelled examples of a record's training rows."""
    found = map(record.example, ROWS[record.name.removeprefix("tests/")])
    return [example for example in found if example is not None]


@pytest.mark.parametrize("view", ["direct", "flipped"])
def test_text_models_train_on_records(world, view):
    _, data = world
    with make_loader(replace(data, view=view)) as loader:
        batches = [next(loader) for _ in range(6)]
    pieces = Pieces(data.vocabulary)
    side = "decoder_target_tokens" if view == "flipped" else "encoder_input_tokens"
    texts = {
        pieces.decode([int(i) for i in row if i > 1]) for batch in batches for row in batch[side]
    }
    for words in (
        "label text_A",
        "label the following with",
        "chose the best option",
        "label each line",
    ):
        assert any(words in text for text in texts), (words, texts)


def test_rank_tasks_show_all_choices_and_know_the_right_one(world):
    _, data = world
    tasks, missing = evaluation.find_tasks("instruct_score", data, "train")
    assert not missing
    assert len(tasks) == 3  # tags are written, not chosen
    for task in tasks:
        record = task.rows.record
        shown = [task.rows[n] for n in range(len(task.rows))]
        assert [one is None for one in shown] == [
            row.get("label") == -1 for row in ROWS[record.spec.name]
        ]
        told = [one for one in shown if one]
        assert {len(one.choices) for one in told} == {len(record.names) or 5}
        right = [one.choices[views.correct_choices(one)[0]] for one in told]
        assert right == [one.targets for one in told]
    week = next(task for task in tasks if task.rows.record.name == "tests/week")
    assert week.rows.template.fixed_answer_choices == [f"{day}." for day in DAYS]


def test_declaring_again_changes_nothing(world):
    records, _ = world
    again = add_instruct_tasks(records["pairs"])
    assert [task.name for task in again] == [
        "tests_pairs_instruct",
        "tests_pairs_instruct_score_eval",
    ]
    with pytest.raises(ValueError, match="already registered"):
        add_instruct_tasks(replace(records["pairs"], labels=NLI[::-1]))


def test_label_words_are_refused(world):
    records, _ = world
    source = add_instruct_tasks(records["pairs"])[0].source
    with pytest.raises(config.ConfigError, match="tests/pairs"):
        source.rows("train", label_words={"neutral": "perhaps"})


def test_all_tasks_with_labels_in_words_are_recast():
    names = sources.members(tasksource_instruct.NAME)
    assert {"glue_mnli_instruct", "dream_instruct", "wnut_17_wnut_17_instruct"} <= set(names)
    left_out = (
        "stsb",
        "sick_relatedness",
        "civil_comments",
        "go_emotions",
        "eval_emoji",
        "mmlu",
        "label_nli",
    )
    assert not [name for name in names if any(part in name for part in left_out)]
    assert max(names.values()) == 30_000
    assert len(sources.members(f"{tasksource_instruct.NAME}_local")) == 10
    assert len(sources.members(f"{tasksource_instruct.NAME}_local_score_eval")) == 9
