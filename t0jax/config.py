"""The configuration of a run: frozen dataclasses, read from YAML with dotted overrides.

Every recipe in `configs/` is one YAML file with the sections below; every key can be overridden on the
command line (`--train.steps 100`). Unknown keys are refused with the nearest known one.
"""

import dataclasses
import difflib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


class UserError(Exception):
    """Something the user can mend: its message is shown without a traceback."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key, the value and the way out."""


@dataclass(frozen=True)
class Model:
    """A T5 encoder-decoder: its architecture, then how it is computed.

    The defaults are T5 v1.1 small. When a run starts from a Hugging Face directory or a checkpoint, the
    architecture is read from there and only the computing options below are taken from here.
    """

    vocab_size: int = 32128
    """Rows of the embedding table; at least the vocabulary's size (T5 pads 32,100 to 32,128)."""
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    """Encoder layers."""
    num_decoder_layers: int | None = None
    """Decoder layers; as many as the encoder's when not given."""
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu"] = "gated-gelu"
    """`relu` in T5 v1.0; `gated-gelu` (tanh approximation) in v1.1, LM-adapt, T0 and Flan."""
    tie_word_embeddings: bool = False
    """True in T5 v1.0: the head is the embedding and decoder outputs are scaled by d_model ** -0.5."""
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    dropout_rate: float = 0.1
    """Used in training only. T5 v1.1 was pre-trained with 0; fine-tuning (T0) uses 0.1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products. Parameters, norms, softmax and logits are float32 always."""
    scan_layers: bool = True
    """One compiled body for all layers (fast compile) or an unrolled stack; same parameters either way."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but weight products, or everything."""
    attention: Literal["xla", "cudnn"] = "xla"
    """`cudnn`, fused, needs an NVIDIA GPU, bfloat16 and even lengths."""

    @property
    def decoder_layers(self) -> int:
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers


COMPUTE_FIELDS = ("dropout_rate", "dtype", "scan_layers", "remat", "attention")
"""The fields of `Model` that say how to compute, not what; free to differ from a checkpoint's."""


@dataclass(frozen=True)
class Data:
    """What is read and how it becomes batches."""

    mixture: str = ""
    """Name of the seqio mixture or task to train on."""
    eval_mixture: str = ""
    """Mixture or task scored by rank classification while training; none when empty."""
    modules: tuple[str, ...] = ("tasks.t0",)
    """Python modules that register the tasks."""
    view: Literal["", "direct", "channel", "flipped"] = ""
    """How a prompted example becomes inputs and targets (prompt to answer, answer to prompt, or input and answer to
    instruction), in training and in scoring; as the tasks were declared when empty."""
    num_negatives: int = 0
    """Wrong choices drawn for each example, to train against by unlikelihood; 0 trains on right ones alone. They share
    the example's row: each pair may have input_length // (1 + num_negatives) inputs, and targets likewise."""
    instruction_split: Literal["rendered", "official"] = "rendered"
    """View flipped: the instruction is what the prompt itself wrote into the text, or what FLIPPED's released code
    cuts from the prompt's source (with text of branches that were not taken)."""
    truncation: Literal["input", "official"] = "input"
    """Too long inputs lose text of the example alone, or, as in FLIPPED's code, inputs and targets of every view lose
    their right end but for EOS."""
    rates: Literal["registered", "rows"] = "registered"
    """A task's weight: what its mixture says, or the rows that are really there (for cuts of the data sets)."""
    split: str = "train"
    num_shots: int = 0
    """Train on this many rows of each data set alone, drawn by `seed`, the same for all its prompts; 0 takes all."""
    eval_split: str = "validation"
    """Split to score; of several with commas between, `validation,test`, the first that a data set has."""
    local_dir: str = ""
    """`<dataset>/<subset or default>/<split>.{jsonl,parquet,csv}`; `T0JAX_DATA_DIR` when empty."""
    prompts_dir: str = ""
    """promptsource's `templates` folder; `T0JAX_PROMPTS_DIR` or the fetched cache when empty."""
    available_only: bool = False
    """Go on without the data sets that cannot be had, instead of stopping."""
    cache_dir: str = ""
    """Folder that `seqio_cache_tasks` wrote; when set, the mixture is read from there through seqio."""
    vocabulary: str = ""
    """A SentencePiece model file; the tasks' own vocabulary when empty."""
    vocabulary_train_size: int = 0
    """When positive and `vocabulary` does not exist yet: train one of this many pieces on the mixture's text."""
    input_length: int = 1024
    target_length: int = 256
    batch_size: int = 32
    """Rows of a batch over all processes and all gradient-accumulation steps; packed rows when `pack`."""
    pack: bool = True
    input_eos: bool | None = None
    """Append EOS to inputs; where not given the view says: flipped does, direct (T0) and channel do not."""
    seed: int = 0
    shards: int = 8
    """Virtual shards of the mixture, each packed on its own: divides `batch_size`, a multiple of the processes."""
    pack_rows: int = 64
    """Rows that are filled first-fit at a time; more pack tighter and delay the first batch."""
    workers: int = 0
    """Reader processes; 0 reads in the training process. Batches do not depend on it."""


