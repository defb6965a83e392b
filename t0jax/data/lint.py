"""What is wrong, or surprising, with prompts: found in their files and syntax trees, without data.

An error is a prompt that cannot be read, is refused by the sandbox, or applies to no row; a warning is most likely not
what its author meant; a note is what a user should know. What prompts do to real rows is `lint_rows`' matter.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2
from jinja2 import nodes

from t0jax.data.instructions import SEPARATOR, cut
from t0jax.data.metering import LimitError
from t0jax.data.prices import METHOD_PRICES
from t0jax.data.sandbox import SANDBOX
from t0jax.data.templates import Metadata, Template, TemplateError, load_templates, printing

Level = Literal["error", "warning", "note"]
Issue = tuple[Level, str]

METRICS = (
    "Accuracy", "AUC", "BLEU", "COQA F1", "Edit Distance", "Mean Reciprocal Rank", "MultiRC", "Other",
    "Pearson Correlation", "ROUGE", "Sequence Accuracy", "Span Squad", "Spearman Correlation", "Squad", "Trivia QA",
)  # fmt: skip
"""Names that promptsource's editor offers, and the two more that t-zero knows; case does not count."""

DRAWING = frozenset({"choice", "random"})
"""Filters that draw."""


@dataclass(frozen=True)
class Finding:
    """One thing found in a data set's prompts; `prompt` is empty where it is about the whole file or data set."""

    data: str
    prompt: str
    level: Level
    text: str

    def __str__(self) -> str:
        where = f"{self.data}: {self.prompt!r}" if self.prompt else self.data
        return f"{where}: {self.level}: {self.text}"


def check_file(
    root: Path, dataset: str, subset: str | None
) -> tuple[dict[str, Template], list[Finding]]:
    """The prompts of a data set, none of a file that cannot be read, and what was found in them without data."""
    name = dataset if subset is None else f"{dataset}/{subset}"
    try:
        templates = load_templates(root, dataset, subset)
    except TemplateError as error:
        return {}, [Finding(name, "", "error", str(error))]
    found = [Finding(name, "", *issue) for issue in _file_issues(name, list(templates.values()))]
    for template in templates.values():
        found += [Finding(name, template.name, *issue) for issue in prompt_issues(template)]
    return templates, found


def prompt_issues(template: Template) -> list[Issue]:
    """What is to be said about one prompt without data."""
    prompt, choices = _syntax(printing(template.jinja)), None
    issues: list[Issue] = [
        *_name_issues(template.name),
        *_metadata_issues(template.metadata),
        *prompt.issues,
    ]
    if template.answer_choices is not None:
        choices = _syntax(template.answer_choices)
        issues.extend((level, f"answer_choices: {text}") for level, text in choices.issues)
        issues += _choice_issues(choices.choices)
    elif "answer_choices" in prompt.names:
        issues.append(
            ("error", "it reads answer_choices, but has none (add answer_choices: a ||| b)")
        )
    if prompt.sound:
        issues += _separator_issues(prompt)
    if prompt.is_random or (choices and choices.is_random):
        issues.append(("note", "it draws at random: what a row becomes depends on the seed"))
    return issues


# ------------------------------------------------------------------------------------ files and metadata


def _file_issues(name: str, templates: list[Template]) -> Iterator[Issue]:
    if not templates:
        yield "warning", "its file has no prompts"
        return
    text = Path(templates[0].path).read_text(encoding="utf-8")
    ids = re.findall(r"^ +([^\s:]+): *!Template\b", text, re.MULTILINE)
    for key in sorted({key for key in ids if ids.count(key) > 1}):
        yield "error", f"{ids.count(key)} prompts have the id {key}; only the last one is read"
    says = re.match(r"dataset: *['\"]?([^'\"\n]+)", text)
    if says and says[1].strip() not in (name, name.rpartition("/")[0]):
        yield "warning", f"its file says `dataset: {says[1].strip()}`, but the folder's name counts"


def _name_issues(name: str) -> Iterator[Issue]:
    if not name.strip():
        yield "error", "it has no name"
    elif name != name.strip():
        yield "warning", "blanks at the end of its name are part of it (to be typed wherever it is)"


