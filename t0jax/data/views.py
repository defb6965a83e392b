"""Views: how one prompted example becomes (inputs, targets) pairs.

| view | inputs | targets | of |
|---|---|---|---|
| direct | the prompt | the answer | T0 (Sanh et al. 2022) |
| channel | the answer | the prompt | Min et al. 2022 (arXiv 2108.04106) |
| flipped | the example's text and the answer | the prompt's own words, the instruction | FLIPPED (Ye et al. 2022) |

A view makes one pair for each answer choice. Scoring takes all of them; training takes the right one and, with
unlikelihood, some wrong ones (`lesson`). Views are pure functions of a `Rendered` example, by name in `VIEWS`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from t0jax.data.instructions import Split
from t0jax.data.templates import Rendered

SENTINELS = 100
"""T5 has so many; what a prompt writes after its hundredth literal counts as the example's text."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text that is tokenised on its own.

    Attributes:
      sentinel: this is no text but sentinel number so-and-so, where not negative.
      shorten: may lose tokens on its right when the whole is too long.
    """

    text: str = ""
    sentinel: int = -1
    shorten: bool = False

    def __str__(self) -> str:
        return self.text if self.sentinel < 0 else spell(self.sentinel)


Side = str | tuple[Part, ...]
"""Inputs or targets: a text in one piece, or its parts."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One text-to-text example.

    Attributes:
      inputs, targets: as text, with sentinels spelled out (`<extra_id_0>`).
      input_parts, target_parts: what is tokenised piece by piece; the whole text in one piece when empty.
      input_eos: inputs end with EOS unless a configuration says otherwise.
    """

    inputs: str
    targets: str
    input_parts: tuple[Part, ...] = ()
    target_parts: tuple[Part, ...] = ()
    input_eos: bool = False

    @property
    def sides(self) -> tuple[Side, Side]:
        """What inputs and targets are tokenised as."""
        return self.input_parts or self.inputs, self.target_parts or self.targets


def parts_of(side: Side) -> tuple[Part, ...]:
    """The parts of one side; of a plain text one, that may be shortened."""
    return (Part(side, shorten=True),) if isinstance(side, str) else side


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is learned from one example.

    Attributes:
      right: the pair to make likely.
      wrong: pairs to make unlikely.
      peers: the pairs of all choices. Inputs that share text are shortened to what leaves room for each of them,
        so that the text left says nothing about the choice.
    """

    right: Pair
    wrong: tuple[Pair, ...] = ()
    peers: tuple[Pair, ...] = ()


class View(Protocol):
    """What a view has to answer about a rendered example."""

    needs_split: bool
    """Whether it reads `Rendered.split`."""
    input_eos: bool
    """Whether its inputs end with EOS where a configuration does not say."""

    def pair(self, rendered: Rendered, choice: str) -> Pair:
        """The pair of one answer. Raises ValueError without a split that is needed."""
        ...


class Direct:
    """Prompt -> answer, as T0 is trained and scored."""

    needs_split = False
    input_eos = False

    def pair(self, rendered: Rendered, choice: str) -> Pair:
        return Pair(rendered.inputs, choice)


class Channel:
    """Answer -> prompt: the noisy channel, scored by how well a choice explains the whole prompt."""

    needs_split = False
    input_eos = False

    def pair(self, rendered: Rendered, choice: str) -> Pair:
        return Pair(choice, rendered.inputs)


class Flipped:
    """Input and answer -> instruction.

    The instruction's literals are cut out of the prompt, a sentinel in the place of each, and are what is
    generated: `input: {x}\\n output: {choice}` -> `<extra_id_0> {literal}<extra_id_1> {literal}...`. The text and the
    blank after a sentinel are those of FLIPPED's released code, which published checkpoints know.
    """

    needs_split = True
    input_eos = True

    def pair(self, rendered: Rendered, choice: str) -> Pair:
        answer = Part(f"\n output: {_apart(choice)}")
        inputs = (Part("input: "), *_example_parts(rendered), answer)
        targets = _instruction_parts(rendered)
        said, asked = ("".join(map(str, parts)) for parts in (inputs, targets))
        return Pair(said, asked, inputs, targets, self.input_eos)


def spell(sentinel: int) -> str:
    """How a sentinel is written in text."""
    return f"<extra_id_{sentinel}>"


def _apart(text: str) -> str:
    """`text`, in which a sentinel that the data spells out is none: SentencePiece would make one of it."""
    return text.replace("<extra_id_", "< extra_id_") if "<extra_id_" in text else text


