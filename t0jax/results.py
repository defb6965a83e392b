"""What scoring found: metrics of ranked rows, aggregates over prompts, and the files they go to."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from t0jax.config import UserError

RESULTS_FILE = "results.json"
SCORES_FOLDER = "scores"
ROWS_FILE = "rows.json"
REPORT_FILE = "report.html"


class EvaluationError(UserError, ValueError):
    """Something that cannot be scored; the message names the task, the row and the way out."""


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


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


# ---------------------------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True)
class Results:
    """What an evaluation found, ready for JSON.

    Attributes:
        tasks: by task name: accuracy (of rows with grades their mean `grade`), macro_f1 (over choice positions), n,
            chance, dataset, prompt, coverage (share of the rows that the prompt applies to), truncated (share of the
            scored rows whose text was too long), answer_choices (where they are the same for all rows), parity (where
            the data set compares groups), identity (a digest of prompt and data) and seconds. A prompt that applies to
            no row has n 0 and no rates. A task scored by generated text has `metrics` in place of the rates, and
            `score`: the mean in [0, 1] of those in percent.
        missing: by task name, why it was not scored.
    """

    tasks: dict[str, dict[str, Any]]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def scored(self) -> dict[str, dict[str, Any]]:
        """The tasks with rates of rank classification."""
        return {name: task for name, task in self.tasks.items() if "accuracy" in task}

    @property
    def written(self) -> dict[str, dict[str, Any]]:
        """The tasks with metrics of generated text."""
        return {name: task for name, task in self.tasks.items() if "metrics" in task}

    @property
    def mean_accuracy(self) -> float:
        """Over prompts; what checkpoints are chosen by. NaN when nothing was scored.

        Of generated text a prompt counts with its `score`; one whose metrics are all better when lower does not count.
        """
        found = [task.get("accuracy", task.get("score")) for task in self.tasks.values()]
        values = [value for value in found if value is not None]
        return float(np.mean(values)) if values else float("nan")

    def datasets(self) -> dict[str, dict[str, Any]]:
        """By data set: prompts, their accuracies' spread, mean macro_f1 and chance, and the rows of a prompt."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for task in self.scored.values():
            groups.setdefault(task["dataset"], []).append(task)
        return {
            name: {
                "prompts": len(tasks),
                **_rates(tasks, "accuracy"),
                "n": max(task["n"] for task in tasks),
            }
            for name, tasks in sorted(groups.items())
        }

    def overall(self) -> dict[str, Any]:
        """`prompts` and their accuracies' mean, median, iqr and std; their mean `macro_f1` and `chance`."""
        tasks = list(self.scored.values())
        return {"prompts": len(tasks), **(_rates(tasks, "accuracy") if tasks else {})}

    def over_datasets(self) -> dict[str, Any]:
        """As `overall`, but of the data sets' means, so that each counts once however many prompts it has.

        BIG-bench's rule for tasks with subtasks, which are one data set here.
        """
        found = list(self.datasets().values())
        prompts = sum(row["prompts"] for row in found)
        return {
            "datasets": len(found),
            "prompts": prompts,
            **(_rates(found, "mean") if found else {}),
        }

    def summary(self) -> dict[str, float]:
        """Numbers for a training log: accuracy/median, accuracy/mean, chance, accuracy/DATA SET, METRIC/TASK."""
        texts = {
            f"{metric}/{name}": value
            for name, task in self.written.items()
            for metric, value in task["metrics"].items()
        }
        overall = self.overall()
        if not overall["prompts"]:
            return texts
        named = {f"accuracy/{name}": row["median"] for name, row in self.datasets().items()}
        top = {"accuracy/median": overall["median"], "accuracy/mean": overall["mean"]}
        return {**top, "chance": overall["chance"], **named, **texts}

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": self.tasks,
            "datasets": self.datasets(),
            "overall": self.overall(),
            "over_datasets": self.over_datasets(),
            "missing": self.missing,
        }

    def table(self) -> str:
        """One line a data set, accuracies over its prompts; then what was shortened, and partly or not scored.

        Of generated text one line a task, with its metrics.
        """
        lines = self._rank_lines() if self.scored or not self.written else []
        lines += self._text_lines() + self._parity_lines()
        for name, task in self.tasks.items():
            if task["coverage"] < 1:
                lines.append(f"partly: {name} applies to {task['coverage']:.1%} of the rows")
        return "\n".join([*lines, *self._shortened(), *missing_lines(self.missing)])

    def _rank_lines(self) -> list[str]:
        rows = [(name, row, row["n"]) for name, row in self.datasets().items()]
        if rows:
            rows.append(("all prompts", self.overall(), ""))
            rows.append(("all data sets", self.over_datasets(), ""))
        width = max([8, *(len(name) for name, _, _ in rows)])
        heads = "  ".join(_COLUMNS.values())
        lines = [f"{'data set':{width}}  prompts  {heads}       n"]
        for name, row, n in rows:
            values = "  ".join(f"{row[key]:{len(head)}.3f}" for key, head in _COLUMNS.items())
            lines.append(f"{name:{width}}  {row['prompts']:7d}  {values}  {n!s:>6}")
        return lines

    def _text_lines(self) -> list[str]:
        lines = []
        for name, task in self.written.items():
            values = "  ".join(f"{metric} {value:.2f}" for metric, value in task["metrics"].items())
            lines.append(f"{name}: {values}  ({task['n']} rows)")
        return lines

    def _parity_lines(self) -> list[str]:
        lines = []
        for name, task in self.scored.items():
            if found := task.get("parity"):
                rates = ", ".join(f"{g} {rate:.3f}" for g, rate in found["accuracy"].items())
                same = (
                    f", {found['same']:.1%} of {found['pairs']} pairs alike"
                    if "same" in found
                    else ""
                )
                lines.append(f"parity: {name}: {rates}, gap {found['gap']:.3f}{same}")
        return lines

    def _shortened(self) -> list[str]:
        """A line on tasks whose rows were too long."""
        cut = {n: t["truncated"] for n, t in self.tasks.items() if t.get("truncated")}
        if not cut:
            return []
        worst = max(cut, key=cut.__getitem__)
        return [
            f"shortened: rows of {len(cut)} task(s) by evaluate.max_input_length or max_target_length, most in "
            f"{worst}: {cut[worst]:.1%} of the rows"
        ]


