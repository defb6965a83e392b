"""Using a multitask encoder: any of its tasks by name, zero-shot classification, natural language inference.

    model = Multitask.load("runs/tasksource")
    model.classifier("glue/sst2")("a fine film")              # [{"label": "positive", "score": 0.98}, ...]
    zero_shot("runs/tasksource")("Rate rises are feared.", ["economy", "sports"])
    nli("runs/tasksource")(("There is a cat.", "There is a black cat."))

A model is a run, one of its checkpoints, or a Hugging Face directory of one task or of many in the published layout.
Texts of similar length are computed together, each shape compiled once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t0jax import checkpoint, convert, sharding
from t0jax import config as config_lib
from t0jax.classify import inputs, outputs
from t0jax.classify.inference import ZeroShot
from t0jax.classify.inputs import ClassifyError
from t0jax.classify.outputs import Answer
from t0jax.config import Head
from t0jax.config.heads import normalised
from t0jax.data.structured.encoding import Item, encode_items
from t0jax.data.structured.pieces import PairPieces, Truncate
from t0jax.data.structured.records import Example
from t0jax.data.vocabulary import vocabulary_path
from t0jax.models import Network, Params
from t0jax.scoring.heads import HeadExample, HeadScorer, Scores

__all__ = [
    "Answer",
    "Classifier",
    "ClassifyError",
    "Multitask",
    "ZeroShot",
    "load_classifier",
    "nli",
    "zero_shot",
]

MAX_LENGTH = 512
"""Tokens of a row where a model does not say what it was trained on."""
FEW_ROWS = 8
FEW_TOKENS = 512
"""Padded positions of a micro-batch when at most `FEW_ROWS` are asked for: an answer should come at once."""
READ = 256
"""Inputs tokenised at a time."""


@dataclass(frozen=True)
class Multitask:
    """A multitask encoder ready to answer.

    Attributes:
        network, params: as loaded, on `mesh`.
        pieces: its vocabulary.
        max_length: tokens of a row; longer texts lose their ends.
    """

    network: Network
    params: Params
    pieces: PairPieces
    mesh: jax.sharding.Mesh
    max_length: int = MAX_LENGTH

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        max_length: int = 0,
        vocabulary: str | Path = "",
        mesh: jax.sharding.Mesh | None = None,
        compute: config_lib.Model | None = None,
        adapters: str | Path | None = None,
        known: Mapping[str, Head] | None = None,
    ) -> "Multitask":
        """Reads a model with all its heads.

        Args:
            path: a run folder, one of its checkpoints, or a Hugging Face directory.
            max_length: tokens of a row; what a run was trained on, else 512, when 0.
            vocabulary: SentencePiece file; the model's own, then `T0JAX_VOCABULARY`, when empty.
            mesh: devices; all of them when None.
            compute: dtype and so on; as the model was saved when None.
            adapters: a folder of heads in the published layout, which are used with the model.
            known: heads of tasks whose kind and label names such files do not say, by task.

        Raises:
            ClassifyError: the model has no heads.
            ConfigError, CheckpointError: as `checkpoint.load_model`.
        """
        mesh = sharding.make_mesh(config_lib.Mesh()) if mesh is None else mesh
        model = checkpoint.load_model(path, mesh, compute, adapters=adapters, known=known)
        if not model.network.config.heads:
            raise ClassifyError(_no_heads(path, model.network.config.architecture))
        pieces = PairPieces(vocabulary or model.vocabulary or vocabulary_path())
        # What was imported has no training behind it that would say.
        trained = model.config.data.input_length if model.config and model.step else MAX_LENGTH
        return cls(model.network, model.params, pieces, mesh, max_length or trained)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Of all tasks, in the order of their numbers."""
        return self.network.config.heads

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks."""
        return [head.task for head in self.heads]

    def classifier(self, task: str, *, task_embedding: bool = True) -> "Classifier":
        """What answers one task.

        Args:
            task: its name.
            task_embedding: add the task's embedding, as in training.

        Raises:
            ClassifyError: the model has no such task; names the nearest ones.
        """
        return Classifier(self, inputs.find_task(self.tasks, task), task_embedding)

    def zero_shot(self, task: str = "", *, task_embedding: bool | None = None) -> ZeroShot:
        """Classification by any labels, by a head of natural language inference.

        Args:
            task: whose head; when empty one is chosen (`convert.inference_head`).
            task_embedding: add the task's embedding; None does so for a task that is named alone, for a text that is
                asked about anything belongs to no task.

        Raises:
            ClassifyError: no such task, or one that is no classification.
        """
        answers = self._inference(task, task_embedding)
        return ZeroShot(answers.head, answers.premise_logits)

    def nli(self, task: str = "", *, task_embedding: bool | None = None) -> "Classifier":
        """Natural language inference on (premise, hypothesis) pairs; arguments and errors as of `zero_shot`.

        A model's only head is not taken for one of inference unless a label of it begins with "entail" or it is named.
        """
        found = self._inference(task, task_embedding)
        labels = found.head.labels
        if not task and not any(normalised(label).startswith("entail") for label in labels):
            raise ClassifyError(
                f"no label of {found.head.task!r}, the model's only task, is of inference, like `entailment` (it "
                f"has {', '.join(map(repr, labels))}); name the task if it is meant, or use load_classifier"
            )
        return found

    def _inference(self, task: str, task_embedding: bool | None) -> "Classifier":
        chosen = inputs.find_task(self.tasks, task) if task else convert.inference_head(self.heads)
        if chosen is None:
            raise ClassifyError(
                "none of the model's heads has a label `entailment`; name the task whose head to use"
            )
        head = self.heads[chosen]
        if head.kind != "classification":
            raise ClassifyError(
                f"task {head.task!r} is {head.kind}; inference needs a classification"
            )
        embedded = bool(task) if task_embedding is None else task_embedding
        return Classifier(self, chosen, embedded)

    def outputs(
        self,
        number: int,
        examples: Sequence[Example],
        truncate: Truncate = "longest",
        embedded: bool = True,
    ) -> list[tuple[Item, Scores]]:
        """(encoded example, logits of its rows) of each example, in their order.

        Args:
            number: of the head.
            examples: without labels.
            truncate: what a pair that is too long loses.
            embedded: add the task's embedding.
        """
        rows = sum(max(1, len(example.texts)) for example in examples)
        few = FEW_TOKENS if rows <= FEW_ROWS else None
        scorer = HeadScorer(self.network, self.mesh, self.max_length, row_tokens=few)
        kind = self.heads[number].kind
        wanted = "tokens" if kind == "token_classification" else "sequence"

        def encoded() -> Iterator[HeadExample]:
            for start in range(0, len(examples), READ):
                part = examples[start : start + READ]
                items = encode_items(part, self.pieces, self.max_length, truncate)
                for index, item in enumerate(items, start):
                    yield HeadExample(index, item.rows, number, wanted, embedded, item)

        return [(example.about, scores) for example, scores in scorer.score(self.params, encoded())]


@dataclass(frozen=True)
class Classifier:
    """One task of a model; see `__call__` for what it takes and gives."""

    model: Multitask
    number: int
    task_embedding: bool = True

    @property
    def head(self) -> Head:
        """The task, its kind and labels."""
        return self.model.heads[self.number]

    def __call__(self, given: Any, *, top_k: int | None = None, group: bool = False) -> Any:
        """Answers one input, or a list of them.

        Args:
            given: of sequence tasks a text or (text, text); multiple choice (text, [options]); token classification a
                text, cut at white space, or a tuple of words (in a list of inputs also a list of words). A list is
                several inputs.
            top_k: labels or options to give, the best first; all when None.
            group: of tokens: entities in place of words (`outputs.grouped`).

        Returns:
            For each input a list of {"label", "score"}: labels by falling probability, of multi-label tasks by that of
            each, of regression the value; options with their `index`; every word with its likeliest label. A directory
            of one output that names no `problem_type` is a regression, as in transformers' training; its pipeline
            puts a sigmoid on the value of such a one.

        Raises:
            ClassifyError: an input that the task does not take, or `group` of another kind of task.
        """
        if group and self.head.kind != "token_classification":
            raise ClassifyError(
                f"entities are of token classification; task {self.head.task!r} is {self.head.kind}: leave `group` out"
            )
        several = isinstance(given, list)
        examples = [inputs.read(self.head, one) for one in (given if several else [given])]
        found = self.model.outputs(self.number, examples, embedded=self.task_embedding)
        answers = [
            self._answer(example, item, scores, top_k, group)
            for example, (item, scores) in zip(examples, found, strict=True)
        ]
        return answers if several else answers[0]

    def check(self, given: Any) -> Any:
        """One input as it stands. Raises ClassifyError where `__call__` would."""
        inputs.read(self.head, given)
        return given

    def _answer(
        self, example: Example, item: Item, scores: Scores, top_k: int | None, group: bool
    ) -> list[Answer]:
        if self.head.kind == "multiple_choice":
            texts = [option or "" for _, option in example.texts]
            return outputs.options(texts, np.concatenate(scores), top_k)
        if self.head.kind != "token_classification":
            return outputs.ranked(self.head, scores[0], top_k)
        words = outputs.words(self.head, example.words, item.first, scores[0])
        return outputs.grouped(words) if group else words

    def premise_logits(self, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """[labels] of each (premise, hypothesis); too long ones lose text of the premise."""
        examples = [Example((pair,), None) for pair in pairs]
        found = self.model.outputs(self.number, examples, "first", self.task_embedding)
        return [scores[0] for _, scores in found]


def _no_heads(path: str | Path, architecture: str) -> str:
    if architecture != "deberta":
        return (
            f"{path} is a {architecture}, and classify reads a deberta with heads; have it write by scripts.generate, "
            "or score its answers to prompts by scripts.evaluate"
        )
    return f"{path} has no heads, so it answers nothing; fine-tune it on a task, or give adapters"


def load_classifier(path: str | Path, task: str, **options: Any) -> Classifier:
    """One task of a model; `options` as of `Multitask.load`."""
    return Multitask.load(path, **options).classifier(task)


def zero_shot(path: str | Path, task: str = "", **options: Any) -> ZeroShot:
    """`Multitask.zero_shot` of a model; `options` as of `Multitask.load`."""
    return Multitask.load(path, **options).zero_shot(task)


def nli(path: str | Path, task: str = "", **options: Any) -> Classifier:
    """`Multitask.nli` of a model; `options` as of `Multitask.load`."""
    return Multitask.load(path, **options).nli(task)
