"""A token task that needs no download: persons, places, days and amounts in sentences that a small grammar gives.

`toy_tokens` has 2,000 training, 200 validation and 200 test sentences. Some words are persons in one sentence and
places in another ("Florence"), so a word alone does not tell its tag. Nothing is drawn at random and no sentence is in
two splits. Importing this module writes them into the cache folder.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator

from t0jax.data.structured.records import TokenClassification
from t0jax.data.structured.source import add_task
from tasks.toy import local_specs, materialise
from tasks.toy_rows import Row

NAME = "toy_tokens"
KINDS = ("person", "place", "day", "amount")
LABELS = ("O", *(f"{where}-{kind}" for kind in KINDS for where in "BI"))
SIZES = {"train": 2000, "validation": 200, "test": 200}

BOTH = ("Florence", "Victoria", "Sydney", "Austin", "Carolina", "Jordan")
"""Persons and places."""
PERSONS = (*BOTH, "Anna Berg", "Ben", "Clara Holm", "David")
PLACES = (*BOTH, "New York", "Oslo", "Cape Town", "Lima")
DAYS = ("Monday", "next Friday", "the first of May", "Sunday morning")
AMOUNTS = ("two", "twenty five", "nine hundred", "a dozen")
SENTENCES = (
    "{person} flew to {place} on {day} .",
    "On {day} {person} sold {amount} tickets in {place} .",
    "The train from {place} brought {amount} letters for {person} .",
    "{amount} boats left {place} before {day} .",
    "A friend of {person} stays in {place} until {day} .",
    "{place} is cold on {day} , said {person} .",
)


def make_rows() -> dict[str, list[Row]]:
    """{split: rows} of words and the number of each one's tag, the same at every call."""
    unique = {json.dumps(row, sort_keys=True): row for row in _sentences()}
    ordered = sorted(unique, key=lambda text: hashlib.sha256(text.encode()).digest())
    rows = iter([unique[text] for text in ordered])
    return {split: list(itertools.islice(rows, size)) for split, size in SIZES.items()}


def _sentences() -> Iterator[Row]:
    fillings = itertools.product(PERSONS, PLACES, DAYS, AMOUNTS)
    for sentence, filling in itertools.product(SENTENCES, list(fillings)):
        words, tags = _fill(sentence, dict(zip(KINDS, filling, strict=True)))
        yield {"tokens": words, "tags": [LABELS.index(tag) for tag in tags]}


def _fill(sentence: str, filling: dict[str, str]) -> tuple[list[str], list[str]]:
    words: list[str] = []
    tags: list[str] = []
    for word in sentence.split():
        kind = word.strip("{}") if word.startswith("{") else ""
        inside = filling[kind].split() if kind else [word]
        words += inside
        tags += [f"{'I' if k else 'B'}-{kind}" if kind else "O" for k in range(len(inside))]
    return words, tags


RECORD = TokenClassification(
    dataset=local_specs(materialise({NAME: make_rows()}), [NAME])[NAME],
    tokens="tokens",
    tags="tags",
    labels=LABELS,
    differs="not in tasksource",
)
add_task(RECORD)
