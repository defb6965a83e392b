"""Refusing contradictions that would otherwise show up deep in a run."""

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
            data.length_buckets
            and (
                list(data.length_buckets) != sorted(set(data.length_buckets))
                or data.length_buckets[0] < 1
                or data.length_buckets[-1] != data.input_length
            ),
            f"data.length_buckets {list(data.length_buckets)} must rise and end with data.input_length, which is "
            f"{data.input_length}",
        ),
        (data.rate_cap < 0, f"data.rate_cap {data.rate_cap} must be at least 1, or 0 for no limit"),
        (data.max_choices < 2, f"data.max_choices {data.max_choices} must be at least 2"),
        (
            config.model.architecture == "deberta"
            and not train.init_checkpoint  # whose sizes count
            and config.model.num_heads * config.model.d_kv != config.model.d_model,
            f"model.num_heads {config.model.num_heads} x model.d_kv {config.model.d_kv} is not model.d_model "
            f"{config.model.d_model}, as DeBERTa has it",
        ),
        (
            not 0 <= config.model.task_embedding_drop <= 1,
            f"model.task_embedding_drop {config.model.task_embedding_drop} is not in [0, 1]",
        ),
        (
            train.init_task and not train.init_checkpoint,
            "train.init_task needs train.init_checkpoint",
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
