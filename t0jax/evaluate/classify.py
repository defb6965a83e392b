"""Scoring by heads: what a multitask encoder answers to structured tasks, measured as each kind of task is.

Every row of a split is read, of multiple choice every option. Ranked answers go where those of prompts go (`ScoredRow`,
with log-probabilities in nats); numbers, sets of labels and tags are `AnsweredRow`s.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t0jax import processes
from t0jax.data.structured.encoding import encode_items
from t0jax.data.structured.pieces import PairPieces
from t0jax.data.structured.records import Example
from t0jax.evaluate.evaluation import Evaluation
from t0jax.evaluate.exchange import gather_rows
from t0jax.evaluate.head_tasks import HeadTask, find_head_tasks
from t0jax.evaluate.progress import Progress
from t0jax.evaluate.tasks import check_missing
from t0jax.models import Network, Params
from t0jax.results import (
    EvaluationError,
    Results,
    ResultsFolder,
    ScoredRow,
    accuracy,
    chance,
    macro_f1,
    structured,
)
from t0jax.results.structured import AnsweredRow
from t0jax.scoring.heads import HeadExample, HeadScorer, Scores, log_softmax

Row = ScoredRow | AnsweredRow
RANKED = ("classification", "multiple_choice")
CHECKED_ROWS = 20
"""Of each task, before anything is scored: rows that cannot be are mostly among the first."""
READ_ROWS = 64
"""Rows that are tokenised at a time."""


class ClassifyEvaluator(Evaluation):
    """An evaluation of one mixture of structured tasks by a model's heads."""

    METHOD = "classify"
    DEPENDS_ON = ("max_input_length", "max_examples", "head")
    PIECES = PairPieces

    def _open_tasks(self) -> None:
        if not self.heads:
            raise EvaluationError(
                "the model has no heads, so it answers no structured task; score prompts with evaluate.method rank"
            )
        asked = self.mixture, self.data, self.split, self.heads, self.settings.head
        self.tasks, missing, without = find_head_tasks(*asked)
        self.unscored = missing | without
        # Alone, what nobody can have is told as what is missing: there is nothing to go on with.
        lacking = missing if self.tasks else self.unscored
        check_missing(self.mixture, self.data, lacking, len(self.tasks), self.split)
        for task in self.tasks:
            for row in self._rows(task)[:CHECKED_ROWS]:
                _ = task.rows[row]

    def _prepare(self, network: Network, mesh: jax.sharding.Mesh) -> None:
        settings = self.settings
        self.scorer = HeadScorer(network, mesh, settings.max_input_length, settings.batch_size)

    def _chosen(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in self.DEPENDS_ON}

    def _score(
        self, params: Params, todo: Sequence[int], told: Progress
    ) -> Iterator[tuple[int, list[Row]]]:
        windows = (
            [(example.about[0], self._answer(example, scores)) for example, scores in window]
            for window in self.scorer.windows(params, self._examples(todo))
        )
        return self._gathered(windows, todo, told, self.scorer.slices, self._exchange)

    def _exchange(self, number: int, rows: Sequence[Row]) -> list[Row]:
        task = self.tasks[number]
        ranked = task.record.kind in RANKED
        rows = gather_rows(rows) if ranked else gather_rows(rows, exchange_answers)
        if not rows:
            raise EvaluationError(
                f"task {task.name!r}: no row of the split {task.rows.split} has a label that is told; score a split "
                "with labels, or leave the task out"
            )
        return rows

    def _examples(self, todo: Sequence[int]) -> Iterator[HeadExample]:
        """This process's rows of the tasks `todo` whose labels are told."""
        for number in todo:
            task = self.tasks[number]
            mine = self._rows(task)[self.scorer.slice :: self.scorer.slices]
            for start in range(0, len(mine), READ_ROWS):
                yield from self._encoded(number, task, mine[start : start + READ_ROWS])

    def _encoded(self, number: int, task: HeadTask, rows: Sequence[int]) -> Iterator[HeadExample]:
        read = [(row, example) for row in rows if (example := task.rows[row]) is not None]
        longest = self.settings.max_input_length
        items = encode_items([example for _, example in read], self.pieces, longest)
        tokens = task.record.kind == "token_classification"
        for (row, _), item in zip(read, items, strict=True):
            output = "tokens" if tokens else "sequence"
            yield HeadExample(row, item.rows, task.answer.number, output, about=(number, item))

    def _answer(self, example: HeadExample, scores: Scores) -> Row:
        """What the head says of a row, beside what is right."""
        number, item = example.about
        task = self.tasks[number]
        kind, read = task.record.kind, task.answer.logits
        if kind in RANKED:
            logits = read(scores[0]) if kind == "classification" else np.concatenate(scores)
            return ScoredRow(example.index, log_softmax(logits), (item.label,), (), item.cut)
        if kind == "token_classification":
            target, found = tags(task.labels, item, read(scores[0]))
        elif kind == "multilabel":
            logits = read(scores[0])
            target, found = list(item.label), np.flatnonzero(logits > 0).tolist()
        else:
            target, found = float(item.label), float(scores[0][0])
        finite = all(np.isfinite(values).all() for values in scores)
        return AnsweredRow(example.index, target, found if finite else None, item.cut)

    def _rates(self, task: HeadTask, rows: Sequence[Any]) -> dict[str, Any]:
        for row in rows:
            given = row.scores if isinstance(row, ScoredRow) else row.prediction
            if given is None or (isinstance(row, ScoredRow) and not np.isfinite(given).all()):
                raise EvaluationError(
                    f"task {task.name!r}, row {row.row}: an output is not finite; the model's weights are broken, or "
                    "float16-like overflow: use float32 or bfloat16"
                )
        kind = task.record.kind
        ranked = kind in RANKED
        targets = [row.correct[0] if ranked else row.target for row in rows]
        rates = _ranked(kind, rows) if ranked else _answered(kind, rows, task.labels)
        return {
            "kind": kind,
            **rates,
            # Always the commonest tag finds no entity: a share of words would stand beside a score of entities.
            "majority": None
            if "entity_f1" in rates.get("metrics", {})
            else structured.majority(kind, targets),
            "truncated": float(np.mean([row.cut for row in rows])),
            "answer_choices": list(task.labels) or None,
        }

    def _value(self, found: Mapping[str, Any]) -> str:
        text = f"{structured.main_metric(found)} {structured.main_value(found):.3f}"
        return text + (f" (chance {found['chance']:.3f})" if "chance" in found else "")

    def _conclude(self, folder: ResultsFolder, results: Results) -> None:
        folder.write_rows(self._hard_rows(folder, results))

    def _shown(self, task: HeadTask, row: int) -> tuple[str, list[str]] | None:
        example = task.rows[row]
        return None if example is None else in_words(task, example)


