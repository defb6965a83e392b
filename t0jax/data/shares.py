"""How a mixture is made up: which share of its examples each data set or task has."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from t0jax import config
from t0jax.data.registry import find_tasks
from t0jax.data.rows import DataError, DataUnavailable
from t0jax.data.templates import TemplateError, find_template, prompts_dir

MILLION = 1_000_000


@dataclass(frozen=True)
class Share:
    """One data set or task of a mixture.

    Attributes:
      tasks: how many tasks.
      rate: the sum of their mixing rates.
      share: of all examples, 0 to 1.
      rows: rows of the data set that are drawn from (those its record keeps), where they were counted.
      missing: why its data cannot be had, where that was found out; then it has no share.
      split: of a task that was opened: the split's name in the data.
      data: the data set, of a task too.
    """

    name: str
    tasks: int
    rate: float
    share: float
    rows: int | None = None
    missing: str = ""
    split: str = ""
    data: str = ""

    @property
    def passes(self) -> float | None:
        """How often each row is read in a million examples, by all its tasks together."""
        return MILLION * self.share / self.rows if self.rows else None


def find_shares(
    data: config.Data, by: Literal["dataset", "task"] = "dataset", count: bool = False
) -> list[Share]:
    """The shares of `data.mixture`, the largest first.

    Args:
      data: its `mixture`, `modules`, `split`, `rates` and `num_shots` are used; `rates: rows` opens the data.
      count: open the data of every task, count its rows, and leave out of the shares what cannot be had.

    Raises:
      config.ConfigError: no such mixture; a task's rows cannot be counted.
      RecordError: a record keeps no row, or cannot tell which.
    """
    rates = find_tasks(data)
    from t0jax.data import sources

    found = {name: sources.seqio.TaskRegistry.get(name).source for name in rates}
    opened = count or data.rates == "rows"
    tasks = [
        replace(
            _task(name, rates[name], found[name], data, opened), data=_data_set(name, found[name])
        )
        for name in rates
    ]
    groups: dict[str, list[Share]] = {}
    for task in tasks:
        groups.setdefault(task.name if by == "task" else task.data, []).append(task)
    total = math.fsum(task.rate for task in tasks if not task.missing)
    shares = [_together(name, members, total) for name, members in groups.items()]
    return sorted(shares, key=lambda share: (-share.share, share.name))


def weight(data: config.Data, rate: float, rows: int) -> float:
    """What a task weighs in its mixture: its registered rate, or its rows up to `data.rate_cap`."""
    if data.rates == "registered":
        return rate
    return float(min(rows, data.rate_cap) if data.rate_cap else rows)


def _data_set(task: str, source: Any) -> str:
    spec = getattr(source, "spec", None)
    return spec.name if spec else task


def _task(name: str, rate: float, source: Any, data: config.Data, opened: bool) -> Share:
    if not opened:
        return Share(name, 1, rate, 0.0)
    if not hasattr(source, "rows"):
        raise config.ConfigError(
            f"the rows of task {name!r} cannot be counted: it is not read by index; leave out --data and --rates rows"
        )
    try:
        rows = source.rows(data.split)
        count = rows.training_rows(data.num_shots) if hasattr(rows, "training_rows") else len(rows)
    except (DataUnavailable, DataError) as error:
        return Share(name, 1, rate, 0.0, None, getattr(error, "reason", str(error)))
    except TemplateError as error:
        raise config.ConfigError(f"task {name!r}: {error}") from error
    return Share(name, 1, weight(data, rate, count), 0.0, count, split=rows.split)


def _together(name: str, tasks: Sequence[Share], total: float) -> Share:
    there = [task for task in tasks if not task.missing]
    rate = math.fsum(task.rate for task in there)
    rows: dict[str, int] = {}  # tasks of a split share its rows, as far as both keep them
    for task in there:
        rows[task.split] = max(rows.get(task.split, 0), task.rows or 0)
    missing = "" if there else tasks[0].missing
    share = rate / total if total else 0.0
    return Share(
        name, len(tasks), rate, share, sum(rows.values()) or None, missing, "", tasks[0].data
    )


def table(mixture: str, shares: list[Share]) -> Iterator[str]:
    """Lines of text: one a data set or task, then the totals, then what cannot be had."""
    there = [share for share in shares if not share.missing]
    counted = any(share.rows or share.missing for share in shares)
    head = [mixture, "tasks", "rate", "share %", *(("rows", "passes/M") if counted else ())]
    total = ["all", *_numbers(sum(s.tasks for s in there), math.fsum(s.rate for s in there), 1.0)]
    lines = [head, *(_cells(share, counted) for share in there), total + [""] * (2 * counted)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        yield f"{line[0]:{widths[0]}}  {'  '.join(cells)}".rstrip()
    if counted:
        yield "passes/M: how often each row is read in a million examples"
    yield from _missing([share for share in shares if share.missing])


def _cells(share: Share, counted: bool) -> list[str]:
    cells = [share.name, *_numbers(share.tasks, share.rate, share.share)]
    if counted:
        rows = "" if share.rows is None else f"{share.rows:,}"
        cells += [rows, "" if share.passes is None else f"{share.passes:.2f}"]
    return cells


def _numbers(tasks: int, rate: float, share: float) -> list[str]:
    return [f"{tasks:,}", f"{rate:,.0f}" if rate >= 100 else f"{rate:g}", f"{100 * share:.2f}"]


def _missing(shares: Sequence[Share]) -> Iterator[str]:
    if shares:
        data_sets = _count(len({share.data for share in shares}), "data set")
        tasks = _count(sum(share.tasks for share in shares), "task")
        yield f"{data_sets} ({tasks}) cannot be had, left out:"
        yield from _by_reason((share.missing, share.data) for share in shares)


def _by_reason(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line a reason, with the names that it holds for, of (reason, name) pairs."""
    reasons: dict[str, set[str]] = {}
    for reason, name in pairs:
        reasons.setdefault(reason, set()).add(name)
    yield from (f"  {reason}: {', '.join(sorted(names))}" for reason, names in reasons.items())


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


# ---------------------------------------------------------------------------------------------- prompts


def unknown_prompts(data: config.Data) -> Iterator[str]:
    """Lines that name the tasks of `data.mixture` whose prompts are not in the folder of prompts, where there is one.

    Raises:
      config.ConfigError: no such mixture.
    """
    rates = find_tasks(data)
    from t0jax.data import sources

    found = {name: sources.seqio.TaskRegistry.get(name).source for name in rates}
    prompted = {
        name: source
        for name, source in found.items()
        if isinstance(source, sources.PromptSource)
        and not isinstance(source, sources.RenderedSource)
    }
    lacking = list(_lacking(prompted))
    if lacking:
        yield f"{_count(len(lacking), 'task')} cannot be read, for want of the prompt:"
        yield from _by_reason(lacking)


def _lacking(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what is wrong, task) of the tasks whose prompts are not in their folder of prompts."""
    for name, source in found.items():
        root = None
        with contextlib.suppress(TemplateError):
            root = prompts_dir(source.prompts_root)
        try:
            if root:
                find_template(root, source.spec.dataset, source.spec.subset, source.template_name)
        except TemplateError as error:
            yield str(error), name
