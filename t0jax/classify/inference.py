"""Zero-shot classification by natural language inference, as transformers' `ZeroShotClassificationPipeline` has it.

Each candidate label becomes a hypothesis, "This example is {label}."; how far a text entails it is the label's score.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t0jax.classify.inputs import ClassifyError
from t0jax.config import Head
from t0jax.scoring.heads import log_softmax

log = logging.getLogger("t0jax")

TEMPLATE = "This example is {}."
Logits = Callable[[Sequence[tuple[str, str]]], list[np.ndarray]]
"""(premise, hypothesis) pairs -> outputs of the head, [labels] each."""


class ZeroShot:
    """Classifies texts by any labels. Made by `Multitask.zero_shot`."""

    def __init__(self, head: Head, logits: Logits):
        """
        Args:
            head: of natural language inference.
            logits: what it says of pairs; too long ones lose text of the premise alone.
        """
        self.head, self._logits = head, logits
        self.entailment, self.contradiction = entailment_ids(head.labels)

    def __call__(
        self,
        sequences: str | Sequence[str],
        candidate_labels: str | Sequence[str],
        hypothesis_template: str = TEMPLATE,
        multi_label: bool = False,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Scores of the labels, the best first.

        Args:
            sequences: one text or several.
            candidate_labels: a list, or a text with commas between.
            hypothesis_template: with `{}` where the label goes.
            multi_label: each label is true or not by itself; else they compete and their scores add up to 1.

        Returns:
            `sequence`, `labels` and `scores`; a list of them for several texts.

        Raises:
            ClassifyError: no label, an empty one or one twice, no text, or a template without a place.
        """
        labels = _labels(candidate_labels)
        _check(sequences, labels, hypothesis_template)
        texts = [sequences] if isinstance(sequences, str) else list(sequences)
        hypotheses = [_filled(hypothesis_template, label) for label in labels]
        pairs = [(text, hypothesis) for text in texts for hypothesis in hypotheses]
        logits = np.stack(self._logits(pairs)).reshape(len(texts), len(labels), -1)
        found = [
            _sorted(text, labels, self._scores(of_text, multi_label))
            for text, of_text in zip(texts, logits, strict=True)
        ]
        return found[0] if isinstance(sequences, str) else found

    def _scores(self, logits: np.ndarray, multi_label: bool) -> np.ndarray:
        """[candidates, outputs] -> [candidates]."""
        if multi_label or len(logits) == 1:
            against = logits[:, [self.contradiction, self.entailment]]
            return np.exp(log_softmax(against))[:, 1]
        return np.exp(log_softmax(logits[:, self.entailment]))


def entailment_ids(labels: Sequence[str]) -> tuple[int, int]:
    """(entailment's number, contradiction's).

    The first label that begins with "entail", else the last; and the first label, or the last where entailment is the
    first: transformers' rule, right for (entailment, neutral, contradiction) and its reverse.
    """
    found = [k for k, label in enumerate(labels) if label.lower().startswith("entail")]
    if not found:
        log.warning("none of the labels %s begins with 'entail'; the last one is taken", labels)
    entailment = found[0] if found else len(labels) - 1
    return entailment, len(labels) - 1 if entailment == 0 else 0


def _labels(given: str | Sequence[str]) -> list[str]:
    if not isinstance(given, str):
        return list(given)
    return [label.strip() for label in given.split(",")] if given.strip() else []


def _check(sequences: Any, labels: Sequence[str], template: str) -> None:
    if not labels or not sequences:
        raise ClassifyError("zero-shot classification needs a text and a candidate label at least")
    texts = [sequences] if isinstance(sequences, str) else list(sequences)
    if not all(isinstance(text, str) for text in [*texts, *labels]):
        raise ClassifyError("zero-shot classification takes texts and labels that are texts")
    for number, label in enumerate(labels):
        if not label.strip():
            raise ClassifyError(
                f"candidate label {number} of {list(labels)} is empty; leave it out"
            )
        if label in labels[:number]:
            raise ClassifyError(f"candidate label {label!r} is given twice; leave one out")
    if _filled(template, labels[0]) == template:
        raise ClassifyError(f"the hypothesis template {template!r} has no {{}} for the label")


def _filled(template: str, label: str) -> str:
    try:
        return template.format(label)
    except (LookupError, ValueError, AttributeError) as error:
        raise ClassifyError(
            f"the hypothesis template {template!r} cannot be filled ({error!r}); it has {{}} where the label goes"
        ) from None


def _sorted(text: str, labels: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
    order = np.argsort(scores)[::-1]
    return {
        "sequence": text,
        "labels": [labels[k] for k in order],
        "scores": [float(scores[k]) for k in order],
    }
