"""A structured example as text, in the format of tasksource-instruct, for text-to-text models (T0, FLIPPED).

    With no explanation, label text_A→text_B with either "entailment", "neutral" or "contradiction".
    text_A: A man sleeps.
    text_B: He is awake.                                                                     -> contradiction.

    With no explanation, chose the best option from "A" or "B". What is wet?

    A: fire
    B: rain                                                                                  -> B.

The wording, "chose" too, is that of the released data set (tasksource/tasksource-instruct-v0; recast.py of
tasksource). It differs in one thing: there the right label stands first wherever labels are drawn, so that it could be
told without reading; here they are in an order of their own. Labels that are no words are left out (`is_verbal`).
"""

import functools
import random
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from t0jax.data.instructions import Split
from t0jax.data.rows import PromptedRows
from t0jax.data.structured.records import Example, Record, RecordError
from t0jax.data.structured.rows import StructuredRows
from t0jax.data.templates import Rendered

FORMAT = "tasksource-instruct"
OPTIONS = 4
"""Labels or options that are shown for training, the right one among them."""
LISTED_TAGS = 10
"""Tags that are listed at least, if there are so many."""


class _Own(str):
    """A piece of the prompt's own text, as against the example's."""


def is_verbal(record: Record) -> bool:
    """Whether the labels can be asked for in words: one label of a few that have letters, an option, or tags."""
    if record.kind == "classification":
        return all(any(map(str.isalpha, name)) for name in record.names)
    return record.kind in ("multiple_choice", "token_classification")


def check_verbal(record: Record) -> None:
    """Raises RecordError where the labels cannot be asked for in words."""
    if not is_verbal(record):
        what = record.kind if record.kind != "classification" else f"labels {record.names[:3]}"
        raise RecordError(
            record.name, None, f"{what} cannot be asked for in words; train a head on it instead"
        )


def to_text(
    record: Record, example: Example, seed: int = 0, options: int | None = OPTIONS
) -> Rendered:
    """The example as a prompt with its answer, its choices, and the split that view `flipped` reads.

    Args:
      record: what it was read by.
      example: with its label; of multiple choice, options in the order they are to be shown.
      seed: of the labels shown and their order.
      options: labels shown at most; None shows all, as scoring has to.

    Raises:
      RecordError: labels that are no words.
    """
    check_verbal(record)
    draw = random.Random(seed)
    return _RENDERERS[record.kind](record, example, draw, options)


# ------------------------------------------------------------------------------------------- the kinds


def _classification(
    record: Record, example: Example, draw: random.Random, options: int | None
) -> Rendered:
    assert isinstance(example.label, int)
    (first, second) = example.texts[0]
    shown = _drawn(record.names, record.names[example.label], draw, options)
    what = "the following" if second is None else "text_A→text_B"
    head = _Own(f"With no explanation, label {what} with either {quoted(shown)}.\n")
    pair = [first] if second is None else [_Own("text_A: "), first, _Own("\ntext_B: "), second]
    inputs, split = _assembled(head, *pair)
    choices = tuple(f"{name.strip()}." for name in shown)
    return Rendered(inputs, f"{record.names[example.label].strip()}.", choices, split)


def _drawn(
    names: Sequence[str], answer: str, draw: random.Random, options: int | None
) -> list[str]:
    """The labels shown: all of few, else the right one and others, in any order."""
    if options is None or len(names) < options:
        return list(names)
    wrong = draw.sample([name for name in names if name != answer], options - 1)
    return draw.sample([answer, *wrong], options)


def _multiple_choice(
    record: Record, example: Example, draw: random.Random, options: int | None
) -> Rendered:
    del record, draw, options  # options were drawn and ordered when the row was read
    assert isinstance(example.label, int)
    text, choices = example.texts[0][0], [option or "" for _, option in example.texts]
    if all(choice in text for choice in choices):
        inputs, split = _assembled(text)
        return Rendered(
            inputs, f"{choices[example.label].strip()}.", tuple(f"{c.strip()}." for c in choices), split
        )  # fmt: skip
    letters = [_letter(k) for k in range(len(choices))]
    head = f"With no explanation, chose the best option from {quoted(letters)}. "
    pieces: list[str] = [_Own(head), *((text, _Own("\n")) if text else ())]
    for letter, choice in zip(letters, choices, strict=True):
        pieces += [_Own(f"\n{letter}: "), choice]
    inputs, split = _assembled(*pieces)
    return Rendered(
        inputs, f"{letters[example.label]}.", tuple(f"{letter}." for letter in letters), split
    )


