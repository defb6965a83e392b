"""Data sets as rows: local files first, the Hugging Face Hub second, always memory-mapped Arrow.

A data set with a folder of its own below `T0JAX_DATA_DIR` is that folder: `<dataset>/<subset or default>/<split>`
with the suffix `.jsonl`, `.parquet` or `.csv` (or several `<split>-*.parquet`). The Hub is then not asked for its
other splits, since a local cut may differ from the Hub's. What the Hub gave is remembered in the cache folder: later
runs open the same files without a connection.
"""

import bisect
import functools
import importlib.util
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from t0jax.config import UserError
from t0jax.data.arrow import (
    SUFFIXES,
    DataError,
    arrow_copy,
    cache_dir,
    digest,
    map_arrow,
    write_cached,
)
from t0jax.data.instructions import SplitMode
from t0jax.data.label_words import replace_label_words, replaced_choices
from t0jax.data.templates import Rendered, Template, TemplateError, find_template, prompts_dir

HUB_TIMEOUT_S = 5.0
PARQUET_REVISION = "refs/convert/parquet"
"""The branch on which the Hub keeps its own parquet conversion of a repository that only has a loading script."""
HIDDEN = (-1, "-1", "", None)
"""What a label column holds where the answer is not told."""

__all__ = [
    "DataError",
    "DataUnavailable",
    "DatasetSpec",
    "PromptedRows",
    "Rows",
    "available_splits",
    "open_rows",
]


class DataUnavailable(UserError, RuntimeError):
    """A data set that cannot be had here: `dataset` names it, `reason` says why, `way_out` what to do."""

    def __init__(self, dataset: str, reason: str, way_out: str = "") -> None:
        super().__init__(f"{dataset}: {reason}" + (f"; {way_out}" if way_out else ""))
        self.dataset = dataset
        self.reason = reason
        self.way_out = way_out

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.dataset, self.reason, self.way_out)


class SplitUnavailable(DataUnavailable):
    """The data set can be had, but has no such split: another may be read in its place."""


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: its promptsource name and where its rows come from."""

    dataset: str
    subset: str | None = None
    hub_id: str = ""
    """Repository on the Hub; `dataset` when empty."""
    hub_subset: str | None = None
    """Configuration on the Hub; `subset` when None."""
    renames: tuple[tuple[str, str], ...] = ()
    """(name the prompts use, name in newer copies of the data) of every column renamed since."""
    recodes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(column, old label per new label) where a rename changed the numbers too; not applied without the rename."""
    labels: tuple[str, ...] = ("label",)
    """Columns (by the prompts' names) in which -1, "" or nothing means that the answer is not told."""
    local: str = ""
    """A folder with `<split>.jsonl|parquet|csv`: the rows of a data set of one's own."""
    note: str = ""
    """What a user has to know when the data set cannot be had."""

    @property
    def name(self) -> str:
        """`dataset/subset`, as promptsource writes it."""
        return self.dataset if self.subset is None else f"{self.dataset}/{self.subset}"


# ---------------------------------------------------------------------------------------------- rows


