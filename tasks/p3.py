"""T0's tasks and mixtures from P3, the prompts of T0 as its authors rendered them (Hub: bigscience/P3).

Each task of tasks.t0 is here as `p3_<name>`, those with answer choices as `p3_<name>_score_eval` too, and each of its
eight mixtures as `p3_<mixture>` with the same rates. No prompts are needed. A task's text is read from

    <T0JAX_DATA_DIR>/bigscience/P3/<name>/<split>.parquet        or .jsonl, .csv, or <split>-*.parquet as on the Hub

and from the Hub's configuration of that name where it is not there. Rank tasks take the choices of the ordinary
configuration, which has one row an example; P3's own `_score_eval` configurations, one row a choice, are not read.

Story Cloze is not in P3, for its authors give it out themselves, nor are some other tasks (t-zero's issue 31): these
are reported as missing, as any data set. Split `test` is left out where a data set has a validation split: of some P3
shows the last choice in place of a hidden label.
"""

from collections.abc import Mapping

import seqio

from t0jax.data.rows import DatasetSpec
from t0jax.data.sources import (
    RenderedSource,
    add_mixture,
    add_rank_source,
    add_text_source,
)
from tasks.t0 import evaluation_mixtures, task_names, training_mixtures
from tasks.t0_hub import find_home
from tasks.t0_metrics import stripped, text_metrics
from tasks.t0_table import Entry, Prompt, load_table

PREFIX = "p3_"
HUB_ID = "bigscience/P3"

TEST_ONLY = {("super_glue", "axg")}
"""Subsets without the validation split that their data set's others have."""

NOT_IN_P3 = {"story_cloze": "P3 has no Story Cloze: tasks.t0 reads it from its authors' files"}


def p3_splits(entry: Entry) -> tuple[str, ...]:
    """The splits in which P3's answers are the right ones."""
    splits = find_home(entry.dataset).splits
    if "validation" not in splits or (entry.dataset, entry.subset) in TEST_ONLY:
        return splits
    return tuple(split for split in splits if split != "test")


def register_task(name: str, entry: Entry, prompt: Prompt) -> None:
    """The text task of one of T0's tasks, and the rank task where the prompt has choices."""
    home = DatasetSpec(HUB_ID, name, note=NOT_IN_P3.get(entry.dataset, ""))
    places = {"like": seqio.TaskRegistry.get(name).source, "splits": p3_splits(entry)}
    add_text_source(
        PREFIX + name,
        RenderedSource(home, **places),
        postprocess_fn=stripped,
        metric_fns=text_metrics(prompt.metrics),
    )
    if prompt.has_choices:
        add_rank_source(PREFIX + name, RenderedSource(home, **places, rank=True))


def p3_mixtures(table: list[Entry]) -> dict[str, Mapping[str, float]]:
    """{mixture: {task: rate}}: T0's, under P3's names."""
    mixtures = training_mixtures(table) | evaluation_mixtures(table)
    return {
        PREFIX + mixture: {PREFIX + task: rate for task, rate in rates.items()}
        for mixture, rates in mixtures.items()
    }


def register() -> None:
    """All tasks and mixtures; again without effect."""
    table = load_table()
    for entry in table:
        for prompt in entry.prompts:
            for name in task_names(entry, prompt):
                register_task(name, entry, prompt)
    for name, rates in p3_mixtures(table).items():
        add_mixture(name, rates)


register()
