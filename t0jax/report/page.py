"""From results folders to what the page's template shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from t0jax.report import plots, statistics
from t0jax.report.comparing import compare, overall
from t0jax.report.reading import DataSet, Folder, Prompt
from t0jax.report.structured import macro
from t0jax.results import hardest, missing_lines

HARD_ROWS = 10
SHOWN_CHOICES = 12
"""A confusion table by position is left out where prompts have more choices."""
EXAMPLES = 4


def context(
    folders: Sequence[Folder],
    references: Sequence[Mapping[str, Any]],
    curves: Mapping[str, tuple[list[float], list[float]]],
) -> dict[str, Any]:
    """Everything that `page.html` names."""
    names = sorted({name for folder in folders for name in folder.datasets})
    published = Published(references, folders, names)
    sections = [_section(f"data-{k}", name, folders, published) for k, name in enumerate(names)]
    return {
        "folders": folders,
        "several": len(folders) > 1,
        "subjects": list(dict.fromkeys(_subject(folder.settings) for folder in folders)),
        "headlines": [_headline(folder) for folder in folders],
        "notes": [_notes(folder) for folder in folders],
        "comparison": compare(folders) if len(folders) > 1 else [],
        "overview_scale": plots.scale(plots.accuracy_axis()),
        "published": published,
        "structured": [_structured(folder) for folder in folders if folder.structured],
        "sections": sections,
        "written": [_written(folder) for folder in folders if folder.written],
        "panels": _panels(curves),
        "resamples": statistics.RESAMPLES,
    }


# Published figures


class Published:
    """The references that concern the data sets of a report."""

    def __init__(
        self,
        references: Sequence[Mapping[str, Any]],
        folders: Sequence[Folder],
        names: Sequence[str],
    ):
        splits = {part for f in folders for part in str(f.settings.get("split", "")).split(",")}
        self.found = [
            reference
            for reference in references
            if (not reference.get("split") or reference["split"] in splits)
            and set(self.covers(reference)) & set(names)
        ]
        self.models = list(dict.fromkeys(reference["model"] for reference in self.found))

    @staticmethod
    def covers(reference: Mapping[str, Any]) -> list[str]:
        """The data sets whose mean a figure is; one, mostly."""
        return list(reference.get("mean_of") or [reference["dataset"]])

    def marks(self, dataset: str) -> list[plots.Mark]:
        return [
            plots.Mark(
                reference["value"],
                self.models.index(reference["model"]),
                self.words(reference),
                hollow=len(self.covers(reference)) > 1,
            )
            for reference in self.found
            if dataset in self.covers(reference)
        ]

    def words(self, reference: Mapping[str, Any]) -> str:
        several = self.covers(reference)
        over = f", mean of {', '.join(several)}" if len(several) > 1 else ""
        return f"{reference['model']}: {reference['value']:.1%} ({reference['statistic']}{over})"

    @property
    def legend(self) -> list[tuple[str, Markup]]:
        return [(name, self._key(k)) for k, name in enumerate(self.models)]

    @property
    def hollow(self) -> bool:
        return any(len(self.covers(reference)) > 1 for reference in self.found)

    @staticmethod
    def _key(series: int, hollow: bool = False) -> Markup:
        shape = plots.mark_at("8", 8, plots.Mark(0, series, "", hollow))
        return plots.tag("svg", shape, class_="key", width=16, height=16, aria_hidden="true")

    @property
    def hollow_key(self) -> Markup:
        return self._key(0, hollow=True)


# Head


def _subject(settings: Mapping[str, Any]) -> str:
    parts = [str(settings[key]) for key in ("mixture", "split", "view") if settings.get(key)]
    return " · ".join(parts) or "results"


def _headline(folder: Folder) -> dict[str, Any]:
    """Numbers over everything that was scored."""
    datasets = list(folder.datasets.values())
    if not datasets:
        return {}
    figures = []
    for title, over_datasets, median in (
        ("mean over prompts", False, False),
        ("median over prompts", False, True),
        ("mean over data sets", True, False),
    ):
        value, samples = overall(datasets, over_datasets, median)
        figures.append(
            (title, value, statistics.interval(samples) if samples is not None else None)
        )
    chance = float(np.mean([prompt.entry["chance"] for prompt in folder.prompts]))
    counts = {"prompts": len(folder.prompts), "datasets": len(datasets)}
    return {"figures": figures, "chance": chance, **counts}


def _notes(folder: Folder) -> dict[str, Any]:
    """What was not scored, only partly, or shortened."""
    answered = {name: task.entry for name, task in folder.structured.items()}
    ranked = {prompt.task: prompt.entry for prompt in folder.prompts}
    entries = [*{**ranked, **folder.written, **answered}.items()]
    return {
        "missing": [line.removeprefix("not scored: ") for line in missing_lines(folder.missing)],
        "partly": [(task, entry["coverage"]) for task, entry in entries if entry.get("coverage", 1) < 1],
        "shortened": sorted(
            ((task, entry["truncated"]) for task, entry in entries if entry.get("truncated")),
            key=lambda item: -item[1],
        ),
        "unscored": folder.unscored,
    }  # fmt: skip


# Plots


def _strip(dataset: DataSet, series: int, marks: Sequence[plots.Mark]) -> plots.Strip:
    return plots.Strip(
        [(prompt.accuracy, prompt.name) for prompt in dataset.prompts],
        dataset.chance,
        dataset.mean,
        dataset.mean_interval,
        series,
        marks,
    )


# Curves


def _panels(curves: Mapping[str, tuple[list[float], list[float]]]) -> list[dict[str, Any]]:
    """Loss and learning rate, then a panel a metric that was measured on the way, with a line a data set or task."""
    found = [
        _panel(title, [plots.Line(title, *curves[key], "curve-0")], key == "learning_rate")
        for key, title in (("loss", "training loss"), ("learning_rate", "learning rate"))
        if key in curves
    ]
    groups: dict[str, list[plots.Line]] = {}
    for key, curve in curves.items():
        if key.startswith("eval/") and len(curve[0]) > 1:  # one evaluation is no curve
            metric, _, name = key.removeprefix("eval/").partition("/")
            group = "accuracy" if metric == "chance" else metric
            groups.setdefault(group, []).append(plots.Line(name or metric, *curve, _style(key)))
    for metric, lines in groups.items():
        # What matters is drawn last, on top, and named first.
        lines.sort(key=lambda line: line.style, reverse=True)
        found.append(_panel(f"{metric} while training", lines, False))
    return found


def _style(name: str) -> str:
    main = {"accuracy/mean": "curve-0", "accuracy/median": "curve-1", "chance": "curve-chance"}
    return main.get(name.removeprefix("eval/"), "curve-quiet")


def _panel(title: str, lines: Sequence[plots.Line], from_zero: bool) -> dict[str, Any]:
    return {
        "title": title,
        "plot": plots.panel(lines, title, from_zero),
        "ends": [(line.name, line.style, line.values[-1]) for line in reversed(lines)],
        "step": max(line.steps[-1] for line in lines),
    }


# Data sets


@dataclass(frozen=True)
class Confusion:
    """Rows by right choice and likeliest choice, summed over prompts."""

    labels: Sequence[str]
    counts: np.ndarray
    prompts: Sequence[str]
    fixed: bool
    """The labels are the prompts' own answers, not positions."""

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """(right choice, (rows, their share of that right choice's rows) of each choice)."""
        totals = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        shares = self.counts / totals
        return [
            (label, [(int(n), float(s)) for n, s in zip(counts, row, strict=True)])
            for label, counts, row in zip(self.labels, self.counts, shares, strict=True)
        ]


