"""Model-recycling's 36 sets: what is published of them, and which of them can be held against it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tasks import recycling

DATA = Path(__file__).parents[2] / "shared" / "data"
local_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}")


def test_recycling_has_the_36_sets_and_their_published_means():
    assert len({one.name for one in recycling.SETS}) == 36
    assert {one.name for one in recycling.SETS if one.metric == "spearman"} == {"stsb"}
    assert round(np.mean([one.baseline for one in recycling.SETS]), 2) == 79.04
    assert round(np.mean([one.tasksource for one in recycling.SETS]), 2) == 80.45
    assert set(recycling.LOCAL) <= {one.name for one in recycling.SETS}
    assert all(one.record.splits[0] for one in recycling.SETS)


SINGLE_RUNS = """
    86.0196 90.6333 66.96 60.0938 83.792 83.9286 86.5772 72 79.2 91.419 85.1 94.232 71.5124 89.4426
    90.4412 63.7583 86.5385 93.8129 91.9144 89.8687 85.9206 95.4128 57.3756 91.377 97.4 91 47.302
    83.6031 57.6431 77.1684 83.3721 70.2947 71.7868 67.6056 74.0385 71.7
    78.6644 88.7 65.12 47.8438 71.5902 75 81.1122 55 79.6 89.5155 82.2 90.968 69.6219 83.2384
    83.0882 60.9736 76.9231 91.1038 89.8788 84.1463 67.509 89.9083 50.362 85.254 96.2 79.2 44.062
    79.24 51.2121 71.4286 84.6512 68.1456 63.9498 56.338 63.4615 70.4
"""
"""What model-recycling's cards say of MoritzLaurer/DeBERTa-v3-base-mnli and of a BERT (Moussab's, of SQuAD 2), in %."""

SPLIT_ROWS = {
    "20_newsgroups/test": 7532, "ag_news/test": 7600, "amazon_reviews_multi/test/en": 5000, "anli/test_r1": 1000,
    "super_glue/validation/boolq": 3270, "super_glue/validation/cb": 56, "glue/validation/cola": 1043,
    "super_glue/validation/copa": 100, "dbpedia_14/test": 70000, "esnli/test": 9824, "imdb/test": 25000,
    "glue/validation_mismatched/mnli": 9832, "glue/validation/mrpc": 408, "glue/test/mrpc": 1725,
    "super_glue/validation/multirc": 4848, "poem_sentiment/test": 104, "glue/validation/qnli": 5463,
    "glue/validation/qqp": 40430, "rotten_tomatoes/test": 1066, "glue/validation/rte": 277, "glue/validation/sst2": 872,
    "sst5/test": 2210, "trec/test": 500, "tweet_eval/test/emoji": 50000, "tweet_eval/test/emotion": 1421,
    "tweet_eval/test/hate": 2970, "tweet_eval/test/irony": 784, "tweet_eval/test/offensive": 860,
    "tweet_eval/test/sentiment": 12284, "super_glue/validation/wic": 638, "glue/validation/wnli": 71,
    "super_glue/validation/wsc.fixed": 104, "yahoo_answers_topics/test": 60000,
}  # fmt: skip
"""As the data sets' cards say."""


def scored_split(record):
    """As `scripts.recycle` scores: the test split, or the validation split where there is none."""
    split = record.splits[2] or record.splits[1]
    return "/".join(filter(None, (record.spec.dataset, split, record.spec.subset)))


def test_published_scores_are_shares_of_the_rows_told():
    """A count of right rows of `scored_rows` gives each single run's score to its last place."""
    runs = np.array(SINGLE_RUNS.split(), float).reshape(2, 36).T
    for one, scores in zip(recycling.SETS, runs, strict=True):
        if one.metric == "accuracy":
            share = np.round(scores / 100 * one.scored_rows) / one.scored_rows
            np.testing.assert_allclose(100 * share, scores, atol=5.1e-5, err_msg=one.name)


def test_comparable_sets_score_as_many_rows_as_published():
    for one in recycling.SETS:
        rows = SPLIT_ROWS.get(scored_split(one.record))
        if one.comparable and one.metric == "accuracy":
            assert rows == one.scored_rows, one.name
        assert one.comparable or one.note, one.name
    left_out = {one.name for one in recycling.SETS if not one.comparable}
    assert {"dbpedia", "multirc", "anli"} <= left_out
    assert len(left_out) < 12


@local_data
@pytest.mark.parametrize(
    ("name", "scored", "seen"),
    [
        ("rotten_tomatoes", ("rotten_tomatoes/default/test", "text"), ("glue/sst2/train", "sentence")),
        ("sst2", ("glue/sst2/validation", "sentence"), ("rotten_tomatoes/default/train", "text")),
        # SST-2's test sentences are those of SST-5 that are not neutral.
        ("sst5", ("glue/sst2/test", "sentence"), ("rotten_tomatoes/default/train", "text")),
    ],
)  # fmt: skip
def test_the_share_of_sentences_seen_in_training_is_told(name, scored, seen):
    letters = [
        [re.sub(r"\W+", "", json.loads(line)[column].lower()) for line in lines]
        for file, column in (scored, seen)
        for lines in [(DATA / f"{file}.jsonl").read_text(encoding="utf-8").strip().split("\n")]
    ]  # fmt: skip
    share = np.isin(*letters).mean()
    (one,) = (one for one in recycling.SETS if one.name == name)
    assert f"{share:.0%}".replace("%", " %") in one.note
