"""Prompts, promptsource's and one's own: `python -m scripts.prompts fetch | list | show | lint | mixture`.

`fetch` downloads promptsource 0.2.3's templates into the cache folder; none of its code is run. `list` names prompts,
`show` renders a row. `lint` says what is wrong with prompts, `lint --data` what they do to rows; it ends with status 1
where there are errors. `mixture` says what a mixture is made of.
"""

import argparse
import dataclasses
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from t0jax import config
from t0jax.config import UserError, run_script
from t0jax.data import lint, lint_rows, targets, views
from t0jax.data.release import FetchError as FetchError
from t0jax.data.release import fetch
from t0jax.data.rows import DataError, DatasetSpec, DataUnavailable, PromptedRows, local_folder
from t0jax.data.templates import (
    Rendered,
    Template,
    TemplateError,
    find_template,
    list_subsets,
    load_templates,
    prompts_dir,
)
from t0jax.data.vocabulary import Pieces
from tasks.t0_hub import find_home, find_spec


class UnknownDataSet(TemplateError):
    """The folder of prompts has no such data set."""


# ------------------------------------------------------------------------------------------ list, show


def listing(root: Path, dataset: str | None = None) -> Iterator[str]:
    """Lines that name the prompts of one data set, or of all."""
    for name, subset in _named(root, [dataset] if dataset else []):
        yield from _lines(root, name, subset)


def _named(root: Path, datasets: Sequence[str]) -> list[tuple[str, str | None]]:
    """The (data set, subset) pairs of these data sets, of all where none is named.

    Raises:
      UnknownDataSet: no such data set (with suggestions).
    """
    known = list_subsets(root)
    found: dict[tuple[str, str | None], None] = {}
    for dataset in datasets:
        inside = [pair for pair in known if dataset in (pair[0], "/".join(filter(None, pair)))]
        if not inside:
            _check_known(root, dataset)
        found |= dict.fromkeys(inside)
    return list(found) if datasets else known


def _check_known(root: Path, dataset: str) -> None:
    """Raises UnknownDataSet where the folder of prompts has no such data set."""
    try:
        load_templates(root, dataset)
    except TemplateError as error:
        raise UnknownDataSet(str(error)) from error


def _spec(dataset: str, subset: str | None, local: str = "") -> DatasetSpec:
    """What to open: for a data set of T0 its place on the Hub, columns that were renamed included."""
    return dataclasses.replace(find_spec(dataset, subset), local=local)


def _lines(root: Path, dataset: str, subset: str | None) -> Iterator[str]:
    templates = load_templates(root, dataset, subset)
    yield f"{dataset if subset is None else f'{dataset}/{subset}'}: {len(templates)} prompts"
    for name, template in templates.items():
        yield f"  {name!r}  {_flags(template)}"


def _flags(template: Template) -> str:
    about = template.metadata
    flags = ["original task" if about.original_task else "other task"]
    flags.append("no choices" if template.answer_choices is None else "choices")
    flags += ["choices in prompt"] if about.choices_in_prompt else []
    return ", ".join([*flags, *about.metrics])


def show(
    root: Path,
    dataset: str,
    prompt: str,
    row: int,
    split: str,
    view: str = "",
    instruction_split: str = "rendered",
    local: str = "",
) -> Iterator[str]:
    """Lines that show one row of local data (or the Hub's) through one prompt, or every choice through a view.

    Raises:
      UserError: the prompt, the data or the row is not there.
    """
    name, subset = _split_name(root, dataset)
    template = find_template(root, name, subset, prompt)
    told_apart = instruction_split if view == "flipped" else ""
    places = {"prompts_root": str(root), "instruction_split": told_apart}
    rows = PromptedRows(_spec(name, subset, local), split, prompt, **places)
    try:
        rendered = rows[row]
    except (DataError, DataUnavailable, IndexError) as error:
        raise UserError(str(error)) from error
    yield f"{rows.key}, row {row}: {_flags(template)}"
    if rendered is None:
        parts, _ = template.apply(rows.rows[row])
        yield f"the prompt does not apply to this row: it renders {parts}"
        return
    if view:
        yield from _seen(rendered, view)
        return
    target = rendered.targets or f"(none: {targets.why_no_target(rows, row, rendered)})"
    yield from ("--- input", rendered.inputs, "--- target", target)
    yield from (() if rendered.choices is None else ("--- choices", *rendered.choices))


def _seen(rendered: Rendered, view: str) -> Iterator[str]:
    """Inputs and targets of every choice."""
    right = views.correct_choices(rendered) if rendered.choices else (0,)
    choices = rendered.choices or (rendered.targets,)
    for number, choice in enumerate(choices):
        pair = views.find_view(view).pair(rendered, choice)
        yield f"--- choice {choice!r}" + (", right" if number in right else "")
        yield from (f"inputs:  {pair.inputs!r}", f"targets: {pair.targets!r}")


