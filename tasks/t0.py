"""T0's tasks and mixtures (Sanh et al. 2021, arXiv 2110.08207), named and weighted as in the t-zero release.

Every prompt of the 66 data sets is a text-to-text task `<dataset>_<subset>_<prompt>`; every prompt with answer
choices is a rank-classification task `..._score_eval` too. Importing this registers names alone: prompts and data are
opened when a task is read. Prompts: `python -m scripts.prompts fetch`, or `T0JAX_PROMPTS_DIR`. Data:
`T0JAX_DATA_DIR`, else the Hub. Vocabulary: `T0JAX_VOCABULARY`.

| mixture | tasks | what |
|---|---|---|
| t0_train | 313 | T0: all prompts of 38 data sets |
| t0+_train, t0++_train | 392, 464 | with GPT-3's evaluation sets, with SuperGLUE too |
| t0_eval_score_eval | 116 | the held-out tasks, ANLI in three rounds |
| t0_train_score_eval | 89 | validation of training tasks, for choosing a checkpoint |
| t0_train_one_og_prompt, t0_train_all_og_prompts | 35, 222 | ablations: one or all prompts of the original task |
| bias_fairness_eval_score_eval | 16 | CrowS-Pairs and Winogender |
| t0_all_score_eval | 383 | every prompt with answer choices of the 66 data sets |
| rotten_tomatoes_all_prompts, ... | 10 | one data set through all its prompts, to fine-tune on; so for each |
| rotten_tomatoes_all_prompts_score_eval, ... | 10 | one data set's prompts with answer choices |
"""

import re

from t0jax.data.rows import DatasetSpec
from t0jax.data.sources import RANK_SUFFIX, add_mixture, add_prompt_task, add_rank_task
from tasks.t0_bias import GROUPS
from tasks.t0_hub import find_home, find_spec
from tasks.t0_metrics import stripped, text_metrics
from tasks.t0_table import Entry, Prompt, load_table

MAX_EXAMPLES = 500_000
"""A data set larger than this is mixed as if it had so many examples, split evenly over its prompts."""

ANLI_ROUNDS = {"r1": 16_946, "r2": 45_460, "r3": 100_459}
"""Training examples of each round; ANLI is only evaluated on, each round as a data set of its own."""

NOT_SCORED_IN_TRAINING = {
    ("paws", "labeled_final"), ("adversarial_qa", "dbidaf"), ("adversarial_qa", "dbert"),
    ("duorc", "ParaphraseRC"), ("dream", None), ("amazon_polarity", None), ("app_reviews", None), ("imdb", None),
    ("wiki_bio", None), ("gigaword", None), ("multi_news", None), ("samsum", None), ("dbpedia_14", None),
    ("trec", None), ("wiki_hop", "original"),
}  # fmt: skip
"""Data sets that t-zero leaves out of t0_train_score_eval, mostly as too large or without a validation split."""

TRAINING_STAGES = {
    "t0_train": ("BASE",),
    "t0+_train": ("BASE", "GPT_EVAL"),
    "t0++_train": ("BASE", "GPT_EVAL", "SGLUE"),
}


def task_name(dataset: str, subset: str | None, prompt: str) -> str:
    """T0's name of a task: every run of other characters than letters, digits, `_` and `.` becomes one `_`."""
    return re.sub(r"[^\w.]+", "_", "_".join(filter(None, (dataset, subset, prompt))))


def task_rate(entry: Entry) -> int:
    """Mixing rate of each of a data set's tasks: its size, or an even share of MAX_EXAMPLES over all its prompts."""
    return entry.size if entry.size <= MAX_EXAMPLES else MAX_EXAMPLES // len(entry.prompts)


def task_names(entry: Entry, prompt: Prompt) -> list[str]:
    """Names of a prompt's tasks: one, or one per round of ANLI."""
    name = task_name(entry.dataset, entry.subset, prompt.name)
    return [f"{name}_{number}" for number in ANLI_ROUNDS] if entry.dataset == "anli" else [name]


def register_tasks(table: list[Entry]) -> None:
    """Every prompt's task, with a rank task where it has answer choices."""
    for entry in table:
        spec, splits = find_spec(entry.dataset, entry.subset), find_home(entry.dataset).splits
        for prompt in entry.prompts:
            for name in task_names(entry, prompt):
                _register(
                    name, spec, _round_splits(name) if entry.dataset == "anli" else splits, prompt
                )


