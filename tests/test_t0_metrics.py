"""T0's metrics of texts against the libraries that define them."""

import itertools
import random
import string

import numpy as np
import pytest

from tasks import t0_metrics

WORDS = [
    *("the", "a", "an", "The", "Answer", "answers,", "answer", "U.S.", "it's", "don't", "42", "-3.5", "(no)"),
    *("München", "naïve", "“écrit”", "文字", "…", "½", "theatre", "an-other", "a.", "\tthe\n", "", "_", "`x\u00b4"),
]  # fmt: skip
EDGES = ["", " ", "the", "The a an", "...", "yes", "Yes.", "no", "unanswerable", "a-b", "a b"]


def text_pairs():
    """Pairs of texts that share some words, and all pairs of difficult ones."""
    draw = random.Random(0)
    pairs = list(itertools.product(EDGES, EDGES))
    for _ in range(400):
        target = draw.choices(WORDS, k=draw.randrange(7))
        kept = [word for word in target if draw.random() < 0.7]
        prediction = kept + draw.choices(WORDS, k=draw.randrange(3))
        draw.shuffle(prediction)
        pairs.append((" ".join(target), draw.choice([" ", "", ". "]).join(prediction)))
    return pairs


def test_squad_is_the_official_scripts():
    """torchmetrics has the script of SQuAD 2.0."""
    pytest.importorskip("torch")
    reference = pytest.importorskip("torchmetrics.functional.text").squad
    pairs = text_pairs()
    for target, prediction in pairs:
        found = t0_metrics.squad([target], [prediction])
        answers = {"answers": {"answer_start": [0], "text": [target]}, "id": "1"}
        expected = reference([{"prediction_text": prediction, "id": "1"}], [answers])
        assert found["em"] == expected["exact_match"].item()
        assert found["f1"] == pytest.approx(expected["f1"].item(), rel=1e-6), (target, prediction)
    each = [t0_metrics.squad([target], [prediction])["f1"] for target, prediction in pairs]
    assert len(set(each)) > 10
    assert t0_metrics.squad(*zip(*pairs, strict=True))["f1"] == pytest.approx(np.mean(each))
    assert t0_metrics.coqa_f1(*zip(*pairs, strict=True)) == {"f1": pytest.approx(np.mean(each))}


