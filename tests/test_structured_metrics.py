"""Metrics of structured tasks against scipy and scikit-learn, and entities against a table by hand."""

import numpy as np
import pytest

from t0jax.results import structured

TABLE = {
    "O O": set(),
    "B-PER I-PER O B-LOC": {("PER", 0, 1), ("LOC", 3, 3)},
    "B-PER B-PER": {("PER", 0, 0), ("PER", 1, 1)},
    "I-PER I-PER": {("PER", 0, 1)},  # begins without B
    "B-PER I-LOC": {("PER", 0, 0), ("LOC", 1, 1)},  # another type begins another entity
    "O I-LOC I-ORG": {("LOC", 1, 1), ("ORG", 2, 2)},
    "B-A I-A E-A I-A": {("A", 0, 2), ("A", 3, 3)},
    "S-A S-A": {("A", 0, 0), ("A", 1, 1)},
    "B-A E-A S-B O E-A": {("A", 0, 1), ("B", 2, 2), ("A", 4, 4)},
    "B-X-Y I-X-Y": {("X-Y", 0, 1)},
}


@pytest.mark.parametrize("tags", TABLE)
def test_entities_are_those_of_conlleval(tags):
    assert structured.entities(tags.split()) == TABLE[tags]


def test_entity_f1_by_hand():
    """seqeval's own example: one of two entities is found as it is."""
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    lines = [{"target": a, "prediction": b} for a, b in zip(gold, found, strict=True)]
    values = structured.measure(
        "token_classification", lines, ("O", "B-PER", "I-PER", "B-MISC", "I-MISC")
    )
    assert values["entity_f1"][0] == pytest.approx(0.5)
    assert values["token_accuracy"][0] == pytest.approx(0.8)


def test_parts_of_speech_have_no_entities():
    lines = [{"target": ["NOUN", "VERB"], "prediction": ["NOUN", "NOUN"]}]
    assert list(structured.measure("token_classification", lines, ("NOUN", "VERB"))) == [
        "token_accuracy"
    ]
    entry = {"kind": "token_classification", "metrics": {"token_accuracy": 0.5}}
    assert structured.main_metric(entry) == "token_accuracy"


@pytest.mark.parametrize("seed", range(3))
def test_correlations_of_weighted_rows_are_scipys(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    gold, given = rng.integers(0, 6, 50) / 2, np.round(rng.normal(size=50), 1)
    lines = [{"target": float(a), "prediction": float(b)} for a, b in zip(gold, given, strict=True)]
    drawn = rng.integers(0, 50, 50)
    weights = np.stack([np.ones(50), np.bincount(drawn, minlength=50)])
    values = structured.measure("regression", lines, (), weights)
    for number, rows in enumerate((np.arange(50), drawn)):
        assert values["pearson"][number] == pytest.approx(
            stats.pearsonr(gold[rows], given[rows])[0]
        )
        assert values["spearman"][number] == pytest.approx(
            stats.spearmanr(gold[rows], given[rows])[0]
        )


def test_constant_answers_explain_nothing():
    lines = [{"target": float(k), "prediction": 0.1} for k in range(7)]
    values = structured.measure("regression", lines, ())
    assert values["pearson"][0] == values["spearman"][0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_are_scikit_learns(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    gold, given = rng.random((2, 30, 5)) > 0.7
    given[:, 4] = gold[:, 4] = False  # a label that never occurs counts as 0
    lines = [
        {"target": np.flatnonzero(a).tolist(), "prediction": np.flatnonzero(b).tolist()}
        for a, b in zip(gold, given, strict=True)
    ]
    values = structured.measure("multilabel", lines, tuple("abcde"))
    for average in ("macro", "micro"):
        wanted = metrics.f1_score(gold, given, average=average, zero_division=0)
        assert values[f"{average}_f1"][0] == pytest.approx(wanted)
    assert values["exact_match"][0] == pytest.approx(metrics.accuracy_score(gold, given))


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_of_weighted_classes_is_scikit_learns(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    gold, given = rng.integers(0, 5, (2, 12))
    lines = [{"gold": [int(a)], "prediction": int(b)} for a, b in zip(gold, given, strict=True)]
    drawn = rng.integers(0, 12, 12)
    weights = np.stack([np.ones(12), np.bincount(drawn, minlength=12)])
    values = structured.measure("classification", lines, (), weights)["macro_f1"]
    for number, rows in enumerate((np.arange(12), drawn)):
        wanted = metrics.f1_score(gold[rows], given[rows], average="macro")
        assert values[number] == pytest.approx(wanted)


def test_the_most_frequent_answer():
    assert structured.majority("classification", [0, 1, 1, 1]) == 0.75
    assert structured.majority("token_classification", [["O", "O"], ["B-A"]]) == pytest.approx(
        2 / 3
    )
    assert structured.majority("regression", [1.0, 1.0]) is None
