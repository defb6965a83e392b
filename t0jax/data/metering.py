"""The meter of a render: what it may still spend, what values weigh, and where its randomness comes from.

A unit stands for one value that is looked at, 16 characters, or 16 values that are copied unseen. `prices.py` says
what operations cost.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2.runtime import LoopContext, Undefined
from jinja2.utils import Namespace

ALLOWANCE = 1 << 18
"""Units a render may spend, and 16 times the size of its example on top."""
MAX_INTEGER_BITS = 1 << 14
"""Of a product or power."""
MAX_NESTING = 16
MAX_KEY = 1 << 60
"""Integers below are their own hash."""

ITERATOR_PRICE = 256
"""Keeps iterators over iterators few: Python takes C stack for each when it lets go of them."""

METER = "the meter"  # its name among a template's variables: none a template can spell


class LimitError(Exception):
    """A template asked for more time or memory than a render may take."""


class Meter:
    """What one render has left to spend, and its source of randomness (a function of `seed`)."""

    __slots__ = ("_example", "_rng", "_seed", "left")

    def __init__(self, seed: str, example: Mapping[str, Any]) -> None:
        self.left = ALLOWANCE
        self._seed = seed
        self._rng: random.Random | None = None
        self._example: Mapping[str, Any] | None = example

    @property
    def rng(self) -> random.Random:
        """Draws the same for the same seed; made on first use, as few prompts draw."""
        if self._rng is None:
            self._rng = random.Random(self._seed)
        return self._rng

    def spend(self, units: int) -> None:
        """Raises LimitError when the allowance, enlarged once for a large example, is used up."""
        self.left -= (
            units if units > 0 else 1
        )  # no operand may make a price that gives something back
        if self.left < 0:
            self._enlarge()

    def pay(self, value: Any) -> Any:
        """Spends the size of `value` and returns it."""
        kind = type(value)
        if kind is str:
            self.left -= 1 + (len(value) >> 4)
        elif kind in _SCALARS:
            self.left -= 1
        else:
            self._pay_tree(value)
        if self.left < 0:
            self._enlarge()
        return value

    def watch(self, result: Any) -> Any:
        """`result`; an iterator made to pay for each item it gives, as its source may grow under it."""
        if not hasattr(result, "__next__"):
            return result
        self.spend(ITERATOR_PRICE)
        return self._items(result)

    def _items(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for item in iterator:
            yield self.pay(item)

    def _enlarge(self) -> None:
        if self._example is not None:
            example, self._example = self._example, None
            self.left += 16 * tree_size(example, 1 << 26)
        if self.left < 0:
            raise LimitError("it takes more time or memory than a template may use")

    def _pay_tree(self, value: Any) -> None:
        if isinstance(value, tuple):
            check_nesting(value)
        # Shared parts count as often as they occur: that is what printing or comparing would visit.
        size = tree_size(value, self.left)
        if size > self.left:
            self._enlarge()
            size = tree_size(value, self.left)
        self.spend(size)


_SCALARS = frozenset({int, float, bool, type(None)})
_TREES = (list, tuple, set, frozenset, dict, type({}.keys()), type({}.values()), type({}.items()))


def tree_size(value: Any, limit: int) -> int:
    """Units of a value with all that is nested in it; stops soon after `limit`."""
    total, stack = 0, [value]
    while stack and total <= limit:
        item = stack.pop()
        if isinstance(item, str | bytes):
            total += 1 + (len(item) >> 4)
        elif isinstance(item, dict):
            total += 1 + len(item)
            stack += [*item.keys(), *item.values()] if total <= limit else ()
        elif isinstance(item, _TREES):
            total += 1 + len(item)
            stack += item if total <= limit else ()
        elif isinstance(item, Namespace):
            total += 1
            stack.append(item._Namespace__attrs)
        elif isinstance(item, LoopContext):
            raise LimitError("`loop` is not a value")  # it holds items that nobody has paid for
        else:
            total += 1 + (len(item) if isinstance(item, range) else 0)
    return total


def check_nesting(value: Any) -> Any:
    """`value`, if it is no tuple in a tuple in a tuple, and so on: Python takes C stack for each to hash it.

    Raises:
      LimitError: tuples are nested deeper than `MAX_NESTING`.
    """
    level = [value]
    for _ in range(MAX_NESTING):
        level = [inner for item in level if isinstance(item, tuple) for inner in item]
        if not level:
            return value
    raise LimitError(f"tuples are nested more than {MAX_NESTING} deep")


def check_key(key: Any) -> Any:
    """`key`, if it is text or an ordinary number: others can be made to collide, and a dict to take quadratic time.

    Raises:
      LimitError: it is not.
    """
    kind = type(key)
    if kind is str or (kind in _SCALARS and (kind is not int or -MAX_KEY < key < MAX_KEY)):
        return key
    if isinstance(key, Undefined | list | dict):  # the last two have no hash
        return key
    raise LimitError(f"a {kind.__name__} of that kind cannot be a key in a prompt")
