"""What an evaluation found: rates by task, aggregates over prompts and data sets, tables of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t0jax.results import structured
from t0jax.results.metrics import spread


@dataclass(frozen=True)
class Results:
    """What an evaluation found, ready for JSON.

    Attributes:
        tasks: by task name: accuracy (of rows with grades their mean `grade`), macro_f1 (over choice positions; not of
            questions that heads answered), n, chance, dataset, prompt, coverage (share of the rows that the prompt
            applies to), truncated (share of the scored rows whose text was too long), answer_choices (where they are
            the same for all rows), parity (where the data set compares groups), identity (a digest of prompt and data)
            and seconds. A prompt that applies to no row has n 0 and no rates. A task scored by generated text has
            `metrics` in place of the rates, and `score`: the mean in [0, 1] of those in percent. A structured task has
            `kind`, `majority` (the most frequent answer's share), and for kinds without an accuracy `metrics` (shares
            of 1) and `score`, the first of them that counts (`structured.main_metric`).
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
        return {n: t for n, t in self.tasks.items() if "metrics" in t and "kind" not in t}

    @property
    def structured(self) -> dict[str, dict[str, Any]]:
        """The tasks that heads answered."""
        return {name: task for name, task in self.tasks.items() if "kind" in task and task["n"]}

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
        """Numbers for a training log: accuracy/median, accuracy/mean, chance, accuracy/DATA SET, METRIC/TASK,
        and score/mean over structured tasks."""
        texts = {
            f"{metric}/{name}": value
            for name, task in self.tasks.items()
            for metric, value in task.get("metrics", {}).items()
        }
        if self.structured:
            texts["score/mean"] = structured.macro(self.structured)
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

        Of generated text and of structured tasks one line a task, with its metrics.
        """
        if self.structured:
            lines = structured.table_lines(self.structured)
        else:
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
    """The spread of `accuracy`, and the means of the other rates that all have."""
    rates = [name for name in ("macro_f1", "chance") if all(name in row for row in rows)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rates}
    return {**spread([row[accuracy] for row in rows]), **means}


def missing_lines(missing: Mapping[str, str]) -> list[str]:
    """One line a reason, with the data sets that it keeps from being scored and a way out.

    Where the ways out differ, it is that of the first data set.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for task, told in missing.items():
        dataset, _, rest = told.partition(": ")
        groups.setdefault(rest.partition("; ")[0], {}).setdefault(dataset, []).append(task)
    lines = []
    for reason, datasets in groups.items():
        counts = ", ".join(f"{name} ({len(tasks)})" for name, tasks in datasets.items())
        ways_out = {name: missing[tasks[0]].partition("; ")[2] for name, tasks in datasets.items()}
        first, way_out = next(iter(ways_out.items()))
        example = f"e.g. {first}: " if len(set(ways_out.values())) > 1 else ""
        hint = f"; {example}{way_out}" if way_out else ""
        lines.append(f"not scored: {counts}: {reason}{hint}")
    return lines
