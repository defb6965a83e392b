"""A model to a Hugging Face directory: every tensor is gathered, written and forgotten before the next."""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import ml_dtypes
import numpy as np

from t0jax import config as cfg
from t0jax import models, processes, sharding
from t0jax.convert.entries import Entry
from t0jax.convert.files import ConvertError, SafetensorsFile, Source, read_json, write_json
from t0jax.convert.names import MARK, hf_config, name_table, of, read_source

SHARD_BYTES = 5_000_000_000
"""Largest safetensors file written; Hugging Face's own default."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def save_params(
    params: models.Params,
    config: cfg.Model,
    out_dir: str | Path,
    dtype: str = "float32",
    tokenizer_path: str | Path | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a directory that transformers' `from_pretrained` reads, whole or not at all.

    Everything goes into a folder beside `out_dir` first, is read back and compared, then takes its place. No more than
    one tensor (of a stack, one layer's) is held beside the parameters. Of several processes, all of which call this,
    the first writes; all gather every tensor, even when writing has failed, so that none is left waiting.

    Args:
        params: the model, on any mesh.
        config: its architecture.
        out_dir: does not exist, is empty, or holds an earlier export.
        dtype: of the file's tensors, 'float32' or 'bfloat16'.
        tokenizer_path: a SentencePiece model; without it no tokenizer files are written.
        shard_bytes: largest size of a file.

    Returns:
        `out_dir`.

    Raises:
        ConvertError: `out_dir` holds something else, the vocabulary is larger than the embedding, or the
            file reads back otherwise than it was written.
        OSError: the disk is full or read-only; `out_dir` is as it was.
    """
    if dtype not in DTYPES:
        raise ConvertError(f"dtype {dtype!r}; {' or '.join(DTYPES)} can be written")
    table = name_table(models.build(config))
    about = hf_config(config, dtype)
    export = Export(config, table, about, DTYPES[dtype], tokenizer_path)
    return write(params, export, out_dir, shard_bytes)


