"""Prompted data sets as seqio sources and tasks.

A task is declared in one line and opens nothing until it is read:

    SPEC = DatasetSpec("my_reviews", local="data/my_reviews")           # train.jsonl, validation.jsonl there
    add_prompt_task("my_reviews_is_it_good", SPEC, "is it good", prompts_root="my_prompts")
    add_rank_task("my_reviews_is_it_good", SPEC, "is it good", prompts_root="my_prompts")   # ..._score_eval
    add_mixture("my_train", {"my_reviews_is_it_good": 1.0})

The tasks are ordinary seqio tasks. Readers that need no TensorFlow take the rows themselves:
`PromptSource.rows(split)` gives a picklable `PromptedRows`, for training and for rank classification alike, and
`members(mixture)` the tasks of a mixture with their rates.
"""

import t0jax.data.quiet  # noqa: F401  before TensorFlow and seqio

# isort: split

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import seqio
import tensorflow as tf

from t0jax.config import ConfigError
from t0jax.data import elements, views
from t0jax.data.groups import Groups
from t0jax.data.instructions import SplitMode
from t0jax.data.label_words import check_label_words
from t0jax.data.ranking import rank_classification, rank_postprocess
from t0jax.data.rendered import RenderedRows
from t0jax.data.rows import (
    DatasetSpec,
    DataUnavailable,
    PromptedRows,
    SplitUnavailable,
    available_splits,
)
from t0jax.data.vocabulary import t5_vocabulary

RANK_SUFFIX = "_score_eval"
SPLITS = ("train", "validation", "test")


class PromptSource(elements.IndexedSource):
    """A data set through one prompt: rows by index for readers that want them, `tf.data` for seqio.

    As training text (`rank=False`) an element is {inputs, targets}: the view's gold pair; rows without one (the
    prompt does not apply, the answer is empty or hidden) are left out. For rank classification an element is one
    choice of one example: {idx [example, choice], inputs, targets, is_correct, weight}.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        template_name: str,
        *,
        splits: Mapping[str, str] | Sequence[str] = SPLITS,
        view: str = "direct",
        rank: bool = False,
        seed: int = 0,
        prompts_root: str = "",
        local_dir: str = "",
        label_words: Mapping[str, str] = MappingProxyType({}),
        groups: Groups | None = None,
    ) -> None:
        """
        Args:
          spec: the data set.
          template_name: exact name of the prompt.
          splits: names of the splits, or {name: name in the data} (ANLI: {"validation": "dev_r1"}). Of local data
            without a map, the splits are those that have files.
          view: name in `views.VIEWS`.
          rank: one element per answer choice instead of one per row.
          seed: of prompts that draw at random.
          prompts_root, local_dir: where from, if not from `T0JAX_PROMPTS_DIR` and `T0JAX_DATA_DIR`.
          label_words: {word: other word} to put in place of words of the choices.
          groups: tells the group of people a row is about and the pair it belongs to, for data sets made to compare
            groups; rank classification then reports how they differ.

        Raises:
          ValueError: `label_words` that are not words.
        """
        self.groups = groups
        self.spec, self.template_name = spec, template_name
        self.home = spec
        self.view, self.rank, self.seed = view, rank, seed
        self.prompts_root, self.local_dir = str(prompts_root), str(local_dir)
        self.label_words = _words(label_words)
        self._mapped = isinstance(splits, Mapping)
        self._data_splits = (
            dict(splits) if isinstance(splits, Mapping) else {name: name for name in splits}
        )
        super().__init__(splits=tuple(self._data_splits))

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits; of a data set with local files, those that are there."""
        try:
            there = available_splits(self.home, self.local_dir)
        except DataUnavailable:
            there = None
        if there is None:
            return tuple(self._data_splits)
        if self._mapped:
            return tuple(name for name, in_data in self._data_splits.items() if in_data in there)
        return tuple(sorted(there, key=lambda name: (name != "train", name != "validation", name)))

    def rows(
        self,
        split: str,
        *,
        view: str = "",
        instruction_split: SplitMode = "rendered",
        label_words: Mapping[str, str] = MappingProxyType({}),
    ) -> PromptedRows:
        """The rows of a split, not yet opened.

        Args:
          split: its name.
          view: the view to come, which may want prompts told apart from their input; the source's own when empty.
          instruction_split: how they are told apart (`Template.render`).
          label_words: in place of the source's own, where given.

        Raises:
          DataUnavailable: no such split.
        """
        return PromptedRows(
            *(self.spec, self.split_in_data(split), self.template_name, self.seed),
            *(self.prompts_root, self.local_dir),
            instruction_split if views.find_view(view or self.view).needs_split else "",
            _words(label_words) or self.label_words,
        )

    def split_in_data(self, split: str) -> str:
        """A split's name in the data.

        Raises:
          DataUnavailable: no such split.
        """
        if split not in self._data_splits and (self._mapped or split not in self.splits):
            there = ", ".join(self.splits) or "none"
            raise SplitUnavailable(self.spec.name, f"no split {split!r}; it has {there}")
        return self._data_splits.get(split, split)

    def elements(self, rows: PromptedRows, numbers: tf.data.Dataset) -> tf.data.Dataset:
        """See the class; for rank classification the rows must have choices.

        Raises:
          ValueError: they have none.
        """
        if self.rank:
            rows.require_choices()
        return elements.read(numbers, rows, views.find_view(self.view), rank=self.rank)

    def identity(self) -> tuple[Any, ...]:
        splits = tuple(self._data_splits.items())
        places = (self.prompts_root, self.local_dir)
        words = (self.view, self.rank, self.label_words)
        return (self.spec, self.template_name, splits, *words, self.seed, *places)

    def __repr__(self) -> str:
        kind = f"view {self.view}, " + ("rank, " if self.rank else "")
        words = f", label_words={dict(self.label_words)}" if self.label_words else ""
        return f"PromptSource({self.spec.name}, {self.template_name!r}, {kind}splits={self._data_splits}{words})"


