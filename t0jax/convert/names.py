"""Which architecture a directory is of, and that architecture's names.

`t5_names` and `deberta_names` have one interface: MODEL_TYPES, VOCABULARY_FILE, `name_table(network)`,
`find_tensors(source, config)`, `read_config(source)`, `hf_config(config, dtype)`, `as_read(config)`,
`write_settings(folder, config)` and `write_tokenizer(folder, model_file, config)`. Neither knows the other.
"""

from types import ModuleType
from typing import Any

import t0jax
from t0jax import config as cfg
from t0jax import models
from t0jax.convert import deberta_names, t5_names
from t0jax.convert.entries import Entry
from t0jax.convert.files import ConvertError, Source

MARK = "exported_by"
"""The key of `config.json` by which a folder written here is known."""

ARCHITECTURES: dict[str, ModuleType] = {"t5": t5_names, "deberta": deberta_names}
_REFUSED = {
    "umt5": "it has a relative position bias in every layer, T5 one in each stack",
    "deberta": "it is DeBERTa v1, which projects positions apart; v3 says 'deberta-v2'",
}


def of(config: cfg.Model) -> ModuleType:
    """The module of names that `config.architecture` needs."""
    return ARCHITECTURES[config.architecture]


def name_table(network: models.Network) -> list[Entry]:
    """Every parameter of `network` with its Hugging Face names."""
    return of(network.config).name_table(network)


def hf_config(config: cfg.Model, dtype: str) -> dict[str, Any]:
    """The `config.json` of an export, for transformers 4 and 5."""
    return marked(of(config).hf_config(config, dtype))


def marked(about: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` that says it was written here."""
    return {MARK: f"t0jax {t0jax.__version__}", **about}


def read_source(source: Source) -> cfg.Model:
    """The architecture that a directory describes, with computing options at their defaults.

    Raises:
        ConvertError: no or broken `config.json`, or a model that is neither T5 nor DeBERTa-v3.
    """
    kind = source.config.get("model_type")
    for module in ARCHITECTURES.values():
        if kind in module.MODEL_TYPES:
            return module.read_config(source)
    read = "'t5' (v1.0, v1.1, LM-adapted, T0, Flan), 'mt5' and 'deberta-v2' (DeBERTa-v3)"
    reason = _REFUSED.get(str(kind), f"only {read} are read")
    raise ConvertError(
        f"{source.path / 'config.json'}: model_type {kind!r} cannot be converted: {reason}"
    )
