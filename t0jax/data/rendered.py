"""Rows of text that was rendered elsewhere, as P3 holds them: one table a prompt, its text in columns.

A row has `inputs_pretokenized` and `targets_pretokenized`, and `answer_choices` (a list of texts) where the prompt has
choices. P3's columns of token ids are not read: the text is tokenised with the vocabulary of the run. P3 is older than
promptsource's stripping of each part, so the parts are stripped here. A prompt that answers differently by example
left the examples it does not apply to out of P3, and the order of the rows is P3's own: row 5 of two prompts of one
data set need not be the same example.

In split `test` of data sets with hidden labels P3 shows the last choice as the answer (it was rendered with label -1),
and nothing in the row says so. Only `train` and `validation` are safe.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from t0jax.data.arrow import DataError
from t0jax.data.rows import (
    DatasetSpec,
    DataUnavailable,
    PromptedRows,
    Rows,
    data_files,
    open_rows,
)
from t0jax.data.templates import Rendered

INPUTS, TARGETS, CHOICES = "inputs_pretokenized", "targets_pretokenized", "answer_choices"
NO_LABEL = "<NO LABEL>"
"""What t-zero writes as the target of an example without a label."""


@dataclass(frozen=True)
class TextOnly:
    """What is known of a prompt by its renderings alone, under the names of `templates.Template`."""

    rows: Rows

    jinja: ClassVar[str] = ""
    has_instruction: ClassVar[bool] = False
    """Its own words cannot be told from the example's."""

    @property
    def answer_choices(self) -> str | None:
        """The column of the choices, None where the prompt has none."""
        return CHOICES if CHOICES in self.rows.columns else None

    @functools.cached_property
    def fixed_answer_choices(self) -> list[str] | None:
        """The answer choices if all rows of the split have the same."""
        if self.answer_choices is None:
            return None
        column = self.rows.select([CHOICES])
        first = column[0][CHOICES]
        same = all(column[row][CHOICES] == first for row in range(1, len(column)))
        return list(_choices(first) or ()) or None if same else None


@dataclass(frozen=True, kw_only=True)
class RenderedRows(PromptedRows):
    """One split of one prompt's rendered text. `spec` and `split` name the data set that was rendered, for tables."""

    home: DatasetSpec
    """Where the text is."""
    home_split: str

    @functools.cached_property
    def template(self) -> TextOnly:  # type: ignore[override]
        """What is known of the prompt. Raises as `rows`."""
        return TextOnly(self.rows)

    @functools.cached_property
    def rows(self) -> Rows:
        """The text.

        Raises:
          DataUnavailable: it is neither on this machine nor on the Hub; names the data set that was rendered.
          DataError: a broken file, or one without the columns of rendered text.
        """
        try:
            rows = open_rows(self.home, self.home_split, self.local_dir)
        except DataUnavailable as error:
            way_out = error.way_out.replace(f"/{self.home.subset}/", "/<task>/")
            raise type(error)(self.spec.name, error.reason, way_out) from error
        return rows.select([INPUTS, TARGETS], self.home, [CHOICES])

    def __getitem__(self, index: int) -> Rendered | None:
        row = self.rows[index]
        inputs, targets = self._text(index, row, INPUTS), self._text(index, row, TARGETS)
        if not inputs:
            return None
        targets = "" if targets == NO_LABEL else targets
        choices = row.get(CHOICES)
        if (
            isinstance(choices, str)
            and "|||" not in choices
            and targets not in ("", choices.strip())
        ):
            raise DataError(
                f"{self.rows.name}, row {index}: {CHOICES} is {choices!r:.200}, one choice that is not the target; "
                "in CSV ||| separates choices: bad ||| good"
            )
        return Rendered(inputs, targets, _choices(choices))

    def require_choices(self) -> None:
        """Raises ValueError where the text has no column of choices, which rank classification needs."""
        if self.template.answer_choices is None:
            raise ValueError(
                f"{self.rows.name}: no column {CHOICES}, so rank classification has nothing to score; add it: a list "
                "of texts, in CSV one text with ||| between choices"
            )

    def data_files(self) -> list[str]:
        """The files that the rows come from."""
        return data_files(self.home, self.home_split, self.local_dir)

    def _text(self, index: int, row: dict[str, Any], column: str) -> str:
        value = row[column]
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{self.rows.name}, row {index}: {column} is {value!r}, {type(value).__name__}, not text; a CSV file "
                "cannot say so of numbers: use parquet or JSON lines"
            )
        return (value or "").strip()


def _choices(value: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The choices of a row; in CSV, which has no lists, they are one text with promptsource's `|||` between."""
    found = value.split("|||") if isinstance(value, str) else value or ()
    return tuple(choice.strip() for choice in found) or None
