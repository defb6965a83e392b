"""From a head's outputs to what a user reads: labels with scores, as transformers' pipelines give them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t0jax.config import Head
from t0jax.scoring.heads import log_softmax, sigmoid

Answer = dict[str, Any]
"""`label` and `score`, and what the kind of task adds."""


def ranked(head: Head, logits: np.ndarray, top_k: int | None) -> list[Answer]:
    """Labels by falling score: probabilities, of multi-label tasks each label's own, of regression the value."""
    if head.kind == "regression":
        return [{"label": (*head.labels, "LABEL_0")[0], "score": float(logits[0])}]
    scores = sigmoid(logits) if head.kind == "multilabel" else np.exp(log_softmax(logits))
    return _sorted(
        [{"label": n, "score": float(s)} for n, s in zip(head.labels, scores, strict=True)]
    )[:top_k]


def options(texts: Sequence[str], logits: np.ndarray, top_k: int | None) -> list[Answer]:
    """Options of a question by falling probability, each with its `index`."""
    scores = np.exp(log_softmax(logits))
    found = [
        {"label": text, "score": float(score), "index": k}
        for k, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
    return _sorted(found)[:top_k]


def _sorted(answers: list[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: -answer["score"])


def words(
    head: Head, texts: Sequence[str], first: Sequence[int], logits: np.ndarray
) -> list[Answer]:
    """The likeliest label of every word, by its first token; a word that was cut off has none and no score."""
    found = []
    for index, (word, place) in enumerate(zip(texts, first, strict=True)):
        label, score = None, None
        if place >= 0:
            scores = np.exp(log_softmax(logits[place]))
            best = int(np.argmax(scores))
            label, score = head.labels[best], float(scores[best])
        found.append({"word": word, "label": label, "score": score, "index": index})
    return found


def grouped(answers: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Words with B- and I- labels of one entity together: its `label`, mean `score`, `word`s, `start` and `end`.

    As transformers' `aggregation_strategy="simple"` joins them: an I- of another type begins an entity. `end` is the
    number of the word after the last.
    """
    groups: list[list[Mapping[str, Any]]] = []
    open_kind = ""
    for answer in answers:
        label = answer["label"] or "O"
        prefix, dash, kind = label.partition("-")
        kind = kind if dash else label
        if label != "O":
            if prefix == "B" or kind != open_kind:
                groups.append([])
            groups[-1].append(answer)
        open_kind = "" if label == "O" else kind
    return [
        {
            "label": group[0]["label"].partition("-")[2] or group[0]["label"],
            "score": float(np.mean([answer["score"] for answer in group])),
            "word": " ".join(answer["word"] for answer in group),
            "start": group[0]["index"],
            "end": group[-1]["index"] + 1,
        }
        for group in groups
    ]
