"""Scoring by generated text: the model writes an answer for each row, and the tasks' own metrics compare it with the
target.

Tasks are text-to-text ones made from prompts (`t0_train`'s: summaries, answers, whatever a prompt asks for); what is
measured is what they declare in seqio, `postprocess_fn` and those `metric_fns` that take (targets, predictions). A
prompt renders one target a row: where a data set has several right answers, only that one counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from t0jax import config as config_lib
from t0jax import processes
from t0jax.data import views
from t0jax.data.encoding import PairEncoder
from t0jax.data.rows import DataUnavailable, PromptedRows
from t0jax.data.targets import why_no_target
from t0jax.evaluate.evaluation import Evaluation
from t0jax.evaluate.exchange import gather_rows
from t0jax.evaluate.progress import Progress
from t0jax.evaluate.tasks import (
    PromptTask,
    check_missing,
    find_sources,
    open_rows,
)
from t0jax.generate import Generator, Settings
from t0jax.models import Network, Params
from t0jax.results import EvaluationError

Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


@dataclass(frozen=True)
class TextTask(PromptTask):
    """A prompt that is answered in writing, and how what is written is measured.

    Attributes:
        postprocess: seqio's (text, example=, is_target=) -> what the metrics compare.
        metrics: (targets, predictions) -> {name: value}.
    """

    name: str
    rows: PromptedRows
    view: str
    split: str
    postprocess: Callable[..., Any]
    metrics: tuple[Metric, ...]

    @property
    def measures(self) -> tuple[Any, ...]:
        """What is measured."""
        return (self.postprocess, *self.metrics)


@dataclass(frozen=True)
class TextRow:
    """What was written for one row of a data set through one prompt.

    Attributes:
        row: its number in the data set.
        inputs, target: as the view renders them.
        prediction: what was written, without end of sequence.
        score: the model's log-probability of that in nats, divided by the number of its tokens ** `length_penalty` (1,
            so it is their mean); not finite where the model is broken.
        cut: the input was too long and lost some, or the target is longer than may be written.
    """

    row: int
    inputs: str
    target: str
    prediction: str
    score: float
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """A line of `scores/<task>.jsonl`."""
        line = {"row": self.row, "target": self.target, "prediction": self.prediction}
        return line | ({"cut": True} if self.cut else {})


def exact_match(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Percentage of predictions equal to their target; measures tasks that declare no metric of their own."""
    hits = [target == prediction for target, prediction in zip(targets, predictions, strict=True)]
    return {"exact_match": 100.0 * sum(hits) / len(hits)}


def find_text_tasks(
    mixture: str,
    data: config_lib.Data,
    split: str,
    label_words: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[TextTask], dict[str, str]]:
    """The text-to-text tasks of a seqio mixture, opened, and why others cannot be: (tasks, reason by name).

    Arguments as of `find_tasks`.

    Raises:
        EvaluationError: an unknown mixture, a task for rank classification, or one that is no prompt.
        t0jax.data.rows.DataError: a broken file, or a column that a prompt reads and the data lacks.
        UserError: a metric's package is not installed.
    """
    tasks, missing = [], {}
    for name, source in find_sources(mixture, data):
        if source.rank:
            raise EvaluationError(
                f"task {name!r} ranks answer choices, and evaluate.method is generate; name the tasks without "
                "`_score_eval` at their end, or set evaluate.method to rank"
            )
        try:
            rows, view = open_rows(source, data, split, label_words)
        except DataUnavailable as error:
            missing[name] = str(error)
            continue
        asked = split.partition(",")[0].strip()
        tasks.append(TextTask(name, rows, view, asked, *_measures(name)))
    return tasks, missing


def _measures(name: str) -> tuple[Callable[..., Any], tuple[Metric, ...]]:
    """Postprocessor and metrics of a task, their packages imported."""
    from t0jax.data import sources  # here: it imports TensorFlow, which scoring does without

    task = sources.seqio.TaskRegistry.get(name)
    metrics = tuple(task.predict_metric_fns) or (exact_match,)
    for metric in metrics:
        getattr(metric, "prepare", tuple)()
    return task.postprocess_fn, metrics


# ---------------------------------------------------------------------------------------------------------------------
# Evaluator