def in_words(task: HeadTask, example: Example) -> tuple[str, list[str]]:
    """What a report shows of a ranked row: its text, and its options or the task's labels."""
    first, second = example.texts[0]
    if task.record.kind == "multiple_choice":
        return first, [option or "" for _, option in example.texts]
    return first if second is None else f"{first}\n\n{second}", list(task.labels)


def tags(labels: Sequence[str], item: Any, logits: np.ndarray) -> tuple[list[str], list[str]]:
    """The tags of a sentence's labelled words and the likeliest ones by their first tokens.

    A word that has no token, cut off or blank, is answered by O, or the first label where there is none.
    """
    outside = "O" if "O" in labels else labels[0]
    pairs = [
        (labels[int(tag)], outside if first < 0 else labels[int(np.argmax(logits[first]))])
        for tag, first in zip(item.label, item.first, strict=True)
        if tag >= 0
    ]
    return [right for right, _ in pairs], [found for _, found in pairs]


def _ranked(kind: str, rows: Sequence[ScoredRow]) -> dict[str, Any]:
    rates = {"accuracy": accuracy(rows), "chance": chance(rows)}
    if kind == "classification":  # places of shuffled options are no classes
        rates["macro_f1"] = macro_f1([row.gold for row in rows], [row.prediction for row in rows])
    return rates


def _answered(kind: str, rows: Sequence[AnsweredRow], labels: Sequence[str]) -> dict[str, Any]:
    lines = [row.to_json() for row in rows]
    found = structured.measure(kind, lines, labels)
    metrics = {name: float(values[0]) for name, values in found.items()}
    return {"metrics": metrics, "score": structured.main_value({"kind": kind, "metrics": metrics})}


def exchange_answers(rows: Sequence[AnsweredRow]) -> list[AnsweredRow]:
    """The rows of all processes, in no order."""
    parts = processes.tell([tuple(vars(row).values()) for row in rows], "exchanging answers")
    return [AnsweredRow(*row) for part in parts for row in part]
