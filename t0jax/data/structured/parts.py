"""Parts of a split, written as `datasets` writes them: `train[:80%]` and `train[80%:]` are cut by row number."""

import re
from dataclasses import dataclass

_PART = re.compile(r"(?P<split>[^\[\]]+)\[(?P<start>\d+%)?:(?P<stop>\d+%)?\]")


@dataclass(frozen=True)
class Part:
    """Rows `start` % (included) to `stop` % (not) of a split."""

    split: str
    start: int = 0
    stop: int = 100

    def numbers(self, rows: int) -> range:
        """The row numbers of the part, of a split with so many rows.

        Parts that meet at a percentage neither overlap nor leave a row out.
        """
        return range(rows * self.start // 100, rows * self.stop // 100)


def find_part(name: str) -> Part:
    """What a split's name in the data stands for: a part of it, or the whole.

    Raises:
      ValueError: a bracket that is no part, or an empty one.
    """
    found = _PART.fullmatch(name)
    if found is None and ("[" in name or "]" in name):
        raise ValueError(f"split {name!r}: a part of one is written `train[:80%]` or `train[80%:]`")
    if found is None:
        return Part(name)
    start, stop = (int((found[key] or default)[:-1]) for key, default in _ENDS)
    if not 0 <= start < stop <= 100:
        raise ValueError(f"split {name!r} is empty or more than the whole")
    return Part(found["split"], start, stop)


_ENDS = (("start", "0%"), ("stop", "100%"))
