"""What the operations of a prompt cost: prices of filters, methods and operators.

A price is a number of units, found from the operands before the operation is done: for what it reads, and for what
it makes where that can be more. What is not listed here cannot be used in a prompt. `sandbox.py` collects the prices.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.tests import TESTS
from jinja2.utils import pass_context

from t0jax.data.metering import (
    ALLOWANCE,
    MAX_INTEGER_BITS,
    METER,
    LimitError,
    Meter,
    check_key,
    check_nesting,
    tree_size,
)

PRINTED_LENGTH = 2048
"""Characters promptsource prints of one expression (its TEXT_VAR_LENGTH), with Jinja's leeway of 5."""


CALL_PRICE = 3
"""Units of any call besides what its operands cost."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ------------------------------------------------------------------------------------- prices of filters


def _price(units: int | float) -> int:
    """`units` as a whole number that is not negative; sizes a template names may be anything."""
    return max(0, int(units))


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> int:
    occurrences = str(text).count(str(old))
    if isinstance(count, int) and count >= 0:
        occurrences = min(occurrences, count)
    return occurrences * (len(str(new)) + 1) >> 4


def _indented(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    lines = len(str(text).splitlines())
    return lines * (width if isinstance(width, int) else len(str(width))) >> 4


def _rounded(value: Any, precision: int = 0, *_: Any, **__: Any) -> int:
    if abs(precision) > 100:
        raise LimitError(f"round to {precision} digits")
    return 0


def _parsed(value: Any, *_: Any, **__: Any) -> int:
    if isinstance(value, str) and len(value) > MAX_INTEGER_BITS // 4:
        raise LimitError(f"a number of {len(value)} digits")
    return 0


def _searched(text: str, *others: Any) -> int:
    """Units of a search that may compare every character of `text` with every one of the other."""
    return len(text) * sum(len(other) for other in others if isinstance(other, str)) >> 10


def _trimmed(value: Any, chars: str | None = None) -> int:
    return _searched(str(value), chars)


def _hashed(items: Any) -> int:
    """Units of a table of these items, were all of them to collide; text cannot be made to."""
    if all(type(item) is str for item in items):
        return 0
    for item in items:
        check_nesting(item)
    return len(items) ** 2 >> 6


def _percent(text: str, values: Any) -> int:
    """Units of `text % values`: the widths written in it and every value as often as it may be printed."""
    # A key in parentheses may hide a width from this pattern, so then every number counts.
    specs = [text] if "%(" in text else re.findall(r"%[^a-zA-Z%]*", text)
    widths = sum(int(digits[:12]) for spec in specs for digits in re.findall(r"\d+", spec))
    if "*" in text:
        numbers = values if isinstance(values, tuple) else (values,)
        widths += sum(abs(number) for number in numbers if isinstance(number, int))
    return (widths >> 4) + text.count("%") * tree_size(values, ALLOWANCE)


def check_path(path: Any) -> None:
    """Refuses what takes long to look up in every item.

    Raises:
      LimitError: `path` is no short name, number or path of few parts.
    """
    if not isinstance(path, str | int | Undefined | None):
        raise LimitError(f"a {type(path).__name__} as an attribute")
    if isinstance(path, str) and (len(path) > 256 or path.count(".") + path.count(",") > 8):
        raise LimitError(f"an attribute of {len(path)} characters")


_PATH_POSITIONS = {"groupby": 0, "max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2}
"""Where filters take an attribute without its name."""

_FLAT = frozenset({"count", "default", "d", "first", "length", "defined", "undefined"})
"""Filters and tests that look at no more of their operand than its outside."""

_FILTER_PRICES: dict[str, Callable[..., int]] = {
    "batch": lambda value, linecount, fill_with=None: _price(linecount),
    "center": lambda value, width=80: _price(width) >> 4,
    "format": lambda value, *args, **kwargs: _percent(str(value), kwargs or args),
    "indent": _indented,
    "int": _parsed,
    "replace": _replaced,
    "round": _rounded,
    "slice": lambda value, slices, fill_with=None: _price(slices),
    "title": lambda value: len(str(value)) >> 2,
    "trim": _trimmed,
    "wordcount": lambda value: len(str(value)) >> 2,
}

_TEXT_FILTERS = _words(
    "abs capitalize center count d default first float format indent int last length lower replace"
    " reverse round string title trim truncate upper wordcount"
)
_ITEM_FILTERS = _words(
    "batch dictsort groupby items list map max min reject rejectattr select selectattr slice sort"
)
"""These take a text as a list of characters, each a value of its own."""

_TESTS = _words(
    "boolean callable defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable le"
    " lessthan lower lt mapping ne none number odd sameas sequence string true undefined upper"
    " == != > >= < <="
)


def _paying(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, a filter or test of Jinja's, made to pay before it works."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")
    price, flat, by_item = _FILTER_PRICES.get(name), name in _FLAT, name in _ITEM_FILTERS
    position = _PATH_POSITIONS.get(name, sys.maxsize)

    @pass_context
    def paying(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.parent[METER]
        meter.spend(CALL_PRICE)
        pay_arguments(meter, (*args, *kwargs.values()))
        if not flat:
            meter.pay(value)
        if by_item:
            check_path(args[position] if len(args) > position else kwargs.get("attribute"))
            if isinstance(value, str):
                meter.spend(len(value))
        if price is not None:
            meter.spend(price(value, *args, **kwargs))
        if passed:
            return meter.watch(function(_PASSED[passed](context), value, *args, **kwargs))
        return meter.watch(function(value, *args, **kwargs))

    return paying


_PASSED: dict[str, Callable[[Context], Any]] = {
    "context": lambda context: context,
    "eval_context": lambda context: context.eval_ctx,
    "environment": lambda context: context.environment,
}


def pay_arguments(meter: Meter, values: Iterable[Any]) -> None:
    for value in values:
        meter.pay(value)


def listed(meter: Meter, value: Any) -> list[Any]:
    if isinstance(value, str):
        meter.spend(len(value))
    return list(value)


@pass_context
def _unique(
    context: Context, value: Any, case_sensitive: bool = False, attribute: Any = None
) -> Any:
    meter: Meter = context.parent[METER]
    pay_arguments(meter, (value, case_sensitive, attribute))
    check_path(attribute)
    items = listed(meter, value)
    keys = items if attribute is None else FILTERS["map"](context, items, attribute=attribute)
    meter.spend(_hashed([meter.pay(key) for key in keys]))
    return meter.watch(FILTERS["unique"](context.environment, items, case_sensitive, attribute))


@pass_context
def _join(context: Context, value: Any, d: Any = "", attribute: Any = None) -> str:
    meter: Meter = context.parent[METER]
    pay_arguments(meter, (value, d, attribute))
    check_path(attribute)
    items = listed(meter, value)
    meter.spend((len(str(d)) * len(items) >> 4) + len(items))
    return FILTERS["join"](context.eval_ctx, items, str(d), attribute)


@pass_context
def _sum(context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    meter: Meter = context.parent[METER]
    pay_arguments(meter, (value, attribute, start))
    check_path(attribute)
    items = listed(meter, value)
    # Lists are added one to the next, each time copying what is there already.
    factor = 1 if isinstance(start, int | float) else len(items)
    meter.spend(factor * tree_size(items, ALLOWANCE))
    return FILTERS["sum"](context.environment, items, attribute, start)


@pass_context
def _choice(context: Context, choices: Any) -> Any:
    return context.parent[METER].rng.choice(choices)


@pass_context
def _random(context: Context, choices: Any) -> Any:
    try:
        return context.parent[METER].rng.choice(choices)
    except IndexError:
        return context.environment.undefined("No random item, sequence was empty.")


@pass_context
def _most_frequent(context: Context, value: Any) -> list[Any] | None:
    """All items tied for the highest count, as promptsource's filter of that name."""
    meter: Meter = context.parent[METER]
    items = listed(meter, meter.pay(value))
    meter.spend(_hashed(items))
    counts = Counter(items).most_common()
    return [item for item, count in counts if count == counts[0][1]] or None


