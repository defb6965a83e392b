"""Reading a field of a record from a row: a column, a path into it, or a picklable function of the row.

A path names what lies deeper: `answers.text[0]`, `translation.en`. The functions here cover what declarations need most
and know the columns they read, so that only those are taken from the data.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Field = str | Callable[[Row], Any]
"""Where a value is: a column, a path into one, or a function of the row, of module level (it travels to processes)."""

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(-?\d+)\]")
_SHOWN = 60


class BadRow(ValueError):
    """What is wrong with a row, without its task and number."""


def read(field: Field, row: Row) -> Any:
    """The field's value in a row.

    Raises:
      BadRow: the column or a step of the path is not there, or the function fails.
    """
    if not callable(field):
        return row[field] if field in row else _follow(field, row)
    try:
        return field(row)
    except BadRow:
        raise
    except KeyError as error:
        raise BadRow(_no_column(str(error.args[0]), row)) from error
    except Exception as error:
        name = described(field)
        raise BadRow(f"its function {name} failed: {type(error).__name__}: {error}") from error


def read_text(field: Field, row: Row, what: str) -> str:
    """The field as text; numbers are written out.

    Raises:
      BadRow: as `read`, or the value is no text.
    """
    return as_text(read(field, row), what)


def as_text(value: Any, what: str) -> str:
    """A text or a number as text.

    Raises:
      BadRow: it is neither, `what` says of what.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    raise BadRow(f"{what} is {shown(value)}, not a text; skip such rows with `where`")


def columns_of(field: Field) -> frozenset[str] | None:
    """The columns a field reads; None where only calling it would tell."""
    if isinstance(field, functools.partial):
        return columns_of(field.func)
    if callable(field):
        return getattr(field, "columns", None)
    return frozenset([_first_step(field)])


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _first_step(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0].replace("-", "_")


def _follow(path: str, row: Row) -> Any:
    value: Any = row
    for number, step in enumerate(_STEP.finditer(path)):
        name, index = step.groups()
        try:
            # Rows show names without hyphens, as promptsource does.
            value = value[int(index)] if name is None else value[_column(name, number)]
        except (KeyError, IndexError, TypeError) as error:
            if number == 0:
                raise BadRow(_no_column(path, row)) from error
            before = path[: step.start()]
            raise BadRow(f"{before} is {shown(value)}, which has no {step.group()!r}") from error
    return value


def _column(name: str, number: int) -> str:
    return name if number else name.replace("-", "_")


def _no_column(name: str, row: Row) -> str:
    return f"no column {name!r}; the data has {', '.join(map(repr, row)) or 'no columns'}"


# ------------------------------------------------------------------------------------------- functions


def _union(*fields: Field) -> frozenset[str] | None:
    found = [columns_of(field) for field in fields]
    return None if None in found else frozenset().union(*(columns or () for columns in found))


@dataclass(frozen=True)
class _Joined:
    fields: tuple[Field, ...]
    separator: str

    @property
    def columns(self) -> frozenset[str] | None:
        return _union(*self.fields)

    def __call__(self, row: Row) -> str:
        return self.separator.join(text for field in self.fields for text in _texts(field, row))


def _texts(field: Field, row: Row) -> list[str]:
    value, what = read(field, row), _said(field)
    if isinstance(value, list | tuple):
        return [as_text(one, f"{what}[{i}]") for i, one in enumerate(value)]
    return [as_text(value, what)]


def _said(field: Field) -> str:
    return described(field) if callable(field) else field


def joined(*fields: Field, separator: str = " ") -> Field:
    """The texts of some fields with a separator between; a list's items are joined the same way."""
    return _Joined(fields, separator)


@dataclass(frozen=True)
class _Constant:
    value: Any
    columns: frozenset[str] = frozenset()

    def __call__(self, row: Row) -> Any:
        return self.value


def constant(value: Any) -> Field:
    """The same value in every row, `""` for a question without a text say."""
    return _Constant(value)


@dataclass(frozen=True)
class _Letter:
    field: Field

    @property
    def columns(self) -> frozenset[str] | None:
        return columns_of(self.field)

    def __call__(self, row: Row) -> int | None:
        value = read(self.field, row)
        if value in ("", None):
            return None
        text = str(value).strip().upper()
        if len(text) != 1 or not ("A" <= text <= "Z" or text in "123456789"):
            raise BadRow(f"the answer {shown(value)} is neither a letter nor a number from 1 on")
        return ord(text) - ord("A") if text >= "A" else int(text) - 1


def letter(field: Field) -> Field:
    """The number, from 0 on, of an answer given as a letter, or counted from 1 on; None where it is not told."""
    return _Letter(field)


@dataclass(frozen=True)
class _Position:
    field: Field
    choices: Field

    @property
    def columns(self) -> frozenset[str] | None:
        return _union(self.field, self.choices)

    def __call__(self, row: Row) -> int | None:
        value, choices = read(self.field, row), list(read(self.choices, row))
        if value in ("", None):
            return None
        if value not in choices:
            raise BadRow(f"the answer {shown(value)} is none of the options {shown(choices)}")
        return choices.index(value)


def position(field: Field, choices: Field) -> Field:
    """The number, from 0 on, of an answer given as one of the options' text; None where it is not told."""
    return _Position(field, choices)


# ------------------------------------------------------------------------------------------- identity


def described(value: Any) -> str:
    """A field or a declaration in words that are the same in every process: functions by name and by what they do.

    A function's text counts, without its comments and layout; that of the functions it calls does not.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, part.name) for part in dataclasses.fields(value)]
        return f"{type(value).__qualname__}({', '.join(map(described, inner))})"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, Mapping):
        return described({(key, described(inner)) for key, inner in value.items()})
    if isinstance(value, functools.partial):
        return f"partial{described((value.func, value.args, value.keywords))}"
    if inspect.isroutine(value) or isinstance(value, type):
        bound = f" of {described(value.__self__)}" if inspect.ismethod(value) else ""
        return f"{value.__module__}.{value.__qualname__}{_code(value)}{bound}"
    if callable(value):
        return f"{type(value).__module__}.{type(value).__qualname__}{described(getattr(value, '__dict__', {}))}"
    return repr(value)


def _code(value: Any) -> str:
    """A digest of what a function of Python does; nothing of one that is built in, and of classes."""
    function = inspect.unwrap(getattr(value, "__func__", value))
    return f"#{_code_digest(function)}" if inspect.isfunction(function) else ""


@functools.cache
def _code_digest(function: Callable[..., Any]) -> str:
    try:
        text = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, SyntaxError):  # typed into an interpreter
        text = repr((function.__code__.co_code, function.__code__.co_names))
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def unimportable(value: Any) -> str | None:
    """The name of a function in a field that no other process can import by name: a lambda, or one inside another."""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if callable(value) and "<" in name:
        return name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, part.name) for part in dataclasses.fields(value)]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    else:
        inner = value if isinstance(value, list | tuple) else ()
    return next((name for name in map(unimportable, inner) if name), None)