_COLUMNS = {
    "mean": "  mean",
    "median": "median",
    "iqr": "   IQR",
    "macro_f1": "macro F1",
    "chance": "chance",
}


def _rates(rows: Sequence[Mapping[str, Any]], accuracy: str) -> dict[str, float]:
    """The spread of `accuracy`, and the means of the other rates."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("macro_f1", "chance")}
    return {**spread([row[accuracy] for row in rows]), **means}


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """One line a reason, with the data sets that it keeps from being scored and a way out for the first of them."""
    groups: dict[str, dict[str, list[str]]] = {}
    for task, told in missing.items():
        dataset, _, rest = told.partition(": ")
        groups.setdefault(rest.partition("; ")[0], {}).setdefault(dataset, []).append(task)
    lines = []
    for reason, datasets in groups.items():
        counts = ", ".join(f"{name} ({len(tasks)})" for name, tasks in datasets.items())
        way_out = missing[next(iter(datasets.values()))[0]].partition("; ")[2]
        example = "e.g. " if len(datasets) > 1 else ""
        hint = f"; {example}{way_out}" if way_out else ""
        lines.append(f"not scored: {counts}: {reason}{hint}")
    return lines


class ResultsFolder:
    """`results.json` and `scores/<task>.jsonl` of one model and one set of settings.

    Each file is written whole or not at all.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False):
        """Takes the folder.

        Raises:
            EvaluationError: it holds the results of another model or of other settings, and `overwrite` is not set.
        """
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        there = self._settings_there()
        if there is not None and there != self.settings and not overwrite:
            raise EvaluationError(self._conflict(there))
        self._replaces = overwrite
        (folder / SCORES_FOLDER).mkdir(parents=True, exist_ok=True)

    def _settings_there(self) -> dict[str, Any] | None:
        path = self.folder / RESULTS_FILE
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8")).get("settings", {})
        except (ValueError, AttributeError):
            return {}

    def _conflict(self, there: Mapping[str, Any]) -> str:
        names = [name for name in self.settings if there.get(name) != self.settings[name]]
        differing = "; ".join(
            f"{n}: {there.get(n)!r} there, {self.settings[n]!r} now" for n in names
        )
        return (
            f"{self.folder} holds other results ({differing or 'of an older layout'}); choose another --output, or "
            "replace them with --overwrite"
        )

    def finished(self) -> dict[str, dict[str, Any]]:
        """Results by task name that are there with their scores, if they are not to be replaced."""
        if self._replaces:
            return {}
        try:
            content = json.loads((self.folder / RESULTS_FILE).read_text(encoding="utf-8"))
            tasks = content["tasks"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {name: entry for name, entry in tasks if self._scores(name).exists()}

    def read_outcomes(self, task: str) -> list[tuple[int, bool]]:
        """(row, whether its prediction is right) of a task that was written."""
        lines = self._scores(task).read_text(encoding="utf-8").splitlines()
        rows = map(json.loads, lines)
        return [(row["row"], row["prediction"] in row["gold"]) for row in rows]

    def _scores(self, task: str) -> Path:
        return self.folder / SCORES_FOLDER / f"{task}.jsonl"

    def write_scores(self, task: str, rows: Iterable[Any]) -> None:
        """One JSON object a line, as the rows' `to_json` has it.

        Of rank classification: row, scores (a choice), gold (the right choices), prediction; grades, if there are; of
        generated text: row, target, prediction. A row that was too long has `cut`.
        """
        self._remove_replaced()
        lines = "".join(f"{json.dumps(row.to_json())}\n" for row in rows)
        _write(self._scores(task), lines)

    def _remove_replaced(self) -> None:
        """Old results stay until there are new ones."""
        if self._replaces:
            scores = (self.folder / SCORES_FOLDER).glob("*.jsonl")
            for old in (
                *(self.folder / n for n in (RESULTS_FILE, ROWS_FILE, REPORT_FILE)),
                *scores,
            ):
                old.unlink(missing_ok=True)
        self._replaces = False

    def write_rows(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """By data set and row number: texts that a report shows."""
        _write(self.folder / ROWS_FILE, json.dumps(rows, indent=1) + "\n")

    def write_results(self, results: Results, complete: bool) -> None:
        """Everything found so far; `complete` says that nothing is to come."""
        self._remove_replaced()
        content = {"settings": self.settings, "complete": complete, **results.to_json()}
        _write(self.folder / RESULTS_FILE, json.dumps(content, indent=1) + "\n")


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
