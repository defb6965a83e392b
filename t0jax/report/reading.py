"""Results folders and run folders as a report reads them: what `t0jax.results` and `t0jax.metrics` write."""

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from t0jax.config import UserError
from t0jax.report import statistics
from t0jax.report.structured import StructuredTask, answer_form
from t0jax.results import RESULTS_FILE, ROWS_FILE, SCORES_FOLDER, scores_file, structured

METRICS_FILE = "metrics.jsonl"


class ReportError(UserError, ValueError):
    """Results that cannot be read; the message names the file and the way out."""


@dataclass(frozen=True)
class Prompt:
    """One task that was scored by ranking choices.

    Attributes:
        task: its name.
        entry: what `results.json` says of it.
        lines: of its `scores/<task>.jsonl`, one a row; empty where the file is not there.
    """

    task: str
    entry: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        return str(self.entry["prompt"])

    @property
    def accuracy(self) -> float:
        return float(self.entry["accuracy"])

    @property
    def answer_choices(self) -> tuple[str, ...]:
        """The same for every row; empty where a prompt makes them from the row, or where that is not known."""
        return tuple(self.entry.get("answer_choices") or ())

    @cached_property
    def by_row(self) -> dict[int, Mapping[str, Any]]:
        return {line["row"]: line for line in self.lines}

    @cached_property
    def grades(self) -> dict[int, float]:
        """What each row's prediction is worth."""
        return {line["row"]: _grade(line) for line in self.lines}

    @property
    def right(self) -> list[tuple[int, bool]]:
        """(row, whether its prediction is a right one)."""
        return [(line["row"], line["prediction"] in line["gold"]) for line in self.lines]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(right choice, prediction) of each row; of several right choices the predicted one, if it is among them."""
        return [
            (line["prediction"] if line["prediction"] in line["gold"] else line["gold"][0], line["prediction"])
            for line in self.lines
        ]  # fmt: skip


def _grade(line: Mapping[str, Any]) -> float:
    if grades := line.get("grades"):
        return float(grades[line["prediction"]])
    return float(line["prediction"] in line["gold"])


@dataclass(frozen=True)
class DataSet:
    """The prompts of one data set and their bootstrap."""

    name: str
    prompts: tuple[Prompt, ...]
    """Best first."""

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Numbers of the rows that any prompt applies to; empty where a prompt's scores are not there."""
        if not all(prompt.lines for prompt in self.prompts):
            return ()
        return tuple(sorted({row for prompt in self.prompts for row in prompt.grades}))

    @cached_property
    def means(self) -> np.ndarray | None:
        """Bootstrapped accuracies [resamples, prompts]; None without scores."""
        if not self.rows:
            return None
        grades = [[prompt.grades.get(row, np.nan) for row in self.rows] for prompt in self.prompts]
        return statistics.resampled_means(np.array(grades), self.name)

    @property
    def values(self) -> np.ndarray:
        """Accuracy by prompt."""
        return np.array([prompt.accuracy for prompt in self.prompts])

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def chance(self) -> float:
        return self.average("chance")

    @property
    def macro_f1(self) -> float | None:
        """Mean over prompts; None where some have none."""
        if not all("macro_f1" in prompt.entry for prompt in self.prompts):
            return None
        return self.average("macro_f1")

    def average(self, rate: str) -> float:
        """Mean over prompts of a rate of `results.json`."""
        return float(np.mean([prompt.entry[rate] for prompt in self.prompts]))

    @cached_property
    def mean_interval(self) -> tuple[float, float] | None:
        if self.means is None:
            return None
        return statistics.interval(statistics.mean_over_prompts(self.means))

    @cached_property
    def median_interval(self) -> tuple[float, float] | None:
        if self.means is None:
            return None
        return statistics.interval(statistics.median_over_prompts(self.means))

    def same_rows(self, other: "DataSet") -> bool:
        """Whether both were scored on the same rows, with the same right choices where they share a prompt."""
        if not self.rows or self.rows != other.rows:
            return False
        theirs = {prompt.name: prompt for prompt in other.prompts}
        return all(
            line["gold"] == theirs[prompt.name].by_row.get(line["row"], line)["gold"]
            for prompt in self.prompts
            if prompt.name in theirs
            for line in prompt.lines
        )


