"""Answers of a multitask encoder: `python -m scripts.classify --model M --task glue/sst2 "a fine film"`.

M is a run folder, one of its checkpoints, or a Hugging Face directory. Texts come from the command line, from `--file`
or from standard input, one a line; a line of JSON goes to standard output for each. A line that is a JSON object, or a
JSON list that begins with a text, is an input of that form; any other line is a text as it stands, whatever it begins
with (in an object, {"text": "..."}, a text may have several lines).

    --list                                         the model's tasks, their kinds and labels
    --task glue/mnli --pair "premise" "hypothesis" pairs; repeatable
    --task dream --file questions.jsonl            {"text": ..., "choices": [...]}, or ["text", ["option", ...]]
    --task conll2003 "Anna sleeps" --group         entities
    --labels "economy,sports" "Rate rises ..."     zero-shot; --task names the head, else one of inference is chosen

All keys of the configuration can be set too, e.g. `--mesh.model 2`.
"""

import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from t0jax import config
from t0jax.config import ConfigError, UserError

if TYPE_CHECKING:
    from t0jax.classify import Multitask

OPTIONS: dict[str, dict[str, Any]] = {
    "task": {"type": str, "default": "", "help": "whose head answers"},
    "list": {"action": "store_true", "help": "the model's tasks, one a line"},
    "labels": {"type": str, "default": "", "help": "zero-shot: candidate labels, commas between"},
    "template": {
        "type": str,
        "default": "This example is {}.",
        "help": "zero-shot: the hypothesis, {} where the label goes",
    },
    "multi_label": {"action": "store_true", "help": "zero-shot: labels do not compete"},
    "pair": {
        "type": str,
        "nargs": 2,
        "action": "append",
        "default": [],
        "help": "two texts; repeatable",
    },
    "file": {
        "type": str,
        "default": "",
        "help": "a text or a JSON input a line; standard input without",
    },
    "top_k": {"type": int, "default": 0, "help": "answers to give, the best first; 0 gives all"},
    "group": {"action": "store_true", "help": "tokens: entities in place of words"},
    "without_task_embedding": {"action": "store_true", "help": "the encoder is not told the task"},
    "adapters": {"type": str, "default": "", "help": "a folder of heads in the published layout"},
    "module": {
        "type": str,
        "default": "",
        "help": "modules whose tasks tell kinds and labels that files in that layout do not",
    },
    "max_length": {"type": int, "default": 0, "help": "tokens of a row [as trained, 512]"},
}

BLOCK = 1024
"""Inputs answered at a time."""


class InputError(UserError):
    """Inputs that contradict each other."""


def main(argv: Sequence[str]) -> int:
    """Prints the answers; returns 0."""
    path, rest = config.take_model(argv)
    texts, rest = take_texts(rest)
    settings, options = config.parse(rest, __doc__ or "", of_model=True, **OPTIONS)
    if not options.list and not options.task and not options.labels:
        raise ConfigError("nothing is asked: give --task NAME, --labels A,B, or --list")
    if options.labels and options.group:
        raise ConfigError(
            "--group is of entities, which zero-shot classification has not; leave it out"
        )
    named = any(flag.startswith(("--model.", "--config")) for flag in rest)
    from t0jax import processes, sharding, train
    from t0jax.classify import Multitask
    from t0jax.data.registry import known_heads

    processes.refuse_cluster("scripts.classify")
    train.set_environment(settings)
    model = Multitask.load(
        path,
        max_length=options.max_length,
        vocabulary=settings.data.vocabulary,
        mesh=sharding.make_mesh(settings.mesh),
        compute=settings.model if named else None,
        adapters=options.adapters or None,
        known=known_heads(options.module.split(",") if options.module else ()),
    )
    if options.list:
        show_tasks(model)
    else:
        answer(model, options, texts)
    return 0


