"""The tasks of a mixture, opened for scoring, and what all scoring shares: splits, rows, the vocabulary."""

import difflib
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from t0jax import config as config_lib
from t0jax.data import targets, views
from t0jax.data.encoding import PairEncoder
from t0jax.data.groups import Groups
from t0jax.data.registry import import_tasks
from t0jax.data.rows import DataUnavailable, PromptedRows, SplitUnavailable
from t0jax.data.templates import Rendered
from t0jax.data.vocabulary import Pieces, vocabulary_path
from t0jax.models import Network
from t0jax.results import EvaluationError, missing_lines
from t0jax.scoring import RankExample

DRAW_SEED = 42
"""Of the rows that `evaluate.max_examples` leaves."""


class PromptTask:
    """One prompt on one split, seen through a view, as tables and folders of results name it.

    Attributes:
        name: of the seqio task.
        rows: the prompted rows.
        view: how they are seen.
        split: the one asked for first; the rows' own may be another (ANLI's rounds, a split to fall back on).
    """

    name: str
    rows: PromptedRows
    view: str
    split: str

    @property
    def measures(self) -> tuple[Any, ...]:
        """What is measured, where the method does not say it."""
        raise NotImplementedError

    @property
    def dataset(self) -> str:
        """`super_glue/rte`, with the split's name where it is another than asked for, `anli/dev_r1`."""
        rows = self.rows
        name = rows.spec.name if rows.split == self.split else f"{rows.spec.name}/{rows.split}"
        return f"{name}, other words" if rows.label_words else name

    @property
    def prompt(self) -> str:
        """The prompt's name in tables."""
        return self.rows.template_name

    @property
    def identity(self) -> str:
        """A digest of what results depend on besides the settings: the prompt's text, view, measures and data."""
        rows, template = self.rows, self.rows.template
        prompt = (template.jinja, template.answer_choices, *rows.label_words, rows.seed)
        measures = [getattr(one, "__qualname__", type(one).__name__) for one in self.measures]
        spec = (rows.spec.name, rows.spec.renames, rows.spec.recodes, rows.spec.labels)
        data = (*spec, rows.split, *map(content_digest, rows.data_files()))
        return hashlib.sha256(repr((self.view, prompt, measures, data)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RankTask(PromptTask):
    """A prompt whose choices are scored."""

    name: str
    rows: PromptedRows
    view: str = "direct"
    split: str = ""
    groups: Groups | None = None
    """Where the data set compares groups of people; see `results.parity`."""

    @property
    def measures(self) -> tuple[Any, ...]:
        """What is measured besides accuracy."""
        return (self.groups.of,) if self.groups else ()

    @property
    def has_targets(self) -> bool:
        """Whether there is something to score: a flipped prompt needs words of its own."""
        wants = views.find_view(self.view).needs_split
        return not wants or self.rows.template.has_instruction


def content_digest(file: str) -> str:
    """SHA-256 of a file; one that was read before and has not been written since is not read again."""
    stat = os.stat(file)
    return _content_digest(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _content_digest(file: str, *_written: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Opening


def find_tasks(
    mixture: str,
    data: config_lib.Data,
    split: str,
    label_words: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[RankTask], dict[str, str]]:
    """The tasks of a seqio mixture, opened, and why others cannot be: (tasks, reason by name).

    Args:
        mixture: seqio mixtures or tasks that `data.modules` register, with commas between.
        data: its `view` and `instruction_split` say how prompts are seen.
        split: of the data sets; of several with commas between, the first that a data set has.
        label_words: {word: other word} for every task, in place of its own.

    Raises:
        EvaluationError: an unknown mixture, or a task that is no prompt with answer choices.
        t0jax.data.rows.DataError: a broken file, or a column that a prompt reads and the data lacks.
    """
    tasks, missing = [], {}
    for name, source in find_sources(mixture, data):
        try:
            rows, view = open_rows(source, data, split, label_words)
        except DataUnavailable as error:
            missing[name] = str(error)
            continue
        try:
            rows.require_choices()
        except ValueError as error:
            raise EvaluationError(f"task {name!r}: {error}") from None
        if source.groups:
            rows.columns(source.groups.columns)  # a missing one is known now
        asked = split.partition(",")[0].strip()
        tasks.append(RankTask(name, rows, view, asked, source.groups))
    return tasks, missing


def find_sources(mixture: str, data: config_lib.Data) -> Iterator[tuple[str, Any]]:
    """(name, source) of the tasks of a mixture that are made from prompts, by name.

    Raises:
        EvaluationError: an unknown mixture, or a task that is not made from prompts.
    """
    from t0jax.data import sources  # here: it imports TensorFlow, which scoring does without

    for name, source in all_sources(mixture, data):
        if not isinstance(source, sources.PromptSource):
            raise EvaluationError(
                f"task {name!r} is not made from a prompt, so its choices are not known to a model of text; a "
                "structured task is answered by an encoder with heads, or as text through tasks.tasksource_instruct; "
                "prompts are added with t0jax.data.sources"
            )
        yield name, source


def all_sources(mixture: str, data: config_lib.Data) -> Iterator[tuple[str, Any]]:
    """(name, source) of the tasks of a mixture, by name.

    Raises:
        EvaluationError: an unknown mixture.
    """
    import_tasks(data.modules)
    from t0jax.data import sources

    try:
        names = {name for part in mixture.split(",") for name in sources.members(part.strip())}
    except ValueError as error:
        known = [*sources.seqio.MixtureRegistry.names(), *sources.seqio.TaskRegistry.names()]
        near = difflib.get_close_matches(mixture, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        given = ", ".join(data.modules) or "none; name the one that declares it with --module"
        raise EvaluationError(f"{error}: {given}{hint}") from error
    for name in sorted(names):
        yield name, sources.seqio.TaskRegistry.get(name).source


def open_rows(
    source: Any,
    data: config_lib.Data,
    split: str,
    label_words: Mapping[str, str] = MappingProxyType({}),
) -> tuple[PromptedRows, str]:
    """The rows of the first split that the data set has, and the view they are seen through.

    A split that it has and that cannot be read now is not made up for by another.

    Raises:
        DataUnavailable: the split cannot be read, or the data set has none of them.
    """
    view, names = data.view or source.view, split.split(",")
    for name in names:
        try:
            rows = source.rows(
                name.strip(),
                view=view,
                instruction_split=data.instruction_split,
                label_words=label_words,
            )
            len(rows)  # opens the data: what is missing is known before anything is scored
            return rows, view
        except SplitUnavailable:
            if name == names[-1]:
                raise
    raise AssertionError("a text has at least one part")


def check_missing(
    mixture: str, data: config_lib.Data, missing: Mapping[str, str], found: int, split: str = ""
) -> None:
    """Refuses tasks that cannot be scored unless `data.available_only`, and that all of them are such.

    Args:
        missing: why, by task.
        found: how many others there are.
        split: that was asked for; `data.eval_split` when empty.

    Raises:
        EvaluationError: which they are and why, a reason a line.
    """
    if missing and (not data.available_only or not found):
        lines = "\n".join(missing_lines(missing))
        none = "not all tasks of {} can" if found else "no task of {} can"
        ways_out = ["go on without them: --data.available_only true"] if found else []
        ways_out += _another_split(split or data.eval_split, missing)
        way_out = "".join(f"\n{way}" for way in ways_out)
        raise EvaluationError(f"{none.format(mixture)} be scored\n{lines}{way_out}")


def _another_split(split: str, missing: Mapping[str, str]) -> list[str]:
    """The way to score a split that data sets have where they lack the one asked for; [] when there is none.

    It is a key of the configuration, which training takes too.
    """
    asked = [name.strip() for name in split.split(",")]
    for other in ("validation", "test"):
        there = re.compile(rf"no split .* has\b.*\b{other}\b")
        if other not in asked and any(there.search(told) for told in missing.values()):
            names = ",".join([*asked, other])
            return [
                f"score {other} where a data set lacks {asked[-1]}: --data.eval_split {names} in place of a --split"
            ]
    return []


def open_pieces(
    vocabulary: Path | None, data: config_lib.Data, network: Network, of: type[Any] = Pieces
) -> Any:
    """The vocabulary, read as `of`: as given, else `data.vocabulary`, else `T0JAX_VOCABULARY`.

    Raises:
        EvaluationError: it is larger than the model's.
    """
    pieces = of(vocabulary or data.vocabulary or vocabulary_path())
    if pieces.size > network.config.vocab_size:
        raise EvaluationError(
            f"the vocabulary {pieces.path} has {pieces.size} ids, the model's embedding "
            f"{network.config.vocab_size} rows; use the vocabulary the model was trained with"
        )
    return pieces


def drawn_rows(size: int, limit: int) -> list[int]:
    """Numbers of the rows to score, in order. Some of many are drawn at random, for data may be sorted by label."""
    if not 0 < limit < size:
        return list(range(size))
    return sorted(np.random.default_rng(DRAW_SEED).choice(size, limit, replace=False).tolist())


# ---------------------------------------------------------------------------------------------------------------------
# Encoding


class Encoder:
    """Rendered examples -> token ids in T0's way: inputs without EOS (unless asked), targets with."""

    def __init__(self, pieces: Pieces, settings: config_lib.Evaluate, truncation: str = "input"):
        lengths = settings.max_input_length, settings.max_target_length
        self._pairs = PairEncoder(pieces, *lengths, settings.input_eos, truncation)

    def example(self, number: int, task: RankTask, row: int, rendered: Rendered) -> RankExample:
        """The example of `task`, which is number `number` of an evaluation.

        Raises:
            EvaluationError: the right choice is hidden (-1) or not among the choices, or there is none to choose from.
        """
        correct, pairs = candidates(task, row, rendered)
        encoded = self._pairs.encode([pairs])[0]
        tokens = tuple((pair.inputs, pair.targets) for pair in encoded)
        cut = any(pair.cut for pair in encoded)
        return RankExample(row, tokens, correct, number, rendered.grades or (), cut)


def candidates(
    task: RankTask, row: int, rendered: Rendered
) -> tuple[tuple[int, ...], list[views.Pair]]:
    """The right choices of a row and the pair of every choice.

    Raises:
        EvaluationError: as `Encoder.example`.
    """
    try:
        correct = views.correct_choices(rendered)
        pairs = views.candidates(views.find_view(task.view), rendered)
    except ValueError as error:
        raise EvaluationError(f"task {task.name!r}, row {row}: {error}") from None
    if not correct:
        raise EvaluationError(_no_gold(task, row, rendered))
    return correct, list(pairs)


def check_rows(task: RankTask, rows: Sequence[int]) -> None:
    """Looks at some rows before anything long begins.

    Raises:
        EvaluationError: as `Encoder.example`.
    """
    for row in rows:
        rendered = task.rows[row]
        if rendered is not None:
            candidates(task, row, rendered)


def _no_gold(task: RankTask, row: int, rendered: Rendered) -> str:
    way_out = "score a split with labels"
    if not rendered.targets:
        reason = targets.why_no_target(task.rows, row, rendered)
        why = f"no known answer in {task.rows.spec.name} {task.rows.split}: {reason}"
        if targets.outside_choices(task.rows, row, rendered):
            way_out = "correct the labels"
    else:
        why = f"the answer {rendered.targets!r} is not among the choices {list(rendered.choices or ())}"
    return f"task {task.name!r}, row {row}: {why}; {way_out}, or leave the prompt out"