@dataclass(frozen=True)
class Optimizer:
    """The update rule and its learning rate."""

    name: Literal["adafactor", "adamw"] = "adafactor"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    """After warm-up: stay, fall to 0 at the last step (linear, cosine), or fall as 1/sqrt(step)."""
    warmup_steps: int = 0
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 does not clip."""
    decay_rate: float = 0.8
    """Adafactor: the second moment's decay at step t is 1 - t ** -decay_rate."""
    decay_offset: int = 0
    """Adafactor: steps counted before this run (T0's continued count is 1,100,000)."""
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    """AdamW: decoupled, times the learning rate, on matrices only."""


@dataclass(frozen=True)
class Mesh:
    """Devices per axis; -1 takes what is left. The product is the number of devices."""

    data: int = -1
    fsdp: int = 1
    model: int = 1


@dataclass(frozen=True)
class Train:
    """One run: where, how long, from what, and what happens between the steps."""

    output_dir: str = "runs/default"
    steps: int = 1000
    seed: int = 0
    init_checkpoint: str = ""
    """A t0jax checkpoint or a Hugging Face directory to start from; random weights when empty."""
    init_from: Literal["weights", "state"] = "weights"
    """Take the weights alone, or the optimizer state and step too (t0jax checkpoints)."""
    grad_accumulation: int = 1
    """Micro-batches a step: `data.batch_size` is cut into this many."""
    z_loss: float = 0.0
    """Weight of log(Z)^2. T5 pre-training used 1e-4; T0 here 0 by default."""
    loss_normalization: Literal["tokens", "constant", "examples"] = "tokens"
    """Divide the summed loss by target tokens, by batch_size x target_length (Mesh-TensorFlow's constant), or take
    each example's token mean and average over examples."""
    ul_weight: float = 3.0
    """Weight of the unlikelihood of wrong choices (`data.num_negatives`) beside the likelihood of right ones."""
    ul_eps: float = 0.01
    """Added inside the unlikelihood's logarithm: -log(1 - p + eps). It stills tokens that are nearly certain."""
    ul_ramp_steps: int = 0
    """Steps over which `ul_weight` grows from 0 to its value; 0 has it whole from the start."""
    max_bad_steps: int = 10
    """Stop after this many steps in a row with a non-finite loss or gradient (each is skipped and counted)."""
    log_every: int = 20
    eval_every: int = 0
    """Steps between rank evaluations of `data.eval_mixture`; 0 only evaluates at the end, if at all."""
    checkpoint_every: int = 500
    keep_last: int = 2
    keep_best: int = 0
    """Keep this many checkpoints of the best mean evaluation accuracy besides the last ones."""
    export: Literal["none", "last", "best"] = "none"
    """When the run ends, write the last or best-scored checkpoint as a Hugging Face directory, `<output_dir>/hf`."""
    async_checkpoint: bool = True
    tensorboard: bool = True
    wandb_project: str = ""
    profile: str = ""
    """Steps to trace, "10:15" for 10 to 14, into `<output_dir>/profile`; none when empty."""
    patience: float = 1800.0
    """Seconds that the processes of a run wait for each other before they stop and name who did not come."""
    compile_cache: str = ""
    """Folder for compiled programs; `T0JAX_COMPILE_CACHE` when empty, none when both are."""


