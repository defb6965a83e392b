"""Two families of many subjects: MMLU's exams and BIG-bench's multiple-choice tasks."""

from t0jax.data.structured.records import MultipleChoice
from tasks.bigbench_record import BigBench, best_grade
from tasks.bigbench_rows import task_spec
from tasks.tasksource.names import listed
from tasks.tasksource_fields import hub

SUBJECTS = listed(
    "abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry "
    "college_computer_science college_mathematics college_medicine college_physics computer_security "
    "conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_european_history "
    "high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics "
    "high_school_microeconomics high_school_physics high_school_psychology high_school_statistics "
    "high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence "
    "logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes "
    "moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine "
    "professional_psychology public_relations security_studies sociology us_foreign_policy virology "
    "world_religions"
)

BIG_BENCH = listed(
    "abstract_narrative_understanding anachronisms analogical_similarity analytic_entailment causal_judgment "
    "code_line_description conceptual_combinations crash_blossom dark_humor_detection date_understanding "
    "disambiguation_qa empirical_judgments english_proverbs entailed_polarity epistemic_reasoning "
    "evaluating_information_essentiality fantasy_reasoning figure_of_speech_detection "
    "formal_fallacies_syllogisms_negation general_knowledge hindu_knowledge human_organs_senses hyperbaton "
    "identify_odd_metaphor implicatures intent_recognition irony_identification known_unknowns logic_grid_puzzle "
    "logical_deduction metaphor_boolean misconceptions moral_permissibility movie_dialog_same_or_different "
    "movie_recommendation nonsense_words_grammar novel_concepts odd_one_out phrase_relatedness physical_intuition "
    "presuppositions_as_nli riddle_sense ruin_names salient_translation_error_detection sentence_ambiguity snarks "
    "sports_understanding strange_stories strategyqa temporal_sequences timedial understanding_fables "
    "undo_permutation vitaminc_fact_verification winowhy"
)


def mmlu(subject: str) -> MultipleChoice:
    """An exam of MMLU: its few worked examples and training texts of other sets are not read, so it is for tests."""
    return MultipleChoice(
        dataset=hub("cais/mmlu", subject), inputs="question", choices="choices", label="answer",
        splits=(None, "validation", "test"),
        differs="not trained on, for models are compared by it; tasksource trains on its validation split",
    )  # fmt: skip


def big_bench(task: str) -> BigBench:
    """A task of BIG-bench, cut by inputs: the splits of the Hub's copy are of rows, of which many repeat an input."""
    return BigBench(
        dataset=task_spec(task), inputs="input", choices="choices", label=best_grade,
        splits=("train", "validation", None),
        differs="the best grade is the right option; in tasksource always the last one is, by a wrong test; "
        "validation is about a fifth, by inputs (with options where these alone differ), where tasksource reads its "
        "copy's own splits",
    )  # fmt: skip


MMLU = [mmlu(subject) for subject in SUBJECTS]
BIG_BENCH_TASKS = [big_bench(task) for task in BIG_BENCH]
