"""The scores of a run's checkpoints, in a file of the run: which are the best ones, and which still lack a score.

`scores.json` has mean accuracies by step and by a digest of the evaluation that found them, for only scores of the same
evaluation can be compared. It stands beside the checkpoints, not in them: one may be scored after it was saved.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from t0jax import processes
from t0jax.checkpoint import CheckpointError, write_atomically
from t0jax.config import ConfigError
from t0jax.evaluate.evaluation import Evaluation
from t0jax.metrics import note

SCORES_FILE = "scores.json"


def digest(evaluator: Evaluation | None) -> str:
    """Of what scores depend on besides the weights: settings, tasks, prompts and data; empty for no evaluation."""
    if evaluator is None:
        return ""
    tasks = [(task.name, task.identity) for task in evaluator.tasks]
    content = json.dumps([evaluator.describe(), tasks], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class History:
    """Scores by step; a preservation policy of orbax's, which asks it for the best checkpoints.

    What are called entries here are orbax's records of checkpoints that are there: each has a step and metrics.
    """

    def __init__(self, run_dir: Path, evaluation: str, keep_best: int) -> None:
        """Reads what is there; all processes together.

        Args:
            run_dir: the run folder; written to by the first process alone.
            evaluation: `digest` of the one that is to come.
            keep_best: checkpoints to keep for their scores.

        Raises:
            ConfigError: the file is broken.
        """
        self._path, self._evaluation, self._keep = run_dir / SCORES_FILE, evaluation, keep_best
        self._there: dict[int, dict[str, float | None]] = {}
        if (text := self._read()) is not None:
            try:
                self._there = {int(step): dict(scores) for step, scores in json.loads(text).items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{self._path} is broken ({error!r}); delete it to go on without those scores"
                ) from error

    def _read(self) -> str | None:
        """As the first process sees it, so that all decide alike; None if there is no file."""
        mine = None
        if jax.process_index() == 0 and self._path.exists():
            mine = self._path.read_text(encoding="utf-8", errors="replace")
        return processes.tell(mine, "reading the scores")[0]

    def begin(self, step: int, entries: Iterable[Any]) -> None:
        """A run goes on from `step`: forgets later scores, says which of the others will not be compared."""
        self._there = {at: scores for at, scores in self._there.items() if at <= step}
        scored = {at for scores in self._ranked(entries).values() for _, at in scores}
        other = sorted(at for at in scored if not self.has(at))
        if other and self._keep:
            note(
                f"scores of step {', '.join(map(str, other))} are of another evaluation (other settings, data "
                "or version) and left out of the best; the best of them stays on disk"
            )

    def has(self, step: int) -> bool:
        """Whether this evaluation has scored the step."""
        return self._evaluation in self._there.get(step, {})

    def add(self, step: int, accuracy: float, candidate: bool = True) -> None:
        """Writes a score down, before the step's checkpoint is saved or later.

        One that is not finite is never best, nor one that is no `candidate`: of them it is known that they were scored.

        Raises:
            CheckpointError: it cannot be written.
        """
        known = accuracy if candidate and math.isfinite(accuracy) else None
        self._there.setdefault(step, {})[self._evaluation] = known
        if jax.process_index() > 0:
            return
        try:
            write_atomically(self._path, (json.dumps(self._there, indent=1) + "\n").encode())
        except OSError as error:
            raise CheckpointError(
                f"{self._path} cannot be written ({error}); make room or fix the folder's permissions and start the "
                "same command again"
            ) from error

    def best(self, entries: Iterable[Any]) -> tuple[int, float] | None:
        """(step, accuracy) of the best-scored checkpoint, the later of equal ones; None if none has a score."""
        found = self._ranked(entries).get(self._evaluation)
        if not found:
            return None
        accuracy, step = found[-1]
        return step, accuracy

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Orbax's question. The best of other evaluations are kept too: they cannot be had again."""
        del context
        kept = [
            scores[-self._keep :] for scores in self._ranked(checkpoints).values() if self._keep
        ]
        best = {step for scores in kept for _, step in scores}
        return [entry.step in best for entry in checkpoints]

    def _ranked(self, entries: Iterable[Any]) -> dict[str, list[tuple[float, int]]]:
        """(accuracy, step) by evaluation, the best and later last."""
        found: dict[str, list[tuple[float, int]]] = {}
        for entry in entries:
            # Up to version 0.3 orbax had the scores, without the evaluation.
            former = {"unknown": (entry.metrics or {}).get("accuracy")}
            for of, accuracy in (former | self._there.get(entry.step, {})).items():
                if accuracy is not None:
                    found.setdefault(of, []).append((accuracy, int(entry.step)))
        return {of: sorted(scores) for of, scores in found.items()}
