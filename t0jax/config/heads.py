"""Which heads of a multitask encoder share their weights: those with the same label names in the same order."""

from collections.abc import Sequence

from t0jax.config.sections import HeadKind

VERSION = 1
"""Of the rules below; raised with every change that puts heads into other groups."""

_SAME = {
    "entailed": "entailment",
    "non": "not",
    "duplicate": "equivalent",
    "neg": "negative",
    "pos": "positive",
}
"""Words of label names that say the same, as tasknet has them; there they are replaced inside words too."""


def normalised(label: str) -> str:
    """A label's name as groups compare it: lower case, words between underscores, synonyms unified."""
    words = label.lower().replace("-", "_").replace(" ", "_").split("_")
    return "_".join(_SAME.get(word, word) for word in words)


def head_group(kind: HeadKind, labels: Sequence[str]) -> str:
    """The group of a head: "" where it shares with none.

    Every multiple-choice head is of one group. A head without label names, or whose names are numbers, has none: the
    numbers of two tasks need not mean the same. Token heads read other states than sequence heads, and share among
    themselves.
    """
    if kind == "multiple_choice":
        return "multiple_choice"
    if kind == "regression" or not labels or all(_is_number(label) for label in labels):
        return ""
    names = "|".join(normalised(label).replace("|", "\\|") for label in labels)
    return f"token:{names}" if kind == "token_classification" else names


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