class TextEvaluator(Evaluation):
    """An evaluation of one mixture by generated text."""

    METHOD = "generate"
    DEPENDS_ON = (
        "max_input_length",
        "max_target_length",
        "num_beams",
        "input_eos",
        "max_examples",
        "label_words",
    )

    def _open_tasks(self) -> None:
        words = self.settings.label_words
        self.tasks, self.unscored = find_text_tasks(self.mixture, self.data, self.split, words)
        check_missing(self.mixture, self.data, self.unscored, len(self.tasks), self.split)

    def _prepare(self, network: Network, mesh: jax.sharding.Mesh) -> None:
        """How many rows are written at a time depends on the machine, not on `evaluate.batch_size`.

        Raises:
            ConfigError: more beams than the vocabulary has continuations for.
        """
        settings = self.settings
        longest = settings.max_input_length, settings.max_target_length
        eos, truncation = settings.input_eos, self.data.truncation
        self.encoder = PairEncoder(self.pieces, *longest, eos, truncation)
        how = Settings(
            num_beams=settings.num_beams, max_input_length=longest[0], max_new_tokens=longest[1]
        )
        self.generator = Generator(network, mesh, how)

    def _score(
        self, params: Params, todo: Sequence[int], told: Progress
    ) -> Iterator[tuple[int, list[TextRow]]]:
        """(task number, its rows of all processes in order) as the tasks `todo` are finished."""
        params = self.generator.shard(params) if todo else params
        slices, done = self.generator.slices, 0
        for number in todo:
            task, before = self.tasks[number], done

            def progress(written: int, before: int = before) -> None:
                told.rows(before + written * slices)

            rows = gather_rows(self._written(params, task, progress), exchange_texts)
            if not rows:
                self._refuse_hidden(task)
            yield number, rows
            done += len(self._rows(task))

    def _written(
        self, params: Params, task: TextTask, progress: Callable[[int], None]
    ) -> list[TextRow]:
        """This process's rows of a task."""
        asked: list[tuple[int, views.Pair, bool]] = []

        def inputs() -> Iterator[np.ndarray]:
            for row in self._rows(task)[self.generator.slice :: self.generator.slices]:
                lesson = self._lesson(task, row)
                if lesson is not None:
                    encoded = self.encoder.encode([[lesson.right]], [lesson.peers])[0][0]
                    asked.append((row, lesson.right, encoded.cut))
                    yield encoded.inputs

        rows = []
        for number, one in enumerate(self.generator(params, inputs(), progress)):
            row, pair, cut = asked[number]
            text = self.pieces.decode_spelled(one.tokens)
            rows.append(TextRow(row, pair.inputs, pair.targets, text, one.score, cut))
        return rows

    def _refuse_hidden(self, task: TextTask) -> None:
        """Tells a prompt that applies to no row, which is no fault, from one whose answers are all hidden."""
        for row in self._rows(task):
            rendered = task.rows[row]
            if rendered is not None:
                why = why_no_target(task.rows, row, rendered)
                raise EvaluationError(
                    f"task {task.name!r}: no row of {task.rows.spec.name} {task.rows.split} has a known answer (row "
                    f"{row}: {why}); score a split with labels, or leave the prompt out"
                )

    def _lesson(self, task: TextTask, row: int) -> views.Lesson | None:
        """What training would learn from a row; None where the prompt does not apply or there is no known answer."""
        rendered = task.rows[row]
        return None if rendered is None else views.lesson(views.find_view(task.view), rendered)

    def _rates(self, task: TextTask, rows: Sequence[TextRow]) -> dict[str, Any]:
        bad = next((row.row for row in rows if not np.isfinite(row.score)), None)
        if bad is not None:
            raise EvaluationError(
                f"task {task.name!r}, row {bad}: the text's probability is not finite; the model's weights are "
                "broken, or float16-like overflow: use float32 or bfloat16"
            )
        cut = float(np.mean([row.cut for row in rows]))
        values, score = measure(task, rows)
        known = {} if score is None else {"score": score}
        return {"metrics": values, **known, "truncated": cut}

    def _value(self, found: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in found["metrics"].items())


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measure(task: TextTask, rows: Sequence[TextRow]) -> tuple[dict[str, float], float | None]:
    """Values of the task's metrics, and one score for them all.

    Metrics give percent, larger is better; one that does not has an attribute `lower_is_better = True`.

    Returns:
        What the metrics return, by name; and the mean of those in percent, as a share of 1, None where there are none.

    Raises:
        EvaluationError: two metrics give a value of the same name, or one gives something that is no number.
    """
    examples = [{"inputs_pretokenized": r.inputs, "targets_pretokenized": r.target} for r in rows]
    targets, predictions = (
        [
            task.postprocess(getattr(row, side), example=example, is_target=side == "target")
            for row, example in zip(rows, examples, strict=True)
        ]
        for side in ("target", "prediction")
    )
    values: dict[str, float] = {}
    shares: list[float] = []
    for metric in task.metrics:
        for name, value in metric(targets, predictions).items():
            values[name] = _value(f"task {task.name!r}: its metric {metric!r}", name, value, values)
            if not getattr(metric, "lower_is_better", False):
                shares.append(values[name] / 100)
    return values, float(np.mean(shares)) if shares else None


def _value(metric: str, name: str, value: Any, known: Mapping[str, float]) -> float:
    if name in known:
        raise EvaluationError(f"{metric} is not the first to give {name!r}; leave one metric out")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise EvaluationError(
            f"{metric} gives {name!r} as {type(value).__name__}, which is no number; leave it out"
        ) from None


def exchange_texts(rows: Sequence[TextRow]) -> list[TextRow]:
    """The rows of all processes, in no order."""
    parts = processes.tell([tuple(vars(row).values()) for row in rows], "exchanging texts")
    return [TextRow(*row) for part in parts for row in part]
