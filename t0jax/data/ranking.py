"""The metric of seqio's rank-classification tasks: which choice has the best score, and was it right.

Same definition as t5's `rank_classification` (t5 0.9.4, evaluation/metrics.py): the highest score of an example wins,
ties go to the first choice, any of several right choices counts; with a fixed number of choices F1 too, and with two
the areas under the ROC and precision-recall curves of choice 1.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Target = tuple[Sequence[int], bool, float, int]
"""(idx [example, choice], is_correct, weight, number of target tokens)."""


def rank_postprocess(
    score: Any, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """seqio postprocessor: the `Target` of a row, or the model's score as it is."""
    if not is_target or example is None:
        return score
    idx = tuple(int(i) for i in example["idx"])
    return (
        idx,
        bool(example["is_correct"]),
        float(example.get("weight", 1.0)),
        len(example["targets"]),
    )


def rank_classification(
    targets: Sequence[Target], scores: Sequence[float], num_classes: int | None = None
) -> dict[str, float]:
    """Accuracy, and F1 and AUC where they are defined, in percent.

    Args:
      targets: one per (example, choice) row, in any order.
      scores: log-probability of each row.
      num_classes: number of choices if every example has the same ones, else None (accuracy alone).

    Raises:
      ValueError: nothing to score, or an example without exactly `num_classes` rows.
    """
    if not targets:
        raise ValueError(
            "no rows to score: every example was left out (no label, or the prompt does not apply)"
        )
    groups = _by_example(targets, scores)
    best = [int(np.argmax([score for _, _, score in rows])) for rows in groups]
    hits = [rows[k][0] for rows, k in zip(groups, best, strict=True)]
    weights = np.array([rows[0][1] for rows in groups])
    metrics = {"accuracy": 100.0 * float(np.average(hits, weights=weights))}
    if not num_classes:
        return metrics
    if any(len(rows) != num_classes for rows in groups):
        raise ValueError(
            f"expected {num_classes} choices for every example, got {set(map(len, groups))}"
        )
    right = np.array(
        [[correct for correct, _, _ in rows] for rows in groups]
    )  # [examples, classes]
    if (right.sum(axis=1) != 1).any():
        return metrics
    gold, log_probs = (
        right.argmax(axis=1),
        np.array([[s for _, _, s in rows] for rows in groups], np.float64),
    )
    return metrics | _classification(gold, np.array(best), log_probs, weights)


def _by_example(
    targets: Sequence[Target], scores: Sequence[float]
) -> list[list[tuple[bool, float, float]]]:
    """Rows of each example in the order of its choices: (is_correct, weight, score)."""
    groups: dict[int, dict[int, tuple[bool, float, float]]] = defaultdict(dict)
    for (idx, correct, weight, _), score in zip(targets, scores, strict=True):
        groups[int(idx[0])][int(idx[1])] = (bool(correct), float(weight), float(score))
    return [[rows[k] for k in sorted(rows)] for _, rows in sorted(groups.items())]


def _classification(
    gold: np.ndarray, predicted: np.ndarray, log_probs: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    classes = log_probs.shape[1]
    f1 = [_f1(gold == k, predicted == k, weights) for k in range(classes)]
    if classes != 2:
        return {f"mean_{classes}class_f1": 100.0 * float(np.mean(f1))}
    metrics = {"f1": 100.0 * f1[1]}
    if 0 < gold.sum() < len(gold):
        margin = log_probs[:, 1] - log_probs[:, 0]
        metrics |= {"auc-roc": 100.0 * _auc_roc(gold == 1, margin, weights)}
        metrics |= {"auc-pr": 100.0 * _auc_pr(gold == 1, margin, weights)}
    return metrics


def _f1(gold: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    both, either = weights[gold & predicted].sum(), weights[gold].sum() + weights[predicted].sum()
    return float(2 * both / either) if either else 0.0


def _curve(
    gold: np.ndarray, margin: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of true and of false positives at each distinct threshold, highest first."""
    order = np.argsort(-margin, kind="stable")
    last = np.append(np.flatnonzero(np.diff(margin[order])), len(order) - 1)
    ordered = np.where(gold, weights, 0.0)[order], np.where(gold, 0.0, weights)[order]
    return ordered[0].cumsum()[last], ordered[1].cumsum()[last]


def _auc_roc(gold: np.ndarray, margin: np.ndarray, weights: np.ndarray) -> float:
    true, false = (np.insert(x, 0, 0.0) / x[-1] for x in _curve(gold, margin, weights))
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def _auc_pr(gold: np.ndarray, margin: np.ndarray, weights: np.ndarray) -> float:
    """Average precision: precision at each threshold, weighted by the recall it adds."""
    true, false = _curve(gold, margin, weights)
    return float(np.sum(np.diff(np.insert(true, 0, 0.0)) / true[-1] * true / (true + false)))