@dataclass(frozen=True)
class Folder:
    """One results folder.

    Attributes:
        name: what the report calls it.
        path: where it is.
        date: when its results were written, UTC.
        settings: of the evaluation.
        complete: nothing is to come.
        datasets: scored by ranking choices, by name.
        written: entries of the tasks whose generated text was measured, by task.
        structured: the tasks that heads answered, by task.
        unscored: tasks whose prompt applies to no row.
        missing: by task, why it was not scored.
        texts: `rows.json`: by data set and row number, the row's text and choices.
    """

    name: str
    path: Path
    date: datetime.datetime
    settings: Mapping[str, Any]
    complete: bool
    datasets: Mapping[str, DataSet]
    written: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    structured: Mapping[str, StructuredTask] = field(default_factory=dict)
    unscored: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for dataset in self.datasets.values() for prompt in dataset.prompts]

    @property
    def model(self) -> str:
        return str(self.settings.get("model") or self.path)

    def examples(self, task: str, limit: int) -> Sequence[Mapping[str, Any]]:
        """The first lines of a task's scores."""
        return _read_lines(self.path / SCORES_FOLDER / scores_file(task), _is_object)[:limit]


def read_folder(path: Path, name: str = "") -> Folder:
    """Reads `results.json`, `scores/` and, where it is there, `rows.json`; without a name the model's is taken.

    Raises:
        ReportError: no results, or a file that is not what it should be.
    """
    file = path / RESULTS_FILE
    if not file.is_file():
        raise ReportError(
            f"{path} has no {RESULTS_FILE}; give a folder that `scripts.evaluate --output` wrote"
        )
    content = _read_json(file)
    _check_results(file, content)
    return _open(path, name or _model_name(path, content), content)


def _model_name(path: Path, content: Mapping[str, Any]) -> str:
    """`RUN, step 300` of a model at `.../RUN` or `.../RUN/checkpoints/300`; the folder's name where none is told."""
    model, comma, step = str(content.get("settings", {}).get("model", "")).partition(", step ")
    parts = Path(model).parts
    if parts[-2:-1] == ("checkpoints",):
        parts = parts[:-2]
    return parts[-1] + comma + step if parts else path.resolve().name


def _open(path: Path, name: str, content: Mapping[str, Any]) -> Folder:
    tasks = content["tasks"]
    groups: dict[str, list[Prompt]] = {}
    for task, entry in tasks.items():
        if entry.get("n") and "accuracy" in entry:
            lines = _read_lines(path / SCORES_FOLDER / scores_file(task), _is_ranked)
            groups.setdefault(entry["dataset"], []).append(Prompt(task, entry, lines))
    datasets = {
        dataset: DataSet(dataset, tuple(sorted(prompts, key=lambda p: (-p.accuracy, p.name))))
        for dataset, prompts in sorted(groups.items())
    }
    rows = path / ROWS_FILE
    return Folder(
        name=name,
        path=path,
        date=datetime.datetime.fromtimestamp((path / RESULTS_FILE).stat().st_mtime, datetime.UTC),
        settings=content.get("settings", {}),
        complete=bool(content.get("complete")),
        datasets=datasets,
        written={t: e for t, e in tasks.items() if "metrics" in e and "kind" not in e},
        structured={
            task: _structured(path, task, entry, datasets.get(entry["dataset"]))
            for task, entry in tasks.items()
            if "kind" in entry and entry["n"]
        },
        unscored=[task for task, entry in tasks.items() if not entry.get("n", 1)],
        missing=content.get("missing", {}),
        texts=_read_texts(rows) if rows.is_file() else {},
    )


def _structured(
    path: Path, task: str, entry: Mapping[str, Any], ranked: DataSet | None
) -> StructuredTask:
    if "accuracy" in entry and ranked is not None:
        (column,) = (k for k, prompt in enumerate(ranked.prompts) if prompt.task == task)
        means = None if ranked.means is None else ranked.means[:, [column]]
        return StructuredTask(task, entry, ranked.prompts[column].lines, means)
    form = answer_form(entry["kind"], entry.get("answer_choices") or ())
    return StructuredTask(task, entry, _read_lines(path / SCORES_FOLDER / scores_file(task), form))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _read_texts(path: Path) -> dict[str, Any]:
    content = _read_json(path)
    for dataset, rows in content.items():
        _check(path, f"the rows of {dataset!r}", rows, _mapping_of(_is_row_text))
    return content


def _read_lines(path: Path, form: "_Form") -> list[dict[str, Any]]:
    """All lines in one parse, which is several times as fast as one by one; none where there is no file."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        found = json.loads(f"[{','.join(filter(None, lines))}]")
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is no JSON lines: {error}; score the task again") from error
    for line in found:
        _check(path, "a line", line, form)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What others' files may hold: whatever is read here goes into paths, arithmetic and the page

_Form = Callable[[Any], bool]
_LONGEST_NAME = 240
"""Bytes that a file system's 255 leave beside `.jsonl`, and what a file is called while it is written."""
_ROUNDING = 1e-6


def _check(file: Path, what: str, value: Any, form: _Form) -> None:
    if not form(value):
        raise ReportError(
            f"{file}: {what} is not of a form that this version writes: {value!r:.200}; score again with --overwrite"
        )


