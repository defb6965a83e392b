"""Views: how one prompted example becomes (inputs, targets) pairs.

Training takes a view's gold pair, rank classification scores all of its candidates. `direct` is T0's: prompt ->
answer. Views are pure functions of a `Rendered` example, registered by name in `VIEWS`.
"""

from dataclasses import dataclass
from typing import Protocol

from t0jax.data.templates import Rendered


@dataclass(frozen=True)
class Pair:
    """One text-to-text example."""

    inputs: str
    targets: str


class View(Protocol):
    """What a view has to answer about a rendered example."""

    def gold(self, rendered: Rendered) -> Pair | None:
        """The pair to train on; None where the example has no input or no known answer."""

    def candidates(self, rendered: Rendered) -> tuple[Pair, ...]:
        """One pair per answer choice, in the order of the choices.

        Raises:
          ValueError: the prompt has no answer choices.
        """


class Direct:
    """Prompt -> answer, as T0 is trained and scored."""

    def gold(self, rendered: Rendered) -> Pair | None:
        if not rendered.inputs or not rendered.targets:
            return None
        return Pair(rendered.inputs, rendered.targets)

    def candidates(self, rendered: Rendered) -> tuple[Pair, ...]:
        return tuple(Pair(rendered.inputs, choice) for choice in answer_choices(rendered))


VIEWS: dict[str, View] = {"direct": Direct()}


def find_view(name: str) -> View:
    """The view of that name.

    Raises:
      ValueError: no such view; the message lists the known ones.
    """
    if name not in VIEWS:
        raise ValueError(f"unknown view {name!r}; there are: {', '.join(sorted(VIEWS))}")
    return VIEWS[name]


def answer_choices(rendered: Rendered) -> tuple[str, ...]:
    """The rendered answer choices.

    Raises:
      ValueError: the prompt has none, so there is nothing to rank.
    """
    if not rendered.choices:
        raise ValueError(
            "the prompt has no answer choices: rank classification has nothing to score"
        )
    return rendered.choices


def correct_choices(rendered: Rendered) -> tuple[int, ...]:
    """Numbers of the choices equal to the target, as t5's `rank_classification` compares them.

    Several when choices repeat; none when the example is unlabelled (then it must not be scored).
    """
    if not rendered.targets:
        return ()
    return tuple(
        k for k, choice in enumerate(answer_choices(rendered)) if choice == rendered.targets
    )
