"""Weight files of Hugging Face directories: tensors stay on disk until they are read, part by part.

safetensors maps files into memory, where every page that was read counts as this process's until the file is closed,
and writes a file from a copy of all its tensors in memory. Here the library checks files; the bytes go by plain reads
and writes (format: https://github.com/huggingface/safetensors#format).
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from t0jax import config as cfg


class ConvertError(cfg.UserError, ValueError):
    """A directory that cannot be read or written; the message names the file or tensor."""


READ_BYTES = 16 << 20
"""Of a file in memory at once, unless one row of a tensor is longer."""

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Those weights come in, by safetensors' names."""

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file that stays on disk until it is read."""

    shape: tuple[int, ...]
    itemsize: int
    """Bytes of an element in the file."""
    read: Callable[[slice], np.ndarray]
    """The rows (indices of the first axis) within the slice, in the file's dtype."""

    def blocks(self, first: int, last: int) -> Iterable[tuple[int, np.ndarray]]:
        """Rows `first` to `last` in order, as (index of the first one, rows), about `READ_BYTES` at a time."""
        row = int(np.prod(self.shape[1:])) * self.itemsize
        step = max(1, READ_BYTES // max(1, row))
        for at in range(first, last, step):
            yield at, self.read(slice(at, min(at + step, last)))


@dataclass(frozen=True)
class Source:
    """A Hugging Face directory to read, perhaps with the heads of its tasks in another folder."""

    path: Path
    allow_pickle: bool = False
    adapters: Path | None = None
    known: Mapping[str, cfg.Head] = field(default_factory=dict)
    """Of tasks, what the files may leave out: kind and label names."""

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return read_json(self.path / "config.json")

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Of the directory, without the adapters'."""
        return open_tensors(self.path, self.allow_pickle)


def open_tensors(hf_dir: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a directory by name.

    Raises:
        ConvertError: no weights, a damaged or missing file, or `pytorch_model.bin` without `allow_pickle`.
    """
    hf_dir = Path(hf_dir)
    for stem, opener in (
        ("model.safetensors", _open_safetensors),
        ("pytorch_model.bin", _open_pickle),
    ):
        files = _files(hf_dir, stem)
        if not files:
            continue
        if opener is _open_pickle and not allow_pickle:
            raise ConvertError(
                f"{hf_dir} holds {stem} and no safetensors; a pickle is read only with --allow_pickle: "
                f"`python -m scripts.convert from-hf {hf_dir} RUN --allow_pickle` makes it a run to use instead"
            )
        return {name: tensor for file in files for name, tensor in opener(file).items()}
    raise ConvertError(f"{hf_dir} holds neither model.safetensors nor pytorch_model.bin")


def _files(hf_dir: Path, stem: str) -> list[Path]:
    index = hf_dir / f"{stem}.index.json"
    if not index.exists():
        return [hf_dir / stem] if (hf_dir / stem).exists() else []
    files = [hf_dir / name for name in _named_files(index)]
    for file in files:
        if not file.exists():
            raise ConvertError(
                f"{file} is named by {index.name} but does not exist; fetch it again"
            )
    return files


def _named_files(index: Path) -> list[str]:
    """The files that an index names; it may be a stranger's, so they lie beside it."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConvertError(f"{index}: `weight_map` is no map of tensors to files; fetch it again")
    for name in places.values():
        if not isinstance(name, str) or name in ("", "..") or name != Path(name).name:
            raise ConvertError(f"{index} names {name!r}, which is no file of its folder")
    return sorted(set(places.values()))


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(
            file, "np"
        ):  # the header is whole and the file as long as it says
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise ConvertError(f"{file} is truncated or damaged ({error}); fetch it again") from None
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {name: _tensor(file, name, 8 + length, found) for name, found in header.items()}


def _tensor(file: Path, name: str, start: int, found: Mapping[str, Any]) -> Tensor:
    kind, shape = found["dtype"], tuple(found["shape"])
    # Older transformers saved integers, position_ids say, that no model reads.
    dtype = DTYPES.get(kind, np.dtype(np.uint8))
    row, start = int(np.prod(shape[1:])), start + found["data_offsets"][0]

    def read(rows: slice) -> np.ndarray:
        if kind not in DTYPES:
            raise ConvertError(f"{file}: {name} is of {kind}; {', '.join(DTYPES)} are read")
        values = np.empty((rows.stop - rows.start, *shape[1:]), dtype)
        with file.open("rb", buffering=0) as stream:
            stream.seek(start + rows.start * row * dtype.itemsize)
            _fill(stream, values, file)
        return values

    return Tensor(shape, dtype.itemsize, read)


def _fill(stream: Any, values: np.ndarray, file: Path) -> None:
    left = values.reshape(-1).view(np.uint8).data
    while left:
        count = stream.readinto(left)  # the system reads 2 GiB at most
        if not count:
            raise ConvertError(f"{file} was cut short while it was read; fetch it again")
        left = left[count:]


def _open_pickle(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConvertError(f"{file} cannot be read as plain weights: {error}") from None

    def tensor(value: torch.Tensor) -> Tensor:
        def read(rows: slice) -> np.ndarray:
            return value[rows].detach().float().numpy()

        return Tensor(tuple(value.shape), 4, read)

    return {name: tensor(value) for name, value in state.items()}


class SafetensorsFile:
    """One safetensors file, written tensor by tensor: the same bytes as `safetensors.numpy.save_file` writes.

    A context manager: the file is begun on entering, and on the disk after leaving.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> None:
        """Touches nothing.

        Args:
            path: of a new file.
            shapes: of all its tensors.
            dtype: of all its tensors, one of `DTYPES`.
        """
        self.path, self.names = path, sorted(shapes)
        """The names are in the order in which `write` takes the tensors."""
        self._shapes, self._dtype = shapes, dtype
        self._digests: dict[str, bytes] = {}

    def __enter__(self) -> "SafetensorsFile":
        self._stream = self.path.open("xb", buffering=0)
        try:
            self._append(self._header())
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def _header(self) -> bytes:
        end, kind = 0, {known: name for name, known in DTYPES.items()}[self._dtype]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name in self.names:
            begin, end = end, end + int(np.prod(self._shapes[name])) * self._dtype.itemsize
            about = {"dtype": kind, "shape": self._shapes[name], "data_offsets": (begin, end)}
            header[name] = about
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def write(self, name: str, value: np.ndarray) -> None:
        """Appends the next of `names`."""
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        self._append(data)
        self._digests[name] = hashlib.sha256(data).digest()

    def _append(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:  # the system writes 2 GiB at most
            left = left[self._stream.write(left) :]

    def verify(self) -> None:
        """Reads the file back.

        Raises:
            ConvertError: a tensor is not what `write` was given.
        """
        tensors = _open_safetensors(self.path)
        for name in self.names:
            found = hashlib.sha256()
            for _, rows in tensors[name].blocks(0, tensors[name].shape[0]):
                found.update(rows.reshape(-1).view(np.uint8).data)
            if found.digest() != self._digests[name]:
                raise ConvertError(
                    f"{name} reads back otherwise than it was written; is the disk failing?"
                )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a Hugging Face directory.

    Raises:
        ConvertError: the file is absent or damaged.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConvertError(f"{path} does not exist; a Hugging Face directory holds it") from None
    except ValueError as error:
        raise ConvertError(f"{path} is not JSON ({error}); fetch the file again") from None
    if not isinstance(found, dict):
        raise ConvertError(f"{path} holds a {type(found).__name__}, not an object; fetch it again")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, as Hugging Face's own files are."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_vocabulary(size: int, config: cfg.Model, where: str | Path) -> None:
    """Refuses a vocabulary of `size` ids, extra ids included, that outgrows the embedding.

    Raises:
        ConvertError: token ids would fall outside the table.
    """
    if size > config.vocab_size:
        raise ConvertError(
            f"{where} has {size} token ids, extra ids included, but the model's embedding has "
            f"{config.vocab_size} rows; use the model's own vocabulary or a larger vocab_size"
        )