class Rows:
    """Random access to one split: `rows[i]` is a dict of plain Python values of the chosen columns.

    Opened on first use and again after pickling, so it travels to worker processes as a few paths.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[str],
        fields: Mapping[str, str] | None = None,
        recodes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.name = name
        self._files = tuple(files)
        self._fields = (
            dict(fields) if fields is not None else None
        )  # name shown -> name in the file
        self._recodes = dict(recodes or {})
        self._batches: list[pa.RecordBatch] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None, "_starts": None, "_arrays": None}

    def __len__(self) -> int:
        self._open()
        return self._starts[-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns a row has."""
        return tuple(self._shown())

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`, 0 <= index < len.

        Raises:
          IndexError: no such row.
        """
        batches = self._batches or self._open()
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"{self.name}: row {index} of {self._starts[-1]}")
        number = bisect.bisect_right(self._starts, index) - 1
        arrays = self._arrays[number]
        if arrays is None:
            arrays = self._arrays[number] = self._columns_of(batches[number])
        local = index - self._starts[number]
        row = {name: array[local].as_py() for name, array in arrays}
        return self._recoded(row) if self._recodes else row

    def select(
        self, columns: Sequence[str], spec: DatasetSpec | None = None, optional: Sequence[str] = ()
    ) -> "Rows":
        """The same rows with these columns alone.

        Args:
          columns: names wanted.
          spec: its renames are tried for a column that is not there, with its recodes.
          optional: names wanted if they are there.

        Raises:
          DataError: a column is not there; the message lists those that are.
        """
        shown = self._shown()
        newer, tables = (dict(spec.renames), dict(spec.recodes)) if spec else ({}, {})
        fields, recodes = {}, {}
        for column in (*columns, *optional):
            found = column if column in shown else newer.get(column)
            if found not in shown:
                if column in optional:
                    continue
                raise DataError(self._missing(column, newer.get(column)))
            fields[column] = shown[found]
            if found != column and column in tables:
                recodes[column] = tables[column]
        return Rows(self.name, self._files, fields, recodes)

    def _open(self) -> list[pa.RecordBatch]:
        if self._batches is None:
            batches = [batch for file in self._files for batch in map_arrow(file) if batch.num_rows]
            self._starts = [0]
            for batch in batches:
                self._starts.append(self._starts[-1] + batch.num_rows)
            self._arrays: list[list[tuple[str, pa.Array]] | None] = [None] * len(batches)
            self._batches = batches
        return self._batches

    def _shown(self) -> dict[str, str]:
        if self._fields is not None:
            return self._fields
        batches = self._open()
        # Prompts are written for names without hyphens (promptsource's removeHyphen).
        return {
            name.replace("-", "_"): name for name in (batches[0].schema.names if batches else ())
        }

    def _columns_of(self, batch: pa.RecordBatch) -> list[tuple[str, pa.Array]]:
        return [(shown, batch.column(name)) for shown, name in self._shown().items()]

    def _recoded(self, row: dict[str, Any]) -> dict[str, Any]:
        for column, table in self._recodes.items():
            value = row[column]
            if isinstance(value, int) and 0 <= value < len(table):
                row[column] = table[value]
        return row

    def _missing(self, column: str, newer: str | None) -> str:
        tried = f"{column!r} (or {newer!r})" if newer else repr(column)
        there = ", ".join(map(repr, self.columns)) or "no columns"
        return f"{self.name}: no column {tried}; the data has {there}"


# ------------------------------------------------------------------------------------------- opening


@functools.lru_cache(maxsize=4096)
def _rows_of_files(name: str, files: tuple[str, ...], written: tuple[int, ...]) -> Rows:
    del written  # only tells a rewritten file from the one that is open
    return Rows(name, files)


def open_rows(spec: DatasetSpec, split: str, local_dir: str = "") -> Rows:
    """All columns of one split of a data set.

    Args:
      spec: the data set.
      split: name of the split as the files or the Hub have it (ANLI: `dev_r1`).
      local_dir: root of the local data; `T0JAX_DATA_DIR` when empty.

    Raises:
      DataUnavailable: neither local files nor the Hub have it; says why and what to do.
      DataError: the file is broken or has no rows.
    """
    folder = local_folder(spec, local_dir)
    files = _arrow_files(spec, folder, split) if folder else hub_files(spec, split)
    written = tuple(os.stat(file).st_mtime_ns for file in files)
    rows = _rows_of_files(f"{spec.name}/{split}", tuple(files), written)
    if not len(rows):
        raise DataError(f"{rows.name}: no rows in {folder or 'the Hub'}")
    return rows


def available_splits(spec: DatasetSpec, local_dir: str = "") -> list[str] | None:
    """Splits of a data set with local files; None where the Hub would be asked."""
    folder = local_folder(spec, local_dir)
    return _splits_of(folder) if folder else None


def data_files(spec: DatasetSpec, split: str, local_dir: str = "") -> list[str]:
    """The files of a split.

    Raises:
      DataUnavailable: as `open_rows`.
    """
    folder = local_folder(spec, local_dir)
    found = _split_files(spec, folder, split) if folder else hub_files(spec, split)
    return [str(file) for file in found]


def local_folder(spec: DatasetSpec, local_dir: str = "") -> Path | None:
    """The folder that holds the data set's files, or None if there is none and the Hub is to be asked.

    Raises:
      DataUnavailable: `spec.local` or the root of the local data is named but is not a folder.
    """
    if spec.local:
        folder = Path(spec.local).expanduser()
        if not folder.is_dir():
            raise DataUnavailable(spec.name, f"its folder {folder} does not exist")
        return folder
    root = local_dir or os.environ.get("T0JAX_DATA_DIR", "")
    if not root:
        return None
    if not Path(root).expanduser().is_dir():
        way_out = "correct data.local_dir or T0JAX_DATA_DIR"
        raise DataUnavailable(spec.name, f"the local data folder {root} does not exist", way_out)
    folder = Path(root).expanduser() / spec.dataset / (spec.subset or "default")
    return folder if folder.is_dir() and _splits_of(folder) else None


def _splits_of(folder: Path) -> list[str]:
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
    return sorted({re.sub(r"-\d+(-of-\d+)?$", "", path.stem) for path in files})


def _split_files(spec: DatasetSpec, folder: Path, split: str) -> list[Path]:
    for suffix in SUFFIXES:
        shards = re.compile(re.escape(split) + r"(-\d+(-of-\d+)?)?" + re.escape(suffix))
        files = sorted(path for path in folder.iterdir() if shards.fullmatch(path.name))
        if files:
            return files
    there = ", ".join(_splits_of(folder)) or "no data files"
    way_out = f"add {split}.jsonl, .parquet or .csv there"
    raise SplitUnavailable(spec.name, f"no split {split!r} in {folder}, which has {there}", way_out)


def _arrow_files(spec: DatasetSpec, folder: Path, split: str) -> list[str]:
    return [str(arrow_copy(file)) for file in _split_files(spec, folder, split)]


# ------------------------------------------------------------------------------------------- the Hub


def hub_files(spec: DatasetSpec, split: str) -> list[str]:
    """Arrow files of a split from the Hub, fetched once; later calls need no connection.

    Raises:
      DataUnavailable: it cannot be fetched, or not in a form today's `datasets` can read.
    """
    hub_id, subset = spec.hub_id or spec.dataset, spec.hub_subset or spec.subset
    slug = re.sub(r"\W+", "_", f"{hub_id}_{subset or 'default'}_{split}")
    index = cache_dir() / "hub" / f"{slug}-{digest(f'{hub_id}|{subset}|{split}')}.json"
    files = _remembered(index)
    if files:
        return files
    files = _fetch(spec, hub_id, subset, split)
    text = json.dumps({"hub_id": hub_id, "subset": subset, "split": split, "files": files})
    write_cached(index, lambda part: part.write_text(text))
    return files


def _remembered(index: Path) -> list[str]:
    """The files an index names, none where it or one of them is gone or broken."""
    try:
        files = json.loads(index.read_text())["files"]
        return files if all(Path(file).is_file() for file in files) else []
    except (OSError, ValueError, KeyError, TypeError):  # a crash may leave it cut short
        return []


def _fetch(spec: DatasetSpec, hub_id: str, subset: str | None, split: str) -> list[str]:
    folder = f"{spec.dataset}/{spec.subset or 'default'}/{split}"
    way_out = f"put the data at <T0JAX_DATA_DIR>/{folder}.jsonl, .parquet or .csv"
    if spec.note:
        way_out += f" ({spec.note})"
    reason = hub_unreachable()
    if reason:
        raise DataUnavailable(spec.name, f"not on this machine, and {reason}", way_out)
    reasons = []
    for revision in (None, PARQUET_REVISION):
        try:
            return _load_dataset(hub_id, subset, split, revision)
        except (
            Exception
        ) as error:  # datasets raises a dozen kinds; all mean that it is not to be had
            first = next(iter(str(error).splitlines()), "")
            reasons.append(f"{type(error).__name__}: {first[:200]}".removesuffix(": "))
    reason = f"{hub_id!r} on the Hub cannot be read ({'; as parquet: '.join(reasons)})"
    # What `datasets` says of a data set that it has read and that has other splits.
    unknown = any("Unknown split" in why for why in reasons)
    raise (SplitUnavailable if unknown else DataUnavailable)(spec.name, reason, way_out)


def _load_dataset(hub_id: str, subset: str | None, split: str, revision: str | None) -> list[str]:
    import datasets

    loaded = datasets.load_dataset(hub_id, subset, split=split, revision=revision)
    return [file["filename"] for file in loaded.cache_files]


@functools.cache
def hub_unreachable() -> str:
    """Why the Hub cannot be asked ('' if it can); found out once a process, within a few seconds."""
    if importlib.util.find_spec("datasets") is None:
        return "the package `datasets`, which reads the Hub, is not installed"
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return ""  # datasets then looks into its own cache alone, at once
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # whatever the HTTP client of the day raises
        return f"the Hub cannot be reached ({type(error).__name__}: {error})"
    return ""


# ------------------------------------------------------------------------------------- prompted rows


@dataclass(frozen=True)
class PromptedRows:
    """One split of a data set seen through one prompt; `rows[i]` is a `Rendered`, or None where the prompt gives none.

    Pickles as its few fields; data and prompt are opened on first use. An example without a known answer has
    `targets == ''`: an empty rendering, or a hidden label (-1), which promptsource would render as the last choice.
    """

    spec: DatasetSpec
    split: str
    template_name: str
    seed: int = 0
    """Of the prompts that draw at random; row i always draws the same for the same seed."""
    prompts_root: str = ""
    """Folder of prompts; `t0jax.data.templates.prompts_dir()` when empty."""
    local_dir: str = ""
    """Root of the local data; `T0JAX_DATA_DIR` when empty."""
    instruction_split: SplitMode = ""
    """`rendered` or `official`: `Rendered.split` is wanted, made in that way (`Template.render`)."""
    label_words: tuple[tuple[str, str], ...] = ()
    """(word, other word) to put in place of words of the choices; see `label_words.replace_label_words`."""

    @property
    def key(self) -> str:
        """Name for messages and tables: data set, split, prompt."""
        return f"{self.spec.name}/{self.split}/{self.template_name}"

    @functools.cached_property
    def template(self) -> Template:
        """The prompt.

        Raises:
          TemplateError: no such prompt.
        """
        root = Path(self.prompts_root) if self.prompts_root else prompts_dir()
        return find_template(root, self.spec.dataset, self.spec.subset, self.template_name)

    @functools.cached_property
    def rows(self) -> Rows:
        """The columns of the data set that the prompt reads.

        Raises:
          DataUnavailable, DataError: as `open_rows`; the prompt reads a column that is not there.
        """
        rows = open_rows(self.spec, self.split, self.local_dir)
        try:
            fields, optional = sorted(self.template.fields), sorted(self.template.optional_fields)
            return rows.select(fields, self.spec, optional)
        except DataError as error:
            raise DataError(f"{error} (read by the prompt {self.template_name!r})") from error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Rendered | None:
        row = self.rows[index]
        template = self.template
        split: SplitMode = self.instruction_split or ("rendered" if self.label_words else "")
        try:
            rendered = template.render(row, self._seed(index) if template.is_random else 0, split)
        except TemplateError as error:
            raise TemplateError(f"{self.key}, row {index}: {error}") from error
        if rendered is None:
            return None
        if rendered.targets and self.label_hidden(row):
            rendered = replace(rendered, targets="")
        return self._in_other_words(rendered) if self.label_words else rendered

    def _in_other_words(self, rendered: Rendered) -> Rendered:
        fixed, printed = self._fixed_choices is not None, self.template.prints_choices
        words = dict(self.label_words)
        return replace_label_words(rendered, words, fixed=fixed, printed=printed)

    @functools.cached_property
    def _fixed_choices(self) -> list[str] | None:
        return self.template.fixed_answer_choices

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def require_choices(self) -> None:
        """Raises ValueError where the prompt has no answer choices, which rank classification needs.

        LabelWordsError, a ValueError too, where fixed choices become the same by `label_words`.
        """
        if self.template.answer_choices is None:
            raise ValueError(
                f"prompt {self.template_name!r} of {self.spec.name} has no answer choices, so rank classification has"
                " nothing to score; use a prompt that has them"
            )
        replaced_choices(self._fixed_choices or (), dict(self.label_words))

    def _seed(self, index: int) -> int:
        return zlib.crc32(f"{self.seed}:{self.split}:{index}".encode())

    def label_hidden(self, row: Mapping[str, Any]) -> bool:
        """Whether a label that the prompt reads is not told."""
        return any(column in row and row[column] in HIDDEN for column in self.spec.labels)

    def data_files(self) -> list[str]:
        """The files that the rows come from."""
        return data_files(self.spec, self.split, self.local_dir)

    def data_sizes(self) -> list[int]:
        """Bytes of each file: alike for copies of the same data."""
        return [os.stat(file).st_size for file in self.data_files()]

    def columns(self, names: Sequence[str]) -> Rows:
        """Columns of the data that the prompt need not read.

        Raises:
          DataUnavailable, DataError: as `open_rows`; one of them is not there.
        """
        return open_rows(self.spec, self.split, self.local_dir).select(sorted(names), self.spec, [])
