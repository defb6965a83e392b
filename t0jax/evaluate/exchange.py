"""What the processes of an evaluation tell each other: how far they are, their rows, what is already there."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from t0jax import processes
from t0jax.results import EvaluationError, ScoredRow

Row = TypeVar("Row", bound=Any)


def agree(content: str, what: str) -> None:
    """Stops every process when they have not all the same `content`.

    Raises:
        EvaluationError: they differ in `what`.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(content.encode()).digest()[:8], np.int32)
    everyone = processes.gather(digest, f"comparing {what}")
    others = np.flatnonzero((everyone != everyone[0]).any(axis=1))
    if len(others):
        raise EvaluationError(
            f"{what} are not the same on all processes: process {others[0]} differs from process 0; give all of "
            "them the same data, prompts and settings"
        )


def least(value: int) -> int:
    """The smallest value of all processes."""
    if jax.process_count() == 1:
        return value
    return int(processes.gather(np.int32(value), "scoring").min())


def gather_rows(
    rows: Sequence[Row], exchange: Callable[[Sequence[Any]], list[Any]] | None = None
) -> list[Row]:
    """The rows of all processes, each once, by row number; a collective in a multi-process run."""
    many = jax.process_count() > 1
    found: Sequence[Any] = (exchange or exchange_rows)(rows) if many else rows
    return sorted({row.row: row for row in found}.values(), key=lambda row: row.row)


def exchange_rows(rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """The rows of all processes, in no order."""
    sizes = np.array([len(rows), max((len(row.scores) for row in rows), default=0)], np.int32)
    count, choices = processes.gather(sizes, "exchanging scores").max(axis=0)
    # Padding rows have number -1; absent choices are marked, as NaN may be a score.
    numbers = np.full((count, 4), -1, np.int32)
    scores = np.zeros((count, choices), np.float32)
    grades = np.zeros((count, choices), np.float64)
    correct = np.zeros((count, choices), bool)
    for i, row in enumerate(rows):
        numbers[i] = row.row, len(row.scores), len(row.grades), row.cut
        scores[i, : len(row.scores)] = row.scores
        grades[i, : len(row.grades)] = row.grades
        correct[i, list(row.correct)] = True
    # JAX would round float64 to float32: it goes as what it is made of.
    everyone = processes.gather(
        (numbers, scores, grades.view(np.int32), correct), "exchanging scores"
    )
    numbers, scores, grades, correct = (np.concatenate(list(part)) for part in everyone)
    grades = grades.view(np.float64)
    return [
        ScoredRow(
            int(row),
            scores[i, :k],
            tuple(map(int, np.flatnonzero(correct[i]))),
            tuple(grades[i, :graded].tolist()),
            bool(cut),
        )
        for i, (row, k, graded, cut) in enumerate(numbers)
        if row >= 0
    ]
