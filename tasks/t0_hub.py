"""Where the data sets of T0 are on the Hub today, and what changed in them since the prompts were written (2021).

Ids moved into namespaces, loading scripts are no longer run, columns were renamed, label numbers reordered. A data
set not named here is still found under its old id. Local files may have either form.
"""

from dataclasses import dataclass

from t0jax.data.rows import DatasetSpec

FULL = ("train", "validation", "test")


@dataclass(frozen=True)
class Home:
    """One data set's place on the Hub: repository, configuration if renamed, splits, and what differs there."""

    hub_id: str
    splits: tuple[str, ...] = FULL
    hub_subset: str | None = None
    renames: tuple[tuple[str, str], ...] = ()
    recodes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    labels: tuple[str, ...] = ("label",)
    note: str = ""


TREC_COARSE = (2, 1, 0, 3, 5, 4)
"""The prompts' number of each coarse label of today: ABBR ENTY DESC HUM LOC NUM were DESC ENTY ABBR HUM NUM LOC."""

# fmt: off
TREC_FINE = (
    34, 3,  # ABBR: abb exp
    2, 22, 19, 1, 46, 23, 10, 17, 33, 37, 15, 14, 30, 26, 16, 29, 28, 42, 31, 20, 44, 36,  # ENTY: animal .. word
    7, 12, 0, 9,  # DESC: def desc manner reason
    5, 4, 6, 12,  # HUM: gr ind title desc
    21, 18, 24, 14, 11,  # LOC: city country mount other state
    39, 13, 8, 40, 25, 43, 14, 27, 38, 35, 41, 32, 45,  # NUM: code count date dist money ord other period ..
)
# fmt: on
"""The prompts' number of each of today's 50 fine labels; the 47 of 2021 had one `desc` and one `other` for all."""

# Its authors' column names; the Hub's loading script, and so the prompts, know the columns by the others.
_STORY_CLOZE = tuple(
    [(f"input_sentence_{n}", f"InputSentence{n}") for n in (1, 2, 3, 4)]
    + [(f"sentence_quiz{n}", f"RandomFifthSentenceQuiz{n}") for n in (1, 2)]
    + [("answer_right_ending", "AnswerRightEnding"), ("story_id", "InputStoryid")]
)
_STORY_CLOZE_WAY = (
    "its authors give it out on request, https://cs.rochester.edu/nlp/rocstories: copy their files of 2016 there as "
    "they are, cloze_test_val__spring2016*.csv as validation.csv, cloze_test_test__spring2016*.csv as test.csv"
)
_KEY = ("answerKey",)
_SCRIPT = "at its original id only a loading script, which is no longer run, and perhaps the Hub's parquet copy"

HOMES: dict[str, Home] = {
    "adversarial_qa": Home("UCLNLP/adversarial_qa"),
    "ag_news": Home("fancyzhx/ag_news", ("train", "test")),
    "ai2_arc": Home("allenai/ai2_arc", labels=_KEY),
    "amazon_polarity": Home("fancyzhx/amazon_polarity", ("train", "test")),
    "anli": Home("facebook/anli"),
    "app_reviews": Home("sealuzh/app_reviews", ("train",)),
    "cnn_dailymail": Home("abisee/cnn_dailymail"),
    "common_gen": Home("allenai/common_gen"),
    "cos_e": Home("Salesforce/cos_e", ("train", "validation")),
    "cosmos_qa": Home("allenai/cosmos_qa", note=_SCRIPT),
    "crows_pairs": Home("nyu-mll/crows_pairs", ("test",), note=_SCRIPT),
    "dbpedia_14": Home("fancyzhx/dbpedia_14", ("train", "test")),
    "dream": Home("dataset-org/dream", note=_SCRIPT),
    "duorc": Home("ibm-research/duorc"),
    "gigaword": Home("Harvard/gigaword", note=_SCRIPT),
    "glue": Home("nyu-mll/glue"),
    "hellaswag": Home("Rowan/hellaswag"),
    "imdb": Home("stanfordnlp/imdb", ("train", "test")),
    "jigsaw_toxicity_pred": Home(
        "google/jigsaw_toxicity_pred", ("train", "test"), note="Kaggle, by hand"
    ),
    "kilt_tasks": Home("facebook/kilt_tasks"),
    "multi_news": Home("alexfabbri/multi_news", note=_SCRIPT),
    "openbookqa": Home("allenai/openbookqa", labels=_KEY),
    "paws": Home("google-research-datasets/paws"),
    "piqa": Home("baber/piqa"),
    "qasc": Home("allenai/qasc", labels=_KEY),
    "quail": Home("textmachinelab/quail", ("train", "validation", "challenge")),
    "quarel": Home("community-datasets/quarel"),
    "quartz": Home("allenai/quartz", labels=_KEY),
    "quoref": Home("allenai/quoref", ("train", "validation"), note=_SCRIPT),
    "race": Home("ehovy/race"),
    "ropes": Home("allenai/ropes"),
    "rotten_tomatoes": Home("cornell-movie-review-data/rotten_tomatoes"),
    "samsum": Home("knkarthick/samsum"),
    "sciq": Home("allenai/sciq"),
    "social_i_qa": Home("allenai/social_i_qa", ("train", "validation"), note=_SCRIPT),
    "squad_v2": Home("rajpurkar/squad_v2", ("train", "validation")),
    "story_cloze": Home(
        "LSDSem/story_cloze",
        ("validation", "test"),
        renames=_STORY_CLOZE,
        labels=("answer_right_ending",),
        note=_STORY_CLOZE_WAY,
    ),
    "super_glue": Home("aps/super_glue"),
    "trec": Home(
        "CogComp/trec",
        ("train", "test"),
        renames=(("label_coarse", "coarse_label"), ("label_fine", "fine_label")),
        recodes=(("label_coarse", TREC_COARSE), ("label_fine", TREC_FINE)),
        labels=("label_coarse", "label_fine"),
    ),
    "trivia_qa": Home("mandarjoshi/trivia_qa"),
    "web_questions": Home("stanfordnlp/web_questions", ("train", "test")),
    "wiki_bio": Home("michaelauli/wiki_bio", note=_SCRIPT),
    "wiki_hop": Home(
        "community-datasets/qangaroo",
        ("train", "validation"),
        hub_subset="wikihop",
        renames=(("question", "query"),),
    ),
    "wiki_qa": Home("microsoft/wiki_qa"),
    "wino_bias": Home("uclanlp/wino_bias", ("validation", "test"), note=_SCRIPT),
    "winogrande": Home("allenai/winogrande", labels=("answer",)),
    "wiqa": Home("allenai/wiqa", labels=("answer_label", "answer_label_as_choice"), note=_SCRIPT),
    "xsum": Home("EdinburghNLP/xsum"),
    "yelp_review_full": Home("Yelp/yelp_review_full", ("train", "test")),
}


def find_home(dataset: str) -> Home:
    """The data set's place on the Hub; its own name where nothing is known of a move."""
    return HOMES.get(dataset) or Home(dataset)


def find_spec(dataset: str, subset: str | None) -> DatasetSpec:
    """What to open for a data set of promptsource."""
    home = find_home(dataset)
    places = (home.hub_id, home.hub_subset)
    return DatasetSpec(
        dataset, subset, *places, home.renames, home.recodes, home.labels, note=home.note
    )
