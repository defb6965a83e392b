"""A tag for every word: entities, chunks, parts of speech."""

from t0jax.data.structured.records import TokenClassification
from tasks.tasksource import names
from tasks.tasksource_fields import NO_TEST, NO_VALIDATION, hub

CONLL = hub("tomaarsen/conll2003")

entities = TokenClassification(
    dataset=CONLL, name="conll2003/ner_tags", tokens="tokens", tags="ner_tags", labels=names.CONLL_ENTITIES
)  # fmt: skip
chunks = TokenClassification(
    dataset=CONLL, name="conll2003/chunk_tags", tokens="tokens", tags="chunk_tags", labels=names.CHUNKS
)  # fmt: skip
parts_of_speech = TokenClassification(
    dataset=CONLL, name="conll2003/pos_tags", tokens="tokens", tags="pos_tags", labels=names.CONLL_POS
)  # fmt: skip
conll2000 = TokenClassification(
    dataset=hub("eriktks/conll2000"), tokens="tokens", tags="chunk_tags", labels=names.CHUNKS, splits=NO_VALIDATION
)  # fmt: skip
wnut_17 = TokenClassification(
    dataset=hub("leondz/wnut_17"), name="wnut_17/wnut_17", tokens="tokens", tags="ner_tags", labels=names.WNUT
)  # fmt: skip
diseases = TokenClassification(
    dataset=hub("ncbi/ncbi_disease"), name="ncbi_disease/ncbi_disease", tokens="tokens", tags="ner_tags",
    labels=names.DISEASES,
)  # fmt: skip
molecules = TokenClassification(
    dataset=hub("jnlpba/jnlpba"), name="jnlpba/jnlpba", tokens="tokens", tags="ner_tags", labels=names.MOLECULES,
    splits=NO_TEST,
)  # fmt: skip
acronyms = TokenClassification(
    dataset=hub("amirveyseh/acronym_identification"), tokens="tokens", tags="labels", labels=names.ACRONYMS,
    splits=NO_TEST, differs="without the test split, whose tags are all O because they are hidden",
)  # fmt: skip
few_nerd = TokenClassification(
    dataset=hub("DFKI-SLT/few-nerd", "supervised"), tokens="tokens", tags="ner_tags", labels=names.FEW_NERD,
    differs="the eight coarse kinds; tasksource has the 66 fine ones",
)  # fmt: skip
