"""Questions, stories and tests of common sense with options to choose from."""

from t0jax.data.structured.records import MultipleChoice, joined, letter, position
from tasks.t0_hub import find_spec
from tasks.tasksource_fields import (
    GLUE_DEV,
    GOLD_FIRST,
    NO_TEST,
    NO_VALIDATION,
    TRAIN_ONLY,
    answer_first,
    cause_or_effect,
    dialogue_and_question,
    hub,
    whole,
    whose_pronoun,
)

ENDINGS = ("ending0", "ending1", "ending2", "ending3")
ASKED = "says whether cause or effect is asked for; tasksource 0.0.47 gives the premise alone"
ALL_OPTIONS = "options keep their number and are shuffled; tasksource keeps as many as its shortest question has"

cosmos_qa = MultipleChoice(
    dataset=find_spec("cosmos_qa", None), inputs=joined("context", "question"),
    choices=("answer0", "answer1", "answer2", "answer3"), splits=NO_TEST,
)  # fmt: skip
dream = MultipleChoice(
    dataset=find_spec("dream", None), inputs=dialogue_and_question, choices="choice",
    label=position("answer", "choice"), differs=ALL_OPTIONS,
)  # fmt: skip
quail = MultipleChoice(
    dataset=find_spec("quail", None), inputs=joined("context", "question"), choices="answers",
    label="correct_answer_id", splits=("train", "validation", "challenge"),
    differs="the challenge set is the test split; tasksource drops it and cuts validation in two",
)  # fmt: skip
race_middle = MultipleChoice(
    dataset=find_spec("race", "middle"), inputs=joined("question", "article", separator="\n"), choices="options",
    label=letter("answer"), differs=ALL_OPTIONS,
)  # fmt: skip
race_high = MultipleChoice(
    dataset=find_spec("race", "high"), inputs=joined("question", "article", separator="\n"), choices="options",
    label=letter("answer"), differs=ALL_OPTIONS,
)  # fmt: skip
race_college = MultipleChoice(
    dataset=hub("tasksource/race-c"), inputs=joined("question", "article", separator="\n"), choices="option",
    differs=ALL_OPTIONS,
)  # fmt: skip
sciq = MultipleChoice(
    dataset=find_spec("sciq", None), inputs="question",
    choices=("correct_answer", "distractor1", "distractor2", "distractor3"), label=0, differs=GOLD_FIRST,
)  # fmt: skip
openbookqa = MultipleChoice(
    dataset=find_spec("openbookqa", "main"), name="openbookqa", inputs="question_stem", choices="choices.text",
    label=letter("answerKey"), differs=ALL_OPTIONS,
)  # fmt: skip
arc_challenge = MultipleChoice(
    dataset=find_spec("ai2_arc", "ARC-Challenge"), name="ai2_arc/ARC-Challenge/challenge", inputs="question",
    choices="choices.text", label=position("answerKey", "choices.label"), differs=ALL_OPTIONS,
)  # fmt: skip
arc_easy = MultipleChoice(
    dataset=find_spec("ai2_arc", "ARC-Easy"), name="ai2_arc/ARC-Easy/challenge", inputs="question",
    choices="choices.text", label=position("answerKey", "choices.label"), differs=ALL_OPTIONS,
)  # fmt: skip
commonsense_qa = MultipleChoice(
    dataset=hub("tau/commonsense_qa"), inputs="question", choices="choices.text", label=letter("answerKey"),
    splits=NO_TEST, differs=ALL_OPTIONS,
)  # fmt: skip
cos_e = MultipleChoice(
    dataset=find_spec("cos_e", "v1.0"), inputs="question", choices="choices", label=position("answer", "choices"),
    splits=NO_TEST,
)  # fmt: skip
quartz = MultipleChoice(
    dataset=find_spec("quartz", None), inputs=joined("para", "question"), choices="choices.text",
    label=letter("answerKey"), differs="with the paragraph, which tasksource leaves out",
)  # fmt: skip
qasc = MultipleChoice(
    dataset=find_spec("qasc", None), inputs="question", choices="choices.text", label=letter("answerKey"),
    splits=NO_TEST, differs=ALL_OPTIONS,
)  # fmt: skip
art = MultipleChoice(
    dataset=hub("allenai/art"), inputs=joined("observation_1", "observation_2", separator="\n"),
    choices=("hypothesis_1", "hypothesis_2"), label=whole("label", first=1), splits=NO_TEST,
    differs="two observations, and which hypothesis explains them; tasksource 0.0.47 has them swapped",
)  # fmt: skip
winogrande = MultipleChoice(
    dataset=find_spec("winogrande", "winogrande_xl"), inputs="sentence", choices=("option1", "option2"),
    label=whole("answer", first=1), splits=NO_TEST,
)  # fmt: skip
hellaswag = MultipleChoice(
    dataset=find_spec("hellaswag", None), inputs="ctx", choices="endings", label=whole("label"), splits=NO_TEST,
    differs="the whole context is the text; tasksource puts the begun sentence before each ending",
)  # fmt: skip
swag = MultipleChoice(
    dataset=hub("allenai/swag", "regular"), inputs=joined("sent1", "sent2"), choices=ENDINGS, splits=NO_TEST
)  # fmt: skip
piqa = MultipleChoice(
    dataset=find_spec("piqa", None), inputs="goal", choices=("sol1", "sol2"), splits=NO_TEST
)
social_i_qa = MultipleChoice(
    dataset=find_spec("social_i_qa", None), inputs=joined("context", "question"),
    choices=("answerA", "answerB", "answerC"), label=whole("label", first=1), splits=NO_TEST,
    differs="with the context, which tasksource 0.0.47 leaves out and without which nobody can know",
)  # fmt: skip
copa = MultipleChoice(
    dataset=find_spec("super_glue", "copa"), inputs=cause_or_effect, choices=("choice1", "choice2"),
    splits=NO_TEST, differs=f"{ASKED}; {GLUE_DEV}",
)  # fmt: skip
balanced_copa = MultipleChoice(
    dataset=hub("pkavumba/balanced-copa"), inputs=cause_or_effect, choices=("choice1", "choice2"),
    splits=NO_VALIDATION,
    differs=f"trains on COPA's development questions and mirrors of them: leave out to score super_glue/copa; {ASKED}",
)  # fmt: skip
fig_qa = MultipleChoice(
    dataset=hub("nightingal3/fig-qa"), inputs="startphrase", choices=("ending1", "ending2"), label="labels",
    splits=NO_TEST,
)  # fmt: skip
codah = MultipleChoice(
    dataset=hub("jaredfern/codah", "codah"), inputs="question_propmt", choices="candidate_answers",
    label="correct_answer_idx", splits=TRAIN_ONLY,
)  # fmt: skip
pronouns = MultipleChoice(
    dataset=hub("community-datasets/definite_pronoun_resolution"), inputs=whose_pronoun, choices="candidates",
    splits=NO_VALIDATION, differs="recast_white/dpr has its test sentences too: leave that out to score them",
)  # fmt: skip
arct = MultipleChoice(
    dataset=hub("tasksource/arct"), inputs=joined("reason", "claim"), choices=("warrant0", "warrant1"),
    label="correctLabelW0orW1",
)  # fmt: skip
cloth = MultipleChoice(
    dataset=hub("AndyChiang/cloth"), inputs="sentence", choices=answer_first, label=0, differs=GOLD_FIRST
)  # fmt: skip
reclor = MultipleChoice(
    dataset=hub("tasksource/reclor"), inputs=joined("context", "question"), choices="answers", splits=NO_TEST
)  # fmt: skip
lsat_ar = MultipleChoice(
    dataset=hub("tasksource/lsat-ar"), inputs=joined("context", "question"), choices="answers", differs=ALL_OPTIONS
)  # fmt: skip
lsat_rc = MultipleChoice(
    dataset=hub("tasksource/lsat-rc"), inputs=joined("context", "question"), choices="answers", differs=ALL_OPTIONS
)  # fmt: skip
science_qa = MultipleChoice(
    dataset=hub("tasksource/ScienceQA_text_only"), inputs="question", choices="choices", label="answer",
    differs=ALL_OPTIONS,
)  # fmt: skip
medqa = MultipleChoice(
    dataset=hub("GBaker/MedQA-USMLE-4-options-hf"), inputs="sent1", choices=ENDINGS
)
medmcqa = MultipleChoice(
    dataset=hub("openlifescienceai/medmcqa"), inputs="question", choices=("opa", "opb", "opc", "opd"), label="cop",
    splits=NO_TEST,
)  # fmt: skip
case_hold = MultipleChoice(
    dataset=hub("coastalcph/lex_glue", "case_hold"), inputs="context", choices="endings", differs=ALL_OPTIONS
)  # fmt: skip
