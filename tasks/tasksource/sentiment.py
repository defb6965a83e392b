"""Opinions and emotions."""

from t0jax.data.structured.records import Classification
from tasks.t0_hub import find_spec
from tasks.tasksource import names
from tasks.tasksource_fields import (
    GLUE_DEV,
    NO_TEST,
    NO_VALIDATION,
    POLARITY,
    THREE_POLARITIES,
    TRAIN_ONLY,
    hub,
    whole,
)

STARS = tuple(f"{n} star{'s' * (n > 1)}" for n in range(1, 6))
SAME_REVIEWS = "about half of the sentences it is scored on are in {0}'s training split: leave {0} out to score it"

sst2 = Classification(
    dataset=find_spec("glue", "sst2"), sentence1="sentence", labels=POLARITY, splits=NO_TEST,
    differs=f"{GLUE_DEV}; {SAME_REVIEWS.format('rotten_tomatoes')}",
)  # fmt: skip
rotten_tomatoes = Classification(
    dataset=find_spec("rotten_tomatoes", None), sentence1="text", labels=("neg", "pos"),
    differs=SAME_REVIEWS.format("glue/sst2"),
)  # fmt: skip
imdb = Classification(
    dataset=find_spec("imdb", None), sentence1="text", labels=("neg", "pos"), splits=NO_VALIDATION
)
amazon_polarity = Classification(
    dataset=find_spec("amazon_polarity", None), sentence1="content", labels=POLARITY, splits=NO_VALIDATION
)  # fmt: skip
yelp = Classification(
    dataset=find_spec("yelp_review_full", None),
    sentence1="text",
    labels=STARS,
    splits=NO_VALIDATION,
)
app_reviews = Classification(
    dataset=find_spec("app_reviews", None), sentence1="review", label=whole("star", first=1), labels=STARS,
    splits=TRAIN_ONLY, differs="the stars are names, so that its head is shared with yelp_review_full's",
)  # fmt: skip
poems = Classification(
    dataset=hub("google-research-datasets/poem_sentiment"), sentence1="verse_text",
    labels=("negative", "positive", "no_impact", "mixed"),
    differs="with its fourth label, which the data set's card names beside the three of its metadata",
)  # fmt: skip
emotion = Classification(
    dataset=hub("dair-ai/emotion", "split"), name="emotion", sentence1="text",
    labels=("sadness", "joy", "love", "anger", "fear", "surprise"),
)  # fmt: skip
tweet_sentiment = Classification(
    dataset=hub("cardiffnlp/tweet_eval", "sentiment"), sentence1="text", labels=THREE_POLARITIES
)
tweet_emotion = Classification(
    dataset=hub("cardiffnlp/tweet_eval", "emotion"), sentence1="text", labels=("anger", "joy", "optimism", "sadness")
)  # fmt: skip
tweet_emoji = Classification(
    dataset=hub("cardiffnlp/tweet_eval", "emoji"), sentence1="text", labels=names.EMOJI
)
auditors = Classification(
    dataset=hub("demo-org/auditor_review"), name="auditor_review/demo-org--auditor_review", sentence1="sentence",
    labels=THREE_POLARITIES, splits=NO_VALIDATION,
)  # fmt: skip
finance = Classification(
    dataset=hub("zeroshot/twitter-financial-news-sentiment"), sentence1="text",
    labels=("Bearish", "Bullish", "Neutral"), splits=NO_TEST,
)  # fmt: skip
go_emotions = Classification(
    dataset=hub("google-research-datasets/go_emotions", "simplified"), sentence1="text", label="labels",
    labels=names.GO_EMOTIONS, multilabel=True,
)  # fmt: skip