@dataclasses.dataclass(frozen=True)
class Export:
    """What becomes a directory."""

    config: cfg.Model
    """Of the directory's model."""
    table: list[Entry]
    """Of the parameters written, which may be those of a larger model."""
    about: dict[str, Any]
    """`config.json`."""
    dtype: np.dtype
    tokenizer_path: str | Path | None = None
    rows: dict[str, tuple[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    """Tensor -> (number, values) of a row written in place of its own."""

    def check(self, folder: Path) -> None:
        """Whether what was written describes the same model.

        Raises:
            ConvertError: it does not.
        """
        found = cfg.with_compute(read_source(Source(folder)), self.config)
        if found != (wanted := of(self.config).as_read(self.config)):
            raise ConvertError(f"config.json reads back as {found}, written from {wanted}")


def write(
    params: models.Params, export: Export, out_dir: str | Path, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Writes an export as `save_params` does, with its results and errors."""
    out_dir = Path(out_dir)
    plan = _plan(export.table, export.dtype, shard_bytes)
    what, files = f"writing {out_dir}", []
    with contextlib.ExitStack() as stack:

        def begin() -> None:
            check_replaceable(out_dir)
            folder = stack.enter_context(_replacing(out_dir))
            _describe(folder, export, plan)
            files.extend(
                SafetensorsFile(folder / part.name, part.shapes, part.dtype) for part in plan
            )

        def finish() -> None:
            with stack.pop_all():
                if error is not None:
                    raise error
                _verify(files, export)

        processes.first_process_does(begin, what)
        error = _write_tensors(files, _gather(params, plan, export.rows))
        processes.first_process_does(finish, what)
    return out_dir


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of an export."""

    name: str
    dtype: np.dtype
    places: dict[str, tuple[Entry, int]]
    """Tensor name -> its parameter and its number among that one's tensors."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: entry.tensor_shape(number) for name, (entry, number) in self.places.items()}


def plan_files(config: cfg.Model, dtype: np.dtype, shard_bytes: int = SHARD_BYTES) -> list[Part]:
    """The files of a model: parameters in their order until a file is full."""
    return _plan(name_table(models.build(config)), dtype, shard_bytes)


def _plan(table: list[Entry], dtype: np.dtype, shard_bytes: int) -> list[Part]:
    parts: list[dict[str, tuple[Entry, int]]] = [{}]
    used = 0
    for entry in table:
        for number, name in enumerate(entry.tensors):
            size = int(np.prod(entry.tensor_shape(number))) * dtype.itemsize
            if used and used + size > shard_bytes:
                used = 0
                parts.append({})
            used += size
            parts[-1][name] = (entry, number)
    names = [f"model-{n:05}-of-{len(parts):05}.safetensors" for n in range(1, len(parts) + 1)]
    if len(parts) == 1:
        names = ["model.safetensors"]
    return [Part(name, dtype, places) for name, places in zip(names, parts, strict=True)]


def file_index(plan: list[Part]) -> dict[str, Any]:
    """`model.safetensors.index.json`: which file holds which tensor."""
    shapes = [(part, shape) for part in plan for shape in part.shapes.values()]
    size = sum(int(np.prod(shape)) * part.dtype.itemsize for part, shape in shapes)
    weights = {name: part.name for part in plan for name in part.places}
    return {"metadata": {"total_size": size}, "weight_map": weights}


def hf_tensors(
    params: models.Params, config: cfg.Model, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of an export, one at a time, as (name, array in `dtype`)."""
    plan = plan_files(config, dtype)
    names = (name for part in plan for name in sorted(part.places))
    return zip(names, _gather(params, plan), strict=True)


def _gather(
    params: models.Params,
    plan: list[Part],
    rows: Mapping[str, tuple[int, np.ndarray]] = MappingProxyType({}),
) -> Iterator[Any]:
    """Every tensor whole on the first process, one at a time in the files' order; None on the others.

    All processes that hold parts of the parameters must ask for every one.
    """
    for part in plan:
        for name in sorted(part.places):
            entry, number = part.places[name]
            value = _file_tensor(entry.leaf(params), number, entry, part.dtype)
            if value is not None and name in rows:
                row, values = rows[name]
                value[row] = values
            yield value
            del value


def _file_tensor(
    leaf: jax.Array | np.ndarray, number: int, entry: Entry, dtype: np.dtype
) -> np.ndarray | None:
    """One tensor as the file has it, on the first process; nothing of it stays elsewhere."""
    span = entry.spans[number] if entry.spans else None
    found = _whole(leaf, number if entry.stacked else None, span)
    if jax.process_index() != 0:
        return None
    value = np.empty(entry.tensor_shape(number), dtype)
    target = value.T if entry.transposed else value
    if isinstance(found, np.ndarray):
        target[...] = found
        return value
    # Shard by shard: `np.asarray` of several would leave a host copy with the array.
    for shard in found.addressable_shards[: 1 if found.is_fully_replicated else None]:
        target[shard.index] = shard.data
    return value


def _whole(
    leaf: jax.Array | np.ndarray, layer: int | None = None, span: tuple[int, int] | None = None
) -> jax.Array | np.ndarray:
    """A parameter, one layer of a stack or some columns, such that the first process can read all of it."""
    if isinstance(leaf, np.ndarray):
        leaf = leaf if span is None else leaf[..., slice(*span)]
        return leaf if layer is None else leaf[layer]
    if layer is None and span is None and leaf.is_fully_addressable:
        return leaf
    where = None
    if not leaf.is_fully_addressable:
        mesh = getattr(leaf.sharding, "mesh", None)
        assert isinstance(mesh, jax.sharding.Mesh), leaf.sharding
        where = sharding.replicated(mesh)
    columns, at = (None, layer) if span is None else (span[1] - span[0], span[0])
    # Waited for, also where nothing is done with it: collectives of several programs at once may block each other.
    return jax.block_until_ready(_take(where, columns)(leaf, at))


@functools.cache
def _take(where: jax.sharding.Sharding | None, columns: int | None) -> Any:
    def take(x: jax.Array, at: jax.Array | None) -> jax.Array:
        if at is None:
            return x
        if columns is None:
            return jax.lax.dynamic_index_in_dim(x, at, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(x, at, columns, axis=-1)

    return jax.jit(take, out_shardings=where)


def row_of(leaf: jax.Array | np.ndarray, number: int) -> np.ndarray:
    """A row of a matrix, on every process; all that hold parts of it ask."""
    return np.asarray(_whole(leaf, number))


def _write_tensors(files: list[SafetensorsFile], gathered: Iterator[Any]) -> Exception | None:
    """Fills `files` (none: another process does) and returns what stopped it."""
    error = None
    try:
        for file in files:
            with file:
                for name in file.names:
                    file.write(name, next(gathered))
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        # The other processes gather to the end, which takes this one too.
        for _ in gathered:
            pass
    return error


def _verify(files: list[SafetensorsFile], export: Export) -> None:
    """Reads the export back and compares every byte."""
    for file in files:
        file.verify()
    export.check(files[0].path.parent)


def _describe(folder: Path, export: Export, plan: list[Part]) -> None:
    """Writes everything that is no weight."""
    names = of(export.config)
    if export.tokenizer_path is not None:
        names.write_tokenizer(folder, Path(export.tokenizer_path), export.config)
    write_json(folder / "config.json", export.about)
    names.write_settings(folder, export.config)
    if len(plan) > 1:
        write_json(folder / "model.safetensors.index.json", file_index(plan))


def check_replaceable(out_dir: Path) -> None:
    """Refuses a folder that an export may not take the place of.

    Raises:
        ConvertError: it holds something else than an earlier export.
    """
    if out_dir.is_dir() and any(out_dir.iterdir()):
        config = out_dir / "config.json"
        if not config.exists() or MARK not in read_json(config):
            raise ConvertError(
                f"{out_dir} is not empty and no export of t0jax; choose another folder"
            )
    elif out_dir.exists() and not out_dir.is_dir():
        raise ConvertError(f"{out_dir} is a file; choose another folder")


@contextlib.contextmanager
def _replacing(out_dir: Path) -> Iterator[Path]:
    """A new folder that becomes `out_dir` when the block ends, and vanishes when it fails."""
    _recover(out_dir)
    token = uuid.uuid4().hex[:8]
    new, old = (out_dir.with_name(f".{out_dir.name}.{kind}-{token}") for kind in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        _exchange(new, old, out_dir)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(new: Path, old: Path, out_dir: Path) -> None:
    """Makes `new` into `out_dir` and what is there into `old`; after an error `out_dir` is what it was."""
    if not out_dir.exists():
        os.rename(new, out_dir)
        return
    os.rename(out_dir, old)
    try:
        os.rename(new, out_dir)
    except BaseException:
        os.rename(old, out_dir)  # if this fails too, the next export does it
        raise


def _recover(out_dir: Path) -> None:
    """Clears what killed exports left beside `out_dir`; the earlier export that one had moved away comes back."""
    left = {kind: _leftovers(out_dir, kind) for kind in ("new", "old")}
    if left["old"] and not out_dir.exists():
        newest = max(left["old"], key=lambda folder: folder.stat().st_mtime)
        os.rename(newest, out_dir)
        left["old"].remove(newest)
    for folder in left["new"] + left["old"]:
        shutil.rmtree(folder, ignore_errors=True)


def _leftovers(out_dir: Path, kind: str) -> list[Path]:
    name = re.compile(rf"\.{re.escape(out_dir.name)}\.{kind}-[0-9a-f]{{8}}")
    beside = out_dir.parent.iterdir() if out_dir.parent.is_dir() else ()
    return [path for path in beside if name.fullmatch(path.name)]
