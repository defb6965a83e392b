"""A linear probe of an encoder: `python -m scripts.probe --model M --task glue/mnli --module tasks.tasksource`.

M is a run folder, one of its checkpoints, or a Hugging Face directory of a DeBERTa, with heads or without. Its encoder
stays as it is; a logistic regression is fitted to the first token's last state. Model-recycling ranks models by such a
probe on MNLI (the settings of theirs are not published: this one is fitted to its minimum).
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t0jax import config
from t0jax.config import ConfigError

OPTIONS: dict[str, dict[str, Any]] = {
    "task": {"type": str, "default": "glue/mnli", "help": "a structured classification"},
    "module": {"type": str, "default": "", "help": "modules that register it [data.modules]"},
    "train_split": {"type": str, "default": "train", "help": "to fit on"},
    "split": {"type": str, "default": "validation", "help": "to score"},
    "train_rows": {"type": int, "default": 0, "help": "rows to fit on, drawn; 0 takes all"},
    "pooled": {"action": "store_true", "help": "what the pooler makes of the state, not itself"},
    "inverse_penalty": {"type": float, "default": 1.0, "help": "scikit-learn's C"},
    "max_length": {"type": int, "default": 256, "help": "tokens of a row"},
    "output": {"type": str, "default": "", "help": "a JSON file for the result"},
}

READ = ("config", "mesh", "data.local_dir", "data.modules", "data.vocabulary")
READ += ("train.compile_cache", *(f"model.{name}" for name in config.COMPUTE_FIELDS))
"""Keys of the configuration that a probe reads."""


def main(argv: Sequence[str]) -> int:
    """Prints the probe's accuracy as JSON; returns 0."""
    path, rest = config.take_model(argv)
    settings, options = config.parse(rest, __doc__ or "", of_model=True, **OPTIONS)
    config.refuse_unread(rest, READ, f"a probe reads {', '.join(READ)} and its own options")
    named = any(flag.startswith(("--model.", "--config")) for flag in rest)
    from t0jax import checkpoint, probe, processes, sharding, train
    from t0jax.data.structured.pieces import PairPieces
    from t0jax.data.vocabulary import vocabulary_path
    from t0jax.metrics import note

    processes.refuse_cluster("scripts.probe")
    train.set_environment(settings)
    modules = options.module.split(",") if options.module else settings.data.modules
    source = find_source(options.task, modules)
    probe.check_kind(source.record)
    mesh = sharding.make_mesh(settings.mesh)
    model = checkpoint.load_model(path, mesh, settings.model if named else None)
    if model.network.config.architecture != "deberta":
        raise ConfigError(
            f"{path} is a {model.network.config.architecture}; a probe reads a deberta"
        )
    pieces = PairPieces(settings.data.vocabulary or model.vocabulary or vocabulary_path())
    given = model.network, model.params, mesh, pieces
    how = {"max_length": options.max_length, "pooled": options.pooled}

    def features(split: str, limit: int) -> probe.Features:
        note(f"features: {options.task}, {split}")
        return probe.read_features(*given, source.rows(split).open(), limit=limit, **how)

    learnt, scored = features(options.train_split, options.train_rows), features(options.split, 0)
    classes = len(source.record.names)
    fitted = probe.fit(learnt, classes, inverse_penalty=options.inverse_penalty)
    found = {
        "model": f"{path.resolve()}, step {model.step}",
        "task": options.task,
        "accuracy": fitted.accuracy(scored),
        "train_accuracy": fitted.accuracy(learnt),
        "chance": 1 / classes,
        "majority": probe.majority(scored.labels),
        "n": len(scored.labels),
        "train_rows": len(learnt.labels),
        "gradient": fitted.gradient,
        "steps": fitted.steps,
    }
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
    print(json.dumps(rounded))
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def find_source(task: str, modules: Sequence[str]) -> Any:
    """The source of a structured task by its id or its name in seqio.

    Raises:
        ConfigError: the modules register no such task; names the nearest ones.
    """
    from t0jax.data.registry import import_tasks
    from t0jax.data.structured.source import StructuredSource, seqio

    import_tasks(modules)
    sources: dict[str, Any] = {}
    for name in seqio.TaskRegistry.names():
        source = seqio.TaskRegistry.get(name).source
        if isinstance(source, StructuredSource):
            sources |= {name: source, source.record.name: source}
    if task not in sources:
        near = difflib.get_close_matches(task, sources, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "give their --module"
        register = "registers" if len(modules) == 1 else "register"
        named = (
            f"{', '.join(modules)} {register} no" if modules else "no module is given that has a"
        )
        raise ConfigError(f"{named} structured task {task!r}; {hint}")
    return sources[task]


if __name__ == "__main__":
    config.run_script(main)
