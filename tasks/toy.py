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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import seqio

from t0jax.data.arrow import cache_dir, write_cached
from t0jax.data.rows import DatasetSpec, PromptedRows
from t0jax.data.sources import RANK_SUFFIX, add_mixture, add_prompt_task, add_rank_task
from t0jax.data.templates import load_templates
from t0jax.data.vocabulary import EXTRA_IDS, train_sentencepiece
from tasks.toy_rows import Row, make_rows

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


def materialise(data: Mapping[str, Mapping[str, Sequence[Row]]]) -> Path:
    """Writes {data set: {split: rows}} as `<data set>/default/<split>.jsonl` into the cache, unless there; the folder.

    The folder is named by its content: changed rows go to another one.

    Raises:
      DataError: the cache folder cannot be written.
    """
    files = {
        f"{dataset}/default/{split}.jsonl": "".join(json.dumps(row) + "\n" for row in rows)
        for dataset, splits in data.items()
        for split, rows in splits.items()
    }
    content = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    root = cache_dir() / "toy" / content
    for name, text in files.items():
        if not (root / name).is_file():
            write_cached(root / name, functools.partial(_write, text))
    return root


def local_specs(root: Path, names: Iterable[str]) -> dict[str, DatasetSpec]:
    """{name: data set} of some that were written below `root`."""
    return {name: DatasetSpec(name, local=str(root / name / "default")) for name in names}


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


ROOT = materialise(make_rows())
SPECS = local_specs(ROOT, HELD_OUT)


# Vocabulary


class ToyVocabularyFile(os.PathLike):
    """The path of a SentencePiece model, which is trained when the path is first asked for."""

    def __init__(self, find: Callable[[], Path]) -> None:
        self._find = find

    def __fspath__(self) -> str:
        return str(self._find())


@functools.cache
def vocabulary_file() -> Path:
    """A SentencePiece model of the training prompts' text, trained on first use."""
    return train_vocabulary(ROOT, SPECS, prompt_names(held_out=False))


def train_vocabulary(
    root: Path, specs: Mapping[str, DatasetSpec], names: Sequence[tuple[str, str]]
) -> Path:
    """A SentencePiece model of the text of (data set, prompt)s below `root`, unless it is there."""
    prompts = b"".join((PROMPTS / name / "templates.yaml").read_bytes() for name in specs)
    rows = [(dataset, prompt, specs[dataset].local) for dataset, prompt in names]
    content = hashlib.sha256(prompts + f"{VOCABULARY_SIZE}{rows}".encode()).hexdigest()[:12]
    path = root / f"vocabulary-{content}.model"
    texts = training_texts(specs, names)
    return path if path.is_file() else train_sentencepiece(texts, path, VOCABULARY_SIZE)


def training_texts(
    specs: Mapping[str, DatasetSpec], names: Sequence[tuple[str, str]]
) -> Iterator[str]:
    """Inputs and targets of every tenth training row under every prompt."""
    for dataset, prompt in names:
        rows = PromptedRows(specs[dataset], "train", prompt, prompts_root=str(PROMPTS))
        for index in range(0, len(rows), 10):
            rendered = rows[index]
            if rendered is not None:
                yield rendered.inputs
                yield rendered.targets


VOCABULARY = seqio.SentencePieceVocabulary(
    ToyVocabularyFile(vocabulary_file),  # pyright: ignore[reportArgumentType]  a text once it is read
    extra_ids=EXTRA_IDS,
)


# Tasks and mixtures


def prompt_names(
    *, held_out: bool, sets: Mapping[str, Sequence[str]] = HELD_OUT
) -> list[tuple[str, str]]:
    """(data set, prompt) of all prompts that `sets` holds out of training, or of all others."""
    return [
        (dataset, name)
        for dataset, held in sets.items()
        for name in sorted(t.name for t in load_templates(PROMPTS, dataset).values())
        if (name in held) == held_out
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
