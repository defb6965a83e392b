"""Data sets made to compare groups of people: which rows are to be compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Groups:
    """Tells the group that a row is about and the pair it belongs to; `t0jax.results.parity` says what is reported.

    Attributes:
        columns: that `of` reads, whether or not a prompt reads them.
        of: row -> (its pair, or '' where rows are not paired; its group).
    """

    columns: tuple[str, ...]
    of: Callable[[Mapping[str, Any]], tuple[str, str]]
