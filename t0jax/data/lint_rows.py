"""What prompts do to real rows: whether they apply, name a right answer, and fit into the lengths of a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from t0jax.data import targets, views
from t0jax.data.instructions import SEPARATOR
from t0jax.data.lint import Finding, Issue
from t0jax.data.rows import DataError, DatasetSpec, PromptedRows, available_splits, open_rows
from t0jax.data.templates import Rendered, TemplateError
from t0jax.data.vocabulary import Pieces

NAMED = 3
"""How many rows a finding names."""


@dataclass(frozen=True)
class Ruler:
    """How texts are measured: in tokens of `pieces`, or in characters where there are none.

    Attributes:
      input_length, target_length: tokens that a model is given; what is longer is cut. A target has one more, EOS.
    """

    pieces: Pieces | None
    input_length: int
    target_length: int

    @property
    def unit(self) -> str:
        return "tokens" if self.pieces else "characters"

    def inputs(self, texts: Sequence[str]) -> "Lengths | None":
        """Lengths of inputs."""
        return self._measured(texts, 0, self.input_length)

    def targets(self, texts: Sequence[str]) -> "Lengths | None":
        """Lengths of targets."""
        return self._measured(texts, 1, self.target_length)

    def _measured(self, texts: Sequence[str], more: int, limit: int) -> "Lengths | None":
        if not texts:
            return None
        if self.pieces is None:
            return Lengths(*_spread([len(text) for text in texts]))
        sizes = [len(ids) + more for ids in self.pieces.encode_batch(texts)]
        return Lengths(*_spread(sizes), float(np.mean(np.array(sizes) > limit)))


@dataclass(frozen=True)
class Lengths:
    """Median, 95th percentile and maximum; `cut` is the share that is too long, where that is known."""

    median: int
    most: int
    longest: int
    cut: float | None = None

    def cells(self) -> list[str]:
        """For a table."""
        cut = "" if self.cut is None else f"{100 * self.cut:.1f} %"
        return [str(self.median), str(self.most), str(self.longest), cut]


def _spread(sizes: list[int]) -> tuple[int, int, int]:
    return tuple(np.percentile(sizes, (50, 95, 100), method="higher").astype(int).tolist())


@dataclass
class Seen:
    """What some rows became: (row, rendering) where the prompt applies, and the rows where it does not."""

    rendered: list[tuple[int, Rendered]] = field(default_factory=list)
    skipped: list[tuple[int, int]] = field(default_factory=list)
    """(row, number of parts that it rendered)."""
    failed: list[tuple[int, str]] = field(default_factory=list)
    """(row, what went wrong)."""
    outside: list[tuple[int, str]] = field(default_factory=list)
    """(row without a target though its label is told, what is wrong with the label)."""
    separated: list[int] = field(default_factory=list)
    """Rows whose data have a separator."""

    @property
    def count(self) -> int:
        return len(self.rendered) + len(self.skipped) + len(self.failed)


@dataclass(frozen=True)
class Line:
    """One prompt's line in the table of its data set."""

    prompt: str
    applies: float
    choices: tuple[int, int] | None
    """The fewest and the most answer choices of a row."""
    inputs: Lengths | None
    targets: Lengths | None
    is_random: bool

    def cells(self) -> list[str]:
        """For the table."""
        fewest, most = self.choices or (0, 0)
        choices = "" if not most else str(most) if fewest == most else f"{fewest}-{most}"
        sides = [cell for side in (self.inputs, self.targets) for cell in _cells(side)]
        return [f"{100 * self.applies:.1f} %", choices, *sides, "random" if self.is_random else ""]


def _cells(side: Lengths | None) -> list[str]:
    return side.cells() if side else [""] * 4


def choose_split(spec: DatasetSpec, wanted: str, known: Sequence[str], local_dir: str = "") -> str:
    """The split to look at: `wanted`, or where it is empty the validation split, else the first that there is.

    Args:
      known: splits of the data set where it is not a local one.

    Raises:
      DataUnavailable: the folder of the data set is not there.
    """
    there = available_splits(spec, local_dir) or list(known)
    return wanted or ("validation" if "validation" in there or not there else there[0])