def _letter(number: int) -> str:
    """A to Z, then AA."""
    before, last = divmod(number, len(string.ascii_uppercase))
    return (_letter(before - 1) if before else "") + string.ascii_uppercase[last]


def _tokens(record: Record, example: Example, draw: random.Random, options: int | None) -> Rendered:
    del draw, options
    assert isinstance(example.label, tuple)
    tagged = [
        (word, record.names[tag])
        for word, tag in zip(example.words, example.label, strict=True)
        if tag >= 0
    ]
    present = list(dict.fromkeys(tag for _, tag in tagged))
    listed = list(dict.fromkeys([*present, *record.names]))[: max(len(present), LISTED_TAGS)]
    head = _Own(f'With no explanation, label each line with {quoted(listed)} preceded by ":".\n')
    inputs, split = _assembled(head, "\n".join(word for word, _ in tagged))
    return Rendered(inputs, "\n".join(f"{word}:{tag}" for word, tag in tagged), None, split)


_RENDERERS = {
    "classification": _classification,
    "multiple_choice": _multiple_choice,
    "token_classification": _tokens,
}


def quoted(options: Sequence[str]) -> str:
    """`"a", "b" or "c"`."""
    marks = [f'"{option}"' for option in options]
    return f"{', '.join(marks[:-1])} or {marks[-1]}" if len(marks) > 1 else marks[0]


def _assembled(*pieces: str) -> tuple[str, Split]:
    """The whole text without blanks around it, and what of it is the prompt's own."""
    parts: list[str | int] = []
    literals: list[str] = []
    for piece in filter(None, pieces):
        if not isinstance(piece, _Own):
            parts.append(str(piece))
        elif parts and isinstance(parts[-1], int):
            literals[-1] += piece
        else:
            parts.append(len(literals))
            literals.append(str(piece))
    split = Split(_trimmed(parts), tuple(literals))
    return split.text, split


def _trimmed(parts: list[str | int]) -> tuple[str | int, ...]:
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return tuple(part for part in parts if part != "")


# ------------------------------------------------------------------------------------------- as prompted rows


@dataclass(frozen=True)
class InstructTemplate:
    """What is known of the prompt, under the names of `templates.Template`."""

    jinja: str
    answer_choices: str | None
    fixed_answer_choices: list[str] | None
    has_instruction: ClassVar[bool] = True
    prints_choices: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class InstructRows(PromptedRows):
    """One split of a record as `Rendered` text; None for a row without a known label."""

    record: Record
    home_split: str
    """train, validation or test."""
    options: int | None = OPTIONS
    """Labels or options shown; None shows all."""

    @functools.cached_property
    def template(self) -> InstructTemplate:  # type: ignore[override]
        """The prompt of the record's kind; choices are fixed where all labels are shown."""
        kind, names = self.record.kind, self.record.names
        few = self.options is None or len(names) < self.options
        fixed = [f"{name.strip()}." for name in names] if kind == "classification" and few else None
        told = None if kind == "token_classification" else "options"
        return InstructTemplate(f"{FORMAT} {kind} {self.options} {'|'.join(names)}", told, fixed)

    @functools.cached_property
    def structured(self) -> StructuredRows:
        """The record's rows."""
        return StructuredRows(self.record, self.home_split, self.local_dir, self.seed, self.options)

    @property
    def rows(self) -> StructuredRows:  # type: ignore[override]
        """The examples. Raises as `StructuredRows.rows`."""
        return self.structured

    def __len__(self) -> int:
        return len(self.structured)

    def __getitem__(self, index: int) -> Rendered | None:
        example = self.structured[index]
        if example is None:
            return None
        seed = zlib.crc32(f"{self.seed}:{self.home_split}:{index}:labels".encode())
        return to_text(self.record, example, seed, self.options)

    def require_choices(self) -> None:
        """Raises ValueError of token classification, whose answers are written, not chosen."""
        if self.template.answer_choices is None:
            raise ValueError(
                f"{self.record.name}: tags of words are no answer choices, so rank classification has nothing to "
                "score; train a head on them instead"
            )

    def data_files(self) -> list[str]:
        """The files that the rows come from."""
        return self.structured.data_files()
