"""BIG-bench's multiple-choice tasks as structured records, from `task.json` or the Hub's copy."""

from dataclasses import dataclass
from typing import Any

from t0jax.data.rows import DatasetSpec
from t0jax.data.structured.records import MultipleChoice, Row
from tasks.bigbench_rows import BigBenchTask, hub_task, read_task, task_file
from tasks.tasksource_fields import reads


@reads("grades")
def best_grade(row: Row) -> int:
    """The number of the first option of the best grade."""
    return row["grades"].index(max(row["grades"]))


@dataclass(frozen=True, kw_only=True)
class BigBench(MultipleChoice):
    """A task of BIG-bench, from its `task.json` or from the Hub's copy."""

    def open(self, split: str, local_dir: str = "") -> Any:
        """The examples. BIG-bench has no splits; errors are those of `tasks.bigbench_rows`."""
        return _Rows(self._task(local_dir))

    def files(self, split: str, local_dir: str = "") -> list[str]:
        """Its one file, or those of the Hub's copy."""
        return list(self._task(local_dir).files)

    def _task(self, local_dir: str) -> BigBenchTask:
        path = task_file(self.spec, "", local_dir)
        return read_task(path) if path else hub_task(self.spec)


class _Rows:
    """A task's examples as rows of input, choices and grades."""

    def __init__(self, task: BigBenchTask) -> None:
        self._examples = task.examples
        self.name, self.columns = task.path, ("choices", "grades", "input")

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