def take_texts(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(texts, flags with their values): a text is what no flag before it takes.

    What follows `--` is a text whatever it looks like.
    """
    texts: list[str] = []
    rest: list[str] = []
    waiting = 0
    for place, word in enumerate(argv):
        if word == "--" and not waiting:
            return [*texts, *argv[place + 1 :]], rest
        if waiting:
            rest.append(word)
            waiting -= 1
        elif word.startswith("--"):
            rest.append(word)
            name, equals, _ = word.removeprefix("--").partition("=")
            option = OPTIONS.get(name, {})
            flag = option.get("action") == "store_true" or name == "help"
            waiting = 0 if equals or flag else option.get("nargs", 1)
        else:
            texts.append(word)
    return texts, rest


def show_tasks(model: "Multitask") -> None:
    """A line a task: name, kind, labels."""
    for head in model.heads:
        print(f"{head.task}\t{head.kind}\t{', '.join(head.labels)}")


Check = Callable[[Any], Any]
"""An input -> the same, as it is answered; raises ClassifyError where it cannot be."""


def same(given: Any) -> Any:
    """The input as it stands."""
    return given


def inputs(texts: Sequence[str], options: Any, check: Check = same) -> Iterator[Any]:
    """What is asked, one after the other.

    Raises:
        InputError: texts and a file.
    """
    given = [*texts, *map(tuple, options.pair)]
    if given and options.file:
        raise InputError("texts and --file are both given; choose one")
    yield from given or read_lines(options.file, check)


def read_lines(file: str, check: Check = same) -> Iterator[Any]:
    """A text or JSON input a line of the file, or of standard input."""
    if not file:
        if sys.stdin.isatty():
            print("reading texts from the keyboard, one a line; end with Ctrl-D", file=sys.stderr)
        yield from parsed(sys.stdin, "standard input", check)
        return
    with open(file, encoding="utf-8") as source:
        yield from parsed(source, file, check)


def parsed(lines: Any, where: str, check: Check = same) -> Iterator[Any]:
    """What each line asks, in the order of the lines; tells of those that may not be what was meant.

    Raises:
        InputError: a line that cannot be answered.
    """
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\n")
        if not line.strip():
            print(f"{where}, line {number} is blank: no answer for it", file=sys.stderr)
            continue
        found = as_json(line)
        if found is None and AS_JSON.match(line):
            print(f"{where}, line {number} is no JSON: it is read as a text", file=sys.stderr)
        try:
            asked = check(line if found is None else found)
        except UserError as error:
            raise InputError(f"{where}, line {number}: {error}") from None
        yield asked


AS_JSON = re.compile(r'\{\s*"|\[\s*"')
"""How inputs in JSON begin, and texts hardly do."""


def as_json(line: str) -> Any:
    """The input that a line of JSON is, of a list a tuple: one input, not several. None of a text."""
    try:
        found = json.loads(line) if line[0] in "{[" else None
    except ValueError:
        return None
    if isinstance(found, list):
        return tuple(found) if found and isinstance(found[0], str) else None
    return found


def answer(model: "Multitask", options: Any, texts: Sequence[str]) -> None:
    """Prints a line of JSON for each input.

    Raises:
        InputError: there is none, or one cannot be answered.
    """
    embedded = False if options.without_task_embedding else None
    if options.labels:
        zero_shot = model.zero_shot(options.task, task_embedding=embedded)
        how = {"hypothesis_template": options.template, "multi_label": options.multi_label}
        run = functools.partial(zero_shot, candidate_labels=options.labels, **how)
        check: Check = plain
    else:
        classifier = model.classifier(options.task, task_embedding=embedded is None)
        run = functools.partial(classifier, top_k=options.top_k or None, group=options.group)
        run([])  # options that the task does not take are told before an input is waited for
        check = classifier.check
    asked = inputs(texts, options, check)
    first = next(asked, None)
    if first is None:
        raise InputError(f"nothing is asked: {options.file or 'standard input'} has no text")
    asked = itertools.chain([first], asked)
    while block := list(itertools.islice(asked, BLOCK)):
        for found in run(block):
            print(json.dumps(found, ensure_ascii=False), flush=True)


def plain(given: Any) -> str:
    """The text of an input to zero-shot classification.

    Raises:
        InputError: it is more than a text.
    """
    text = given.get("text") if isinstance(given, dict) and list(given) == ["text"] else given
    if not isinstance(text, str):
        raise InputError(f'--labels are asked of a text, or {{"text": ...}}, not of {given!r}')
    return text


if __name__ == "__main__":
    config.run_script(main)
