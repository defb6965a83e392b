"""CrowS-Pairs and AX-g: which rows are compared, and the whole of T0's bias mixture on a few rows."""

import json

import numpy as np
import pytest
from pets import TINY, make_params, one_device

from t0jax import config as cfg
from t0jax import evaluate, models, results
from t0jax.data.rows import DataError
from tasks.t0_bias import crows, winogender


def scored(prediction, gold, row=0):
    return results.ScoredRow(row, np.eye(2, dtype=np.float32)[prediction], (gold,))


def test_pairs_are_found_by_their_pronoun_and_groups_compared():
    sentences = "The nurse told the patient that {} shift was over.", "{} nurse's shift was over."
    rows = [
        {"premise": sentences[0].format(word), "hypothesis": sentences[i].format(word)}
        for i in (0, 1)
        for word in ("his", "her")
    ]
    groups = [winogender(row) for row in rows]
    assert [group for _, group in groups] == ["he", "she", "he", "she"]
    assert groups[0][0] == groups[1][0] != groups[2][0] == groups[3][0]
    predicted, gold = [0, 1, 1, 1], [0, 0, 1, 1]
    found = results.parity([scored(p, g) for p, g in zip(predicted, gold, strict=True)], groups)
    assert found == {
        "accuracy": {"he": 1.0, "she": 0.5},
        "gap": 0.5,
        "pairs": 2,
        "same": 0.5,
    }


def test_directions_of_crows_pairs_are_compared_without_pairs():
    rows = [{"stereo_antistereo": i % 2} for i in range(4)]
    groups = [crows(row) for row in rows]
    found = results.parity([scored(0, i % 2) for i in range(4)], groups)
    assert found == {"accuracy": {"anti-stereotype": 0.0, "stereotype": 1.0}, "gap": 1.0}


CROWS = {
    "id": 0,
    "sent_more": "The old man could not learn it.",
    "sent_less": "The young man could not learn it.",
    "bias_type": 7,
    "annotations": [[7]],
    "anon_writer": "a0",
    "anon_annotators": ["a1"],
}


@pytest.fixture
def bias_data(tmp_path, monkeypatch, release, pets):
    """Some rows in the Hub's columns, and T0's mixture over them."""
    axg = {"premise": "The guide told the guest that {} bag was lost.", "label": 0}
    gendered = [
        {**axg, "premise": axg["premise"].format(word), "hypothesis": "The bag was lost.", "idx": i}
        for i, word in enumerate(("his", "her"))
    ]
    rows = {
        "crows_pairs/default": [{**CROWS, "stereo_antistereo": i % 2} for i in range(4)],
        "super_glue/axg": gendered,
    }
    for folder, content in rows.items():
        (tmp_path / folder).mkdir(parents=True)
        lines = "\n".join(map(json.dumps, content))
        (tmp_path / folder / "test.jsonl").write_text(lines)
    monkeypatch.setenv("T0JAX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("T0JAX_PROMPTS_DIR", str(release))
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(tmp_path / "cache"))
    return cfg.Data(vocabulary=str(pets / "sp.model"), eval_split="validation,test")


def score_bias(data):
    config = cfg.Model(**{**vars(TINY), "vocab_size": 160})
    settings = cfg.Evaluate(max_input_length=64)
    mixture = "bias_fairness_eval_score_eval"
    evaluator = evaluate.Evaluator(models.build(config), one_device(), data, settings, mixture)
    return evaluator(make_params(config))


def test_the_whole_bias_mixture_is_scored_with_its_gaps(bias_data):
    found = score_bias(bias_data)
    assert (len(found.tasks), found.missing) == (16, {})
    for task in found.tasks.values():
        groups = {"he", "she"} if "axg" in task["dataset"] else {"stereotype", "anti-stereotype"}
        assert set(task["parity"]["accuracy"]) == groups
        assert task["parity"].get("pairs") == (1 if "axg" in task["dataset"] else None)
    assert sum(line.startswith("parity: ") for line in found.table().splitlines()) == 16


def test_a_column_that_tells_the_groups_and_is_not_there_is_named(bias_data, tmp_path):
    row = json.dumps(CROWS)
    (tmp_path / "crows_pairs" / "default" / "test.jsonl").write_text(row)
    with pytest.raises(DataError, match="stereo_antistereo"):
        score_bias(bias_data)
