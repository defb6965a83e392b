"""BIG-bench's multiple-choice tasks by rank classification, each through its own prompt (`tasks.bigbench_rows`).

| mixture | what |
|---|---|
| bigbench_score_eval | the 14 tasks that FLIPPED is evaluated on, 21 with their subtasks |
| bigbench_local_score_eval | every task that is below `T0JAX_DATA_DIR/bigbench` when this module is imported |

Tasks are named `bigbench_<task>[_<subtask>]_score_eval`. The view is direct unless `data.view` says otherwise. Splits
`validation` and `all` are both all rows: BIG-bench has no other. A task with subtasks counts once in the results' line
"all data sets", as the mean over them.

A task of one's own, in BIG-bench's format:

    add_bigbench_task("my_riddles", local="data/my_riddles")        # data/my_riddles/task.json -> my_riddles_score_eval
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import seqio

from t0jax.data.rows import DatasetSpec, PromptedRows
from t0jax.data.sources import RANK_SUFFIX, PromptSource, add_mixture, add_rank_source
from tasks.bigbench_rows import FILE, FOLDER, PROMPT, BigBenchRows, task_spec

FLIPPED_TASKS: dict[str, tuple[str, ...]] = {
    "code_line_description": (),
    "conceptual_combinations": (
        "contradictions",
        "emergent_properties",
        "fanciful_fictional_combinations",
        "homonyms",
        "invented_words",
        "surprising_uncommon_combinations",
    ),
    "formal_fallacies_syllogisms_negation": (),
    "hindu_knowledge": (),
    "known_unknowns": (),
    "language_identification": (),
    "logic_grid_puzzle": (),
    "logical_deduction": ("three_objects", "five_objects", "seven_objects"),
    "misconceptions": (),
    "movie_dialog_same_or_different": (),
    "novel_concepts": (),
    "strategyqa": (),
    "vitaminc_fact_verification": (),
    "winowhy": (),
}
"""The 14 tasks of FLIPPED's model card, with their subtasks: the names of BIG-bench's folders."""


class BigBenchSource(PromptSource):
    """A task or subtask of BIG-bench through its own prompt, for rank classification."""

    def __init__(self, spec: DatasetSpec, subtask: str = "", **options: Any) -> None:
        """
        Args:
          spec: from `task_spec`.
          subtask: name of its folder, if it is one.
          **options: `view`, `local_dir` and `label_words` of `PromptSource`.
        """
        self.subtask = subtask
        splits = {name: name for name in ("validation", "all")}
        super().__init__(spec, PROMPT, splits=splits, rank=True, **options)

    @property
    def splits(self) -> tuple[str, ...]:
        """Both splits; whether the rows can be had is seen when they are opened."""
        return tuple(self._data_splits)

    def rows(self, split: str, **options: Any) -> PromptedRows:
        """The rows, not yet opened; arguments and errors as in `PromptSource`."""
        plain = super().rows(split, **options)
        values = {field.name: getattr(plain, field.name) for field in fields(plain)}
        return BigBenchRows(**values, subtask=self.subtask)

    def identity(self) -> tuple[Any, ...]:
        return (*super().identity(), self.subtask)


def add_bigbench_task(
    name: str,
    task: str = "",
    subtask: str = "",
    *,
    local: str = "",
    local_dir: str = "",
    view: str = "direct",
    vocabulary: seqio.Vocabulary | None = None,
    label_words: Mapping[str, str] = MappingProxyType({}),
) -> seqio.Task:
    """Registers `<name>_score_eval`; declaring the same task again changes nothing.

    Args:
      name: of the seqio task.
      task, subtask: folders in BIG-bench; the task is `name` when empty.
      local: a folder with `task.json`, which is read instead of `<T0JAX_DATA_DIR>/bigbench/<task>` and the Hub.
      local_dir, view, vocabulary, label_words: as in `sources.add_rank_task`.

    Raises:
      ValueError: the name is taken by another task.
    """
    spec = task_spec(task or name, local)
    options = {"view": view, "local_dir": local_dir, "label_words": label_words}
    source = BigBenchSource(spec, subtask, **options)
    return add_rank_source(name, source, vocabulary)


def local_tasks(root: Path) -> list[tuple[str, str]]:
    """(task, subtask or '') of every `task.json` in the folders of a BIG-bench folder, sorted.

    A task whose subtasks are there is not listed by itself. `<task>_<subtask>` of a task of FLIPPED is that subtask.
    """
    flat = {f"{task}_{sub}": (task, sub) for task, subs in FLIPPED_TASKS.items() for sub in subs}
    nested = [file.relative_to(root).parts for file in root.glob(f"*/*/{FILE}")]
    parents = {task for task, *_ in nested}
    single = [file.parent.name for file in root.glob(f"*/{FILE}")]
    found = {flat.get(task, (task, "")) for task in single if task not in parents}
    return sorted(found | {(task, subtask) for task, subtask, _ in nested})


def _register(tasks: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Rates of the tasks' mixture."""
    names = {}
    for task, subtask in tasks:
        name = re.sub(r"\W", "_", "_".join(filter(None, (FOLDER, task, subtask))))
        add_bigbench_task(name, task, subtask)
        names[name + RANK_SUFFIX] = 1.0
    return names


add_mixture(
    "bigbench_score_eval",
    _register((task, sub) for task, subs in FLIPPED_TASKS.items() for sub in subs or [""]),
)
_ROOT = os.environ.get("T0JAX_DATA_DIR")
_LOCAL = _register(local_tasks(Path(_ROOT).expanduser() / FOLDER)) if _ROOT else {}
if _LOCAL:
    add_mixture("bigbench_local_score_eval", _LOCAL)
