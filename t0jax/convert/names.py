"""One table of names between T5's parameters here and Hugging Face's tensors, and both `config.json`s."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import t0jax
from t0jax import config as cfg
from t0jax import models
from t0jax.convert.files import ConvertError, read_json

MARK = "exported_by"
"""The key of `config.json` by which a folder written here is known."""

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

    def leaf(self, tree: models.Params) -> Any:
        """What a tree of the parameters' structure holds for it."""
        for key in self.path:
            tree = tree[key]
        return tree


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
    found = read_json(path)
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


def generation_config(config: cfg.Model) -> dict[str, int]:
    """The `generation_config.json` of an export: where transformers 5 looks for token ids."""
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(config, name) for name in names}
