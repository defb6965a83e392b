"""The facts of T0's data sets and prompts, in `t0_table.json`: names, flags and sizes, no prompt text.

The sizes are those of the T0 release (t-zero `t0/datasets.csv`), which its mixing rates use, not the Hub's. The
prompts are those of promptsource 0.2.3; after a change of the prompts the table is written anew by

    python -m tasks.t0_table PROMPTS_DIR
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("t0_table.json")


@dataclass(frozen=True)
class Prompt:
    """What mixing and scoring need to know of a prompt without reading it."""

    name: str
    original_task: bool
    has_choices: bool
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One data set of T0."""

    dataset: str
    subset: str | None
    cluster: str
    train: str
    """Smallest training mixture it is in: BASE (T0), GPT_EVAL (T0+), SGLUE (T0++), or ''."""
    evaluation: str
    """BASE, BIAS_FAIRNESS or ''."""
    size: int
    """Training examples as T0 counted them; 0 where it is not trained on and has no training split."""
    prompts: tuple[Prompt, ...]


def load_table() -> list[Entry]:
    """The table, in the order of T0's list."""
    return [_entry(fields) for fields in json.loads(PATH.read_text(encoding="utf-8"))]


def _entry(fields: dict[str, Any]) -> Entry:
    prompts = (
        Prompt(name, og, choices, tuple(metrics))
        for name, og, choices, metrics in fields["prompts"]
    )
    return Entry(**{**fields, "prompts": tuple(prompts)})


def read_prompts(root: Path, dataset: str, subset: str | None) -> tuple[Prompt, ...]:
    """The facts of a data set's prompts in a folder of prompts, sorted by name; none where it has no prompts."""
    from t0jax.data.templates import list_subsets, load_templates

    if (dataset, subset) not in list_subsets(root):
        return ()
    templates = load_templates(root, dataset, subset).values()
    prompts = (
        Prompt(
            template.name,
            bool(template.metadata.original_task),
            template.answer_choices is not None,
            tuple(template.metadata.metrics),
        )
        for template in templates
    )
    return tuple(sorted(prompts, key=lambda prompt: prompt.name))


def table_text(root: Path) -> str:
    """The JSON of the table, with the prompts of a folder of prompts in place of today's: a data set a line."""
    lines = []
    for entry in load_table():
        prompts = read_prompts(root, entry.dataset, entry.subset)
        facts = [[p.name, p.original_task, p.has_choices, list(p.metrics)] for p in prompts]
        fields = {**entry.__dict__, "prompts": facts}
        lines.append(json.dumps(fields, ensure_ascii=False))
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    PATH.write_text(table_text(Path(sys.argv[1])), encoding="utf-8")
