"""Metrics of T0's text-to-text tasks, by the names that promptsource's metadata gives them; values in percent.

For seqio's own evaluator, which decodes with the model. Rank classification, which T0 is judged by, is elsewhere
(`t0jax.evaluate`, `t0jax.data.ranking`). ROUGE and BLEU come from the packages `rouge-score` and `sacrebleu`, asked
for only when a task that names them is evaluated.
"""

import collections
import importlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def stripped(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> str:
    """seqio postprocessor: a target or a prediction without outer blanks."""
    del example, is_target
    return text.strip()


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target."""
    hits = [target == prediction for target, prediction in zip(targets, predictions, strict=True)]
    return {"accuracy": 100.0 * sum(hits) / len(hits)}


def squad(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match and token F1 of normalised answers (Rajpurkar et al. 2016, official script v1.1)."""
    pairs = [(_answer(t), _answer(p)) for t, p in zip(targets, predictions, strict=True)]
    exact = sum(target == prediction for target, prediction in pairs)
    f1 = sum(_token_f1(target.split(), prediction.split()) for target, prediction in pairs)
    return {"em": 100.0 * exact / len(pairs), "f1": 100.0 * f1 / len(pairs)}


def spearman(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Rank correlation of numbers; a prediction that is none counts as -1, as in t5."""
    from scipy import stats

    result = stats.spearmanr(
        [_number(text) for text in targets], [_number(text) for text in predictions]
    )
    return {"spearman_corrcoef": 100.0 * float(result.statistic)}


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-Lsum without stemming."""
    scorer = _library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(
        ["rouge1", "rouge2", "rougeLsum"]
    )
    scores = [
        scorer.score(target, prediction)
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return {name: 100.0 * sum(s[name].fmeasure for s in scores) / len(scores) for name in scores[0]}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of sacrebleu."""
    library = _library("sacrebleu", "sacrebleu")
    return {"bleu": float(library.corpus_bleu(list(predictions), [list(targets)]).score)}


BY_NAME: dict[str, Metric] = {
    "accuracy": accuracy,
    "other": accuracy,
    "squad": squad,
    "trivia qa": squad,
    "rouge": rouge,
    "bleu": bleu,
    "spearman correlation": spearman,
}


def text_metrics(names: Sequence[str]) -> list[Metric]:
    """Metrics of promptsource's names, in either case; accuracy where none is known."""
    found = dict.fromkeys(BY_NAME[name.lower()] for name in names if name.lower() in BY_NAME)
    return list(found) or [accuracy]


def _answer(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _token_f1(target: Sequence[str], prediction: Sequence[str]) -> float:
    common = sum((collections.Counter(target) & collections.Counter(prediction)).values())
    if not target or not prediction:
        return float(target == prediction)
    return 2.0 * common / (len(target) + len(prediction))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this task's metric needs the package {package}: pip install {package}"
        ) from error
