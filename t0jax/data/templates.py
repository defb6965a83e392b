"""promptsource's prompts: reading its YAML files, and rendering an example with one.

The format and its semantics are promptsource 0.2.3's (`promptsource/templates.py`): a prompt is a Jinja template
whose text is cut at `|||` into the input and the target, with answer choices that are a template of their own.
Different are: rendering draws only from a given seed (promptsource draws from Python's global generator); the
separator is protected in nested strings too (promptsource: in top-level strings alone); a field that the prompt
needs and the example lacks is an error (promptsource prints nothing); and templates run in `sandbox.Sandbox`.
"""

import contextlib
import difflib
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import jinja2
import yaml

from t0jax.config import UserError
from t0jax.data import instructions
from t0jax.data.instructions import PROTECTOR, SEPARATOR, Reading, Split, SplitMode, cut, protected
from t0jax.data.metering import Meter
from t0jax.data.names import PromptNames
from t0jax.data.prices import PRINTED_LENGTH
from t0jax.data.sandbox import SANDBOX, MissingFieldError

RELEASE = "promptsource-0.2.3"
T = TypeVar("T")


class TemplateError(UserError, ValueError):
    """A prompt that cannot be found, read or rendered; the message names it, its file and the way out."""


@dataclass(frozen=True)
class Metadata:
    """What promptsource notes about a prompt; None and () where the file says nothing."""

    original_task: bool | None = None
    """Whether the prompt asks for the task the data set was made for."""
    choices_in_prompt: bool | None = None
    metrics: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    """Of the prompt, not of the data."""


@dataclass(frozen=True)
class Rendered:
    """One example seen through one prompt."""

    inputs: str
    targets: str
    """Empty where the example has no known answer."""
    choices: tuple[str, ...] | None
    """The answer choices, in order; None for a prompt without."""
    split: Split | None = None
    """The input told apart into the prompt's text and the example's, if it was asked for."""
    tail: str = ""
    """What the prompt itself writes behind the answer (" review." of "negative review.")."""
    grades: tuple[float, ...] | None = None
    """What each choice is worth; None where the one equal to `targets` is right and the others are wrong."""


