"""Structured records: `python -m scripts.records list | check --mixture M --module my_tasks`.

`list` names the tasks of a mixture, `list --data` counts the rows that they keep too. `check` reads every row that
training would read and prints a line for each that would stop it; it ends with status 1 where there are any.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from t0jax import config
from t0jax.config import ConfigError, run_script
from t0jax.data.registry import find_tasks, holds_structured
from t0jax.data.rows import DataError, DataUnavailable
from t0jax.data.structured.records import RecordError

_GAP = "  "


def listing(data: config.Data, count: bool) -> Iterator[list[str]]:
    """Cells of a line a task, sorted by id: id, kind, rows of train, validation and test, how it differs.

    With `count` the data is opened and the rows that `where` keeps are counted; else, and of what cannot be had or
    read, a split that is declared is a "?".

    Raises:
      config.ConfigError: no such mixture.
    """
    names = list(find_tasks(data))
    import seqio

    sources: list[Any] = [seqio.TaskRegistry.get(name).source for name in names]
    yield ["task", "kind", "train", "validation", "test", "differs"]
    for source in sorted(sources, key=lambda source: source.record.name):
        record = source.record
        declared = zip(("train", "validation", "test"), record.splits, strict=True)
        rows = [
            _rows(source, split, data.local_dir, count) if held else "-" for split, held in declared
        ]
        yield [record.name, record.kind, *rows, record.differs]


def _rows(source: Any, split: str, local_dir: str, count: bool) -> str:
    if not count:
        return "?"
    rows = source.rows(split, local_dir=local_dir)
    try:
        kept = rows.kept()
        return f"{len(rows if kept is None else kept):,}"
    except (DataUnavailable, DataError, RecordError):
        return "?"


def findings(data: config.Data, read: dict[str, int]) -> Iterator[list[str]]:
    """Cells of a line a fault: task, row in the data, what is wrong. Fills `read` and raises as `check_rows`."""
    from t0jax.data.structured.loader import check_rows

    for task, row, reason in check_rows(data, read):
        yield [task, "" if row is None else str(row), reason]


def _table(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        yield _GAP.join(cells).rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="name a mixture's tasks")
    listed.add_argument("--data", action="store_true", help="open the data and count rows")
    check = commands.add_parser("check", help="read all rows, print those that are wrong")
    check.add_argument("--split", default="train", help="train, validation or test [train]")
    check.add_argument(
        "--available_only", action="store_true", help="pass over tasks whose data cannot be had"
    )
    for command in (listed, check):
        command.add_argument("--mixture", required=True, help="a seqio mixture or task")
        command.add_argument(
            "--module", default="tasks.tasksource", help="what registers it, commas between"
        )
        command.add_argument("--local_dir", default="", help="as data.local_dir")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 1 where `check` found something, else 0.

    Raises:
      UserError: no such mixture or module, or its tasks are not structured.
    """
    options = _parser().parse_args(argv)
    data = config.Data(
        mixture=options.mixture,
        modules=tuple(options.module.split(",")),
        local_dir=options.local_dir,
        split=getattr(options, "split", "train"),
        available_only=getattr(options, "available_only", False),
    )
    if not holds_structured(data):
        raise ConfigError(
            f"{data.mixture!r} has no structured tasks; see its prompts with `scripts.prompts`"
        )
    found, read = 0, dict[str, int]()
    try:
        if options.command == "list":
            print("\n".join(_table(list(listing(data, options.data)))))
            return 0
        for line in findings(data, read):
            found += 1
            print(_GAP.join(line), flush=True)
        count = f"{sum(read.values()):,} rows of {data.split}, tasks: {len(read)}"
        print(f"{count}: {f'{found:,} found' if found else 'no row is wrong'}")
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(found > 0)


if __name__ == "__main__":
    run_script(main)
