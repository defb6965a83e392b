"""Let a model write: `python -m scripts.generate --model M --input "Is this review positive? ..."`.

M is a run folder, one of its checkpoints, or a Hugging Face directory. Prompts come from `--input` (as often as you
like), from the lines of `--file`, or from standard input; what is written goes to standard output, a line for each.

With `--view flipped --input TEXT --output LABEL` a FLIPPED model guesses the instruction that leads from TEXT to LABEL:
one line has it as it was generated, one has it filled in around TEXT. Places for it are `<extra_id_0>`, `<extra_id_1>`
...; a TEXT without any gets one at either end. Lines of a file hold TEXT, a tab and LABEL. All keys of the
configuration can be set too, e.g. `--mesh.model 2` or `--evaluate.max_input_length 512`.
"""

import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from t0jax import config
from t0jax.config import ConfigError, UserError
from t0jax.data.encoding import PairEncoder
from t0jax.data.instructions import Split
from t0jax.data.templates import Rendered
from t0jax.data.views import find_view
from t0jax.data.vocabulary import Pieces, split_spelled, vocabulary_path

if TYPE_CHECKING:
    from t0jax.checkpoint import LoadedModel
    from t0jax.generate import Generator

OPTIONS: dict[str, dict[str, Any]] = {
    "input": {"type": str, "action": "append", "default": [], "help": "a prompt; repeatable"},
    "output": {"type": str, "action": "append", "default": [], "help": "view flipped: its label"},
    "file": {"type": str, "default": "", "help": "a prompt a line; standard input without"},
    "view": {
        "type": str,
        "default": "",
        "help": "direct or flipped [data.view, the run's, direct]",
    },
    "input_eos": {
        "type": bool | None,
        "default": None,
        "help": "end inputs with EOS; as the run was trained, else in the view flipped alone",
    },
    "num_beams": {"type": int, "default": 1, "help": "1 is greedy"},
    "max_new_tokens": {"type": int, "default": 64, "help": "tokens at most"},
    "length_penalty": {"type": float, "default": 1.0, "help": "beams: above 0 favours long texts"},
    "early_stopping": {
        "type": bool | Literal["never"],
        "default": False,
        "help": "beams: as transformers",
    },
    "temperature": {
        "type": float | None,
        "default": None,
        "help": "above 0 samples; 0 takes the likeliest token [1 with top_k or top_p, else 0]",
    },
    "top_k": {"type": int, "default": 0, "help": "samples from so many likeliest tokens"},
    "top_p": {"type": float, "default": 1.0, "help": "samples from the likeliest of this share"},
    "seed": {"type": int, "default": 0, "help": "of sampling"},
}

REPORT_SECONDS = 10.0


class PromptError(UserError):
    """Prompts that are missing or not what the view takes."""


@dataclass(frozen=True)
class Prompt:
    """What is asked: a text, in the view flipped with the label that it leads to."""

    text: str
    label: str | None = None


def main(argv: Sequence[str]) -> int:
    """Prints what the model writes; returns 0."""
    path, rest = config.take_model(argv)
    settings, options = config.parse(rest, __doc__ or "", of_model=True, **OPTIONS)
    named = any(flag.startswith(("--model.", "--config")) for flag in rest)
    from t0jax import processes, train

    with processes.cluster(settings.train.patience), processes.Preemption() as preemption:
        train.set_environment(settings)
        view = options.view or settings.data.view or own_view(path) or "direct"
        prompts = read_prompts(view, options)
        agree(prompts)
        try:
            compute = settings.model if named else None
            write(path, settings, compute, options, prompts, preemption.check)
        except processes.Preempted:
            report("SIGTERM: stopped before all was written")
    return 0


def agree(prompts: Sequence["Prompt"]) -> None:
    """Refuses to write when the processes have read different prompts."""
    from t0jax import processes

    digest = hashlib.sha256(repr(list(prompts)).encode("utf-8", "surrogateescape")).hexdigest()
    everyone = processes.tell(digest, "reading the prompts")
    if len(set(everyone)) > 1:
        other = next(i for i, told in enumerate(everyone) if told != everyone[0])
        raise PromptError(
            f"process {other} has read other prompts than process 0; give all the same --input or --file, not a "
            "standard input that only one of them has"
        )