def _metadata_issues(about: Metadata) -> Iterator[Issue]:
    if not about.metrics:
        yield "warning", "metadata.metrics is empty (for a choice of answers: Accuracy)"
    known = {metric.casefold(): metric for metric in METRICS}
    for metric in about.metrics:
        if metric.casefold() not in known:
            yield "note", f"unknown metric {metric!r}{_near(metric, METRICS)}"
    if about.original_task is None:
        yield "warning", "metadata.original_task is not set, which counts as false"
    if about.choices_in_prompt is None:
        yield "note", "metadata.choices_in_prompt is not set"


def _near(name: str, known: Iterable[str]) -> str:
    folded = {other.casefold(): other for other in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""


# ------------------------------------------------------------------------------------------- what is said


def _separator_issues(prompt: "Syntax") -> Iterator[Issue]:
    least, most = prompt.separators
    if most == 0:
        yield "error", f"no separator: write {SEPARATOR} between the input and the target"
    elif least > 1:
        yield (
            "error",
            f"{least} separators: it applies to no row (one {SEPARATOR} parts input and target)",
        )
    elif least == 0:
        yield (
            "note",
            f"{SEPARATOR} only inside a condition, loop or expression: it does not apply to rows that have none",
        )
    if least <= 1 < most:
        yield (
            "note",
            f"{most} separators on some paths: it does not apply to rows that render several",
        )
    if prompt.fixed_input:
        yield "note", "its input reads no field: it is the same for every row"
    if prompt.fixed_target:
        yield "note", "its target reads no field: it is the same for every row"


def _choice_issues(choices: tuple[str, ...] | None) -> Iterator[Issue]:
    if choices is None:
        return
    if len(choices) == 1:
        yield "warning", f"only one answer choice (write {SEPARATOR} between choices)"
    if "" in choices:
        yield "warning", "an answer choice is empty"
    twice = {choice for choice in choices if choices.count(choice) > 1 and choice}
    if twice:
        yield "warning", f"answer choices occur twice: {', '.join(map(repr, sorted(twice)))}"


# ---------------------------------------------------------------------------------------------- syntax


@dataclass(frozen=True)
class Syntax:
    """What the syntax tree of one template tells.

    Attributes:
      issues: errors; nothing below says anything then.
      names: all names that it reads.
      separators: the least and the most separators that it renders of its own (2 for several on a loop's rounds).
      fixed_input, fixed_target: what stands before and behind its one separator reads no field.
      choices: what it renders, cut at its separators, where it is plain text.
    """

    issues: tuple[Issue, ...] = ()
    names: frozenset[str] = frozenset()
    separators: tuple[int, int] = (0, 0)
    fixed_input: bool = False
    fixed_target: bool = False
    is_random: bool = False
    choices: tuple[str, ...] | None = None

    @property
    def sound(self) -> bool:
        """Whether it is a template at all."""
        return not self.issues


@functools.lru_cache(maxsize=4096)  # the same texts occur in many prompts
def _syntax(source: str) -> Syntax:
    try:
        tree = SANDBOX.parse_prompt(source)
        found = list(tree.find_all(nodes.Node))
        issues = tuple(dict.fromkeys(_refusals(found)))
        if issues:
            return Syntax(issues)
        syntax = _read(tree, found)
        SANDBOX.compile_prompt(tree)
    except jinja2.TemplateSyntaxError as error:
        return Syntax((("error", f"broken Jinja at line {error.lineno}: {error.message}"),))
    except LimitError as error:
        return Syntax((("error", str(error)),))
    except Exception as error:  # Python's own compiler on what Jinja let pass
        return Syntax((("error", f"{type(error).__name__}: {error!s:.500}"),))
    return syntax


def _read(tree: nodes.Template, found: list[nodes.Node]) -> Syntax:
    filters = {node.name for node in found if isinstance(node, nodes.Filter)}
    drawn = any(isinstance(node, nodes.Const) and node.value in DRAWING for node in found)
    separators = _separators(tree, _assigned(tree))
    before, after = _halves(tree) if separators == (1, 1) else ([], [])
    is_random = bool(filters & DRAWING) or ("map" in filters and drawn)
    return Syntax(
        names=frozenset(node.name for node in found if isinstance(node, nodes.Name)),
        separators=separators,
        fixed_input=bool(before) and not is_random and not _reads(before),
        fixed_target=bool(after) and not is_random and not _reads(after),
        is_random=is_random,
        choices=_plain_choices(tree),
    )


def _reads(parts: list[nodes.Node]) -> bool:
    """Whether any of these reads a name."""
    return any(isinstance(part, nodes.Name) or part.find(nodes.Name) for part in parts)


def _assigned(tree: nodes.Template) -> dict[str, int]:
    """By name that the template sets, the most separators of any text that it is set to."""
    held: dict[str, int] = {}
    for node in tree.find_all((nodes.Assign, nodes.AssignBlock)):
        texts = node.body if isinstance(node, nodes.AssignBlock) else [node.node]
        most = _sum(_separators(text, held) for text in texts)[1]
        for target in (node.target, *node.target.find_all(nodes.Name)):
            if isinstance(target, nodes.Name | nodes.NSRef):
                held[target.name] = max(most, held.get(target.name, 0))
    return held


def _separators(node: nodes.Node, held: Mapping[str, int]) -> tuple[int, int]:
    """The least and the most separators that a part of a template renders; names have at most those of `held`."""
    if isinstance(node, nodes.TemplateData):
        count = node.data.count(SEPARATOR)
        return count, count
    if isinstance(node, nodes.Const):  # one that an expression prints, or does not
        return 0, node.value.count(SEPARATOR) if isinstance(node.value, str) else 0
    if isinstance(node, nodes.Name):
        return 0, held.get(node.name, 0) if node.ctx == "load" else 0
    if isinstance(node, nodes.AssignBlock | nodes.Assign):
        return 0, 0
    if isinstance(node, nodes.If):
        ways = [node.body, *(other.body for other in node.elif_), node.else_]
        counts = [_sum(_separators(part, held) for part in way) for way in ways]
        return min(least for least, _ in counts), max(most for _, most in counts)
    counts = _sum(_separators(part, held) for part in node.iter_child_nodes())
    return (0, 2 * counts[1]) if isinstance(node, nodes.For) else counts


def _sum(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    pairs = list(counts)
    return sum(least for least, _ in pairs), sum(most for _, most in pairs)


def _halves(tree: nodes.Template) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """What stands before and behind a separator outside of all conditions, with it; nothing where there is none."""
    parts = [
        part
        for statement in tree.body
        for part in (statement.nodes if isinstance(statement, nodes.Output) else [statement])
    ]
    for number, part in enumerate(parts):
        if isinstance(part, nodes.TemplateData) and SEPARATOR in part.data:
            return parts[: number + 1], parts[number:]
    return [], []


def _plain_choices(tree: nodes.Template) -> tuple[str, ...] | None:
    parts = [part for output in tree.body for part in output.iter_child_nodes()]
    texts = [part.data for part in parts if isinstance(part, nodes.TemplateData)]
    return tuple(cut("".join(texts))) if len(texts) == len(parts) else None


# ------------------------------------------------------------------------------------ what is refused

_METHODS = frozenset({"format"}.union(*METHOD_PRICES.values()))
_FILTERS, _TESTS = (
    sorted(name for name in table if " " not in name)  # others are the sandbox's own
    for table in (SANDBOX.filters, SANDBOX.tests)
)


def _refusals(found: list[nodes.Node]) -> Iterator[Issue]:
    """Errors of a tree that Jinja would report when a row gets there, if at all."""
    stored = {node.name for node in found if isinstance(node, nodes.Name) and node.ctx != "load"}
    for node in found:
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            yield "error", f"unknown filter {node.name!r}{_near(node.name, _FILTERS)}"
        elif isinstance(node, nodes.Test) and node.name not in _TESTS:
            yield "error", f"unknown test {node.name!r}{_near(node.name, _TESTS)}"
        elif isinstance(node, nodes.Getattr) and node.attr.startswith("__"):
            yield "error", f"the attribute {node.attr!r} is refused: prompts read fields alone"
        elif isinstance(node, nodes.Call):
            yield from _refused_call(node.node, stored)


def _refused_call(called: nodes.Expr, stored: set[str]) -> Iterator[Issue]:
    if isinstance(called, nodes.Getattr) and called.attr not in _METHODS | {"cycle", "changed"}:
        yield "error", f"no method {called.attr!r} may be called{_near(called.attr, _METHODS)}"
    if isinstance(called, nodes.Name) and called.name not in stored | set(SANDBOX.globals):
        there = ", ".join(sorted(SANDBOX.globals))
        yield "error", f"no function {called.name!r} may be called (there are {there})"