def test_trivia_qa_is_squad_with_blanks_for_punctuation():
    """The two official scripts differ in that, and in four more marks (t5's qa_utils.normalize_trivia_qa)."""
    blanks = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`_", " "))  # noqa: RUF001
    for target, prediction in text_pairs():
        plain = [[text.lower().translate(blanks)] for text in (target, prediction)]
        assert t0_metrics.trivia_qa([target], [prediction]) == t0_metrics.squad(*plain)
    assert t0_metrics.trivia_qa(["an-other"], ["other"])["em"] == 100
    assert t0_metrics.squad(["an-other"], ["other"])["em"] == 0


SUMMARIES = [
    ("the cat sat on the mat . it was warm . \nthe dog barked", "it was warm . the cat sat . dogs bark"),
    ("Police killed the gunman.", "The gunman was killed by police, police say."),
    ("a b c d e f", "a b c x e f g"),
    ("nothing", ""),
]  # fmt: skip


def test_rouge_is_the_librarys_over_sentences():
    from rouge_score import rouge_scorer

    names = ["rouge1", "rouge2", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(names)
    lines = [[text.replace(" . ", " .\n") for text in pair] for pair in SUMMARIES]
    scores = [scorer.score(*pair) for pair in lines]
    found = t0_metrics.rouge(*zip(*SUMMARIES, strict=True))
    for name in names:
        assert found[name] == pytest.approx(100 * np.mean([s[name].fmeasure for s in scores]))
    unsplit = scorer.score(*SUMMARIES[0])["rougeLsum"].fmeasure
    assert scores[0]["rougeLsum"].fmeasure > unsplit
    assert t0_metrics.rouge(["a b c"], ["c b x"])["rouge1"] == pytest.approx(100 * 2 / 3)


def test_bleu_is_the_definition():
    """The geometric mean of the share of 1- to 4-grams that occur, times the brevity penalty (Papineni et al. 2002)."""
    target, prediction = "the quick brown fox jumps over it", "the quick brown fox jumps"
    expected = 100 * np.exp(1 - 7 / 5)
    assert t0_metrics.bleu([target], [prediction]) == {"bleu": pytest.approx(expected)}
    prediction = "quick brown fox jumps over that day"
    expected = 100 * (5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** (1 / 4)
    assert t0_metrics.bleu([target], [prediction]) == {"bleu": pytest.approx(expected)}
    # Tokeniser intl parts symbols that stand in words; case counts.
    assert t0_metrics.bleu(["ein 5€ Stück Brot"], ["ein 5 € Stück Brot"])["bleu"] == pytest.approx(
        100
    )
    assert t0_metrics.bleu(["A B C D"], ["a b c d"])["bleu"] < 50


def test_correlations_are_scipys():
    from scipy import stats

    rng = np.random.default_rng(0)
    right = rng.integers(1, 6, 50)
    found = right + rng.normal(size=50)
    texts = [list(map(str, values)) for values in (right, found)]
    expected = {"pearson_corrcoef": pytest.approx(100 * stats.pearsonr(right, found).statistic)}
    assert t0_metrics.pearson(*texts) == expected
    expected = {"spearman_corrcoef": pytest.approx(100 * stats.spearmanr(right, found).statistic)}
    assert t0_metrics.spearman(*texts) == expected


def test_correlations_of_texts_that_are_no_numbers():
    words = t0_metrics.spearman(["1", "2", "3"], ["-1", "nan", "3"])
    assert words == t0_metrics.spearman(["1", "2", "3"], ["good", "inf", "3"])
    assert t0_metrics.pearson(["1", "2"], ["5", "5"]) == {"pearson_corrcoef": 0}
    assert t0_metrics.pearson(["one", "two"], ["1", "2"]) == {}


def test_edits_are_words():
    """Kukich's classic in words, in any case: kitten -> sitting takes three edits."""
    target, prediction = "k i t t e n", "S I T T I N G"
    assert t0_metrics.edit_distance([target, "a"], [prediction, "a"]) == {"mean_edit": 1.5}


@pytest.mark.parametrize(
    ("names", "metrics"),
    [
        ("BLEU ROUGE", "bleu rouge"),
        ("Squad", "squad"),
        ("Trivia_QA", "trivia_qa"),
        ("Accuracy Other", "accuracy"),
        ("Pearson_correlation Spearman_Correlation", "pearson spearman"),
        ("COQA_F1 Edit_Distance", "coqa_f1 edit_distance"),
        ("MultiRC AUC Mean_Reciprocal_Rank", "accuracy"),
        ("Span_Squad Sequence_Accuracy", "accuracy"),
        ("ROUGE Mean_Squared_Error", "rouge accuracy"),
        ("", "accuracy"),
    ],
)
def test_every_name_of_promptsource_has_metrics(names, metrics):
    """In any case, each once."""
    expected = [getattr(t0_metrics, metric) for metric in metrics.split()]
    asked = [name.replace("_", " ") for name in names.split()]
    for case in (str, str.lower, str.upper):
        assert t0_metrics.text_metrics(list(map(case, asked))) == expected


def test_equal_texts_have_the_best_value():
    numbers, sentences = ["1", "2.5", "3"], ["the cat sat on it", "it is 7 o'clock"]
    for metric in {t0_metrics.accuracy, *t0_metrics.BY_NAME.values()}:
        texts = numbers if metric in (t0_metrics.pearson, t0_metrics.spearman) else sentences
        best = 0.0 if getattr(metric, "lower_is_better", False) else 100.0
        for name, value in metric(texts, texts).items():
            assert value == pytest.approx(best), name
            worse = metric(texts, [*texts[1:], texts[0]])[name]
            assert (worse > best) if best == 0.0 else (worse < best), name


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ImportError, match="pip install no-such-package"):
        t0_metrics._library("no_such_package", "no-such-package")
