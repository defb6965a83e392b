"""BIG-bench's multiple-choice JSON tasks as prompted rows (Srivastava et al. 2022, arXiv 2206.04615).

A task is a `task.json` in the layout of BIG-bench's repository: `<T0JAX_DATA_DIR>/bigbench/<task>/task.json`, or
`<task>/<subtask>/task.json`. Where there is none, the Hub's copy is read (`hub_task`).

The prompt is the task's own: task_prefix, example_input_prefix, the input, choice_prefix and each choice,
example_output_prefix. Choices stand in the order of the file, as in FLIPPED's released code (commit eb4b98d);
BIG-bench itself shuffles them in the input, and drops repeated examples. The task's description is not used.
"""

import functools
import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t0jax.data.arrow import DataError
from t0jax.data.rows import DatasetSpec, DataUnavailable, PromptedRows, Rows, hub_files
from t0jax.data.templates import Metadata, Rendered, Template

PROMPT = "BIG-bench"
FOLDER = "bigbench"
FILE = "task.json"
HUB_ID = "hails/bigbench"
HUB_SPLIT = "default"
HUB_COLUMNS = ("inputs", "multiple_choice_targets", "multiple_choice_scores")
SUBTASK_CHOICES = {"three_objects": 3, "five_objects": 5, "seven_objects": 7}
"""Subtasks that the Hub's copy, which mixes a task's subtasks, lets us tell: by the number of their choices."""


@dataclass(frozen=True)
class Format:
    """What stands around an example. The defaults are FLIPPED's; BIG-bench's choice prefix has one more blank."""

    task_prefix: str = ""
    example_input_prefix: str = "\nQ: "
    choice_prefix: str = "\n choice: "
    example_output_prefix: str = "\nA: "
    append_choices_to_input: bool = True


@dataclass(frozen=True)
class Example:
    """One row: `grades` are the target scores of the choices."""

    input: str
    choices: tuple[str, ...]
    grades: tuple[float, ...]

    @property
    def target(self) -> str:
        """The first choice of the best grade."""
        return self.choices[self.grades.index(max(self.grades))]


@dataclass(frozen=True)
class BigBenchTask:
    """A task or subtask: its format, its rows, the name of what it is from and its files."""

    format: Format
    examples: tuple[Example, ...]
    path: str
    files: tuple[str, ...]


def task_spec(task: str, local: str = "") -> DatasetSpec:
    """Where a task's rows come from; subtasks share their task's, so that results average over them.

    Args:
      task: name of its folder in BIG-bench.
      local: a folder with `task.json` (or with subtasks) in place of `<T0JAX_DATA_DIR>/bigbench/<task>` and the Hub.
    """
    return DatasetSpec(FOLDER, task, HUB_ID, f"{task}_zero_shot", labels=(), local=str(local))


def task_file(spec: DatasetSpec, subtask: str = "", local_dir: str = "") -> Path | None:
    """The local `task.json`; None where there is none and the Hub is to be asked.

    A subtask is also found in a folder `<task>_<subtask>`, as BIG-bench Hard names it.

    Raises:
      DataUnavailable: a folder is named that does not exist, or that holds no such file.
    """
    named = spec.local or local_dir or os.environ.get("T0JAX_DATA_DIR", "")
    if not named:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        way_out = "" if spec.local else "correct data.local_dir or T0JAX_DATA_DIR"
        raise DataUnavailable(spec.name, f"the folder {root} does not exist", way_out)
    if spec.local and not (root / subtask / FILE).is_file():
        raise DataUnavailable(spec.name, f"no {Path(subtask) / FILE} in {root}")
    if spec.local:
        return root / subtask / FILE
    tasks = root / spec.dataset
    folders = [tasks / str(spec.subset) / subtask]
    if subtask:
        folders.append(tasks / f"{spec.subset}_{subtask}")
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


# ------------------------------------------------------------------------------------------ task.json


