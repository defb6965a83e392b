"""What scoring a mixture is by any method: task after task, from where it was stopped, told and written down."""

import abc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax

from t0jax import __version__, processes
from t0jax import config as config_lib
from t0jax.data import views
from t0jax.data.vocabulary import Pieces, tell_no_one
from t0jax.evaluate.exchange import agree, least
from t0jax.evaluate.progress import Progress, no_pause
from t0jax.evaluate.tasks import content_digest, drawn_rows, open_pieces
from t0jax.models import Network, Params
from t0jax.results import Results, ResultsFolder, hardest


class Evaluation(abc.ABC):
    """An evaluation of one mixture, prepared once, called with parameters as often as one likes.

    Attributes:
        tasks: what is scored, each with name, rows, dataset, prompt and identity (a digest of prompt and data).
        unscored: by name of other tasks, why they are not.
        vocabulary: digest of the SentencePiece file.
        dtype: of activations.
    """

    METHOD: ClassVar[str]
    """Of `evaluate.method`."""
    DEPENDS_ON: ClassVar[tuple[str, ...]]
    """Keys of `evaluate` that results depend on."""
    PIECES: ClassVar[type[Any]] = Pieces
    """How the vocabulary is read."""

    tasks: Sequence[Any]
    unscored: dict[str, str]
    vocabulary: str
    dtype: str

    def __init__(
        self,
        network: Network,
        mesh: jax.sharding.Mesh,
        data: config_lib.Data,
        settings: config_lib.Evaluate,
        mixture: str,
        split: str = "",
        vocabulary: Path | None = None,
    ):
        """Opens every task.

        Args:
            network, mesh: of the parameters to come.
            data: `modules`, `view` and how it is made, `eval_split`, `available_only` and, when not given below,
                `vocabulary`.
            settings: lengths and options.
            mixture: seqio mixtures or tasks, with commas between.
            split: `data.eval_split` when empty.
            vocabulary: SentencePiece file; `data.vocabulary`, then `T0JAX_VOCABULARY`, when None.

        Raises:
            EvaluationError: unknown mixture, a task that the method cannot score, data sets missing and not
                `data.available_only`, or a vocabulary larger than the model's.
        """
        self.data, self.settings = data, settings
        self.mixture, self.split = mixture, split or data.eval_split
        self.heads = network.config.heads
        self._open_tasks()
        self.pieces = open_pieces(vocabulary, data, network, self.PIECES)
        self.vocabulary, self.dtype = (
            content_digest(str(self.pieces.path))[:16],
            network.config.dtype,
        )
        self._prepare(network, mesh)

    def __call__(
        self,
        params: Params,
        folder: ResultsFolder | None = None,
        progress: Callable[[str], None] = tell_no_one,
        pause: Callable[[], None] = no_pause,
    ) -> Results:
        """Scores everything that is not in `folder` yet; the same on every process. Only the first one writes.

        Args:
            params: the network's parameters.
            folder: where scores and results go as each task is finished; nowhere when None.
            progress: is told of every finished task, and of the rows done and the time left in between.
            pause: is called between micro-batches, on all processes at the same places; may raise to leave.
        """
        written = folder if jax.process_index() == 0 else None
        results = Results(self._finished(folder), self.unscored)
        todo = [n for n, task in enumerate(self.tasks) if task.name not in results.tasks]
        if results.tasks:
            progress(f"going on: {len(results.tasks)} of {len(self.tasks)} tasks are in the folder")
        rows = sum(len(self._rows(self.tasks[number])) for number in todo)
        told = Progress(progress, len(self.tasks), rows, len(results.tasks), pause)
        began = time.monotonic()
        for number, scored in self._score(params, todo, told):
            task, seconds = self.tasks[number], time.monotonic() - began
            found = results.tasks[task.name] = self._measure(task, scored, seconds)
            began = time.monotonic()
            if written is not None:
                written.write_scores(task.name, scored)
                written.write_results(results, complete=False)
            told.task(task.name, self._in_words(found))
        ordered = {task.name: results.tasks[task.name] for task in self.tasks}
        results = Results(ordered, results.missing)
        if written is not None:
            self._conclude(written, results)
            written.write_results(results, complete=True)
        return results

    def describe(self) -> dict[str, Any]:
        """The settings that results depend on, for `ResultsFolder`."""
        asked = {"method": self.METHOD, "mixture": self.mixture, "split": self.split}
        made = {"t0jax": __version__, "vocabulary": self.vocabulary, "dtype": self.dtype}
        return {**asked, **self._chosen(), **made}

    def _chosen(self) -> dict[str, Any]:
        chosen = {name: getattr(self.settings, name) for name in self.DEPENDS_ON}
        if self.settings.input_eos is None:  # what it comes to, as older results have it
            chosen["input_eos"] = any(views.find_view(task.view).input_eos for task in self.tasks)
        names = ("view", "instruction_split", "truncation")
        return {**{name: getattr(self.data, name) for name in names}, **chosen}

    def _finished(self, folder: ResultsFolder | None) -> dict[str, dict[str, Any]]:
        """Results by task that the folder holds and that prompts and data of today would give again.

        Raises:
            EvaluationError: the processes have not opened the same tasks.
        """
        names = {task.name: task.identity for task in self.tasks}
        agree(repr((list(names.items()), self.describe())), "the tasks to be scored")
        first = jax.process_index() == 0
        there = folder.finished() if folder is not None and first else {}
        same = [name for name, own in names.items() if there.get(name, {}).get("identity") == own]
        return processes.tell({name: there[name] for name in same}, "what is scored already")[0]

    def _rows(self, task: Any) -> list[int]:
        return drawn_rows(len(task.rows), self.settings.max_examples)

    def _measure(self, task: Any, rows: Sequence[Any], seconds: float) -> dict[str, Any]:
        return {
            **(self._rates(task, rows) if rows else {}),
            "n": len(rows),
            "dataset": task.dataset,
            "prompt": task.prompt,
            "coverage": len(rows) / max(1, len(self._rows(task))),
            "identity": task.identity,
            "seconds": round(seconds, 3),
        }

    def _in_words(self, found: Mapping[str, Any]) -> str:
        if not found["n"]:
            return f"applies to no row, in {found['seconds']:.1f} s"
        return f"{self._value(found)}, {found['n']} rows in {found['seconds']:.1f} s"

    def _gathered(
        self,
        windows: Iterator[list[tuple[int, Any]]],
        todo: Sequence[int],
        told: Progress,
        slices: int,
        exchange: Callable[[int, Sequence[Any]], list[Any]],
    ) -> Iterator[tuple[int, list[Any]]]:
        """`_score` for methods that read rows in order.

        Args:
            windows: (task number, row) of this process as they come, as often on every process.
            todo: the tasks, in order.
            told: is told how many rows are done.
            slices: shares that rows are read in.
            exchange: (task number, this process's rows) -> those of all.
        """
        kept: dict[int, list[Any]] = {number: [] for number in todo}
        waiting, done = list(todo), 0
        reached = todo[0] if todo else 0
        for window in windows:
            for number, row in window:
                kept[number].append(row)
                reached = number
            told.rows(done + slices * sum(map(len, kept.values())))
            # Rows come back in order: tasks before the one reached, on every process, are finished.
            finished = least(reached)
            while waiting and waiting[0] < finished:
                done += len(self._rows(self.tasks[waiting[0]]))
                yield waiting[0], exchange(waiting[0], kept.pop(waiting.pop(0)))
        for number in waiting:
            yield number, exchange(number, kept[number])

    def _hard_rows(self, folder: ResultsFolder, results: Results) -> dict[str, dict[str, Any]]:
        """By data set: text and choices, by row, of the rows that most of its prompts get wrong."""
        found: dict[str, dict[str, Any]] = {}
        tasks = {task.name: task for task in self.tasks}
        for dataset in results.datasets():
            names = [n for n, entry in results.scored.items() if entry["dataset"] == dataset]
            right = {name: folder.read_outcomes(name) for name in names}
            shown = found[dataset] = {}
            for row, _, _ in hardest(right):
                name = next(name for name in names if any(row == n for n, _ in right[name]))
                text = self._shown(tasks[name], row)
                if text is not None:
                    inputs, choices = text
                    shown[str(row)] = {"task": name, "inputs": inputs, "choices": choices}
        return found

    # -------------------------------------------------------------------------------- what methods differ in

    @abc.abstractmethod
    def _open_tasks(self) -> None:
        """Sets `tasks` and `unscored`."""

    @abc.abstractmethod
    def _prepare(self, network: Network, mesh: jax.sharding.Mesh) -> None:
        """Sets what the method computes with."""

    @abc.abstractmethod
    def _score(
        self, params: Params, todo: Sequence[int], told: Progress
    ) -> Iterator[tuple[int, Sequence[Any]]]:
        """(task number, its rows of all processes in order) as the tasks `todo` are finished."""

    @abc.abstractmethod
    def _rates(self, task: Any, rows: Sequence[Any]) -> dict[str, Any]:
        """What the rows of a task, at least one, come to."""

    @abc.abstractmethod
    def _value(self, found: Mapping[str, Any]) -> str:
        """The rates of a task in a few words."""

    def _conclude(self, folder: ResultsFolder, results: Results) -> None:  # noqa: B027
        """Writes what the method adds to the folder once all is scored."""

    def _shown(self, task: Any, row: int) -> tuple[str, list[str]] | None:
        """Text and choices of a row; None where there is none."""
        del task, row
        return None
