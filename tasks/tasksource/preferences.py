"""Which of two answers people prefer. The preferred one is often in a fixed column: options are shuffled when read."""

from t0jax.data.structured.records import MultipleChoice
from tasks.tasksource_fields import (
    GOLD_FIRST,
    NO_TEST,
    NO_VALIDATION,
    TRAIN_ONLY,
    chosen_answer,
    dialogue_before,
    hub,
    other_of_two,
    rejected_answer,
    same_dialogue,
)


def _hh_rlhf(subset: str) -> MultipleChoice:
    return MultipleChoice(
        dataset=hub("tasksource/hh-rlhf", subset), inputs=dialogue_before, choices=(chosen_answer, rejected_answer),
        label=0, splits=NO_VALIDATION, where=same_dialogue,
        differs=f"the dialogue is the text, of tasksource's options each repeats it; {GOLD_FIRST}",
    )  # fmt: skip


helpful_base = _hh_rlhf("helpful-base")
helpful_online = _hh_rlhf("helpful-online")
helpful_rejection_sampled = _hh_rlhf("helpful-rejection-sampled")
harmless_base = _hh_rlhf("harmless-base")
synthetic_instruct = MultipleChoice(
    dataset=hub("Dahoas/synthetic-instruct-gptj-pairwise"), inputs="prompt", choices=("chosen", "rejected"),
    label=0, splits=TRAIN_ONLY,
)  # fmt: skip
oasst = MultipleChoice(
    dataset=hub("tasksource/oasst2_pairwise_rlhf_reward"), inputs="prompt", choices=("chosen", "rejected"), label=0,
    splits=NO_TEST,
)  # fmt: skip
shp = MultipleChoice(
    dataset=hub("stanfordnlp/SHP"), inputs="history", choices=("human_ref_A", "human_ref_B"), label=other_of_two,
    differs="labels is 1 where the first reply is preferred; tasksource 0.0.47 takes it for the right one's number",
)  # fmt: skip
safer_rlhf = MultipleChoice(
    dataset=hub("PKU-Alignment/PKU-SafeRLHF"), name="PKU-SafeRLHF/safety", inputs="prompt",
    choices=("response_0", "response_1"), label="safer_response_id", splits=NO_VALIDATION,
)  # fmt: skip
better_rlhf = MultipleChoice(
    dataset=hub("PKU-Alignment/PKU-SafeRLHF"), name="PKU-SafeRLHF/helpfulness", inputs="prompt",
    choices=("response_0", "response_1"), label="better_response_id", splits=NO_VALIDATION,
)  # fmt: skip