@dataclass(frozen=True)
class Evaluate:
    """How a mixture is scored."""

    method: Literal["rank", "generate"] = "rank"
    """`rank`: the likeliest of a prompt's answer choices. `generate`: text is written and measured by the tasks' own
    metrics (ROUGE, BLEU, SQuAD ...)."""
    num_beams: int = 1
    """Of `generate`; 1 is greedy. At most `max_target_length` tokens are written."""
    batch_size: int = 64
    """Examples scored at a time, over all processes."""
    max_input_length: int = 1024
    max_target_length: int = 256
    length_normalize: bool = False
    """Divide each choice's log-probability by its number of tokens. T0 does not."""
    input_eos: bool | None = None
    """As `data.input_eos`."""
    max_examples: int = 0
    """Score only this many rows of each task, drawn once and for all; 0 scores all."""
    label_words: dict[str, str] = field(default_factory=dict)
    """{word: other word} put in place of whole words of the choices, and where the prompt lists them."""


@dataclass(frozen=True)
class Config:
    """All sections of a recipe."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    mesh: Mesh = field(default_factory=Mesh)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)


def known_keys() -> list[str]:
    """All keys, dotted: `train.steps`."""
    return [
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(Config)
        for key in dataclasses.fields(section.type)  # type: ignore[arg-type]
    ]


def parse(
    argv: Sequence[str], description: str, base: Config | None = None, **options: dict[str, Any]
) -> tuple[Config, Any]:
    """Command line -> the configuration and the script's own options.

    Args:
        argv: e.g. `["--config", "configs/toy.yaml", "--train.steps", "100"]`.
        description: for `--help`.
        base: what holds where `argv` says nothing; the defaults when None.
        **options: a script's own arguments: name -> keywords of `ArgumentParser.add_argument`.

    Returns:
        The checked configuration and a namespace of `options`.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a bad value or a contradiction.
    """
    import jsonargparse  # here: 0.1 s that a plain `import t0jax.config` does not need

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # for --help
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML recipe; later values win.")
    base = base or Config()
    for section in dataclasses.fields(Config):
        default = getattr(base, section.name)
        parser.add_argument(f"--{section.name}", type=section.type, default=default)
    for name, keywords in options.items():
        parser.add_argument(f"--{name}", **keywords)
    _check_flags(argv, [*known_keys(), *options, "config", "help", "print_config"])
    try:
        namespace = parser.parse_args(list(argv))
        parsed = parser.instantiate(namespace)
    except (jsonargparse.ArgumentError, OSError) as error:
        raise ConfigError(str(error)) from None
    sections = {s.name: parsed[s.name] for s in dataclasses.fields(Config)}
    return check(Config(**sections)), parsed


def take_model(argv: Sequence[str]) -> tuple[Path, list[str]]:
    """A script's `--model M` and its other arguments; `--model.KEY` are the configuration's and stay.

    Raises:
        ConfigError: no `--model`, unless it is `--help` that was asked for.
    """
    rest = [word for argument in argv for word in _split_model(argument)]
    if "--model" not in rest:
        if "--help" in rest:
            return Path(), rest
        raise ConfigError("no model: give --model DIR (a run, a checkpoint, or a HF directory)")
    at = rest.index("--model")
    if at + 1 == len(rest):
        raise ConfigError("--model needs a folder")
    return Path(rest[at + 1]), rest[:at] + rest[at + 2 :]


def _split_model(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--model=") else [argument]


def _check_flags(argv: Sequence[str], known: Sequence[str]) -> None:
    for flag, value in zip(argv, [*argv[1:], ""], strict=False):
        name = flag.removeprefix("--").split("=")[0]
        if flag.startswith("--") and name not in known:
            raise ConfigError(_unknown(name, known))
        if flag in ("--config", "--config=") or flag.startswith("--config="):
            path = Path(flag.partition("=")[2] or value)
            if path.exists():
                _check_keys(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not a mapping of sections")
    return content


def _check_keys(content: Mapping[str, Any], where: str) -> None:
    sections = [section.name for section in dataclasses.fields(Config)]
    for section, values in content.items():
        if section not in sections:
            raise ConfigError(f"{where}: {_unknown(section, sections)}")
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"{where}: section {section!r} holds {values!r}, not keys")
        for key in values or {}:
            if f"{section}.{key}" not in known_keys():
                raise ConfigError(f"{where}: {_unknown(f'{section}.{key}', known_keys())}")


def _unknown(name: str, known: Sequence[str]) -> str:
    near = [key for key in known if key.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; --help names them all"
    return f"unknown configuration key {name!r}{hint}"


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values, as written beside every checkpoint."""
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """{dotted key: value}."""
    sections = to_dict(config).items()
    return {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()}


