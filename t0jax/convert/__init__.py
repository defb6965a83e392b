"""T5 to and from Hugging Face directories, tensor by tensor.

Reading needs `config.json` and `model.safetensors` (or its shards with their index). Torch is imported for
nothing but `pytorch_model.bin`, and only where the caller allows pickles.
"""

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils

from t0jax import config as cfg
from t0jax import models, processes
from t0jax.convert.files import (
    ConvertError,
    Slices,
    Tensor,
    open_tensors,
    read_json,
    save_shard,
    whole,
    write_json,
)
from t0jax.convert.names import (
    MARK,
    UNUSED,
    Entry,
    generation_config,
    hf_config,
    name_table,
    read_config,
)
from t0jax.data.vocabulary import EXTRA_IDS, Pieces

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

SHARD_BYTES = 5_000_000_000
"""Largest safetensors file written; Hugging Face's own default."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
Bound = tuple[models.Network, models.Params]

# ----------------------------------------------------------------------------------------------------------------------
# Reading


def load_params(
    hf_dir: str | Path,
    network: models.Network,
    shardings: models.Params | None = None,
    *,
    allow_pickle: bool = False,
) -> models.Params:
    """The parameters of a Hugging Face directory, float32, each shard read where it lives.

    No more than one shard of one parameter is held beside the result. All names and shapes are checked
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
        sharding = _get(shardings, entry.path)
        _set(params, entry.path, load_entry(entry, tensors, sharding))
    return params


def load_entry(
    entry: Entry, tensors: Mapping[str, Tensor], sharding: jax.sharding.Sharding
) -> jax.Array:
    cache: dict[tuple, np.ndarray] = {}

    def shard(index: Slices) -> np.ndarray:
        # Devices that hold the same shard share one read.
        bounds = tuple(s.indices(n) for s, n in zip(index, entry.shape, strict=True))
        if bounds not in cache:
            cache[bounds] = _read_shard(entry, tensors, [slice(*b) for b in bounds])
        return cache[bounds]

    return jax.make_array_from_callback(entry.shape, sharding, shard)


def _read_shard(entry: Entry, tensors: Mapping[str, Tensor], index: list[slice]) -> np.ndarray:
    names = entry.tensors[index[0]] if entry.stacked else entry.tensors
    inner = index[1:] if entry.stacked else index
    shard = np.empty((len(names), *(s.stop - s.start for s in inner)), np.float32)
    for row, name in zip(shard, names, strict=True):
        target = row.T if entry.transposed else row
        target[...] = tensors[name].read(tuple(inner[::-1] if entry.transposed else inner))
    return shard if entry.stacked else shard[0]


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
    head, shared = (whole(tensors[name]) for name in ("lm_head.weight", "shared.weight"))
    if not np.array_equal(head, shared):
        raise ConvertError(
            f"{where}: config.json ties the head to the embedding, but lm_head.weight is not shared.weight;"
            ' set "tie_word_embeddings": false there if the model is a v1.1'
        )


def _some(word: str, names: list[str]) -> str:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {word}" + (f" ({listed})" if names else "")


