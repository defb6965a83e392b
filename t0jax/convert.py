"""T5 to and from Hugging Face directories: one table of names, tensors read and written one at a time.

Reading needs `config.json` and `model.safetensors` (or its shards with their index). Torch is imported for
nothing but `pytorch_model.bin`, and only where the caller allows pickles.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

import t0jax
from t0jax import config as cfg
from t0jax import models
from t0jax.data.vocabulary import EXTRA_IDS, Pieces

SHARD_BYTES = 5_000_000_000
"""Largest safetensors file written; Hugging Face's own default."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MARK = "exported_by"
"""The key of `config.json` by which a folder written here is known."""


Bound = tuple[models.Network, models.Params]


class ConvertError(cfg.UserError, ValueError):
    """A directory that cannot be read or written; the message names the file or tensor."""


# ----------------------------------------------------------------------------------------------------------------------
# Names

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_STACK = {
    "relative_bias.embedding": "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "final_norm.scale": "final_layer_norm.weight",
    "layers.attention_norm.scale": "block.{layer}.layer.0.layer_norm.weight",
    "layers.cross_norm.scale": "block.{layer}.layer.1.layer_norm.weight",
    "layers.mlp_norm.scale": "block.{layer}.layer.{last}.layer_norm.weight",
    **{
        f"layers.{ours}.{part}": f"block.{{layer}}.layer.{index}.{theirs}.{letter}.weight"
        for ours, index, theirs in (
            ("attention", 0, "SelfAttention"),
            ("cross", 1, "EncDecAttention"),
        )
        for part, letter in _ATTENTION.items()
    },
    **{
        f"layers.mlp.{name}": f"block.{{layer}}.layer.{{last}}.DenseReluDense.{name}.weight"
        for name in ("wi", "wi_0", "wi_1", "wo")
    },
}
NAMES = {
    "shared.embedding": "shared.weight",
    "lm_head": "lm_head.weight",
    **{
        f"{stack}.{ours}": f"{stack}.{theirs}".replace("{last}", last)
        for stack, last in (("encoder", "1"), ("decoder", "2"))
        for ours, theirs in _STACK.items()
        if stack == "decoder" or "cross" not in ours
    },
}
"""Parameter -> Hugging Face tensor; `{layer}` stands for each index of a stacked parameter's first axis."""

UNUSED = frozenset(
    {
        # Copies of the embedding, and a bias that no forward pass reads: in files of 2020 and before.
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    }
)


@dataclass(frozen=True)
class Entry:
    """Where one parameter lives in a Hugging Face file."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    """One name, or one a layer."""
    stacked: bool
    transposed: bool
    """Torch's linear layers are [outputs, inputs]; kernels here are [inputs, outputs]."""

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of each tensor in the file."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def name_table(network: models.Network) -> list[Entry]:
    """Every parameter of `network` with its Hugging Face names."""
    table = []
    for keys, leaf in jax.tree.leaves_with_path(network.shapes):
        path = tuple(key.key for key in keys)
        pattern = NAMES[".".join(path)]
        stacked = "layers" in path
        layers = range(leaf.shape[0]) if stacked else range(1)
        tensors = tuple(pattern.replace("{layer}", str(i)) for i in layers)
        transposed = len(leaf.shape) - stacked == 2 and path[-1] != "embedding"
        table.append(Entry(path, leaf.shape, tensors, stacked, transposed))
    return table


# ----------------------------------------------------------------------------------------------------------------------
# config.json

_SAME_KEYS = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon"),
    *("dropout_rate", "pad_token_id", "eos_token_id", "decoder_start_token_id"),
)
_T5_DEFAULTS = {"d_ff": 2048, "num_layers": 6, "num_heads": 8}
"""T5Config's values for absent keys where they differ from `config.Model`'s, which are v1.1 small's."""
_REFUSED = {"umt5": "it has a relative position bias in every layer, T5 one in each stack"}


def read_config(hf_dir: str | Path) -> cfg.Model:
    """The architecture that `config.json` describes, with computing options at their defaults.

    Raises:
        ConvertError: no or broken `config.json`, or a model that is not T5.
    """
    path = Path(hf_dir) / "config.json"
    found = _read_json(path)
    kind = found.get("model_type")
    if kind not in ("t5", "mt5"):
        reason = _REFUSED.get(
            kind, "only 't5' (v1.0, v1.1, LM-adapted, T0, Flan) and 'mt5' are read"
        )
        raise ConvertError(f"{path}: model_type {kind!r} cannot be converted: {reason}")
    activation = found.get("feed_forward_proj", "gated-gelu" if kind == "mt5" else "relu")
    if activation not in ("relu", "gated-gelu"):
        raise ConvertError(
            f"{path}: feed_forward_proj {activation!r}; 'relu' or 'gated-gelu' are known"
        )
    # transformers >= 5 writes tie_word_embeddings true for every T5; what it computes hangs on
    # scale_decoder_outputs. Its mT5 has no such scale.
    tied = found.get("scale_decoder_outputs", found.get("tie_word_embeddings", True))
    same = {key: found[key] for key in _SAME_KEYS if found.get(key) is not None}
    return cfg.Model(
        **_T5_DEFAULTS | same,
        num_decoder_layers=found.get("num_decoder_layers"),
        feed_forward_proj=activation,
        tie_word_embeddings=bool(tied) and kind == "t5",
    )


