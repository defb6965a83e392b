"""Metrics of T0's text-to-text tasks, by the names that promptsource's metadata gives them.

Metrics give percent, larger is better, or are marked `lower_is_better = True`: marked ones are told, and do not count
in the score of a task, by which training chooses checkpoints.

They take texts that a model has written (`t0jax.evaluate` with `evaluate.method generate`, or seqio's own evaluator)
and one target for each, for a prompt renders one: where a data set has several right answers (SQuAD's annotators,
TriviaQA's aliases), only the rendered one counts, and scores are lower than the data set's official ones.

| name | values | as in t5's evaluation/metrics.py, but for |
|---|---|---|
| Accuracy, Sequence Accuracy, Other | accuracy | |
| Squad | em, f1 | two empty answers are equal, as in SQuAD 2.0 |
| Trivia QA | em, f1 | likewise |
| COQA F1 | f1 | |
| ROUGE | rouge1, rouge2, rougeLsum | the mean itself, not the middle of a bootstrap of it |
| BLEU | bleu | |
| Pearson, Spearman Correlation | pearson_corrcoef, spearman_corrcoef | texts are read as numbers |
| Edit Distance | mean_edit, in words: lower is better | |
| MultiRC, AUC, Mean Reciprocal Rank, Span Squad | accuracy | they want scores or contexts, not texts |

t-zero too takes accuracy for Other, and gives texts to t5's functions for the last line, which fail on them. ROUGE,
BLEU and the edit distance come from the packages `rouge-score`, `sacrebleu` and `nltk` (`pip install t0jax[metrics]`),
asked for only when a task that names them is evaluated; a metric's `prepare` does so before anything is written.
"""

import collections
import functools
import importlib
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from t0jax.config import UserError

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


class MetricError(UserError, ImportError):
    """A metric's package is not installed."""


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MetricError(
            f"this task's metric needs the package {package}: pip install {package}"
        ) from error


def _needs(module: str, package: str) -> Callable[[Metric], Metric]:
    """Gives a metric a `prepare` that imports its package, or raises MetricError."""

    def mark(metric: Metric) -> Metric:
        metric.prepare = functools.partial(_library, module, package)  # type: ignore[attr-defined]
        return metric

    return mark


def stripped(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> str:
    """seqio postprocessor: a target or a prediction without outer blanks."""
    del example, is_target
    return text.strip()


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target."""
    hits = [target == prediction for target, prediction in zip(targets, predictions, strict=True)]
    return {"accuracy": 100.0 * sum(hits) / len(hits)}


def squad(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match and token F1 of normalised answers (Rajpurkar et al. 2018, official script 2.0)."""
    return _answers(_squad_words, targets, predictions)


def trivia_qa(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """TriviaQA's exact match and token F1 (Joshi et al. 2017): punctuation is a blank, quotation marks are too."""
    return _answers(_trivia_words, targets, predictions)


def coqa_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Token F1 alone, answers normalised as SQuAD's (Reddy et al. 2019)."""
    return {"f1": squad(targets, predictions)["f1"]}


def pearson(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Correlation of numbers; a text that is none counts as -1, as in t5's STS-B.

    A constant prediction has 0; targets that are all the same, or no numbers, leave nothing to measure.
    """
    from scipy import stats

    return _correlation("pearson_corrcoef", stats.pearsonr, targets, predictions)


def spearman(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Rank correlation of numbers; else as `pearson`."""
    from scipy import stats

    return _correlation("spearman_corrcoef", stats.spearmanr, targets, predictions)


@_needs("rouge_score.rouge_scorer", "rouge-score")
def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-Lsum without stemming; sentences end at line breaks and at " . "."""
    names = ["rouge1", "rouge2", "rougeLsum"]
    scorer = rouge.prepare().RougeScorer(names)
    scores = [
        scorer.score(*(text.replace(" . ", " .\n") for text in pair))
        for pair in zip(targets, predictions, strict=True)
    ]
    return {name: 100.0 * sum(s[name].fmeasure for s in scores) / len(scores) for name in names}


@_needs("sacrebleu", "sacrebleu")
def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of sacrebleu: tokeniser `intl`, case kept, smoothing `exp`."""
    score = bleu.prepare().corpus_bleu(
        list(predictions), [list(targets)], smooth_method="exp", tokenize="intl"
    )
    return {"bleu": float(score.score)}


@_needs("nltk.metrics.distance", "nltk")
def edit_distance(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Words to insert, delete or replace, in any case; whatever is no letter, digit or `_` parts words."""
    distance = edit_distance.prepare().edit_distance
    edits = [
        distance(*(re.split(r"\W", text.lower()) for text in pair))
        for pair in zip(targets, predictions, strict=True)
    ]
    return {"mean_edit": sum(edits) / len(edits)}


edit_distance.lower_is_better = True  # type: ignore[attr-defined]


BY_NAME: dict[str, Metric] = {
    "squad": squad,
    "trivia qa": trivia_qa,
    "coqa f1": coqa_f1,
    "rouge": rouge,
    "bleu": bleu,
    "pearson correlation": pearson,
    "spearman correlation": spearman,
    "edit distance": edit_distance,
}
"""By the name in small letters; `accuracy` stands for all others."""


def text_metrics(names: Sequence[str]) -> list[Metric]:
    """Metrics of promptsource's names, in any case, each once; accuracy where there are none."""
    return list(dict.fromkeys(BY_NAME.get(name.lower(), accuracy) for name in names)) or [accuracy]


def _squad_words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", kept).split()


def _trivia_words(text: str) -> list[str]:
    marks = string.punctuation + "\u2018\u2019\u00b4"  # quotation marks and an accent
    kept = "".join(" " if letter in marks else letter for letter in text.lower())
    return _ARTICLES.sub(" ", kept).split()


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _answers(
    words: Callable[[str], list[str]], targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
    pairs = [(words(t), words(p)) for t, p in zip(targets, predictions, strict=True)]
    exact = sum(target == prediction for target, prediction in pairs)
    f1 = sum(_token_f1(target, prediction) for target, prediction in pairs)
    return {"em": 100.0 * exact / len(pairs), "f1": 100.0 * f1 / len(pairs)}


def _token_f1(target: Sequence[str], prediction: Sequence[str]) -> float:
    common = sum((collections.Counter(target) & collections.Counter(prediction)).values())
    if not target or not prediction:
        return float(target == prediction)
    return 2.0 * common / (len(target) + len(prediction))


def _correlation(
    name: str, measure: Callable[..., Any], targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
    right, found = ([_number(text) for text in texts] for texts in (targets, predictions))
    if len(set(right)) == 1:
        return {}
    value = measure(right, found).statistic if len(set(found)) > 1 else 0.0
    return {name: 100.0 * float(value)}


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return -1.0
    return number if math.isfinite(number) else -1.0
