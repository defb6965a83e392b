"""Weights of transformers' DebertaV2 modules as a parameter tree, written out by hand for the tests."""

from typing import Any

import numpy as np

from t0jax import config
from t0jax.models.heads import layout

ATTENTION = {
    "query": "attention.self.query_proj",
    "key": "attention.self.key_proj",
    "value": "attention.self.value_proj",
    "out": "attention.output.dense",
}
NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}


def from_torch(modules: dict[str, Any], model: config.Model, gradients: bool = False) -> Any:
    """The tree of `modules` (by task name, one encoder and pooler between them), or of their gradients."""

    def read(module: Any, name: str) -> np.ndarray:
        parameter = module.get_parameter(name)
        if gradients and parameter.grad is None:
            return np.zeros(parameter.shape, np.float32)
        value = (parameter.grad if gradients else parameter).detach().numpy().copy()
        return value.T if value.ndim == 2 and "embeddings" not in name else value

    first = next(iter(modules.values()))

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": read(first, f"{name}.weight"), "bias": read(first, f"{name}.bias")}

    layers = [f"deberta.encoder.layer.{i}" for i in range(model.num_layers)]

    def stack(name: str) -> np.ndarray:
        return np.stack([read(first, f"{layer}.{name}") for layer in layers])

    attention = {ours: stack(f"{name}.weight") for ours, name in ATTENTION.items()}
    attention |= {f"{ours}_bias": stack(f"{name}.bias") for ours, name in ATTENTION.items()}
    mlp = {"wi": "intermediate.dense", "wo": "output.dense"}
    tree = {
        "embedding": {"embedding": read(first, "deberta.embeddings.word_embeddings.weight")},
        "embedding_norm": norm("deberta.embeddings.LayerNorm"),
        "relative": {"embedding": read(first, "deberta.encoder.rel_embeddings.weight")},
        "relative_norm": norm("deberta.encoder.LayerNorm"),
        "layers": {
            "attention": attention,
            "mlp": {ours: stack(f"{name}.weight") for ours, name in mlp.items()}
            | {f"{ours}_bias": stack(f"{name}.bias") for ours, name in mlp.items()},
            **{
                ours: {"scale": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}
                for ours, name in NORMS.items()
            },
        },
        "task_embedding": np.zeros((len(model.heads), model.d_model), np.float32),
        "heads": _bank(modules, model, read),
    }
    if any(head.kind != "token_classification" for head in model.heads):
        pooled = next(module for module in modules.values() if hasattr(module, "pooler"))
        tree["pooler"] = {
            "kernel": read(pooled, "pooler.dense.weight"),
            "bias": read(pooled, "pooler.dense.bias"),
        }
    return tree


def _bank(modules: dict[str, Any], model: config.Model, read: Any) -> dict[str, np.ndarray]:
    """Kernel columns from the classifier of the first task that has them (gradients of all), every task's biases."""
    places, bank = layout(model.heads), {}
    for name, (columns, biases, _), token in (
        ("sequence", places.sequence, False),
        ("tokens", places.tokens, True),
    ):
        if not columns:
            continue
        kernel = np.zeros((model.d_model, columns), np.float32)
        bias = np.zeros(biases, np.float32)
        for task, head in enumerate(model.heads):
            if places.token[task] == token:
                at, own, size = (
                    int(x[task]) for x in (places.columns, places.biases, places.sizes)
                )
                kernel[:, at : at + size] = read(modules[head.task], "classifier.weight")
                bias[own : own + size] = read(modules[head.task], "classifier.bias")
        bank |= {name: kernel, f"{name}_bias": bias}
    return bank
