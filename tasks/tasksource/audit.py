"""What each declaration was checked against, so that nothing more is claimed of it.

`rows`: its columns and label numbers were read from rows of the data, and the meaning of the numbers was seen in them.
`card`: its columns and the order of its labels were read in the data set's own card or loading code.
`prompts`: its columns are among those that promptsource's prompts of the data set read (a test compares them), and its
labels are in the order of their answer choices.
`reported`: its columns are those that tasksource 0.0.47 or later reads, its label names as tasksource or promptsource
write them or as is commonly known; nothing else was read. None was loaded from the Hub: look at the first
rows of one before relying on it.
"""

ROWS = (
    "glue/sst2", "super_glue/cb", "anli/a1", "anli/a2", "rotten_tomatoes", "ag_news", "dream", "cosmos_qa", "quail",
    "bigbench/disambiguation_qa", "bigbench/movie_recommendation",
)  # fmt: skip

CARDS = (
    *(
        f"tweet_eval/{name}"
        for name in ("emoji", "emotion", "hate", "irony", "offensive", "sentiment")
    ),
    *(
        f"tweet_eval/stance_{name}"
        for name in ("abortion", "atheism", "climate", "feminist", "hillary")
    ),
    *(f"lex_glue/{name}" for name in ("ledgar", "scotus", "unfair_tos", "case_hold")),
    *(f"glue/{name}" for name in ("mnli", "qnli", "rte", "wnli", "mrpc", "qqp", "stsb", "cola")),
    *(f"super_glue/{name}" for name in ("boolq", "copa", "wic", "multirc")),
    *("snli", "hans", "hlgd", "zero-shot-label-nli", "poem_sentiment", "go_emotions/simplified"),
    "fever-evidence-related/mwong--fever-related",
    *("hate_speech_offensive", "hate_speech18", "tweets_hate_speech_detection"),
    *("ade_corpus_v2/Ade_corpus_v2_classification", "trec", "trec/coarse"),
    *("jnlpba/jnlpba", "acronym_identification", "imdb"),
)

PROMPTS = (
    "anli/a3", "scitail/snli_format", "sick/label", "sick/relatedness", "paws/labeled_final", "paws/labeled_swap",
    "medical_questions_pairs", "wiki_qa", "amazon_polarity", "yelp_review_full", "app_reviews", "emotion", "dbpedia_14",
    "yahoo_answers_topics", "sms_spam", "race/middle", "race/high", "sciq", "openbookqa",
    "ai2_arc/ARC-Challenge/challenge", "ai2_arc/ARC-Easy/challenge", "commonsense_qa", "cos_e/v1.0", "quartz", "qasc",
    "art", "winogrande/winogrande_xl", "hellaswag", "swag/regular", "piqa", "social_i_qa", "codah/codah",
)  # fmt: skip


def checked(task: str) -> str:
    """How a task was checked: `rows`, `card`, `prompts` or `reported`."""
    kinds = {"rows": ROWS, "card": CARDS, "prompts": PROMPTS}
    return next((kind for kind, tasks in kinds.items() if task in tasks), "reported")
