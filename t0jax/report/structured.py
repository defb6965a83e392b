"""Structured tasks in a report: what counts for each kind, with bootstrap intervals over rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from t0jax.report import statistics
from t0jax.results import structured

Interval = tuple[float, float]


@dataclass(frozen=True)
class StructuredTask:
    """One task that a head answered.

    Attributes:
        name: of the task.
        entry: what `results.json` says of it.
        lines: of its `scores/<task>.jsonl`; empty where the file is not there.
        means: bootstrapped accuracies [resamples, 1] where it has one.
    """

    name: str
    entry: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]] = ()
    means: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return str(self.entry["kind"]).replace("_", " ")

    @property
    def metric(self) -> str:
        """What counts in the mean over tasks."""
        return structured.main_metric(self.entry)

    @property
    def value(self) -> float:
        return structured.main_value(self.entry)

    @property
    def others(self) -> dict[str, float]:
        """Its other metrics."""
        own = self.entry.get("metrics", {})
        there = "macro_f1" in self.entry and self.entry["kind"] != "multiple_choice"
        rates = {"macro_f1": self.entry["macro_f1"]} if there else {}
        return {name: v for name, v in {**rates, **own}.items() if name != self.metric}

    @property
    def answers(self) -> Sequence[Mapping[str, Any]]:
        """Lines with a target and a prediction; none of a ranked task, whose rows are shown with its data set."""
        return () if "accuracy" in self.entry else self.lines

    @cached_property
    def samples(self) -> dict[str, np.ndarray]:
        """Bootstrapped values [resamples] by metric; none without scores."""
        ranked = {} if self.means is None else {"accuracy": self.means.mean(axis=1)}
        if not self.lines or self.entry["kind"] == "multiple_choice":
            return ranked
        labels = self.entry.get("answer_choices") or ()
        found = [
            structured.measure(self.entry["kind"], self.lines, labels, weights)
            for weights in statistics.resampled_counts(len(self.lines), self.name)
        ]
        return ranked | {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    @property
    def interval(self) -> Interval | None:
        """Of what counts."""
        return self.interval_of(self.metric)

    def interval_of(self, metric: str) -> Interval | None:
        """Of a metric; None where it is not known."""
        return statistics.interval(self.samples[metric]) if metric in self.samples else None


def macro(tasks: Sequence[StructuredTask]) -> tuple[float, Interval | None]:
    """Mean over tasks of what counts for each, and its interval: tasks are drawn independently of each other."""
    samples = [task.samples.get(task.metric) for task in tasks]
    known = [sample for sample in samples if sample is not None]
    value = float(np.mean([task.value for task in tasks]))
    if len(known) < len(tasks):
        return value, None
    return value, statistics.interval(np.mean(known, axis=0))


# What others' files may hold


def answer_form(kind: str, labels: Sequence[str]) -> Callable[[Any], bool]:
    """Whether a line of scores is one of this kind of task."""

    def is_answer(line: Any) -> bool:
        if not isinstance(line, dict) or type(line.get("row")) is not int:
            return False
        sides: list[Any] = [line.get("target"), line.get("prediction")]
        if kind == "regression":
            return all(type(side) in (int, float) and np.isfinite(side) for side in sides)
        if not all(isinstance(side, list) for side in sides):
            return False
        if kind == "multilabel":
            return all(type(k) is int and 0 <= k < len(labels) for side in sides for k in side)
        return len(sides[0]) == len(sides[1]) and all(
            isinstance(tag, str) for side in sides for tag in side
        )

    return is_answer
