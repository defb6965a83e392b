"""Rows that a prompt applies to and that have no target: why, and which tasks have many of them.

A target is missing where the label is hidden, or where it names none of the answer choices: labels that count from 1,
say, or that are words. Such rows are left out of training, silently but for what is said here.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import nodes

from t0jax.data.rows import HIDDEN, PromptedRows
from t0jax.data.sandbox import SANDBOX
from t0jax.data.templates import Rendered

log = logging.getLogger("t0jax")

FIRST_DRAWS = 100
"""Draws of a task after which it is told that many of its rows, more than a tenth, have no target."""


def why_no_target(rows: PromptedRows, index: int, rendered: Rendered) -> str:
    """Why a row that the prompt applies to has no target: "the label is hidden"."""
    if rows.label_hidden(rows.rows[index]):
        return "the label is hidden"
    return outside_choices(rows, index, rendered) or "the prompt renders an empty one"


def outside_choices(rows: PromptedRows, index: int, rendered: Rendered) -> str:
    """Which label of a row without a target is told and names no answer choice: "label is 2, and ... wants 0 to 1".

    '' where its labels are hidden, where the prompt has no choices, or where the target is empty for another reason.
    Labels are the data set's label columns, and what the prompt looks its choices up by.
    """
    if rendered.targets or not rendered.choices:
        return ""
    row = rows.rows[index]
    if rows.label_hidden(row):
        return ""
    plain, others = _lookups(rows.template.jinja)
    told = {name: row[name] for name in (*plain, *others, *rows.spec.labels) if name in row}
    looked_up = [name for name in plain if name in told]
    for name in looked_up or told:
        last = len(rendered.choices) - 1
        if told[name] in HIDDEN or (name in plain and _is_within(told[name], last)):
            continue
        wants = _wanted(name, told[name], last) if name in plain else "for it the prompt has none"
        return f"{name} is {told[name]!r:.100}, and {wants}"
    return ""


def _is_within(label: Any, last: int) -> bool:
    return isinstance(label, int) and -last - 1 <= label <= last


def _wanted(name: str, label: Any, last: int) -> str:
    """What a column must hold by which choices are looked up."""
    look_up = f"answer_choices[{name}] wants"
    if isinstance(label, int):
        return f"{look_up} 0 to {last}"
    if isinstance(label, str):
        return f"{look_up} a number, 0 to {last} (or write {{{{{name}}}}} for the target)"
    return f"{look_up} a whole number, 0 to {last}"


@functools.lru_cache(maxsize=4096)
def _lookups(jinja: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What `answer_choices[...]` is looked up by: names alone, and names in expressions, each in order."""
    keys = list(_choice_keys(SANDBOX.parse_prompt(jinja)))
    plain = dict.fromkeys(key.name for key in keys if isinstance(key, nodes.Name))
    inside = dict.fromkeys(name.name for key in keys for name in key.find_all(nodes.Name))
    return tuple(plain), tuple(name for name in inside if name not in plain)


def _choice_keys(tree: nodes.Template) -> Iterator[nodes.Expr]:
    for node in tree.find_all(nodes.Getitem):
        if isinstance(node.node, nodes.Name) and node.node.name == "answer_choices":
            yield node.arg


# ---------------------------------------------------------------------------------------------- training


class TargetWatch:
    """Looks at the first draws of each task, and warns of a task many of whose rows have no target."""

    def __init__(self, tasks: Sequence[Any]) -> None:
        """`tasks` have a `name` and `rows`."""
        self._tasks = tasks
        self._first: dict[int, list[bool | None]] = {task: [] for task in range(len(tasks))}

    def see(self, task: int, rendered: Rendered | None) -> None:
        """Takes note of what a draw of task number `task` rendered, None where its prompt does not apply."""
        first = self._first.get(task)
        if first is None:
            return
        first.append(bool(rendered.targets) if rendered else None)
        if len(first) == FIRST_DRAWS:
            del self._first[task]
            _tell(self._tasks[task], first.count(True), first.count(False))


def _tell(task: Any, taught: int, empty: int) -> None:
    if 10 * empty > taught + empty:
        log.warning(
            "%d of the first %d rows drawn from %s have no target and are left out (labels hidden, or outside the "
            "answer choices)%s",
            *(empty, FIRST_DRAWS, task.name, _way_to_look(task)),
        )


def _way_to_look(task: Any) -> str:
    spec = getattr(task.rows, "spec", None)
    if spec is None:
        return ""
    data = f"--local {spec.local}" if spec.local else "--data"
    return f": run `python -m scripts.prompts lint {spec.name} {data}`"