def from_dict(values: Mapping[str, Any], where: str) -> Config:
    """The inverse of `to_dict`; `where` names the file in errors."""
    _check_keys(values, where)
    sections = {}
    for section in dataclasses.fields(Config):
        given = {
            k: tuple(v) if isinstance(v, list) else v
            for k, v in (values.get(section.name) or {}).items()
        }
        sections[section.name] = section.type(**given)  # type: ignore[operator]
    return Config(**sections)


_POSITIVE = (
    *(
        "data.shards",
        "data.batch_size",
        "data.pack_rows",
        "data.input_length",
        "data.target_length",
    ),
    *("train.grad_accumulation", "train.log_every", "train.checkpoint_every", "train.keep_last"),
    "train.patience",
    *("train.max_bad_steps", "model.d_model", "model.vocab_size", "model.num_layers"),
    *("evaluate.batch_size", "evaluate.max_input_length", "evaluate.max_target_length"),
)


def check(config: Config) -> Config:
    """Refuses contradictions that would otherwise show up deep in a run."""
    data, train = config.data, config.train
    for key in _POSITIVE:
        if flatten(config)[key] < 1:
            raise ConfigError(f"{key} is {flatten(config)[key]}; it must be at least 1")
    problems = [
        (
            data.batch_size % data.shards,
            f"data.batch_size {data.batch_size} is not a multiple of data.shards {data.shards}",
        ),
        (
            data.batch_size % train.grad_accumulation,
            f"data.batch_size {data.batch_size} is not a multiple of train.grad_accumulation "
            f"{train.grad_accumulation}",
        ),
        (
            train.eval_every > 0 and not data.eval_mixture,
            "train.eval_every is set but data.eval_mixture is empty",
        ),
        (
            train.keep_best > 0
            and (train.eval_every < 1 or train.checkpoint_every % train.eval_every),
            "train.keep_best needs an evaluation at every checkpoint: set data.eval_mixture, and "
            "train.checkpoint_every to a multiple of train.eval_every",
        ),
        (
            config.model.attention == "cudnn" and config.model.dtype != "bfloat16",
            "model.attention cudnn needs model.dtype bfloat16",
        ),
        (
            config.model.attention == "cudnn" and (data.input_length % 2 or data.target_length % 2),
            f"model.attention cudnn trains on even lengths alone; data.input_length is {data.input_length}, "
            f"data.target_length {data.target_length}",
        ),
        (
            not 0 <= config.model.dropout_rate < 1,
            f"model.dropout_rate {config.model.dropout_rate} is not in [0, 1)",
        ),
        (
            min(data.num_negatives, train.ul_weight, train.ul_eps, train.ul_ramp_steps) < 0,
            "data.num_negatives, train.ul_weight, train.ul_eps and train.ul_ramp_steps may not be negative",
        ),
        (
            1 + data.num_negatives > min(data.input_length, data.target_length),
            f"data.num_negatives {data.num_negatives} leaves no room in rows of data.input_length "
            f"{data.input_length} and data.target_length {data.target_length}, which an example shares with them",
        ),
        (
            train.init_from == "state" and not train.init_checkpoint,
            "train.init_from state needs train.init_checkpoint",
        ),
    ]
    for bad, message in problems:
        if bad:
            raise ConfigError(message)
    return config


def with_compute(architecture: Model, compute: Model) -> Model:
    """`architecture` computed the way `compute` says."""
    return dataclasses.replace(
        architecture, **{name: getattr(compute, name) for name in COMPUTE_FIELDS}
    )


def run_script(main: Callable[[Sequence[str]], int]) -> None:
    """Ends the process with `main`'s exit status; what the user can mend, or Ctrl-C, is told in a line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets on stderr otherwise
    # Orbax logs a traceback a thread for what arrives here as one error.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    try:
        status = main(sys.argv[1:])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)