def _get(tree: models.Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: models.Params, path: tuple[str, ...], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


# ----------------------------------------------------------------------------------------------------------------------
# Writing


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

    Everything goes into a folder beside `out_dir` first, is read back and compared, then takes its place. Of several
    processes, all of which call this, the first writes.

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
    out_dir = Path(out_dir)
    if dtype not in DTYPES:
        raise ConvertError(f"dtype {dtype!r}; {' or '.join(DTYPES)} can be written")
    whole_params = jax.tree.map(_to_first_process, params)

    def write() -> None:
        check_replaceable(out_dir)
        with _replacing(out_dir) as folder:
            if tokenizer_path is not None:
                _write_tokenizer(folder, Path(tokenizer_path), config)
            write_json(folder / "config.json", hf_config(config, dtype))
            write_json(folder / "generation_config.json", generation_config(config))
            _write_tensors(folder, whole_params, config, DTYPES[dtype], shard_bytes)
            _verify(folder, whole_params, config, DTYPES[dtype])

    processes.first_process_does(write, f"writing {out_dir}")
    return out_dir


def _to_first_process(leaf: jax.Array) -> Any:
    """A parameter whole on the first process: in host memory, if others hold parts of it."""
    if jax.process_count() == 1:
        return leaf
    gathered = multihost_utils.process_allgather(leaf, tiled=True)
    return gathered if jax.process_index() == 0 else None


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
    token = uuid.uuid4().hex[:8]
    new, old = (out_dir.with_name(f".{out_dir.name}.{kind}-{token}") for kind in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if out_dir.exists():
            os.rename(out_dir, old)
        os.rename(new, out_dir)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def hf_tensors(
    params: models.Params, config: cfg.Model, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of an export, one at a time, as (name, array in `dtype`)."""
    for entry in name_table(models.build(config)):
        leaf = _get(params, entry.path)
        for i, name in enumerate(entry.tensors):
            value = np.asarray(leaf[i] if entry.stacked else leaf)
            value = value.T if entry.transposed else value
            yield name, np.ascontiguousarray(value.astype(dtype))


def _write_tensors(
    folder: Path, params: models.Params, config: cfg.Model, dtype: np.dtype, shard_bytes: int
) -> None:
    plan = _plan_files(config, dtype.itemsize, shard_bytes)
    shard: dict[str, np.ndarray] = {}
    left = list(plan.values())
    for name, value in hf_tensors(params, config, dtype):
        shard[name] = value
        file = left.pop(0)
        if not left or left[0] != file:
            save_shard(shard, folder / file)
            shard = {}
    if len(set(plan.values())) > 1:
        size = sum(np.prod(entry.shape) for entry in name_table(models.build(config)))
        index = {"metadata": {"total_size": int(size) * dtype.itemsize}, "weight_map": plan}
        write_json(folder / "model.safetensors.index.json", index)


def _plan_files(config: cfg.Model, itemsize: int, shard_bytes: int) -> dict[str, str]:
    """Tensor name -> file name, in the order of `hf_tensors`."""
    numbers, used, number = {}, 0, 0
    for entry in name_table(models.build(config)):
        size = int(np.prod(entry.tensor_shape)) * itemsize
        for name in entry.tensors:
            if used and used + size > shard_bytes:
                used, number = 0, number + 1
            used += size
            numbers[name] = number
    if number == 0:
        return dict.fromkeys(numbers, "model.safetensors")
    count = number + 1
    return {name: f"model-{n + 1:05}-of-{count:05}.safetensors" for name, n in numbers.items()}


def _verify(folder: Path, params: models.Params, config: cfg.Model, dtype: np.dtype) -> None:
    """Reads the export back and compares every byte."""
    written = open_tensors(folder)
    for name, value in hf_tensors(params, config, dtype):
        found = whole(written.pop(name))
        if found.dtype != dtype or found.tobytes() != value.tobytes():
            raise ConvertError(
                f"{name} reads back otherwise than it was written; is the disk failing?"
            )
    if written:
        raise ConvertError(f"{_some('unexpected', sorted(written))} tensors in the export")
    architecture = cfg.with_compute(read_config(folder), config)
    wanted = dataclasses.replace(config, num_decoder_layers=config.decoder_layers)
    if architecture != wanted:
        raise ConvertError(f"config.json reads back as {architecture}, written from {wanted}")


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


def _write_tokenizer(folder: Path, model_file: Path, config: cfg.Model) -> None:
    """`spiece.model` and what makes `AutoTokenizer` read it as T5's."""
    check_vocabulary(Pieces(model_file).size, config, model_file)
    shutil.copyfile(model_file, folder / "spiece.model")
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    special |= {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]}
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": EXTRA_IDS, "model_max_length": 10**6}
    write_json(folder / "tokenizer_config.json", settings | special)
    write_json(folder / "special_tokens_map.json", special)


# ----------------------------------------------------------------------------------------------------------------------
# Checking


def stored_dtype(hf_dir: str | Path) -> str:
    """The dtype of a directory's weights by NumPy's name, e.g. 'bfloat16'."""
    tensor = open_tensors(hf_dir)["shared.weight"]
    return tensor.read((slice(0, 1), slice(0, 1))).dtype.name


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