def _section(
    anchor: str, name: str, folders: Sequence[Folder], published: Published
) -> dict[str, Any]:
    there = [k for k, folder in enumerate(folders) if name in folder.datasets]
    marks = published.marks(name)  # above the first model's box alone
    strips = {k: _strip(folders[k].datasets[name], k, marks * (k == there[0])) for k in there}
    axis = plots.accuracy_axis([value for row in strips.values() for value in row.extent])
    return {
        "name": name,
        "anchor": anchor,
        "scale": plots.scale(axis),
        "references": [published.words(r) for r in published.found if name in published.covers(r)],
        "models": [_model(folders[k], name, row, axis) for k, row in strips.items()],
    }


def _model(folder: Folder, name: str, row: plots.Strip, axis: plots.Axis) -> dict[str, Any]:
    """A data set's plots and tables for one model."""
    dataset, label = folder.datasets[name], f"{name}, {folder.name}"
    intervals = _prompt_intervals(dataset)
    return {
        "name": folder.name,
        "series": row.series % plots.SERIES,
        "dataset": dataset,
        "overview": plots.strip(row, plots.accuracy_axis(), label),
        "plot": plots.strip(row, axis, label),
        "rows": max(prompt.entry["n"] for prompt in dataset.prompts),
        "words": _words(dataset, intervals),
        "parity": _parity(dataset),
        "truncated": any(p.entry.get("truncated") for p in dataset.prompts),
        "prompts": [
            (p, found, plots.whisker(p.accuracy, found, p.entry["chance"], axis, row.series))
            for p, found in zip(dataset.prompts, intervals, strict=True)
        ],
        "confusions": confusions(dataset.prompts),
        "hard": _hard_rows(dataset, folder.texts.get(dataset.name, {})),
    }


def _parity(dataset: DataSet) -> dict[str, Any]:
    """Where a data set compares groups of people: what `results.parity` found for each prompt."""
    found = [(p.name, p.entry["parity"]) for p in dataset.prompts if p.entry.get("parity")]
    if not found:
        return {}
    return {
        "groups": sorted({group for _, parity in found for group in parity["accuracy"]}),
        "pairs": any("same" in parity for _, parity in found),
        "prompts": found,
    }


