"""A multitask set that needs no download: five generated data sets, each seen through a dozen prompts.

| mixture | what |
|---|---|
| toy_train | the training prompts, as text to text |
| toy_train_score_eval | the same prompts by rank classification |
| toy_eval_score_eval | the two prompts of each data set that are never trained on, by rank classification |

Rows come from `tasks.toy_rows` and are written to the cache folder when this module is imported; the prompts are in
`tasks/toy_prompts`, in promptsource's format. The vocabulary is trained there too, when a text is first encoded.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import seqio

from t0jax.data.arrow import cache_dir, write_cached
from t0jax.data.rows import DatasetSpec, PromptedRows
from t0jax.data.sources import RANK_SUFFIX, add_mixture, add_prompt_task, add_rank_task
from t0jax.data.templates import load_templates
from t0jax.data.vocabulary import EXTRA_IDS, train_sentencepiece
from tasks.toy_rows import make_rows

PROMPTS = Path(__file__).parent / "toy_prompts"
VOCABULARY_SIZE = 384
"""Pieces, without the 100 extra ids."""

HELD_OUT = {
    "toy_reviews": ("sentiment of the review", "friend asks good or bad"),
    "toy_headlines": ("label the headline", "newspaper page for it"),
    "toy_facts": ("what we read", "claim checked"),
    "toy_sizes": ("of the two", "somebody says larger"),
    "toy_places": ("go to see", "places listed first"),
}
"""Prompts of each data set that no training mixture holds."""


def materialise() -> Path:
    """Writes the rows as `<data set>/default/<split>.jsonl` into the cache, unless they are there; the folder.

    The folder is named by its content: changed rows go to another one.

    Raises:
      DataError: the cache folder cannot be written.
    """
    files = {
        f"{dataset}/default/{split}.jsonl": "".join(json.dumps(row) + "\n" for row in rows)
        for dataset, splits in make_rows().items()
        for split, rows in splits.items()
    }
    content = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    root = cache_dir() / "toy" / content
    for name, text in files.items():
        if not (root / name).is_file():
            write_cached(root / name, functools.partial(_write, text))
    return root


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


ROOT = materialise()
SPECS = {name: DatasetSpec(name, local=str(ROOT / name / "default")) for name in HELD_OUT}


# Vocabulary


class ToyVocabularyFile(os.PathLike):
    """The path of the toy vocabulary's SentencePiece model, which is trained when the path is first asked for."""

    def __fspath__(self) -> str:
        return str(vocabulary_file())


@functools.cache
def vocabulary_file() -> Path:
    """A SentencePiece model of the training prompts' text, trained on first use."""
    prompts = b"".join((PROMPTS / name / "templates.yaml").read_bytes() for name in SPECS)
    content = hashlib.sha256(prompts + str(VOCABULARY_SIZE).encode()).hexdigest()[:12]
    path = ROOT / f"vocabulary-{content}.model"
    return path if path.is_file() else train_sentencepiece(training_texts(), path, VOCABULARY_SIZE)


def training_texts() -> Iterator[str]:
    """Inputs and targets of every tenth training row under every training prompt."""
    for dataset, prompt in prompt_names(held_out=False):
        rows = PromptedRows(SPECS[dataset], "train", prompt, prompts_root=str(PROMPTS))
        for index in range(0, len(rows), 10):
            rendered = rows[index]
            if rendered is not None:
                yield rendered.inputs
                yield rendered.targets


VOCABULARY = seqio.SentencePieceVocabulary(ToyVocabularyFile(), extra_ids=EXTRA_IDS)


# Tasks and mixtures


def prompt_names(*, held_out: bool) -> list[tuple[str, str]]:
    """(data set, prompt) of all prompts held out of training, or of all others."""
    return [
        (dataset, name)
        for dataset in SPECS
        for name in sorted(t.name for t in load_templates(PROMPTS, dataset).values())
        if (name in HELD_OUT[dataset]) == held_out
    ]


def task_name(dataset: str, prompt: str) -> str:
    """Name of the text-to-text task of a prompt."""
    return f"{dataset}_{prompt}".replace(",", "").replace(" ", "_")


def _register(dataset: str, prompt: str) -> str:
    name = task_name(dataset, prompt)
    for add in (add_prompt_task, add_rank_task):
        add(name, SPECS[dataset], prompt, vocabulary=VOCABULARY, prompts_root=str(PROMPTS))
    return name


_TRAINING = [_register(*prompt) for prompt in prompt_names(held_out=False)]
_HELD_OUT = [_register(*prompt) for prompt in prompt_names(held_out=True)]

add_mixture("toy_train", dict.fromkeys(_TRAINING, 1.0))
add_mixture("toy_train_score_eval", {name + RANK_SUFFIX: 1.0 for name in _TRAINING})
add_mixture("toy_eval_score_eval", {name + RANK_SUFFIX: 1.0 for name in _HELD_OUT})
