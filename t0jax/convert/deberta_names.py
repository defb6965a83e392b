"""DeBERTa-v3: parameters here and Hugging Face's tensors, and both `config.json`s.

A directory holds the encoder alone, or one stock model (sequence classification, multiple choice or token
classification), or the published layout of many tasks (`t0jax.convert.published`).
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t0jax import config as cfg
from t0jax import models
from t0jax.convert import published
from t0jax.convert.entries import Entry, table_of
from t0jax.convert.files import ConvertError, Source, Tensor, check_vocabulary, write_json
from t0jax.convert.main_head import main_task
from t0jax.data.structured.pieces import PairPieces
from t0jax.models import heads as head_banks

MODEL_TYPES = ("deberta-v2",)
VOCABULARY_FILE = "spm.model"
CLS_ID = 1
"""Of [CLS], the first token of every row."""
EMBEDDING = "deberta.embeddings.word_embeddings.weight"

_LAYER = "deberta.encoder.layer.{layer}"
_LINEAR = {  # kernel -> module; its bias beside it
    **{f"attention.{part}": f"attention.self.{part}_proj" for part in ("query", "key", "value")},
    "attention.out": "attention.output.dense",
    "mlp.wi": "intermediate.dense",
    "mlp.wo": "output.dense",
}
_NORMS = {
    "embedding_norm": "deberta.embeddings.LayerNorm",
    "relative_norm": "deberta.encoder.LayerNorm",
    "layers.attention_norm": f"{_LAYER}.attention.output.LayerNorm",
    "layers.mlp_norm": f"{_LAYER}.output.LayerNorm",
}
NAMES = {
    "embedding.embedding": EMBEDDING,
    "relative.embedding": "deberta.encoder.rel_embeddings.weight",
    "pooler.kernel": "pooler.dense.weight",
    "pooler.bias": "pooler.dense.bias",
    **{f"{ours}.scale": f"{theirs}.weight" for ours, theirs in _NORMS.items()},
    **{f"{ours}.bias": f"{theirs}.bias" for ours, theirs in _NORMS.items()},
    **{f"layers.{ours}": f"{_LAYER}.{theirs}.weight" for ours, theirs in _LINEAR.items()},
    **{f"layers.{ours}_bias": f"{_LAYER}.{theirs}.bias" for ours, theirs in _LINEAR.items()},
}
"""Parameter -> Hugging Face tensor, of all but the heads; `{layer}` as in `entries.table_of`."""

UNUSED = re.compile(
    r"(lm_predictions|mask_predictions|cls)\."  # the pre-training heads
    r"|deberta\.embeddings\.(position_ids$|position_embeddings\.)"  # not read: position_biased_input is false
)

# ----------------------------------------------------------------------------------------------------------------------
# Tensors


def name_table(network: models.Network) -> list[Entry]:
    """Every parameter of `network` with its Hugging Face names.

    One head without a task embedding is a stock model's; else the layout is the published one, with the main task's
    classifier written once more as a stock model has it.
    """
    config = network.config
    table = encoder_table(network)
    if is_stock(config):
        return table + [e for task in range(len(config.heads)) for e in classifier(network, task)]
    main = main_task(config.heads)
    copies = [dataclasses.replace(entry, copy=True) for entry in classifier(network, main)]
    return table + published.head_table(network) + copies


def is_stock(config: cfg.Model) -> bool:
    """Whether the names of a stock model hold all of it."""
    return len(config.heads) <= 1 and not (config.heads and config.task_embedding)


def encoder_table(network: models.Network) -> list[Entry]:
    """Everything but heads and task embedding; with the pooler where there is one."""
    return table_of(network, NAMES, as_they_are=("embedding",))


def classifier(network: models.Network, task: int) -> list[Entry]:
    """The head of one task under a stock model's names."""
    places = head_banks.layout(network.config.heads)
    bank = "tokens" if places.token[task] else "sequence"
    size = int(places.sizes[task])
    entries = []
    for path, name, first in (
        (("heads", bank), published.CLASSIFIER[0], int(places.columns[task])),
        (("heads", f"{bank}_bias"), published.CLASSIFIER[1], int(places.biases[task])),
    ):
        shape = network.shapes[path[0]][path[1]].shape
        spans = ((first, first + size),)
        entries.append(Entry(path, shape, (name,), transposed=len(shape) == 2, spans=spans))
    return entries


