"""T5 to and from Hugging Face directories, tensor by tensor.

Reading needs `config.json` and `model.safetensors` (or its shards with their index). Torch is imported for
nothing but `pytorch_model.bin`, and only where the caller allows pickles.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t0jax import config as cfg
from t0jax import models
from t0jax.convert.files import ConvertError, Tensor, open_tensors
from t0jax.convert.names import UNUSED, Entry, hf_config, name_table, read_config
from t0jax.convert.writing import (
    check_replaceable,
    check_vocabulary,
    hf_tensors,
    save_params,
)

__all__ = [
    "ConvertError",
    "check_replaceable",
    "check_vocabulary",
    "hf_config",
    "hf_tensors",
    "load_params",
    "logit_difference",
    "name_table",
    "open_tensors",
    "read_config",
    "save_params",
    "stored_dtype",
]

HELD_BYTES = 128 << 20
"""Of a parameter's shards filled in host memory at once, unless one is larger. A tensor whose columns are cut over many
devices is read once for each such group of shards."""

Bound = tuple[models.Network, models.Params]
Bounds = tuple[tuple[int, int], ...]
"""Of a shard: (first, after the last) along each axis."""

# ----------------------------------------------------------------------------------------------------------------------
# Reading


def load_params(
    hf_dir: str | Path,
    network: models.Network,
    shardings: models.Params | None = None,
    *,
    allow_pickle: bool = False,
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

    Raises:
        ConvertError: a damaged file; missing, unexpected or misshapen tensors.
    """
    tensors = open_tensors(hf_dir, allow_pickle)
    table = name_table(network)
    _check_tensors(tensors, table, Path(hf_dir), network.config)
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, network.shapes)
    params: models.Params = {}
    for entry in table:
        _set(params, entry.path, load_entry(entry, tensors, entry.leaf(shardings)))
    return params


def load_entry(
    entry: Entry, tensors: Mapping[str, Tensor], sharding: jax.sharding.Sharding
) -> jax.Array:
    """One parameter, its shards filled in host memory group by group, put on their devices and forgotten."""
    owners: dict[Bounds, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(entry.shape).items():
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
    for layer, name in enumerate(entry.tensors):
        parts = {}  # bounds within this layer's tensor -> where its values go, laid out as the file's
        for bounds, shard in shards.items():
            if entry.stacked:
                (first, last), *bounds = bounds
                if not first <= layer < last:
                    continue
                shard = shard[layer - first]
            if entry.transposed:
                bounds, shard = bounds[::-1], shard.T
            parts[tuple(bounds)] = shard
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


def _check_tensors(
    tensors: Mapping[str, Tensor], table: list[Entry], where: Path, config: cfg.Model
) -> None:
    wanted = {name: entry.tensor_shape for entry in table for name in entry.tensors}
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys() - UNUSED)
    if config.tie_word_embeddings and unexpected == ["lm_head.weight"]:
        _check_tied(tensors, where)
        unexpected = []
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


def _check_tied(tensors: Mapping[str, Tensor], where: Path) -> None:
    head, shared = tensors["lm_head.weight"], tensors["shared.weight"]
    same = head.shape == shared.shape and all(
        np.array_equal(rows, shared.read(slice(at, at + len(rows))))
        for at, rows in head.blocks(0, head.shape[0])
    )
    if not same:
        raise ConvertError(
            f"{where}: config.json ties the head to the embedding, but lm_head.weight is not shared.weight;"
            ' set "tie_word_embeddings": false there if the model is a v1.1'
        )


def _some(word: str, names: list[str]) -> str:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {word}" + (f" ({listed})" if names else "")


def _set(tree: models.Params, path: tuple[str, ...], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


# ----------------------------------------------------------------------------------------------------------------------
# Checking


def stored_dtype(hf_dir: str | Path) -> str:
    """The dtype of a directory's weights by NumPy's name, e.g. 'bfloat16'."""
    tensor = open_tensors(hf_dir)["shared.weight"]
    return tensor.read(slice(0, 1)).dtype.name


def logit_difference(exported: Bound, original: Bound, dtype: str, seed: int = 0) -> float:
    """Largest difference between two models' logits on random tokens.

    Args:
        exported: network and parameters read from an export.
        original: those it was made from; their weights are rounded to `dtype` as the export's were.
        dtype: of the export's file.
        seed: of the tokens.
    """
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), original[1])
    batch = _random_batch(original[0].config.vocab_size, seed)
    run = jax.jit(lambda network, params: network.bind(params)(batch), static_argnums=0)
    return float(jnp.abs(run(*exported) - run(original[0], rounded)).max())


def _random_batch(vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs, targets = (rng.integers(0, vocab_size, (2, n), dtype=np.int32) for n in (24, 8))
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": np.ones_like(inputs),
        "decoder_input_tokens": targets,
        "decoder_segment_ids": np.ones_like(targets),
    }
