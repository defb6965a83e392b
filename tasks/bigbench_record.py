"""BIG-bench's multiple-choice tasks as structured records, from `task.json` or the Hub's copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t0jax.data.rows import DatasetSpec
from t0jax.data.structured.records import MultipleChoice, Row
from tasks.bigbench_rows import BigBenchTask, Example, hub_task, read_task, task_file
from tasks.tasksource_fields import digest, reads

TRAIN_PERCENT = 80
"""Of the rows; the others are for validation."""


@reads("grades")
def best_grade(row: Row) -> int:
    """The number of the first option of the best grade."""
    return row["grades"].index(max(row["grades"]))


@dataclass(frozen=True, kw_only=True)
class BigBench(MultipleChoice):
    """A task of BIG-bench, from its `task.json` or from the Hub's copy.

    Its splits are train and validation, cut in the order of a digest of the inputs' letters: rows of all subtasks are
    in both, and all rows of an input in one.
    """

    def open(self, split: str, local_dir: str = "") -> Any:
        """The examples of a split; errors are those of `tasks.bigbench_rows`."""
        task = self._task(local_dir)
        stop, order = _cut([example.input for example in task.examples])
        numbers = order[:stop] if split == "train" else order[stop:]
        return _Rows(task.path, [task.examples[number] for number in numbers])

    def files(self, split: str, local_dir: str = "") -> list[str]:
        """Its one file, or those of the Hub's copy."""
        return list(self._task(local_dir).files)

    def _task(self, local_dir: str) -> BigBenchTask:
        path = task_file(self.spec, "", local_dir)
        return read_task(path) if path else hub_task(self.spec)


def _cut(inputs: Sequence[str]) -> tuple[int, list[int]]:
    """(how many are for training, row numbers in order): the place between two inputs that is nearest to the share."""
    digests = list(map(digest, inputs))
    order = sorted(range(len(inputs)), key=digests.__getitem__)
    wanted = len(inputs) * TRAIN_PERCENT // 100
    places = [k for k in range(1, len(order)) if digests[order[k - 1]] != digests[order[k]]]
    return min(places, key=lambda place: abs(place - wanted), default=wanted), order


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