def find_tensors(source: Source, config: cfg.Model) -> dict[str, Tensor]:
    """The tensors that the name table asks for, and any that are strange, without those that nothing reads.

    Raises:
        ConvertError: the files are damaged, or those of the adapters do not fit beside them.
    """
    tensors = {_full_name(name): tensor for name, tensor in source.tensors.items()}
    unread = [
        name for name in tensors if UNUSED.match(name) or published.HEAD_TENSOR.fullmatch(name)
    ]
    heads = published.find_tensors(source)
    if heads or not config.heads:  # the main classifier is one of theirs, or of no task
        unread += published.CLASSIFIER
    last = len(config.heads) - 1
    if heads and last >= 0 and f"classifiers.{last}.weight" not in heads:  # it is a task of its own
        heads = published.add_classifier(heads, published.own_classifier(source), last)
    if all(head.kind == "token_classification" for head in config.heads):
        unread += ("pooler.dense.weight", "pooler.dense.bias")
    if heads and is_stock(config):
        heads = {name.replace("classifiers.0.", "classifier."): heads[name] for name in heads}
    return {name: tensors[name] for name in tensors if name not in unread} | heads


def _full_name(name: str) -> str:
    """A file of `DebertaV2Model` alone has no `deberta.` before its names."""
    return f"deberta.{name}" if name.startswith(("embeddings.", "encoder.")) else name


# ----------------------------------------------------------------------------------------------------------------------
# config.json

_SIZES = {
    "vocab_size": ("vocab_size", 128100),
    "d_model": ("hidden_size", 1536),
    "d_ff": ("intermediate_size", 6144),
    "num_layers": ("num_hidden_layers", 24),
    "num_heads": ("num_attention_heads", 24),
    "position_buckets": ("position_buckets", -1),
}
"""Field -> key of `config.json` and DebertaV2Config's value where it is absent (DeBERTa-v2-xlarge's)."""
_FIXED: dict[str, tuple[Any, Any, str]] = {
    "relative_attention": (False, True, "attention without relative positions"),
    "position_biased_input": (True, False, "absolute positions in its input"),
    "type_vocab_size": (0, 0, "embeddings of token types"),
    "conv_kernel_size": (0, 0, "a convolution beside the first layer"),
    "share_att_key": (False, True, "projections of positions apart from the contents'"),
    "norm_rel_ebd": ("none", "layer_norm", "relative embeddings without the norm"),
    "hidden_act": ("gelu", "gelu", "another activation"),
    "pooler_hidden_act": ("gelu", "gelu", "another activation in the pooler"),
}
"""Key -> DebertaV2Config's value where it is absent, DeBERTa-v3's, and what any other one means."""
_POSITIONS = {"c2p", "p2c"}

_KINDS: dict[str, tuple[cfg.HeadKind, ...]] = {
    "DebertaV2ForSequenceClassification": ("classification", "multilabel", "regression"),
    "DebertaV2ForMultipleChoice": ("multiple_choice",),
    "DebertaV2ForTokenClassification": ("token_classification",),
}
_PROBLEMS: dict[str, cfg.HeadKind] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
_NO_HEAD = ("DebertaV2Model", "DebertaV2ForMaskedLM", "DebertaV2ForPreTraining")


