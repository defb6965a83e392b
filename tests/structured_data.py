"""Declarations of structured records for tests, each a function of what differs from the usual."""

import json

from t0jax.data.structured.records import Classification, MultipleChoice, TokenClassification


def Topic(**changes):
    """A classification of one text as news or sport."""
    usual = {"dataset": "topics", "sentence1": "text", "labels": ("news", "sport")}
    return Classification(**usual | changes)


def Choices(**changes):
    """A question with a list of options."""
    usual = {"dataset": "questions", "inputs": "text", "choices": "options", "label": "right"}
    return MultipleChoice(**usual | changes)


def Tags(**changes):
    """Words tagged N or V."""
    usual = {"dataset": "tagged", "tokens": "tokens", "tags": "tags", "labels": ("N", "V")}
    return TokenClassification(**usual | changes)


def write_rows(root, dataset, split, rows):
    """Writes `<root>/<dataset>/default/<split>.jsonl`."""
    path = root / dataset / "default" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_mixed_data(root):
    """Writes topics, of which some are long, questions of two to five options, and tagged words."""
    topics = [
        {"text": f"t{i} " + "news of the day " * (12 if i % 17 == 5 else i % 4), "label": i % 2}
        for i in range(60)
    ]
    questions = [
        {
            "text": f"q{i} which one",
            "options": [f"o{i}x{j}" for j in range(2 + i % 4)],
            "right": i % 2,
        }
        for i in range(24)
    ]
    tagged = [{"tokens": [f"w{i}", "runs", "unknown"], "tags": ["N", "V", None]} for i in range(16)]
    for dataset, rows in (("topics", topics), ("questions", questions), ("tagged", tagged)):
        for split, count in (("train", len(rows)), ("validation", 7)):
            write_rows(root, dataset, split, rows[:count])
