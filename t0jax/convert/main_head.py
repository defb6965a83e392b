"""Which head a multitask model is when no task is named: of zero-shot classification, and in an export."""

from collections.abc import Sequence

from t0jax.config import Head
from t0jax.config.heads import normalised

MAIN = "default"
"""The task of a directory's own classifier, where that is not the one which `main_task` would take of the others."""
NLI = {"entailment", "neutral", "contradiction"}
PREFERRED = ("zero-shot-label-nli", "glue/mnli", "mnli")
"""Ends of task names, in the order in which their heads are taken when none is named."""


def main_task(heads: Sequence[Head]) -> int:
    """The head that a model's own classifier is: `MAIN`, else one of inference, else the first sequence head."""
    own = [k for k, head in enumerate(heads) if head.task == MAIN]
    chosen = own[0] if own else inference_head(heads)
    if chosen is not None:
        return chosen
    return next((k for k, head in enumerate(heads) if head.kind != "token_classification"), 0)


def inference_head(heads: Sequence[Head]) -> int | None:
    """The head to use when none is named: of inference with three labels, else one that has entailment.

    `MAIN` comes first if it is one of these, then those of `PREFERRED`; a model's only head is taken whatever its
    labels. None where no head will do.
    """
    classes = [k for k, head in enumerate(heads) if head.kind == "classification"]
    names = {k: {normalised(label) for label in heads[k].labels} for k in classes}
    three = [k for k in classes if names[k] == NLI]
    two = [k for k in classes if any(label.startswith("entail") for label in names[k])]
    own = [k for k in two if heads[k].task == MAIN]
    found = own or three or two or (classes if len(heads) == 1 else [])
    ends = (k for end in PREFERRED for k in found if heads[k].task.endswith(end))
    return next(ends, found[0] if found else None)
