"""Metrics of structured tasks: what heads answer, measured as the tasks' literature does.

Classification and multiple choice are ranked rows (`ScoredRow`) with their accuracy. Here are the others: macro-F1 of
classes (the places of a question's options are none), regression (Pearson, Spearman), multi-label (F1 at a probability
of one half) and token classification (token accuracy, F1 of entities). Each takes weights of the rows, [samples, rows],
so that one implementation gives the figure (all weights 1) and its bootstrap samples (how often each row was drawn).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAIN_METRIC = {
    "classification": "accuracy",
    "multiple_choice": "accuracy",
    "regression": "pearson",
    "multilabel": "macro_f1",
    "token_classification": "token_accuracy",
}
"""By kind of task: what counts in a mean over tasks. Of tags of entities it is `entity_f1`."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class AnsweredRow:
    """What a head answered to one row, where that is no choice of one.

    Attributes:
        row: its number in the data set.
        target: of regression a number, of multi-label the numbers of the labels that hold, of tokens their tags.
        prediction: the same of the head.
        cut: its text was too long and lost some.
    """

    row: int
    target: Any
    prediction: Any
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """A line of `scores/<task>.jsonl`."""
        line = {"row": self.row, "target": self.target, "prediction": self.prediction}
        return line | ({"cut": True} if self.cut else {})


def main_metric(entry: Mapping[str, Any]) -> str:
    """The metric of a structured task that counts in a mean over tasks."""
    return "entity_f1" if "entity_f1" in entry.get("metrics", {}) else MAIN_METRIC[entry["kind"]]


def main_value(entry: Mapping[str, Any]) -> float:
    """Its value."""
    return entry["accuracy"] if "accuracy" in entry else entry["metrics"][main_metric(entry)]


