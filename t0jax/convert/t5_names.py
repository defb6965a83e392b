"""T5: one table of names between parameters here and Hugging Face's tensors, and both `config.json`s."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config as cfg
from t0jax import models
from t0jax.convert.entries import Entry, table_of
from t0jax.convert.files import ConvertError, Source, Tensor, check_vocabulary, write_json
from t0jax.data.vocabulary import EXTRA_IDS, Pieces

MODEL_TYPES = ("t5", "mt5")
VOCABULARY_FILE = "spiece.model"

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


def name_table(network: models.Network) -> list[Entry]:
    """Every parameter of `network` with its Hugging Face names."""
    return table_of(network, NAMES, as_they_are=("embedding",))


def find_tensors(source: Source, config: cfg.Model) -> dict[str, Tensor]:
    """The tensors that the name table asks for, and any that are strange, without those that no model reads.

    Raises:
        ConvertError: the files or the tied head are damaged.
    """
    if source.adapters is not None:
        raise ConvertError(f"{source.path} is a T5; adapters belong to a DeBERTa-v3")
    tensors = {name: tensor for name, tensor in source.tensors.items() if name not in UNUSED}
    if config.tie_word_embeddings and "lm_head.weight" in tensors and "shared.weight" in tensors:
        _check_tied(tensors, source.path)
        del tensors["lm_head.weight"]
    return tensors


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


_SAME_KEYS = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon"),
    *("dropout_rate", "pad_token_id", "eos_token_id", "decoder_start_token_id"),
)
_T5_DEFAULTS: dict[str, Any] = {"d_ff": 2048, "num_layers": 6, "num_heads": 8}
"""T5Config's values for absent keys where they differ from `config.Model`'s, which are v1.1 small's."""
DEBERTA_FIELDS = ("position_buckets", "max_relative_positions", "task_embedding", "heads")
"""Fields of `config.Model` that no T5 has."""


def read_config(source: Source) -> cfg.Model:
    """The architecture that `config.json` describes, with computing options at their defaults.

    Raises:
        ConvertError: an activation that T5 has not.
    """
    path, found = source.path / "config.json", source.config
    kind = found["model_type"]
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


def as_read(config: cfg.Model) -> cfg.Model:
    """`config` as `read_config` finds it in an export."""
    defaults = {field.name: field.default for field in dataclasses.fields(cfg.Model)}
    plain = {name: defaults[name] for name in DEBERTA_FIELDS}
    return dataclasses.replace(config, num_decoder_layers=config.decoder_layers, **plain)


def write_settings(folder: Path, config: cfg.Model) -> None:
    """`generation_config.json`: where transformers 5 looks for token ids."""
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    write_json(folder / "generation_config.json", {name: getattr(config, name) for name in names})


def write_tokenizer(folder: Path, model_file: Path, config: cfg.Model) -> None:
    """`spiece.model` and what makes `AutoTokenizer` read it as T5's."""
    check_vocabulary(Pieces(model_file).size, config, model_file)
    shutil.copyfile(model_file, folder / VOCABULARY_FILE)
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    special |= {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]}
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": EXTRA_IDS, "model_max_length": 10**6}
    write_json(folder / "tokenizer_config.json", settings | special)
    write_json(folder / "special_tokens_map.json", special)
