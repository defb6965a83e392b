"""Of tasksource's tasks: places on the Hub, label names that many share, and fields that need a function.

Functions and classes that records hold travel to reader processes, which import the module they are of: none of this
needs seqio.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from t0jax.data.rows import DatasetSpec, Rows
from t0jax.data.structured.fields import Field, Row, columns_of, read
from t0jax.data.structured.records import Classification

NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")
POLARITY = ("negative", "positive")
THREE_POLARITIES = ("negative", "neutral", "positive")
PARAPHRASE = ("not_paraphrase", "paraphrase")

NO_TEST = ("train", "validation", None)
"""The test labels are hidden, or there is no test split."""
NO_VALIDATION = ("train", None, "test")
TRAIN_ONLY = ("train", None, None)

GLUE_DEV = "the official validation set stays whole; tasksource cuts it in two, for the test labels are hidden"
GOLD_FIRST = (
    "the test split stays; tasksource drops it, since the right option is always in one column"
)

F = TypeVar("F", bound=Callable[[Row], Any])


def hub(hub_id: str, subset: str | None = None) -> DatasetSpec:
    """A repository of the Hub; local files are looked for under its name without the owner's."""
    return DatasetSpec(hub_id.rpartition("/")[2], subset, hub_id)


def reads(*columns: str) -> Callable[[F], F]:
    """Says which columns a function reads, so that only those are taken from the data."""

    def tell(function: F) -> F:
        function.columns = frozenset(columns)  # type: ignore[attr-defined]
        return function

    return tell


@dataclass(frozen=True)
class _Whole:
    field: Field
    first: int

    @property
    def columns(self) -> frozenset[str] | None:
        return columns_of(self.field)

    def __call__(self, row: Row) -> int | None:
        value = read(self.field, row)
        return None if value in ("", None) else int(value) - self.first


def whole(field: Field, first: int = 0) -> Field:
    """A number that is written as text, or counted from `first` on; None where it is not told."""
    return _Whole(field, first)


@dataclass(frozen=True)
class _Named:
    field: Field
    names: tuple[tuple[Any, str], ...]

    @property
    def columns(self) -> frozenset[str] | None:
        return columns_of(self.field)

    def __call__(self, row: Row) -> Any:
        value = read(self.field, row)
        return dict(self.names).get(value, value)


def named(field: Field, names: Mapping[str, str]) -> Field:
    """A text label under the name that tasks share: `named("label", {"Uncertain": "neutral"})`."""
    return _Named(field, tuple(names.items()))


@dataclass(frozen=True)
class Share:
    """Keeps the rows whose text falls into the shares `first` to `last` (not included) of ten, by its letters."""

    column: str
    first: int
    last: int

    @property
    def columns(self) -> frozenset[str]:
        return frozenset([self.column])

    def __call__(self, row: Row) -> bool:
        return self.first <= digest(row[self.column])[0] % 10 < self.last


def digest(text: str) -> bytes:
    """Of a text's letters."""
    letters = re.sub(r"\W+", "", text.lower())
    return hashlib.blake2b(letters.encode(), digest_size=8).digest()


@dataclass(frozen=True, kw_only=True)
class TogetherBy(Classification):
    """Rows in the order of a digest of a column's letters: a part of a split then shares few or none with another."""

    column: str

    def open(self, split: str, local_dir: str = "") -> Any:
        """All rows of a split; numbers are those of this order. Raises as `Classification.open`."""
        rows = super().open(split, local_dir)
        texts = rows.select([self.column], self.spec)
        digests = [digest(texts[number][self.column]) for number in range(len(texts))]
        return _Ordered(rows, sorted(range(len(digests)), key=digests.__getitem__))


class _Ordered:
    """Rows in another order."""

    def __init__(self, rows: Rows, numbers: Sequence[int]) -> None:
        self._rows, self._numbers = rows, numbers
        self.name, self.columns = rows.name, rows.columns

    def select(self, *given: Any) -> "_Ordered":
        return _Ordered(self._rows.select(*given), self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[self._numbers[index]]


# ---------------------------------------------------------------------------------- of single data sets


@reads("premise", "question")
def cause_or_effect(row: Row) -> str:
    """COPA's premise and what is asked of it."""
    causes = row["question"] == "cause"
    return f"{row['premise']} {'What was the cause?' if causes else 'What happened as a result?'}"


@reads("dialogue", "question")
def dialogue_and_question(row: Row) -> str:
    """DREAM's turns, a line each, and the question."""
    return "\n".join([*row["dialogue"], row["question"]])


@reads("sentence", "pronoun")
def whose_pronoun(row: Row) -> str:
    """A sentence and the pronoun that is to be resolved."""
    return f"{row['sentence']} : {row['pronoun']}"


@reads("answer", "distractors")
def answer_first(row: Row) -> list[str]:
    """Cloze options, the right one first."""
    return [row["answer"], *row["distractors"]]


_ASSISTANT = "\n\nAssistant:"


@reads("chosen", "rejected")
def same_dialogue(row: Row) -> bool:
    """Whether two dialogues differ in the last answer alone, and neither is empty."""
    (before, one), (other, two) = map(_last_answer, (row["chosen"], row["rejected"]))
    return before == other and one != two and bool(one and two)


@reads("chosen")
def dialogue_before(row: Row) -> str:
    """What was said before the last answer."""
    return _last_answer(row["chosen"])[0]


@reads("chosen")
def chosen_answer(row: Row) -> str:
    """The last answer that was preferred."""
    return _last_answer(row["chosen"])[1]


@reads("rejected")
def rejected_answer(row: Row) -> str:
    """The last answer that was not."""
    return _last_answer(row["rejected"])[1]


def _last_answer(dialogue: str) -> tuple[str, str]:
    before, _, answer = dialogue.rpartition(_ASSISTANT)
    return before.strip(), answer.strip()


@reads("labels")
def other_of_two(row: Row) -> int:
    """SHP's label is 1 where the first reply is preferred."""
    return 1 - row["labels"]


@reads("label")
def hateful_or_not(row: Row) -> bool:
    """Leaves out what is neither: skipped texts, and such as are hateful only beside others."""
    return row["label"] in (0, 1)