class RenderedSource(PromptSource):
    """Text that was rendered elsewhere, as P3's: one folder or Hub configuration a prompt, see `rendered.RenderedRows`.

    Views other than flipped and seqio's tasks read it as any other; label words cannot be replaced in it.
    """

    def __init__(
        self,
        home: DatasetSpec,
        like: PromptSource | None = None,
        *,
        splits: Sequence[str] = SPLITS,
        view: str = "direct",
        rank: bool = False,
        local_dir: str = "",
    ) -> None:
        """
        Args:
          home: where the text is.
          like: the data set and prompt that were rendered, for the names in tables; `home` itself when None.
          splits, view, rank, local_dir: as of `PromptSource`.

        Raises:
          config.ConfigError: the view flipped, which needs the prompt itself.
        """
        spec, template_name = (like.spec, like.template_name) if like else (home, home.name)
        _check_text_is_enough(spec, view)
        super().__init__(
            spec, template_name, splits={n: n for n in splits}, view=view, rank=rank, local_dir=local_dir
        )  # fmt: skip
        self.home = home
        self._shown = {n: like.split_in_data(n) for n in splits} if like else {}

    def rows(
        self,
        split: str,
        *,
        view: str = "",
        instruction_split: SplitMode = "rendered",
        label_words: Mapping[str, str] = MappingProxyType({}),
    ) -> RenderedRows:
        """The rows of a split, not yet opened; arguments as of `PromptSource.rows`.

        Raises:
          DataUnavailable: no such split.
          config.ConfigError: the view flipped, or label words.
        """
        del instruction_split
        _check_text_is_enough(self.spec, view or self.view, label_words)
        return RenderedRows(
            *(self.spec, self._shown.get(split, split), self.template_name),
            local_dir=self.local_dir,
            home=self.home,
            home_split=self.split_in_data(split),
        )

    def identity(self) -> tuple[Any, ...]:
        return (*super().identity(), self.home, tuple(self._shown.items()))


def _check_text_is_enough(
    spec: DatasetSpec, view: str, label_words: Mapping[str, str] = MappingProxyType({})
) -> None:
    if views.find_view(view).needs_split:
        raise ConfigError(
            f"view {view!r} needs the prompt's own words, and of {spec.name} only rendered text is read (P3); set "
            "data.view to direct or channel, or read the data set through its prompts (tasks.t0)"
        )
    if label_words:
        raise ConfigError(
            f"label words cannot be put into text that is already rendered ({spec.name} from P3); read the data set "
            "through its prompts (tasks.t0)"
        )


def _words(label_words: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    check_label_words(label_words)
    return tuple(sorted(label_words.items()))


# ---------------------------------------------------------------------------------------- declaring tasks


def output_features(
    vocabulary: seqio.Vocabulary | None = None, *, input_eos: bool = False
) -> dict[str, seqio.Feature]:
    """T0's features: inputs without end of sequence (unless asked for), targets with, int32."""
    vocabulary = vocabulary or t5_vocabulary()
    return {
        "inputs": seqio.Feature(vocabulary, add_eos=input_eos, dtype=tf.int32),
        "targets": seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32),
    }


def add_prompt_task(
    name: str,
    spec: DatasetSpec,
    template_name: str,
    *,
    splits: Mapping[str, str] | Sequence[str] = SPLITS,
    vocabulary: seqio.Vocabulary | None = None,
    view: str = "direct",
    seed: int = 0,
    prompts_root: str = "",
    local_dir: str = "",
    label_words: Mapping[str, str] = MappingProxyType({}),
    postprocess_fn: Callable[..., Any] | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (),
) -> seqio.Task:
    """Registers a text-to-text task of one data set and one prompt; see `PromptSource` for the arguments.

    `metric_fns` give percent, larger is better; one that does not has an attribute `lower_is_better = True`: it is
    told, and does not count in the task's score. `tasks.t0_metrics` has ROUGE, BLEU, SQuAD and others.

    Declaring the same task again is allowed and changes nothing.

    Raises:
      ValueError: the name is taken by another task.
    """
    source = PromptSource(
        spec,
        template_name,
        splits=splits,
        view=view,
        seed=seed,
        prompts_root=prompts_root,
        local_dir=local_dir,
        label_words=label_words,
    )
    return add_text_source(
        name,
        source,
        vocabulary=vocabulary,
        postprocess_fn=postprocess_fn,
        metric_fns=metric_fns,
    )


