"""Rows that were scored by ranking choices, and their metrics."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ScoredRow:
    """One row of a data set through one prompt.

    Attributes:
        row: its number in the data set.
        scores: of each choice, in nats, float32.
        correct: the right choices.
        grades: what each choice is worth; empty where those in `correct` are worth 1 and the others nothing.
        cut: its text was too long and lost some.
    """

    row: int
    scores: np.ndarray
    correct: tuple[int, ...]
    grades: tuple[float, ...] = ()
    cut: bool = False

    @property
    def prediction(self) -> int:
        """The likeliest choice; the first of equal ones."""
        return int(np.argmax(self.scores))

    @property
    def gold(self) -> int:
        """The right choice; of several the predicted one, if it is among them."""
        return self.prediction if self.prediction in self.correct else self.correct[0]

    @property
    def worth(self) -> tuple[float, ...]:
        """The grade of each choice."""
        return self.grades or tuple(float(k in self.correct) for k in range(len(self.scores)))

    def to_json(self) -> dict[str, Any]:
        """A line of `scores/<task>.jsonl`."""
        line = {
            "row": self.row,
            "scores": [float(str(score)) for score in self.scores],
            "gold": list(self.correct),
            "prediction": self.prediction,
        }
        if self.grades:
            line["grades"] = list(self.grades)
        return line | ({"cut": True} if self.cut else {})


def accuracy(rows: Sequence[ScoredRow]) -> float:
    """Share of rows whose prediction is one of the right choices."""
    return float(np.mean([row.prediction in row.correct for row in rows]))


def grade(rows: Sequence[ScoredRow]) -> float:
    """Mean grade of the predictions: BIG-bench's `multiple_choice_grade`; the accuracy of rows without grades.

    BIG-bench's documentation calls it a weighted multiple choice accuracy: each choice has a score, and that of the
    likeliest choice counts. lm-evaluation-harness computes the same for its BIG-bench tasks.
    """
    return float(np.mean([row.worth[row.prediction] for row in rows]))


def chance(rows: Sequence[ScoredRow]) -> float:
    """Expected grade of a uniform guess: the mean over rows of a choice's mean grade (right choices / choices)."""
    return float(np.mean([np.mean(row.worth) for row in rows]))


def macro_f1(gold: Sequence[int], predicted: Sequence[int]) -> float:
    """Unweighted mean of F1 over the classes that occur in either (scikit-learn's `f1_score(average="macro")`)."""
    right, wanted = np.asarray(gold), np.asarray(predicted)
    values = []
    for label in np.union1d(right, wanted):
        hits = np.sum((right == label) & (wanted == label))
        values.append(2 * hits / (np.sum(right == label) + np.sum(wanted == label)))
    return float(np.mean(values))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, inter-quartile range (linear interpolation) and population standard deviation."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {
        "mean": float(np.mean(values)),
        "median": float(middle),
        "iqr": float(high - low),
        "std": float(np.std(values)),
    }


def hardest(
    rows_by_task: Mapping[str, Sequence[tuple[int, bool]]], limit: int = 10
) -> list[tuple[int, int, int]]:
    """The rows of a data set that most prompts get wrong, worst first, ties by row number.

    Args:
        rows_by_task: for each prompt's task (row number, whether it is right), of the rows it applies to.
        limit: rows to name.

    Returns:
        (row, prompts that get it wrong, prompts that apply to it); rows that all prompts get right are left out.
    """
    seen: Counter[int] = Counter()
    wrong: Counter[int] = Counter()
    for rows in rows_by_task.values():
        seen.update(row for row, _ in rows)
        wrong.update(row for row, right in rows if not right)
    worst = sorted(wrong, key=lambda row: (-wrong[row], row))[:limit]
    return [(row, wrong[row], seen[row]) for row in worst]


def parity(rows: Sequence[ScoredRow], groups: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How predictions differ between groups of people that a data set was made to compare.

    Args:
        rows: scored rows.
        groups: (pair, group) of each; the rows of a pair differ in the group alone. '' is no pair.

    Returns:
        `accuracy` by group and their `gap`, largest less smallest; where there are pairs, their number (`pairs`) and
        the share with the same prediction for all (`same`: SuperGLUE's gender parity score for AX-g, Wang et al. 2019).
    """
    by_group: dict[str, list[bool]] = {}
    by_pair: dict[str, list[int]] = {}
    for row, (pair, group) in zip(rows, groups, strict=True):
        by_group.setdefault(group, []).append(row.prediction in row.correct)
        if pair:
            by_pair.setdefault(pair, []).append(row.prediction)
    rates = {group: float(np.mean(hits)) for group, hits in sorted(by_group.items())}
    found: dict[str, Any] = {"accuracy": rates, "gap": max(rates.values()) - min(rates.values())}
    pairs = [predictions for predictions in by_pair.values() if len(predictions) > 1]
    if pairs:
        same = float(np.mean([len(set(predictions)) == 1 for predictions in pairs]))
        found |= {"pairs": len(pairs), "same": same}
    return found