def own_view(path: Path) -> str:
    """The view that a run was trained with, where its recipe names one."""
    from t0jax import checkpoint

    return "" if checkpoint.is_hugging_face(path) else checkpoint.read_config(path).data.view


# ------------------------------------------------------------------------------------------- prompts


def read_prompts(view: str, options: Any) -> list[Prompt]:
    """The prompts that the options name.

    Raises:
        PromptError: there are none, or options or lines that do not fit the view.
        OSError: the file cannot be read.
    """
    if view not in ("direct", "flipped"):
        raise PromptError(f"cannot write in the view {view!r}; --view is direct or flipped")
    if options.output and view != "flipped":
        raise PromptError("--output is the label of --view flipped; without that view leave it out")
    if options.input:
        prompts = _given_prompts(view, options)
    elif options.output:
        raise PromptError("--output has no --input; the lines of a file hold text, a tab and label")
    else:
        prompts = _line_prompts(view, options.file)
    if not prompts:
        where = options.file or "standard input"
        raise PromptError(f"nothing to write about: {where} is empty; give --input or --file")
    for number, prompt in enumerate(prompts, start=1):
        if any(map(_is_surrogate, prompt.text + (prompt.label or ""))):
            raise PromptError(f"prompt {number} is not UTF-8 text")
    return prompts


def _is_surrogate(letter: str) -> bool:
    """Bytes that are no text arrive as lone surrogates."""
    return "\ud800" <= letter <= "\udfff"


def _given_prompts(view: str, options: Any) -> list[Prompt]:
    if options.file:
        raise PromptError("--input and --file are both given; choose one")
    if view == "direct":
        return [Prompt(text) for text in options.input]
    if len(options.input) != len(options.output):
        counts = f"{len(options.input)} --input and {len(options.output)} --output"
        raise PromptError(f"view flipped: {counts}; give one --output for each --input")
    return [Prompt(*both) for both in zip(options.input, options.output, strict=True)]


def _line_prompts(view: str, file: str) -> list[Prompt]:
    where, lines = file or "standard input", list(_lines(file))
    if view == "direct":
        return [Prompt(line) for line in lines]
    cut = [line.rpartition("\t") for line in lines]
    for number, (_, tab, _) in enumerate(cut, start=1):
        if not tab:
            raise PromptError(f"{where}, line {number}: view flipped needs text, a tab and a label")
    return [Prompt(text, label) for text, _, label in cut]


def _lines(file: str) -> Iterator[str]:
    if file:
        with open(file, encoding="utf-8", errors="surrogateescape") as source:
            yield from (line.rstrip("\n") for line in source)
        return
    if sys.stdin.isatty():
        report("reading prompts from the keyboard, one a line; end with Ctrl-D")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    yield from (line.rstrip("\n") for line in sys.stdin)


# ------------------------------------------------------------------------------------------- writing


def write(
    path: Path,
    settings: config.Config,
    compute: config.Model | None,
    options: Any,
    prompts: Sequence[Prompt],
    pause: Callable[[], None],
) -> None:
    """Loads the model and prints what it writes for each prompt; `pause` may raise in between."""
    # After parsing: a mistyped key is answered at once.
    import jax

    from t0jax import checkpoint, generate, sharding

    longest = settings.evaluate.max_input_length
    own = {f.name: options[f.name] for f in fields(generate.Settings) if f.name in OPTIONS}
    how = generate.Settings(**own, max_input_length=longest)
    mesh = sharding.make_mesh(settings.mesh)
    report(f"model: reading {path}")
    model = checkpoint.load_model(path, mesh, compute)
    check_architecture(path, model.network.config)
    pieces = Pieces(settings.data.vocabulary or model.vocabulary or vocabulary_path())
    check_vocabulary(pieces, model.network.config)
    generator = generate.Generator(model.network, mesh, how)
    params = generator.shard(model.params)
    end = ends_inputs(model, options.input_eos, settings.evaluate.input_eos)
    del model  # its float32 matrices, where the generator has made others of them
    encoder = PairEncoder(pieces, longest, how.max_new_tokens, end, settings.data.truncation)
    inputs = [encode(prompt, pieces, encoder) for prompt in prompts]
    report(f"writing: {len(prompts)} texts of up to {how.max_new_tokens} tokens")
    for prompt, tokens in zip(prompts, all_tokens(generator, params, inputs, pause), strict=True):
        if jax.process_index() == 0:
            print(*shown(prompt, pieces.decode_spelled(tokens)), sep="\n", flush=True)


