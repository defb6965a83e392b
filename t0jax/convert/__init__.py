"""T5 and DeBERTa-v3 to and from Hugging Face directories, tensor by tensor.

Reading needs `config.json` and `model.safetensors` (or its shards with their index). Torch is imported for
nothing but `pytorch_model.bin`, and only where the caller allows pickles. What is particular to an architecture is in
its own module of names (`t0jax.convert.names`).
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t0jax import config as cfg
from t0jax import models
from t0jax.convert.comparing import logit_difference, stored_dtype
from t0jax.convert.entries import Bounds, Entry
from t0jax.convert.files import ConvertError, Source, Tensor, check_vocabulary, open_tensors
from t0jax.convert.main_head import inference_head
from t0jax.convert.names import ARCHITECTURES, hf_config, name_table, of, read_source
from t0jax.convert.tasks import main_task, one_task, save_adapters, save_task
from t0jax.convert.writing import check_replaceable, hf_tensors, save_params

__all__ = [
    "ConvertError",
    "check_replaceable",
    "check_vocabulary",
    "hf_config",
    "hf_tensors",
    "inference_head",
    "load_params",
    "logit_difference",
    "main_task",
    "name_table",
    "one_task",
    "open_tensors",
    "read_config",
    "save_adapters",
    "save_params",
    "save_task",
    "stored_dtype",
    "vocabulary_file",
]

HELD_BYTES = 128 << 20
"""Of a parameter's shards filled in host memory at once, unless one is larger. A tensor whose columns are cut over many
devices is read once for each such group of shards."""

# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_config(
    hf_dir: str | Path,
    *,
    adapters: str | Path | None = None,
    known: Mapping[str, cfg.Head] | None = None,
    allow_pickle: bool = False,
) -> cfg.Model:
    """The architecture that a directory describes, with computing options at their defaults.

    Args:
        hf_dir: holds `config.json`; in the published layout of many tasks also their heads, which are looked into.
        adapters: a folder with the heads and task embedding of a DeBERTa, in the published layout.
        known: task -> kind and label names, for heads whose files do not say them.
        allow_pickle: look for heads in `pytorch_model.bin` too (needs torch).

    Raises:
        ConvertError: no or broken `config.json`, another model, or heads that cannot be told.
    """
    return read_source(_source(hf_dir, adapters, allow_pickle, known))


def _source(
    hf_dir: str | Path,
    adapters: str | Path | None,
    allow_pickle: bool,
    known: Mapping[str, cfg.Head] | None = None,
) -> Source:
    folder = None if adapters is None else Path(adapters)
    return Source(Path(hf_dir), allow_pickle, folder, known or {})


def vocabulary_file(hf_dir: Path) -> Path | None:
    """The SentencePiece file of a directory, if there is one."""
    files = (hf_dir / module.VOCABULARY_FILE for module in ARCHITECTURES.values())
    return next(filter(Path.exists, files), None)


def load_params(
    hf_dir: str | Path,
    network: models.Network,
    shardings: models.Params | None = None,
    *,
    allow_pickle: bool = False,
    adapters: str | Path | None = None,
) -> models.Params:
    """The parameters of a Hugging Face directory, float32, each shard put where it lives.

    Beside the result are held at most about two times `HELD_BYTES` of shards (JAX lets go of host memory some time
    after it was copied) and `files.READ_BYTES` of a file, or a shard and a row where these are larger. Of several
    processes each reads the rows, whole, of which its devices need any column. All names and shapes are checked
    before anything is read.

    Args:
        hf_dir: holds `model.safetensors` or its shards.
        network: the architecture, `models.build(read_config(hf_dir))`.
        shardings: a `jax.sharding.Sharding` for every parameter; the default device when None.
        allow_pickle: also read `pytorch_model.bin` (needs torch).
        adapters: a folder with all heads and the task embedding, as `read_config` took it.

    Raises:
        ConvertError: a damaged file; missing, unexpected or misshapen tensors.
    """
    source = _source(hf_dir, adapters, allow_pickle)
    tensors = of(network.config).find_tensors(source, network.config)
    table = [entry for entry in name_table(network) if not entry.copy]
    _check_tensors(tensors, table, source.path)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params: models.Params = {}
    for entry in table:
        where = device if shardings is None else entry.leaf(shardings)
        _set(params, entry.path, load_entry(entry, tensors, where))
    return params


def load_entry(
    entry: Entry, tensors: Mapping[str, Tensor], sharding: jax.sharding.Sharding
) -> jax.Array:
    """One parameter, its shards filled in host memory group by group, put on their devices and forgotten."""
    owners: dict[Bounds, list[jax.Device]] = {}  # pyright: ignore[reportInvalidTypeForm]  a class of the C extension
    for device, index in sharding.addressable_devices_indices_map(entry.shape).items():
        assert index is not None  # as it is of a device that is addressable
        slices = zip(index, entry.shape, strict=True)
        owners.setdefault(tuple(s.indices(n)[:2] for s, n in slices), []).append(device)
    placed = []
    for group in _groups(list(owners)):
        shards = _read_shards(entry, tensors, group)
        while shards:
            bounds, shard = shards.popitem()
            # Each is new memory and never written again: JAX may go on reading it, or keep it, after this.
            copies = [jax.device_put(shard, device) for device in owners[bounds]]
            del shard
            placed += jax.block_until_ready(copies)
    return jax.make_array_from_single_device_arrays(entry.shape, sharding, placed)


def _groups(shards: list[Bounds]) -> Iterator[list[Bounds]]:
    """Neighbours of `HELD_BYTES` together; all shards of an array have one shape."""
    size = 4 * math.prod(stop - start for start, stop in shards[0])
    count = max(1, HELD_BYTES // max(1, size))
    for first in range(0, len(shards), count):
        yield shards[first : first + count]


def _read_shards(
    entry: Entry, tensors: Mapping[str, Tensor], group: list[Bounds]
) -> dict[Bounds, np.ndarray]:
    """The shards of a group, from one pass over the rows they need of the tensors they need."""
    shards = {b: np.empty([stop - start for start, stop in b], np.float32) for b in group}
    for number, name in enumerate(entry.tensors):
        found = (entry.part(number, bounds, shard) for bounds, shard in shards.items())
        parts = dict(filter(None, found))  # bounds within the tensor -> where its values go
        if parts:
            _fill(parts, tensors[name])
    return shards


def _fill(parts: Mapping[Bounds, np.ndarray], tensor: Tensor) -> None:
    """Copies each part of a tensor, block by block of the rows that any needs."""
    first, last = min(rows[0] for rows, *_ in parts), max(rows[1] for rows, *_ in parts)
    for at, block in tensor.blocks(first, last):
        for (rows, *columns), target in parts.items():
            begin, end = max(at, rows[0]), min(at + len(block), rows[1])
            if begin < end:
                inner = tuple(slice(*bounds) for bounds in columns)
                target[begin - rows[0] : end - rows[0]] = block[
                    (slice(begin - at, end - at), *inner)
                ]


def _check_tensors(tensors: Mapping[str, Tensor], table: list[Entry], where: Path) -> None:
    wanted = {
        name: entry.tensor_shape(number)
        for entry in table
        for number, name in enumerate(entry.tensors)
    }
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise ConvertError(
            f"{where}: the weights are not those of config.json: {_some('missing', missing)}; "
            f"{_some('unexpected', unexpected)}"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ConvertError(
                f"{where}: tensor {name} has shape {tensors[name].shape}, config.json says {shape}"
            )


def _some(word: str, names: list[str]) -> str:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {word}" + (f" ({listed})" if names else "")


def _set(tree: models.Params, path: tuple[str, ...], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