def measure(
    kind: str, lines: Sequence[Line], labels: Sequence[str], weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The metrics of a task.

    Args:
        kind: regression, multilabel or token_classification; of classification macro-F1 alone.
        lines: of its rows, as `AnsweredRow.to_json` has them, of classification as `ScoredRow.to_json`.
        labels: names of the task's labels or tags.
        weights: [samples, rows]; one sample of all rows when None.

    Returns:
        By metric, [samples].
    """
    weights = np.ones((1, len(lines))) if weights is None else weights
    if kind == "classification":
        return {"macro_f1": _class_f1(lines, weights)}
    if kind == "regression":
        return _correlations(lines, weights)
    if kind == "multilabel":
        return _label_f1(lines, len(labels), weights)
    return _tagging(lines, has_entities(labels), weights)


# ---------------------------------------------------------------------------------------------------------------------
# Regression


def _correlations(lines: Sequence[Line], weights: np.ndarray) -> dict[str, np.ndarray]:
    gold, predicted = (
        np.array([line[side] for line in lines], float) for side in ("target", "prediction")
    )
    both = gold[None], predicted[None]
    ranks = _weighted_ranks(gold, weights), _weighted_ranks(predicted, weights)
    return {"pearson": _pearson(*both, weights), "spearman": _pearson(*ranks, weights)}


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation by sample; 0 where either side is constant, which says nothing about the other."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in (x, y))
    product, squares = (weights * x * y).sum(axis=1), (weights * x**2).sum(axis=1)
    scale = np.sqrt(squares * (weights * y**2).sum(axis=1))
    # Constant values leave rounding errors, not zeros.
    there = scale > 1e-12 * total[:, 0]
    return np.divide(product, scale, out=np.zeros_like(scale), where=there)


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[samples, rows]: the average rank of each value among rows that occur `weights` times; ties share theirs."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, group]


# ---------------------------------------------------------------------------------------------------------------------
# F1


def f1(hits: np.ndarray, wanted: np.ndarray, given: np.ndarray) -> np.ndarray:
    """2 hits / (wanted + given); 0 where nothing is wanted or given."""
    total = wanted + given
    return np.divide(2 * hits, total, out=np.zeros_like(total, float), where=total > 0)


def _class_f1(lines: Sequence[Line], weights: np.ndarray) -> np.ndarray:
    """Of ranked classes, by sample the mean over those that occur in it, as `results.macro_f1`."""
    gold, predicted = (np.array(side) for side in zip(*map(_sides, lines), strict=True))
    classes = np.union1d(gold, predicted)
    wanted, given = ((side[:, None] == classes).astype(float) for side in (gold, predicted))
    sums = [weights @ part for part in (wanted * given, wanted, given)]
    return f1(*sums).sum(axis=1) / (sums[1] + sums[2] > 0).sum(axis=1)


def _sides(line: Line) -> tuple[int, int]:
    """(right class, prediction)."""
    return line["gold"][0], line["prediction"]


def _label_f1(lines: Sequence[Line], labels: int, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Of multi-label answers, over all labels as scikit-learn's `f1_score` has it."""
    gold, predicted = np.zeros((2, len(lines), labels))
    for number, line in enumerate(lines):
        gold[number, list(line["target"])] = 1
        predicted[number, list(line["prediction"])] = 1
    sums = [weights @ part for part in (gold * predicted, gold, predicted)]
    exact = (gold == predicted).all(axis=1)
    return {
        "macro_f1": f1(*sums).mean(axis=1),
        "micro_f1": f1(*(part.sum(axis=1) for part in sums)),
        "exact_match": weights @ exact / weights.sum(axis=1),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, last) of the entities in a sentence's tags, by the rules of CoNLL's `conlleval` script.

    Prefixes are B-, I-, O and, if there are any, E- and S-. An entity begins at B or S, and at I or E where the one
    before has another type or has ended; it ends before whatever begins another or is outside. seqeval's default.
    """
    found, first = set(), -1
    cut = [_cut(tag) for tag in tags]
    for at, (prefix, kind) in enumerate(cut):
        before = cut[at - 1] if at else ("O", "")
        after = cut[at + 1] if at + 1 < len(cut) else ("O", "")
        if _begins(before, (prefix, kind)):
            first = at
        if prefix != "O" and (after[0] == "O" or _begins((prefix, kind), after)):
            found.add((kind, first, at))
    return found


def _cut(tag: str) -> tuple[str, str]:
    prefix, _, kind = tag.partition("-")
    return ("O", "") if prefix == "O" else (prefix, kind)


def _begins(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    """Whether an entity begins at `tag`."""
    if tag[0] == "O":
        return False
    return tag[0] in "BS" or before[0] in "OES" or before[1] != tag[1]


def has_entities(tags: Sequence[str]) -> bool:
    """Whether the names of tags mark entities: B-..., I-... and O, not parts of speech."""
    named = [tag for tag in tags if tag != "O"]
    return bool(named) and all(tag[:2] in ("B-", "I-", "E-", "S-") for tag in named)


def _tagging(
    lines: Sequence[Line], of_entities: bool, weights: np.ndarray
) -> dict[str, np.ndarray]:
    right = [
        sum(a == b for a, b in zip(line["target"], line["prediction"], strict=True))
        for line in lines
    ]
    found = {
        "token_accuracy": weights
        @ np.array(right, float)
        / np.maximum(weights @ np.array([len(line["target"]) for line in lines]), 1)
    }
    if of_entities:
        pairs = [(entities(line["target"]), entities(line["prediction"])) for line in lines]
        counts = np.array([(len(a & b), len(a), len(b)) for a, b in pairs], float)
        found["entity_f1"] = f1(*(weights @ counts).T)
    return found


def majority(kind: str, targets: Sequence[Any]) -> float | None:
    """Share of the most frequent answer, of tokens of the most frequent tag; None where answers are no classes."""
    if kind in ("regression", "multilabel"):
        return None
    flat = [tag for tags in targets for tag in tags] if kind == "token_classification" else targets
    _, counts = np.unique(np.array(flat), return_counts=True)
    return float(counts.max() / counts.sum())


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def macro(entries: Mapping[str, Mapping[str, Any]]) -> float:
    """Mean over tasks of what counts for each."""
    return float(np.mean([main_value(entry) for entry in entries.values()]))


_TABLE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "kind": lambda entry: entry["kind"].replace("_", " "),
    "n": lambda entry: str(entry["n"]),
    "metric": main_metric,
    "value": lambda entry: f"{main_value(entry):.3f}",
    "macro F1": lambda entry: _rate(
        entry.get("macro_f1", entry.get("metrics", {}).get("macro_f1"))
    ),
    "chance": lambda entry: _rate(entry.get("chance")),
    "majority": lambda entry: _rate(entry.get("majority")),
}


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table_lines(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a task: its kind, rows, what counts, macro-F1, chance and the most frequent answer's share."""
    rows = [["task", *_TABLE]]
    rows += [[name, *(cell(entry) for cell in _TABLE.values())] for name, entry in entries.items()]
    if len(entries) > 1:
        rows.append(
            [f"mean over {len(entries)} tasks", "", "", "", f"{macro(entries):.3f}", "", "", ""]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if k in (0, 1, 3) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for name, entry in entries.items():
        others = {m: v for m, v in entry.get("metrics", {}).items() if m != main_metric(entry)}
        if others:
            text.append(f"{name}: " + ", ".join(f"{m} {v:.3f}" for m, v in others.items()))
    return text
