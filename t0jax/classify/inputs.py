"""What users give, as examples that heads read; and what they may not give."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from t0jax.config import Head, UserError
from t0jax.data.structured.records import Example

SHOWN = 60


class ClassifyError(UserError, ValueError):
    """An input, task or label that a model cannot answer; the message says what it takes."""


def find_task(tasks: Sequence[str], task: str) -> int:
    """The number of a task.

    Raises:
        ClassifyError: it is none of them; names the nearest ones.
    """
    if task in tasks:
        return tasks.index(task)
    near = difflib.get_close_matches(task, tasks, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else _some(tasks)
    raise ClassifyError(f"the model has no task {task!r}; {hint}")


def _some(tasks: Sequence[str]) -> str:
    more = f" and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    return f"it has {', '.join(tasks[:3])}{more}"


KEYS = {"multiple_choice": ("text", "choices"), "token_classification": ("words", "text")}
"""Keys of an input in JSON, by the kind of task; all others read `PAIR`."""
PAIR = ("text", "text_pair")


def _check_keys(head: Head, given: Mapping[Any, Any]) -> None:
    known = KEYS.get(head.kind, PAIR)
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ClassifyError(
            f"unknown key {unknown[0]!r}; task {head.task!r} ({head.kind}) reads {', '.join(known)}"
        )


def read(head: Head, given: Any) -> Example:
    """One input as an example.

    Args:
        head: of sequence kinds it takes a text, (text, text) or {"text": ..., "text_pair": ...}; multiple choice
            (text, [options]); token classification a text, which is cut at white space, or its words.
        given: the input.

    Raises:
        ClassifyError: it is something else, has other keys, or an option without text.
    """
    if isinstance(given, Mapping):
        _check_keys(head, given)
    if head.kind == "multiple_choice":
        return _question(head, given)
    if head.kind == "token_classification":
        return _words(head, given)
    if isinstance(given, Mapping):
        given = (given.get("text"), given.get("text_pair"))
    if isinstance(given, str):
        return Example(((given, None),), None)
    if isinstance(given, Sequence) and len(given) == 2 and isinstance(given[0], str):
        second = given[1]
        if second is None or isinstance(second, str):
            return Example(((given[0], second),), None)
    raise _refused(head, given, 'a text, or a pair ("text", "other text")')


def _question(head: Head, given: Any) -> Example:
    wanted = '("question", ["option", "option", ...]) with two options or more'
    if isinstance(given, Mapping):
        given = (given.get("text"), given.get("choices"))
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise _refused(head, given, wanted)
    text, choices = given
    listed = isinstance(choices, list | tuple) and len(choices) > 1
    if not isinstance(text, str) or not listed or not all(isinstance(c, str) for c in choices):
        raise _refused(head, given, wanted)
    for number, choice in enumerate(choices):
        if not choice.strip():
            raise ClassifyError(
                f"choice {number} of {_shown(choices)} is empty; leave it out, or give its text"
            )
    return Example(tuple((text, choice) for choice in choices), None)


def _words(head: Head, given: Any) -> Example:
    if isinstance(given, Mapping):
        given = given.get("words", given.get("text"))
    words = given.split() if isinstance(given, str) else given
    if isinstance(words, list | tuple) and words and all(isinstance(word, str) for word in words):
        return Example((), None, tuple(words))
    raise _refused(head, given, "a text with words, or a list of words")


def _refused(head: Head, given: Any, wanted: str) -> ClassifyError:
    return ClassifyError(f"task {head.task!r} ({head.kind}) takes {wanted}, not {_shown(given)}")


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
