"""The files of results: written whole or not at all, and gone on with by the same command."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t0jax.config import UserError
from t0jax.results.summary import Results

RESULTS_FILE = "results.json"
SCORES_FOLDER = "scores"
ROWS_FILE = "rows.json"
REPORT_FILE = "report.html"


class EvaluationError(UserError, ValueError):
    """Something that cannot be scored; the message names the task, the row and the way out."""


class ResultsFolder:
    """`results.json` and `scores/<task>.jsonl` of one model and one set of settings.

    Each file is written whole or not at all.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False):
        """Takes the folder.

        Raises:
            EvaluationError: it holds the results of another model or of other settings, and `overwrite` is not set.
        """
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        there = self._settings_there()
        if there is not None and there != self.settings and not overwrite:
            raise EvaluationError(self._conflict(there))
        self._replaces = overwrite
        (folder / SCORES_FOLDER).mkdir(parents=True, exist_ok=True)

    def _settings_there(self) -> dict[str, Any] | None:
        path = self.folder / RESULTS_FILE
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8")).get("settings", {})
        except (ValueError, AttributeError):
            return {}

    def _conflict(self, there: Mapping[str, Any]) -> str:
        names = [name for name in self.settings if there.get(name) != self.settings[name]]
        differing = "; ".join(
            f"{n}: {there.get(n)!r} there, {self.settings[n]!r} now" for n in names
        )
        return (
            f"{self.folder} holds other results ({differing or 'of an older layout'}); choose another --output, or "
            "replace them with --overwrite"
        )

    def finished(self) -> dict[str, dict[str, Any]]:
        """Results by task name that are there with their scores, if they are not to be replaced."""
        if self._replaces:
            return {}
        try:
            content = json.loads((self.folder / RESULTS_FILE).read_text(encoding="utf-8"))
            tasks = content["tasks"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {name: entry for name, entry in tasks if self._scores(name).exists()}

    def read_outcomes(self, task: str) -> list[tuple[int, bool]]:
        """(row, whether its prediction is right) of a task that was written."""
        lines = self._scores(task).read_text(encoding="utf-8").splitlines()
        rows = map(json.loads, lines)
        return [(row["row"], row["prediction"] in row["gold"]) for row in rows]

    def _scores(self, task: str) -> Path:
        return self.folder / SCORES_FOLDER / scores_file(task)

    def write_scores(self, task: str, rows: Iterable[Any]) -> None:
        """One JSON object a line, as the rows' `to_json` has it.

        Of rank classification: row, scores (a choice), gold (the right choices), prediction; grades, if there are; of
        generated text: row, target, prediction. A row that was too long has `cut`.
        """
        self._remove_replaced()
        lines = "".join(f"{json.dumps(row.to_json())}\n" for row in rows)
        _write(self._scores(task), lines)

    def _remove_replaced(self) -> None:
        """Old results stay until there are new ones."""
        if self._replaces:
            scores = (self.folder / SCORES_FOLDER).glob("*.jsonl")
            for old in (
                *(self.folder / n for n in (RESULTS_FILE, ROWS_FILE, REPORT_FILE)),
                *scores,
            ):
                old.unlink(missing_ok=True)
        self._replaces = False

    def write_rows(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """By data set and row number: texts that a report shows."""
        _write(self.folder / ROWS_FILE, json.dumps(rows, indent=1) + "\n")

    def write_results(self, results: Results, complete: bool) -> None:
        """Everything found so far; `complete` says that nothing is to come."""
        self._remove_replaced()
        content = {"settings": self.settings, "complete": complete, **results.to_json()}
        _write(self.folder / RESULTS_FILE, json.dumps(content, indent=1) + "\n")


def scores_file(task: str) -> str:
    """The name of the file of a task's scores; `glue/sst2` is no path."""
    return f"{task.replace('/', '__')}.jsonl"


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
