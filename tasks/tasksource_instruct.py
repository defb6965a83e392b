"""tasksource's tasks as text for T0 and FLIPPED, in the format of tasksource-instruct.

| mixture | what |
|---|---|
| tasksource_instruct | tasks with a training split and labels in words, by their rows, at most 30,000 of each |
| tasksource_instruct_score_eval | those of them with a validation split whose answers are chosen |
| tasksource_instruct_local | the same of `tasks.tasksource_local` |
| tasksource_instruct_local_score_eval | the same |

Rank classification shows all labels and options, training at most four. `data.view: flipped` and `channel` see the same
tasks the other ways round. MMLU is left out, which is to be tested on, and what is a recast already.
"""

from collections.abc import Iterable

from t0jax.data.sources import RANK_SUFFIX, add_mixture
from t0jax.data.structured.instruct import is_verbal
from t0jax.data.structured.instruct_tasks import add_instruct_tasks
from t0jax.data.structured.records import Record
from tasks import tasksource_local
from tasks.tasksource import RECORDS
from tasks.tasksource.sizes import SIZES, UNKNOWN

NAME = "tasksource_instruct"
CAP = 30_000
NOT_RECAST = ("zero-shot-label-nli",)
"""Made of other tasks' training splits."""


def is_recast(record: Record) -> bool:
    """Whether a task is among those trained on as text."""
    return is_verbal(record) and record.splits[0] is not None and record.name not in NOT_RECAST


def register(name: str, rows: Iterable[tuple[Record, int]]) -> None:
    """The tasks of (record, rows of its training split) and the mixtures `<name>` and `<name>_score_eval`."""
    trained, scored = {}, {}
    for record, count in rows:
        if is_recast(record):
            text, *rank = add_instruct_tasks(record)
            trained[text.name] = float(min(count, CAP))
            scored |= {task.name: 1.0 for task in rank if record.splits[1]}
    add_mixture(name, trained)
    add_mixture(name + RANK_SUFFIX, scored)


register(NAME, [(record, SIZES.get(name, UNKNOWN)) for name, record in RECORDS.items()])
register(f"{NAME}_local", tasksource_local.ROWS.values())
