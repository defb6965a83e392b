"""Refusing contradictions that would otherwise show up deep in a run."""

from collections.abc import Iterator

from t0jax.config.sections import Config, ConfigError, flatten

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


Problem = tuple[object, str]
"""What is wrong where it is true, and how that is said."""


def check(config: Config) -> Config:
    """The same configuration.

    Raises:
        ConfigError: its first contradiction, and the way out.
    """
    values = flatten(config)
    for key in _POSITIVE:
        if values[key] < 1:
            raise ConfigError(f"{key} is {values[key]}; it must be at least 1")
    for problems in (_batches, _evaluations, _attention, _rows, _model, _start):
        for bad, message in problems(config):
            if bad:
                raise ConfigError(message)
    return config


def _batches(config: Config) -> Iterator[Problem]:
    data, parts = config.data, config.train.grad_accumulation
    yield (
        data.batch_size % data.shards,
        f"data.batch_size {data.batch_size} is not a multiple of data.shards {data.shards}",
    )
    yield (
        data.batch_size % parts,
        f"data.batch_size {data.batch_size} is not a multiple of train.grad_accumulation {parts}",
    )


def _evaluations(config: Config) -> Iterator[Problem]:
    train = config.train
    yield (
        train.eval_every > 0 and not config.data.eval_mixture,
        "train.eval_every is set but data.eval_mixture is empty",
    )
    yield (
        train.keep_best > 0 and (train.eval_every < 1 or train.checkpoint_every % train.eval_every),
        "train.keep_best needs an evaluation at every checkpoint: set data.eval_mixture, and "
        "train.checkpoint_every to a multiple of train.eval_every",
    )


def _attention(config: Config) -> Iterator[Problem]:
    data = config.data
    if config.model.attention != "cudnn":
        return
    yield config.model.dtype != "bfloat16", "model.attention cudnn needs model.dtype bfloat16"
    yield (
        data.input_length % 2 or data.target_length % 2,
        f"model.attention cudnn trains on even lengths alone; data.input_length is {data.input_length}, "
        f"data.target_length {data.target_length}",
    )


def _rows(config: Config) -> Iterator[Problem]:
    data, train, buckets = config.data, config.train, list(config.data.length_buckets)
    yield (
        min(data.num_negatives, train.ul_weight, train.ul_eps, train.ul_ramp_steps) < 0,
        "data.num_negatives, train.ul_weight, train.ul_eps and train.ul_ramp_steps may not be negative",
    )
    yield (
        1 + data.num_negatives > min(data.input_length, data.target_length),
        f"data.num_negatives {data.num_negatives} leaves no room in rows of data.input_length "
        f"{data.input_length} and data.target_length {data.target_length}, which an example shares with them",
    )
    yield (
        buckets
        and (buckets != sorted(set(buckets)) or buckets[0] < 1 or buckets[-1] != data.input_length),
        f"data.length_buckets {buckets} must rise and end with data.input_length, which is {data.input_length}",
    )
    yield data.rate_cap < 0, f"data.rate_cap {data.rate_cap} must be at least 1, or 0 for no limit"
    yield data.max_choices < 2, f"data.max_choices {data.max_choices} must be at least 2"


def _model(config: Config) -> Iterator[Problem]:
    model = config.model
    yield (
        not 0 <= model.dropout_rate < 1,
        f"model.dropout_rate {model.dropout_rate} is not in [0, 1)",
    )
    yield (
        model.architecture == "deberta"
        and not config.train.init_checkpoint  # whose sizes count
        and model.num_heads * model.d_kv != model.d_model,
        f"model.num_heads {model.num_heads} x model.d_kv {model.d_kv} is not model.d_model {model.d_model}, as "
        "DeBERTa has it",
    )
    yield (
        not 0 <= model.task_embedding_drop <= 1,
        f"model.task_embedding_drop {model.task_embedding_drop} is not in [0, 1]",
    )


def _start(config: Config) -> Iterator[Problem]:
    train = config.train
    alone = not train.init_checkpoint
    yield train.init_task and alone, "train.init_task needs train.init_checkpoint"
    yield (
        train.init_from == "state" and alone,
        "train.init_from state needs train.init_checkpoint",
    )