def _split_name(root: Path, dataset: str) -> tuple[str, str | None]:
    for name, subset in list_subsets(root):
        if "/".join(filter(None, (name, subset))) == dataset:
            return name, subset
    _check_known(root, dataset)
    return dataset, None


# ----------------------------------------------------------------------------------------- lint, mixture


def lint_lines(root: Path, options: argparse.Namespace, levels: Counter[str]) -> Iterator[str]:
    """What is found in prompts, one finding a line, and with `--data` a table a data set; adds to `levels`.

    Raises:
      UserError: there is no such data set, or a number of rows or tokens that cannot be.
    """
    _check_numbers(options)
    began, prompts, files = time.monotonic(), 0, _named(root, options.datasets)
    away: list[DataUnavailable] = []
    if options.local and len(files) != 1:
        raise UserError(f"--local is the folder of one data set, not of {len(files)}; name that")
    if options.data and not (options.datasets or os.environ.get("T0JAX_DATA_DIR")):
        raise UserError(
            "no data: name the data sets, or set T0JAX_DATA_DIR to look at those it has"
        )
    for name, subset in files:
        templates, found = lint.check_file(root, name, subset)
        prompts += len(templates)
        lines: list[str] = []
        if options.data or options.local:
            seen, lines = _lint_rows(
                root, _spec(name, subset, options.local), templates, found, options, away
            )
            found += seen
        levels.update(finding.level for finding in found)
        yield from (*map(str, found), *lines)
    for line in _not_looked_at(away, options.local):
        nothing = len(away) == len(files)
        levels["error"] += nothing
        yield f"error: {line}" if nothing else line
    counts = ", ".join(_count(levels[level], level) for level in ("error", "warning", "note"))
    seconds = time.monotonic() - began
    yield f"{_count(len(files), 'file')}, {_count(prompts, 'prompt')}: {counts}; {seconds:.1f} s"


def _check_numbers(options: argparse.Namespace) -> None:
    if options.rows < 0:
        raise UserError(f"--rows {options.rows} is negative; 0 looks at all rows")
    for name in ("max_input_length", "max_target_length"):
        if getattr(options, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {getattr(options, name)} must be positive: the tokens of a model"
            )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _lint_rows(
    root: Path,
    spec: DatasetSpec,
    templates: Mapping[str, Template],
    found: Sequence[lint.Finding],
    options: argparse.Namespace,
    away: list[DataUnavailable],
) -> tuple[list[lint.Finding], list[str]]:
    """Findings in the rows of a data set, and its table; nothing where none was named and it is not a local one.

    Data that cannot be had go into `away`.
    """
    if not options.datasets and local_folder(spec) is None:
        return [], []
    broken = {finding.prompt for finding in found if finding.level == "error"}
    sound = [name for name in templates if name not in broken]
    try:
        split = lint_rows.choose_split(spec, options.split, find_home(spec.dataset).splits)
        prompts = [PromptedRows(spec, split, name, prompts_root=str(root)) for name in sound]
        return lint_rows.check_data(prompts, options.rows, _ruler(options))
    except DataUnavailable as error:
        away.append(error)
        return [], []
    except DataError as error:
        text = str(error).removeprefix(f"{spec.name}: ")
        return [lint.Finding(spec.name, "", "error", text)], []


def _not_looked_at(away: Sequence[DataUnavailable], local: str) -> Iterator[str]:
    """A line a reason, for data that cannot be had."""
    reasons: dict[str, list[DataUnavailable]] = {}
    for error in away:
        # Which repository was asked for is no reason of its own.
        reason = (
            re.sub(r"'[^']+'(?= on the Hub)", "the repository", error.reason)
            if len(away) > 1
            else ""
        )
        reasons.setdefault(reason or error.reason, []).append(error)
    for reason, errors in reasons.items():
        names = ", ".join(error.dataset for error in errors)
        name, way_out = errors[0].dataset, errors[0].way_out
        if len(errors) > 1:
            name, way_out = "NAME", "put the data below T0JAX_DATA_DIR"
        own = "" if local else f"or with a folder of your own: lint {name} --local FOLDER"
        said = f"not looked at with data: {names}: {reason}"
        yield "; ".join(filter(None, (said, way_out, own)))


def _ruler(options: argparse.Namespace) -> lint_rows.Ruler:
    path = options.vocabulary or os.environ.get("T0JAX_VOCABULARY", "")
    lengths = (options.max_input_length, options.max_target_length)
    return lint_rows.Ruler(Pieces(path) if path else None, *lengths)


