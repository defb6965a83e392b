"""What scoring found: metrics of ranked rows, aggregates over prompts, and the files they go to."""

from t0jax.results.folder import (
    REPORT_FILE,
    RESULTS_FILE,
    ROWS_FILE,
    SCORES_FOLDER,
    EvaluationError,
    ResultsFolder,
    scores_file,
)
from t0jax.results.metrics import (
    ScoredRow,
    accuracy,
    chance,
    grade,
    hardest,
    macro_f1,
    parity,
    spread,
)
from t0jax.results.summary import Results, missing_lines

__all__ = [
    "REPORT_FILE",
    "RESULTS_FILE",
    "ROWS_FILE",
    "SCORES_FOLDER",
    "EvaluationError",
    "Results",
    "ResultsFolder",
    "ScoredRow",
    "accuracy",
    "chance",
    "grade",
    "hardest",
    "macro_f1",
    "missing_lines",
    "parity",
    "scores_file",
    "spread",
]