def read_task(path: Path) -> BigBenchTask:
    """A task of a `task.json`, read once for each version of the file.

    Raises:
      DataError: it is not BIG-bench's JSON, or not all of its examples are multiple choice; names row and key.
    """
    stat = path.stat()
    return _read_task(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_task(path: Path, *_written: int) -> BigBenchTask:
    try:
        task = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # broken JSON or text that is not Unicode
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(task, dict):
        raise DataError(f"{path}: not an object but {type(task).__name__}")
    rows = task.get("examples")
    if not rows or not isinstance(rows, list):
        raise DataError(f"{path}: {_no_examples(path, rows)}")
    examples = tuple(_example(path, row, fields) for row, fields in enumerate(rows))
    return BigBenchTask(_format(path, task), examples, str(path), (str(path),))


def _no_examples(path: Path, rows: object) -> str:
    subtasks = ", ".join(sorted(file.parent.name for file in path.parent.glob(f"*/{FILE}")))
    if subtasks:
        return f"no 'examples'; they are in its subtasks {subtasks}"
    return "no 'examples'" if not rows else f"its 'examples' are no list but {type(rows).__name__}"


def _format(path: Path, task: Mapping[str, Any]) -> Format:
    names = [name for name in Format.__dataclass_fields__ if task.get(name) is not None]
    for name in names:
        wanted = type(getattr(Format(), name))
        if not isinstance(task[name], wanted):
            raise DataError(f"{path}: {name!r} is {task[name]!r:.80}, not {wanted.__name__}")
    return Format(**{name: task[name] for name in names})


def _example(path: Path, row: int, fields: object) -> Example:
    if not isinstance(fields, dict):
        raise DataError(f"{path}, row {row}: not an object but {type(fields).__name__}")
    if not isinstance(fields.get("input"), str):
        raise DataError(f"{path}, row {row}: its 'input' is missing or no text")
    scores = fields.get("target_scores")
    if not scores or not isinstance(scores, dict):
        raise DataError(
            f"{path}, row {row}: no 'target_scores', so this is not a multiple-choice task, and only those can be "
            "scored here"
        )
    for choice, score in scores.items():
        if type(score) not in (int, float) or not math.isfinite(score):
            raise DataError(
                f"{path}, row {row}: the target score of {choice!r:.80} is {score!r:.80}, no number"
            )
    return Example(fields["input"], tuple(scores), tuple(map(float, scores.values())))


# -------------------------------------------------------------------------------------------- the Hub


def hub_task(spec: DatasetSpec, subtask: str = "") -> BigBenchTask:
    """A task of the Hub's `hails/bigbench`, parquet files that need no loading script.

    Its configuration `<task>_zero_shot` has the splits default (all rows, each once), train and validation, and holds
    the rows of all subtasks (so say its pages on the Hub). A row has `inputs`, the whole prompt without the blanks
    around it, `multiple_choice_targets` and `multiple_choice_scores`, which are whole numbers (so say the card and
    the features of google/bigbench, of which this is a conversion; lm-evaluation-harness reads two of the columns
    here, that the third is called the same is from memory). The prefixes are not told: see `unformat`.

    Raises:
      DataUnavailable: it cannot be fetched, or its subtasks cannot be told apart.
      DataError: other columns, or not a multiple-choice task.
    """
    name = f"{spec.name}/{subtask}" if subtask else spec.name
    way_out = f"put BIG-bench's own file at <T0JAX_DATA_DIR>/{name}/{FILE}"
    if subtask and subtask not in SUBTASK_CHOICES:
        reason = (
            f"not on this machine, and {spec.hub_id} on the Hub does not tell its subtasks apart"
        )
        raise DataUnavailable(name, reason, way_out)
    try:
        files = hub_files(spec, HUB_SPLIT)
    except DataUnavailable as error:
        raise type(error)(name, error.reason, way_out) from error
    return _hub_rows(name, tuple(files), SUBTASK_CHOICES.get(subtask, 0))


@functools.lru_cache(maxsize=64)
def _hub_rows(name: str, files: tuple[str, ...], choices: int) -> BigBenchTask:
    rows = Rows(f"{name}/{HUB_SPLIT}", files).select(HUB_COLUMNS)
    texts, found = [], []
    for row in (rows[number] for number in range(len(rows))):
        texts.append(row["inputs"])
        found.append(tuple(zip(row[HUB_COLUMNS[1]], row[HUB_COLUMNS[2]], strict=True)))
    kept = [k for k, scored in enumerate(found) if choices in (0, len(scored))]
    if not kept or not all(found[k] for k in kept):
        raise DataError(f"{rows.name}: not a multiple-choice task, and only those can be scored")
    scored = [found[k] for k in kept]
    options = [tuple(choice for choice, _ in pairs) for pairs in scored]
    form, inputs = unformat([texts[k] for k in kept], options)
    grades = [tuple(float(score) for _, score in pairs) for pairs in scored]
    examples = map(Example, inputs, options, grades)
    return BigBenchTask(form, tuple(examples), rows.name, tuple(map(str, files)))


_CHOICE = re.compile(r"\n[^\w\n]*choice: ")


def unformat(
    texts: Sequence[str], choices: Sequence[Sequence[str]]
) -> tuple[Format, tuple[str, ...]]:
    """Takes a task's prompts apart: the format, as far as it can be told, and the inputs.

    The last line that all rows share is the output prefix; lines that begin with "choice:" (after signs, as in
    emoji_movie) and are the row's choices are those; "Q: " at the start of a line is the input prefix with the task's
    before it. Where there is no "Q: ", what all rows begin with, up to a colon or line end, is the task's. Putting a
    prompt together again gives the text, but for blanks and the order of the choices.

    Args:
      texts: the prompts, without blanks around them.
      choices: of each row.
    """
    default = Format()
    ends = {text.rpartition("\n")[2] for text in texts}
    end = ends.pop() if len(ends) == 1 and all("\n" in text for text in texts) else ""
    end = "" if "choice: " in end else end
    output = default.example_output_prefix if end == "A:" else f"\n{end} " if end else ""
    bodies = [text.removesuffix(f"\n{end}") if end else text for text in texts]
    before = [_without_choices(*row) for row in zip(bodies, choices, strict=True)]
    listed = [text for text in before if text is not None]
    append = len(listed) == len(texts)
    bodies = listed if append else bodies
    task, prefix, start = _beginning(min(bodies), max(bodies))
    form = Format(task, prefix, default.choice_prefix, output, append)
    return form, tuple(body[start:] for body in bodies)


def _without_choices(text: str, choices: Sequence[str]) -> str | None:
    """The text before the choices that end it, None where it does not end in these choices."""
    marks = [*_CHOICE.finditer(text)][-len(choices) :]
    if len(marks) < len(choices):
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    found = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return text[: marks[0].start()] if sorted(found) == sorted(map(str.strip, choices)) else None


def _beginning(first: str, last: str) -> tuple[str, str, int]:
    """(task prefix, input prefix, their length): what all rows begin with, given the first and last in order."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    shared = "".join(letter for letter, _ in same)
    question = re.search(r"^Q: ", shared, re.MULTILINE)
    if question:
        before = shared[: question.start()].removesuffix("\n")
        return before, Format().example_input_prefix, question.end()
    line = re.match(r"(.*(?:: |\n))?", shared, re.DOTALL)
    assert line is not None  # it may be empty
    return line[0], "", line.end()


# ----------------------------------------------------------------------------------------- the prompt


def prompt(form: Format, dataset: str, subset: str, path: str = "") -> Template:
    """The task's prompt as a template; its fields are those of `TaskRows`.

    Prefixes are literals, so that the prompt's own words can be told from the example's; one with a sign that means
    something in a template is printed from a field instead. Nothing is cut to promptsource's 2,048 characters.
    """
    choices = f"{{% for choice in choices %}}{_literal(form, 'choice_prefix')}{{% print choice %}}{{% endfor %}}"
    parts = (
        _literal(form, "task_prefix"),
        "{##}" if form.task_prefix and form.example_input_prefix else "",
        _literal(form, "example_input_prefix"),
        "{% print input %}",
        choices if form.append_choices_to_input else "",
        _literal(form, "example_output_prefix"),
        "{% print ' ' %}|||{% print target %}",  # the blank keeps a "|" before it from being taken along
    )
    return Template(
        id=PROMPT,
        name=PROMPT,
        jinja="".join(parts),
        answer_choices="{{ choices | join(' ||| ') }}",
        metadata=Metadata(True, form.append_choices_to_input, ("Accuracy",)),
        dataset=dataset,
        subset=subset,
        path=path,
    )


def _is_literal(text: str) -> bool:
    return not re.search(r"[{}|\r]", text)


def _literal(form: Format, name: str) -> str:
    text = getattr(form, name)
    return text if _is_literal(text) else f"{{% print {name} %}}"


class TaskRows:
    """Random access to a task's examples as the fields that its prompt reads."""

    def __init__(self, task: BigBenchTask) -> None:
        self._examples = task.examples
        fields = vars(task.format).items()
        self._shared = {name: text for name, text in fields if not _is_literal(str(text))}
        self.columns = ("input", "choices", "target", *self._shared)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`, 0 <= index < len. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        example = self._examples[index]
        fields = {"input": example.input, "choices": example.choices, "target": example.target}
        return fields | self._shared


@dataclass(frozen=True)
class BigBenchRows(PromptedRows):
    """A task or subtask seen through its own prompt; `Rendered.grades` are the target scores.

    BIG-bench's metric `multiple_choice_grade` is their mean over the likeliest choices (`results.grade`): with scores 0
    and 1 and one right answer the accuracy. Of equally likely choices the first counts; BIG-bench takes one by a hash.
    """

    subtask: str = ""

    @property
    def key(self) -> str:
        """Name for messages and tables: task, subtask, split, prompt."""
        return "/".join(
            filter(None, (self.spec.name, self.subtask, self.split, self.template_name))
        )

    @functools.cached_property
    def task(self) -> BigBenchTask:
        """The task, opened.

        Raises:
          DataUnavailable: neither a local file nor the Hub has it.
          DataError: a broken file, or not a multiple-choice task.
        """
        path = task_file(self.spec, self.subtask, self.local_dir)
        return read_task(path) if path else hub_task(self.spec, self.subtask)

    @functools.cached_property
    def template(self) -> Template:
        """The task's own prompt. Raises as `task`."""
        subset = "/".join(filter(None, (self.spec.subset, self.subtask)))
        return prompt(self.task.format, self.spec.dataset, subset, self.task.path)

    @functools.cached_property
    def rows(self) -> TaskRows:  # type: ignore[override]
        """The examples. Raises as `task`."""
        return TaskRows(self.task)

    def __getitem__(self, index: int) -> Rendered | None:
        rendered = super().__getitem__(index)
        if rendered is None:
            return None
        return replace(rendered, grades=self.task.examples[index].grades)

    def data_files(self) -> list[str]:
        """The files that the rows come from."""
        return list(self.task.files)
