"""How something is said: acceptable, hateful, ironic, for or against."""

from t0jax.data.structured.records import Classification, constant
from tasks.t0_hub import find_spec
from tasks.tasksource_fields import (
    GLUE_DEV,
    NO_TEST,
    NO_VALIDATION,
    TRAIN_ONLY,
    hateful_or_not,
    hub,
)

TWEETS = "cardiffnlp/tweet_eval"
LATER = "in later versions of tasksource than 0.0.47"


def _stance(subset: str, topic: str) -> Classification:
    """For or against a topic, which is named: all topics share a head."""
    return Classification(
        dataset=hub(TWEETS, subset), sentence1=constant(f"Topic: {topic}."), sentence2="text",
        labels=("none", "against", "favor"),
    )  # fmt: skip


cola = Classification(
    dataset=find_spec("glue", "cola"), sentence1="sentence", labels=("unacceptable", "acceptable"), splits=NO_TEST,
    differs=GLUE_DEV,
)  # fmt: skip
hate = Classification(dataset=hub(TWEETS, "hate"), sentence1="text", labels=("non-hate", "hate"))
irony = Classification(
    dataset=hub(TWEETS, "irony"), sentence1="text", labels=("non_irony", "irony")
)
offensive = Classification(
    dataset=hub(TWEETS, "offensive"), sentence1="text", labels=("non-offensive", "offensive")
)
abortion = _stance("stance_abortion", "abortion")
atheism = _stance("stance_atheism", "atheism")
climate = _stance("stance_climate", "climate change")
feminism = _stance("stance_feminist", "feminism")
hillary = _stance("stance_hillary", "Hillary Clinton")
hate_offensive = Classification(
    dataset=hub("tdavidson/hate_speech_offensive"), sentence1="tweet", label="class",
    labels=("hate speech", "offensive language", "neither"), splits=TRAIN_ONLY,
)  # fmt: skip
tweets_hate = Classification(
    dataset=hub("tweets-hate-speech-detection/tweets_hate_speech_detection"), sentence1="tweet",
    labels=("no-hate-speech", "hate-speech"), splits=TRAIN_ONLY,
)  # fmt: skip
forum_hate = Classification(
    dataset=hub("tasksource/hate_speech18"), sentence1="text", labels=("noHate", "hate"), splits=TRAIN_ONLY,
    where=hateful_or_not, differs="without skipped texts and such as are hateful only beside others, two more labels",
)  # fmt: skip
dynahate = Classification(
    dataset=hub("tasksource/dynahate"),
    sentence1="text",
    labels=("hate", "nothate"),
    splits=TRAIN_ONLY,
)
hatemoji = Classification(
    dataset=hub("HannahRoseKirk/HatemojiBuild"), sentence1="text", label="label_gold",
    labels=("not-hate-speech", "hate-speech"),
)  # fmt: skip
sarcasm = Classification(
    dataset=hub("raquiba/Sarcasm_News_Headline"), sentence1="headline", label="is_sarcastic",
    labels=("not sarcastic", "sarcastic"), splits=("train[:90%]", "train[90%:]", None),
    differs="the copy's train and test are two versions of one set, so validation is a tenth of train and test is left",
)  # fmt: skip
sms_spam = Classification(
    dataset=hub("ucirvine/sms_spam"), sentence1="sms", labels=("ham", "spam"), splits=TRAIN_ONLY
)
toxic_chat = Classification(
    dataset=hub("lmsys/toxic-chat", "toxicchat0124"), name="toxic-chat/toxicity", sentence1="user_input",
    label="toxicity", labels=("not toxic", "toxic"), splits=NO_VALIDATION, differs=LATER,
)  # fmt: skip
jailbreaks = Classification(
    dataset=hub("lmsys/toxic-chat", "toxicchat0124"), name="toxic-chat/jailbreaking", sentence1="user_input",
    label="jailbreaking", labels=("not jailbreak", "jailbreak"), splits=NO_VALIDATION, differs=LATER,
)  # fmt: skip
prompt_injection = Classification(
    dataset=hub("deepset/prompt-injections"), sentence1="text", labels=("benign", "injection"), splits=NO_VALIDATION,
    differs=LATER,
)  # fmt: skip


def _civil(attribute: str) -> Classification:
    """The share of raters who say so of a comment."""
    return Classification(
        dataset=hub("google/civil_comments"), name=f"civil_comments/{attribute}", sentence1="text", label=attribute,
        scale=(0.0, 1.0),
    )  # fmt: skip


civil_toxicity = _civil("toxicity")
civil_severe_toxicity = _civil("severe_toxicity")
civil_obscene = _civil("obscene")
civil_threat = _civil("threat")
civil_insult = _civil("insult")
civil_identity_attack = _civil("identity_attack")
civil_sexual_explicit = _civil("sexual_explicit")
