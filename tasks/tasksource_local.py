"""tasksource's tasks as cut down as `<T0JAX_DATA_DIR>` can have them without a network, for small local runs.

| mixture | what |
|---|---|
| tasksource_local | ten tasks: sentiment, topic, NLI, reading with options, and a generated token task |
| tasksource_local_heldout | the same without rotten_tomatoes and cosmos_qa, which are for fine-tuning |

These are not the official splits, which `tasks.tasksource` has: scores on them cannot be compared with published ones.

| task | train | validation | test |
|---|---|---|---|
| local/sst2, local/rotten_tomatoes | their own, less what is said below | | |
| local/ag_news | 90 % of train | the rest of it | test |
| local/cb, local/anli_r1, local/anli_r2 | 80 % of the development set | the rest of it | |
| local/quail | the validation set | the challenge set | |
| dream, cosmos_qa | as in `tasks.tasksource` | | |
| toy_tokens | generated | | |

Half of rotten_tomatoes' sentences are in SST-2 too: training on one tells the answers of the other. Here a hash of its
letters says which of the two a sentence is left to, so none is in both. ANLI's premises have several hypotheses: its
rows are cut in the order of a hash of the premise, so none is in both parts.
"""

from dataclasses import fields, replace

from t0jax.data.sources import add_mixture
from t0jax.data.structured.records import Record
from t0jax.data.structured.source import add_task
from tasks import toy_tokens
from tasks.tasksource import RECORDS
from tasks.tasksource_fields import Share, TogetherBy


def _local(task: str, name: str, **changes: object) -> Record:
    return replace(RECORDS[task], name=f"local/{name}", differs=f"a local cut of {task}", **changes)


def _cut(split: str, percent: int) -> tuple[str, str, None]:
    return f"{split}[:{percent}%]", f"{split}[{percent}%:]", None


def _by_premise(record: Record) -> Record:
    declared = {field.name: getattr(record, field.name) for field in fields(record)}
    return TogetherBy(**declared, column="premise")


SST2 = _local(
    "glue/sst2", "sst2", where=Share("sentence", 3, 10), splits=("train", "validation", "test")
)
ROTTEN_TOMATOES = _local("rotten_tomatoes", "rotten_tomatoes", where=Share("text", 0, 3))
AG_NEWS = _local("ag_news", "ag_news", splits=(*_cut("train", 90)[:2], "test"))
CB = _local("super_glue/cb", "cb", splits=_cut("validation", 80))
ANLI_1 = _by_premise(_local("anli/a1", "anli_r1", splits=_cut("dev_r1", 80)))
ANLI_2 = _by_premise(_local("anli/a2", "anli_r2", splits=_cut("dev_r2", 80)))
QUAIL = _local("quail", "quail", splits=("validation", "challenge", None))

ROWS: dict[str, tuple[Record, int]] = {
    record.name: (record, rows)
    for record, rows in (
        (SST2, 4840),
        (ROTTEN_TOMATOES, 2560),
        (AG_NEWS, 5940),
        (CB, 444),
        (ANLI_1, 800),
        (ANLI_2, 800),
        (RECORDS["dream"], 6116),
        (RECORDS["cosmos_qa"], 2400),
        (QUAIL, 2164),
        (toy_tokens.RECORD, toy_tokens.SIZES["train"]),
    )
}
"""{id: (record, rows of the training split)}; tasks are drawn in proportion to them."""

LEFT_OUT = (ROTTEN_TOMATOES.name, "cosmos_qa")
"""For fine-tuning: one task whose labels others share, one of multiple choice."""


def register() -> None:
    """The tasks and mixtures; again without effect."""
    rates = {name: (add_task(record).name, float(rows)) for name, (record, rows) in ROWS.items()}
    kept = [rate for name, rate in rates.items() if name not in LEFT_OUT]
    add_mixture("tasksource_local", dict(rates.values()))
    add_mixture("tasksource_local_heldout", dict(kept))


register()