def check_architecture(path: Path, model: config.Model) -> None:
    """Refuses a model that has no decoder."""
    if model.architecture != "t5":
        raise ConfigError(
            f"{path} is a {model.architecture}, an encoder that writes no text; "
            f"python -m scripts.classify --model {path} --list tells what it answers"
        )


def check_vocabulary(pieces: Pieces, model: config.Model) -> None:
    """Refuses a vocabulary with more ids than the model has embeddings."""
    if pieces.size > model.vocab_size:
        raise ConfigError(
            f"the vocabulary {pieces.path} has {pieces.size} ids, the model's embedding {model.vocab_size} rows; "
            "use the vocabulary the model was trained with"
        )


def ends_inputs(model: "LoadedModel", *asked: bool | None) -> bool | None:
    """Whether inputs end with EOS: as first asked for, else as the run was trained, else (None) as the view says."""
    trained = None if model.config is None else model.config.data.input_eos
    return next((choice for choice in (*asked, trained) if choice is not None), None)


def encode(prompt: Prompt, pieces: Pieces, encoder: PairEncoder) -> Sequence[int]:
    """Token ids of the model's input. A too long one loses text as the encoder says, never its EOS."""
    if prompt.label is None:
        end = [pieces.eos_id] if encoder.input_eos else []
        return [*pieces.encode_spelled(prompt.text)[: encoder.input_length - len(end)], *end]
    split = Split(tuple(places(prompt.text)), ())
    pair = find_view("flipped").pair(Rendered(prompt.text, "", None, split), prompt.label)
    return encoder.encode([[pair]])[0][0].inputs


def places(text: str) -> list[str | int]:
    """A text cut at the places of the instruction, which are numbers; at both ends when it names none."""
    parts = split_spelled(text)
    return parts if any(isinstance(part, int) for part in parts) else [0, *parts, 1]


def shown(prompt: Prompt, written: str) -> list[str]:
    """The lines to print for a prompt."""
    return [written] if prompt.label is None else [written, fill(prompt.text, written)]


def fill(text: str, written: str) -> str:
    """The instruction around its input: `<extra_id_0> Title:<extra_id_1> Review:` -> `Title: {text} Review:`."""
    literals: dict[int, str] = {}
    spelled = split_spelled(written)
    for place, literal in itertools.pairwise(spelled):
        if isinstance(place, int) and isinstance(literal, str):
            literals.setdefault(place, literal)
    texts = (literals.get(part, "") if isinstance(part, int) else part for part in places(text))
    return " ".join(" ".join(texts).split())


def all_tokens(
    generator: "Generator",
    params: Any,
    inputs: Sequence[Sequence[int]],
    pause: Callable[[], None],
) -> Iterator[np.ndarray]:
    """What is written for each input, in order; in a multi-process run every process takes its share."""
    import jax

    from t0jax import processes

    mine, began = inputs[generator.slice :: generator.slices], time.monotonic()

    def progress(done: int) -> None:
        nonlocal began
        pause()
        if time.monotonic() - began > REPORT_SECONDS:
            began = time.monotonic()
            report(f"written: {done} of {len(mine)}")

    written = (one.tokens for one in generator(params, mine, progress))
    if jax.process_count() == 1:
        yield from written
        return
    shape = (-(-len(inputs) // generator.slices), generator.settings.max_new_tokens)
    tokens = np.full(shape, -1, np.int32)
    for row, found in zip(tokens, written, strict=False):
        row[: len(found)] = found
    slices, everyone = processes.gather((np.int32(generator.slice), tokens), "gathering the texts")
    owner = {int(slice_): rows for slice_, rows in zip(slices, everyone, strict=True)}
    for number in range(len(inputs)):
        row = owner[number % generator.slices][number // generator.slices]
        yield row[row >= 0]


def report(message: str) -> None:
    """A line on what is happening, apart from what is written."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    config.run_script(main)