def _prompt_intervals(dataset: DataSet) -> list[tuple[float, float] | None]:
    if dataset.means is None:
        return [None] * len(dataset.prompts)
    return [statistics.interval(column) for column in dataset.means.T]


def _words(dataset: DataSet, intervals: Sequence[tuple[float, float] | None]) -> dict[str, Any]:
    """Best, worst and spread."""
    low, middle, high = np.percentile(dataset.values, [25, 50, 75])
    best, worst = dataset.prompts[0], dataset.prompts[-1]
    pairs = [(p, i) for p, i in zip(dataset.prompts, intervals, strict=True) if i]
    return {
        "best": best,
        "worst": worst,
        "range": best.accuracy - worst.accuracy,
        "median": float(middle),
        "iqr": float(high - low),
        "above": sum(i[0] > p.entry["chance"] for p, i in pairs),
        "below": sum(i[1] < p.entry["chance"] for p, i in pairs),
        "counted": len(pairs),
    }


def confusions(prompts: Sequence[Prompt]) -> list[Confusion]:
    """One table for each set of fixed answers, most prompts first, and one by position for the other prompts."""
    groups: dict[tuple[str, ...], list[Prompt]] = {}
    for prompt in prompts:
        if prompt.lines:
            groups.setdefault(prompt.answer_choices, []).append(prompt)
    found = [
        _confusion(labels, group, choices)
        for labels, group in groups.items()
        if 2 <= (choices := _most_choices(group)) <= SHOWN_CHOICES
    ]
    return sorted(found, key=lambda table: (-len(table.prompts), not table.fixed))


def _most_choices(group: Sequence[Prompt]) -> int:
    return max(len(line["scores"]) for prompt in group for line in prompt.lines)


def _confusion(labels: tuple[str, ...], group: Sequence[Prompt], choices: int) -> Confusion:
    fixed = len(labels) == choices
    if not fixed:
        labels = tuple(f"choice {k + 1}" for k in range(choices))
    gold, predicted = zip(*(pair for prompt in group for pair in prompt.pairs), strict=True)
    names = [prompt.name for prompt in group]
    return Confusion(labels, statistics.confusion(gold, predicted, choices), names, fixed)


def _hard_rows(dataset: DataSet, texts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    worst = hardest({p.task: p.right for p in dataset.prompts if p.lines}, HARD_ROWS)
    return [
        {
            "row": row,
            "wrong": wrong,
            "prompts": seen,
            **_text(dataset, row, texts.get(str(row)) or {}),
        }
        for row, wrong, seen in worst
    ]


def _text(dataset: DataSet, row: int, text: Mapping[str, Any]) -> dict[str, Any]:
    """The row as one prompt shows it, and what every prompt made of it."""
    choices = list(text.get("choices") or ())
    shown = next((p for p in dataset.prompts if p.task == text.get("task")), None)
    gold = shown.by_row[row]["gold"] if shown and row in shown.by_row else []
    scores = []
    for prompt in dataset.prompts:
        if row in prompt.by_row:
            own = prompt.answer_choices or (choices if prompt is shown else ())
            scores.append((prompt, _choices(prompt.by_row[row], own)))
    return {
        "inputs": text.get("inputs", ""),
        "shown_by": shown,
        "choices": [(choice, k in gold) for k, choice in enumerate(choices)],
        "scores": scores,
    }


def _choices(line: Mapping[str, Any], words: Sequence[str]) -> list[dict[str, Any]]:
    """The choices of a scored row, likeliest first."""
    order = sorted(range(len(line["scores"])), key=lambda k: -line["scores"][k])
    return [
        {
            "words": words[k] if k < len(words) else f"choice {k + 1}",
            "score": line["scores"][k],
            "right": k in line["gold"],
            "chosen": k == line["prediction"],
        }
        for k in order
    ]


# Structured tasks


def _structured(folder: Folder) -> dict[str, Any]:
    """Tasks by name, and the mean of what counts for each."""
    tasks = [folder.structured[name] for name in sorted(folder.structured)]
    return {"name": folder.name, "tasks": tasks, "macro": macro(tasks)}


# Generated text


def _written(folder: Folder) -> dict[str, Any]:
    """Tasks by data set with their metrics, and some of what was written."""
    metrics = list(
        dict.fromkeys(name for entry in folder.written.values() for name in entry["metrics"])
    )
    tasks = sorted(folder.written.items(), key=lambda item: (item[1].get("dataset", ""), item[0]))
    return {
        "name": folder.name,
        "metrics": metrics,
        "tasks": [(task, entry, folder.examples(task, EXAMPLES)) for task, entry in tasks],
    }  # fmt: skip