@dataclass(frozen=True)
class Template:
    """One prompt. Compiled on first use; pickles as its text."""

    id: str
    name: str
    jinja: str
    reference: str = ""
    answer_choices: str | None = None
    metadata: Metadata = field(default_factory=Metadata)
    dataset: str = ""
    subset: str | None = None
    path: str = ""
    """The file it was read from."""

    def render(
        self, example: Mapping[str, Any], seed: int = 0, split: SplitMode = ""
    ) -> Rendered | None:
        """The example as this prompt puts it.

        Args:
          example: a row, column -> value; never changed. Hyphens in column names become underscores, as in
            t0-zero's seqio tasks (promptsource's `removeHyphen`).
          seed: of `choice` and `random`. Prompt and target come from one draw; the same (seed, prompt) always
            draws the same, so a caller gives every row a seed of its own.
          split: how to fill `Rendered.split`, if at all; all else stays the same. "rendered": by every literal that was
            really rendered. "official": by FLIPPED's rule (`instructions.official`), in twice the time.

        Returns:
          None where the prompt does not apply: it renders nothing, no separator, several, or an empty input.

        Raises:
          TemplateError: a field is missing, or the template fails or asks for too much.
        """
        told = None
        if split == "rendered":
            (parts, told), choices = self._run(self._marked, example, seed)
        else:
            parts, choices = self.apply(example, seed)
        if len(parts) != 2 or not parts[0]:
            return None
        if split == "official":
            told, _ = self._run(self._official, example, seed)
        elif split not in ("", "rendered"):
            raise ValueError(f"unknown split {split!r}; there are 'rendered' and 'official'")
        return Rendered(parts[0], parts[1], choices, told, self._tail)

    def apply(
        self, example: Mapping[str, Any], seed: int = 0
    ) -> tuple[list[str], tuple[str, ...] | None]:
        """promptsource's `Template.apply` (the parts between separators) with the answer choices.

        Raises:
          TemplateError: as `render`.
        """
        return self._run(self._program, example, seed)

    def _run(
        self, program: "_Program[T]", example: Mapping[str, Any], seed: int
    ) -> tuple[T, tuple[str, ...] | None]:
        try:
            found, choices = program.run(example, f"{seed}:{self.id}")
        except MissingFieldError as error:
            raise self._error(_missing(error.name, example)) from None
        except Exception as error:  # a template can make any operation fail
            raise self._error(f"{type(error).__name__}: {error!s:.500}") from error
        return found, None if choices is None else tuple(choices)

    @property
    def fixed_answer_choices(self) -> list[str] | None:
        """The answer choices if they are the same for every example, else None."""
        if self.answer_choices is None or self._names.choices_vary:
            return None
        program = self._program
        try:
            return list(program.fixed_choices)
        except Exception as error:
            raise self._error(f"answer_choices: {type(error).__name__}: {error}") from error

    @property
    def prints_choices(self) -> bool:
        """Whether the input part reads its answer choices."""
        return "answer_choices" in self.jinja.partition(SEPARATOR)[0]

    @property
    def is_random(self) -> bool:
        """Whether it draws with `choice` or `random`."""
        return self._names.is_random

    @property
    def fields(self) -> frozenset[str]:
        """Top-level fields of the example that it needs."""
        return self._names.fields

    @property
    def optional_fields(self) -> frozenset[str]:
        """Top-level fields that it uses if they are there (`is defined`, `default`, set before read)."""
        return self._names.optional

    @functools.cached_property
    def _names(self) -> PromptNames:
        """Apart from the program, for the names of a prompt are found in a third of the time it takes to compile."""
        with self._errors():
            return PromptNames(printing(self.jinja), self.answer_choices or "")

    @functools.cached_property
    def has_instruction(self) -> bool:
        """Whether the prompt has text of its own in its input, for some example at least."""
        with self._errors():
            return instructions.has_literal(SANDBOX.parse_prompt(self.jinja))

    @functools.cached_property
    def _tail(self) -> str:
        _, brace, tail = self.jinja.rpartition(SEPARATOR)[2].rpartition("}")
        return tail.rstrip() if brace and self.answer_choices is not None else ""

    @functools.cached_property
    def _program(self) -> "_Program[list[str]]":
        return self._compiled(self.jinja, instructions.WHOLE)

    @functools.cached_property
    def _marked(self) -> "_Program[tuple[list[str], Split]]":
        return self._compiled(self.jinja, instructions.RENDERED)

    @functools.cached_property
    def _official(self) -> "_Program[Split]":
        return self._compiled(*instructions.official(self.jinja))

    def _compiled(self, jinja: str, reading: Reading[T]) -> "_Program[T]":
        names = self._names
        with self._errors():
            return _Program(printing(jinja), self.answer_choices, names, reading)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except jinja2.TemplateSyntaxError as error:
            raise self._error(f"broken Jinja at line {error.lineno}: {error.message}") from error
        except Exception as error:  # LimitError, or Python's own compiler on what Jinja let pass
            raise self._error(f"{type(error).__name__}: {error!s:.500}") from error

    def _error(self, message: str) -> TemplateError:
        data = self.dataset if self.subset is None else f"{self.dataset}/{self.subset}"
        where = f" ({self.path})" if self.path else ""
        return TemplateError(f"prompt {self.name!r} of {data or 'no data set'}{where}: {message}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


# ----------------------------------------------------------------------------------------- rendering


class _Program(Generic[T]):
    """A prompt's two templates, compiled, and how to read its renderings."""

    def __init__(
        self, jinja: str, answer_choices: str | None, names: PromptNames, reading: Reading[T]
    ) -> None:
        self.text = SANDBOX.compile_prompt(SANDBOX.parse_prompt(jinja), reading.mark)
        self.choices: jinja2.Template | None = None
        if answer_choices is not None:
            self.choices = SANDBOX.compile_prompt(SANDBOX.parse_prompt(answer_choices))
        self._names, self._read = names, reading.read

    def run(self, example: Mapping[str, Any], seed: str) -> tuple[T, list[str] | None]:
        """What was read of the rendering, and the answer choices."""
        for name in example:
            if "-" in name:
                example = {name.replace("-", "_"): value for name, value in example.items()}
                break
        if "answer_choices" in example:
            raise ValueError(
                "the example has a field 'answer_choices', a name that prompts reserve"
            )
        meter = Meter(seed, example)
        choices = self._choices_of(example, meter)
        variables = self._bind(example)
        variables["answer_choices"] = None if choices is None else list(choices)
        return self._read(SANDBOX.run(self.text, variables, meter)), choices

    @functools.cached_property
    def fixed_choices(self) -> list[str]:
        """The answer choices of a prompt whose choices do not vary."""
        assert self.choices is not None  # or it is not asked
        return cut(SANDBOX.run(self.choices, {}, Meter("", {})))

    def _choices_of(self, example: Mapping[str, Any], meter: Meter) -> list[str] | None:
        if self.choices is None:
            return None
        if not self._names.choices_vary:
            return self.fixed_choices
        return cut(SANDBOX.run(self.choices, self._bind(example), meter))

    def _bind(self, example: Mapping[str, Any]) -> dict[str, Any]:
        variables = {}
        for name in self._names.bound:
            if name in example:
                value = example[name]
                if type(value) is str:
                    variables[name] = (
                        value.replace(SEPARATOR, PROTECTOR) if SEPARATOR in value else value
                    )
                else:
                    variables[name] = protected(value)
            elif name in self._names.optional:
                variables[name] = jinja2.Undefined(name=name)
        return variables


def _missing(name: str, example: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, example, n=2)
    hint = f"; renamed to {' or '.join(map(repr, near))}?" if near else ""
    return f"the example has no field {name!r}, it has {', '.join(map(repr, example))}{hint}"


def printing(jinja: str) -> str:
    """A prompt whose expressions are cut to the length that promptsource prints."""
    return jinja.replace("}}", f" | string | truncate({PRINTED_LENGTH}) }}}}")


# ------------------------------------------------------------------------------------------- reading


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """YAML's safe loader that reads promptsource's two tags as mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def load_templates(root: Path, dataset: str, subset: str | None = None) -> dict[str, Template]:
    """All prompts of a data set, by name, sorted by name.

    Args:
      root: a folder in the layout of promptsource's `templates`.
      dataset: `super_glue`, or `super_glue/rte` without a subset.

    Raises:
      TemplateError: no such data set (with suggestions), or a file that is not promptsource's YAML.
    """
    path = _file_of(Path(root), dataset, subset)
    stat = path.stat()
    return dict(_load(path, (stat.st_mtime_ns, stat.st_size), dataset, subset))


@functools.lru_cache(
    maxsize=256
)  # every task asks for its prompt by itself, of a file that holds many
def _load(
    path: Path, version: tuple[int, int], dataset: str, subset: str | None
) -> dict[str, Template]:
    document = _read(path)
    templates: dict[str, Template] = {}
    for key, fields in document["templates"].items():
        template = _template(path, str(key), fields, dataset, subset)
        if template.name in templates:
            raise TemplateError(f"{path}: two prompts are named {template.name!r}")
        templates[template.name] = template
    return {name: templates[name] for name in sorted(templates)}


def find_template(root: Path, dataset: str, subset: str | None, name: str) -> Template:
    """The prompt of that name.

    Raises:
      TemplateError: as `load_templates`, or no such prompt (with suggestions).
    """
    templates = load_templates(root, dataset, subset)
    if name in templates:
        return templates[name]
    data = dataset if subset is None else f"{dataset}/{subset}"
    hint = _suggest(name, templates) or f"there are: {', '.join(map(repr, templates))}"
    raise TemplateError(f"unknown prompt {name!r} for {data}; {hint}")


def list_subsets(root: Path) -> list[tuple[str, str | None]]:
    """Every (data set, subset) with prompts below `root`, sorted by path.

    Raises:
      TemplateError: `root` is no folder.
    """
    if not Path(root).is_dir():
        raise TemplateError(f"no folder of prompts at {root}")
    names: list[tuple[str, str | None]] = []
    for top in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        files = sorted(top.glob("**/templates.yaml"))
        # A folder is a user's (`user/dataset`) where every file in it says so; promptsource has a list of users.
        depth = 2 if files and all(_head(file).startswith(f"{top.name}/") for file in files) else 1
        for file in files:
            parts = file.parent.relative_to(root).parts
            names.append(("/".join(parts[:depth]), "/".join(parts[depth:]) or None))
    return names


def prompts_dir(explicit: str = "") -> Path:
    """The folder of prompts: `explicit`, or `T0JAX_PROMPTS_DIR`, or what `scripts.prompts fetch` unpacked.

    Raises:
      TemplateError: it does not exist.
    """
    named = explicit or os.environ.get("T0JAX_PROMPTS_DIR", "")
    path = Path(named).expanduser() if named else release_dir() / "templates"
    if not path.is_dir():
        way_out = (
            "set data.prompts_dir or T0JAX_PROMPTS_DIR, or run `python -m scripts.prompts fetch`"
        )
        raise TemplateError(f"no folder of prompts at {path}; {way_out}")
    return path


def release_dir() -> Path:
    """Where the fetched release is kept: below `T0JAX_CACHE_DIR`, or `~/.cache/t0jax`."""
    return Path(os.environ.get("T0JAX_CACHE_DIR") or "~/.cache/t0jax").expanduser() / RELEASE


def _head(path: Path) -> str:
    """The data set that the first line of a file names, or ''."""
    with path.open(encoding="utf-8", errors="replace") as file:
        named = re.match(r"dataset: *['\"]?([^'\"\n]+)", file.readline(1000))
    return named[1].strip() if named else ""


def _file_of(root: Path, dataset: str, subset: str | None) -> Path:
    name = dataset if subset is None else f"{dataset}/{subset}"
    path = root.joinpath(*name.split("/"), "templates.yaml")
    if path.is_file() and not {"", ".", ".."} & set(name.split("/")):
        return path
    known = ["/".join(filter(None, names)) for names in list_subsets(root)]
    inside = [other for other in known if other.startswith(f"{name}/")]
    hint = f"its subsets are {', '.join(inside)}" if inside else _suggest(name, known)
    raise TemplateError(
        f"no prompts for data set {name!r} in {root}; {hint or f'it has {len(known)} data sets'}"
    )


def _suggest(name: str, known: Iterable[str]) -> str:
    folded = {other.casefold().strip(): other for other in known}
    near = difflib.get_close_matches(name.casefold().strip(), folded, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(folded[other]) for other in near)}?" if near else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TemplateError(f"{path}: broken YAML: {error!s:.500}") from error
    if not isinstance(document, dict) or not isinstance(document.get("templates"), dict):
        raise TemplateError(f"{path}: not a promptsource file: no mapping named 'templates'")
    return document


def _template(path: Path, key: str, fields: Any, dataset: str, subset: str | None) -> Template:
    if not isinstance(fields, dict):
        raise TemplateError(f"{path}: template {key}: not a mapping")
    for name in ("name", "jinja"):
        if not isinstance(fields.get(name), str):
            raise TemplateError(f"{path}: template {key}: its {name!r} is missing or no text")
    choices = fields.get("answer_choices")
    if not isinstance(choices, str | None):
        raise TemplateError(f"{path}: template {key}: its 'answer_choices' are no text")
    return Template(
        id=str(fields.get("id") or key),
        name=fields["name"],
        jinja=fields["jinja"],
        reference=str(fields.get("reference") or ""),
        answer_choices=choices,
        metadata=_metadata(fields.get("metadata")),
        dataset=dataset,
        subset=subset,
        path=str(path),
    )


def _metadata(fields: Any) -> Metadata:
    fields = fields if isinstance(fields, dict) else {}
    return Metadata(
        original_task=fields.get("original_task"),
        choices_in_prompt=fields.get("choices_in_prompt"),
        metrics=tuple(map(str, fields.get("metrics") or ())),
        languages=tuple(map(str, fields.get("languages") or ())),
    )
