"""Several results folders side by side: means with intervals, and differences to the first, paired by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t0jax.report import statistics
from t0jax.report.reading import DataSet, Folder, ReportError, read_folder
from t0jax.report.structured import macro

Range = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """A model on a data set, or on all of them.

    Attributes:
        mean: accuracy over prompts.
        interval: of it.
        difference: to the first model; None in its own column, and where that has nothing to compare with.
        difference_interval: paired by row; None where the rows differ.
        note: what to know about the difference.
    """

    mean: float
    interval: Range | None
    difference: float | None = None
    difference_interval: Range | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A data set's cells, None for a model that was not scored on it."""

    name: str
    prompts: str
    chance: float | None
    cells: Sequence[Cell | None]
    total: bool = False


def open_folders(folders: Sequence[Path | str], names: Sequence[str] = ()) -> list[Folder]:
    """The folders, named as given; else one by its model, several by the last parts of their paths where those differ.

    Raises:
        ReportError: none, as many names as folders are not given, a name twice, or a folder without results.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ReportError("no results folder is given")
    if not names and len(paths) > 1:
        names = [path.resolve().name for path in paths]
        names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    if names and len(names) != len(paths):
        raise ReportError(
            f"{len(paths)} results folders but {len(names)} names: {', '.join(names)}"
        )
    if len(set(names)) < len(names):
        raise ReportError(f"names must differ: {', '.join(names)}")
    return [read_folder(path, name) for path, name in zip(paths, names or [""], strict=True)]


def compare(folders: Sequence[Folder]) -> list[Row]:
    """A row a data set that any folder has, then the means over what all of them have."""
    names = sorted({name for folder in folders for name in folder.datasets})
    rows = [_row(name, [folder.datasets.get(name) for folder in folders]) for name in names]
    shared = [name for name in names if all(name in folder.datasets for folder in folders)]
    return rows + (_totals(folders, shared, names) if len(shared) > 1 else [])


def _row(name: str, found: Sequence[DataSet | None]) -> Row:
    there = [dataset for dataset in found if dataset]
    counts = [len(dataset.prompts) for dataset in there]
    cells = [
        dataset and _cell(dataset, None if k == 0 else found[0]) for k, dataset in enumerate(found)
    ]
    prompts = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"
    return Row(name, prompts, there[0].chance, cells)


def _cell(dataset: DataSet, first: DataSet | None) -> Cell:
    if first is None:
        return Cell(dataset.mean, dataset.mean_interval)
    difference = dataset.mean - first.mean
    own, other = dataset.means, first.means
    if own is None or other is None or not dataset.same_rows(first):
        return Cell(dataset.mean, dataset.mean_interval, difference, note="other rows: no interval")
    # The draws are those of the first model, for name and number of rows are the same.
    paired = statistics.mean_over_prompts(own) - statistics.mean_over_prompts(other)
    same = {p.name for p in dataset.prompts} == {p.name for p in first.prompts}
    return Cell(
        dataset.mean,
        dataset.mean_interval,
        difference,
        statistics.interval(paired),
        "" if same else "other prompts",
    )


def _totals(
    folders: Sequence[Folder], names: Sequence[str], everything: Sequence[str]
) -> list[Row]:
    """Over prompts and over data sets, of the data sets `names` that all folders have, of `everything`."""
    columns = [[folder.datasets[name] for name in names] for folder in folders]
    paired = [
        all(own.same_rows(first) for own, first in zip(column, columns[0], strict=True))
        for column in columns
    ]
    rows = []
    for over_datasets in (False, True):
        title = "mean over data sets" if over_datasets else "mean over prompts"
        title += "" if len(names) == len(everything) else f", {len(names)} data sets in common"
        found = [overall(column, over_datasets) for column in columns]
        (first, draws), cells = found[0], []
        for k, (mean, samples) in enumerate(found):
            own = statistics.interval(samples) if samples is not None else None
            if k == 0:
                cells.append(Cell(mean, own))
            elif paired[k] and samples is not None and draws is not None:
                cells.append(Cell(mean, own, mean - first, statistics.interval(samples - draws)))
            else:
                cells.append(Cell(mean, own, mean - first, note="other rows: no interval"))
        rows.append(Row(title, "", None, cells, total=True))
    return rows


def overall(
    datasets: Sequence[DataSet], over_datasets: bool, median: bool = False
) -> tuple[float, np.ndarray | None]:
    """Mean (or median) over all prompts, or over the data sets' means: (value, bootstrapped values or None).

    Data sets are drawn independently of each other.
    """
    reduce = np.nanmedian if median else np.nanmean
    if over_datasets:
        values = np.array([dataset.mean for dataset in datasets])
    else:
        values = np.concatenate([dataset.values for dataset in datasets])
    samples = [dataset.means for dataset in datasets]
    kept = [sample for sample in samples if sample is not None]
    if len(kept) < len(samples):
        return float(reduce(values)), None
    if over_datasets:
        kept = [statistics.mean_over_prompts(sample)[:, None] for sample in kept]
    return float(reduce(values)), reduce(np.concatenate(kept, axis=1), axis=1)


def text_table(folders: Sequence[Folder]) -> str:
    """The comparison for a terminal: accuracies with their intervals, differences to the first, and metrics of text."""
    rows, first = compare(folders), folders[0].name
    heads = ["data set", "prompts", first]
    for folder in folders[1:]:
        heads += [folder.name, f"{folder.name} - {first}"]
    lines = [heads]
    for row in rows:
        cells = [_text_mean(row.cells[0])]
        for cell in row.cells[1:]:
            cells += [_text_mean(cell), _text_difference(cell)]
        lines.append([row.name, row.prompts, *cells])
    parts = _aligned(lines) if rows else []
    if len(folders) > 1 and rows:
        parts.append("[95% interval: bootstrap over rows; differences paired by row]")
    tables = _written_lines(folders), _structured_lines(folders)
    return "\n".join([*parts, *(line for table in tables for line in _aligned(table))])


def _written_lines(folders: Sequence[Folder]) -> list[list[str]]:
    """Metrics of generated text, a line a task and metric; they are of all rows at once and have no intervals."""
    names = dict.fromkeys(
        (task, metric)
        for folder in folders
        for task, entry in folder.written.items()
        for metric in entry["metrics"]
    )
    if not names:
        return []
    lines = [["generated text", "metric", *(folder.name for folder in folders)]]
    for task, metric in sorted(names):
        values = [folder.written.get(task, {}).get("metrics", {}).get(metric) for folder in folders]
        lines.append([task, metric, *("-" if v is None else f"{v:.2f}" for v in values)])
    return lines


def _structured_lines(folders: Sequence[Folder]) -> list[list[str]]:
    """What counts for structured tasks that have no accuracy, a line a task, and the mean over all tasks of any kind
    that every folder has."""
    tasks = {
        (name, task.metric)
        for folder in folders
        for name, task in folder.structured.items()
        if task.metric != "accuracy"
    }
    if not tasks:
        return []
    lines = [["structured task", "metric", *(folder.name for folder in folders)]]
    for name, metric in sorted(tasks):
        found = [folder.structured.get(name) for folder in folders]
        cells = [_text_mean(task and Cell(task.value, task.interval)) for task in found]
        lines.append([name, metric, *cells])
    shared = sorted(set.intersection(*(set(folder.structured) for folder in folders)))
    if len(shared) > 1:
        means = [macro([folder.structured[name] for name in shared]) for folder in folders]
        cells = [_text_mean(Cell(*mean)) for mean in means]
        lines.append([f"mean over {len(shared)} structured tasks", "", *cells])
    return lines


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    if not lines:
        return []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _text_mean(cell: Cell | None) -> str:
    if cell is None:
        return "not scored"
    return f"{cell.mean:.3f}" + (
        f" [{cell.interval[0]:.3f}, {cell.interval[1]:.3f}]" if cell.interval else ""
    )


def _text_difference(cell: Cell | None) -> str:
    if cell is None or cell.difference is None:
        return "-"
    text = f"{cell.difference:+.3f}"
    if cell.difference_interval:
        low, high = cell.difference_interval
        text += f" [{low:+.3f}, {high:+.3f}]"
    return text + (f" ({cell.note})" if cell.note else "")
