"""Scores without text: of rank classification's choices, and of a multitask encoder's heads.

Nothing here reads data: examples come tokenised, so neither TensorFlow nor seqio is needed.
"""

from t0jax.scoring.rank import TARGET_COST, RankExample, Scorer, pack_rows, program
from t0jax.scoring.windows import (
    ACCELERATOR_TOKENS,
    RowStream,
    input_parts,
    length_grid,
    target_parts,
)

__all__ = [
    "ACCELERATOR_TOKENS",
    "TARGET_COST",
    "RankExample",
    "RowStream",
    "Scorer",
    "input_parts",
    "length_grid",
    "pack_rows",
    "program",
    "target_parts",
]