def check_data(
    prompts: Sequence[PromptedRows], limit: int, ruler: Ruler
) -> tuple[list[Finding], list[str]]:
    """What is found in a split's rows, and a table with a line a prompt.

    Args:
      prompts: the split through each prompt.
      limit: so many rows are looked at, evenly spread over the split; 0 takes all.

    Raises:
      DataUnavailable, DataError: the data cannot be had, or cannot be read.
      ValueError: a negative limit.
    """
    if limit < 0:
        raise ValueError(f"limit={limit} is negative; 0 takes all rows")
    if not prompts:
        return [], []
    total = len(open_rows(prompts[0].spec, prompts[0].split, prompts[0].local_dir))
    count = min(limit or total, total)
    numbers = [k * total // count for k in range(count)]
    found: list[Finding] = []
    lines: list[Line] = []
    for rows in prompts:
        try:
            seen = look(rows, numbers)
        except DataError as error:
            found.append(Finding(rows.spec.name, rows.template_name, "error", str(error)))
            continue
        found += [Finding(rows.spec.name, rows.template_name, *issue) for issue in row_issues(seen)]
        lines.append(_line(rows, seen, ruler))
    title = f"{prompts[0].spec.name}, {prompts[0].split}, {len(numbers)} rows, {ruler.unit}"
    return found, list(_table(title, lines)) if lines else []


def _line(rows: PromptedRows, seen: Seen, ruler: Ruler) -> Line:
    texts = [rendered for _, rendered in seen.rendered]
    numbers = [len(rendered.choices) for rendered in texts if rendered.choices]
    return Line(
        rows.template_name,
        len(texts) / max(1, seen.count),
        (min(numbers), max(numbers)) if numbers else None,
        ruler.inputs([rendered.inputs for rendered in texts]),
        ruler.targets([rendered.targets for rendered in texts if rendered.targets]),
        rows.template.is_random,
    )


def look(rows: PromptedRows, numbers: Sequence[int]) -> Seen:
    """Renders these rows.

    Raises:
      DataUnavailable, DataError: the data cannot be had, or lack a column.
    """
    seen = Seen()
    for number in numbers:
        row = rows.rows[number]
        if SEPARATOR in repr(row):
            seen.separated.append(number)
        try:
            rendered = rows[number]
            if rendered is None:
                seen.skipped.append((number, len(rows.template.apply(row)[0])))
            else:
                seen.rendered.append((number, rendered))
                if outside := targets.outside_choices(rows, number, rendered):
                    seen.outside.append((number, outside))
        except TemplateError as error:
            seen.failed.append((number, _reason(error)))
    return seen


def _reason(error: BaseException) -> str:
    """What went wrong at first."""
    while error.__cause__:
        error = error.__cause__
    return str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"


# --------------------------------------------------------------------------------------------- findings


def row_issues(seen: Seen) -> Iterator[Issue]:
    """What is to be said about the rows."""
    if seen.failed:
        yield "error", f"{_of(seen, [row for row, _ in seen.failed])} fail: {seen.failed[0][1]}"
    yield from _application_issues(seen)
    if seen.separated:
        yield "note", f"{SEPARATOR} is in the data of {_of(seen, seen.separated)}; there it is text"
    yield from _target_issues(seen)
    yield from _choice_issues(seen)


def _of(seen: Seen, rows: Sequence[int]) -> str:
    """`3 of 200 rows (1, 7, 9)`."""
    named = ", ".join(map(str, rows[:NAMED])) + (", ..." if len(rows) > NAMED else "")
    return f"{len(rows)} of {seen.count} rows ({named})"


def _application_issues(seen: Seen) -> Iterator[Issue]:
    if seen.skipped and not seen.rendered and not seen.failed:
        yield "error", f"it applies to none of {seen.count} rows; `show` says what it renders"
    several = [row for row, parts in seen.skipped if parts > 2]
    if several:
        yield "warning", f"{_of(seen, several)} render several separators and are left out"
    blank = [row for row, parts in seen.skipped if parts == 2]
    if blank:
        yield "warning", f"{_of(seen, blank)} render an empty input and are left out"
    silent = [row for row, parts in seen.skipped if parts < 2]
    if silent and seen.rendered:
        yield "note", f"it does not apply to {_of(seen, silent)}"


def _target_issues(seen: Seen) -> Iterator[Issue]:
    outside = dict(seen.outside)
    if outside:
        row, why = seen.outside[0]
        yield "error", f"row {row}: no target: {why}; the same in {_of(seen, list(outside))}"
    empty = [row for row, rendered in seen.rendered if not rendered.targets]
    hidden = [row for row in empty if row not in outside]
    if hidden:
        level = "warning" if len(hidden) == len(seen.rendered) else "note"
        yield level, f"{_of(seen, hidden)} have no target: a hidden label, or it renders none"
    answers = {rendered.targets for _, rendered in seen.rendered if rendered.targets}
    if len(answers) == 1 and len(seen.rendered) - len(empty) > 1:
        yield "warning", f"the target of all rows is {next(iter(answers))!r:.100}"


def _choice_issues(seen: Seen) -> Iterator[Issue]:
    ranked = [(row, r, r.choices) for row, r in seen.rendered if r.choices]
    strange = [
        (row, r.targets, choices)
        for row, r, choices in ranked
        if r.targets and not views.correct_choices(r)
    ]
    if strange:
        row, target, choices = strange[0]
        yield (
            "error",
            f"the target of {_of(seen, [row for row, _, _ in strange])} is no answer choice:"
            f" row {row} has {target!r:.100} and the choices {list(choices)!r:.200}",
        )
    twice = [row for row, _, choices in ranked if len(set(choices)) < len(choices)]
    if twice:
        yield "warning", f"{_of(seen, twice)} have an answer choice twice"
    empty = [row for row, _, choices in ranked if "" in choices]
    if empty:
        yield "warning", f"{_of(seen, empty)} have an empty answer choice"


# ------------------------------------------------------------------------------------------------ table


def _table(title: str, lines: Sequence[Line]) -> Iterator[str]:
    measured = ["median", "95 %", "max", "cut"]
    head = ["applies", "choices", *(f"{s} {m}" for s in ("in", "out") for m in measured), ""]
    cells = [head, *(line.cells() for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = [title, *(f"  {line.prompt}" for line in lines)]
    wide = max(map(len, names))
    for name, row in zip(names, cells, strict=True):
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"{name:{wide}}  {numbers}".rstrip()