def _check_results(file: Path, content: Mapping[str, Any]) -> None:
    _check(file, "tasks", content.get("tasks"), _mapping_of(_is_object))
    _check(file, "settings", content.get("settings", {}), _is_object)
    _check(file, "missing", content.get("missing", {}), _mapping_of(_is_text))
    for task, entry in content["tasks"].items():
        _check(file, "a task's name, which names a file,", task, _is_task_name)
        needed = _RANKED if entry.get("n") and "accuracy" in entry else ()
        if needed and entry.get("kind") != "multiple_choice":
            needed = (*needed, "macro_f1")
        if "kind" in entry:
            needed = (*needed, "dataset", "n")
            _check(file, f"metrics of the task {task}", entry, _is_structured)
        for name in (*needed, *(name for name in _FIELDS if name in entry)):
            _check(file, f"{name} of the task {task}", entry.get(name), _FIELDS[name])


def _is_task_name(value: str) -> bool:
    """A file's name, or some with slashes between: `glue/sst2`."""
    return len(value.encode(errors="replace")) <= _LONGEST_NAME and all(
        part not in ("", ".", "..") and not set(part) & set("\\\0") for part in value.split("/")
    )


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_number(value: Any) -> bool:
    """Not-a-number and the infinities too, which broken models have for scores."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 53)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_rate(value: Any) -> bool:
    return _is_finite(value) and -_ROUNDING <= value <= 1 + _ROUNDING


def _list_of(form: _Form) -> _Form:
    return lambda value: isinstance(value, list) and all(map(form, value))


def _mapping_of(form: _Form) -> _Form:
    return lambda value: isinstance(value, dict) and all(map(form, value.values()))


_are_texts, _are_rates = _list_of(_is_text), _mapping_of(_is_rate)


def _is_parity(value: Any) -> bool:
    if not _is_object(value) or not _are_rates(value.get("accuracy")):
        return False
    same = not {"same", "pairs"} & value.keys() or (
        _is_rate(value.get("same")) and _is_count(value.get("pairs"))
    )
    return same and _is_rate(value.get("gap"))


def _is_row_text(value: Any) -> bool:
    if not _is_object(value):
        return False
    return (
        _is_text(value.get("task", ""))
        and _is_text(value.get("inputs", ""))
        and _are_texts(value.get("choices", []))
    )


def _is_ranked(line: Any) -> bool:
    """Whether a line of scores has right choices and a prediction that are among the choices."""
    if not _is_object(line) or not (line.get("scores") and line.get("gold")):
        return False
    if not isinstance(line["scores"], list) or not isinstance(line["gold"], list):
        return False
    count, grades = len(line["scores"]), line.get("grades")
    return (
        type(line.get("row")) is int
        and all(type(k) is int and 0 <= k < count for k in (*line["gold"], line.get("prediction")))
        and all(map(_is_number, line["scores"]))
        and (not grades or (_list_of(_is_rate)(grades) and len(grades) == count))
    )


def _is_structured(entry: Mapping[str, Any]) -> bool:
    """Whether a task of a kind has the metric that counts for it, if it has rows."""
    kind = entry["kind"]
    if not isinstance(kind, str) or kind not in structured.MAIN_METRIC:
        return False
    ranked = structured.MAIN_METRIC[kind] == "accuracy"
    has = "accuracy" if ranked else structured.MAIN_METRIC[kind]
    there = entry if ranked else entry.get("metrics", {})
    return not entry.get("n") or (isinstance(there, dict) and _is_finite(there.get(has)))


_RANKED = ("dataset", "prompt", "accuracy", "chance")
_FIELDS: dict[str, _Form] = {
    "n": _is_count,
    "dataset": _is_text,
    "prompt": _is_text,
    **dict.fromkeys(("accuracy", "macro_f1", "chance", "coverage", "truncated"), _is_rate),
    "answer_choices": lambda value: value is None or _are_texts(value),
    "parity": lambda value: value is None or _is_parity(value),
    "metrics": _mapping_of(_is_number),
    "majority": lambda value: value is None or _is_rate(value),
}
"""What a task's entry may have, and what one that was ranked must have."""


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def read_curves(run: Path) -> dict[str, tuple[list[float], list[float]]]:
    """`metrics.jsonl` of a run, or of the run of a checkpoint, as (steps, values) of each number in the file's order.

    Raises:
        ReportError: there is no such file.
    """
    whole = run.resolve()
    path = (whole.parents[1] if whole.parent.name == "checkpoints" else whole) / METRICS_FILE
    if not path.is_file():
        raise ReportError(f"{run} has no {METRICS_FILE}; give the folder of a training run")
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            step = row.pop("step")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            continue  # a line that a kill cut short
        for name, value in row.items():
            if _is_finite(step) and _is_finite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return curves
