"""The sections of a recipe as frozen dataclasses, and the errors of using them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


class UserError(Exception):
    """Something the user can mend: its message is shown without a traceback."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key, the value and the way out."""


HeadKind = Literal[
    "classification", "multilabel", "regression", "multiple_choice", "token_classification"
]


@dataclass(frozen=True)
class Head:
    """What one structured task asks of a multitask encoder: as many outputs as it has labels."""

    task: str
    """Name of the task, e.g. `glue/sst2`."""
    kind: HeadKind
    labels: tuple[str, ...] = ()
    """Names in the order of the label numbers; none of regression and multiple choice, which have one output."""
    group: str = ""
    """Heads of the same group share their weights, not their biases; a head without one shares with none."""

    @property
    def columns(self) -> int:
        """Number of outputs."""
        return len(self.labels) if self.kind not in ("regression", "multiple_choice") else 1


@dataclass(frozen=True)
class Model:
    """A T5 encoder-decoder or a DeBERTa-v3 multitask encoder: its architecture, then how it is computed.

    The defaults are T5 v1.1 small. When a run starts from a Hugging Face directory or a checkpoint, the
    architecture is read from there and only the computing options below are taken from here.
    """

    architecture: Literal["t5", "deberta"] = "t5"
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
    position_buckets: int = 256
    """DeBERTa: distances up to half as many have a relative embedding of their own, farther ones share."""
    max_relative_positions: int = 512
    """DeBERTa: the distance from which on all share the last one."""
    task_embedding: bool = True
    """DeBERTa: a learned vector a task, zero at the start, is added to the first token's embedding."""
    heads: tuple[Head, ...] = ()
    """DeBERTa: the tasks, in the order of their numbers; found in the data and written beside every checkpoint."""

    dropout_rate: float = 0.1
    """Used in training only. T5 v1.1 was pre-trained with 0; fine-tuning (T0) uses 0.1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products. Parameters, norms, softmax and logits are float32 always."""
    scan_layers: bool = True
    """One compiled body for all layers (fast compile) or an unrolled stack; same parameters either way."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but weight products, or everything."""
    task_embedding_drop: float = 0.1
    """DeBERTa: share of examples that are trained on without their task's embedding. Never used in scoring."""
    attention: Literal["xla", "cudnn"] = "xla"
    """`cudnn`, fused, needs an NVIDIA GPU, bfloat16 and even lengths."""

    @property
    def decoder_layers(self) -> int:
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers


COMPUTE_FIELDS = (
    *("dropout_rate", "dtype", "scan_layers", "remat", "attention"),
    "task_embedding_drop",
)
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
    rate_cap: int = 0
    """With `rates: rows`: a task weighs as this many rows at most; 0 has no limit."""
    batching: Literal["mixed", "single_task"] = "mixed"
    """Structured tasks: a batch holds examples of any tasks, or of one alone, as tasknet's do."""
    length_buckets: tuple[int, ...] = ()
    """Structured tasks: lengths of a batch's rows, the largest `input_length`; each is one compiled program. With
    none, all batches are `input_length` long."""
    max_choices: int = 4
    """Structured tasks: options of a multiple-choice question that are trained on, the right one among them; drawn by
    `seed`. Scoring reads all."""
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
    init_task: str = ""
    """A task of `init_checkpoint` whose embedding new tasks start from, and its head where the labels agree; with none
    they start from zero and at random."""
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

    method: Literal["rank", "generate", "classify"] = "rank"
    """`rank`: the likeliest of a prompt's answer choices. `generate`: text is written and measured by the tasks' own
    metrics (ROUGE, BLEU, SQuAD ...). `classify`: the heads of a multitask encoder on structured tasks."""
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
    head: str = ""
    """`classify`: the task whose head answers all tasks, `glue/mnli`; each its own when empty."""


@dataclass(frozen=True)
class Config:
    """All sections of a recipe."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    mesh: Mesh = field(default_factory=Mesh)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)


def with_compute(architecture: Model, compute: Model) -> Model:
    """`architecture` computed the way `compute` says."""
    return dataclasses.replace(
        architecture, **{name: getattr(compute, name) for name in COMPUTE_FIELDS}
    )


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values, as written beside every checkpoint."""
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """{dotted key: value}."""
    sections = to_dict(config).items()
    return {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()}
