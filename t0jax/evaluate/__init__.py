"""Scoring a mixture: accuracy of every prompt by rank classification, then their median and spread by data set.

`Evaluator` is prepared once and called with parameters as often as one likes. It streams the prompts' rows through
`scoring.Scorer` and keeps scores alone; in a multi-process run each process reads and scores its own rows. With a
folder it goes on where it was stopped: prompts whose results are there are not scored again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t0jax import config as config_lib
from t0jax.evaluate.classify import ClassifyEvaluator
from t0jax.evaluate.evaluation import Evaluation
from t0jax.evaluate.exchange import gather_rows
from t0jax.evaluate.progress import Progress
from t0jax.evaluate.tasks import (
    Encoder,
    RankTask,
    check_missing,
    check_rows,
    find_tasks,
)
from t0jax.evaluate.text import TextEvaluator
from t0jax.metrics import note
from t0jax.models import Network, Params
from t0jax.results import (
    EvaluationError,
    Results,
    ResultsFolder,
    ScoredRow,
    chance,
    grade,
    macro_f1,
    parity,
)
from t0jax.scoring import RankExample, Scorer

__all__ = [
    "ClassifyEvaluator",
    "Encoder",
    "Evaluation",
    "EvaluationError",
    "Evaluator",
    "RankTask",
    "ResultsFolder",
    "TextEvaluator",
    "find_tasks",
    "make_evaluator",
]


CHECKED_ROWS = 20
"""Of each task, before anything is scored: rows that cannot be are mostly among the first."""


class Evaluator(Evaluation):
    """Rank classification of one mixture: tasks are open, compiled shapes are kept between calls."""

    METHOD = "rank"
    DEPENDS_ON = (
        "max_input_length",
        "max_target_length",
        "length_normalize",
        "input_eos",
        "max_examples",
        "label_words",
    )

    def _open_tasks(self) -> None:
        data = self.data
        found, missing = find_tasks(self.mixture, data, self.split, self.settings.label_words)
        self.tasks = [task for task in found if task.has_targets]
        wordless = {
            task.name: f"{task.dataset}: the prompt has no words of its own to score through view {task.view}"
            for task in found
            if not task.has_targets
        }
        self.unscored = missing | wordless
        if not self.tasks and not missing:
            raise EvaluationError(
                f"the prompts of {self.mixture} have no words of their own, which view flipped scores; choose --view "
                "channel or direct"
            )
        check_missing(self.mixture, data, missing, len(self.tasks), self.split)
        self._check_words()
        for task in self.tasks:
            check_rows(task, self._rows(task)[:CHECKED_ROWS])

    def _prepare(self, network: Network, mesh: jax.sharding.Mesh) -> None:
        self.encoder = Encoder(self.pieces, self.settings, self.data.truncation)
        self.scorer = Scorer(network, mesh, self.settings)

    def _check_words(self) -> None:
        """Says which prompts have fixed answers with none of the words to be replaced: they are scored as they are."""
        if not self.settings.label_words:
            return
        words = re.compile(
            rf"\b({'|'.join(map(re.escape, self.settings.label_words))})\b", re.IGNORECASE
        )
        same = [
            task.name
            for task in self.tasks
            if (choices := task.rows.template.fixed_answer_choices)
            and not any(map(words.search, choices))
        ]
        if same:
            note(
                f"note: none of the label words is in the answers of {len(same)} of {len(self.tasks)} tasks, which "
                f"keep their own: {', '.join(same)}"
            )

    def _score(
        self, params: Params, todo: Sequence[int], told: Progress
    ) -> Iterator[tuple[int, list[ScoredRow]]]:
        """(task number, its rows of all processes in order) as the tasks `todo` are finished."""
        windows = (
            [(example.task, _row(example, scores)) for example, scores in window]
            for window in self.scorer.windows(params, self._examples(todo))
        )
        yield from self._gathered(
            windows, todo, told, self.scorer.slices, lambda _, rows: gather_rows(rows)
        )

    def _examples(self, todo: Sequence[int]) -> Iterator[RankExample]:
        """This process's rows of the tasks `todo`."""
        for number in todo:
            task = self.tasks[number]
            for row in self._rows(task)[self.scorer.slice :: self.scorer.slices]:
                rendered = task.rows[row]
                if rendered is not None:
                    yield self.encoder.example(number, task, row, rendered)

    def _rates(self, task: RankTask, rows: Sequence[ScoredRow]) -> dict[str, Any]:
        bad = next((row.row for row in rows if not np.isfinite(row.scores).all()), None)
        if bad is not None:
            raise EvaluationError(
                f"task {task.name!r}, row {bad}: a score is not finite; the model's weights are broken, or "
                "float16-like overflow: use float32 or bfloat16"
            )
        gold, predicted = [row.gold for row in rows], [row.prediction for row in rows]
        template = task.rows.template
        rates: dict[str, Any] = {
            "accuracy": grade(rows),
            "macro_f1": macro_f1(gold, predicted),
            "chance": chance(rows),
            "truncated": float(np.mean([row.cut for row in rows])),
            "answer_choices": None if task.rows.label_words else template.fixed_answer_choices,
        }
        if task.groups:
            columns = task.rows.columns(task.groups.columns)
            rates["parity"] = parity(rows, [task.groups.of(columns[row.row]) for row in rows])
        return rates

    def _value(self, found: Mapping[str, Any]) -> str:
        return f"{found['accuracy']:.3f} (chance {found['chance']:.3f})"

    def _conclude(self, folder: ResultsFolder, results: Results) -> None:
        folder.write_rows(self._hard_rows(folder, results))

    def _shown(self, task: RankTask, row: int) -> tuple[str, list[str]] | None:
        rendered = task.rows[row]
        return None if rendered is None else (rendered.inputs, list(rendered.choices or ()))


def _row(example: RankExample, scores: np.ndarray) -> ScoredRow:
    return ScoredRow(example.index, scores, example.correct, example.grades, example.cut)


def make_evaluator(
    network: Network,
    mesh: jax.sharding.Mesh,
    data: config_lib.Data,
    settings: config_lib.Evaluate,
    mixture: str,
    vocabulary: Path | None = None,
) -> Evaluation:
    """The evaluator that `settings.method` names, of a multitask encoder that of its heads; arguments and errors as
    `Evaluation`'s.

    Raises:
        EvaluationError: the method needs another architecture.
    """
    if network.config.architecture == "deberta":
        return ClassifyEvaluator(network, mesh, data, settings, mixture, vocabulary=vocabulary)
    if settings.method == "classify":
        raise EvaluationError(
            f"evaluate.method classify needs a multitask encoder, and the model is a {network.config.architecture}; "
            "set it to rank or generate"
        )
    kind = TextEvaluator if settings.method == "generate" else Evaluator
    return kind(network, mesh, data, settings, mixture, vocabulary=vocabulary)
