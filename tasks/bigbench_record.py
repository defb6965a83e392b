"""BIG-bench's multiple-choice tasks as structured records, from `task.json` or the Hub's copy."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t0jax.data.rows import DataError, DatasetSpec
from t0jax.data.structured.records import MultipleChoice, Row
from tasks.bigbench_rows import BigBenchTask, Example, hub_task, read_task, task_file
from tasks.tasksource_fields import digest, reads

TRAIN_PERCENT = 80
"""Of the rows; the others are for validation."""

_MOST_OF_ONE = 0.1
"""Share of the rows up to which rows of one input stay together whatever their options."""


@reads("grades")
def best_grade(row: Row) -> int:
    """The number of the first option of the best grade."""
    return row["grades"].index(max(row["grades"]))


@dataclass(frozen=True, kw_only=True)
class BigBench(MultipleChoice):
    """A task of BIG-bench, from its `task.json` or from the Hub's copy.

    Its splits are train and validation, cut in the order of a digest of the inputs' letters, which mixes the rows of
    subtasks: all rows of an input are in one of them. Where many rows ask the same, and only the options differ, all
    rows of an input with its options.
    """

    def open(self, split: str, local_dir: str = "") -> Any:
        """The examples of a split; errors are those of `tasks.bigbench_rows`."""
        task = self._task(local_dir)
        stop, order = cut(task.examples)
        numbers = order[:stop] if split == "train" else order[stop:]
        return _Rows(task.path, [task.examples[number] for number in numbers])

    def files(self, split: str, local_dir: str = "") -> list[str]:
        """Its one file, or those of the Hub's copy."""
        return list(self._task(local_dir).files)

    def _task(self, local_dir: str) -> BigBenchTask:
        path = task_file(self.spec, "", local_dir)
        return read_task(path) if path else hub_task(self.spec)


def cut(examples: Sequence[Example]) -> tuple[int, list[int]]:
    """(how many are for training, row numbers in order): the place between two inputs that is nearest to the share.

    Raises:
        DataError: all rows are the same, so that none could be kept from training.
    """
    keys = [digest(example.input) for example in examples]
    if max(Counter(keys).values()) > _MOST_OF_ONE * len(keys):
        keys = [digest(" ".join([one.input, *one.choices])) for one in examples]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    places = [k for k in range(1, len(order)) if keys[order[k - 1]] != keys[order[k]]]
    if not places:
        raise DataError(f"{len(keys)} examples with one input and the same options cannot be cut")
    wanted = len(keys) * TRAIN_PERCENT // 100
    return min(places, key=lambda place: abs(place - wanted)), order


class _Rows:
    """A task's examples as rows of input, choices and grades."""

    def __init__(self, name: str, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.name, self.columns = name, ("choices", "grades", "input")

    def select(self, columns: list[str], spec: DatasetSpec, optional: tuple[str, ...] = ()) -> Any:
        return self

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._examples[index]
        return {
            "input": example.input,
            "choices": list(example.choices),
            "grades": list(example.grades),
        }