def read_config(source: Source) -> cfg.Model:
    """The architecture that `config.json` describes, with computing options at their defaults.

    Dropout is `hidden_dropout_prob` everywhere. The heads of the published layout are found in the files; an encoder
    alone leaves open whether tasks will have an embedding.

    Raises:
        ConvertError: what is not of DeBERTa-v3's form, by key and value; heads that cannot be told.
    """
    path, found = source.path / "config.json", source.config
    if "tasks" in found and "vocab_size" not in found:
        raise ConvertError(f"{source.path} holds adapters alone; give it beside their backbone")
    _check_form(found, path)
    sizes: dict[str, Any] = {
        ours: _count(found, key, value, path) for ours, (key, value) in _SIZES.items()
    }
    width, heads = sizes["d_model"], sizes["num_heads"]
    if width % heads:
        raise ConvertError(f"{path}: hidden_size {width} is no multiple of {heads} heads")
    for key, usual in (
        ("embedding_size", width),
        ("pooler_hidden_size", width),
        ("attention_head_size", width // heads),
    ):
        if found.get(key) not in (None, usual):
            raise ConvertError(f"{path}: {key} {found[key]!r} is not {usual}, as DeBERTa-v3 has it")
    bank = published.read_heads(source)
    if bank is None:
        own = _stock_heads(source)
    else:
        own = published.with_main(source, bank.heads, lambda: _stock_heads(source))
    return cfg.Model(
        architecture="deberta",
        **sizes,
        d_kv=width // heads,
        max_relative_positions=_farthest(found, path),
        layer_norm_epsilon=_number(found, "layer_norm_eps", 1e-7, path),
        dropout_rate=_number(found, "hidden_dropout_prob", 0.1, path),
        pad_token_id=found.get("pad_token_id") or 0,
        task_embedding=not own if bank is None else bank.task_embedding,
        heads=own,
    )


def _check_form(found: Mapping[str, Any], path: Path) -> None:
    for key, (absent, wanted, means) in _FIXED.items():
        value = absent if found.get(key) is None else found[key]
        if value != wanted:
            raise ConvertError(
                f"{path}: {key} is {value!r}: {means}, which DeBERTa-v3 ({key} {wanted!r}) has not"
            )
    value = found.get("pos_att_type") or []
    parts = value.lower().split("|") if isinstance(value, str) else value
    if {str(part).strip() for part in parts} != _POSITIONS:
        raise ConvertError(f"{path}: pos_att_type {value!r} is not DeBERTa-v3's 'p2c|c2p'")


def _count(found: Mapping[str, Any], key: str, absent: int, path: Path) -> int:
    value = found.get(key, absent)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConvertError(f"{path}: {key} {value!r} is not a number above 0, as DeBERTa-v3 has it")
    return value


def _number(found: Mapping[str, Any], key: str, absent: float, path: Path) -> float:
    value = found.get(key, absent)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConvertError(f"{path}: {key} {value!r} is not a number from 0 to 1")
    return float(value)


def _farthest(found: Mapping[str, Any], path: Path) -> int:
    key = "max_relative_positions"
    if found.get(key, -1) in (None, -1, 0):
        key = "max_position_embeddings"
    return _count(found, key, 512, path)


def _stock_heads(source: Source) -> tuple[cfg.Head, ...]:
    """The head of a stock model, by `architectures`; none of an encoder alone."""
    found, path = source.config, source.path / "config.json"
    architectures = found.get("architectures") or []
    if not architectures or set(architectures) & set(_NO_HEAD):
        return ()
    if architectures[0] not in _KINDS:
        raise ConvertError(
            f"{path}: architectures {architectures} cannot be converted; known are "
            f"{', '.join((*_KINDS, *_NO_HEAD))}"
        )
    kind = _KINDS[architectures[0]][0]
    labels = published.names_by_number(found.get("id2label")) or published.unnamed(
        _count(found, "num_labels", 2, path)
    )
    if kind == "classification":
        problem = found.get("problem_type") or (
            "regression" if len(labels) == 1 else "single_label_classification"
        )
        if problem not in _PROBLEMS:
            raise ConvertError(
                f"{path}: problem_type {problem!r} is none of {', '.join(_PROBLEMS)}"
            )
        kind = _PROBLEMS[problem]
    if kind in ("regression", "multiple_choice"):
        labels = ()
    task = str(found.get("finetuning_task") or source.path.resolve().name or "default")
    return (cfg.Head(task, kind, labels, published.group_of(kind, labels)),)


def hf_config(config: cfg.Model, dtype: str) -> dict[str, Any]:
    """The `config.json` of an export, for transformers 4 and 5: its main task is what a stock model is."""
    about = encoder_config(config, dtype)
    if config.heads:
        about |= head_config(config.heads[main_task(config.heads)])
    else:
        about["architectures"] = ["DebertaV2Model"]
    return about if is_stock(config) else about | published.describe(config.heads)


def encoder_config(config: cfg.Model, dtype: str) -> dict[str, Any]:
    """What `config.json` says of everything but heads."""
    positions = config.max_relative_positions
    return {
        "model_type": MODEL_TYPES[0],
        **{key: getattr(config, ours) for ours, (key, _) in _SIZES.items()},
        **{key: wanted for key, (_, wanted, _) in _FIXED.items() if key != "conv_kernel_size"},
        "pos_att_type": ["p2c", "c2p"],
        "max_position_embeddings": positions,
        "max_relative_positions": -1,
        "layer_norm_eps": config.layer_norm_epsilon,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.dropout_rate,
        "pooler_dropout": 0,
        "pooler_hidden_size": config.d_model,
        "initializer_range": 0.02,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
    }


def head_config(head: cfg.Head) -> dict[str, Any]:
    """What `config.json` says of a stock model's head."""
    name = next(name for name, kinds in _KINDS.items() if head.kind in kinds)
    about: dict[str, Any] = {"architectures": [name], "finetuning_task": head.task}
    if head.kind == "multiple_choice":
        return about
    labels = head.labels or published.unnamed(1)
    about["id2label"] = {str(number): label for number, label in enumerate(labels)}
    about["label2id"] = {label: number for number, label in enumerate(labels)}
    problems = [problem for problem, kind in _PROBLEMS.items() if kind == head.kind]
    return about | ({"problem_type": problems[0]} if problems else {})


def as_read(config: cfg.Model) -> cfg.Model:
    """`config` as `read_config` finds it in an export: fields of T5 alone are at their defaults."""
    ours = {f.name: getattr(config, f.name) for f in dataclasses.fields(cfg.Model)}
    kept = (*_SIZES, *cfg.COMPUTE_FIELDS, "architecture", "d_kv", "max_relative_positions")
    kept = (*kept, "layer_norm_epsilon", "pad_token_id", "task_embedding", "heads")
    read = cfg.Model(**{name: ours[name] for name in kept})
    if not read.heads:
        return dataclasses.replace(read, task_embedding=True)
    return one_head(read, 0) if is_stock(read) else read


def one_head(config: cfg.Model, task: int) -> cfg.Model:
    """The architecture of one task's stock model."""
    head = config.heads[task]
    head = dataclasses.replace(head, group=published.group_of(head.kind, head.labels))
    return dataclasses.replace(config, heads=(head,), task_embedding=False)


# ----------------------------------------------------------------------------------------------------------------------
# Other files


def write_settings(folder: Path, config: cfg.Model) -> None:
    """Nothing: `config.json` says everything."""


def write_tokenizer(folder: Path, model_file: Path, config: cfg.Model) -> None:
    """`spm.model` and what makes `AutoTokenizer` read it as DeBERTa-v3's."""
    pieces = PairPieces(model_file)
    check_vocabulary(pieces.size, config, model_file)
    shutil.copyfile(model_file, folder / VOCABULARY_FILE)
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "unk", "pad", "mask")
    }
    special |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    settings = {
        "tokenizer_class": "DebertaV2Tokenizer",
        "do_lower_case": False,
        "split_by_punct": False,
        "vocab_type": "spm",
        "model_max_length": config.max_relative_positions,
    }
    write_json(folder / "tokenizer_config.json", settings | special)
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "added_tokens.json", {"[MASK]": pieces.mask_id})
