"""A plain torch loop as tasknet trains: single-task micro-batches padded to their longest row, one shared encoder."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config, convert, models
from t0jax.models.heads import layout

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Item:
    """What is answered together, without padding."""

    task: int
    rows: tuple[np.ndarray, ...]
    """Token ids; of a question one array an option."""
    label: Any
    """Class, right option, value, label vector [labels] or token labels [L] (-1: none)."""


def unpack(batch: Batch, heads: Sequence[config.Head]) -> list[Item]:
    """The items of a batch in the trainer's layout."""
    lengths = batch["encoder_segment_ids"].sum(axis=1)
    items = []
    for row in np.flatnonzero(batch["loss_weights"]):
        task = int(batch["task_ids"][row])
        places = np.flatnonzero((batch["item_ids"] == batch["item_ids"][row]) & (lengths > 0))
        rows = tuple(batch["encoder_input_tokens"][i, : lengths[i]] for i in places)
        label: Any = int(batch["label_ids"][row])
        if heads[task].kind == "multiple_choice":
            label = int(np.flatnonzero(places == row)[0])
        elif heads[task].kind == "regression":
            label = batch["label_values"][row, 0]
        elif heads[task].kind == "multilabel":
            label = batch["label_values"][row, : heads[task].columns]
        elif heads[task].kind == "token_classification":
            label = batch["token_labels"][row, : lengths[row]]
        items.append(Item(task, rows, label))
    return items


def micro_batches(items: Sequence[Item], rows: int, seed: int = 0) -> list[list[Item]]:
    """Items of one task each, about `rows` rows, in random order: tasks come in proportion to their items.

    A task's items are spread evenly, so that none is left over.
    """
    groups: dict[tuple[int, int], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.task, len(item.rows)].append(item)
    batches = []
    for (_, options), group in groups.items():
        count = -(-len(group) // max(1, rows // options))
        batches += [group[i::count] for i in range(count)]
    order = np.random.default_rng(seed).permutation(len(batches))
    return [batches[i] for i in order]


def tasknet_pass(
    settings: config.Config, params: models.Params, batches: Sequence[Sequence[Item]]
) -> tuple[Callable[[], list[float]], Callable[[], float]]:
    """(a training pass over `batches`: their losses; the mean loss of an item before any, without dropout).

    From our `params`. On CUDA where torch has it, under autocast with `model.dtype` bfloat16.

    Raises:
        config.UserError: torch or transformers is missing.
    """
    try:
        import torch
        from transformers import DebertaV2Model
    except ImportError as error:
        raise config.UserError(f"the comparison needs torch and transformers: {error}") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        convert.save_params(params, settings.model, Path(folder) / "hf")
        encoder = DebertaV2Model.from_pretrained(Path(folder) / "hf")
    network = _network(encoder, settings.model, params).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.optimizer.learning_rate,
        weight_decay=settings.optimizer.weight_decay,
    )
    half = torch.autocast(device, torch.bfloat16, enabled=settings.model.dtype == "bfloat16")
    placed = [[x.to(device) for x in _tensors(batch, settings.model)] for batch in batches]
    tasks = [batch[0].task for batch in batches]

    def run() -> list[float]:
        network.train()
        losses = []
        for task, tensors in zip(tasks, placed, strict=True):
            with half:
                loss = network(task, *tensors)
            optimizer.zero_grad()
            loss.backward()
            if settings.optimizer.clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), settings.optimizer.clip_norm)
            optimizer.step()
            losses.append(loss.detach())
        return [float(loss) for loss in losses]

    @torch.no_grad()
    def first() -> float:
        network.eval()
        sums = [
            float(network(task, *tensors)) * len(batch)
            for task, tensors, batch in zip(tasks, placed, batches, strict=True)
        ]
        return sum(sums) / sum(map(len, batches))

    return run, first


def _tensors(batch: Sequence[Item], model: config.Model) -> list[Any]:
    """Token ids, mask [B, options, L] and labels of a micro-batch."""
    import torch

    length = max(len(row) for item in batch for row in item.rows)
    ids = np.zeros((len(batch), len(batch[0].rows), length), np.int64)
    for i, item in enumerate(batch):
        for j, row in enumerate(item.rows):
            ids[i, j, : len(row)] = row
    labels = [item.label for item in batch]
    if model.heads[batch[0].task].kind == "token_classification":
        labels = [np.pad(x, (0, length - len(x)), constant_values=-1) for x in labels]
    mask = torch.from_numpy((ids != model.pad_token_id).astype(np.int64))
    return [torch.from_numpy(ids), mask, torch.from_numpy(np.array(labels))]


def _network(encoder: Any, model: config.Model, params: models.Params) -> Any:
    """A torch module of (task, ids, mask, labels) -> loss."""
    import torch
    from torch import nn

    banks, heads = layout(model.heads), params["heads"]

    def tensor(x: Any) -> Any:
        return torch.from_numpy(np.array(x))

    class Tasknet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.dropout = nn.Dropout(model.dropout_rate)
            self.vectors = nn.Parameter(tensor(params["task_embedding"]))
            if "pooler" in params:
                self.pooler = nn.Linear(model.d_model, model.d_model)
                self.pooler.weight = nn.Parameter(tensor(params["pooler"]["kernel"]).T.contiguous())
                self.pooler.bias = nn.Parameter(tensor(params["pooler"]["bias"]))
            self.weights, self.biases = nn.ParameterDict(), nn.ParameterList()
            for task in range(len(model.heads)):
                bank = "tokens" if banks.token[task] else "sequence"
                at, size = int(banks.columns[task]), int(banks.sizes[task])
                if self.key(task) not in self.weights:
                    columns = tensor(heads[bank][:, at : at + size])
                    self.weights[self.key(task)] = nn.Parameter(columns.T.contiguous())
                at = int(banks.biases[task])
                self.biases.append(nn.Parameter(tensor(heads[f"{bank}_bias"][at : at + size])))

        def key(self, task: int) -> str:
            return f"{banks.token[task]}{banks.columns[task]}"

        def forward(self, task: int, ids: Any, mask: Any, labels: Any) -> Any:
            words = self.encoder.embeddings.word_embeddings(ids.flatten(0, 1))
            if not self.training or np.random.random() >= model.task_embedding_drop:
                first = words[:, :1] + self.vectors[task]
                words = torch.cat([first, words[:, 1:]], dim=1)
            hidden = self.encoder(inputs_embeds=words, attention_mask=mask.flatten(0, 1))[0]
            kind = model.heads[task].kind
            if kind != "token_classification":
                hidden = nn.functional.gelu(self.pooler(hidden[:, 0]))
            weight, bias = self.weights[self.key(task)], self.biases[task]
            logits = nn.functional.linear(self.dropout(hidden), weight, bias).float()
            return loss_of(kind, logits, labels, ids.shape)

    def loss_of(kind: str, logits: Any, labels: Any, shape: Any) -> Any:
        if kind == "multiple_choice":
            return nn.functional.cross_entropy(logits.view(shape[:2]), labels)
        if kind == "classification":
            return nn.functional.cross_entropy(logits, labels)
        if kind == "regression":
            return nn.functional.mse_loss(logits[:, 0], labels.float())
        if kind == "multilabel":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
        flat = logits.flatten(0, 1), labels.long().flatten()
        return nn.functional.cross_entropy(*flat, ignore_index=-1)

    return Tasknet()
