"""Rows of the training splits, for the registered rates.

As the data sets' cards say them; no data is opened for it. BIG-bench's are 80 % of the counts in the card of the Hub's
`bigbench`, which leaves repeated examples out. Tasks whose size was found in no card weigh as `UNKNOWN` rows each:
little, so that a guess decides nothing, and less than most of them have. `data.rates: rows` with `data.rate_cap` counts
the rows that are really there instead.
"""

UNKNOWN = 1_000
"""For tasks whose size is not known here."""

# fmt: off
SIZES = {
    "glue/mnli": 392_702, "glue/qnli": 104_743, "glue/rte": 2_490, "glue/wnli": 635, "glue/mrpc": 3_668,
    "glue/qqp": 363_846, "glue/stsb": 5_749, "glue/cola": 8_551, "glue/sst2": 67_349, "super_glue/boolq": 9_427,
    "super_glue/cb": 250, "super_glue/multirc": 27_243, "super_glue/wic": 5_428, "super_glue/copa": 400,
    "snli": 549_367, "anli/a1": 16_946, "anli/a2": 45_460, "anli/a3": 100_459, "scitail/snli_format": 23_596,
    "sick/label": 4_439, "sick/relatedness": 4_439, "hans": 30_000, "WANLI": 102_885,
    "vitaminc/tals--vitaminc": 370_653, "folio": 1_001, "zero-shot-label-nli": 1_090_333,
    "paws/labeled_final": 49_401, "paws/labeled_swap": 30_397, "medical_questions_pairs": 3_048, "hlgd": 15_492,
    "wiki_qa": 20_360, "rotten_tomatoes": 8_530, "imdb": 25_000, "amazon_polarity": 3_600_000,
    "yelp_review_full": 650_000, "app_reviews": 288_065, "poem_sentiment": 892, "emotion": 16_000,
    "tweet_eval/sentiment": 45_615, "tweet_eval/emotion": 3_257, "tweet_eval/emoji": 45_000,
    "tweet_eval/hate": 9_000, "tweet_eval/irony": 2_862, "tweet_eval/offensive": 11_916,
    "tweet_eval/stance_abortion": 587, "tweet_eval/stance_atheism": 461, "tweet_eval/stance_climate": 355,
    "tweet_eval/stance_feminist": 597, "tweet_eval/stance_hillary": 620,
    "twitter-financial-news-sentiment": 9_543, "go_emotions/simplified": 43_410, "ag_news": 120_000,
    "dbpedia_14": 560_000, "yahoo_answers_topics": 1_400_000, "trec": 5_452, "trec/coarse": 5_452,
    "20_newsgroups": 11_314, "language-identification": 70_000, "ade_corpus_v2/Ade_corpus_v2_classification": 23_516,
    "lex_glue/scotus": 5_000, "lex_glue/ledgar": 60_000, "lex_glue/unfair_tos": 5_532, "lex_glue/case_hold": 45_000,
    "hate_speech_offensive": 24_783, "tweets_hate_speech_detection": 31_962, "hate_speech18": 10_703,
    "sms_spam": 5_574, "cosmos_qa": 25_262, "dream": 6_116, "quail": 10_246, "race/middle": 25_421,
    "race/high": 62_445, "sciq": 11_679, "openbookqa": 4_957, "ai2_arc/ARC-Challenge/challenge": 1_119,
    "ai2_arc/ARC-Easy/challenge": 2_251, "commonsense_qa": 9_741, "cos_e/v1.0": 7_610, "quartz": 2_696, "qasc": 8_134,
    "art": 169_654, "winogrande/winogrande_xl": 40_398, "hellaswag": 39_905, "swag/regular": 73_546, "piqa": 16_113,
    "social_i_qa": 33_410, "balanced-copa": 1_000, "codah/codah": 2_776, "definite_pronoun_resolution": 1_322,
    "reclor": 4_638, "MedQA-USMLE-4-options-hf": 10_178, "medmcqa": 182_822, "hh-rlhf/helpful-base": 43_835,
    "hh-rlhf/harmless-base": 42_537, "SHP": 348_718, "conll2003/ner_tags": 14_041, "conll2003/chunk_tags": 14_041,
    "conll2003/pos_tags": 14_041, "conll2000": 8_937, "wnut_17/wnut_17": 3_394, "ncbi_disease/ncbi_disease": 5_433,
    "fever-evidence-related/mwong--fever-related": 403_218, "conj_nli": 15_000, "breaking_nli": 8_193,
    "mpe": 8_000, "recast_white/fnplus": 155_000, "recast_white/sprl": 155_000, "recast_white/dpr": 3_660,
    "Sarcasm_News_Headline": 25_700, "toxic-chat/toxicity": 5_080, "toxic-chat/jailbreaking": 5_080,
    "prompt-injections": 546, "cloth": 76_850, "oasst2_pairwise_rlhf_reward": 26_971,
    "synthetic-instruct-gptj-pairwise": 33_143,
    "jnlpba/jnlpba": 37_094, "acronym_identification": 14_006, "few-nerd/supervised": 131_767,
} | {f"civil_comments/{attribute}": 1_804_874 for attribute in (
    "toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack", "sexual_explicit",
)} | {f"bigbench/{task}": rows * 80 // 100 for task, rows in {
    "abstract_narrative_understanding": 3_000, "anachronisms": 230, "analogical_similarity": 323,
    "analytic_entailment": 70, "causal_judgment": 190, "code_line_description": 60, "conceptual_combinations": 103,
    "crash_blossom": 38, "dark_humor_detection": 80, "date_understanding": 369, "disambiguation_qa": 258,
    "empirical_judgments": 99, "english_proverbs": 34, "entailed_polarity": 148, "epistemic_reasoning": 2_000,
    "evaluating_information_essentiality": 68, "fantasy_reasoning": 201, "figure_of_speech_detection": 59,
    "formal_fallacies_syllogisms_negation": 14_200, "general_knowledge": 70, "hindu_knowledge": 175,
    "human_organs_senses": 42, "hyperbaton": 50_000, "identify_odd_metaphor": 47, "implicatures": 492,
    "intent_recognition": 693, "irony_identification": 99, "known_unknowns": 46, "logic_grid_puzzle": 1_000,
    "logical_deduction": 1_500, "metaphor_boolean": 680, "misconceptions": 219, "moral_permissibility": 342,
    "movie_dialog_same_or_different": 50_000, "movie_recommendation": 500, "nonsense_words_grammar": 50,
    "novel_concepts": 32, "odd_one_out": 86, "phrase_relatedness": 100, "physical_intuition": 81,
    "presuppositions_as_nli": 735, "riddle_sense": 49, "ruin_names": 448, "salient_translation_error_detection": 998,
    "sentence_ambiguity": 60, "snarks": 181, "sports_understanding": 986, "strange_stories": 174, "strategyqa": 2_289,
    "temporal_sequences": 1_000, "timedial": 2_550, "understanding_fables": 189, "undo_permutation": 300,
    "vitaminc_fact_verification": 54_668, "winowhy": 2_862,
}.items()}
# fmt: on
