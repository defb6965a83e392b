"""Telling which data sets of a mixture cannot be had, all of them in one table."""

import functools
import logging
import os
from collections.abc import Iterator, Mapping

from t0jax import config
from t0jax.data.rows import DataUnavailable

log = logging.getLogger("t0jax")

Missing = Mapping[tuple[str, str, str], list[str]]
"""{(data set, reason, way out): names of its tasks}."""


def report(data: config.Data, missing: Missing, task_count: int) -> None:
    """Logs the table of unavailable data sets, or raises it.

    Raises:
      DataUnavailable: there are some, without `data.available_only`.
      config.ConfigError: there is no other task.
    """
    rest = task_count - sum(map(len, missing.values()))
    if missing:
        table = "\n".join(_lines(data.mixture, missing, task_count))
        if not data.available_only:
            ways_out = [f"put the data there ({data_dir()})"]
            ways_out += ["go on with the rest by data.available_only: true"] if rest else []
            datasets = ", ".join(dataset for dataset, _, _ in missing)
            raise DataUnavailable(datasets, table, ", or ".join(ways_out))
        _warn_once(table + (f"\n  going on with the other {_count(rest, 'task')}" if rest else ""))
    if not rest:
        raise config.ConfigError(
            f"none of the data sets of {data.mixture!r} can be had; {data_dir()}"
        )


@functools.cache
def _warn_once(text: str) -> None:
    """A run reads its mixture twice where it trains its vocabulary; one table is enough."""
    log.warning("%s", text)


def _lines(mixture: str, missing: Missing, task_count: int) -> Iterator[str]:
    lost = sum(map(len, missing.values()))
    head = f"{_count(len(missing), 'data set')} ({lost} of {_count(task_count, 'task')})"
    yield f"{head} of {mixture!r} cannot be had:"
    width = max(len(dataset) for dataset, _, _ in missing)
    for (dataset, reason, way_out), names in missing.items():
        place = way_out.removeprefix("put the data at ")  # said once, below the table
        yield f"  {dataset:{width}}  {_count(len(names), 'task'):>9}  {reason}" + (
            place and f"; {place}"
        )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def data_dir() -> str:
    """Where local data is looked for, for messages."""
    where = os.environ.get("T0JAX_DATA_DIR")
    return f"T0JAX_DATA_DIR is {where}" if where else "T0JAX_DATA_DIR is not set"
