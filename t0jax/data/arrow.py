"""Local data files as memory-mapped Arrow: JSON lines, parquet or CSV, copied once into the cache folder.

The copy carries the size and time of the file it was made from and is made anew when they change. Processes that
open it share its pages.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from t0jax.config import UserError

SUFFIXES = (".jsonl", ".parquet", ".csv")
BATCH_ROWS = 8192
_VERSION = 1


class DataError(UserError, ValueError):
    """Data that is there but is not what it should be: a broken file, a missing column."""


def cache_dir() -> Path:
    """`T0JAX_CACHE_DIR`, else `~/.cache/t0jax`."""
    return Path(os.environ.get("T0JAX_CACHE_DIR") or Path.home() / ".cache" / "t0jax").expanduser()


def arrow_copy(path: Path) -> Path:
    """The Arrow copy of a local file in the cache, written if it is not there or the file has changed."""
    target = cache_dir() / "rows" / f"{path.stem}-{digest(str(path.resolve()))}.arrow"
    stat = path.stat()
    stamp = f"{_VERSION}:{stat.st_size}:{stat.st_mtime_ns}".encode()
    if not _is_current(target, stamp):
        write_cached(
            target, lambda part: _READERS[path.suffix](path, part, {b"t0jax.source": stamp})
        )
    return target


def _is_current(target: Path, stamp: bytes) -> bool:
    if not target.is_file():
        return False
    try:
        metadata = pa.ipc.open_file(pa.memory_map(str(target))).schema.metadata or {}
    except pa.ArrowInvalid:
        return False
    return metadata.get(b"t0jax.source") == stamp


def write_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Several processes may write the same file at once: each writes its own part, the last rename stays.

    Raises:
      OSError: it cannot be written; nothing is left behind.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_cached(target: Path, write: Callable[[Path], object]) -> None:
    """`write_atomically` for a file in the cache folder.

    Raises:
      DataError: it cannot be written; nothing is left behind.
    """
    try:
        write_atomically(target, write)
    except OSError as error:
        raise DataError(
            f"cannot write {target}: {error} (T0JAX_CACHE_DIR names the cache folder)"
        ) from error


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def map_arrow(path: str) -> list[pa.RecordBatch]:
    """Record batches of an Arrow file or stream, memory-mapped."""
    source = pa.memory_map(path)
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:  # the Hub's cache holds streams
        return pa.ipc.open_stream(pa.memory_map(path)).read_all().to_batches()
    return [reader.get_batch(k) for k in range(reader.num_record_batches)]


def _write_batches(
    part: Path,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    metadata: Mapping[bytes, bytes],
) -> None:
    schema = schema.with_metadata({**(schema.metadata or {}), **metadata})
    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Around reading alone: an error of writing is not the source's."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable {kind} file: {error}") from error


def _read_parquet(path: Path, part: Path, metadata: Mapping[bytes, bytes]) -> None:
    with _reading(path, "parquet"):
        file = parquet.ParquetFile(path)
    _write_batches(part, file.schema_arrow, _parquet_batches(file, path), metadata)


def _parquet_batches(file: parquet.ParquetFile, path: Path) -> Iterator[pa.RecordBatch]:
    with _reading(path, "parquet"):
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _read_csv(path: Path, part: Path, metadata: Mapping[bytes, bytes]) -> None:
    with _reading(path, "CSV"):
        table = _csv_table(path, {})
        dates = {
            field.name: pa.string() for field in table.schema if pa.types.is_temporal(field.type)
        }
        table = _csv_table(path, dates) if dates else table  # a date in a text is text
    _write_batches(part, table.schema, table.to_batches(max_chunksize=BATCH_ROWS), metadata)


def _csv_table(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types),
    )


def _read_jsonl(path: Path, part: Path, metadata: Mapping[bytes, bytes]) -> None:
    """Streams the file; starts over with a wider schema when a later row needs one (an int column that turns float)."""
    schema = pa.schema([])
    while True:
        try:
            _write_batches(part, schema, _json_batches(path, schema), metadata)
            return
        except _WiderSchema as wider:
            schema = wider.schema


class _WiderSchema(Exception):
    def __init__(self, schema: pa.Schema) -> None:
        super().__init__()
        self.schema = schema


def _json_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for chunk in _json_chunks(path):
        names = {name: None for row in chunk for name in row}
        try:
            found = pa.Table.from_pylist(chunk).schema  # which looks at the first row's names alone
            if len(names) > len(found):
                found = pa.Table.from_pylist([{**names, **row} for row in chunk]).schema
            wide = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            column = next((f", column {n!r}" for n in names if not _agrees(chunk, n)), "")
            raise DataError(
                f"{path}{column}: the rows' types do not agree: {error}; give every row of a column one type"
            ) from error
        if wide != schema:
            raise _WiderSchema(wide)
        yield from pa.Table.from_pylist(chunk, schema=schema).combine_chunks().to_batches()


def _agrees(chunk: list[dict[str, Any]], column: str) -> bool:
    try:
        pa.array([row.get(column) for row in chunk])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return False
    return True


def _json_chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    with _reading(path, "JSON lines"), path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                chunk.append(_json_row(line, path, number))
            if len(chunk) == BATCH_ROWS:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _json_row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # broken JSON or text that is not UTF-8
        raise DataError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: not an object but {type(row).__name__}")
    return row


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}