def _example_parts(rendered: Rendered) -> list[Part]:
    parts: list[Part] = []
    for part in _split(rendered).parts:
        if isinstance(part, int) and part < SENTINELS:
            parts.append(Part(sentinel=part))
            continue
        text = part if isinstance(part, str) else _split(rendered).literals[part]
        if parts and parts[-1].sentinel < 0:  # between two sentinels one text
            text = parts.pop().text + text
        parts.append(Part(_apart(text), shorten=True))
    return parts


def _instruction_parts(rendered: Rendered) -> tuple[Part, ...]:
    literals = _split(rendered).literals[:SENTINELS]
    return tuple(
        part
        for number, literal in enumerate(literals)
        for part in (Part(sentinel=number), Part(f" {_apart(literal)}", shorten=True))
    )


def _split(rendered: Rendered) -> Split:
    if rendered.split is None:
        raise ValueError("the view 'flipped' needs prompts rendered with their split")
    return rendered.split


VIEWS: dict[str, View] = {"direct": Direct(), "channel": Channel(), "flipped": Flipped()}


def find_view(name: str) -> View:
    """The view of that name.

    Raises:
      ValueError: no such view; the message lists the known ones.
    """
    if name not in VIEWS:
        raise ValueError(f"unknown view {name!r}; there are: {', '.join(sorted(VIEWS))}")
    return VIEWS[name]


# --------------------------------------------------------------------------------------------- choices


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


def candidates(view: View, rendered: Rendered) -> tuple[Pair, ...]:
    """One pair per answer choice, in the order of the choices.

    Raises:
      ValueError: the prompt has no answer choices.
    """
    return tuple(view.pair(rendered, choice) for choice in answer_choices(rendered))


def correct_choices(rendered: Rendered) -> tuple[int, ...]:
    """Numbers of the right choices: those of the best grade, where there are grades.

    Otherwise those equal to the target, as t5's `rank_classification` compares them (several when choices repeat), or
    to the target without what the prompt writes behind every answer ("negative" of "negative review."). No number
    when the example is unlabelled (then it must not be scored), or the target is no choice at all.
    """
    if not rendered.targets:
        return ()
    choices = answer_choices(rendered)
    if rendered.grades is not None:
        best = max(rendered.grades)
        return tuple(k for k, grade in enumerate(rendered.grades) if grade == best)
    equal = tuple(k for k, choice in enumerate(choices) if choice == rendered.targets)
    answer = rendered.targets.removesuffix(rendered.tail).strip()
    return equal or tuple(k for k, choice in enumerate(choices) if choice == answer)


# ---------------------------------------------------------------------------------------------- lessons


def lesson(view: View, rendered: Rendered, negatives: int = 0, draw: str = "") -> Lesson | None:
    """What to learn from an example; None where it has no input or no known answer, or no instruction to learn.

    The right pair is of the choice that is the target. The direct view without negatives takes the target itself, as T0
    does; so do all where the target is no choice.

    Args:
      negatives: how many wrong pairs, drawn without repetition from the example's other choices; fewer where it
        has fewer.
      draw: names this draw of the example; the same name draws the same choices.
    """
    if not rendered.inputs or not rendered.targets:
        return None
    if view.needs_split and not any(map(str.strip, _split(rendered).literals)):
        return None
    plain = isinstance(view, Direct) and not negatives
    if plain or not rendered.choices:
        return Lesson(view.pair(rendered, rendered.targets))
    right = correct_choices(rendered)
    label = rendered.choices[right[0]] if right else rendered.targets
    correct = {label, *(rendered.choices[k] for k in right)}
    wrong = [choice for choice in dict.fromkeys(rendered.choices) if choice not in correct]
    peers = (label, *wrong) if view.needs_split else ()
    return Lesson(
        view.pair(rendered, label),
        tuple(view.pair(rendered, choice) for choice in _drawn(wrong, negatives, draw)),
        tuple(view.pair(rendered, choice) for choice in peers),
    )


def _drawn(choices: Sequence[str], count: int, draw: str) -> list[str]:
    """`count` of the choices, each set of them equally likely over the names of draws."""
    if not count:
        return []
    order = [
        hashlib.blake2b(f"{draw}:{k}".encode(), digest_size=8).digest() for k in range(len(choices))
    ]
    chosen = sorted(range(len(choices)), key=order.__getitem__)[:count]
    return [choices[k] for k in sorted(chosen)]
