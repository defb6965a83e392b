"""One split of a data set seen through a record: random access to its examples."""

import functools
import os
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from t0jax.data.rows import DataError, DatasetSpec, Rows, SplitUnavailable
from t0jax.data.shots import draw_shots
from t0jax.data.structured.fields import BadRow, columns_of, read
from t0jax.data.structured.parts import Part, find_part
from t0jax.data.structured.records import SPLITS, Example, Record, RecordError


@dataclass(frozen=True)
class StructuredRows:
    """`rows[i]` is an `Example`, or None where row i has none (label not told, left out by `where`).

    Pickles as its few fields; the data is opened on first use.
    """

    record: Record
    split: str
    """train, validation or test."""
    local_dir: str = ""
    """Root of the local data; `T0JAX_DATA_DIR` when empty."""
    seed: int = 0
    """Of the order of options; row i always has the same for the same seed."""
    max_choices: int | None = None
    """Options of a question at most, the right one among them; None reads all."""

    @property
    def spec(self) -> DatasetSpec:
        return self.record.spec

    @property
    def key(self) -> str:
        """Name for messages and tables: task, split."""
        return f"{self.record.name}/{self.split}"

    @functools.cached_property
    def split_in_data(self) -> str:
        """The split's name in the data.

        Raises:
          DataUnavailable: the data set has no such split.
        """
        names: dict[str, str | None] = dict(zip(SPLITS, self.record.splits, strict=True))
        found = names.get(self.split)
        if found is None:
            there = ", ".join(name for name, in_data in names.items() if in_data) or "none"
            raise SplitUnavailable(self.spec.name, f"no split {self.split!r}; it has {there}")
        return found

    @functools.cached_property
    def rows(self) -> Rows:
        """The columns that the record reads.

        Raises:
          DataUnavailable, DataError: as `open_rows`.
          RecordError: a column is not there.
        """
        return self._select(self.record.open(self._part.split, self.local_dir), self.record.columns)

    def _select(self, rows: Rows, columns: frozenset[str] | None) -> Rows:
        try:
            return rows if columns is None else rows.select(sorted(columns), self.spec)
        except DataError as error:
            reason = str(error).removeprefix(f"{rows.name}: ")
            raise RecordError(self.record.name, None, reason) from error

    def open(self) -> "StructuredRows":
        """Itself, with the data opened; raises as `rows`."""
        _ = self.rows
        return self

    @functools.cached_property
    def _part(self) -> Part:
        return find_part(self.split_in_data)

    @functools.cached_property
    def _numbers(self) -> range:
        """Rows of the data that are read: all, or those of a part of the split."""
        return self._part.numbers(len(self.rows))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example | None:
        """Raises RecordError, naming the task and the row in the data, for one that is not as declared."""
        number = self._numbers[index]
        seed = zlib.crc32(f"{self.seed}:{self.split}:{number}".encode())
        return self.record.example(self.rows[number], seed, self.max_choices, number=number)

    def kept(self) -> np.ndarray | None:
        """int32 numbers of the rows that the record's `where` keeps; None without one. Reads its columns of all rows.

        Raises:
          RecordError: names the row at which it fails.
        """
        where = self.record.where
        if where is None:
            return None
        rows = self._select(self.rows, columns_of(where))
        kept = []
        for i, number in enumerate(self._numbers):
            try:
                kept += [i] if read(where, rows[number]) else []
            except BadRow as error:
                raise RecordError(self.record.name, number, str(error)) from error
        return np.array(kept, np.int32)

    def chosen(self, num_shots: int = 0) -> np.ndarray | None:
        """int32 numbers of the rows that training reads: those `where` keeps, or `num_shots` of them; None: every row.

        Raises:
          RecordError: none is kept, or `where` fails.
        """
        kept = self.kept()
        if kept is not None and not len(kept):
            raise RecordError(
                self.record.name, None, f"its `where` leaves out all {len(self)} rows"
            )
        length = len(self) if kept is None else len(kept)
        where = f"{self.record.name}/{self.split_in_data}"
        shots = np.array(draw_shots(where, length, num_shots, self.seed), np.int32)
        if not len(shots):
            return kept
        return shots if kept is None else kept[shots]

    def training_rows(self, num_shots: int = 0) -> int:
        """How many rows training reads in an epoch, those without a label among them; raises as `chosen`."""
        chosen = self.chosen(num_shots)
        return len(self) if chosen is None else len(chosen)

    def data_files(self) -> list[str]:
        """The files that the rows come from."""
        return self.record.files(self._part.split, self.local_dir)

    def data_sizes(self) -> list[int]:
        """Bytes of each file: alike for copies of the same data."""
        return [os.stat(file).st_size for file in self.data_files()]

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}
