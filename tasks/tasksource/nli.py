"""Natural language inference: does a hypothesis follow from a premise?"""

from typing import Any

from t0jax.data.structured.records import Classification, joined
from tasks.t0_hub import find_spec
from tasks.tasksource_fields import GLUE_DEV, NLI, NO_TEST, NO_VALIDATION, TWO_WAY, hub, named

PAIR: dict[str, Any] = {"sentence1": "premise", "sentence2": "hypothesis"}
NUMBERED: dict[str, Any] = {"sentence1": "sentence1", "sentence2": "sentence2"}
NOT_ENTAILED = ("not-entailed", "entailed")

mnli = Classification(
    dataset=find_spec("glue", "mnli"), **PAIR, labels=NLI,
    splits=("train", "validation_matched", "validation_mismatched"),
    differs="validation is the matched set, test the mismatched one; tasksource has the matched one alone, as test",
)  # fmt: skip
qnli = Classification(
    dataset=find_spec("glue", "qnli"), sentence1="question", sentence2="sentence", labels=TWO_WAY,
    splits=NO_TEST, differs=GLUE_DEV,
)  # fmt: skip
rte = Classification(
    dataset=find_spec("glue", "rte"), **NUMBERED, labels=TWO_WAY, splits=NO_TEST, differs=GLUE_DEV
)  # fmt: skip
wnli = Classification(
    dataset=find_spec("glue", "wnli"), **NUMBERED, labels=TWO_WAY[::-1], splits=NO_TEST, differs=GLUE_DEV
)  # fmt: skip
snli = Classification(dataset=hub("stanfordnlp/snli"), **PAIR, labels=NLI)
anli_1 = Classification(
    dataset=find_spec("anli", None), name="anli/a1", **PAIR, labels=NLI, splits=("train_r1", "dev_r1", "test_r1")
)  # fmt: skip
anli_2 = Classification(
    dataset=find_spec("anli", None), name="anli/a2", **PAIR, labels=NLI, splits=("train_r2", "dev_r2", "test_r2")
)  # fmt: skip
anli_3 = Classification(
    dataset=find_spec("anli", None), name="anli/a3", **PAIR, labels=NLI, splits=("train_r3", "dev_r3", "test_r3")
)  # fmt: skip
cb = Classification(
    dataset=find_spec("super_glue", "cb"), **PAIR, labels=("entailment", "contradiction", "neutral"),
    splits=NO_TEST, differs=GLUE_DEV,
)  # fmt: skip
scitail = Classification(
    dataset=hub("allenai/scitail", "snli_format"), **NUMBERED, label="gold_label", labels=("entailment", "neutral")
)  # fmt: skip
sick = Classification(
    dataset=hub("tasksource/sick"), name="sick/label", sentence1="sentence_A", sentence2="sentence_B", labels=NLI
)  # fmt: skip
hans = Classification(
    dataset=hub("jhu-cogsci/hans"), **PAIR, labels=("entailment", "non-entailment"), splits=NO_TEST,
    differs="read from the Hub's copy of the original; tasksource reads one of its own",
)  # fmt: skip
wanli = Classification(
    dataset=hub("alisawuffles/WANLI"), **PAIR, label="gold", labels=NLI, splits=NO_VALIDATION
)
vitaminc = Classification(
    dataset=hub("tals/vitaminc"), name="vitaminc/tals--vitaminc", sentence1="claim", sentence2="evidence",
    labels=("NOT ENOUGH INFO", "REFUTES", "SUPPORTS"),
)  # fmt: skip
fever = Classification(
    dataset=hub("mwong/fever-evidence-related"), name="fever-evidence-related/mwong--fever-related",
    sentence1="claim", sentence2="evidence", label="labels", labels=("not_related", "related"),
    splits=("train", "valid", "test"),
)  # fmt: skip
conj_nli = Classification(
    dataset=hub("pietrolesci/conj_nli"), **PAIR, labels=NLI, splits=("train", "dev", None)
)
mpe = Classification(
    dataset=hub("pietrolesci/mpe"), **PAIR, labels=NLI, splits=("train", "dev", "test")
)
breaking_nli = Classification(
    dataset=hub("pietrolesci/breaking_nli"), **NUMBERED, labels=NLI, splits=("full", None, None)
)
add_one_rte = Classification(
    dataset=hub("pietrolesci/add_one_rte"), **PAIR, labels=NOT_ENTAILED, splits=("train", "dev", "test")
)  # fmt: skip
recast_fnplus = Classification(
    dataset=hub("pietrolesci/recast_white"), name="recast_white/fnplus", sentence1="text", sentence2="hypothesis",
    labels=NOT_ENTAILED, splits=("fnplus", None, None),
)  # fmt: skip
recast_sprl = Classification(
    dataset=hub("pietrolesci/recast_white"), name="recast_white/sprl", sentence1="text", sentence2="hypothesis",
    labels=NOT_ENTAILED, splits=("sprl", None, None),
)  # fmt: skip
recast_dpr = Classification(
    dataset=hub("pietrolesci/recast_white"), name="recast_white/dpr", sentence1="text", sentence2="hypothesis",
    labels=NOT_ENTAILED, splits=("dpr", None, None),
    differs="made of all of definite_pronoun_resolution: leave it out where that one's test split is scored",
)  # fmt: skip
folio = Classification(
    dataset=hub("tasksource/folio"), sentence1=joined("premises"), sentence2="conclusion", splits=NO_TEST,
    label=named("label", {"True": "entailment", "Uncertain": "neutral", "False": "contradiction"}), labels=NLI,
)  # fmt: skip
label_nli = Classification(
    dataset=hub("tasksource/zero-shot-label-nli"), **PAIR, label="labels", labels=NLI,
    differs="its rows come from other data sets' training splits: leave it out where those are what is tested",
)  # fmt: skip
