"""Two texts: paraphrases, likeness as a number, and a passage with a question to be answered yes or no."""

from typing import Any

from t0jax.data.structured.records import Classification, joined
from tasks.t0_hub import find_spec
from tasks.tasksource_fields import GLUE_DEV, NO_TEST, PARAPHRASE, TRAIN_ONLY, hub

NUMBERED: dict[str, Any] = {"sentence1": "sentence1", "sentence2": "sentence2"}
FALSE_TRUE = ("False", "True")

mrpc = Classification(
    dataset=find_spec("glue", "mrpc"), **NUMBERED, labels=("not_equivalent", "equivalent")
)
qqp = Classification(
    dataset=find_spec("glue", "qqp"), sentence1="question1", sentence2="question2",
    labels=("not_duplicate", "duplicate"), splits=NO_TEST, differs=GLUE_DEV,
)  # fmt: skip
stsb = Classification(
    dataset=find_spec("glue", "stsb"), **NUMBERED, scale=(0.0, 5.0), splits=NO_TEST, differs=GLUE_DEV
)  # fmt: skip
sick_relatedness = Classification(
    dataset=hub("tasksource/sick"), name="sick/relatedness", sentence1="sentence_A", sentence2="sentence_B",
    label="relatedness_score", scale=(1.0, 5.0),
)  # fmt: skip
paws = Classification(dataset=find_spec("paws", "labeled_final"), **NUMBERED, labels=PARAPHRASE)
paws_swap = Classification(
    dataset=find_spec("paws", "labeled_swap"), **NUMBERED, labels=PARAPHRASE, splits=TRAIN_ONLY
)
medical_questions = Classification(
    dataset=hub("curaihealth/medical_questions_pairs"), sentence1="question_1", sentence2="question_2",
    labels=("not similar", "similar"), splits=TRAIN_ONLY,
    differs="labels say what they mean; in tasksource 0.0.47 they are False and True, and share a head with BoolQ's",
)  # fmt: skip
hlgd = Classification(
    dataset=hub("tasksource/hlgd"), sentence1="headline_a", sentence2="headline_b",
    labels=("different_event", "same_event"),
    differs="the data set's own names are the wrong way round: its card says that 1 is the same event",
)  # fmt: skip
apt = Classification(
    dataset=hub("tasksource/apt"), sentence1="text_a", sentence2="text_b", label="labels", labels=PARAPHRASE
)  # fmt: skip
parade = Classification(
    dataset=hub("tasksource/parade"), sentence1="Definition1", sentence2="Definition2", label="Binary labels",
    labels=("not-paraphrase", "paraphrase"),
)  # fmt: skip
boolq = Classification(
    dataset=find_spec("super_glue", "boolq"), sentence1="question", sentence2="passage", labels=FALSE_TRUE,
    splits=NO_TEST, differs="with the passage, which tasksource leaves out and without which nobody can know; "
    + GLUE_DEV,
)  # fmt: skip
wic = Classification(
    dataset=find_spec("super_glue", "wic"), sentence1=joined("word", "sentence1", separator=": "),
    sentence2=joined("word", "sentence2", separator=": "), labels=FALSE_TRUE, splits=NO_TEST, differs=GLUE_DEV,
)  # fmt: skip
multirc = Classification(
    dataset=find_spec("super_glue", "multirc"), sentence1=joined("paragraph", "question"), sentence2="answer",
    labels=FALSE_TRUE, splits=NO_TEST, differs=GLUE_DEV,
)  # fmt: skip
wiki_qa = Classification(
    dataset=find_spec("wiki_qa", None), sentence1="question", sentence2="answer", labels=FALSE_TRUE
)
