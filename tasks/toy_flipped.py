"""FLIPPED's experiment in small: prompts never trained on, and answers in words never trained on.

| mixture | tasks | what |
|---|---|---|
| toy_flipped_train | 48 | training prompts of five generated data sets: input and answer -> instruction |
| toy_flipped_eval | 10 | the two prompts of each data set that are never trained on, by rank classification |
| toy_flipped_words | 84 | training prompts of three data sets with own, known and new words for yes and no |
| toy_flipped_all | 94 | both |

Reviews, headlines and places are those of tasks.toy; deeds and meals are like the reviews, so that words for yes and no
have something in common between data sets. The facts and sizes of tasks.toy are left out: in so few steps their
questions for yes or no stay at chance, direct and flipped alike.

Known words are answers of another of the three data sets, never of this one. New words are in no training text, and the
model starts from random weights: nothing can tell it what they mean, and what differs from chance is luck with their
spelling. `data.view: direct` and `channel` train and score the same rows and prompts the other ways round.
"""

import functools
from pathlib import Path

import seqio

from t0jax.data.sources import add_mixture, add_prompt_task, add_rank_task
from t0jax.data.templates import find_template
from t0jax.data.vocabulary import EXTRA_IDS
from tasks import toy
from tasks.toy_flipped_rows import make_rows

PREFIX = "flipped_"

HELD_OUT = {
    **{name: toy.HELD_OUT[name] for name in ("toy_reviews", "toy_headlines", "toy_places")},
    "toy_deeds": ("think about it", "teacher would praise"),
    "toy_meals": ("talk about food", "coach"),
}
"""Prompts of each data set that are never trained on."""

WORD_PROMPTS = {
    "toy_reviews": (
        "positive or negative",
        "happy customer",
        "what sentiment",
        "what the writer felt",
    ),
    "toy_deeds": ("kind or unkind", "right or wrong to do", "judge", "the deed was"),
    "toy_meals": ("healthy or unhealthy", "smart or silly", "doctor", "claim of a nurse"),
}
"""Prompts that are trained on: two that list their answers, two that do not."""

KNOWN_WORDS = {
    "toy_reviews": (("right", "wrong"), ("true", "false"), ("smart", "silly")),
    "toy_deeds": (("positive", "negative"), ("true", "false"), ("smart", "silly")),
    "toy_meals": (("positive", "negative"), ("right", "wrong"), ("good", "bad")),
}
"""For yes and for no, as prompts of the other data sets say them."""

NEW_WORDS = (("agree", "disagree"), ("correct", "incorrect"), ("accurate", "inaccurate"))
"""For yes and for no, as no training text says them."""

ROOT = toy.materialise(make_rows())
SPECS = {**toy.SPECS, **toy.local_specs(ROOT, make_rows())}
SPECS = {name: SPECS[name] for name in HELD_OUT}


@functools.cache
def vocabulary_file() -> Path:
    """A SentencePiece model of the training prompts' text, trained on first use."""
    return toy.train_vocabulary(ROOT, SPECS, toy.prompt_names(held_out=False, sets=HELD_OUT))


VOCABULARY = seqio.SentencePieceVocabulary(
    toy.ToyVocabularyFile(vocabulary_file),  # pyright: ignore[reportArgumentType]  a text once it is read
    extra_ids=EXTRA_IDS,
)
OPTIONS = {"vocabulary": VOCABULARY, "prompts_root": str(toy.PROMPTS), "view": "flipped"}


def register_prompts(*, held_out: bool) -> list[str]:
    """Names of the rank tasks of prompts held out, or of the text tasks of all others."""
    add = add_rank_task if held_out else add_prompt_task
    return [
        add(PREFIX + toy.task_name(dataset, prompt), SPECS[dataset], prompt, **OPTIONS).name
        for dataset, prompt in toy.prompt_names(held_out=held_out, sets=HELD_OUT)
    ]


def register_words() -> list[str]:
    """Names of the rank tasks `flipped_<data set>_<prompt>_<words>_score_eval`."""
    return [
        add_rank_task(
            f"{PREFIX}{toy.task_name(dataset, prompt)}_{name}",
            SPECS[dataset],
            prompt,
            label_words=label_words(dataset, prompt, words),
            **OPTIONS,
        ).name
        for dataset, prompts in WORD_PROMPTS.items()
        for prompt in prompts
        for name, words in word_sets(dataset).items()
    ]


def word_sets(dataset: str) -> dict[str, tuple[str, str] | None]:
    """{name: words for yes and for no} that a data set is scored with; None are a prompt's own."""
    kinds = (("known", KNOWN_WORDS[dataset]), ("new", NEW_WORDS))
    named = {f"{kind}_{'_'.join(words)}": words for kind, sets in kinds for words in sets}
    return {"own": None, **named}


def label_words(dataset: str, prompt: str, words: tuple[str, str] | None) -> dict[str, str]:
    """{own word: other word} of a prompt whose first choice says yes and whose second says no."""
    if words is None:
        return {}
    own = find_template(toy.PROMPTS, dataset, None, prompt).fixed_answer_choices or []
    return dict(zip(map(str.lower, own), words, strict=True))


add_mixture("toy_flipped_train", dict.fromkeys(register_prompts(held_out=False), 1.0))
add_mixture("toy_flipped_eval", dict.fromkeys(register_prompts(held_out=True), 1.0))
add_mixture("toy_flipped_words", dict.fromkeys(register_words(), 1.0))
add_mixture("toy_flipped_all", {"toy_flipped_eval": 1.0, "toy_flipped_words": 1.0})
