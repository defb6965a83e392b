"""Where each task's outputs lie in the head bank: all heads' weights side by side, one kernel column an output.

Sequence heads (of a row's pooled state) and token heads (of every token's state) have a bank each. Heads of one
group share their columns; the biases of every head are its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t0jax.config import ConfigError, Head, HeadKind
from t0jax.config.heads import head_group, normalised

__all__ = ["KINDS", "Layout", "head_group", "layout", "normalised"]

KINDS: tuple[HeadKind, ...] = (
    "classification",
    "multilabel",
    "regression",
    "multiple_choice",
    "token_classification",
)
"""Kinds of heads in the order of `Layout.kinds`' numbers."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The banks of a list of heads; arrays are int32 [tasks], by task number."""

    kinds: np.ndarray
    """Number of the kind in `KINDS`."""
    token: np.ndarray
    """bool: whether the head is in the bank of token heads; columns and biases are of its own bank."""
    columns: np.ndarray
    """First kernel column."""
    biases: np.ndarray
    """First bias."""
    sizes: np.ndarray
    """Outputs."""
    sequence: tuple[int, int, int]
    """Of the sequence bank: kernel columns, biases, and outputs of the widest head; zeros without such a head."""
    tokens: tuple[int, int, int]
    """Of the token bank."""


def layout(heads: Sequence[Head]) -> Layout:
    """The banks of `heads`; groups, and heads without one, take columns in the order of their first tasks.

    Raises:
        ConfigError: a head without outputs, or two of one group with different numbers of outputs.
    """
    token = np.array([head.kind == "token_classification" for head in heads], bool)
    places = {False: _bank(heads, ~token), True: _bank(heads, token)}
    columns, biases = (
        np.array([places[bool(of)][kind][i] for i, of in enumerate(token)], np.int32)
        for kind in (0, 1)
    )
    return Layout(
        kinds=np.array([KINDS.index(head.kind) for head in heads], np.int32),
        token=token,
        columns=columns,
        biases=biases,
        sizes=np.array([head.columns for head in heads], np.int32),
        sequence=places[False][2],
        tokens=places[True][2],
    )


def _bank(
    heads: Sequence[Head], members: np.ndarray
) -> tuple[dict[int, int], dict[int, int], tuple[int, int, int]]:
    """First columns and first biases by task of the heads in one bank, and its sizes as in `Layout`."""
    columns: dict[int, int] = {}
    biases: dict[int, int] = {}
    firsts: dict[str, int] = {}
    width, offset, widest = 0, 0, 0
    for task in map(int, np.flatnonzero(members)):
        head = heads[task]
        first = firsts.setdefault(head.group, task) if head.group else task
        _check(head, heads[first])
        if first == task:
            columns[task] = width
            width += head.columns
        columns[task], biases[task] = columns[first], offset
        offset += head.columns
        widest = max(widest, head.columns)
    return columns, biases, (width, offset, widest)


def _check(head: Head, first: Head) -> None:
    if not head.columns:
        raise ConfigError(f"task {head.task!r} ({head.kind}) has no labels; give its label names")
    if head.columns != first.columns:
        raise ConfigError(
            f"tasks {first.task!r} and {head.task!r} share the weights of group {head.group!r} but have "
            f"{first.columns} and {head.columns} outputs; give one of them another group"
        )