def add_rank_task(
    name: str,
    spec: DatasetSpec,
    template_name: str,
    *,
    splits: Mapping[str, str] | Sequence[str] = SPLITS,
    vocabulary: seqio.Vocabulary | None = None,
    view: str = "direct",
    seed: int = 0,
    prompts_root: str = "",
    local_dir: str = "",
    label_words: Mapping[str, str] = MappingProxyType({}),
    groups: Groups | None = None,
) -> seqio.Task:
    """Registers `<name>_score_eval`, the prompt's answer choices for rank classification; else as `add_prompt_task`."""
    source = PromptSource(
        spec, template_name, splits=splits, view=view, rank=True, seed=seed, prompts_root=prompts_root,
        local_dir=local_dir, label_words=label_words, groups=groups,
    )  # fmt: skip
    return add_rank_source(name, source, vocabulary)


def add_text_source(
    name: str,
    source: PromptSource,
    *,
    vocabulary: seqio.Vocabulary | None = None,
    postprocess_fn: Callable[..., Any] | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (),
) -> seqio.Task:
    """Registers a text-to-text task of a source made by oneself, a `RenderedSource` say."""
    return _add_task(name, source, vocabulary, postprocess_fn, metric_fns)


def add_rank_source(
    name: str, source: PromptSource, vocabulary: seqio.Vocabulary | None = None
) -> seqio.Task:
    """Registers `<name>_score_eval` of a source made with `rank=True`, for sources of one's own."""
    name = name.removesuffix(RANK_SUFFIX) + RANK_SUFFIX
    return _add_task(name, source, vocabulary, rank_postprocess, [_rank_metric(source)])


def add_mixture(
    name: str, rates: Mapping[str, float | Callable[[seqio.Task], float]]
) -> seqio.Mixture:
    """Registers a mixture of {task or mixture: rate}; declaring the same one again changes nothing.

    Raises:
      ValueError: a task is not registered, or the name is taken by a mixture of other tasks or rates.
    """
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    for task in rates:
        if task not in known:
            near = difflib.get_close_matches(re.sub(r"[^\w.:]", "_", task), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"mixture {name!r}: no task or mixture {task!r} is registered{hint}")
    tasks: Sequence[Any] = list(rates.items())
    if name not in seqio.MixtureRegistry.names():
        return seqio.MixtureRegistry.add(name, tasks)
    mixture = seqio.MixtureRegistry.get(name)
    was, declared = _rates(mixture), _rates(seqio.Mixture(name, tasks))
    if was != declared:
        other = "rates" if was.keys() == declared.keys() else "tasks"
        raise ValueError(
            f"mixture {name!r} is already registered with other {other}; choose another name"
        )
    return mixture


def _rates(mixture: seqio.Mixture) -> dict[str, float]:
    return {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}


def _add_task(
    name: str,
    source: PromptSource,
    vocabulary: seqio.Vocabulary | None,
    postprocess_fn: Callable[..., Any] | None,
    metric_fns: Sequence[Callable[..., Any]],
) -> seqio.Task:
    view = views.find_view(source.view)
    features = output_features(vocabulary, input_eos=view.input_eos)
    if name in seqio.TaskRegistry.names():
        task = seqio.TaskRegistry.get(name)
        if task.source != source:
            raise ValueError(
                f"task {name!r} is already registered as {task.source}; choose another name"
            )
        if task.output_features != features:
            raise ValueError(
                f"task {name!r} is already registered with another vocabulary; choose another name"
            )
        return task
    # T0's order: a target longer than its length loses its end of sequence (t-zero, tasks.py).
    steps = [
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
        seqio.CacheDatasetPlaceholder(),
    ]
    if view.needs_split:  # what is shortened depends on the lengths asked for
        steps = [seqio.CacheDatasetPlaceholder(), elements.tokenize_pairs]
    return seqio.TaskRegistry.add(
        name,
        source=source,  # pyright: ignore[reportArgumentType]  seqio's protocol forgets its own None
        preprocessors=steps,
        output_features=features,
        postprocess_fn=postprocess_fn,
        metric_fns=list(metric_fns),
    )


def _rank_metric(source: PromptSource) -> Callable[..., dict[str, float]]:
    def rank_metric(targets: Sequence[Any], scores: Sequence[float]) -> dict[str, float]:
        fixed = source.rows(source.splits[0]).template.fixed_answer_choices
        return rank_classification(targets, scores, len(fixed) if fixed else None)

    return rank_metric


# ---------------------------------------------------------------------------------------- reading tasks


def members(name: str) -> dict[str, float]:
    """{task: rate} of a mixture or a task, which is its own only member.

    Raises:
      ValueError: no such name, or a rate is not positive.
    """
    try:
        found = seqio.get_mixture_or_task(name)
    except ValueError as error:
        raise ValueError(
            f"no task or mixture {name!r} is registered by the modules given"
        ) from error
    if isinstance(found, seqio.Task):
        return {found.name: 1.0}
    return _rates(found)
