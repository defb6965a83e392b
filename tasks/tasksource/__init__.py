"""tasksource's tasks, declared anew and checked: structured records for a multitask encoder.

| mixture | what |
|---|---|
| tasksource_train | all tasks with a training split, in proportion to their rows, of each at most 64,000 |
| tasksource_30k | the same, at most 30,000 |

`list_tasks()` tells them. Ids are tasksource's, where it has the task. What holds for all and differs from tasksource:
official splits are read as they are, nothing is cut or merged; options of a question are shuffled, and as many are kept
as `data.max_choices` says; labels keep the data sets' order. `differs` says what else a task does otherwise, and
`audit` what each declaration was checked against. No data is opened here, and no network asked.

Cut-down tasks for a machine without a network are in `tasks.tasksource_local`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from t0jax.config import HeadKind
from t0jax.data.sources import add_mixture
from t0jax.data.structured.records import Record
from t0jax.data.structured.source import add_task
from tasks.tasksource import (
    exams,
    nli,
    pairs,
    preferences,
    questions,
    sentiment,
    speech,
    tokens,
    topics,
)
from tasks.tasksource.audit import checked
from tasks.tasksource.sizes import SIZES, UNKNOWN

CAPS = {"tasksource_train": 64_000, "tasksource_30k": 30_000}
FAMILIES = (nli, pairs, sentiment, topics, speech, questions, preferences, tokens)


@dataclass(frozen=True)
class Listed:
    """A task as `list_tasks` tells it."""

    id: str
    kind: HeadKind
    dataset: str
    """On the Hub."""
    labels: tuple[str, ...]
    train_rows: int | None
    """As the data set's card says; None where that is not known here."""
    checked: str
    """`rows`, `card`, `prompts` or `reported`: see `audit`."""
    differs: str
    """How it differs from tasksource's, and why."""


def declared(module: ModuleType) -> list[Record]:
    """The records of a module, in its order."""
    return [value for value in vars(module).values() if isinstance(value, Record)]


def _by_id(records: Iterable[Record]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in records:
        if record.name in found:
            raise ValueError(f"two declarations have the id {record.name!r}")
        found[record.name] = record
    return found


SINGLE = _by_id(record for module in FAMILIES for record in declared(module))
"""{id: record} of the tasks that are declared one by one."""
RECORDS = _by_id([*SINGLE.values(), *exams.MMLU, *exams.BIG_BENCH_TASKS])
"""{id: record} of all tasks."""


def list_tasks() -> list[Listed]:
    """All tasks, in the order of their declarations."""
    return [
        Listed(
            record.name,
            record.kind,
            "/".join(filter(None, (record.spec.hub_id or record.spec.dataset, record.spec.subset))),
            record.names,
            SIZES.get(record.name),
            checked(record.name),
            record.differs,
        )
        for record in RECORDS.values()
    ]


def rates(records: Iterable[Record], cap: int) -> dict[str, float]:
    """{seqio task: rate}: rows of the training split, at most `cap`; tasks without one are left out."""
    return {
        add_task(record).name: float(min(SIZES.get(record.name, UNKNOWN), cap))
        for record in records
        if record.splits[0]
    }


def register() -> None:
    """All tasks and mixtures; again without effect."""
    for record in RECORDS.values():
        add_task(record)
    for name, cap in CAPS.items():
        add_mixture(name, rates(RECORDS.values(), cap))


register()