def _round_splits(name: str) -> dict[str, str]:
    number = name.rpartition("_")[2]
    return {"train": f"train_{number}", "validation": f"dev_{number}", "test": f"test_{number}"}


def _register(
    name: str, spec: DatasetSpec, splits: dict[str, str] | tuple[str, ...], prompt: Prompt
) -> None:
    task = add_prompt_task(
        name,
        spec,
        prompt.name,
        splits=splits,
        postprocess_fn=stripped,
        metric_fns=text_metrics(prompt.metrics),
    )
    if prompt.has_choices:
        groups = GROUPS.get((spec.dataset, spec.subset))
        add_rank_task(task.name, spec, prompt.name, splits=splits, groups=groups)


def training_mixtures(table: list[Entry]) -> dict[str, dict[str, float]]:
    """{mixture: {task: rate}} of the mixtures to train on."""
    mixtures: dict[str, dict[str, float]] = {
        name: {
            task: rate
            for entry in table
            if entry.train in stages
            for task, rate in _rates(entry, entry.prompts)
        }
        for name, stages in TRAINING_STAGES.items()
    }
    original = {
        entry: [p for p in entry.prompts if p.original_task]
        for entry in table
        if entry.train == "BASE"
    }
    one = {
        entry: sorted(prompts, key=lambda prompt: prompt.name)[:1]
        for entry, prompts in original.items()
    }
    for name, chosen in (("t0_train_one_og_prompt", one), ("t0_train_all_og_prompts", original)):
        mixtures[name] = {
            task: rate for entry in chosen for task, rate in _rates(entry, chosen[entry])
        }
    return mixtures


def _rates(entry: Entry, prompts: tuple[Prompt, ...] | list[Prompt]) -> list[tuple[str, float]]:
    return [
        (task_name(entry.dataset, entry.subset, prompt.name), task_rate(entry))
        for prompt in prompts
    ]


def evaluation_mixtures(table: list[Entry]) -> dict[str, dict[str, float]]:
    """{mixture: {task: rate}} of the mixtures for rank classification; the rates matter only to seqio's own readers."""
    held_out = [entry for entry in table if entry.evaluation == "BASE"]
    seen = [
        e
        for e in table
        if e.train == "BASE" and (e.dataset, e.subset) not in NOT_SCORED_IN_TRAINING
    ]
    bias = [entry for entry in table if entry.evaluation == "BIAS_FAIRNESS"]
    return {
        "t0_eval_score_eval": _rank_rates(held_out, original_only=True),
        "t0_train_score_eval": _rank_rates(seen, original_only=True),
        "bias_fairness_eval_score_eval": _rank_rates(bias, original_only=False),
    }


def _rank_rates(entries: list[Entry], original_only: bool) -> dict[str, float]:
    rates = {}
    for entry in entries:
        for prompt in entry.prompts:
            if prompt.has_choices and (prompt.original_task or not original_only):
                for name in task_names(entry, prompt):
                    size = ANLI_ROUNDS[name[-2:]] if entry.dataset == "anli" else entry.size
                    rates[name + RANK_SUFFIX] = float(min(size or 1, MAX_EXAMPLES))
    return rates


def data_set_mixtures(table: list[Entry]) -> dict[str, dict[str, float]]:
    """{mixture: {task: rate}} of each data set on its own, and of all that can be scored together.

    A data set without training rows, or without answer choices, has no mixture of that kind. Of ANLI all rounds count.
    """
    mixtures = {"t0_all_score_eval": _rank_rates(table, original_only=False)}
    for entry in table:
        name = task_name(entry.dataset, entry.subset, "all_prompts")
        tasks = [task for prompt in entry.prompts for task in task_names(entry, prompt)]
        if entry.size:
            mixtures[name] = {task: float(_task_size(entry, task)) for task in tasks}
        if scored := _rank_rates([entry], original_only=False):
            mixtures[name + RANK_SUFFIX] = scored
    return mixtures


def _task_size(entry: Entry, task: str) -> int:
    """Mixing rate of one task: of ANLI its round's examples."""
    return ANLI_ROUNDS[task[-2:]] if entry.dataset == "anli" else task_rate(entry)


def register() -> None:
    """All tasks and mixtures; again without effect."""
    table = load_table()
    register_tasks(table)
    mixtures = training_mixtures(table) | evaluation_mixtures(table) | data_set_mixtures(table)
    for name, rates in mixtures.items():
        add_mixture(name, rates)


register()