def mixture_lines(options: argparse.Namespace) -> Iterator[str]:
    """The table of a mixture's shares, and its prompts that are not there.

    Raises:
      UserError: there is no such mixture, or its rows cannot be counted.
    """
    from t0jax.data import shares

    if options.prompts_dir:
        os.environ["T0JAX_PROMPTS_DIR"] = options.prompts_dir
    modules = tuple(options.module.split(","))
    data = config.Data(
        mixture=options.name, modules=modules, rates=options.rates, split=options.split
    )
    yield from shares.table(options.name, shares.find_shares(data, options.by, options.data))
    yield from shares.unknown_prompts(data)


# ---------------------------------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.prompts", description=(__doc__ or "").split("\n")[0]
    )
    folder = {"metavar": "FOLDER", "help": "promptsource's `templates`, or prompts of your own"}
    parser.add_argument("--prompts-dir", default="", **folder)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "fetch", help="download promptsource 0.2.3's templates into the cache folder"
    )
    command = commands.add_parser("list", help="name the prompts")
    command.add_argument("--dataset", help="e.g. ag_news, super_glue, super_glue/rte")
    _add_show(commands.add_parser("show", help="render one row"))
    _add_lint(commands.add_parser("lint", help="say what is wrong with prompts"))
    _add_mixture(commands.add_parser("mixture", help="say what a mixture is made of"))
    for (
        command
    ) in commands.choices.values():  # a default here would undo what stands before the command
        command.add_argument("--prompts-dir", default=argparse.SUPPRESS, **folder)
    return parser


def _add_show(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", help="e.g. super_glue/rte")
    command.add_argument("prompt")
    command.add_argument("--row", type=int, default=0)
    command.add_argument("--split", default="train")
    command.add_argument(
        "--local", default="", help="the folder that has <split>.csv, if it is your own"
    )
    command.add_argument(
        "--view", default="", choices=["", *views.VIEWS], help="as training sees it"
    )
    command.add_argument(
        "--instruction-split", default="rendered", choices=["rendered", "official"]
    )


def _add_lint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "datasets", nargs="*", help="e.g. ag_news super_glue/rte; all when none is named"
    )
    command.add_argument(
        "--data",
        action="store_true",
        help="render rows too: of the data sets named, or of all that T0JAX_DATA_DIR has",
    )
    command.add_argument(
        "--local", default="", help="the folder that has <split>.csv, if it is your own"
    )
    command.add_argument("--split", default="", help="[validation, else the first that there is]")
    command.add_argument(
        "--rows", type=int, default=200, help="how many, spread over the split; 0: all [200]"
    )
    command.add_argument("--vocabulary", default="", help="[T0JAX_VOCABULARY; characters without]")
    command.add_argument("--max-input-length", type=int, default=1024)
    command.add_argument("--max-target-length", type=int, default=256)
    command.add_argument("--strict", action="store_true", help="warnings give status 1 as well")


def _add_mixture(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="e.g. t0_train")
    command.add_argument("--module", default="tasks.t0", help="what registers it, commas between")
    command.add_argument("--by", default="dataset", choices=["dataset", "task"])
    command.add_argument(
        "--rates", default="registered", choices=["registered", "rows"], help="as data.rates"
    )
    command.add_argument(
        "--data", action="store_true", help="open the data: count rows, leave out what is not there"
    )
    command.add_argument("--split", default="train")


def _run(options: argparse.Namespace, levels: Counter[str]) -> Iterator[str]:
    if options.command == "fetch":
        folder = fetch()
        return iter([f"{len(list_subsets(folder))} files of prompts in {folder}"])
    if options.command == "mixture":
        return mixture_lines(options)
    root = prompts_dir(options.prompts_dir)
    if options.command == "list":
        return listing(root, options.dataset)
    if options.command == "lint":
        return lint_lines(root, options, levels)
    seen = (options.view, options.instruction_split, options.local)
    return show(root, options.dataset, options.prompt, options.row, options.split, *seen)


def main(argv: Sequence[str]) -> int:
    """Returns 1 where `lint` found errors (with `--strict` warnings too), else 0.

    Raises:
      UserError: something is not there.
    """
    options, levels = _parser().parse_args(argv), Counter[str]()
    try:
        for line in _run(options, levels):
            print(line)
        sys.stdout.flush()
    except UnknownDataSet as error:
        if options.prompts_dir:
            raise
        raise UnknownDataSet(f"{error}; prompts of your own: --prompts-dir FOLDER") from error
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(bool(levels["error"] or (levels["warning"] and options.strict)))


if __name__ == "__main__":
    run_script(main)
