"""What a text is about: news, questions, contracts, languages."""

from t0jax.data.structured.records import Classification, joined
from tasks.t0_hub import find_spec
from tasks.tasksource import names
from tasks.tasksource_fields import NO_VALIDATION, TRAIN_ONLY, hub

ag_news = Classification(
    dataset=find_spec("ag_news", None), sentence1="text", labels=("World", "Sports", "Business", "Sci/Tech"),
    splits=NO_VALIDATION,
)  # fmt: skip
dbpedia = Classification(
    dataset=find_spec("dbpedia_14", None), sentence1=joined("title", "content"), labels=names.DBPEDIA,
    splits=NO_VALIDATION, differs="with the title, which tasksource leaves out",
)  # fmt: skip
yahoo = Classification(
    dataset=hub("community-datasets/yahoo_answers_topics"), sentence1="question_title",
    sentence2="question_content", label="topic", labels=names.YAHOO, splits=NO_VALIDATION,
)  # fmt: skip
trec = Classification(
    dataset=find_spec("trec", None), sentence1="text", label="fine_label", labels=names.TREC_FINE,
    splits=NO_VALIDATION,
)  # fmt: skip
trec_coarse = Classification(
    dataset=find_spec("trec", None), name="trec/coarse", sentence1="text", label="coarse_label", labels=names.TREC,
    splits=NO_VALIDATION, differs="not in tasksource, which has the fine labels alone",
)  # fmt: skip
newsgroups = Classification(
    dataset=hub("SetFit/20_newsgroups"), sentence1="text", labels=names.NEWSGROUPS, splits=NO_VALIDATION,
    differs="not in tasksource",
)  # fmt: skip
languages = Classification(
    dataset=hub("papluca/language-identification"), sentence1="text", label="labels", labels=names.LANGUAGES
)  # fmt: skip
adverse_effects = Classification(
    dataset=hub("ade-benchmark-corpus/ade_corpus_v2", "Ade_corpus_v2_classification"), sentence1="text",
    labels=("Not-Related", "Related"), splits=TRAIN_ONLY,
)  # fmt: skip
scotus = Classification(
    dataset=hub("coastalcph/lex_glue", "scotus"), sentence1="text", labels=names.SCOTUS,
    differs="issue areas by name, where the data set and tasksource have numbers",
)  # fmt: skip
ledgar = Classification(
    dataset=hub("coastalcph/lex_glue", "ledgar"), sentence1="text", labels=names.LEDGAR
)
unfair_tos = Classification(
    dataset=hub("coastalcph/lex_glue", "unfair_tos"), sentence1="text", label="labels", labels=names.UNFAIR_TERMS,
    multilabel=True,
)  # fmt: skip