def _highlight(text: str) -> str:
    return "<span style='color: #F08080'>" + text + "</span>"


# ------------------------------------------------------------------ filters that the compiler puts in


@pass_context
def _print_truncated(context: Context, value: Any) -> str:
    """`value | string | truncate(2048)`, in one step."""
    meter: Meter = context.parent[METER]
    if type(value) is not str:
        value = str(meter.pay(value))
    meter.spend(1 + (len(value) >> 4))
    if len(value) <= PRINTED_LENGTH + 5:
        return value
    return FILTERS["truncate"](context.environment, value, PRINTED_LENGTH)


@pass_context
def _print(context: Context, value: Any) -> str:
    text = str(context.parent[METER].pay(value))
    context.parent[METER].spend(len(text) >> 4)
    return text


@pass_context
def _pay(context: Context, value: Any) -> Any:
    return context.parent[METER].pay(value)


@pass_context
def _pay_slice(context: Context, value: Any) -> Any:
    context.parent[METER].spend(_length(value))
    return value


@pass_context
def _pay_items(context: Context, value: Any) -> Any:
    meter: Meter = context.parent[METER]
    return listed(meter, meter.pay(value))


@pass_context
def _pay_key(context: Context, value: Any) -> Any:
    return check_key(value)


@pass_context
def _pay_rounds(context: Context, value: Any, price: int) -> Iterator[Any]:
    meter: Meter = context.parent[METER]
    for item in value:
        meter.spend(price)
        yield item


