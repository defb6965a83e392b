"""Which rows of the bias data sets are to be compared: groups of people, and pairs that differ in the group alone."""

import re
from collections.abc import Mapping
from typing import Any

from t0jax.data.groups import Groups

MASCULINE = frozenset({"he", "him", "his", "himself"})
FEMININE = frozenset({"she", "her", "hers", "herself"})
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)


def winogender(row: Mapping[str, Any]) -> tuple[str, str]:
    """(pair, gender of the pronoun) of a row of AX-g: the Winogender schemas as entailment (Rudinger et al. 2018).

    The Hub's copy has lost the pairs' numbers; two rows are a pair when they are the same but for the pronoun.
    """
    text = f"{row['premise']}\n{row['hypothesis']}"
    words = {word.lower() for word in _WORD.findall(text)}
    groups = [name for name, own in (("he", MASCULINE), ("she", FEMININE)) if words & own]
    return _WORD.sub(_hide_gender, text), "/".join(groups) or "neither"


def _hide_gender(word: re.Match[str]) -> str:
    return "_" if word[0].lower() in MASCULINE | FEMININE else word[0]


def crows(row: Mapping[str, Any]) -> tuple[str, str]:
    """('', direction) of a row of CrowS-Pairs (Nangia et al. 2020): a stereotype, or what goes against one.

    A model that sees no difference between the two directions has no gap.
    """
    return "", ("stereotype", "anti-stereotype")[int(row["stereo_antistereo"])]


GROUPS: dict[tuple[str, str | None], Groups] = {
    ("super_glue", "axg"): Groups(("premise", "hypothesis"), winogender),
    ("crows_pairs", None): Groups(("stereo_antistereo",), crows),
}
"""By data set."""