def hf_config(config: cfg.Model, dtype: str) -> dict[str, Any]:
    """The `config.json` of an export, for transformers 4 and 5."""
    return {
        MARK: f"t0jax {t0jax.__version__}",
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{key: getattr(config, key) for key in _SAME_KEYS},
        "num_decoder_layers": config.decoder_layers,
        "feed_forward_proj": config.feed_forward_proj,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ConvertError(f"{path} does not exist; a Hugging Face directory holds it") from None
    except ValueError as error:
        raise ConvertError(f"{path} is not JSON ({error}); fetch the file again") from None


# ----------------------------------------------------------------------------------------------------------------------
# Reading tensors

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file that stays on disk until it is read."""

    shape: tuple[int, ...]
    read: Callable[[Slices], np.ndarray]
    """The part within the slices, in the file's dtype."""


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
                f"{hf_dir} holds {stem} and no safetensors; a pickle is read only with --allow_pickle"
            )
        return {name: tensor for file in files for name, tensor in opener(file).items()}
    raise ConvertError(f"{hf_dir} holds neither model.safetensors nor pytorch_model.bin")


def _files(hf_dir: Path, stem: str) -> list[Path]:
    index = hf_dir / f"{stem}.index.json"
    if not index.exists():
        return [hf_dir / stem] if (hf_dir / stem).exists() else []
    files = [hf_dir / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    for file in files:
        if not file.exists():
            raise ConvertError(
                f"{file} is named by {index.name} but does not exist; fetch it again"
            )
    return files


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        handle = safetensors.safe_open(file, "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise ConvertError(f"{file} is truncated or damaged ({error}); fetch it again") from None
    tensors = {}
    for name in handle.keys():  # noqa: SIM118 (a file, not a dict)
        part = handle.get_slice(name)
        tensors[name] = Tensor(tuple(part.get_shape()), part.__getitem__)
    return tensors


def _open_pickle(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConvertError(f"{file} cannot be read as plain weights: {error}") from None

    def tensor(value: torch.Tensor) -> Tensor:
        return Tensor(tuple(value.shape), lambda slices: value[slices].float().numpy())

    return {name: tensor(value) for name, value in state.items()}


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
        _set(params, entry.path, _load_entry(entry, tensors, sharding))
    return params


def _load_entry(
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
    head, shared = (_whole(tensors[name]) for name in ("lm_head.weight", "shared.weight"))
    if not np.array_equal(head, shared):
        raise ConvertError(
            f"{where}: config.json ties the head to the embedding, but lm_head.weight is not shared.weight;"
            ' set "tie_word_embeddings": false there if the model is a v1.1'
        )


def _some(word: str, names: list[str]) -> str:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {word}" + (f" ({listed})" if names else "")


def _whole(tensor: Tensor) -> np.ndarray:
    return tensor.read(tuple(slice(0, n) for n in tensor.shape))


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

    Everything goes into a folder beside `out_dir` first, is read back and compared, then takes its place.

    Args:
        params: the model, every array addressable from this process.
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
    _check_replaceable(out_dir)
    with _replacing(out_dir) as folder:
        if tokenizer_path is not None:
            _write_tokenizer(folder, Path(tokenizer_path), config)
        _write_json(folder / "config.json", hf_config(config, dtype))
        _write_json(folder / "generation_config.json", _generation_config(config))
        _write_tensors(folder, params, config, DTYPES[dtype], shard_bytes)
        _verify(folder, params, config, DTYPES[dtype])
    return out_dir


def _check_replaceable(out_dir: Path) -> None:
    if out_dir.is_dir() and any(out_dir.iterdir()):
        config = out_dir / "config.json"
        if not config.exists() or MARK not in _read_json(config):
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
        if not getattr(leaf, "is_fully_addressable", True):
            raise ConvertError(
                f"{'.'.join(entry.path)} is spread over processes; export with a single one"
            )
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
            _save_shard(shard, folder / file)
            shard = {}
    if len(set(plan.values())) > 1:
        size = sum(np.prod(entry.shape) for entry in name_table(models.build(config)))
        index = {"metadata": {"total_size": int(size) * dtype.itemsize}, "weight_map": plan}
        _write_json(folder / "model.safetensors.index.json", index)


def _save_shard(shard: dict[str, np.ndarray], file: Path) -> None:
    try:
        save_file(shard, file, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{file.name} could not be written: {error}") from error


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
        found = _whole(written.pop(name))
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


def _generation_config(config: cfg.Model) -> dict[str, int]:
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(config, name) for name in names}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizer


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
    _write_json(folder / "tokenizer_config.json", settings | special)
    _write_json(folder / "special_tokens_map.json", special)


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