FILTERS_PAID: dict[str, Callable[..., Any]] = {
    name: _paying(name, FILTERS[name]) for name in (*_TEXT_FILTERS, *_ITEM_FILTERS)
} | {
    "most_frequent": _most_frequent,
    "highlight": _paying("highlight", _highlight),
    "join": _join,
    "sum": _sum,
    "unique": _unique,
    "choice": _choice,
    "random": _random,
    # These the compiler puts in; no name that a template's own syntax could spell.
    "print truncated": _print_truncated,
    "print paid": _print,
    "pay": _pay,
    "pay slice": _pay_slice,
    "pay items": _pay_items,
    "pay key": _pay_key,
    "pay rounds": _pay_rounds,
}
TESTS_PAID = {name: _paying(name, TESTS[name]) for name in _TESTS}

# ------------------------------------------------------------------------------------- prices of methods


def _split(text: str, *args: Any, **named: Any) -> int:
    return 1 + (len(text) >> 3) + _searched(text, *args, *named.values())


def _width(text: str, width: int, *_: Any) -> int:
    return 1 + (_price(width) + len(text) >> 4)


def _popped(items: list[Any], *index: Any) -> int:
    return 1 + (len(items) >> 6 if index else 0)


def _whole(owner: Any, *_: Any, **__: Any) -> int:
    return tree_size(owner, ALLOWANCE)


def _sorted(items: list[Any], *, key: Any = None, reverse: Any = False) -> int:
    if key is not None:  # a method that would be called without a price
        raise SecurityError("a list cannot be sorted by a key in a prompt")
    return _whole(items)


def _found(text: str, *args: Any) -> int:
    return _whole(text) + _searched(text, *args)


def _extended(items: list[Any], more: Any) -> int:
    return 1 + (len(more) if isinstance(more, str) else 0)


def _one(*_: Any, **__: Any) -> int:
    return 1


def _keyed(owner: dict[Any, Any], key: Any, *_: Any) -> int:
    check_key(key)
    return 1


_LINEAR = _words(
    "capitalize casefold endswith isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace istitle"
    " isupper join lower removeprefix removesuffix startswith swapcase title upper"
)
_SEARCHES = _words("count find index lstrip partition rfind rindex rpartition rstrip strip")

METHOD_PRICES: dict[type, dict[str, Callable[..., int]]] = {
    str: dict.fromkeys(_LINEAR, _whole)
    | dict.fromkeys(_SEARCHES, _found)
    | dict.fromkeys(("split", "rsplit", "splitlines"), _split)
    | dict.fromkeys(("center", "ljust", "rjust", "zfill"), _width)
    | {
        "replace": lambda text, *args: _whole(text) + _replaced(text, *args),
        "expandtabs": lambda text, tabsize=8: (
            _whole(text) + (text.count("\t") * _price(tabsize) >> 4)
        ),
    },
    list: dict.fromkeys(("copy", "count", "index", "insert", "remove", "reverse"), _whole)
    | {"append": _one, "clear": _one, "extend": _extended, "pop": _popped, "sort": _sorted},
    tuple: dict.fromkeys(("count", "index"), _whole),
    dict: dict.fromkeys(("clear", "items", "keys", "popitem", "update", "values"), _one)
    | dict.fromkeys(("get", "pop", "setdefault"), _keyed)
    | {"copy": _whole},
    float: {"is_integer": _one},
    LoopContext: {"cycle": _one, "changed": _one},
}
"""Units of a method call from its owner and arguments (these are paid by themselves); no other method may be called."""

LOOP_ATTRIBUTES = _words(
    "index index0 first last length revindex revindex0 previtem nextitem depth depth0"
)


# ------------------------------------------------------------------------------------ prices of operators


def _sum_price(left: Any, right: Any) -> int:
    return 1 if type(left) is int else _length(left) + _length(right)


def _length(value: Any) -> int:
    """Units of copying a sequence: its items are not looked at."""
    return 1 + (len(value) >> 4) if isinstance(value, str | bytes | list | tuple) else 1


def _product_price(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _integer_price(left.bit_length() + right.bit_length())
    many, times = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
        return 1 + (len(many) * _price(times) >> 4)
    return 1


def _power_price(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        return _integer_price(left.bit_length() * right)
    return 1


def _integer_price(bits: int) -> int:
    if bits > MAX_INTEGER_BITS:
        raise LimitError(f"an integer of {bits} bits")
    return 1


def _remainder_price(left: Any, right: Any) -> int:
    if isinstance(left, str):
        return _percent(left, right)
    if isinstance(left, bytes):
        raise SecurityError("bytes cannot be formatted in a prompt")
    return 1


def _difference_price(left: Any, right: Any) -> int:
    if isinstance(left, dict | type({}.keys()) | type({}.items()) | set):
        raise SecurityError("sets cannot be subtracted in a prompt")
    return 1


BINOP_PRICES = {
    "+": _sum_price,
    "-": _difference_price,
    "*": _product_price,
    "**": _power_price,
    "%": _remainder_price,
}
